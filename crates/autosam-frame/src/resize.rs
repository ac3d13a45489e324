//! Resizes a video frame directly to the network's size, without a full-size copy.

use super::lines::{LINES, Pair, UNIT, mean_line};
use super::{Component, Frame, FrameInfo, Luma, Yuv};
use crate::map::ModelInput;
use crate::simd::simd;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Maximum number of frame columns averaged for one output column; enough to prevent aliasing.
const MOST_TAPS: usize = 4;
/// Chroma has half the resolution and less detail.
const MOST_CHROMA_TAPS: usize = 2;
/// Maximum number of bands of the output computed in parallel; more bring no gain.
const MOST_BANDS: usize = 8;
/// Pixels converted at a time.
const LANES: usize = 8;

/// Largest frame side accepted, in pixels.
pub const MOST_SIDE: usize = 16_384;

/// Width and height of a frame after its longest side is scaled to `size` (as in SAM: halves round up; at least one
/// pixel).
pub fn fitted(width: usize, height: usize, size: usize) -> (usize, usize) {
    let longest = width.max(height);
    let side = |v: usize| ((2 * v * size + longest) / (2 * longest)).max(1);
    (side(width), side(height))
}

/// Size of a network's square input, and how a frame is fitted into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputSize {
    /// In pixels.
    pub side: usize,
    /// Whether the frame is stretched to the square. Otherwise it keeps its aspect ratio ([`fitted`]) and the network
    /// pads it.
    pub stretch: bool,
}

impl From<usize> for InputSize {
    /// A size that keeps a frame's aspect ratio.
    fn from(side: usize) -> Self {
        Self { side, stretch: false }
    }
}

impl InputSize {
    /// Width and height that a frame of `width × height` is resized to.
    pub fn of(self, width: usize, height: usize) -> (usize, usize) {
        if self.stretch { (self.side, self.side) } else { fitted(width, height, self.side) }
    }

    /// Whether an input of `width × height` has this size.
    pub fn takes(self, width: usize, height: usize) -> bool {
        let shorter = width.min(height);
        width.max(height) == self.side && (!self.stretch || shorter == self.side)
    }
}

/// Resizes frames to model inputs. Lookup tables are computed when the frame's format or size changes. After that
/// nothing is allocated as long as the same [`ModelInput`] is passed in.
#[derive(Debug)]
pub struct Resizer {
    size: InputSize,
    tables: Option<(FrameInfo, Arc<Tables>)>,
    parallel: bool,
    /// One for each band of the output.
    scratch: Vec<Scratch>,
}

/// A frame resized vertically but not yet horizontally. The remaining step, [`ColumnResizer::resize`], no longer needs
/// the frame.
#[derive(Debug, Default)]
pub struct RowsResized {
    kind: Option<(FrameInfo, Arc<Tables>)>,
    /// For each output line the averaged lines of every plane ([`mean_line`]), one plane after another.
    lines: Vec<u8>,
}

/// Completes the horizontal half of a [`Resizer`]'s work.
#[derive(Debug, Default)]
pub struct ColumnResizer {
    luma: Vec<u32>,
    chroma: [Vec<u32>; 2],
}

/// Buffers of one thread for computing output lines.
#[derive(Debug, Default)]
struct Scratch {
    /// A line of every plane.
    line: Vec<u8>,
    /// The pair of frame lines of which each plane's line is the mean.
    of: [Option<Pair>; 3],
    columns: ColumnResizer,
}

#[derive(Debug)]
struct Tables {
    width: usize,
    height: usize,
    x: Axis,
    y: Vec<Pair>,
    chroma_x: Axis,
    chroma_y: Vec<Pair>,
    /// Range of each plane within a line; empty for unused planes.
    parts: [Range<usize>; 3],
}

/// For every output coordinate its source coordinates and their weights (sum [`UNIT`]).
#[derive(Debug)]
struct Axis {
    taps: usize,
    /// The highest source coordinate.
    last: usize,
    at: Vec<(u32, u32)>,
    /// Only the coordinates if all weights are equal, as when downscaling.
    even: Vec<u32>,
}

impl Axis {
    /// Upscaling is bilinear; downscaling averages up to `most` evenly spaced pixels of the footprint.
    fn new(from: usize, to: usize, most: usize) -> Self {
        let scale = from as f64 / to as f64;
        let last = from - 1;
        let mut at = Vec::new();
        if scale <= 1.0 {
            for i in 0..to {
                let x = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
                let left = (x as usize).min(last);
                let right = (left + 1).min(last);
                let weight = ((x - left as f64) * f64::from(UNIT)).round() as u32;
                at.extend([(left as u32, UNIT - weight), (right as u32, weight)]);
            }
            return Self { taps: 2, last, at, even: Vec::new() };
        }
        // A power of two, so that equal weights sum to UNIT.
        let taps = (scale.ceil() as usize).next_power_of_two().min(most);
        for i in 0..to {
            for t in 0..taps {
                let x = (i as f64 + (t as f64 + 0.5) / taps as f64) * scale;
                at.push(((x as usize).min(last) as u32, UNIT / taps as u32));
            }
        }
        let even = at.iter().map(|(x, _)| *x).collect();
        Self { taps, last, at, even }
    }

    /// The same for lines, of which there are always two.
    fn pairs(from: usize, to: usize) -> Vec<Pair> {
        Self::new(from, to, LINES).at.as_chunks().0.to_vec()
    }

    /// Weighted sums of the values that `read` returns at the coordinates of each output.
    #[inline(always)]
    fn sums<const N: usize>(&self, sums: &mut [[u32; N]], read: impl Fn(usize) -> [u32; N]) {
        match (self.even.is_empty(), self.taps) {
            (false, 4) => self.even_sums::<N, 4>(sums, read),
            (false, 2) => self.even_sums::<N, 2>(sums, read),
            _ => {
                for (sum, taps) in sums.iter_mut().zip(self.at.chunks_exact(self.taps)) {
                    *sum = [0; N];
                    for &(at, weight) in taps {
                        let values = read(at as usize);
                        *sum = std::array::from_fn(|i| sum[i] + weight * values[i]);
                    }
                }
            }
        }
    }

    /// [`Self::sums`] for `TAPS` weights of one each.
    #[inline(always)]
    fn even_sums<const N: usize, const TAPS: usize>(
        &self,
        sums: &mut [[u32; N]],
        read: impl Fn(usize) -> [u32; N],
    ) {
        let (taps, _) = self.even.as_chunks::<TAPS>();
        for (sum, taps) in sums.iter_mut().zip(taps) {
            let mut total = [0; N];
            for at in taps {
                for (total, v) in total.iter_mut().zip(read(*at as usize)) {
                    *total += v;
                }
            }
            *sum = total.map(|t| UNIT / TAPS as u32 * t);
        }
    }
}

impl Resizer {
    /// A resizer to `size`. A plain number is the longest side of inputs that keep the frame's aspect ratio.
    pub fn new(size: impl Into<InputSize>) -> Self {
        Self { size: size.into(), tables: None, parallel: false, scratch: vec![Scratch::default()] }
    }

    /// Whether rayon's threads share the work. Useful if inference does not need them.
    pub fn set_parallel(&mut self, parallel: bool) {
        if self.parallel != parallel {
            self.parallel = parallel;
            let bands = if parallel { rayon::current_num_threads().clamp(1, MOST_BANDS) } else { 1 };
            self.scratch.resize_with(bands, Scratch::default);
        }
    }

    /// Writes the brightness of `frame` to `out` at this resizer's size: Y' of YUV; green of RGB, which contributes
    /// most to luma.
    ///
    /// # Errors
    /// If a side of the frame is longer than [`MOST_SIDE`].
    pub fn luma(&mut self, frame: &Frame, out: &mut Luma) -> Result<()> {
        self.prepare(&frame.info)?;
        let Some((_, t)) = &self.tables else { return Ok(()) };
        let component = match (frame.info.format.packed(), frame.info.format.yuv()) {
            (Some((bytes, order)), _) => Component { plane: 0, step: bytes, offset: order[1] },
            (None, Some(yuv)) => yuv.luma,
            (None, None) => return Ok(()),
        };
        (out.width, out.height) = (t.width, t.height);
        out.data.resize(t.width * t.height, 0);
        let Some(Scratch { line, columns, .. }) = self.scratch.first_mut() else { return Ok(()) };
        let (plane, luma) = (component.plane, &mut columns.luma);
        line.resize(t.parts[plane].len(), 0);
        luma.resize(t.width, 0);
        for (y, row) in out.data.chunks_exact_mut(t.width).enumerate() {
            mean_line(frame, plane, t.lines(plane, y), line);
            gather(line, component, &t.x, luma);
            for (v, sum) in row.iter_mut().zip(luma.iter()) {
                *v = rounded(*sum);
            }
        }
        Ok(())
    }

    /// Recomputes the tables if the frame's format or size has changed.
    fn prepare(&mut self, info: &FrameInfo) -> Result<()> {
        if self.tables.as_ref().is_none_or(|(made_for, _)| made_for != info) {
            if info.width.max(info.height) > MOST_SIDE {
                return Err(Error::invalid(format!(
                    "a {}x{} frame is larger than the maximum of {MOST_SIDE}x{MOST_SIDE} pixels",
                    info.width, info.height
                )));
            }
            self.tables = Some((*info, Arc::new(Tables::new(info, self.size))));
        }
        Ok(())
    }

    /// Size of its output.
    pub fn size(&self) -> InputSize {
        self.size
    }

    /// Writes `frame` into `out` as packed RGB at the network's size.
    ///
    /// # Errors
    /// If a side of the frame is longer than [`MOST_SIDE`].
    pub fn resize(&mut self, frame: &Frame, out: &mut ModelInput) -> Result<()> {
        self.prepare(&frame.info)?;
        let Some((_, t)) = &self.tables else { return Ok(()) };
        (out.width, out.height) = (t.width, t.height);
        out.rgb.resize(3 * t.width * t.height, 0);
        let band = t.height.div_ceil(self.scratch.len());
        if let [scratch] = &mut self.scratch[..] {
            scratch.resize_lines(frame, t, 0, &mut out.rgb);
        } else {
            let bands = out.rgb.par_chunks_mut(3 * t.width * band).zip(&mut self.scratch);
            bands.enumerate().for_each(|(i, (rows, scratch))| scratch.resize_lines(frame, t, i * band, rows));
        }
        Ok(())
    }

    /// The vertical half of [`Self::resize`], which reads the frame. It takes less than half of the time if the frame
    /// is much larger than the output.
    ///
    /// # Errors
    /// If a side of the frame is longer than [`MOST_SIDE`].
    pub fn resize_rows(&mut self, frame: &Frame, out: &mut RowsResized) -> Result<()> {
        self.prepare(&frame.info)?;
        let Some((info, t)) = &self.tables else { return Ok(()) };
        let line = t.line();
        out.lines.resize(line * t.height, 0);
        for (y, line) in out.lines.chunks_exact_mut(line).enumerate() {
            for (plane, part) in t.parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
                mean_line(frame, plane, t.lines(plane, y), &mut line[part.clone()]);
            }
        }
        out.kind = Some((*info, t.clone()));
        Ok(())
    }
}

impl RowsResized {
    /// Width and height of the completed output.
    pub fn size(&self) -> (usize, usize) {
        self.kind.as_ref().map_or((0, 0), |(_, t)| (t.width, t.height))
    }
}

impl Scratch {
    /// Writes the output lines from `first` on to `rows` as packed RGB.
    fn resize_lines(&mut self, frame: &Frame, t: &Tables, first: usize, rows: &mut [u8]) {
        self.line.resize(t.line(), 0);
        self.of = [None; 3];
        let convert = YuvToRgb::new(&frame.info);
        for (y, row) in (first..).zip(rows.chunks_exact_mut(3 * t.width)) {
            for (plane, part) in t.parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
                let lines = t.lines(plane, y);
                if self.of[plane] != Some(lines) {
                    self.of[plane] = Some(lines);
                    mean_line(frame, plane, lines, &mut self.line[part.clone()]);
                }
            }
            self.columns.row(&frame.info, t, &convert, &self.line, row);
        }
    }
}

impl ColumnResizer {
    /// Writes the same output as [`Resizer::resize`].
    pub fn resize(&mut self, rows: &RowsResized, out: &mut ModelInput) {
        let Some((info, t)) = &rows.kind else { return };
        (out.width, out.height) = (t.width, t.height);
        out.rgb.resize(3 * t.width * t.height, 0);
        let convert = YuvToRgb::new(info);
        for (line, row) in rows.lines.chunks_exact(t.line()).zip(out.rgb.chunks_exact_mut(3 * t.width)) {
            self.row(info, t, &convert, line, row);
        }
    }

    /// Computes an output line from the lines of the planes.
    fn row(&mut self, info: &FrameInfo, t: &Tables, convert: &YuvToRgb, line: &[u8], row: &mut [u8]) {
        match (info.format.packed(), info.format.yuv()) {
            (Some((bytes, [r, g, b])), _) => {
                self.luma.resize(3 * t.width, 0);
                let (pixels, _) = self.luma.as_chunks_mut::<3>();
                t.x.sums(pixels, |x| {
                    let pixel = &line[x * bytes..][..bytes];
                    [r, g, b].map(|at| u32::from(pixel[at]))
                });
                for (v, sum) in row.iter_mut().zip(&self.luma) {
                    *v = rounded(*sum);
                }
            }
            (None, Some(Yuv { luma, chroma })) => {
                self.luma.resize(t.width, 0);
                gather(&line[t.parts[luma.plane].clone()], luma, &t.x, &mut self.luma);
                for (i, values) in self.chroma.iter_mut().enumerate() {
                    values.resize(t.width, 0);
                    match chroma.map(|chroma| chroma.components[i]) {
                        Some(component) => {
                            gather(&line[t.parts[component.plane].clone()], component, &t.chroma_x, values);
                        }
                        None => values.fill(128 * UNIT),
                    }
                }
                let [u, v] = &self.chroma;
                convert.row([&self.luma, u, v], row);
            }
            (None, None) => {}
        }
    }
}

impl Tables {
    fn new(info: &FrameInfo, size: InputSize) -> Self {
        // As displayed on a monitor, because networks were trained on square pixels.
        let (display_width, display_height) = info.display_aspect();
        let (width, height) = size.of(display_width, display_height);
        let shared_rows = info.format.yuv().and_then(|yuv| yuv.chroma).map_or(1, |chroma| chroma.rows);
        let (chroma_w, chroma_h) = (info.width.div_ceil(2), info.height.div_ceil(shared_rows));
        let (planes, packing) = (info.format.planes(info.width, info.height), info.format.packing());
        Self {
            width,
            height,
            x: Axis::new(info.width, width, MOST_TAPS),
            y: Axis::pairs(info.height, height),
            chroma_x: Axis::new(chroma_w, width, MOST_CHROMA_TAPS),
            chroma_y: Axis::pairs(chroma_h, height),
            parts: std::array::from_fn(|plane| {
                let values = |plane: usize| planes.get(plane).map_or(0, |(bytes, _)| packing.values(*bytes));
                let start = (0..plane).map(values).sum();
                start..start + values(plane)
            }),
        }
    }

    /// Number of values in a line of all planes.
    fn line(&self) -> usize {
        self.parts.iter().map(Range::len).sum()
    }

    /// The pair of lines of a plane for output line `y`. Chroma stored in luma's plane uses luma's lines.
    fn lines(&self, plane: usize, y: usize) -> Pair {
        if plane == 0 { self.y[y] } else { self.chroma_y[y] }
    }
}

/// Converts a weighted sum (weights sum to [`UNIT`]) to a byte.
fn rounded(sum: u32) -> u8 {
    ((sum + UNIT / 2) / UNIT) as u8
}

/// Weighted sums (times [`UNIT`]) of one component for one output line, from its plane's line.
fn gather(line: &[u8], component: Component, x: &Axis, out: &mut [u32]) {
    let (line, (out, _)) = (&line[component.offset..], out.as_chunks_mut::<1>());
    assert!(line.len() > x.last * component.step);
    // SAFETY: a table's coordinates are at most `last`. Checking each would take a third of this loop's time.
    x.sums(out, |at| [u32::from(unsafe { *line.get_unchecked(at * component.step) })]);
}

/// Converts Y'CbCr sums (times [`UNIT`]) to R'G'B'.
#[derive(Debug, Clone, Copy)]
struct YuvToRgb {
    black: f32,
    luma: f32,
    r_v: f32,
    g_u: f32,
    g_v: f32,
    b_u: f32,
}

impl YuvToRgb {
    fn new(info: &FrameInfo) -> Self {
        let (kr, kb) = info.matrix.weights();
        let kg = 1.0 - kr - kb;
        let (black, luma, chroma) =
            if info.full_range { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
        Self {
            black,
            luma,
            r_v: 2.0 * (1.0 - kr) * chroma,
            g_u: -2.0 * kb * (1.0 - kb) / kg * chroma,
            g_v: -2.0 * kr * (1.0 - kr) / kg * chroma,
            b_u: 2.0 * (1.0 - kb) * chroma,
        }
    }

    /// Sums of Y', Cb and Cr of a row → packed RGB.
    fn row(&self, [luma, u, v]: [&[u32]; 3], row: &mut [u8]) {
        simd(
            #[inline(always)]
            || {
                let ((luma, luma_rest), (pixels, pixels_rest)) =
                    (luma.as_chunks::<LANES>(), row.as_chunks_mut::<{ 3 * LANES }>());
                let ((u, u_rest), (v, v_rest)) = (u.as_chunks::<LANES>(), v.as_chunks::<LANES>());
                for (((luma, u), v), pixels) in luma.iter().zip(u).zip(v).zip(pixels) {
                    *pixels = self.rgb(luma, u, v);
                }
                // The remaining pixels, padded with zeros.
                let filled = |rest: &[u32]| std::array::from_fn(|i| rest.get(i).copied().unwrap_or_default());
                let last = self.rgb(&filled(luma_rest), &filled(u_rest), &filled(v_rest));
                pixels_rest.copy_from_slice(&last[..pixels_rest.len()]);
            },
        );
    }

    #[inline(always)]
    fn rgb(&self, luma: &[u32; LANES], u: &[u32; LANES], v: &[u32; LANES]) -> [u8; 3 * LANES] {
        let real = |s: u32| s as i32 as f32 * (1.0 / UNIT as f32);
        let y: [f32; LANES] = std::array::from_fn(|i| (real(luma[i]) - self.black) * self.luma);
        let (u, v) = (u.map(|u| real(u) - 128.0), v.map(|v| real(v) - 128.0));
        let byte = |v: f32| (v + 0.5) as u8; // saturates
        let r: [u8; LANES] = std::array::from_fn(|i| byte(y[i] + self.r_v * v[i]));
        let g: [u8; LANES] = std::array::from_fn(|i| byte(y[i] + self.g_u * u[i] + self.g_v * v[i]));
        let b: [u8; LANES] = std::array::from_fn(|i| byte(y[i] + self.b_u * u[i]));
        std::array::from_fn(|i| [r, g, b][i % 3][i / 3])
    }
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
