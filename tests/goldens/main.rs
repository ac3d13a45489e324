//! Parity with PyTorch: outputs to 1e-4, gradients to 1e-3 (relative norms), metrics to 1e-6.
//!
//! Goldens are read from `AUTOSAM_GOLDENS`, else `tests/data/goldens`, else `../shared/goldens`; names,
//! prefixes, shapes and sizes come from the files.

mod support;

mod backbone;
mod generator;
mod metrics;
mod sam;
