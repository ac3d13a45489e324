//! Draws overlays on frames in place. Bits outside the overlay are unchanged.
//!
//! A [`Overlay`] is prepared on the worker thread; drawing it accesses only the pixels of the overlay. It consists of
//! 2 × 2 blocks, so that formats with shared chroma are unchanged outside it too.

mod layer;
#[cfg(test)]
mod tests;

use autosam_frame::mask::{Enlarged, Mask};
use autosam_frame::{FrameMut, PlaneMut};
use layer::Layer;

/// Appearance of the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum OverlayMode {
    None,
    /// Tinted area.
    Mask,
    /// Outline.
    Contour,
    /// Tinted area and outline.
    #[default]
    MaskContour,
    /// A box around each region.
    Box,
}

/// Colour and opacity; read when drawing, so a change takes effect on the next frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// Colour as R, G, B.
    pub color: [u8; 3],
    /// Opacity of the tint, 0 to 1; lines are always opaque.
    pub opacity: f32,
}

impl Default for Style {
    fn default() -> Self {
        // Green does not occur in mucosa.
        Self { color: [0, 255, 64], opacity: 0.35 }
    }
}

/// A run of blocks in one row of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u32,
    end: u32,
    line: bool,
}

/// The pixels to draw on a frame of one size, as runs of 2 × 2 blocks.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    width: usize,
    height: usize,
    runs: Vec<Run>,
    /// Start of each row of blocks in `runs`, and the end.
    rows: Vec<usize>,
}

impl Overlay {
    /// Prepares `mask` for frames of `width × height`, with lines of `line` pixels, rounded up to an even number; 0 is about a
    /// 400th of the frame.
    pub fn new(mask: &Mask, width: usize, height: usize, mode: OverlayMode, line: usize) -> Self {
        let mut overlay = Self { width, height, runs: Vec::new(), rows: vec![0] };
        let (w, h) = (width.div_ceil(2), height.div_ceil(2));
        let reach = if line == 0 { (width.min(height) / 800).max(1) } else { line.div_ceil(2) };
        let cells = match mode {
            OverlayMode::None => return overlay,
            _ if mask.regions.is_empty() => return overlay,
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
                        overlay.runs.push(Run { start, end, line: kind == Cell::Line });
                    }
                }
            }
            overlay.rows.push(overlay.runs.len());
        }
        overlay
    }

    /// Whether nothing is drawn.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Draws on `frame`; see [`Self::draw_at`].
    pub fn draw(&self, frame: &mut FrameMut, style: &Style) {
        self.draw_at(frame, style, (0, 0));
    }

    /// Draws on `frame`, moved by `shift` pixels right and down (to the nearest block, clipped to the frame). Does nothing
    /// if the frame's size is not the one that the overlay was prepared for.
    pub fn draw_at(&self, frame: &mut FrameMut, style: &Style, shift: (isize, isize)) {
        let info = frame.info;
        if (info.width, info.height) == (self.width, self.height) {
            let layers = Layer::of(&info, &info.format.planes(info.width, info.height), style);
            self.draw_layers(&mut frame.planes, &layers, shift);
        }
    }

    /// Draws on both fields of an interlaced frame; the overlay was prepared for its upper field
    /// ([`autosam_frame::Frame::top_field`]). Lines of one field share their chroma with lines of the same field.
    pub fn draw_on_fields(&self, frame: &mut FrameMut, style: &Style, shift: (isize, isize)) {
        let info = frame.info.top_field();
        if (info.width, info.height) != (self.width, self.height) {
            return;
        }
        let planes = frame.info.format.planes(frame.info.width, frame.info.height);
        for field in 0..2 {
            let lines = |rows: usize| (rows + 1 - field) / 2;
            let sizes: Vec<_> = planes.iter().map(|(bytes, rows)| (*bytes, lines(*rows))).collect();
            let mut planes = frame.planes.each_mut().map(|p| PlaneMut {
                data: p.data.get_mut(field * p.stride..).unwrap_or_default(),
                stride: 2 * p.stride,
            });
            self.draw_layers(&mut planes, &Layer::of(&info, &sizes, style), shift);
        }
    }

    fn draw_layers(
        &self,
        planes: &mut [PlaneMut; 3],
        layers: &[Option<Layer>; 3],
        (right, down): (isize, isize),
    ) {
        let (right, down) = (right.div_euclid(2), down.div_euclid(2));
        let columns = self.width.div_ceil(2) as isize;
        for (by, ends) in self.rows.windows(2).enumerate() {
            let Some(by) = by.checked_add_signed(down).filter(|by| 2 * by < self.height) else { continue };
            for run in &self.runs[ends[0]..ends[1]] {
                let at = |block: u32| (block as isize + right).clamp(0, columns) as usize;
                let (start, end) = (at(run.start), at(run.end));
                if start < end {
                    for (plane, layer) in planes.iter_mut().zip(layers.iter().flatten()) {
                        layer.draw(plane, start..end, by, run.line);
                    }
                }
            }
        }
    }

    /// Whether the pixel is part of the overlay (for tests and for measuring pixel integrity).
    pub fn covers(&self, x: usize, y: usize) -> bool {
        let (bx, by) = ((x / 2) as u32, y / 2);
        by + 1 < self.rows.len()
            && self.runs[self.rows[by]..self.rows[by + 1]].iter().any(|r| (r.start..r.end).contains(&bx))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Empty,
    Fill,
    Line,
}

/// Blocks of the part of a frame that contains regions.
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

/// Range of blocks that the regions cover, with a margin for rounding, clipped to the frame.
fn extent(mask: &Mask, w: usize, h: usize) -> (usize, usize, usize, usize) {
    let over = |pick: fn(&autosam_frame::mask::Region) -> f32, side: usize, up: bool| {
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
            *i = *v >= u32::from(mask.level) * Enlarged::UNIT;
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

/// Blocks whose neighbourhood within `reach` in both directions is completely inside; the other blocks inside form the
/// outline. Everything beyond the border counts as outside, so outlines close there.
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
