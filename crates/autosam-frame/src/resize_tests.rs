use super::*;
use crate::reference::{Place, noise};
use crate::{ColorMatrix, PixelFormat, Plane, Rect};
use proptest::prelude::*;

fn info(format: PixelFormat, w: usize, h: usize, full_range: bool) -> FrameInfo {
    FrameInfo { matrix: ColorMatrix::Bt709, full_range, ..FrameInfo::new(format, w, h) }
}

fn framed<'a>(info: FrameInfo, planes: &'a [Vec<u8>], strides: &[usize]) -> Frame<'a> {
    let none = Plane { data: &[], stride: 0 };
    let plane = |i: usize| planes.get(i).map_or(none, |data| Plane { data, stride: strides[i] });
    Frame::new(info, [plane(0), plane(1), plane(2)]).unwrap()
}

fn resized(frame: &Frame, size: usize) -> ModelInput {
    let mut out = ModelInput::default();
    Resizer::new(size).resize(frame, &mut out).unwrap();
    out
}

/// A frame of one colour. The padding after every row and the unused bits contain noise, which must never be read.
fn flat(info: FrameInfo, rgb: [u8; 3]) -> (Vec<Vec<u8>>, Vec<usize>) {
    let (mut planes, strides) = noise(info.format, info.width, info.height, 6);
    let color = if info.format.packed().is_some() { rgb } else { info.yuv(rgb) };
    for (x, y) in (0..info.width * info.height).map(|i| (i % info.width, i / info.width)) {
        for (c, value) in color.into_iter().enumerate() {
            if let Some(place) = Place::of(info.format, c, x, y) {
                place.put(&mut planes, &strides, u32::from(value) << (place.bits - 8));
            }
        }
    }
    (planes, strides)
}

/// Converts `planes` to another format: extends 8-bit values with zeros or shortens values to 8 bits.
fn transcoded(
    (planes, strides): (&[Vec<u8>], &[usize]),
    (w, h): (usize, usize),
    from: PixelFormat,
    to: PixelFormat,
) -> (Vec<Vec<u8>>, Vec<usize>) {
    let (mut out, out_strides) = noise(to, w, h, 2);
    for (x, y) in (0..w * h).map(|i| (i % w, i / w)) {
        for c in 0..3 {
            if let Some(place) = Place::of(to, c, x, y) {
                let value =
                    Place::of(from, c, x, y).map_or(128, |from| from.get(planes, strides) >> (from.bits - 8));
                place.put(&mut out, &out_strides, value << (place.bits - 8));
            }
        }
    }
    (out, out_strides)
}

/// Pairs of formats: one, and the 8-bit format with the same values in other positions.
const TWINS: [(PixelFormat, PixelFormat); 9] = [
    (PixelFormat::Yuy2, PixelFormat::Uyvy),
    (PixelFormat::Y42b, PixelFormat::Uyvy),
    (PixelFormat::I420, PixelFormat::Nv12),
    (PixelFormat::P010, PixelFormat::Nv12),
    (PixelFormat::P012, PixelFormat::Nv12),
    (PixelFormat::I420_10, PixelFormat::I420),
    (PixelFormat::I422_10, PixelFormat::Y42b),
    (PixelFormat::V210, PixelFormat::Uyvy),
    (PixelFormat::Gray8, PixelFormat::I420),
];

proptest! {
    #[test]
    fn a_flat_colour_stays_that_colour(
        w in 1usize..70, h in 1usize..70, size in 1usize..50, which in 0usize..PixelFormat::ALL.len(), full in any::<bool>(),
        rgb in [20u8..230, 20u8..230, 20u8..230],
    ) {
        let info = info(PixelFormat::ALL[which], w, h, full);
        let (planes, strides) = flat(info, rgb);
        let out = resized(&framed(info, &planes, &strides), size);
        prop_assert_eq!(out.width.max(out.height), size);
        // Of greyscale frames only the brightness remains.
        let want = if info.format == PixelFormat::Gray8 {
            let (kr, kb) = info.matrix.weights();
            let [r, g, b] = rgb.map(f32::from);
            [(kr * r + (1.0 - kr - kb) * g + kb * b) as u8; 3]
        } else {
            rgb
        };
        for pixel in out.rgb.chunks_exact(3) {
            for (got, want) in pixel.iter().zip(want) {
                prop_assert!(got.abs_diff(want) <= 2, "{:?} {:?} {:?}", info, pixel, rgb);
            }
        }
    }

    /// Values stored elsewhere or in more bits make the same frame. Bits beyond the eighth are rounded.
    #[test]
    fn formats_with_the_same_values_yield_the_same_input(
        w in 1usize..70, h in 1usize..70, size in 1usize..90, which in 0usize..TWINS.len(), full in any::<bool>(),
    ) {
        let (format, twin) = TWINS[which];
        let (deep, deep_strides) = noise(format, w, h, 4);
        let (short, short_strides) = transcoded((&deep, &deep_strides), (w, h), format, twin);
        let (same, same_strides) = transcoded((&short, &short_strides), (w, h), twin, format);
        let want = resized(&framed(info(twin, w, h, full), &short, &short_strides), size);
        prop_assert_eq!(&resized(&framed(info(format, w, h, full), &same, &same_strides), size), &want);
        let rounded = resized(&framed(info(format, w, h, full), &deep, &deep_strides), size);
        for (a, b) in rounded.rgb.iter().zip(&want.rgb) {
            prop_assert!(a.abs_diff(*b) <= 5, "{format:?}: {a} for {b}");
        }
        let mut luma = [Luma::default(), Luma::default()];
        Resizer::new(size).luma(&framed(info(twin, w, h, full), &short, &short_strides), &mut luma[0]).unwrap();
        Resizer::new(size).luma(&framed(info(format, w, h, full), &same, &same_strides), &mut luma[1]).unwrap();
        prop_assert_eq!(&luma[0], &luma[1]);
    }
}

#[test]
fn bands_and_two_halves_yield_the_same_input() {
    for format in PixelFormat::ALL {
        let (planes, strides) = noise(format, 130, 97, 0);
        let frame = framed(info(format, 130, 97, false), &planes, &strides);
        for size in [1, 3, 61, 200] {
            let (mut single, mut banded) = (ModelInput::default(), ModelInput::default());
            Resizer::new(size).resize(&frame, &mut single).unwrap();
            let mut resizer = Resizer::new(size);
            resizer.scratch.resize_with(5, Scratch::default);
            resizer.resize(&frame, &mut banded).unwrap();
            assert_eq!(single, banded, "{format:?} at {size}");
            let (mut rows, mut halves) = (RowsResized::default(), ModelInput::default());
            resizer.resize_rows(&frame, &mut rows).unwrap();
            ColumnResizer::default().resize(&rows, &mut halves);
            assert_eq!(single, halves, "{format:?} at {size}, in two halves");
            assert_eq!(rows.size(), (single.width, single.height));
        }
    }
}

#[test]
fn a_frame_of_the_network_s_size_is_copied() {
    let image = image::RgbImage::from_fn(64, 40, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let mut out = ModelInput::default();
    Resizer::new(64).resize(&Frame::rgb_image(&image), &mut out).unwrap();
    assert_eq!(&out.rgb, image.as_raw());
}

#[test]
fn a_crop_is_resized_like_a_frame_with_its_content() {
    for format in PixelFormat::ALL {
        let (w, h) = (42, 34);
        let (planes, strides) = noise(format, w, h, 0);
        let frame = framed(info(format, w, h, false), &planes, &strides);
        let read = |frame: &Frame| {
            let (mut input, mut luma) = (ModelInput::default(), Luma::default());
            Resizer::new(frame.info.width.max(frame.info.height)).resize(frame, &mut input).unwrap();
            Resizer::new(frame.info.width.max(frame.info.height)).luma(frame, &mut luma).unwrap();
            (input, luma)
        };
        let (whole, part) =
            (read(&frame), read(&frame.crop(Rect { left: 6, top: 4, width: 36, height: 22 })));
        for (x, y) in [(2, 2), (20, 7), (33, 19)] {
            // Chroma is interpolated from its neighbours, so it may differ only near the new border.
            let at = |s: &ModelInput, x: usize, y: usize| s.rgb[3 * (y * s.width + x)..][..3].to_vec();
            assert_eq!(at(&part.0, x, y), at(&whole.0, x + 6, y + 4), "{format:?} {x},{y}");
            assert_eq!(part.1.data[y * 36 + x], whole.1.data[(y + 4) * w + x + 6], "{format:?}");
        }
    }
}

#[test]
fn wide_pixels_are_resized_to_the_displayed_aspect_ratio() {
    // A disc as displayed, stored as 16:9 video of 720x576: in memory it is narrower than a circle.
    let (w, h, aspect) = (720u32, 576u32, (64, 45));
    let shown = f64::from(w) * 64.0 / 45.0;
    let image = image::RgbImage::from_fn(w, h, |x, y| {
        let dx = (f64::from(x) + 0.5) * 64.0 / 45.0 - shown / 2.0;
        let inside = dx.hypot(f64::from(y) + 0.5 - 288.0) < 200.0;
        image::Rgb([if inside { 255 } else { 0 }; 3])
    });
    let frame = Frame::rgb_image(&image).with_pixel_aspect(aspect);
    let mut out = ModelInput::default();
    Resizer::new(256).resize(&frame, &mut out).unwrap();
    assert_eq!((out.width, out.height), (256, 144));
    let lit = |x: usize, y: usize| out.rgb[3 * (y * out.width + x)] > 127;
    let across = (0..256).filter(|x| lit(*x, 72)).count();
    let down = (0..144).filter(|y| lit(128, *y)).count();
    assert!(across.abs_diff(down) <= 1 && across.abs_diff(100) <= 1, "{across}x{down}");
    // Tall pixels (720x480 in 4:3) make it narrower.
    let tall = Frame::rgb_image(&image).with_pixel_aspect((8, 9));
    Resizer::new(256).resize(&tall, &mut out).unwrap();
    assert_eq!((out.width, out.height), (256, 230));
}

#[test]
fn downscaling_averages_pixels() {
    let image = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([255 * ((x + y) % 2) as u8; 3]));
    let mut out = ModelInput::default();
    Resizer::new(16).resize(&Frame::rgb_image(&image), &mut out).unwrap();
    assert!(out.rgb.iter().all(|v| v.abs_diff(128) <= 1));
}

#[test]
fn odd_sizes_follow_sam_s_rounding() {
    assert_eq!(fitted(1, 1, 256), (256, 256));
    assert_eq!(fitted(4099, 7, 256), (256, 1));
    assert_eq!(fitted(1920, 1080, 256), (256, 144));
    assert_eq!(fitted(100, 75, 256), (256, 192));
}

#[test]
fn a_stretched_frame_fills_the_input() {
    let stretched = InputSize { side: 64, stretch: true };
    for (width, height) in [(1920, 1080), (5, 900), (64, 64), (1, 1)] {
        let (planes, strides) = noise(PixelFormat::Nv12, width, height, 0);
        let frame = framed(info(PixelFormat::Nv12, width, height, false), &planes, &strides);
        let (mut out, mut rows, mut halves) =
            (ModelInput::default(), RowsResized::default(), ModelInput::default());
        let mut resizer = Resizer::new(stretched);
        resizer.resize(&frame, &mut out).unwrap();
        assert_eq!((out.width, out.height, out.rgb.len()), (64, 64, 3 * 64 * 64));
        resizer.resize_rows(&frame, &mut rows).unwrap();
        ColumnResizer::default().resize(&rows, &mut halves);
        assert_eq!(out, halves);
        let (w, h) = InputSize::from(64).of(width, height);
        assert!(InputSize::from(64).takes(w, h) && stretched.takes(64, 64));
        assert_eq!(stretched.takes(w, h), w == h, "{width}x{height}");
    }
    // Left half dark, right half bright, far wider than high. The input must show both halves.
    let image = image::RgbImage::from_fn(400, 40, |x, _| image::Rgb([if x < 200 { 0 } else { 255 }; 3]));
    let mut out = ModelInput::default();
    Resizer::new(stretched).resize(&Frame::rgb_image(&image), &mut out).unwrap();
    let side = |x: usize| out.rgb.chunks_exact(3).skip(x).step_by(64).map(|p| p[0]).collect::<Vec<_>>();
    assert!(side(10).iter().all(|v| *v == 0) && side(50).iter().all(|v| *v == 255));
}

#[test]
fn the_network_sees_the_aspect_ratio_of_the_monitor() {
    let sized = |w, h, pixel_aspect| {
        let info = FrameInfo { pixel_aspect, ..FrameInfo::new(PixelFormat::Nv12, w, h) };
        let (width, height) = info.display_aspect();
        fitted(width, height, 288)
    };
    // PAL and NTSC in 4:3 and 16:9, HDV, square pixels.
    assert_eq!(sized(720, 576, (16, 15)), (288, 216));
    assert_eq!(sized(720, 576, (64, 45)), (288, 162));
    assert_eq!(sized(720, 480, (8, 9)), (288, 216));
    assert_eq!(sized(720, 480, (32, 27)), (288, 162));
    assert_eq!(sized(1440, 1080, (4, 3)), (288, 162));
    assert_eq!(sized(720, 576, (1, 1)), (288, 230));
    assert_eq!(sized(16_384, 16_384, (u32::MAX, 1)), (288, 1));
}

#[test]
fn a_field_is_resized_to_the_frame_s_aspect_ratio() {
    for format in PixelFormat::ALL {
        for (w, h) in [(48, 36), (33, 27), (7, 1)] {
            let info = info(format, w, h, false);
            let (mut planes, strides) = flat(info, [200, 90, 60]);
            let want = resized(&framed(info, &planes, &strides), 24);
            // The lower field must not be read.
            for (plane, stride) in planes.iter_mut().zip(&strides) {
                plane.chunks_exact_mut(*stride).skip(1).step_by(2).for_each(|row| row.fill(0x11));
            }
            let field = framed(info, &planes, &strides).top_field();
            assert_eq!(field.info.height, h.div_ceil(2));
            let got = resized(&field, 24);
            if h > 1 && h % 2 == 0 {
                assert_eq!((got.width, got.height), (want.width, want.height), "{format:?}");
            }
            assert_eq!(got.rgb[..3], want.rgb[..3], "{format:?} {w}x{h}");
            assert!(got.rgb.chunks(3).all(|pixel| pixel == &got.rgb[..3]), "{format:?} {w}x{h}");
        }
    }
}

#[test]
fn a_short_plane_is_an_error_not_a_crash() {
    let info = FrameInfo::rgb(10, 10);
    let none = Plane { data: &[], stride: 0 };
    let text = Frame::new(info, [Plane { data: &[0; 299], stride: 30 }, none, none]).unwrap_err().to_string();
    assert!(text.contains("10 rows of 30 bytes"), "{text}");
}
