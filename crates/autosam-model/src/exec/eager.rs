//! Eager executor: launches one operation after another.

use super::Inference;
use crate::Result;
use autosam_frame::map::{ModelInput, ProbMap};
use std::slice;

/// Writes the probability map of `sample` to `out`.
pub fn run(inference: &Inference, sample: &ModelInput, out: &mut ProbMap) -> Result<()> {
    if let Some(map) = inference.maps(slice::from_ref(sample))?.pop() {
        *out = map;
    }
    Ok(())
}
