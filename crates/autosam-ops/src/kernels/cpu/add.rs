//! Element-wise sum.

use super::common::{GRAIN, simd};
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::operands::Args;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Sum of two tensors of the same shape. If the second has a batch of one, it is added to each image of the first.
pub(crate) struct Add;

// SAFETY: the second's elements are repeated until they cover all of the first's.
unsafe impl Kernel for Add {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (a, b) = (args.dims(0), args.dims(1));
        let per_image = |dims: &[usize]| dims.get(1..).map(<[usize]>::to_vec);
        if a != b && (b.first() != Some(&1) || per_image(a) != per_image(b)) {
            candle_core::bail!("add: {a:?} and {b:?}");
        }
        Ok(Shape::from(a))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (a, b) = (args.get(0)?, args.get(1)?);
        if b.is_empty() {
            return Ok(());
        }
        for (out, a) in out.chunks_exact_mut(b.len()).zip(a.chunks_exact(b.len())) {
            let parts = out.par_chunks_mut(GRAIN).zip(a.par_chunks(GRAIN)).zip(b.par_chunks(GRAIN));
            parts.with_min_len(2).for_each(|((out, a), b)| {
                simd(
                    #[inline(always)]
                    || {
                        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
                            o.write(a + b);
                        }
                    },
                )
            });
        }
        Ok(())
    }
}

impl Differentiable for Add {
    fn name(&self) -> &'static str {
        "autosam-add"
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        Ok([Some(grad.clone()), Some(grad.clone()), None])
    }
}
