//! Conversion of an image's bytes to the network's input, and of logits to probabilities.

use super::elementwise::activate;
use super::spatial::resize_bilinear;
use crate::Activation;
use crate::kernels::cpu::common::fusible;
use crate::kernels::cpu::pointwise;
use crate::kernels::cuda;
use crate::runtime::capture::apply;
use candle_core::{D, DType, Result, Tensor};

/// Converts pixels `[H, W, 3]` (bytes) to `[1, 3, size, size]`: channel c times `scale[c]` plus `shift[c]`, padded with
/// zeros below and to the right.
pub fn normalised(rgb: &Tensor, size: usize, scale: [f32; 3], shift: [f32; 3]) -> Result<Tensor> {
    if rgb.device().is_cuda() {
        return cuda::normalised(rgb, size, scale, shift);
    }
    let channel = |values: [f32; 3]| Tensor::new(&values, rgb.device())?.reshape((3, 1, 1));
    let (h, w, _) = rgb.dims3()?;
    let x = rgb.permute((2, 0, 1))?.to_dtype(DType::F32)?;
    let x = x.broadcast_mul(&channel(scale)?)?.broadcast_add(&channel(shift)?)?;
    x.pad_with_zeros(1, 0, size - h)?.pad_with_zeros(2, 0, size - w)?.unsqueeze(0)
}

/// `sigmoid` of logits `[N, C, h, w]`, f32, enlarged bilinearly to `[N, C, size, size]`, as bytes: 255 for 1.
pub fn probability_bytes(logits: &Tensor, size: usize) -> Result<Tensor> {
    if cuda::fusible(&[logits]) && logits.dtype() == DType::F32 {
        return cuda::probability_bytes(logits, size);
    }
    probability(logits, size)?.affine(255.0, 0.5)?.to_dtype(DType::U8)
}

/// `sigmoid` of logits `[N, C, h, w]` enlarged bilinearly to `[N, C, size, size]`.
pub fn probability(logits: &Tensor, size: usize) -> Result<Tensor> {
    activate(&resize_bilinear(logits, size, size, false)?, Activation::Sigmoid)
}

/// Stretches each image of `[N, ...]` to [0, 1]: `(x - min) / (max - min + 1e-6)`.
pub fn min_max(x: &Tensor) -> Result<Tensor> {
    if fusible(&[x]) {
        return apply(pointwise::MinMax, &[&x.contiguous()?]);
    }
    let flat = x.reshape((x.dim(0)?, ()))?;
    let min = flat.min_keepdim(D::Minus1)?;
    let max = flat.max_keepdim(D::Minus1)?;
    let range = ((max - &min)? + 1e-6)?;
    flat.broadcast_sub(&min)?.broadcast_div(&range)?.reshape(x.shape())
}
