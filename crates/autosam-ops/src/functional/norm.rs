//! Layer norms and softmax.

use crate::autograd::tape;
use crate::kernels::cpu::common::handles;
use crate::kernels::cpu::{norm, pointwise};
use crate::kernels::cuda;
use crate::runtime::autocast::{autocast_dtype, widened};
use candle_core::{D, DType, Result, Tensor};

/// Layer norm over the last dimension.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if handles(&[x, w, b]) {
        return tape::apply(norm::LayerNorm { eps: eps as f32 }, &[&x.contiguous()?, w, b]);
    }
    if cuda::norms(x, w, b) {
        return cuda::layer_norm(x, w, b, eps, DType::F32);
    }
    let x = &widened(x)?;
    let mean = x.mean_keepdim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(w)?.broadcast_add(b)
}

/// [`layer_norm`] for results that only matrix products read: in the type of [`autocast`], if it is active.
pub fn layer_norm_for_products(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if let (Some(dtype), true) = (autocast_dtype(), cuda::norms(x, w, b)) {
        return cuda::layer_norm(x, w, b, eps, dtype);
    }
    layer_norm(x, w, b, eps)
}

/// SAM's `LayerNorm2d`: layer norm over the channels of `[N, C, H, W]`.
pub fn layer_norm_2d(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if handles(&[x, w, b]) {
        return tape::apply(norm::LayerNorm2d { eps: eps as f32 }, &[&x.contiguous()?, w, b]);
    }
    if cuda::fusible(&[x, w, b]) {
        return cuda::layer_norm_2d(x, w, b, eps);
    }
    let x = &widened(x)?;
    let mean = x.mean_keepdim(1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let per_channel = |t: &Tensor| t.reshape((1, (), 1, 1));
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(&per_channel(w)?)?
        .broadcast_add(&per_channel(b)?)
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if handles(&[x]) {
        return tape::apply(pointwise::Softmax, &[&x.contiguous()?]);
    }
    if x.device().is_cuda() && !x.track_op() {
        return candle_nn::ops::softmax_last_dim(&x.contiguous()?);
    }
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
