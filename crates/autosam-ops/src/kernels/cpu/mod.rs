//! CPU kernels for contiguous f32 tensors, forward and backward.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod byte_stem;
pub(crate) mod channel_norm;
pub(crate) mod common;
pub(crate) mod concat;
pub(crate) mod conv;
pub(crate) mod conv_transpose;
pub(crate) mod depthwise;
pub(crate) mod depthwise_last;
pub(crate) mod epilogue;
pub(crate) mod gemm;
pub(crate) mod int8;
pub(crate) mod inverted_residual;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod pointwise;
pub(crate) mod spatial;
pub(crate) mod transpose;
pub(crate) mod windows;
pub(crate) mod winograd;
