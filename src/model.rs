//! AutoSAM: frame in, logits and mask out.

use crate::engine::segmenter::Segmenter;
use crate::{Error, Result};
use std::path::Path;

/// Where a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU where the build and the machine have one, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaskMode {
    /// `sigmoid(logit)`: an image without a polyp gets no mask. The one for live video.
    #[default]
    Sigmoid,
    /// Logits stretched to [0, 1] per image, as the paper: every image gets a foreground.
    MinMax,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct ModelOptions {
    pub device: DeviceChoice,
    pub mask_mode: MaskMode,
}

/// Opens the weights at `location`, or the shipped model where there is none, ready for the engine.
pub fn open(location: Option<&Path>, options: &ModelOptions) -> Result<Box<dyn Segmenter>> {
    let _ = (location, options);
    Err(Error::invalid("model: to be written"))
}
