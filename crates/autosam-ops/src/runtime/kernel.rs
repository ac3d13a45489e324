//! What a kernel of a CPU computes, apart from where its operands lie ([`super::operands`]) and where the result goes: a tensor of its
//! own, or memory that stays ([`super::capture`]).

use super::memory::{assume_init, uninit};
use super::operands::Args;
use candle_core::{CpuStorage, Device, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// An operation on contiguous f32 tensors.
///
/// # Safety
/// [`Self::compute`] writes every element of its result, or fails.
pub(crate) unsafe trait Kernel: Send + Sync {
    /// Of the result.
    fn shape(&self, args: Args) -> Result<Shape>;

    /// Into `out`, as long as [`Self::shape`] says. Takes no memory, once it has run with arguments of these shapes.
    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()>;
}

/// Gradients of up to three operands; `None` for one that has none.
pub(crate) type Gradients = [Option<Tensor>; 3];

/// An operation whose operands have gradients.
pub(crate) trait Differentiable: Send + Sync {
    /// What candle calls it in its errors.
    fn name(&self) -> &'static str;

    /// Gradients of `args` from `grad`, that of the `result`, which is contiguous.
    fn backward(&self, args: &[&Tensor], result: &Tensor, grad: &Tensor) -> Result<Gradients>;
}

/// The result of `op` as a tensor, without a gradient.
pub(crate) fn eager(op: &impl Kernel, args: &[&Tensor]) -> Result<Tensor> {
    let (values, shape) = fresh(op, Args::Tensors(args))?;
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The result of `op` as candle's operations give theirs.
pub(crate) fn in_storage(op: &impl Kernel, args: Args) -> Result<(CpuStorage, Shape)> {
    let (values, shape) = fresh(op, args)?;
    Ok((CpuStorage::F32(values), shape))
}

fn fresh(op: &impl Kernel, args: Args) -> Result<(Vec<f32>, Shape)> {
    let shape = op.shape(args)?;
    let mut out = uninit(shape.elem_count());
    op.compute(args, &mut out)?;
    // SAFETY: what `Kernel` promises.
    Ok((unsafe { assume_init(out) }, shape))
}
