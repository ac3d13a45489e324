//! Depth-wise convolution of `[N, H, W, C]`: every step is a line of channels, so that any stride vectorises.

use super::common::simd;
use crate::Conv2d;
use crate::runtime::memory::assume_init_part;
use candle_core::Result;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Channels whose sums are held in registers.
const LANES: usize = 32;

/// The sizes of one convolution, weights `[C, 1, K, K]`.
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

    /// Weights `[C, K·K]` → `[K·K, C]`.
    pub fn turned(&self, w: &[f32]) -> Vec<f32> {
        let taps = self.k * self.k;
        (0..taps * self.c).map(|i| w[i % self.c * taps + i / self.c]).collect()
    }

    /// Taps of output row or column `o` that lie inside `size`: the first one, the one after the last, and the first's place.
    #[inline(always)]
    fn taps(&self, o: usize, size: usize) -> (usize, usize, usize) {
        let start = o * self.stride;
        let from = self.padding.saturating_sub(start);
        let to = self.k.min((size + self.padding).saturating_sub(start));
        (from, to.max(from), (start + from).saturating_sub(self.padding))
    }

    /// Inputs `(output, tap)` that place `i` feeds: for each tap that meets an output.
    #[inline(always)]
    fn fed(&self, i: usize, tap: usize, outputs: usize) -> Option<usize> {
        let at = (i + self.padding).checked_sub(tap)?;
        (at.is_multiple_of(self.stride) && at / self.stride < outputs).then_some(at / self.stride)
    }

    /// With weights of [`Self::turned`] → all of `out [N, OH, OW, C]`; `epilogue` gets each row `[OW, C]` as it is done.
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
                    for (ox, out) in out.chunks_exact_mut(self.c).enumerate() {
                        let columns = self.taps(ox, self.w);
                        self.cell(image, weights, rows, columns, out);
                    }
                    // SAFETY: its cells are all there is.
                    epilogue(unsafe { assume_init_part(out) });
                },
            );
        });
    }

    /// All channels of one output.
    #[inline(always)]
    fn cell(
        &self,
        image: &[f32],
        weights: &[f32],
        rows: (usize, usize, usize),
        columns: (usize, usize, usize),
        out: &mut [MaybeUninit<f32>],
    ) {
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
                            sums[i] += x[i] * w[i];
                        }
                    } else {
                        for ((s, x), w) in sums[..out.len()].iter_mut().zip(x).zip(w) {
                            *s += x * w;
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
        let weights = self.turned(w);
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
