//! The first convolution of an int8 network: from planes of floats to interleaved bytes in one pass.

use super::common::simd;
use super::gemm::scratch;
use super::inverted_residual::{WORD, quantised};
use crate::Conv2d;
use crate::runtime::kernel::Kernel;
use crate::runtime::memory::uninit_bytes;
use crate::runtime::operands::Args;
use candle_core::{Result, Shape};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Channels of an image.
pub(crate) const COLOURS: usize = 3;
/// Output channels whose sums are held in registers for [`PIXELS`] pixels.
pub(crate) const LANES: usize = 32;
const PIXELS: usize = 4;

/// A convolution of three channels with a result in bytes.
pub(crate) struct Stem {
    pub cfg: Conv2d,
    /// Side of the kernel.
    pub k: usize,
    /// `[3, K, K, O]`, O a multiple of [`LANES`], scaled so that sums only need rounding to bytes.
    pub weights: Vec<f32>,
    /// `[O]`.
    pub bias: Vec<f32>,
    /// Padding value of each channel.
    pub padding: [f32; COLOURS],
}

/// The sizes of an input and a result.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    h: usize,
    w: usize,
    /// Width of a line with its padding.
    wide: usize,
    oh: usize,
    ow: usize,
}

impl Stem {
    fn sizes(&self, dims: &[usize]) -> Result<Sizes> {
        let (cfg, k) = (self.cfg, self.k);
        match dims {
            &[n, COLOURS, h, w] => {
                let (Some(oh), Some(ow)) = (cfg.outputs(h, k), cfg.outputs(w, k)) else {
                    candle_core::bail!("a first convolution of {k}x{k} does not fit {dims:?}")
                };
                Ok(Sizes { n, h, w, wide: w + 2 * cfg.padding + cfg.trailing, oh, ow })
            }
            other => candle_core::bail!("a first convolution: expected [N, 3, H, W], found {other:?}"),
        }
    }

    /// Copies the lines that output row `oy` reads, `[3, K, wide]`.
    fn fill(&self, image: &[f32], s: Sizes, oy: usize, lines: &mut [f32]) {
        for (i, line) in lines.chunks_exact_mut(s.wide).enumerate() {
            let (c, ky) = (i / self.k, i % self.k);
            let y = (oy * self.cfg.stride + ky).wrapping_sub(self.cfg.padding);
            if y >= s.h {
                line.fill(self.padding[c]);
                continue;
            }
            let (left, rest) = line.split_at_mut(self.cfg.padding);
            let (inside, right) = rest.split_at_mut(s.w);
            left.fill(self.padding[c]);
            right.fill(self.padding[c]);
            inside.copy_from_slice(&image[(c * s.h + y) * s.w..][..s.w]);
        }
    }

    /// Computes a row `out [OW, O]` from the lines of [`Self::fill`].
    fn row(&self, lines: &[f32], s: Sizes, out: &mut [MaybeUninit<u8>]) {
        let o = self.bias.len();
        simd(
            #[inline(always)]
            || {
                for (block, out) in out.chunks_mut(PIXELS * o).enumerate() {
                    let pixels = out.len() / o;
                    for first in (0..o).step_by(LANES) {
                        let sums = self.sums(lines, s, block * PIXELS, pixels, first);
                        for (out, sums) in out.chunks_exact_mut(o).zip(&sums) {
                            for (to, sum) in out[first..first + LANES].iter_mut().zip(sums) {
                                to.write(quantised(*sum) as u8);
                            }
                        }
                    }
                }
            },
        );
    }

    /// Sums of the output channels from `first` on for `pixels` pixels from `ox` on; entries beyond these are unused.
    /// Products and sums are rounded separately, so that every instruction set gives the same result.
    #[inline(always)]
    fn sums(
        &self,
        lines: &[f32],
        s: Sizes,
        ox: usize,
        pixels: usize,
        first: usize,
    ) -> [[f32; LANES]; PIXELS] {
        let (o, stride) = (self.bias.len(), self.cfg.stride);
        let mut sums = [[0f32; LANES]; PIXELS];
        sums.iter_mut().for_each(|sums| sums.copy_from_slice(&self.bias[first..first + LANES]));
        for (i, line) in lines.chunks_exact(s.wide).enumerate() {
            for kx in 0..self.k {
                let w = &self.weights[(i * self.k + kx) * o + first..][..LANES];
                let line = &line[ox * stride + kx..];
                for (p, sums) in sums.iter_mut().enumerate() {
                    let v = line[p.min(pixels - 1) * stride];
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum += v * w;
                    }
                }
            }
        }
        sums
    }
}

/// [`Stem`] as an operation.
pub(crate) struct ByteStem(pub Arc<Stem>);

// SAFETY: `row` writes a whole row, and every row is computed.
unsafe impl Kernel for ByteStem {
    fn shape(&self, args: Args) -> Result<Shape> {
        let s = self.0.sizes(args.dims(0))?;
        Ok(Shape::from((s.n, s.oh, s.ow, self.0.bias.len() / WORD)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let s = self.0.sizes(args.dims(0))?;
        let x = args.get(0)?;
        let x: &[f32] = &x;
        let few = (s.n * s.oh).div_ceil(4 * rayon::current_num_threads());
        let rows = uninit_bytes(out).par_chunks_mut(s.ow * self.0.bias.len());
        rows.enumerate().with_min_len(few).for_each(|(row, out)| {
            scratch(COLOURS * self.0.k * s.wide, |lines| {
                self.0.fill(&x[row / s.oh * COLOURS * s.h * s.w..], s, row % s.oh, lines);
                self.0.row(lines, s, out);
            });
        });
        Ok(())
    }
}
