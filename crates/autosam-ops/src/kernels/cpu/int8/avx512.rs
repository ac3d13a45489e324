//! AVX-512 with VNNI: `vpdpbusd` adds four products of a byte and a weight to each of 16 sums.

use super::depthwise::{BLOCK, DepthWise, ROWS};
use super::product::{DEPTH, PANEL, Product};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Rows of a product whose sums are held in registers; with [`WIDE`] panels they take 24 of the 32.
const TALL: usize = 8;
const WIDE: usize = 3;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// See [`Product::run`].
///
/// # Safety
/// The processor has the features that [`available`] checks. `x` is `[M, K]`, `out` and `residual` are `[M,
/// N]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn product(p: &Product, x: &[u8], residual: Option<&[u8]>, out: &mut [MaybeUninit<u8>]) {
    let (rows, panels) = (x.len() / p.k, p.n.div_ceil(PANEL));
    for first in (0..panels).step_by(WIDE) {
        let wide = WIDE.min(panels - first);
        let mut row = 0;
        while row < rows {
            let tall = if rows - row >= TALL { TALL } else { 1 };
            let tile = Tile { p, x, residual, row, panel: first };
            // SAFETY: rows and panels lie inside, by the two bounds above.
            unsafe {
                match (tall, wide) {
                    (TALL, 1) => tile.run::<TALL, 1>(out),
                    (TALL, 2) => tile.run::<TALL, 2>(out),
                    (TALL, _) => tile.run::<TALL, WIDE>(out),
                    (_, 1) => tile.run::<1, 1>(out),
                    (_, 2) => tile.run::<1, 2>(out),
                    (_, _) => tile.run::<1, WIDE>(out),
                }
            }
            row += tall;
        }
    }
}

/// A block of rows and panels of a product.
struct Tile<'a> {
    p: &'a Product,
    x: &'a [u8],
    residual: Option<&'a [u8]>,
    row: usize,
    panel: usize,
}

impl Tile<'_> {
    /// Computes R rows and P panels.
    ///
    /// # Safety
    /// As [`product`]; they lie inside the result.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn run<const R: usize, const P: usize>(&self, out: &mut [MaybeUninit<u8>]) {
        let Self { p, x, row, panel, .. } = *self;
        let steps = p.k / DEPTH;
        let mut sums = [[_mm512_setzero_si512(); P]; R];
        let rows = x[row * p.k..][..R * p.k].as_ptr();
        let weights = p.panels[panel * steps * VECTOR..][..P * steps * VECTOR].as_ptr();
        for step in 0..steps {
            let mut w = [_mm512_setzero_si512(); P];
            for (j, w) in w.iter_mut().enumerate() {
                // SAFETY: P panels of `steps` vectors, as sliced above.
                *w = unsafe { _mm512_loadu_si512(weights.add((j * steps + step) * VECTOR).cast()) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: R rows of 4 · `steps` bytes, as sliced above.
                let four = unsafe { rows.add(r * p.k + step * DEPTH).cast::<i32>().read_unaligned() };
                let four = _mm512_set1_epi32(four);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm512_dpbusd_epi32(*sum, four, w);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                self.store(row + r, panel + j, sum, out);
            }
        }
    }

    /// Requantises the sums of a row and a panel and stores the bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn store(&self, row: usize, panel: usize, sum: __m512i, out: &mut [MaybeUninit<u8>]) {
        let p = self.p;
        let first = panel * PANEL;
        let count = PANEL.min(p.n - first);
        let at = row * p.n + first;
        let mut value = scaled(sum, &p.requantise.scale[first..], &p.requantise.shift[first..]);
        if let Some(residual) = self.residual {
            let mut bytes = [0u8; PANEL];
            let residual = &residual[at..][..count];
            // A whole panel is one load.
            match residual.first_chunk::<PANEL>() {
                Some(all) => bytes = *all,
                None => bytes[..count].copy_from_slice(residual),
            }
            // SAFETY: 16 bytes.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            let more = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
            value = _mm512_add_ps(value, _mm512_mul_ps(more, _mm512_set1_ps(p.residual)));
        }
        let bytes = _mm512_cvtepi32_epi8(rounded(value));
        let out = &mut out[at..][..count];
        if let Some(all) = out.first_chunk_mut::<PANEL>() {
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(all.as_mut_ptr().cast(), bytes) };
        } else {
            let mut some = [0u8; PANEL];
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(some.as_mut_ptr().cast(), bytes) };
            out.iter_mut().zip(some).for_each(|(out, byte)| _ = out.write(byte));
        }
    }
}

/// `sum · scale + shift` of 16 sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn scaled(sum: __m512i, scale: &[f32], shift: &[f32]) -> __m512 {
    let (scale, shift) = (&scale[..16], &shift[..16]);
    // SAFETY: 16 floats each.
    let (scale, shift) = unsafe { (_mm512_loadu_ps(scale.as_ptr()), _mm512_loadu_ps(shift.as_ptr())) };
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, shift)
}

/// Rounds to even and clamps to 0 to 255.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(value: __m512) -> __m512i {
    let clamped = _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), _mm512_set1_ps(255.0));
    _mm512_cvtps_epi32(clamped)
}

/// See [`DepthWise::row`].
///
/// # Safety
/// The processor has the features that [`available`] checks. The kernel's side is 3 or 5, and sizes satisfy
/// the checks of `row`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn depthwise(
    p: &DepthWise,
    lines: &[u8],
    width: usize,
    buffer: &mut [u8],
    out: &mut [MaybeUninit<u8>],
) {
    for block in 0..p.c.div_ceil(BLOCK) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match p.k {
                3 => row::<3, 1>(p, block, lines, width, buffer, out),
                _ => row::<5, 2>(p, block, lines, width, buffer, out),
            }
        }
    }
}

/// A block of channels of a row. The kernel's rows of each column are interleaved, so that one instruction processes
/// four, and then summed column by column.
///
/// # Safety
/// As [`depthwise`]; K is the kernel's side and G = ⌈K / 4⌉.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn row<const K: usize, const G: usize>(
    p: &DepthWise,
    block: usize,
    lines: &[u8],
    width: usize,
    buffer: &mut [u8],
    out: &mut [MaybeUninit<u8>],
) {
    let first = block * BLOCK;
    let count = BLOCK.min(p.c - first);
    let mask = u64::MAX >> (BLOCK - count);
    let outputs = out.len() / p.c;
    let columns = (outputs.max(1) - 1) * p.stride + K;
    let buffer = buffer[..columns * G * ROWS * VECTOR].as_mut_ptr();
    for x in 0..columns {
        for g in 0..G {
            let line = |r: usize| {
                let y = ROWS * g + r;
                if y >= K {
                    return _mm512_setzero_si512();
                }
                let at = lines[(y * width + x) * p.c + first..].as_ptr();
                // SAFETY: `count` bytes of a pixel, the others are not read.
                unsafe { _mm512_maskz_loadu_epi8(mask, at.cast()) }
            };
            for (j, quarter) in interleaved([line(0), line(1), line(2), line(3)]).into_iter().enumerate() {
                // SAFETY: sliced above for `columns` · G · 4 vectors.
                unsafe {
                    _mm512_storeu_si512(buffer.add(((x * G + g) * ROWS + j) * VECTOR).cast(), quarter);
                }
            }
        }
    }
    let taps = p.blocks[block * K * G * ROWS * VECTOR..][..K * G * ROWS * VECTOR].as_ptr();
    let (scale, shift) = (&p.block_requantise.scale[first..], &p.block_requantise.shift[first..]);
    for ox in 0..outputs {
        let mut sums = [_mm512_setzero_si512(); 4];
        for tap in 0..K * G {
            for (j, sum) in sums.iter_mut().enumerate() {
                // SAFETY: K columns from `ox · stride` on were stored above; K · G · 4 vectors of taps were sliced.
                unsafe {
                    let at = (ox * p.stride * G + tap) * ROWS + j;
                    let x = _mm512_loadu_si512(buffer.add(at * VECTOR).cast());
                    let w = _mm512_loadu_si512(taps.add((tap * ROWS + j) * VECTOR).cast());
                    *sum = _mm512_dpbusd_epi32(*sum, x, w);
                }
            }
        }
        let mut quarters = sums;
        for (j, quarter) in quarters.iter_mut().enumerate() {
            *quarter = rounded(scaled(sums[j], &scale[16 * j..], &shift[16 * j..]));
        }
        // This also works within lanes, which restores the order of the channels.
        let low = _mm512_packs_epi32(quarters[0], quarters[1]);
        let high = _mm512_packs_epi32(quarters[2], quarters[3]);
        let bytes = _mm512_packus_epi16(low, high);
        let out = out[ox * p.c + first..][..count].as_mut_ptr();
        // SAFETY: `count` bytes, no others are written.
        unsafe { _mm512_mask_storeu_epi8(out.cast(), mask, bytes) };
    }
}

/// Interleaves four rows of 64 channels into four quarters of channels with four rows each; see
/// [`super::depthwise::place`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(ab, cd),
        _mm512_unpackhi_epi16(ab, cd),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ]
}
