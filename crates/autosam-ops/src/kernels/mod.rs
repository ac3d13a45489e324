//! What computes: loops of a CPU, and kernels of a GPU. In a build without CUDA a stub stands in for the latter, so that callers need
//! not ask which build this is.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_stub.rs"]
pub(crate) mod cuda;
