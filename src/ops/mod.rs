//! The operations that the networks are built from, each differentiable and right where candle's own
//! is slow, wrong or has no backward (`docs/candle-notes.md` lists which and why).
//!
//! Images are `[N, C, H, W]`. On a CPU in f32 our kernels run; elsewhere candle's operations, composed.

mod autocast;
mod batch_norm;
mod conv;
mod cpu;
mod depthwise;
mod fused;
mod gemm;
mod layout;
mod norm;
mod pointwise;
mod spatial;
#[cfg(test)]
mod tests;

pub use autocast::autocast;
pub use batch_norm::{BatchNorm, ConvNorm};
pub use layout::{channels_first, channels_last};
pub use pointwise::Activation;
pub use spatial::{max_pool2d, resize_bilinear};

use autocast::lowered;
use candle_core::{D, Result, Tensor};
use fused::Finish;

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

/// True where the kernels of inference apply: ours, and no gradient is asked for.
fn fusible(tensors: &[&Tensor]) -> bool {
    cpu::handles(tensors) && !tensors.iter().any(|t| t.track_op())
}

/// `x [N, C, H, W]` ∗ `w [O, C/groups, K, K]` + `bias [O]` → `[N, O, H', W']`.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, cfg: Conv2d) -> Result<Tensor> {
    conv2d_then(x, w, bias, cfg, None)
}

/// [`conv2d`] and an activation.
pub fn conv2d_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    cfg: Conv2d,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let Conv2d { stride, padding, groups } = cfg;
    let depth_wise = groups != 1 && groups == x.dim(1)? && groups == w.dim(0)?;
    let ours = cpu::handles(&[x, w]) && (groups == 1 || depth_wise);
    if ours && fusible(&[x, w]) && bias.is_none_or(|b| fusible(&[b])) {
        let (x, w, finish) = (x.contiguous()?, w.contiguous()?, Finish::new(bias, activation));
        return if depth_wise {
            x.apply_op2_no_bwd(&w, &depthwise::DepthWise { stride, padding, finish })
        } else {
            x.apply_op2_no_bwd(&w, &conv::Conv { stride, padding, finish })
        };
    }
    let finish = Finish::default();
    let y = if !ours {
        lowered(x, w, |x, w| x.conv2d(w, padding, stride, 1, groups))?
    } else if depth_wise {
        x.contiguous()?.apply_op2(&w.contiguous()?, depthwise::DepthWise { stride, padding, finish })?
    } else {
        x.contiguous()?.apply_op2(&w.contiguous()?, conv::Conv { stride, padding, finish })?
    };
    finished(y, bias.map(|b| b.reshape((1, (), 1, 1))).transpose()?.as_ref(), activation)
}

/// Bias and activation of what has a gradient.
fn finished(y: Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
    let y = match bias {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    };
    match activation {
        Some(f) => activate(&y, f),
        None => Ok(y),
    }
}

/// Transposed convolution, `x [N, C, H, W]`, `w [C, O, K, K]`, `bias [O]` → `[N, O, (H-1)·stride + K, …]`.
pub fn conv_transpose2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize) -> Result<Tensor> {
    conv_transpose2d_then(x, w, bias, stride, None)
}

/// [`conv_transpose2d`] and an activation.
pub fn conv_transpose2d_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let (c, o, k, _) = w.dims4()?;
    let (n, _, height, width) = x.dims4()?;
    if k == stride && fusible(&[x, w]) && bias.is_none_or(|b| fusible(&[b])) {
        let op = fused::Spread { finish: Finish::new(bias, activation) };
        return x.contiguous()?.apply_op2_no_bwd(&w.contiguous()?, &op);
    }
    let y =
        if k == stride {
            // No two kernels overlap: one matrix product, its rows spread over k × k pixels.
            let w = w.reshape((c, o * k * k))?.t()?.contiguous()?;
            let (w, x) = (w.broadcast_left(n)?.contiguous()?, x.reshape((n, c, height * width))?);
            let y = lowered(&w, &x, |w, x| w.matmul(x))?;
            y.reshape(&[n, o, k, k, height, width])?
                .permute(vec![0, 1, 4, 2, 5, 3])?
                .contiguous()?
                .reshape((n, o, height * k, width * k))?
        } else {
            lowered(x, w, |x, w| x.conv_transpose2d(w, 0, 0, stride, 1))?
        };
    finished(y, bias.map(|b| b.reshape((1, (), 1, 1))).transpose()?.as_ref(), activation)
}

/// `x [..., I]` · `w [O, I]`ᵀ + `bias [O]` → `[..., O]`.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_then(x, w, bias, None)
}

/// [`linear`] and an activation.
pub fn linear_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let (i, o) = (w.dim(1)?, w.dim(0)?);
    let mut shape = x.dims().to_vec();
    let rows = x.reshape((x.elem_count() / i, i))?;
    let y = if fusible(&[x, w]) && bias.is_none_or(|b| fusible(&[b])) {
        let op = fused::Linear { finish: Finish::new(bias, activation) };
        rows.contiguous()?.apply_op2_no_bwd(&w.contiguous()?, &op)?
    } else {
        finished(lowered(&rows, &w.t()?, |x, w| x.matmul(w))?, bias, activation)?
    };
    *shape.last_mut().expect("linear needs a dimension") = o;
    y.reshape(shape)
}

/// Attention of every head, `softmax(scale · q kᵀ + bias) v`: `q [B, T, heads, d]`, `k` and `v [B, S, heads, d]`,
/// `bias [heads, T, S]` → `[B, T, heads · d]`. Views of a larger tensor are taken as they are.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let dense = [q, k, v].iter().all(|t| t.stride().last() == Some(&1));
    if dense && fusible(&[q, k, v]) && bias.is_none_or(|b| fusible(&[b])) {
        let op = fused::Attention { scale: scale as f32, bias: bias.cloned() };
        return q.apply_op3_no_bwd(k, v, &op);
    }
    let heads = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let scores = (lowered(&heads(q)?, &heads(k)?.t()?, |q, k| q.matmul(k))? * scale)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(&bias.unsqueeze(0)?)?,
        None => scores,
    };
    let y = lowered(&softmax(&scores)?, &heads(v)?, |p, v| p.matmul(v))?;
    y.transpose(1, 2)?.contiguous()?.flatten_from(2)
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

/// `a + b`; `b` may be broadcast along the batch.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if fusible(&[a, b]) && a.elem_count() == b.elem_count() {
        return a.contiguous()?.apply_op2_no_bwd(&b.contiguous()?, &fused::Add);
    }
    a.broadcast_add(b)
}

/// An activation, element by element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if cpu::handles(&[x]) {
        return x.contiguous()?.apply_op1(activation);
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
