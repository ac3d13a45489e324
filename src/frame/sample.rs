//! From a video frame straight to the network's size, without a full-size copy.

use super::{Component, Frame, FrameInfo, Luma};
use crate::engine::segmenter::Sample;
use crate::simd::simd;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// At most this many columns of the frame are averaged for one of a sample: enough against aliasing.
const MOST_TAPS: usize = 4;
/// Lines for one of a sample. To fetch them from memory is most of what the streaming thread does, and is bounded so whatever the
/// frame's size; four instead changed the Dice of no data set by more than 0.002.
const LINES: usize = 2;
/// Chroma has half the resolution and less detail.
const MOST_CHROMA_TAPS: usize = 2;
/// Weights of one axis sum to this.
const UNIT: u32 = 256;
/// Parts of a sample that are made side by side; more do not pay.
const MOST_BANDS: usize = 8;
/// Pixels that are converted at a time.
const LANES: usize = 8;

/// Largest frame side accepted, in pixels.
pub const MOST_SIDE: usize = 16_384;

/// Width and height of a frame whose longest side is brought to `size` (SAM's rule: halves round up; at
/// least one pixel).
pub fn fitted(width: usize, height: usize, size: usize) -> (usize, usize) {
    let longest = width.max(height);
    let side = |v: usize| ((2 * v * size + longest) / (2 * longest)).max(1);
    (side(width), side(height))
}

/// Reduces frames to samples. Tables are made when the frame's kind changes; after that nothing is
/// allocated as long as the same [`Sample`] comes back.
#[derive(Debug)]
pub struct Sampler {
    size: usize,
    tables: Option<(FrameInfo, Arc<Tables>)>,
    spread: bool,
    /// One for each band of a sample.
    scratch: Vec<Scratch>,
}

/// A frame reduced down alone: its lines are averaged, its columns are not. What is left to do, [`Columns::sample`], needs the frame
/// no more.
#[derive(Debug, Default)]
pub struct Lowered {
    kind: Option<(FrameInfo, Arc<Tables>)>,
    /// For each line of the sample those of every plane ([`mean_line`]), one plane after another.
    lines: Vec<u8>,
}

/// The other half of a [`Sampler`].
#[derive(Debug, Default)]
pub struct Columns {
    luma: Vec<u32>,
    chroma: [Vec<u32>; 2],
}

/// What a thread needs to make a sample's lines.
#[derive(Debug, Default)]
struct Scratch {
    /// A line of every plane.
    line: Vec<u8>,
    /// The lines of the frame that each plane's is the mean of.
    of: [Option<Pair>; 3],
    columns: Columns,
}

#[derive(Debug)]
struct Tables {
    width: usize,
    height: usize,
    x: Axis,
    y: Vec<Pair>,
    chroma_x: Axis,
    chroma_y: Vec<Pair>,
    /// Where each plane's part of a line is; empty for those that are not used.
    parts: [Range<usize>; 3],
}

/// Two lines of a frame and their weights (sum [`UNIT`]).
type Pair = [(u32, u32); LINES];

/// For every output coordinate the source coordinates that make it, and their weights (sum [`UNIT`]).
#[derive(Debug)]
struct Axis {
    taps: usize,
    /// The highest source coordinate there is.
    last: usize,
    at: Vec<(u32, u32)>,
    /// The coordinates alone, where all weights are one: reducing.
    even: Vec<u32>,
}

impl Axis {
    /// Enlarging is bilinear; reducing averages up to `most` evenly spaced pixels of the footprint.
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

    /// Of lines: there are always two.
    fn pairs(from: usize, to: usize) -> Vec<Pair> {
        Self::new(from, to, LINES).at.as_chunks().0.to_vec()
    }

    /// Weighted sums of what `read` gives at the coordinates of each output.
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

    /// [`Self::sums`] where all of `TAPS` weights are one.
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

impl Sampler {
    /// A sampler to a longest side of `size` pixels.
    pub fn new(size: usize) -> Self {
        Self { size, tables: None, spread: false, scratch: vec![Scratch::default()] }
    }

    /// Whether rayon's threads share a sample's lines: where inference does not need them.
    pub fn spread(&mut self, spread: bool) {
        if self.spread != spread {
            self.spread = spread;
            let bands = if spread { rayon::current_num_threads().clamp(1, MOST_BANDS) } else { 1 };
            self.scratch.resize_with(bands, Scratch::default);
        }
    }

    /// Writes the brightness of `frame`, at this sampler's size, into `out`: Y' of YUV, of RGB the green, which is most of it.
    ///
    /// # Errors
    /// For a frame with a side above [`MOST_SIDE`].
    pub fn luma(&mut self, frame: &Frame, out: &mut Luma) -> Result<()> {
        self.prepare(&frame.info)?;
        let Some((_, t)) = &self.tables else { return Ok(()) };
        let component = match (frame.info.format.packed(), frame.info.format.yuv()) {
            (Some((bytes, order)), _) => Component { plane: 0, step: bytes, offset: order[1] },
            (None, Some(yuv)) => yuv.components[0],
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

    /// Makes the tables where the frame's kind has changed.
    fn prepare(&mut self, info: &FrameInfo) -> Result<()> {
        if self.tables.as_ref().is_none_or(|(made_for, _)| made_for != info) {
            if info.width.max(info.height) > MOST_SIDE {
                return Err(Error::invalid(format!(
                    "a {}x{} frame is larger than {MOST_SIDE} pixels a side",
                    info.width, info.height
                )));
            }
            self.tables = Some((*info, Arc::new(Tables::new(info, self.size))));
        }
        Ok(())
    }

    /// Longest side of its samples.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Writes `frame` into `out` as packed RGB at the network's size.
    ///
    /// # Errors
    /// For a frame with a side above [`MOST_SIDE`].
    pub fn sample(&mut self, frame: &Frame, out: &mut Sample) -> Result<()> {
        self.prepare(&frame.info)?;
        let Some((_, t)) = &self.tables else { return Ok(()) };
        (out.width, out.height) = (t.width, t.height);
        out.rgb.resize(3 * t.width * t.height, 0);
        let band = t.height.div_ceil(self.scratch.len());
        if let [scratch] = &mut self.scratch[..] {
            scratch.sample(frame, t, 0, &mut out.rgb);
        } else {
            let bands = out.rgb.par_chunks_mut(3 * t.width * band).zip(&mut self.scratch);
            bands.enumerate().for_each(|(i, (rows, scratch))| scratch.sample(frame, t, i * band, rows));
        }
        Ok(())
    }

    /// The part of [`Self::sample`] that reads the frame: less than half of its time where the frame is much larger than the sample.
    ///
    /// # Errors
    /// For a frame with a side above [`MOST_SIDE`].
    pub fn lower(&mut self, frame: &Frame, out: &mut Lowered) -> Result<()> {
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

impl Lowered {
    /// Longest side of the sample that it becomes.
    pub fn size(&self) -> usize {
        self.kind.as_ref().map_or(0, |(_, t)| t.width.max(t.height))
    }
}

impl Scratch {
    /// Writes the lines from `first` on of a sample into `rows`, packed RGB.
    fn sample(&mut self, frame: &Frame, t: &Tables, first: usize, rows: &mut [u8]) {
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

impl Columns {
    /// What [`Sampler::sample`] would have made of the frame.
    pub fn sample(&mut self, lowered: &Lowered, out: &mut Sample) {
        let Some((info, t)) = &lowered.kind else { return };
        (out.width, out.height) = (t.width, t.height);
        out.rgb.resize(3 * t.width * t.height, 0);
        let convert = YuvToRgb::new(info);
        for (line, row) in lowered.lines.chunks_exact(t.line()).zip(out.rgb.chunks_exact_mut(3 * t.width)) {
            self.row(info, t, &convert, line, row);
        }
    }

    /// A line of a sample from those of the planes.
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
            (None, Some(yuv)) => {
                let [luma, cb, cr] = yuv.components;
                self.luma.resize(t.width, 0);
                gather(&line[t.parts[luma.plane].clone()], luma, &t.x, &mut self.luma);
                for (component, chroma) in [cb, cr].into_iter().zip(&mut self.chroma) {
                    chroma.resize(t.width, 0);
                    gather(&line[t.parts[component.plane].clone()], component, &t.chroma_x, chroma);
                }
                let [u, v] = &self.chroma;
                convert.row([&self.luma, u, v], row);
            }
            (None, None) => {}
        }
    }
}

impl Tables {
    fn new(info: &FrameInfo, size: usize) -> Self {
        let (width, height) = fitted(info.width, info.height, size);
        let shared_rows = info.format.yuv().map_or(1, |yuv| yuv.rows);
        let (chroma_w, chroma_h) = (info.width.div_ceil(2), info.height.div_ceil(shared_rows));
        let planes = info.format.planes(info.width, info.height);
        Self {
            width,
            height,
            x: Axis::new(info.width, width, MOST_TAPS),
            y: Axis::pairs(info.height, height),
            chroma_x: Axis::new(chroma_w, width, MOST_CHROMA_TAPS),
            chroma_y: Axis::pairs(chroma_h, height),
            parts: std::array::from_fn(|plane| {
                let bytes = |plane: usize| planes.get(plane).map_or(0, |(bytes, _)| *bytes);
                let start = (0..plane).map(bytes).sum();
                start..start + bytes(plane)
            }),
        }
    }

    /// Bytes of a line of all planes.
    fn line(&self) -> usize {
        self.parts.iter().map(Range::len).sum()
    }

    /// The lines of a plane that make line `y` of a sample. Chroma in luma's plane has luma's.
    fn lines(&self, plane: usize, y: usize) -> Pair {
        if plane == 0 { self.y[y] } else { self.chroma_y[y] }
    }
}

/// The weighted mean of two lines of a plane, byte by byte, rounded as Pillow rounds between the two passes of a resize. Down first
/// and across then: this half goes many bytes at a time.
fn mean_line(frame: &Frame, plane: usize, [(a, wa), (b, wb)]: Pair, out: &mut [u8]) {
    let (length, plane) = (out.len(), &frame.planes[plane]);
    let line = |y: u32| &plane.data[y as usize * plane.stride..][..length];
    let lines = line(a).iter().zip(line(b)).map(|(a, b)| (u16::from(*a), u16::from(*b)));
    // 255 times UNIT and its half fit.
    let (wa, wb, half) = (wa as u16, wb as u16, UNIT as u16 / 2);
    simd(
        #[inline(always)]
        || {
            if wa == wb {
                // The usual case, one instruction for many bytes.
                out.iter_mut().zip(lines).for_each(|(v, (a, b))| *v = ((a + b + 1) >> 1) as u8);
            } else {
                out.iter_mut()
                    .zip(lines)
                    .for_each(|(v, (a, b))| *v = ((wa * a + wb * b + half) / UNIT as u16) as u8);
            }
        },
    );
}

/// A sum of weights [`UNIT`] as the byte that it stands for.
fn rounded(sum: u32) -> u8 {
    ((sum + UNIT / 2) / UNIT) as u8
}

/// Weighted sums (times [`UNIT`]) of one component for one line of a sample, from its plane's.
fn gather(line: &[u8], component: Component, x: &Axis, out: &mut [u32]) {
    let (line, (out, _)) = (&line[component.offset..], out.as_chunks_mut::<1>());
    assert!(line.len() > x.last * component.step);
    // SAFETY: a table's coordinates go up to `last`; checking each would take a third of this loop's time.
    x.sums(out, |at| [u32::from(unsafe { *line.get_unchecked(at * component.step) })]);
}

/// Y'CbCr sums (times [`UNIT`]) to R'G'B'.
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
                // What is left, filled up.
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
mod tests {
    use super::*;
    use crate::frame::{ColorMatrix, PixelFormat, Plane, Rect};
    use proptest::prelude::*;

    /// A frame of one colour in `format`, with padding after every row that must never be read as picture.
    fn flat(
        format: PixelFormat,
        w: usize,
        h: usize,
        rgb: [f32; 3],
        full_range: bool,
    ) -> (FrameInfo, Vec<Vec<u8>>) {
        let info = FrameInfo { format, width: w, height: h, matrix: ColorMatrix::Bt709, full_range };
        let yuv = info.yuv(rgb.map(|v| v as u8));
        let planes = format.planes(w, h).into_iter().enumerate().map(|(p, (bytes, rows))| {
            let mut plane = vec![0xEE; (bytes + 5) * rows];
            for row in plane.chunks_exact_mut(bytes + 5) {
                for (i, b) in row[..bytes].iter_mut().enumerate() {
                    *b = match (format.packed(), format) {
                        (Some((n, order)), _) => {
                            (0..3).find(|c| order[*c] == i % n).map_or(0x77, |c| rgb[c] as u8)
                        }
                        (None, PixelFormat::Nv12) if p == 1 => yuv[1 + i % 2],
                        (None, PixelFormat::Uyvy) => [yuv[1], yuv[0], yuv[2], yuv[0]][i % 4],
                        (None, _) => yuv[p],
                    };
                }
            }
            plane
        });
        (info, planes.collect())
    }

    fn sample(info: FrameInfo, planes: &[Vec<u8>], size: usize) -> Sample {
        let none = Plane { data: &[], stride: 0 };
        let widths = info.format.planes(info.width, info.height);
        let plane = |i: usize| planes.get(i).map_or(none, |d| Plane { data: d, stride: widths[i].0 + 5 });
        let frame = Frame::new(info, [plane(0), plane(1), plane(2)]).unwrap();
        let mut out = Sample::default();
        Sampler::new(size).sample(&frame, &mut out).unwrap();
        out
    }

    /// Planes of no two lines alike, without padding.
    fn pattern(format: PixelFormat, w: usize, h: usize) -> Vec<Vec<u8>> {
        let plane = |(bytes, rows)| (0..bytes * rows).map(|i| (i * 31 % 251) as u8).collect();
        format.planes(w, h).into_iter().map(plane).collect()
    }

    fn patterned(format: PixelFormat, w: usize, h: usize, planes: &[Vec<u8>]) -> Frame<'_> {
        let info = FrameInfo { format, width: w, height: h, matrix: ColorMatrix::Bt709, full_range: false };
        let strides = format.planes(w, h);
        let none = Plane { data: &[], stride: 0 };
        let plane = |i: usize| planes.get(i).map_or(none, |data| Plane { data, stride: strides[i].0 });
        Frame::new(info, [plane(0), plane(1), plane(2)]).unwrap()
    }

    proptest! {
        #[test]
        fn a_flat_colour_stays_that_colour(
            w in 1usize..70, h in 1usize..70, size in 1usize..50, which in 0usize..PixelFormat::ALL.len(), full in any::<bool>(),
            rgb in [20u8..230, 20u8..230, 20u8..230],
        ) {
            let (info, planes) = flat(PixelFormat::ALL[which], w, h, rgb.map(f32::from), full);
            let out = sample(info, &planes, size);
            prop_assert_eq!(out.width.max(out.height), size);
            for pixel in out.rgb.chunks_exact(3) {
                for (got, want) in pixel.iter().zip(rgb) {
                    prop_assert!(got.abs_diff(want) <= 2, "{:?} {:?} {:?}", info, pixel, rgb);
                }
            }
        }
    }

    #[test]
    fn bands_and_halves_make_the_same_sample() {
        for format in PixelFormat::ALL {
            let planes = pattern(format, 130, 97);
            let frame = patterned(format, 130, 97, &planes);
            for size in [1, 3, 61, 200] {
                let (mut alone, mut spread) = (Sample::default(), Sample::default());
                Sampler::new(size).sample(&frame, &mut alone).unwrap();
                let mut sampler = Sampler::new(size);
                sampler.scratch.resize_with(5, Scratch::default);
                sampler.sample(&frame, &mut spread).unwrap();
                assert_eq!(alone, spread, "{format:?} at {size}");
                let (mut lowered, mut apart) = (Lowered::default(), Sample::default());
                sampler.lower(&frame, &mut lowered).unwrap();
                Columns::default().sample(&lowered, &mut apart);
                assert_eq!(alone, apart, "{format:?} at {size}, in two halves");
                assert_eq!(lowered.size(), size);
            }
        }
    }

    #[test]
    fn the_networks_own_size_is_copied() {
        let image = image::RgbImage::from_fn(64, 40, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
        let mut out = Sample::default();
        Sampler::new(64).sample(&Frame::rgb_image(&image), &mut out).unwrap();
        assert_eq!(&out.rgb, image.as_raw());
    }

    #[test]
    fn a_part_is_sampled_like_the_picture_it_shows() {
        for format in PixelFormat::ALL {
            let (w, h) = (42, 34);
            let planes = pattern(format, w, h);
            let frame = patterned(format, w, h, &planes);
            let read = |frame: &Frame| {
                let (mut sample, mut luma) = (Sample::default(), Luma::default());
                Sampler::new(frame.info.width.max(frame.info.height)).sample(frame, &mut sample).unwrap();
                Sampler::new(frame.info.width.max(frame.info.height)).luma(frame, &mut luma).unwrap();
                (sample, luma)
            };
            let (whole, part) =
                (read(&frame), read(&frame.crop(Rect { left: 6, top: 4, width: 36, height: 22 })));
            for (x, y) in [(2, 2), (20, 7), (33, 19)] {
                // Chroma is enlarged over its neighbours, so near the new border alone it may differ.
                let at = |s: &Sample, x: usize, y: usize| s.rgb[3 * (y * s.width + x)..][..3].to_vec();
                assert_eq!(at(&part.0, x, y), at(&whole.0, x + 6, y + 4), "{format:?} {x},{y}");
                assert_eq!(part.1.data[y * 36 + x], whole.1.data[(y + 4) * w + x + 6], "{format:?}");
            }
        }
    }

    #[test]
    fn reducing_averages() {
        let image = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([255 * ((x + y) % 2) as u8; 3]));
        let mut out = Sample::default();
        Sampler::new(16).sample(&Frame::rgb_image(&image), &mut out).unwrap();
        assert!(out.rgb.iter().all(|v| v.abs_diff(128) <= 1));
    }

    #[test]
    fn odd_sizes_keep_sams_rule() {
        assert_eq!(fitted(1, 1, 256), (256, 256));
        assert_eq!(fitted(4099, 7, 256), (256, 1));
        assert_eq!(fitted(1920, 1080, 256), (256, 144));
        assert_eq!(fitted(100, 75, 256), (256, 192));
    }

    #[test]
    fn a_short_plane_is_an_error_not_a_crash() {
        let info = FrameInfo::rgb(10, 10);
        let none = Plane { data: &[], stride: 0 };
        let text =
            Frame::new(info, [Plane { data: &[0; 299], stride: 30 }, none, none]).unwrap_err().to_string();
        assert!(text.contains("10 rows of 30 bytes"), "{text}");
    }
}
