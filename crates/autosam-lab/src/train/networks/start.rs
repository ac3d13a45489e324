//! Initial weights of the networks.

use super::trainable::Trainable;
use crate::Result;
use crate::train::config::{GeneratorKind, SamKind, TrainConfig};
use crate::train::params::{self, Params};
use autosam_model::generator::GeneratorConfig;
use autosam_model::sam::{Sam, SamConfig};
use autosam_model::weights::{self, Checkpoint};
use autosam_model::{self as model, CONFIG_KEY, ModelConfig};
use candle_core::Tensor;
use std::collections::HashMap;

/// A network at its first step, with its configuration and weights.
pub struct Start {
    pub model: ModelConfig,
    pub params: Params,
    pub net: Box<dyn Trainable>,
}

/// A SAM's configuration and tensors (Meta's names) from a file of this project, Meta or MobileSAM, or from inside an
/// AutoSAM file.
pub fn sam_of(file: Checkpoint) -> Result<(SamConfig, HashMap<String, Tensor>)> {
    if file.metadata.contains_key(CONFIG_KEY) {
        let config = ModelConfig::of(&file)?;
        file.check(&config.parameter_shapes()?)?;
        let sam =
            file.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("sam.")?.to_owned(), t.clone())));
        return Ok((config.sam, sam.collect()));
    }
    let config = model::sam_config(&file)?;
    file.check(&weights::recorder::shapes_of(|vb| Sam::load(&config, vb))?)?;
    Ok((config, file.tensors))
}

/// Whether the configuration freezes the parameter; batch-norm statistics are still updated.
pub fn frozen(config: &TrainConfig, name: &str) -> bool {
    !params::is_buffer(name) && config.freeze.iter().any(|part| name.contains(part.as_str()))
}

/// An untrained SAM of `kind`.
pub fn fresh_sam(kind: SamKind) -> SamConfig {
    match kind {
        SamKind::Tiny => SamConfig::tiny(),
        SamKind::Lite0 => SamConfig::lite(0),
        SamKind::Lite1 => SamConfig::lite(1),
        SamKind::Lite2 => SamConfig::lite(2),
    }
}

/// The configuration of the generator that `config` requests for `sam`.
pub fn generator_config(config: &TrainConfig, sam: &SamConfig) -> GeneratorConfig {
    let size = config.generator_input;
    match config.generator {
        GeneratorKind::Auto | GeneratorKind::Tiny => GeneratorConfig::tiny(size, sam.embed_channels),
        GeneratorKind::HarDNet39ds => GeneratorConfig::hardnet39ds(size),
        GeneratorKind::HarDNet68 => GeneratorConfig::hardnet68(size),
        GeneratorKind::HarDNet85 => GeneratorConfig::hardnet85(size),
        GeneratorKind::EfficientNetLite0 => GeneratorConfig::efficientnet_lite(0, size, sam.embed_channels),
        GeneratorKind::EfficientNetLite1 => GeneratorConfig::efficientnet_lite(1, size, sam.embed_channels),
        GeneratorKind::EfficientNetLite2 => GeneratorConfig::efficientnet_lite(2, size, sam.embed_channels),
    }
}
