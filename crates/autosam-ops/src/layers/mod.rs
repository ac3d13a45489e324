//! Layers: operations with weights, which can be prepared for inference.

pub(crate) mod batch_norm;
pub(crate) mod byte_stem;
pub(crate) mod conv_norm;
pub(crate) mod inverted_residual;
pub(crate) mod prepared;
