//! Bias and activation of `[N, C, H, W]`, for use with gradients.

use super::common::{gradient_of, simd};
use super::pointwise::plane_sum;
use crate::Activation;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::{Shared, assume_init, copied, uninit};
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// `activation(x + bias)`, bias `[C]`.
pub(crate) struct Biased {
    pub activation: Option<Activation>,
}

// SAFETY: every plane is written.
unsafe impl Kernel for Biased {
    fn shape(&self, args: Args) -> Result<Shape> {
        let &[_, c, _, _] = args.dims(0) else {
            candle_core::bail!("bias: expected [N, C, H, W], found {:?}", args.dims(0))
        };
        if args.dims(1) != [c] {
            candle_core::bail!("a bias of shape {:?} for {c} channels", args.dims(1));
        }
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (x, bias) = (args.get(0)?, args.get(1)?);
        let (x, bias): (&[f32], &[f32]) = (&x, &bias);
        let pixels = args.dims(0)[2..].iter().product::<usize>().max(1);
        let planes = out.par_chunks_mut(pixels).zip(x.par_chunks(pixels)).enumerate();
        planes.with_min_len(4).for_each(|(i, (out, x))| {
            let out = copied(x, out);
            simd(
                #[inline(always)]
                || Activation::apply_shifted(self.activation, out, bias[i % bias.len()]),
            );
        });
        Ok(())
    }
}

impl Differentiable for Biased {
    fn name(&self) -> &'static str {
        "autosam-bias"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, bias) = (args[0], args[1]);
        let (n, c, h, w) = x.dims4()?;
        let pixels = h * w;
        let (values, shifts, grads) = (Elements::of(x)?, Elements::of(bias)?, Elements::of(grad)?);
        let mut dx = uninit(values.len());
        let shared = Shared::uninit(&mut dx);
        let sums: Vec<f32> = (0..c)
            .into_par_iter()
            .map(|channel| {
                let mut total = 0f64;
                for image in 0..n {
                    let at = (image * c + channel) * pixels;
                    let (x, g) = (&values[at..][..pixels], &grads[at..][..pixels]);
                    // SAFETY: every plane belongs to one task.
                    let dx = unsafe { std::slice::from_raw_parts_mut(shared.at(at), pixels) };
                    simd(
                        #[inline(always)]
                        || {
                            Activation::mul_grad_of_affine(self.activation, x, g, 1.0, shifts[channel], dx);
                            total += plane_sum(
                                pixels,
                                #[inline(always)]
                                |i| dx[i],
                            );
                        },
                    );
                }
                total as f32
            })
            .collect();
        // SAFETY: every plane was written.
        let dx = gradient_of(x, || Ok(unsafe { assume_init(dx) }))?;
        let db = gradient_of(bias, || Ok(sums))?;
        Ok([dx, db, None])
    }
}
