//! Draws masks on pictures in place. Outside the mark no bit changes.
//!
//! A [`Mark`] is made beside the picture's thread; drawing it touches the marked pixels alone. It is made of
//! 2 × 2 blocks, so that formats with shared chroma stay untouched outside it too.

use crate::engine::mask::{Enlarged, Mask};
use crate::frame::{FrameInfo, FrameMut, PlaneMut};
use crate::simd::simd;

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum OverlayMode {
    None,
    /// The polyp's area, tinted.
    Mask,
    /// Its outline.
    Contour,
    /// Both.
    #[default]
    MaskContour,
    /// A box around each region.
    Box,
}

/// How it is drawn; read when drawing, so a change shows on the next picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// R, G, B.
    pub color: [u8; 3],
    /// Of the tint, 0 to 1; lines are always opaque.
    pub opacity: f32,
}

impl Default for Style {
    fn default() -> Self {
        // Green: no mucosa is.
        Self { color: [0, 255, 64], opacity: 0.35 }
    }
}

/// A stretch of blocks in one row of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u32,
    end: u32,
    line: bool,
}

/// The pixels to draw on a picture of one size, as runs of 2 × 2 blocks.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    width: usize,
    height: usize,
    runs: Vec<Run>,
    /// Where each row of blocks begins in `runs`, and the end.
    rows: Vec<usize>,
}

impl Mark {
    /// Prepares `mask` for pictures of `width × height`, with lines of `line` pixels, brought up to an even number; 0 is about a
    /// 400th of the picture.
    pub fn new(mask: &Mask, width: usize, height: usize, mode: OverlayMode, line: usize) -> Self {
        let mut mark = Self { width, height, runs: Vec::new(), rows: vec![0] };
        let (w, h) = (width.div_ceil(2), height.div_ceil(2));
        let reach = if line == 0 { (width.min(height) / 800).max(1) } else { line.div_ceil(2) };
        let cells = match mode {
            OverlayMode::None => return mark,
            _ if mask.regions.is_empty() => return mark,
            OverlayMode::Box => boxes(mask, w, h, reach),
            _ => areas(mask, w, h, mode, reach),
        };
        for y in 0..h {
            if let Some(row) = cells.row(y) {
                let mut x = 0;
                while x < row.len() {
                    let kind = row[x];
                    let start = x;
                    while x < row.len() && row[x] == kind {
                        x += 1;
                    }
                    if kind != Cell::Empty {
                        let (start, end) = ((cells.left + start) as u32, (cells.left + x) as u32);
                        mark.runs.push(Run { start, end, line: kind == Cell::Line });
                    }
                }
            }
            mark.rows.push(mark.runs.len());
        }
        mark
    }

    /// True where nothing is drawn.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Draws on `frame`; see [`Self::draw_at`].
    pub fn draw(&self, frame: &mut FrameMut, style: &Style) {
        self.draw_at(frame, style, (0, 0));
    }

    /// Draws on `frame`, moved by `shift` pixels right and down (to the nearest block; what falls outside the picture is cut
    /// off). Does nothing where the picture's size is not the one that the mark was made for.
    pub fn draw_at(&self, frame: &mut FrameMut, style: &Style, shift: (isize, isize)) {
        let info = frame.info;
        if (info.width, info.height) != (self.width, self.height) {
            return;
        }
        let color = if info.format.packed().is_some() { style.color } else { info.yuv(style.color) };
        let tint = (style.opacity.clamp(0.0, 1.0) * 256.0).round() as u16;
        let layers = Layer::of(&info, color, tint);
        let (right, down) = (shift.0.div_euclid(2), shift.1.div_euclid(2));
        let columns = info.width.div_ceil(2) as isize;
        for (by, ends) in self.rows.windows(2).enumerate() {
            let Some(by) = by.checked_add_signed(down).filter(|by| 2 * by < info.height) else { continue };
            for run in &self.runs[ends[0]..ends[1]] {
                let at = |block: u32| (block as isize + right).clamp(0, columns) as usize;
                let (start, end) = (at(run.start), at(run.end));
                if start < end {
                    for (plane, layer) in frame.planes.iter_mut().zip(layers.iter().flatten()) {
                        layer.draw(plane, start..end, by, run.line);
                    }
                }
            }
        }
    }

    /// Whether the pixel is part of the mark (for tests and for measuring pixel integrity).
    pub fn covers(&self, x: usize, y: usize) -> bool {
        let (bx, by) = ((x / 2) as u32, y / 2);
        by + 1 < self.rows.len()
            && self.runs[self.rows[by]..self.rows[by + 1]].iter().any(|r| (r.start..r.end).contains(&bx))
    }
}

/// How one plane is drawn on.
struct Layer {
    /// Bytes and lines of a block of 2 × 2 pixels.
    block: (usize, usize),
    /// Bytes of a line, and lines, that belong to the picture.
    size: (usize, usize),
    /// A byte of each line, inside of its last block, that is no part of the picture: the second luma of an odd width's last
    /// pair.
    beyond: Option<usize>,
    tint: Pattern,
    line: Pattern,
}

impl Layer {
    /// Those of each plane, for `color` as the format counts it and a tint of `alpha` of 256.
    fn of(info: &FrameInfo, color: [u8; 3], alpha: u16) -> [Option<Self>; 3] {
        let mut sizes = info.format.planes(info.width, info.height).into_iter();
        std::array::from_fn(|plane| {
            let size = sizes.next()?;
            // The bytes of a block's line, each with its colour where it is drawn on.
            let (mut bytes, mut span, mut lines) = ([None; 4], 0, 2);
            if let Some((step, order)) = info.format.packed() {
                span = step;
                order.iter().zip(color).for_each(|(at, c)| bytes[*at] = Some(c));
            } else if let Some(yuv) = info.format.yuv() {
                for (i, (component, c)) in yuv.components.into_iter().zip(color).enumerate() {
                    if component.plane == plane {
                        let own = if i == 0 { 2 * component.step } else { component.step };
                        span = span.max(own);
                        (component.offset..own).step_by(component.step).for_each(|at| bytes[at] = Some(c));
                        if i > 0 {
                            lines = 2 / yuv.rows;
                        }
                    }
                }
            }
            let bytes = &bytes[..span];
            let block = if info.format.packed().is_some() { 2 * span } else { span };
            let whole = info.format.yuv().is_some_and(|yuv| yuv.components[1].plane == 0);
            Some(Self {
                block: (block, lines),
                size,
                beyond: (whole && info.width % 2 == 1).then_some(2 * info.width + 1),
                tint: Pattern::new(bytes, alpha),
                line: Pattern::new(bytes, 256),
            })
        })
    }

    /// Draws on the blocks `across` of the row of blocks `down`.
    fn draw(&self, plane: &mut PlaneMut, across: std::ops::Range<usize>, down: usize, line: bool) {
        let pattern = if line { &self.line } else { &self.tint };
        let (start, end) = (self.block.0 * across.start, (self.block.0 * across.end).min(self.size.0));
        for y in self.block.1 * down..(self.block.1 * (down + 1)).min(self.size.1) {
            let row = &mut plane.data[y * plane.stride..][..end];
            let beyond = self.beyond.and_then(|at| row.get(at).map(|v| (at, *v)));
            pattern.blend(&mut row[start..]);
            if let Some((at, v)) = beyond {
                row[at] = v;
            }
        }
    }
}

/// Bytes that [`Pattern`] blends at a time: a multiple of any pixel's.
const PERIOD: usize = 96;

/// What becomes of each byte of pixels in a row: `(v · keep + add) / 256`, which fits 16 bits.
struct Pattern {
    keep: [u16; PERIOD],
    add: [u16; PERIOD],
}

impl Pattern {
    /// `bytes`: colours of a few neighbouring bytes that repeat, none where nothing is drawn; blended by `alpha` of 256.
    fn new(bytes: &[Option<u8>], alpha: u16) -> Self {
        let of = |i: usize| bytes[i % bytes.len()];
        Self {
            keep: std::array::from_fn(|i| of(i).map_or(256, |_| 256 - alpha)),
            add: std::array::from_fn(|i| of(i).map_or(0, |c| u16::from(c) * alpha.min(256)) + 128),
        }
    }

    /// `row` begins where the bytes of a pixel do.
    fn blend(&self, row: &mut [u8]) {
        simd(
            #[inline(always)]
            || {
                let blended = |v: u8, i: usize| ((u16::from(v) * self.keep[i] + self.add[i]) >> 8) as u8;
                let (periods, rest) = row.as_chunks_mut::<PERIOD>();
                for period in periods {
                    *period = std::array::from_fn(|i| blended(period[i], i));
                }
                for (i, v) in rest.iter_mut().enumerate() {
                    *v = blended(*v, i);
                }
            },
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Empty,
    Fill,
    Line,
}

/// Blocks of the part of a picture that has any.
struct Cells {
    left: usize,
    top: usize,
    width: usize,
    cells: Vec<Cell>,
}

impl Cells {
    fn new(left: usize, top: usize, right: usize, bottom: usize) -> Self {
        let width = right - left;
        Self { left, top, width, cells: vec![Cell::Empty; width * (bottom - top)] }
    }

    fn row(&self, y: usize) -> Option<&[Cell]> {
        self.cells.chunks_exact(self.width.max(1)).nth(y.checked_sub(self.top)?)
    }
}

/// Blocks from which to which the regions reach, with room for rounding, within the picture.
fn extent(mask: &Mask, w: usize, h: usize) -> (usize, usize, usize, usize) {
    let over = |pick: fn(&crate::engine::mask::Region) -> f32, side: usize, up: bool| {
        let values = mask.regions.iter().map(pick);
        let v = if up { values.fold(0.0, f32::max) } else { values.fold(1.0, f32::min) };
        // Enlarging spreads a region by up to one cell of the map.
        let spread = side as f32 / mask.map.width.min(mask.map.height).max(1) as f32 + 1.0;
        let at = v * side as f32;
        if up { ((at + spread) as usize + 1).min(side) } else { (at - spread).max(0.0) as usize }
    };
    (
        over(|r| r.left, w, false),
        over(|r| r.top, h, false),
        over(|r| r.right, w, true),
        over(|r| r.bottom, h, true),
    )
}

fn areas(mask: &Mask, w: usize, h: usize, mode: OverlayMode, reach: usize) -> Cells {
    let (left, top, right, bottom) = extent(mask, w, h);
    let mut out = Cells::new(left, top, right, bottom);
    let (cw, ch) = (right - left, bottom - top);
    let enlarged = Enlarged::new(&mask.map, w, h);
    let mut values = vec![0; cw];
    let mut inside = vec![false; cw * ch];
    for (y, row) in inside.chunks_exact_mut(cw.max(1)).enumerate() {
        enlarged.row(top + y, left, &mut values);
        for (i, v) in row.iter_mut().zip(&values) {
            *i = *v >= u32::from(mask.cut) * Enlarged::UNIT;
        }
    }
    let core = eroded(&inside, cw, ch, reach);
    for y in 0..ch {
        for x in 0..cw {
            if inside[y * cw + x] {
                out.cells[y * cw + x] = match mode {
                    OverlayMode::Mask => Cell::Fill,
                    _ if !core[y * cw + x] => Cell::Line,
                    OverlayMode::Contour => Cell::Empty,
                    _ => Cell::Fill,
                };
            }
        }
    }
    out
}

/// Blocks with nothing but inside within `reach` along both sides: what is inside and not among these is the outline. Beyond
/// the border nothing is inside, so an outline closes there.
fn eroded(inside: &[bool], width: usize, height: usize, reach: usize) -> Vec<bool> {
    // Along rows, then along columns: how many of the last 2 reach + 1 were inside.
    let along = |from: &[bool], to: &mut [bool], count: usize, length: usize, next: usize, step: usize| {
        for n in 0..count {
            let mut run = 0;
            for i in 0..length {
                run = if from[n * next + i * step] { run + 1 } else { 0 };
                if i >= reach {
                    to[n * next + (i - reach) * step] = run > 2 * reach;
                }
            }
        }
    };
    let (mut rows, mut both) = (vec![false; inside.len()], vec![false; inside.len()]);
    along(inside, &mut rows, height, width, width, 1);
    along(&rows, &mut both, width, height, 1, width);
    both
}

fn boxes(mask: &Mask, w: usize, h: usize, reach: usize) -> Cells {
    let mut out = Cells::new(0, 0, w, h);
    for r in &mask.regions {
        let from = |v: f32, side: usize| ((v * side as f32) as usize).min(side - 1);
        let to = |v: f32, side: usize| ((v * side as f32).ceil() as usize).min(side);
        let (x0, y0) = (from(r.left, w), from(r.top, h));
        let (x1, y1) = (to(r.right, w).max(x0 + 1), to(r.bottom, h).max(y0 + 1));
        for y in y0..y1 {
            for x in x0..x1 {
                let depth = (x - x0).min(x1 - 1 - x).min(y - y0).min(y1 - 1 - y);
                if depth < reach {
                    out.cells[y * w + x] = Cell::Line;
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::mask::MaskSettings;
    use crate::engine::segmenter::ProbMap;
    use crate::frame::{ColorMatrix, FrameInfo, PixelFormat};
    use proptest::prelude::*;

    fn disc(w: usize, h: usize) -> Mask {
        let data = (0..w * h)
            .map(|i| {
                let d = ((i % w) as f32 - 0.4 * w as f32).hypot((i / w) as f32 - 0.5 * h as f32);
                if d < 0.25 * h as f32 { 230 } else { 10 }
            })
            .collect();
        Mask::new(ProbMap { width: w, height: h, data }, &MaskSettings::default())
    }

    /// Planes of noise with padded rows.
    fn picture(format: PixelFormat, w: usize, h: usize) -> Vec<Vec<u8>> {
        format
            .planes(w, h)
            .into_iter()
            .map(|(bytes, rows)| (0..(bytes + 3) * rows).map(|i| (i * 31 % 251) as u8).collect())
            .collect()
    }

    fn draw(mark: &Mark, info: FrameInfo, planes: &mut [Vec<u8>], style: &Style, shift: (isize, isize)) {
        let strides: Vec<usize> =
            info.format.planes(info.width, info.height).iter().map(|p| p.0 + 3).collect();
        let mut planes = planes.iter_mut().zip(strides).map(|(data, stride)| PlaneMut { data, stride });
        let mut next = || planes.next().unwrap_or(PlaneMut { data: &mut [], stride: 0 });
        let mut frame = FrameMut::new(info, [next(), next(), next()]).unwrap();
        mark.draw_at(&mut frame, style, shift);
    }

    proptest! {
        /// Pixel integrity: in every format and size, strided, bits outside the mark are as they were.
        #[test]
        fn outside_the_mark_no_bit_changes(
            w in 1usize..80, h in 1usize..80, which in 0usize..PixelFormat::ALL.len(), mode in 0usize..5,
            line in 0usize..9, dx in -50isize..50, dy in -50isize..50, still in any::<bool>(),
        ) {
            let shift = if still { (0, 0) } else { (dx, dy) };
            let modes = [OverlayMode::None, OverlayMode::Mask, OverlayMode::Contour, OverlayMode::MaskContour, OverlayMode::Box];
            let format = PixelFormat::ALL[which];
            let info = FrameInfo { format, width: w, height: h, matrix: ColorMatrix::Bt709, full_range: false };
            let mark = Mark::new(&disc(32, 24), w, h, modes[mode], line);
            let before = picture(format, w, h);
            let mut after = before.clone();
            draw(&mark, info, &mut after, &Style { opacity: 1.0, ..Style::default() }, shift);
            let mut changed = 0;
            for (p, ((a, b), (bytes, _))) in after.iter().zip(&before).zip(format.planes(w, h)).enumerate() {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    if a == b { continue }
                    changed += 1;
                    let (column, y) = (i % (bytes + 3), i / (bytes + 3));
                    prop_assert!(column < bytes, "padding was written");
                    let (x, y) = match (format.packed(), p) {
                        (Some((n, order)), _) => {
                            prop_assert!(order.contains(&(column % n)), "alpha was written");
                            (column / n, y)
                        }
                        (None, _) if format == PixelFormat::Uyvy => {
                            prop_assert!(column % 2 == 0 || column / 2 < w, "beyond an odd width's last pixel");
                            (column / 2, y)
                        }
                        (None, 0) => (column, y),
                        (None, _) if format == PixelFormat::Nv12 => (column / 2 * 2, 2 * y),
                        (None, _) => (2 * column, 2 * y),
                    };
                    // Where the block was before the shift.
                    let from = |v: usize, by: isize| (v / 2).checked_add_signed(-by.div_euclid(2)).map(|b| 2 * b);
                    let drawn = from(x, shift.0).zip(from(y, shift.1)).is_some_and(|(x, y)| mark.covers(x, y));
                    prop_assert!(drawn, "{x},{y} plane {p}");
                }
            }
            prop_assert!(changed == 0 || !mark.is_empty());
            prop_assert!(changed > 0 || mark.is_empty() || !still);
        }
    }

    #[test]
    fn modes_draw_what_their_names_say() {
        let mask = disc(64, 64);
        let count = |mode| {
            let m = Mark::new(&mask, 128, 128, mode, 0);
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
    fn a_mark_for_another_size_is_not_drawn() {
        let mark = Mark::new(&disc(32, 32), 64, 64, OverlayMode::Mask, 0);
        let info = FrameInfo::rgb(66, 64);
        let mut planes = picture(PixelFormat::Rgb, 66, 64);
        let before = planes.clone();
        draw(&mark, info, &mut planes, &Style::default(), (0, 0));
        assert_eq!(planes, before);
    }

    #[test]
    fn the_colour_is_the_one_asked_for() {
        let mask = disc(32, 32);
        let mark = Mark::new(&mask, 32, 32, OverlayMode::Mask, 0);
        let mut image = image::RgbImage::new(32, 32);
        let style = Style { color: [200, 100, 50], opacity: 0.5 };
        mark.draw(&mut FrameMut::rgb_image(&mut image), &style);
        assert_eq!(image.get_pixel(12, 16).0, [100, 50, 25]);
    }

    #[test]
    fn lines_are_as_wide_as_asked() {
        // A square far from the border: 64 x 64 pixels of a mask of its size.
        let data = (0..64 * 64)
            .map(|i| if (16..48).contains(&(i % 64)) && (16..48).contains(&(i / 64)) { 255 } else { 0 });
        let map = ProbMap { width: 64, height: 64, data: data.collect() };
        let mask = Mask::new(map, &MaskSettings::default());
        for mode in [OverlayMode::Contour, OverlayMode::Box] {
            for (asked, want) in [(1, 2), (2, 2), (3, 4), (8, 8)] {
                let mark = Mark::new(&mask, 64, 64, mode, asked);
                let across = (0..32).filter(|x| mark.covers(*x, 32)).count();
                assert_eq!(across, want, "{mode:?} {asked}");
            }
        }
    }

    #[test]
    fn a_shifted_mark_is_cut_off_at_the_border() {
        let mark = Mark::new(&disc(32, 32), 32, 32, OverlayMode::Mask, 0);
        let lit = |shift| {
            let mut image = image::RgbImage::new(32, 32);
            mark.draw_at(&mut FrameMut::rgb_image(&mut image), &Style::default(), shift);
            (0..32 * 32).filter(|i| image.get_pixel(i % 32, i / 32).0[1] > 0).collect::<Vec<_>>()
        };
        let still = lit((0, 0));
        assert_eq!(lit((4, -6)), still.iter().map(|i| i + 4 - 6 * 32).collect::<Vec<_>>());
        assert!(!lit((-12, 0)).is_empty() && lit((-12, 0)).len() < still.len());
        assert!(lit((40, 0)).is_empty() && lit((0, -64)).is_empty());
    }
}
