//! Functions of tensors. Each chooses between this crate's CPU kernel, its GPU kernel, and a composition of candle's
//! operations.

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
