//! The operations that the networks are built from. They are differentiable, and replace candle's own operations that
//! are slow, wrong or have no backward (`docs/candle-notes.md` lists which and why).
//!
//! Images are `[N, C, H, W]`. This crate's kernels run on a CPU in f32 and for inference on a GPU. In all other cases
//! operations are composed of candle's.
//!
//! - `functional` has the operations: functions of tensors that choose a kernel or compose candle's operations.
//! - `layers` has the operations with weights, which can be prepared for inference.
//! - `kernels` has the computation, on a CPU (`cpu`) or a GPU (`cuda`, or its stub in a build without CUDA).
//! - `autograd` accumulates gradients outside candle's backward pass.
//! - `runtime` has threads, types of products, devices, and captured graphs for replay.
//!
//! Each uses only those below it.

mod autograd;
mod functional;
mod kernels;
mod layers;
mod params;
mod runtime;
#[cfg(test)]
pub(crate) mod tests;

pub use autograd::tape::{reshape, taped};
pub use functional::attention::{
    attention, finds_windows, relative_attention, self_attention, windowed_attention,
};
pub use functional::conv::{conv_transpose2d, conv_transpose2d_then, conv2d, conv2d_then};
pub use functional::elementwise::{activate, add, add_for_products, affine, gate, gelu};
pub use functional::image::{min_max, normalised, probability, probability_bytes};
pub use functional::layout::{channels_first, channels_last};
pub use functional::linear::{add_linear, linear, linear_then, matmul, prepared};
pub use functional::norm::{layer_norm, layer_norm_2d, layer_norm_for_products, softmax};
pub use functional::optimizer::{AdamStep, blend, blend_square, sum_of_squares};
pub use functional::spatial::{max_pool2d, resize_bilinear};
pub use functional::windows::{concat, partition, token, unpartition};
pub use layers::batch_norm::BatchNorm;
pub use layers::byte_stem::ByteStem;
pub use layers::conv_norm::ConvNorm;
pub use layers::inverted_residual::{Bytes, Convolutions, InvertedResidual, Scales, has_fast_bytes};
pub use layers::prepared::{Conv, Linear};
pub use params::{Activation, ByteScale, Conv2d, Packing};
pub use runtime::autocast::{autocast, autocast_dtype, autocast_f16};
pub use runtime::capture::{CapturedGraph, join};
pub use runtime::device;
pub use runtime::pool::{in_pool, in_pool_of, on_each_thread};
