//! Computation: CPU loops and GPU kernels. In a build without CUDA a stub replaces the GPU kernels, so that callers
//! need no conditional compilation.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_stub.rs"]
pub(crate) mod cuda;
