//! The configuration of a model, stored in its weight file.

use crate::generator::{Generator, GeneratorConfig};
use crate::sam::{Sam, SamConfig};
use crate::weights::{self, Checkpoint};
use crate::{Error, Result};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The metadata key under which this project's weight files hold a [`ModelConfig`] as JSON.
pub const CONFIG_KEY: &str = "autosam";

/// The metadata key of a small SAM's file (`train --stage sam`) that holds its [`SamConfig`] as JSON.
pub const SAM_CONFIG_KEY: &str = "autosam.sam";

/// An affine map of a model's logits that calibrates its probabilities (`eval --calibrate`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub scale: f32,
    pub bias: f32,
}

impl Default for Calibration {
    /// No calibration: logits are unchanged.
    fn default() -> Self {
        Self { scale: 1.0, bias: 0.0 }
    }
}

impl Calibration {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Suppression of masks for which SAM's IoU head predicts a low overlap. The head uses evidence from the whole frame,
/// while a threshold per pixel cannot distinguish a fold from a small polyp.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presence {
    /// Minimum overlap, 0 to 1, at which a mask is unchanged.
    pub least: f32,
    /// Reduction of the logits per unit below it.
    pub slope: f32,
}

/// Minimum and maximum of each activation of the int8 networks, in the order of computation
/// ([`crate::backbone::Observer`]). Measured by `models quantize`; valid only for the weights they were measured with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantisation {
    /// Ranges of the EfficientNet-Lite in SAM's image encoder, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Vec<[f32; 2]>>,
    /// Ranges of the EfficientNet-Lite in the generator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<Vec<[f32; 2]>>,
}

/// Configuration of a model's parts, stored in its weight file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub sam: SamConfig,
    pub generator: GeneratorConfig,
    #[serde(default, skip_serializing_if = "Calibration::is_none")]
    pub calibration: Calibration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<Presence>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantisation: Option<Quantisation>,
}

impl ModelConfig {
    /// A configuration of parts as trained, without calibration, presence or quantisation.
    pub fn new(sam: SamConfig, generator: GeneratorConfig) -> Self {
        Self { sam, generator, calibration: Calibration::default(), presence: None, quantisation: None }
    }

    /// Names and shapes of every tensor, `sam.…` and `generator.…`.
    pub fn parameter_shapes(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let parts = |vb: VarBuilder| {
            let sam = Sam::load(&self.sam, vb.pp("sam"))?;
            Ok((sam, Generator::load(&self.generator, vb.pp("generator"))?))
        };
        Ok(weights::recorder::shapes_of(parts)?)
    }

    /// Writes the configuration to a weight file's metadata.
    pub fn note(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        note(checkpoint, CONFIG_KEY, self)
    }

    /// The configuration stored in a weight file. PyTorch's files store none; a file whose tensors match the built-in
    /// model's by name and shape gets that model's configuration.
    ///
    /// # Errors
    /// If the file has a damaged configuration, or none and other tensors.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(json) = checkpoint.metadata.get(CONFIG_KEY) else {
            return Self::by_tensors(checkpoint).ok_or_else(|| {
                Error::weights(
                    &checkpoint.path,
                    "no AutoSAM configuration in its metadata, and its tensors are not those of the built-in model; use the \
                     .safetensors file that `autosam-video train` made",
                )
            });
        };
        serde_json::from_str(json).map_err(|e| {
            Error::weights(&checkpoint.path, format!("its AutoSAM configuration is unusable: {e}"))
        })
    }

    /// The built-in model's configuration, if `checkpoint` has exactly its tensors.
    fn by_tensors(checkpoint: &Checkpoint) -> Option<Self> {
        let shipped = weights::load_bytes(Path::new("the built-in model"), crate::SHIPPED).ok()?;
        let shapes: Vec<_> = shipped.shapes().into_iter().collect();
        checkpoint.check(&shapes).ok()?;
        tracing::warn!(
            "{}: no configuration in its metadata; its tensors match the built-in model, whose configuration is used without calibration",
            checkpoint.path.display()
        );
        let Self { sam, generator, .. } = Self::of(&shipped).ok()?;
        Some(Self::new(sam, generator))
    }
}

/// Writes a configuration to a weight file's metadata.
fn note(checkpoint: &mut Checkpoint, key: &str, config: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string(config)
        .map_err(|e| Error::weights(&checkpoint.path, format!("its configuration cannot be written: {e}")))?;
    checkpoint.metadata.insert(key.to_owned(), json);
    Ok(())
}

/// The configuration of a SAM-only file: from its metadata if this project wrote it, otherwise from the shapes
/// of Meta's and MobileSAM's tensors.
pub fn sam_config(checkpoint: &Checkpoint) -> Result<SamConfig> {
    match checkpoint.metadata.get(SAM_CONFIG_KEY) {
        Some(json) => serde_json::from_str(json)
            .map_err(|e| Error::weights(&checkpoint.path, format!("its SAM configuration is unusable: {e}"))),
        None => SamConfig::infer(&checkpoint.shapes(), "")
            .map_err(|e| Error::weights(&checkpoint.path, e.to_string())),
    }
}

/// Turns a SAM-only checkpoint (from `train --stage sam`) into an AutoSAM by adding the prompt generator and configuration of
/// `model`. Other checkpoints are left unchanged.
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

/// Converts a SAM or an AutoSAM to another input size without training ([`SamConfig::at`]).
///
/// # Errors
/// If the file is not a SAM or does not support the size.
pub fn resize(checkpoint: &mut Checkpoint, image_size: usize) -> Result<()> {
    let sam = if checkpoint.metadata.contains_key(CONFIG_KEY) {
        let config = ModelConfig::of(checkpoint)?;
        let config = ModelConfig { sam: config.sam.at(image_size)?, quantisation: None, ..config };
        config.note(checkpoint)?;
        config.sam
    } else {
        let sam = sam_config(checkpoint)?.at(image_size)?;
        note(checkpoint, SAM_CONFIG_KEY, &sam)?;
        sam
    };
    sam.fit_biases(&mut checkpoint.tensors)
}
