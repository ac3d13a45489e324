//! The networks of the training stages.

mod generator;
mod lightweight;
mod sam;
mod start;
mod trainable;

pub use start::Start;
pub use trainable::{LossContext, Trainable};

use super::config::{Stage, TrainConfig};
use crate::{Error, Result};
use autosam_model::ModelConfig;
use autosam_model::weights::Checkpoint;
use candle_core::Device;
use candle_nn::VarBuilder;

/// The network of `config`'s stage at its first step; `file` as in [`super::Trainer::new`].
///
/// # Errors
/// If the stage needs weights of another kind.
pub fn begin(config: &TrainConfig, file: Option<Checkpoint>, device: &Device) -> Result<Start> {
    match (config.stage, file) {
        (Stage::Sam, file) => sam::begin(config, file, device),
        (Stage::Generator, Some(file)) => generator::begin(config, file, device),
        (Stage::Lightweight, Some(file)) => lightweight::begin(config, file, device),
        (Stage::Generator, None) => Err(Error::invalid("the generator needs a SAM")),
        (Stage::Lightweight, None) => Err(Error::invalid("the decoder needs an AutoSAM")),
    }
}

/// The network of `stage` with the weights of `vb`.
pub fn load(stage: Stage, model: &ModelConfig, vb: VarBuilder) -> candle_core::Result<Box<dyn Trainable>> {
    Ok(match stage {
        Stage::Sam => Box::new(sam::PromptedSam::load(&model.sam, vb)?),
        Stage::Generator => Box::new(generator::PromptGenerator::load(model, vb)?),
        Stage::Lightweight => Box::new(lightweight::DecodedPrompt::load(model, vb)?),
    })
}
