//! Layers: operations and their weights, which inference finds prepared.

pub(crate) mod batch_norm;
pub(crate) mod byte_stem;
pub(crate) mod conv_norm;
pub(crate) mod inverted_residual;
pub(crate) mod prepared;
