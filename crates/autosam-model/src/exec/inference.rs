//! One inference, independent of its executor.

use crate::Result;
use crate::network::Network;
use crate::options::{Flips, MaskMode};
use crate::pixels::{mean_probabilities, preprocess_mirrored, probabilities};
use autosam_engine::segmenter::ObjectPrompt;
use autosam_frame::map::{Mirror, ModelInput, ProbMap};
use autosam_ops as ops;
use candle_core::{DType, Tensor};
use std::slice;

/// A network, and how its logits become probability maps.
#[derive(Clone, Copy)]
pub(crate) struct Inference<'a> {
    pub network: &'a dyn Network,
    pub mode: MaskMode,
    pub flips: Flips,
    /// The type of matrix products ([`ops::autocast`]).
    pub products: Option<DType>,
}

impl Inference<'_> {
    /// Width and height of the network's input.
    pub fn size(&self) -> usize {
        self.network.input_size().side
    }

    /// The flips whose probabilities are averaged.
    pub fn mirrors(&self) -> &'static [Mirror] {
        self.flips.mirrors()
    }

    /// [`Network::logits`] with the chosen type of products.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        ops::autocast(self.products, || self.network.logits(x))
    }

    /// Probability maps of `samples`, computed together.
    pub fn maps(&self, samples: &[ModelInput]) -> Result<Vec<ProbMap>> {
        let (size, mirrors) = (self.size(), self.mirrors());
        let x = preprocess_mirrored(samples, mirrors, size, self.network.device())?;
        mean_probabilities(&self.logits(&x)?, samples, size, self.mode, mirrors)
    }

    /// The probability maps of `sample` and, from the same embedding, of the object of `prompt`.
    pub fn maps_with_object(&self, sample: &ModelInput, prompt: &ObjectPrompt) -> Result<(ProbMap, ProbMap)> {
        let (samples, size, mirrors) = (slice::from_ref(sample), self.size(), self.mirrors());
        let x = preprocess_mirrored(samples, mirrors, size, self.network.device())?;
        let (logits, object) = ops::autocast(self.products, || self.network.logits_with_object(&x, prompt))?;
        let mut maps = mean_probabilities(&logits, samples, size, self.mode, mirrors)?;
        let mut object = probabilities(&object, samples, size, MaskMode::Sigmoid)?;
        Ok((maps.pop().unwrap_or_default(), object.pop().unwrap_or_default()))
    }
}
