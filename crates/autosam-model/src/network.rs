//! Networks run by a [`Predictor`](crate::Predictor): normalised images in, logits out.

use crate::Result;
use crate::autosam::AutoSam;
use crate::generator::LightweightDecoder;
use crate::sam::Prompts;
use autosam_engine::segmenter::ObjectPrompt;
use autosam_frame::Error;
use autosam_frame::resize::InputSize;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// A segmentation network. Equal input shapes must lead to the same operations, so that an inference can be captured
/// and replayed.
pub trait Network: Send + Sync {
    /// Size of its input, and how frames are fitted into it.
    fn input_size(&self) -> InputSize;

    /// The device that its weights are on.
    fn device(&self) -> &Device;

    /// Logits `[N, 1, h, h]` of preprocessed images `[N, 3, S, S]`.
    fn logits(&self, x: &Tensor) -> Result<Tensor>;

    /// [`Self::logits`], and the logits `[1, 1, h, h]` of the object of `prompt` in the first image.
    ///
    /// # Errors
    /// The network's errors, and if it does not support prompts.
    fn logits_with_object(&self, _x: &Tensor, _prompt: &ObjectPrompt) -> Result<(Tensor, Tensor)> {
        Err(Error::invalid("this model takes no prompts"))
    }
}

impl<N: Network + ?Sized> Network for Box<N> {
    fn input_size(&self) -> InputSize {
        (**self).input_size()
    }
    fn device(&self) -> &Device {
        (**self).device()
    }
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        (**self).logits(x)
    }
    fn logits_with_object(&self, x: &Tensor, prompt: &ObjectPrompt) -> Result<(Tensor, Tensor)> {
        (**self).logits_with_object(x, prompt)
    }
}

impl<N: Network + ?Sized> Network for Arc<N> {
    fn input_size(&self) -> InputSize {
        (**self).input_size()
    }
    fn device(&self) -> &Device {
        (**self).device()
    }
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        (**self).logits(x)
    }
    fn logits_with_object(&self, x: &Tensor, prompt: &ObjectPrompt) -> Result<(Tensor, Tensor)> {
        (**self).logits_with_object(x, prompt)
    }
}

impl Network for AutoSam {
    fn input_size(&self) -> InputSize {
        self.input
    }
    fn device(&self) -> &Device {
        &self.device
    }
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x)
    }
    fn logits_with_object(&self, x: &Tensor, prompt: &ObjectPrompt) -> Result<(Tensor, Tensor)> {
        self.forward_with_object(x, prompt)
    }
}

/// Source of SAM's prompt, or replacement of SAM's decoder.
#[derive(Debug, Default)]
pub enum PromptSource {
    /// The generator's dense prompt, as in AutoSAM.
    #[default]
    Generated,
    /// These prompts, without the generator.
    Given(Prompts),
    /// This dense prompt `[1, C, g, g]`, without the generator.
    Dense(Tensor),
    /// The automatic mask as mask prompt.
    OwnMask,
    /// The generator's prompt, decoded by this decoder instead of by SAM.
    Lightweight(LightweightDecoder),
}

/// An [`AutoSam`] with a selectable prompt source. It takes one image at a time, unless the prompt is generated or
/// decoded.
#[derive(Debug)]
pub struct Prompted {
    pub model: AutoSam,
    pub source: PromptSource,
}

impl Network for Prompted {
    fn input_size(&self) -> InputSize {
        self.model.input
    }
    fn device(&self) -> &Device {
        &self.model.device
    }
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let model = &self.model;
        match &self.source {
            PromptSource::Generated => model.forward(x),
            PromptSource::Given(prompts) => model.decode_prompts(&model.embed(x)?, prompts),
            PromptSource::Dense(prompt) => model.decode(&model.embed(x)?, prompt),
            PromptSource::OwnMask => {
                let masks = Some(model.forward(x)?);
                model.decode_prompts(&model.embed(x)?, &Prompts { masks, ..Prompts::default() })
            }
            PromptSource::Lightweight(decoder) => Ok(decoder.forward(&model.dense_prompt(x, false)?)?),
        }
    }
}
