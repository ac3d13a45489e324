//! Depth-wise convolution of `[N, H, W, C]`. Every step processes a line of channels, so that any stride vectorises.

use super::common::simd;
use crate::Conv2d;
use crate::runtime::memory::assume_init_part;
use candle_core::Result;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Channels whose sums are held in registers.
const LANES: usize = 32;
/// The same if [`CELLS`] outputs are computed at once.
const LANES_OF_CELLS: usize = 16;
/// Outputs of a row that are computed at once. They share the loads of weights and of common inputs.
const CELLS: usize = 4;

/// Taps that lie within the input: the first, the one after the last, and the input position of the first.
type Taps = (usize, usize, usize);

/// Loads values of `line` from `at` on.
#[inline(always)]
fn lanes(line: &[f32], at: usize) -> [f32; LANES_OF_CELLS] {
    let mut lanes = [0.0; LANES_OF_CELLS];
    lanes.copy_from_slice(&line[at..at + LANES_OF_CELLS]);
    lanes
}

/// Sizes of one convolution with weights `[C, 1, K, K]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    k: usize,
    stride: usize,
    padding: usize,
    pub oh: usize,
    pub ow: usize,
}

impl Geometry {
    pub fn of(x: &[usize], w: &[usize], cfg: Conv2d) -> Result<Self> {
        let (&[n, h, width, c], &[o, 1, k, k2]) = (x, w) else {
            candle_core::bail!(
                "depth-wise conv2d: expected [N, H, W, C] and [C, 1, K, K], found {x:?} and {w:?}"
            )
        };
        let (Some(oh), Some(ow), true) = (cfg.outputs(h, k), cfg.outputs(width, k), o == c && k == k2) else {
            candle_core::bail!("depth-wise conv2d: {w:?} does not fit {x:?} with {cfg:?}");
        };
        let Conv2d { stride, padding, .. } = cfg;
        Ok(Self { n, h, w: width, c, k, stride, padding, oh, ow })
    }

    /// Transposes weights `[C, K·K]` to `[K·K, C]`.
    pub fn transposed(&self, w: &[f32]) -> Vec<f32> {
        let taps = self.k * self.k;
        (0..taps * self.c).map(|i| w[i % self.c * taps + i / self.c]).collect()
    }

    /// Taps of output row or column `o`, within `size` inputs.
    #[inline(always)]
    fn taps(&self, o: usize, size: usize) -> Taps {
        let start = o * self.stride;
        let from = self.padding.saturating_sub(start);
        let to = self.k.min((size + self.padding).saturating_sub(start));
        (from, to.max(from), (start + from).saturating_sub(self.padding))
    }

    /// The output that input position `i` contributes to through `tap`, if any.
    #[inline(always)]
    fn fed(&self, i: usize, tap: usize, outputs: usize) -> Option<usize> {
        let at = (i + self.padding).checked_sub(tap)?;
        (at.is_multiple_of(self.stride) && at / self.stride < outputs).then_some(at / self.stride)
    }

    /// Computes all of `out [N, OH, OW, C]` with weights of [`Self::transposed`]; `epilogue` receives each completed row
    /// `[OW, C]`.
    pub fn forward(
        &self,
        x: &[f32],
        weights: &[f32],
        epilogue: impl Fn(&mut [f32]) + Sync,
        out: &mut [MaybeUninit<f32>],
    ) {
        assert_eq!(out.len(), self.n * self.oh * self.ow * self.c);
        out.par_chunks_mut(self.ow * self.c).enumerate().with_min_len(4).for_each(|(line, out)| {
            let image = &x[line / self.oh * self.h * self.w * self.c..][..self.h * self.w * self.c];
            let rows = self.taps(line % self.oh, self.h);
            simd(
                #[inline(always)]
                || {
                    match (self.k, self.stride) {
                        (3, 1) => self.row::<3, 1, 6>(image, weights, rows, out),
                        (3, 2) => self.row::<3, 2, 9>(image, weights, rows, out),
                        (5, 1) => self.row::<5, 1, 8>(image, weights, rows, out),
                        (5, 2) => self.row::<5, 2, 11>(image, weights, rows, out),
                        _ => self.single_cells(image, weights, rows, 0, out),
                    }
                    // SAFETY: its cells cover the row.
                    epilogue(unsafe { assume_init_part(out) });
                },
            );
        });
    }

    /// A row of outputs of a `K × K` kernel with stride `S`; `N` inputs of a line feed [`CELLS`] outputs.
    #[inline(always)]
    fn row<const K: usize, const S: usize, const N: usize>(
        &self,
        image: &[f32],
        weights: &[f32],
        rows: Taps,
        out: &mut [MaybeUninit<f32>],
    ) {
        const { assert!(N == (CELLS - 1) * S + K) };
        let c = self.c;
        if !c.is_multiple_of(LANES_OF_CELLS) {
            return self.single_cells(image, weights, rows, 0, out);
        }
        // All taps of the outputs from `first` to `last` lie within the line.
        let first = self.padding.div_ceil(S).min(self.ow);
        let last =
            (self.w + self.padding).checked_sub(K).map_or(0, |room| room / S + 1).clamp(first, self.ow);
        let last = first + (last - first) / CELLS * CELLS;
        let (left, rest) = out.split_at_mut(first * c);
        let (inside, right) = rest.split_at_mut((last - first) * c);
        self.single_cells(image, weights, rows, 0, left);
        for (i, out) in inside.chunks_exact_mut(CELLS * c).enumerate() {
            let from = (first + i * CELLS) * S - self.padding;
            self.cells::<K, S, N>(image, weights, rows, from, out);
        }
        self.single_cells(image, weights, rows, last, right);
    }

    /// Computes [`CELLS`] outputs whose inputs begin at column `from` and lie within the line.
    #[inline(always)]
    fn cells<const K: usize, const S: usize, const N: usize>(
        &self,
        image: &[f32],
        weights: &[f32],
        rows: Taps,
        from: usize,
        out: &mut [MaybeUninit<f32>],
    ) {
        let c = self.c;
        for first in (0..c).step_by(LANES_OF_CELLS) {
            let mut sums = [[0f32; LANES_OF_CELLS]; CELLS];
            for ky in rows.0..rows.1 {
                let line = &image[((rows.2 + ky - rows.0) * self.w + from) * c + first..];
                let line = &line[..(N - 1) * c + LANES_OF_CELLS];
                let taps = &weights[ky * K * c + first..][..(K - 1) * c + LANES_OF_CELLS];
                for kx in 0..K {
                    let w: [f32; LANES_OF_CELLS] = lanes(taps, kx * c);
                    for (cell, sums) in sums.iter_mut().enumerate() {
                        let x: [f32; LANES_OF_CELLS] = lanes(line, (cell * S + kx) * c);
                        for ((sum, x), w) in sums.iter_mut().zip(&x).zip(&w) {
                            *sum = x.mul_add(*w, *sum);
                        }
                    }
                }
            }
            for (cell, sums) in sums.iter().enumerate() {
                for (o, sum) in out[cell * c + first..][..LANES_OF_CELLS].iter_mut().zip(sums) {
                    o.write(*sum);
                }
            }
        }
    }

    /// Computes outputs of a row from `first` on, one after another.
    #[inline(always)]
    fn single_cells(
        &self,
        image: &[f32],
        weights: &[f32],
        rows: Taps,
        first: usize,
        out: &mut [MaybeUninit<f32>],
    ) {
        for (i, out) in out.chunks_exact_mut(self.c).enumerate() {
            self.cell(image, weights, rows, self.taps(first + i, self.w), out);
        }
    }

    /// Computes all channels of one output.
    #[inline(always)]
    fn cell(&self, image: &[f32], weights: &[f32], rows: Taps, columns: Taps, out: &mut [MaybeUninit<f32>]) {
        let c = self.c;
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let first = block * LANES;
            let mut sums = [0f32; LANES];
            for ky in rows.0..rows.1 {
                for kx in columns.0..columns.1 {
                    let at = (rows.2 + ky - rows.0) * self.w + columns.2 + kx - columns.0;
                    let x = &image[at * c + first..];
                    let w = &weights[(ky * self.k + kx) * c + first..];
                    if out.len() == LANES {
                        let (x, w) = (&x[..LANES], &w[..LANES]);
                        for i in 0..LANES {
                            sums[i] = x[i].mul_add(w[i], sums[i]);
                        }
                    } else {
                        for ((s, x), w) in sums[..out.len()].iter_mut().zip(x).zip(w) {
                            *s = x.mul_add(*w, *s);
                        }
                    }
                }
            }
            for (o, sum) in out.iter_mut().zip(sums) {
                o.write(sum);
            }
        }
    }

    /// Gradient of the input.
    pub fn grad_input(&self, grad: &[f32], w: &[f32]) -> Vec<f32> {
        let weights = self.transposed(w);
        let c = self.c;
        let mut dx = vec![0f32; self.n * self.h * self.w * c];
        dx.par_chunks_mut(self.w * c).enumerate().with_min_len(4).for_each(|(line, dx)| {
            let (image, y) = (line / self.h, line % self.h);
            let grad = &grad[image * self.oh * self.ow * c..][..self.oh * self.ow * c];
            simd(
                #[inline(always)]
                || {
                    for ky in 0..self.k {
                        let Some(oy) = self.fed(y, ky, self.oh) else { continue };
                        for (x, dx) in dx.chunks_exact_mut(c).enumerate() {
                            for kx in 0..self.k {
                                let Some(ox) = self.fed(x, kx, self.ow) else { continue };
                                let g = &grad[(oy * self.ow + ox) * c..][..c];
                                let w = &weights[(ky * self.k + kx) * c..][..c];
                                for ((d, g), w) in dx.iter_mut().zip(g).zip(w) {
                                    *d += g * w;
                                }
                            }
                        }
                    }
                },
            );
        });
        dx
    }

    /// Gradient of the weights, `[C, 1, K, K]`.
    pub fn grad_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let (c, taps) = (self.c, self.k * self.k);
        let lines = self.n * self.oh;
        let sums = super::common::sum_over_rows(lines, taps * c, |range, sums| {
            let mut row = vec![0f32; taps * c];
            for line in range {
                let image = &x[line / self.oh * self.h * self.w * c..][..self.h * self.w * c];
                let (from, to, top) = self.taps(line % self.oh, self.h);
                row.fill(0.0);
                simd(
                    #[inline(always)]
                    || {
                        for ox in 0..self.ow {
                            let g = &grad[(line * self.ow + ox) * c..][..c];
                            let (left, right, first) = self.taps(ox, self.w);
                            for ky in from..to {
                                for kx in left..right {
                                    let at = (top + ky - from) * self.w + first + kx - left;
                                    let x = &image[at * c..][..c];
                                    let sum = &mut row[(ky * self.k + kx) * c..][..c];
                                    for ((s, g), x) in sum.iter_mut().zip(g).zip(x) {
                                        *s += g * x;
                                    }
                                }
                            }
                        }
                        for (s, v) in sums.iter_mut().zip(&row) {
                            *s += f64::from(*v);
                        }
                    },
                );
            }
        });
        (0..c * taps).map(|i| sums[i % taps * c + i / taps] as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::memory::filled;
    use proptest::prelude::*;

    /// Numbers between -1 and 1.
    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let number = |i: usize| (i as u64 + 1).wrapping_mul(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        (0..len).map(|i| (number(i) >> 40) as f32 / 8_388_608.0 - 1.0).collect()
    }

    fn forward(g: &Geometry, x: &[f32], weights: &[f32]) -> Vec<f32> {
        // SAFETY: all of the result is written.
        unsafe { filled(g.n * g.oh * g.ow * g.c, |out| g.forward(x, weights, |_| {}, out)) }
    }

    proptest! {
        /// Covers outputs computed several at once, and single ones at the ends of rows.
        #[test]
        fn a_result_is_the_sum_of_its_taps(
            c in prop_oneof![Just(16usize), Just(48), 1usize..70],
            (h, w) in (1usize..9, 1usize..30),
            k in prop_oneof![Just(3usize), Just(5), 1usize..7],
            stride in 1usize..4,
            (padding, trailing) in (0usize..4, 0usize..2),
        ) {
            let cfg = Conv2d { stride, padding, trailing, groups: c };
            prop_assume!(cfg.outputs(h, k).is_some() && cfg.outputs(w, k).is_some());
            let g = Geometry::of(&[2, h, w, c], &[c, 1, k, k], cfg).unwrap();
            let (x, weights) = (noise(2 * h * w * c, 3), noise(c * k * k, 5));
            for (at, found) in forward(&g, &x, &g.transposed(&weights)).into_iter().enumerate() {
                let (channel, ox, line) = (at % c, at / c % g.ow, at / c / g.ow);
                let (oy, image) = (line % g.oh, line / g.oh);
                let mut sum = 0.0;
                for (tap, weight) in weights[channel * k * k..][..k * k].iter().enumerate() {
                    let (y, x_at) = (oy * stride + tap / k, ox * stride + tap % k);
                    if (padding..padding + h).contains(&y) && (padding..padding + w).contains(&x_at) {
                        let value = x[((image * h + y - padding) * w + x_at - padding) * c + channel];
                        sum += f64::from(value) * f64::from(*weight);
                    }
                }
                prop_assert!((sum - f64::from(found)).abs() < 1e-5, "{at}: {sum} {found}");
            }
        }
    }
}
