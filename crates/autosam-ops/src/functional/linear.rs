//! Matrix products and linear layers.

use super::conv::conv2d;
use super::elementwise::add;
use super::epilogue::with_epilogue;
use crate::autograd::tape;
use crate::kernels::cpu::common::{fusible, handles};
use crate::kernels::cpu::{conv, linear};
use crate::kernels::cuda;
use crate::runtime::autocast::{self, autocast_dtype, in_autocast, in_autocast_f32_sums};
use crate::runtime::capture::apply;
use crate::{Activation, Conv2d};
use candle_core::{DType, Result, Tensor};

/// `a [N, M, K]` · `b [N, K, P]` → `[N, M, P]`.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((n, m, k), p) = (a.dims3()?, b.dim(2)?);
    // On a CPU candle's matmul reads the list of processors at each call, which takes longer than a small product.
    if n == 1 && handles(&[a, b]) {
        let y = conv2d(&b.reshape((1, k, 1, p))?, &a.reshape((m, k, 1, 1))?, None, Conv2d::default())?;
        return y.reshape((1, m, p));
    }
    if fusible(&[a, b]) {
        return apply(conv::Matmul, &[&a.contiguous()?, &b.contiguous()?]);
    }
    a.matmul(b)
}

/// Converts weights for inference on a GPU inside [`autocast`] to its type, which every product would otherwise do
/// again.
pub fn prepared(w: &Tensor) -> Result<Tensor> {
    if w.device().is_cpu() { Ok(w.clone()) } else { autocast::to_autocast_dtype(w) }
}

/// `x [..., I]` · `w [O, I]`ᵀ + `bias [O]` → `[..., O]`.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_then(x, w, bias, None)
}

/// [`linear`] followed by an activation.
pub fn linear_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    if handles(&[x, w]) && bias.is_none_or(|b| handles(&[b])) {
        let train = x.track_op() || w.track_op() || bias.is_some_and(Tensor::track_op);
        let (x, w, op) = (x.contiguous()?, w.contiguous()?, linear::Linear::new(activation, train));
        return match bias {
            Some(bias) => tape::apply(op, &[&x, &w, &bias.contiguous()?]),
            None => tape::apply(op, &[&x, &w]),
        };
    }
    if let Some(dtype) = autocast_dtype().filter(|dtype| w.dtype() == *dtype)
        && cuda::fusible(&[x, w])
        && bias.is_none_or(|b| cuda::fusible(&[b]))
        && let Some(y) = cuda::linear(&autocast::to_autocast_dtype(x)?, w, bias, activation, dtype)?
    {
        return Ok(y);
    }
    let (i, o) = (w.dim(1)?, w.dim(0)?);
    let mut shape = x.dims().to_vec();
    let rows = x.reshape((x.elem_count() / i, i))?;
    let y = with_epilogue(in_autocast(&rows, &w.t()?, |x, w| x.matmul(w))?, bias, 1, activation)?;
    *shape.last_mut().expect("linear needs a dimension") = o;
    y.reshape(shape)
}

/// `residual + linear(x)` in f32, in the residual's shape.
pub fn add_linear(residual: &Tensor, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if cuda::fusible(&[residual, x, w]) && bias.is_none_or(|b| cuda::fusible(&[b])) {
        if let Some(dtype) = autocast_dtype().filter(|dtype| w.dtype() == *dtype)
            && let Some(y) = cuda::add_linear(residual, &autocast::to_autocast_dtype(x)?, w, bias, dtype)?
        {
            return Ok(y);
        }
        let y = linear(x, w, None)?;
        if cuda::adds(residual, &y) {
            return cuda::add(residual, &y, bias, DType::F32);
        }
    }
    if x.device().is_cpu() && autocast::active() {
        let i = w.dim(1)?;
        let sums = in_autocast_f32_sums(&x.reshape((x.elem_count() / i, i))?, &w.t()?, |x, w| x.matmul(w))?;
        return add(residual, &with_epilogue(sums, bias, 1, None)?.reshape(residual.shape())?);
    }
    add(residual, &linear(x, w, bias)?)
}
