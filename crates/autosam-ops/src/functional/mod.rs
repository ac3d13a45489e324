//! Functions of tensors. Each chooses: our kernel of the CPU, ours of the GPU, or candle's operations, composed.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod elementwise;
mod epilogue;
pub(crate) mod image;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod spatial;
pub(crate) mod windows;
