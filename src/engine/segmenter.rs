//! What the engine asks of a model: network-sized RGB in, probabilities out. No tensor shows here.

use crate::Result;

/// A frame at the network's size: packed RGB, `width × height × 3` bytes, the longest side equal to
/// [`Segmenter::input_size`]. Never padded: padding is the model's own business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

/// Polyp probability for every pixel of the [`Sample`] it was made from: 0 to 255 stand for 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbMap {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// A model as the engine sees it.
pub trait Segmenter: Send {
    /// Longest side of the samples it takes, in pixels.
    fn input_size(&self) -> usize;
    /// One mask for one sample; `out` is reused between calls.
    fn segment(&mut self, sample: &Sample, out: &mut ProbMap) -> Result<()>;
}
