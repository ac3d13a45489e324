//! Element-wise sums, activations and scaling.

use crate::Activation;
use crate::autograd::tape;
use crate::kernels::cpu::common::{fusible, handles};
use crate::kernels::cpu::{add::Add, pointwise};
use crate::kernels::cuda;
use crate::runtime::autocast::{autocast_dtype, widened};
use crate::runtime::capture::apply;
use candle_core::{DType, Result, Tensor};

/// `a + b` in f32, whatever their types; `b` may be broadcast along the batch.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let one_image = a.dims() != b.dims() && a.dims().get(1..) == b.dims().get(1..) && b.dim(0)? == 1;
    if handles(&[a, b]) && a.dims() == b.dims() || fusible(&[a, b]) && one_image {
        return tape::apply(Add, &[&a.contiguous()?, &b.contiguous()?]);
    }
    if cuda::adds(a, b) {
        return cuda::add(a, b, None, DType::F32);
    }
    widened(a)?.broadcast_add(&widened(b)?)
}

/// [`add`] for results that only matrix products read: in the type of [`autocast`], if it is active.
pub fn add_for_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if let (Some(dtype), true) = (autocast_dtype(), cuda::adds(a, b)) {
        return cuda::add(a, b, None, dtype);
    }
    add(a, b)
}

/// `x · scale + shift`.
pub fn affine(x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
    if fusible(&[x]) {
        let op = pointwise::Affine { scale: scale as f32, shift: shift as f32 };
        return apply(op, &[&x.contiguous()?]);
    }
    x.affine(scale, shift)
}

/// Reduces logits `[N, ...]` by `slope` for each unit by which the image's score is below `least`. The score is the
/// first of the image's row of `scores [N, M]`.
pub fn gate(logits: &Tensor, scores: &Tensor, least: f32, slope: f32) -> Result<Tensor> {
    if fusible(&[logits, scores]) {
        return apply(pointwise::Gate { least, slope }, &[&logits.contiguous()?, &scores.contiguous()?]);
    }
    let slope = f64::from(slope);
    let less = widened(&scores.narrow(1, 0, 1)?)?.affine(-slope, slope * f64::from(least))?.relu()?;
    let mut shape = vec![1; logits.rank()];
    shape[0] = logits.dim(0)?;
    logits.broadcast_sub(&less.reshape(shape)?)
}

/// Applies an activation element by element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if handles(&[x]) {
        return tape::apply(activation, &[&x.contiguous()?]);
    }
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::Relu => x.relu(),
        Activation::Relu6 => x.clamp(0f32, 6f32),
        Activation::LeakyRelu => (x.relu()? * 0.99)? + (x * 0.01)?,
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => candle_nn::ops::sigmoid(x),
    }
}

/// The exact GELU, `x · Φ(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Gelu)
}
