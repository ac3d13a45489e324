//! Traits of CPU kernels. They are independent of the location of the operands ([`super::operands`]) and of the result,
//! which is a new tensor or fixed memory ([`super::capture`]).

use super::memory::{assume_init, uninit};
use super::operands::Args;
use candle_core::{CpuStorage, Device, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// An operation on contiguous f32 tensors.
///
/// # Safety
/// [`Self::compute`] must write every element of its result or fail.
pub(crate) unsafe trait Kernel: Send + Sync {
    /// Shape of the result.
    fn shape(&self, args: Args) -> Result<Shape>;

    /// Computes the result into `out`, which has the size of [`Self::shape`]. Allocates no memory after the first run
    /// with arguments of these shapes.
    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()>;
}

/// Gradients of up to three operands; `None` for one that has none.
pub(crate) type Gradients = [Option<Tensor>; 3];

/// An operation whose operands have gradients.
pub(crate) trait Differentiable: Send + Sync {
    /// Name in candle's error messages.
    fn name(&self) -> &'static str;

    /// Gradients of `args` from `grad`, the contiguous gradient of `result`.
    fn backward(&self, args: &[&Tensor], result: &Tensor, grad: &Tensor) -> Result<Gradients>;
}

/// The result of `op` as a tensor, without a gradient.
pub(crate) fn eager(op: &impl Kernel, args: &[&Tensor]) -> Result<Tensor> {
    let (values, shape) = fresh(op, Args::Tensors(args))?;
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The result of `op` in the form that candle's custom operations return.
pub(crate) fn in_storage(op: &impl Kernel, args: Args) -> Result<(CpuStorage, Shape)> {
    let (values, shape) = fresh(op, args)?;
    Ok((CpuStorage::F32(values), shape))
}

fn fresh(op: &impl Kernel, args: Args) -> Result<(Vec<f32>, Shape)> {
    let shape = op.shape(args)?;
    let mut out = uninit(shape.elem_count());
    op.compute(args, &mut out)?;
    // SAFETY: guaranteed by `Kernel`.
    Ok((unsafe { assume_init(out) }, shape))
}
