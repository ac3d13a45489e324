//! What a model is: the configuration that its weight file carries.

use super::AutoSam;
use crate::generator::GeneratorConfig;
use crate::sam::SamConfig;
use crate::weights::{self, Checkpoint};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The metadata key of our weight files that holds a [`ModelConfig`] as JSON.
pub const CONFIG_KEY: &str = "autosam";

/// The metadata key of a small SAM's file (`train --stage sam`) that holds its [`SamConfig`] as JSON.
pub const SAM_CONFIG_KEY: &str = "autosam.sam";

/// An affine map of a model's logits that makes probabilities of them ([`crate::eval::calibrate`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub scale: f32,
    pub bias: f32,
}

impl Default for Calibration {
    /// None: logits as they are.
    fn default() -> Self {
        Self { scale: 1.0, bias: 0.0 }
    }
}

impl Calibration {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What the parts of a model are; stored in its weight file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub sam: SamConfig,
    pub generator: GeneratorConfig,
    #[serde(default, skip_serializing_if = "Calibration::is_none")]
    pub calibration: Calibration,
}

impl ModelConfig {
    /// Names and shapes of every tensor, `sam.…` and `generator.…`.
    pub fn parameter_shapes(&self) -> Result<Vec<(String, Vec<usize>)>> {
        Ok(weights::recorder::shapes_of(|vb| AutoSam::load(self, vb))?)
    }

    /// Writes it into a weight file's metadata.
    pub fn note(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        note(checkpoint, CONFIG_KEY, self)
    }

    /// The configuration that a weight file carries.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let json = checkpoint.metadata.get(CONFIG_KEY).ok_or_else(|| {
            Error::weights(
                &checkpoint.path,
                "no AutoSAM configuration in its metadata; expected a file made by `autosam-video train`",
            )
        })?;
        serde_json::from_str(json).map_err(|e| {
            Error::weights(&checkpoint.path, format!("its AutoSAM configuration is unusable: {e}"))
        })
    }
}

/// Writes a configuration into a weight file's metadata.
fn note(checkpoint: &mut Checkpoint, key: &str, config: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string(config)
        .map_err(|e| Error::weights(&checkpoint.path, format!("its configuration cannot be written: {e}")))?;
    checkpoint.metadata.insert(key.to_owned(), json);
    Ok(())
}

/// The configuration of a file that holds a SAM alone: from its metadata where we made it, else from the shapes
/// of Meta's and MobileSAM's tensors.
pub fn sam_config(checkpoint: &Checkpoint) -> Result<SamConfig> {
    match checkpoint.metadata.get(SAM_CONFIG_KEY) {
        Some(json) => serde_json::from_str(json)
            .map_err(|e| Error::weights(&checkpoint.path, format!("its SAM configuration is unusable: {e}"))),
        None => SamConfig::infer(&checkpoint.shapes(), "")
            .map_err(|e| Error::weights(&checkpoint.path, e.to_string())),
    }
}

/// Makes a SAM alone (`train --stage sam`) an AutoSAM with what `model`, which is one, has beside its SAM. Any other file stays as it is.
pub fn complete(sam: &mut Checkpoint, model: &Checkpoint) {
    if sam.metadata.contains_key(CONFIG_KEY) || !model.metadata.contains_key(CONFIG_KEY) {
        return;
    }
    let rest = model.tensors.iter().filter(|(name, _)| !name.starts_with("sam."));
    let rest = rest.map(|(name, tensor)| (name.clone(), tensor.clone()));
    let own =
        std::mem::take(&mut sam.tensors).into_iter().map(|(name, tensor)| (format!("sam.{name}"), tensor));
    sam.tensors = own.chain(rest).collect();
    sam.metadata.clone_from(&model.metadata);
}

/// Brings a SAM or an AutoSAM to another side of its input, without training ([`SamConfig::at`]).
///
/// # Errors
/// A SAM or a size that cannot be.
pub fn resize(checkpoint: &mut Checkpoint, image_size: usize) -> Result<()> {
    let sam = if checkpoint.metadata.contains_key(CONFIG_KEY) {
        let config = ModelConfig::of(checkpoint)?;
        let config = ModelConfig { sam: config.sam.at(image_size)?, ..config };
        config.note(checkpoint)?;
        config.sam
    } else {
        let sam = sam_config(checkpoint)?.at(image_size)?;
        note(checkpoint, SAM_CONFIG_KEY, &sam)?;
        sam
    };
    sam.fit_biases(&mut checkpoint.tensors)
}
