//! What kernels run in: memory, threads, devices, the types of products, and graphs that are captured and replayed.

pub(crate) mod autocast;
pub(crate) mod capture;
pub mod device;
pub(crate) mod kernel;
pub(crate) mod memory;
pub(crate) mod operands;
pub(crate) mod pool;
