//! Gradients of this crate's operations.

mod op;
pub(crate) mod tape;
