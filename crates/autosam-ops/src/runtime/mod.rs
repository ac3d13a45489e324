//! Runtime of the kernels: memory, threads, devices, types of products, and captured graphs.

pub(crate) mod autocast;
pub(crate) mod capture;
pub mod device;
pub(crate) mod kernel;
pub(crate) mod memory;
pub(crate) mod operands;
pub(crate) mod pool;
