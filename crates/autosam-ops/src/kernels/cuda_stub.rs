//! Stub for the GPU kernels in a build without CUDA: none applies. Signatures and meaning are those of `cuda`.

use crate::{Activation, Conv2d, Packing};
use candle_core::{DType, Result, Tensor};

fn no_cuda<T>() -> Result<T> {
    candle_core::bail!("this build has no CUDA; build with --features cuda")
}

pub(crate) fn fusible(_: &[&Tensor]) -> bool {
    false
}

pub(crate) fn adds(_: &Tensor, _: &Tensor) -> bool {
    false
}

pub(crate) fn norms(_: &Tensor, _: &Tensor, _: &Tensor) -> bool {
    false
}

pub(crate) fn serves(_: DType, _: usize) -> bool {
    false
}

pub(crate) fn finds_windows(_: &Tensor, _: DType, _: usize, _: (usize, usize)) -> bool {
    false
}

pub(crate) fn copies_windows(_: &Tensor, _: usize) -> bool {
    false
}

pub(crate) fn normalised(_: &Tensor, _: usize, _: [f32; 3], _: [f32; 3]) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn probability_bytes(_: &Tensor, _: usize) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn depthwise(
    _: &Tensor,
    _: &Tensor,
    _: Option<&Tensor>,
    _: Conv2d,
    _: Option<Activation>,
    _: bool,
) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn unfold(_: &Tensor, _: usize, _: Conv2d) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn max_pool(_: &Tensor, _: usize, _: usize, _: usize) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn epilogue(_: &Tensor, _: Option<&Tensor>, _: usize, _: Option<Activation>) -> Result<()> {
    no_cuda()
}

pub(crate) fn linear(
    _: &Tensor,
    _: &Tensor,
    _: Option<&Tensor>,
    _: Option<Activation>,
    _: DType,
) -> Result<Option<Tensor>> {
    no_cuda()
}

pub(crate) fn add_linear(
    _: &Tensor,
    _: &Tensor,
    _: &Tensor,
    _: Option<&Tensor>,
    _: DType,
) -> Result<Option<Tensor>> {
    no_cuda()
}

pub(crate) fn add(_: &Tensor, _: &Tensor, _: Option<&Tensor>, _: DType) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn cross_attention(_: &Tensor, _: &Tensor, _: &Tensor, _: usize, _: f64) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn self_attention(_: &Tensor, _: Packing, _: usize, _: f64, _: Option<&Tensor>) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn windowed_attention(
    _: &Tensor,
    _: Option<&Tensor>,
    _: usize,
    _: f64,
    _: ((usize, usize), (usize, usize)),
    _: (&Tensor, &Tensor),
) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn layer_norm(_: &Tensor, _: &Tensor, _: &Tensor, _: f64, _: DType) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn layer_norm_2d(_: &Tensor, _: &Tensor, _: &Tensor, _: f64) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn transpose(_: &Tensor) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn partition(_: &Tensor, _: usize) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn unpartition(_: &Tensor, _: usize, _: [usize; 4]) -> Result<Tensor> {
    no_cuda()
}
