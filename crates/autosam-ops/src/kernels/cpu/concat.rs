//! Concatenation of channels, and selection of one token.

use super::common::gradient_of;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::{assume_init, copied, uninit};
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Concatenates the operands of each image.
pub(crate) struct Concat;

// SAFETY: the parts' channels cover the result.
unsafe impl Kernel for Concat {
    fn shape(&self, args: Args) -> Result<Shape> {
        let &[n, _, h, w] = args.dims(0) else {
            candle_core::bail!("concat: expected [N, C, H, W], found {:?}", args.dims(0))
        };
        let mut channels = 0;
        for i in 0..args.len() {
            match args.dims(i) {
                &[m, c, y, x] if (m, y, x) == (n, h, w) => channels += c,
                other => candle_core::bail!("concat: {other:?} beside {:?}", args.dims(0)),
            }
        }
        Ok(Shape::from((n, channels, h, w)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let per_image = out.len() / args.dims(0)[0].max(1);
        let mut at = 0;
        for i in 0..args.len() {
            let part = args.get(i)?;
            let size = args.dims(i)[1..].iter().product::<usize>();
            if size > 0 {
                let images = out.par_chunks_mut(per_image).zip(part.par_chunks(size));
                images.for_each(|(out, part)| _ = copied(part, &mut out[at..at + size]));
            }
            at += size;
        }
        Ok(())
    }
}

impl Differentiable for Concat {
    fn name(&self) -> &'static str {
        "autosam-concat"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let stride = grad.elem_count() / grad.dim(0)?.max(1);
        let all = Elements::of(grad)?;
        let mut at = 0;
        let mut out = Gradients::default();
        for (part, out) in args.iter().zip(&mut out) {
            let size = part.elem_count() / part.dim(0)?.max(1);
            *out = gradient_of(part, || {
                let mut own = uninit(part.elem_count());
                own.par_chunks_mut(size.max(1)).enumerate().for_each(|(image, own)| {
                    copied(&all[image * stride + at..][..size], own);
                });
                // SAFETY: every image was written.
                Ok(unsafe { assume_init(own) })
            })?;
            at += size;
        }
        Ok(out)
    }
}

pub(crate) struct Token(pub usize);

// SAFETY: every image has its token.
unsafe impl Kernel for Token {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(0) {
            &[n, t, c] if self.0 < t => Ok(Shape::from((n, c))),
            other => candle_core::bail!("token {} of {other:?}", self.0),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let &[_, t, c] = args.dims(0) else { return Ok(()) };
        let x = args.get(0)?;
        for (out, tokens) in out.chunks_exact_mut(c.max(1)).zip(x.chunks_exact((t * c).max(1))) {
            copied(&tokens[self.0 * c..][..c], out);
        }
        Ok(())
    }
}
