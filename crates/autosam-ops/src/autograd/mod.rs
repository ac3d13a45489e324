//! Gradients of our operations.

mod op;
pub(crate) mod tape;
