use super::*;
use autosam_frame::map::ProbMap;
use autosam_frame::mask::MaskSettings;
use autosam_frame::{ColorMatrix, FrameInfo, PixelFormat};
use proptest::prelude::*;
use reference::{Place, noise};
use std::collections::HashSet;

/// The reference of the frame crate's own tests.
#[path = "../../../autosam-frame/src/reference.rs"]
mod reference;

fn disc(w: usize, h: usize) -> Mask {
    let data = (0..w * h)
        .map(|i| {
            let d = ((i % w) as f32 - 0.4 * w as f32).hypot((i / w) as f32 - 0.5 * h as f32);
            if d < 0.25 * h as f32 { 230 } else { 10 }
        })
        .collect();
    Mask::new(ProbMap { width: w, height: h, data }, &MaskSettings::default())
}

fn drawn(info: FrameInfo, planes: &mut [Vec<u8>], strides: &[usize], draw: impl FnOnce(&mut FrameMut)) {
    let mut planes = planes.iter_mut().zip(strides).map(|(data, stride)| PlaneMut { data, stride: *stride });
    let mut next = || planes.next().unwrap_or(PlaneMut { data: &mut [], stride: 0 });
    draw(&mut FrameMut::new(info, [next(), next(), next()]).unwrap());
}

/// The expected result of drawing on `planes`: each value of a `covered` pixel is blended once, one by one. A field is
/// a frame of every other line.
fn blended(
    info: FrameInfo,
    (planes, strides): (&[Vec<u8>], &[usize]),
    style: &Style,
    fields: usize,
    covered: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<u8>> {
    let alpha = (style.opacity * 256.0).round() as u32;
    let color = if info.format.packed().is_some() { style.color } else { info.yuv(style.color) };
    let (mut out, mut done) = (planes.to_vec(), HashSet::new());
    for (x, y) in (0..info.width * info.height).map(|i| (i % info.width, i / info.width)) {
        for (c, color) in color.into_iter().enumerate() {
            let Some(mut place) = Place::of(info.format, c, x, y / fields) else { continue };
            place.row = place.row * fields + y % fields;
            // If the height is not a multiple of 4, the lower field's last line has no separate chroma.
            if place.row >= planes[place.plane].len() / strides[place.plane] {
                continue;
            }
            if covered(x, y / fields) && done.insert(place) {
                let color = u32::from(color) << (place.bits - 8);
                let value = place.get(planes, strides) * (256 - alpha) + color * alpha;
                place.put(&mut out, strides, (value + 128) >> 8);
            }
        }
    }
    out
}

proptest! {
    /// Pixel integrity: in every format, size and stride, bits outside the overlay are unchanged; inside, every value
    /// is blended with the colour in its format's range.
    #[test]
    fn values_under_the_overlay_are_blended_and_no_other_bit_changes(
        w in 1usize..80, h in 1usize..80, which in 0usize..PixelFormat::ALL.len(), mode in 0usize..5,
        line in 0usize..9, dx in -50isize..50, dy in -50isize..50, still in any::<bool>(), fields in 1usize..3,
    ) {
        let shift = if still { (0, 0) } else { (dx, dy) };
        let modes = [OverlayMode::None, OverlayMode::Mask, OverlayMode::Contour, OverlayMode::MaskContour, OverlayMode::Box];
        let format = PixelFormat::ALL[which];
        let info = FrameInfo { matrix: ColorMatrix::Bt709, ..FrameInfo::new(format, w, h) };
        let overlay = Overlay::new(&disc(32, 24), w, h.div_ceil(fields), modes[mode], line);
        // Lines are opaque.
        let opacity = if modes[mode] == OverlayMode::Mask { 0.35 } else { 1.0 };
        let style = Style { opacity, ..Style::default() };
        let (before, strides) = noise(format, w, h, 3);
        let mut after = before.clone();
        drawn(info, &mut after, &strides, |frame| match fields {
            1 => overlay.draw_at(frame, &style, shift),
            _ => overlay.draw_on_fields(frame, &style, shift),
        });
        let covered = |x: usize, y: usize| {
            // Position of the block before the shift.
            let from = |v: usize, by: isize| (v / 2).checked_add_signed(-by.div_euclid(2)).map(|b| 2 * b);
            from(x, shift.0).zip(from(y, shift.1)).is_some_and(|(x, y)| overlay.covers(x, y))
        };
        let want = blended(info, (&before, &strides), &style, fields, covered);
        prop_assert!(after == want, "{format:?}");
        prop_assert!((0..w * h).any(|i| covered(i % w, i / w / fields)) || overlay.is_empty() || !still);
    }
}

#[test]
fn overlay_modes_draw_area_outline_or_box() {
    let mask = disc(64, 64);
    let count = |mode| {
        let m = Overlay::new(&mask, 128, 128, mode, 0);
        let lines: u32 = m.runs.iter().filter(|r| r.line).map(|r| r.end - r.start).sum();
        let fill: u32 = m.runs.iter().filter(|r| !r.line).map(|r| r.end - r.start).sum();
        (lines, fill)
    };
    assert_eq!(count(OverlayMode::None), (0, 0));
    let (area, outline) = (count(OverlayMode::Mask), count(OverlayMode::Contour));
    assert!(area.0 == 0 && area.1 > 700, "{area:?}");
    assert!(outline.1 == 0 && outline.0 > 50 && outline.0 < area.1 / 2, "{outline:?}");
    let both = count(OverlayMode::MaskContour);
    assert_eq!((both.0, both.0 + both.1), (outline.0, area.1));
    let boxed = count(OverlayMode::Box);
    assert!(boxed.1 == 0 && boxed.0 > outline.0 / 2, "{boxed:?}");
}

#[test]
fn an_overlay_for_another_size_is_not_drawn() {
    let overlay = Overlay::new(&disc(32, 32), 64, 64, OverlayMode::Mask, 0);
    let (before, strides) = noise(PixelFormat::Rgb, 66, 64, 3);
    let mut after = before.clone();
    drawn(FrameInfo::rgb(66, 64), &mut after, &strides, |frame| {
        overlay.draw(frame, &Style::default());
        overlay.draw_on_fields(frame, &Style::default(), (0, 0));
    });
    assert_eq!(after, before);
}

#[test]
fn the_overlay_has_the_requested_colour() {
    let mask = disc(32, 32);
    let overlay = Overlay::new(&mask, 32, 32, OverlayMode::Mask, 0);
    let mut image = image::RgbImage::new(32, 32);
    let style = Style { color: [200, 100, 50], opacity: 0.5 };
    overlay.draw(&mut FrameMut::rgb_image(&mut image), &style);
    assert_eq!(image.get_pixel(12, 16).0, [100, 50, 25]);
}

#[test]
fn lines_have_the_requested_width() {
    // A square far from the border: 64 x 64 pixels of a mask of its size.
    let data = (0..64 * 64)
        .map(|i| if (16..48).contains(&(i % 64)) && (16..48).contains(&(i / 64)) { 255 } else { 0 });
    let map = ProbMap { width: 64, height: 64, data: data.collect() };
    let mask = Mask::new(map, &MaskSettings::default());
    for mode in [OverlayMode::Contour, OverlayMode::Box] {
        for (asked, want) in [(1, 2), (2, 2), (3, 4), (8, 8)] {
            let overlay = Overlay::new(&mask, 64, 64, mode, asked);
            let across = (0..32).filter(|x| overlay.covers(*x, 32)).count();
            assert_eq!(across, want, "{mode:?} {asked}");
        }
    }
}

#[test]
fn a_shifted_overlay_is_clipped_at_the_border() {
    let overlay = Overlay::new(&disc(32, 32), 32, 32, OverlayMode::Mask, 0);
    let lit = |shift| {
        let mut image = image::RgbImage::new(32, 32);
        overlay.draw_at(&mut FrameMut::rgb_image(&mut image), &Style::default(), shift);
        (0..32 * 32).filter(|i| image.get_pixel(i % 32, i / 32).0[1] > 0).collect::<Vec<_>>()
    };
    let still = lit((0, 0));
    assert_eq!(lit((4, -6)), still.iter().map(|i| i + 4 - 6 * 32).collect::<Vec<_>>());
    assert!(!lit((-12, 0)).is_empty() && lit((-12, 0)).len() < still.len());
    assert!(lit((40, 0)).is_empty() && lit((0, -64)).is_empty());
}
