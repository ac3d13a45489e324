//! MobileNetV2 blocks in bytes, and the conversion back to floats. Bytes `[N, H, W, C]` are stored four channels per
//! float, `[N, H, W, C / 4]`, because the code that captures and replays networks handles floats only.

use super::common::simd;
use super::gemm::scratch;
use super::int8::{DepthWise, Product};
use crate::runtime::kernel::Kernel;
use crate::runtime::memory::{bytes, bytes_mut, to_write, uninit_bytes};
use crate::runtime::operands::Args;
use crate::{ByteScale, Conv2d};
use candle_core::{Result, Shape};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Bytes per float.
pub(super) const WORD: usize = 4;
/// Bytes of depth-wise results that a task computes before multiplying them; half of a first-level cache.
const BAND: usize = 16 * 1024;

/// An inverted residual: expand, depth-wise, project; adds the input if `residual`.
pub(crate) struct Block {
    pub expand: Option<Product>,
    pub depthwise: DepthWise,
    /// Of the depth-wise convolution.
    pub cfg: Conv2d,
    pub project: Product,
    pub residual: bool,
}

/// Sizes of a block's input and result.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    h: usize,
    w: usize,
    /// Channels of the input.
    c: usize,
    /// Height and width with padding.
    tall: usize,
    wide: usize,
    oh: usize,
    ow: usize,
}

impl Block {
    fn sizes(&self, dims: &[usize]) -> Result<Sizes> {
        let (cfg, k) = (self.cfg, self.depthwise.k);
        let &[n, h, w, words] = dims else {
            candle_core::bail!("a block of bytes: expected [N, H, W, C / 4], found {dims:?}")
        };
        let c = words * WORD;
        let expected = self.expand.as_ref().map_or(self.depthwise.c, |e| e.k);
        let (Some(oh), Some(ow), true) = (cfg.outputs(h, k), cfg.outputs(w, k), c == expected) else {
            candle_core::bail!("a block of bytes for {expected} channels does not fit {dims:?}");
        };
        let more = 2 * cfg.padding + cfg.trailing;
        Ok(Sizes { n, h, w, c, tall: h + more, wide: w + more, oh, ow })
    }

    /// Expands the input into lines `[N, tall, wide, hidden]`, padded with zeros.
    fn fill(&self, x: &[u8], s: Sizes, hidden: &mut [u8]) {
        let (c, before) = (self.depthwise.c, self.cfg.padding);
        let few = (s.n * s.tall).div_ceil(4 * rayon::current_num_threads());
        hidden.par_chunks_mut(s.wide * c).enumerate().with_min_len(few).for_each(|(line, to)| {
            let (image, y) = (line / s.tall, line % s.tall);
            if y < before || y >= before + s.h {
                return to.fill(0);
            }
            let (left, rest) = to.split_at_mut(before * c);
            let (inside, right) = rest.split_at_mut(s.w * c);
            left.fill(0);
            right.fill(0);
            let from = &x[(image * s.h + y - before) * s.w * s.c..][..s.w * s.c];
            match &self.expand {
                Some(expand) => expand.run(from, None, to_write(inside)),
                None => inside.copy_from_slice(from),
            }
        });
    }

    /// Computes all of `out [N, OH, OW, O]` from the lines of [`Self::fill`].
    fn convolve_and_project(&self, x: &[u8], hidden: &[u8], s: Sizes, out: &mut [MaybeUninit<u8>]) {
        let (c, o) = (self.depthwise.c, self.project.n);
        let share = (s.n * s.oh).div_ceil(2 * rayon::current_num_threads());
        let rows = share.min(BAND.div_ceil(s.ow * c)).max(1);
        out.par_chunks_mut(rows * s.ow * o).enumerate().for_each(|(band, out)| {
            let rows_here = out.len() / (s.ow * o);
            let (taken, buffer) = (rows_here * s.ow * c, self.depthwise.buffer(s.wide));
            // Both are in whole floats. The buffer comes first because it must be aligned to a cache line.
            let floats = (buffer + taken).div_ceil(WORD);
            scratch(floats, |memory| {
                let (buffer, rest) = bytes_mut(memory).split_at_mut(buffer);
                let convolved = &mut rest[..taken];
                for (i, to) in convolved.chunks_exact_mut(s.ow * c).enumerate() {
                    let row = band * rows + i;
                    let first = row / s.oh * s.tall + row % s.oh * self.depthwise.stride;
                    let lines = &hidden[first * s.wide * c..][..self.depthwise.k * s.wide * c];
                    self.depthwise.row(lines, s.wide, buffer, to_write(to));
                }
                let residual = self.residual.then(|| &x[band * rows * s.ow * o..][..out.len()]);
                self.project.run(convolved, residual, out);
            });
        });
    }
}

/// [`Block`] as an operation.
pub(crate) struct InvertedResidual(pub Arc<Block>);

// SAFETY: `convolve_and_project` writes all rows of the result.
unsafe impl Kernel for InvertedResidual {
    fn shape(&self, args: Args) -> Result<Shape> {
        let s = self.0.sizes(args.dims(0))?;
        if self.0.residual && (s.h, s.w, s.c) != (s.oh, s.ow, self.0.project.n) {
            candle_core::bail!("a residual block must not change the shape {:?}", args.dims(0));
        }
        Ok(Shape::from((s.n, s.oh, s.ow, self.0.project.n / WORD)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let s = self.0.sizes(args.dims(0))?;
        let x = args.get(0)?;
        let (x, out) = (bytes(&x), uninit_bytes(out));
        let len = s.n * s.tall * s.wide * self.0.depthwise.c;
        scratch(len.div_ceil(WORD), |memory| {
            let hidden = &mut bytes_mut(memory)[..len];
            self.0.fill(x, s, hidden);
            self.0.convolve_and_project(x, hidden, s, out);
        });
        Ok(())
    }
}

/// Rounds a number between 0 and 255 to even. Adding 2^23 or more leaves the integer in the low bits of the float.
#[inline(always)]
pub(super) fn quantised(value: f32) -> u32 {
    const WHOLE: f32 = 1.5 * 8_388_608.0;
    (value.clamp(0.0, 255.0) + WHOLE).to_bits() & 0xFF
}

/// Bytes `[N, H, W, C]` → floats `[N, H, W, C]`.
pub(crate) struct Dequantise(pub ByteScale);

// SAFETY: every byte becomes a float.
unsafe impl Kernel for Dequantise {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(0) {
            &[n, h, w, words] => Ok(Shape::from((n, h, w, words * WORD))),
            other => candle_core::bail!("dequantisation: expected [N, H, W, C / 4], found {other:?}"),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let ByteScale { step, zero } = self.0;
        simd(
            #[inline(always)]
            || {
                for (to, byte) in out.iter_mut().zip(bytes(&x)) {
                    to.write(step * (f32::from(*byte) - zero));
                }
            },
        );
        Ok(())
    }
}
