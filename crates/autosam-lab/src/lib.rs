//! Training and evaluation of models: data sets and augmentation, training, evaluation, reports, synthetic endoscopy.

#![deny(unsafe_code)]

pub mod data;
pub mod eval;
pub mod report;
pub mod synth;
pub mod train;

pub use autosam_frame::{Error, Result, write_atomically, write_png};
