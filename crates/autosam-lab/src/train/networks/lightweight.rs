//! Stage lightweight: trains a small decoder of a frozen generator's prompt, without SAM.

use super::start::Start;
use super::trainable::{LossContext, ModelFile, Trainable};
use crate::data::loader::Batch;
use crate::eval::predictor::LIGHTWEIGHT_KEY;
use crate::train::config::TrainConfig;
use crate::train::losses::{Loss, segmentation_loss};
use crate::train::params::Params;
use crate::{Error, Result};
use autosam_frame::resize::InputSize;
use autosam_model::generator::LightweightDecoder;
use autosam_model::weights::{self, Checkpoint, init::initialise};
use autosam_model::{AutoSam, ModelConfig, Network};
use autosam_ops as ops;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use std::collections::HashMap;

/// An AutoSAM whose prompt is decoded by a lightweight decoder, which is trained.
pub struct DecodedPrompt {
    model: AutoSam,
    decoder: LightweightDecoder,
}

impl DecodedPrompt {
    pub fn load(model: &ModelConfig, vb: VarBuilder) -> candle_core::Result<Self> {
        let decoder = LightweightDecoder::load(model.sam.embed_channels, vb.pp("lightweight"))?;
        Ok(Self { model: AutoSam::load(model, vb)?, decoder })
    }
}

impl Network for DecodedPrompt {
    fn input_size(&self) -> InputSize {
        self.model.input_size()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.decoder.forward(&self.model.dense_prompt(x, false)?)?)
    }
}

impl Trainable for DecodedPrompt {
    fn loss(&self, context: &LossContext, batch: &Batch) -> Result<Loss> {
        let x = context.input(&batch.samples)?;
        let logits = self.decoder.forward(&self.model.dense_prompt(&x, false)?.detach())?;
        let low = 4 * context.model.sam.grid();
        let logits = ops::resize_bilinear(&logits, low, low, false)?;
        let target = context.target(&batch.masks, low, context.config.target)?;
        let loss = segmentation_loss(&logits, &target, context.config.mask_mode)?;
        context.taught(loss, &logits, batch)
    }

    fn backbone(&self) -> Result<&'static str> {
        Err(Error::invalid("--init: stage lightweight trains no backbone"))
    }

    /// The file contains only the decoder.
    fn file(&self, model: &ModelConfig, tensors: HashMap<String, Tensor>) -> serde_json::Result<ModelFile> {
        let own = |(n, t): (String, Tensor)| Some((n.strip_prefix("lightweight.")?.to_owned(), t));
        let tensors = tensors.into_iter().filter_map(own).collect();
        Ok(ModelFile { tensors, key: LIGHTWEIGHT_KEY, config: model.sam.embed_channels.to_string() })
    }
}

/// A fresh lightweight decoder for the frozen generator of `file`.
pub fn begin(config: &TrainConfig, file: Checkpoint, device: &Device) -> Result<Start> {
    let model = ModelConfig::of(&file)?;
    file.check(&model.parameter_shapes()?)?;
    let channels = model.sam.embed_channels;
    let shapes = weights::recorder::shapes_of(|vb| LightweightDecoder::load(channels, vb.pp("lightweight")))?;
    let mut tensors = initialise(&shapes, config.seed)?;
    tensors.extend(file.tensors);
    let params = Params::new(tensors, |n| n.starts_with("lightweight."), device)?;
    let net = DecodedPrompt::load(&model, params.var_builder())?;
    Ok(Start { model, params, net: Box::new(net) })
}
