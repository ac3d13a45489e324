//! Bias and activation of `[N, C, H, W]` where a gradient is asked for.

use super::cpu::{Shared, copied, gradient_of, simd, unwritten, written};
use super::forward::{Args, Elements, Forward, in_storage};
use super::pointwise::{Activation, plane_sum};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// `activation(x + bias)`, bias `[C]`.
pub(super) struct Biased {
    pub activation: Option<Activation>,
}

// SAFETY: every plane is written.
unsafe impl Forward for Biased {
    fn shape(&self, args: Args) -> Result<Shape> {
        let &[_, c, _, _] = args.dims(0) else {
            candle_core::bail!("bias: expected [N, C, H, W], found {:?}", args.dims(0))
        };
        if args.dims(1) != [c] {
            candle_core::bail!("a bias of {:?} numbers for {c} channels", args.dims(1));
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

impl CustomOp2 for Biased {
    fn name(&self) -> &'static str {
        "autosam-bias"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        in_storage(self, &[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, c, h, w) = x.dims4()?;
        let pixels = h * w;
        let grad = grad.contiguous()?;
        let (values, shifts, grads) = (Elements::of(x)?, Elements::of(bias)?, Elements::of(&grad)?);
        let mut dx = unwritten(values.len());
        let shared = Shared::unwritten(&mut dx);
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
                            Activation::times_slope_of_affine(
                                self.activation,
                                x,
                                g,
                                1.0,
                                shifts[channel],
                                dx,
                            );
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
        let dx = gradient_of(x, || Ok(unsafe { written(dx) }))?;
        let db = gradient_of(bias, || Ok(sums))?;
        Ok((dx, db))
    }
}
