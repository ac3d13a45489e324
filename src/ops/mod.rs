//! The operations that the networks are built from, each differentiable and right where candle's own
//! is slow, wrong or has no backward (`docs/candle-notes.md` lists which and why).
//!
//! All take and return contiguous row-major tensors; images are `[N, C, H, W]`.

use candle_core::{D, Result, Tensor};

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
    let y = x.conv2d(w, cfg.padding, cfg.stride, 1, cfg.groups)?;
    match bias {
        Some(b) => y.broadcast_add(&b.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

/// Transposed convolution, `x [N, C, H, W]`, `w [C, O, K, K]`, `bias [O]` → `[N, O, (H-1)·stride + K, …]`.
pub fn conv_transpose2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize) -> Result<Tensor> {
    let y = x.conv_transpose2d(w, 0, 0, stride, 1)?;
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

/// Max pooling with padding (`-inf` outside), `[N, C, H, W]` → `[N, C, H', W']`.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let _ = (x, kernel, stride, padding);
    candle_core::bail!("max_pool2d: to be written")
}

/// Bilinear resize of `[N, C, H, W]` to `[N, C, height, width]`, as `torch.nn.functional.interpolate`
/// (no antialiasing), as two matrix products.
pub fn resize_bilinear(x: &Tensor, height: usize, width: usize, align_corners: bool) -> Result<Tensor> {
    let _ = (x, height, width, align_corners);
    candle_core::bail!("resize_bilinear: to be written")
}

/// Layer norm over the last dimension.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.mean_keepdim(D::Minus1)?;
    let xc = x.broadcast_sub(&mean)?;
    let var = xc.sqr()?.mean_keepdim(D::Minus1)?;
    xc.broadcast_div(&(var + eps)?.sqrt()?)?.broadcast_mul(w)?.broadcast_add(b)
}

/// SAM's `LayerNorm2d`: layer norm over the channels of `[N, C, H, W]`.
pub fn layer_norm_2d(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.mean_keepdim(1)?;
    let xc = x.broadcast_sub(&mean)?;
    let var = xc.sqr()?.mean_keepdim(1)?;
    xc.broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(&w.reshape((1, (), 1, 1))?)?
        .broadcast_add(&b.reshape((1, (), 1, 1))?)
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// The exact GELU, `x · Φ(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

mod batch_norm;
pub use batch_norm::BatchNorm;
