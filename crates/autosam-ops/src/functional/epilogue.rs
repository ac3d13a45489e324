//! Epilogue of a matrix product: adds a bias and applies an activation to the fresh result.

use super::elementwise::activate;
use crate::Activation;
use crate::autograd::tape;
use crate::kernels::cpu::bias;
use crate::kernels::cpu::common::handles;
use crate::kernels::cuda;
use candle_core::{Result, Tensor};

/// Adds a bias per channel and applies an activation to the fresh `[N, C, H, W]` of a product.
pub(super) fn with_epilogue_in_planes(
    y: Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    match bias {
        Some(b) if handles(&[&y, b]) => {
            tape::apply(bias::Biased { activation }, &[&y.contiguous()?, &b.contiguous()?])
        }
        _ => with_epilogue(y, bias, 1, activation),
    }
}

/// Adds a bias to the channels along `dim` and applies an activation to the fresh result of a product.
pub(super) fn with_epilogue(
    y: Tensor,
    bias: Option<&Tensor>,
    dim: usize,
    activation: Option<Activation>,
) -> Result<Tensor> {
    if cuda::fusible(&[&y]) && bias.is_none_or(|b| cuda::fusible(&[b])) {
        cuda::epilogue(&y, bias, dim, activation)?;
        return Ok(y);
    }
    let y = match bias {
        Some(b) => {
            let mut shape = vec![1; y.rank()];
            shape[dim] = b.elem_count();
            y.broadcast_add(&b.to_dtype(y.dtype())?.reshape(shape)?)?
        }
        None => y,
    };
    match activation {
        Some(f) => activate(&y, f),
        None => Ok(y),
    }
}
