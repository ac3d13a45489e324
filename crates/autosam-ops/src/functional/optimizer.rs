//! Update step of an optimiser: element by element, in place on a CPU.

use crate::kernels::cpu::common::{GRAIN, handles, simd, slice, sum_over_rows};
use crate::kernels::cpu::pointwise::plane_sum;
use crate::runtime::operands::Elements;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};
use rayon::prelude::*;

/// Σ x².
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    if !handles(&[x]) {
        return Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let x = x.contiguous()?;
    let x = Elements::of(&x)?;
    let sums = sum_over_rows(x.len(), 1, |range, sum| {
        let x = &x[range];
        sum[0] = simd(
            #[inline(always)]
            || {
                plane_sum(
                    x.len(),
                    #[inline(always)]
                    |i| x[i] * x[i],
                )
            },
        );
    });
    Ok(sums[0])
}

/// `average ← keep · average + share · x`.
pub fn blend(average: &mut Tensor, x: &Tensor, keep: f64, share: f64) -> Result<()> {
    if handles(&[&*average, x]) && average.is_contiguous() {
        return average
            .inplace_op2(&x.contiguous()?, &Blend { keep: keep as f32, share: share as f32, square: false });
    }
    *average = ((&*average * keep)? + (x * share)?)?;
    Ok(())
}

/// `average ← keep · average + share · x²`.
pub fn blend_square(average: &mut Tensor, x: &Tensor, keep: f64, share: f64) -> Result<()> {
    if handles(&[&*average, x]) && average.is_contiguous() {
        return average
            .inplace_op2(&x.contiguous()?, &Blend { keep: keep as f32, share: share as f32, square: true });
    }
    *average = ((&*average * keep)? + (x.sqr()? * share)?)?;
    Ok(())
}

struct Blend {
    keep: f32,
    share: f32,
    square: bool,
}

/// The elements of a contiguous f32 tensor, for writing.
fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(all), Some((from, to))) => Ok(&mut all[from..to]),
        _ => candle_core::bail!("a kernel needs a contiguous f32 tensor, not {layout:?}"),
    }
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        "autosam-blend"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let x = slice(s2, l2)?;
        let (keep, share) = (self.keep, self.share);
        slice_mut(s1, l1)?.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(average, x)| {
            simd(
                #[inline(always)]
                || {
                    if self.square {
                        for (a, x) in average.iter_mut().zip(x) {
                            *a = *a * keep + x * x * share;
                        }
                    } else {
                        for (a, x) in average.iter_mut().zip(x) {
                            *a = *a * keep + x * share;
                        }
                    }
                },
            );
        });
        Ok(())
    }
}

/// `theta ← keep · theta - rate · m / (sqrt(v · v_scale) + eps)`.
pub struct AdamStep {
    pub keep: f64,
    pub rate: f64,
    pub v_scale: f64,
    pub eps: f64,
}

impl AdamStep {
    /// Applies the step to the variable.
    pub fn apply(&self, theta: &candle_core::Var, m: &Tensor, v: &Tensor) -> Result<()> {
        if handles(&[theta.as_tensor(), m, v]) && theta.is_contiguous() {
            return theta.inplace_op3(m, v, self);
        }
        let update = (m / ((v * self.v_scale)?.sqrt()? + self.eps)?)?;
        theta.set(&((theta.as_detached_tensor() * self.keep)? - (update * self.rate)?)?)
    }
}

impl InplaceOp3 for AdamStep {
    fn name(&self) -> &'static str {
        "autosam-adam"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        let (m, v) = (slice(s2, l2)?, slice(s3, l3)?);
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        let (v_scale, eps) = (self.v_scale as f32, self.eps as f32);
        slice_mut(s1, l1)?.par_chunks_mut(GRAIN).zip(m.par_chunks(GRAIN)).zip(v.par_chunks(GRAIN)).for_each(
            |((theta, m), v)| {
                simd(
                    #[inline(always)]
                    || {
                        for ((t, m), v) in theta.iter_mut().zip(m).zip(v) {
                            *t = *t * keep - rate * m / ((v * v_scale).sqrt() + eps);
                        }
                    },
                );
            },
        );
        Ok(())
    }
}
