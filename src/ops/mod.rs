//! The operations that the networks are built from, each differentiable and right where candle's own
//! is slow, wrong or has no backward (`docs/candle-notes.md` lists which and why).
//!
//! Images are `[N, C, H, W]`. On a CPU in f32 our kernels run; elsewhere candle's operations, composed.

mod batch_norm;
mod conv;
mod cpu;
mod depthwise;
mod norm;
mod pointwise;
mod spatial;
#[cfg(test)]
mod tests;

pub use batch_norm::BatchNorm;
pub use spatial::{max_pool2d, resize_bilinear};

use candle_core::{D, Result, Tensor};
use pointwise::Activation;

/// Stride, padding and groups of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    pub stride: usize,
    pub padding: usize,
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, groups: 1 }
    }
}

/// `x [N, C, H, W]` ∗ `w [O, C/groups, K, K]` + `bias [O]` → `[N, O, H', W']`.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, cfg: Conv2d) -> Result<Tensor> {
    let channels = x.dim(1)?;
    let y =
        if !cpu::handles(&[x, w]) || (cfg.groups != 1 && (cfg.groups != channels || w.dim(0)? != channels)) {
            x.conv2d(w, cfg.padding, cfg.stride, 1, cfg.groups)?
        } else if cfg.groups == 1 {
            let op = conv::Conv { stride: cfg.stride, padding: cfg.padding };
            x.contiguous()?.apply_op2(&w.contiguous()?, op)?
        } else {
            let op = depthwise::DepthWise { stride: cfg.stride, padding: cfg.padding };
            x.contiguous()?.apply_op2(&w.contiguous()?, op)?
        };
    match bias {
        Some(b) => y.broadcast_add(&b.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

/// Transposed convolution, `x [N, C, H, W]`, `w [C, O, K, K]`, `bias [O]` → `[N, O, (H-1)·stride + K, …]`.
pub fn conv_transpose2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize) -> Result<Tensor> {
    let (c, o, k, _) = w.dims4()?;
    let (n, _, height, width) = x.dims4()?;
    let y =
        if k == stride {
            // No two kernels overlap: one matrix product, its rows spread over k × k pixels.
            let w = w.reshape((c, o * k * k))?.t()?.contiguous()?;
            let y = w.broadcast_left(n)?.contiguous()?.matmul(&x.reshape((n, c, height * width))?)?;
            y.reshape(&[n, o, k, k, height, width])?
                .permute(vec![0, 1, 4, 2, 5, 3])?
                .contiguous()?
                .reshape((n, o, height * k, width * k))?
        } else {
            x.conv_transpose2d(w, 0, 0, stride, 1)?
        };
    match bias {
        Some(b) => y.broadcast_add(&b.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

/// `x [..., I]` · `w [O, I]`ᵀ + `bias [O]` → `[..., O]`.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (i, o) = (w.dim(1)?, w.dim(0)?);
    let mut shape = x.dims().to_vec();
    let rows = x.elem_count() / i;
    let y = x.reshape((rows, i))?.matmul(&w.t()?)?;
    let y = match bias {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    };
    *shape.last_mut().expect("linear needs a dimension") = o;
    y.reshape(shape)
}

/// Layer norm over the last dimension.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if cpu::handles(&[x, w, b]) {
        return x.contiguous()?.apply_op3(w, b, norm::LayerNorm { eps: eps as f32 });
    }
    let mean = x.mean_keepdim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(w)?.broadcast_add(b)
}

/// SAM's `LayerNorm2d`: layer norm over the channels of `[N, C, H, W]`.
pub fn layer_norm_2d(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if cpu::handles(&[x, w, b]) {
        return x.contiguous()?.apply_op3(w, b, norm::LayerNorm2d { eps: eps as f32 });
    }
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
    if cpu::handles(&[x]) {
        return x.contiguous()?.apply_op1(pointwise::Softmax);
    }
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// The exact GELU, `x · Φ(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if cpu::handles(&[x]) { x.contiguous()?.apply_op1(Activation::Gelu) } else { x.gelu_erf() }
}

/// `min(max(x, 0), 6)`.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    if cpu::handles(&[x]) { x.contiguous()?.apply_op1(Activation::Relu6) } else { x.clamp(0f32, 6f32) }
}

/// LeakyReLU with slope 0.01.
pub fn leaky_relu(x: &Tensor) -> Result<Tensor> {
    if cpu::handles(&[x]) {
        return x.contiguous()?.apply_op1(Activation::LeakyRelu);
    }
    (x.relu()? * 0.99)? + (x * 0.01)?
}
