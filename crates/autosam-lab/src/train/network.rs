//! The network that a stage of training fits, and what its weights begin with.

use super::config::{GeneratorKind, SamKind, Stage, TrainConfig};
use super::params::{self, Params};
use crate::{Error, Result};
use autosam_frame::resize::InputSize;
use autosam_model::generator::{GeneratorConfig, LightweightDecoder};
use autosam_model::sam::{Prompts, Sam, SamConfig};
use autosam_model::weights::{self, Checkpoint, init::initialise};
use autosam_model::{self as model, AutoSam, CONFIG_KEY, ModelConfig, Network};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use std::collections::HashMap;

/// The network being fitted.
pub(super) enum Net {
    Sam { sam: Sam, dense_pe: Tensor },
    AutoSam(AutoSam),
    Lightweight(AutoSam, LightweightDecoder),
}

impl Net {
    /// The network of `stage` with the weights of `vb`.
    pub fn load(stage: Stage, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        Ok(match stage {
            Stage::Sam => {
                let sam = Sam::load(&model.sam, vb)?;
                let dense_pe = sam.prompt_encoder.dense_pe()?;
                Self::Sam { sam, dense_pe }
            }
            Stage::Generator => Self::AutoSam(AutoSam::load(model, vb)?),
            Stage::Lightweight => {
                let decoder = LightweightDecoder::load(model.sam.embed_channels, vb.pp("lightweight"))?;
                Self::Lightweight(AutoSam::load(model, vb)?, decoder)
            }
        })
    }
}

/// A network to be fitted: what it is, its weights, and itself.
pub(super) struct Start {
    pub model: ModelConfig,
    pub params: Params,
    pub net: Net,
}

/// The network of `config`'s stage at its first step; `file` as in [`super::Trainer::new`].
pub(super) fn begin(config: &TrainConfig, file: Option<Checkpoint>, device: &Device) -> Result<Start> {
    match (config.stage, file) {
        (Stage::Sam, file) => begin_sam(config, file, device),
        (Stage::Generator, Some(file)) => begin_generator(config, file, device),
        (Stage::Lightweight, Some(file)) => begin_lightweight(config, file, device),
        (Stage::Generator, None) => Err(Error::invalid("the generator needs a SAM")),
        (Stage::Lightweight, None) => Err(Error::invalid("the decoder needs an AutoSAM")),
    }
}

/// A fresh small SAM, or that of `file`.
fn begin_sam(config: &TrainConfig, file: Option<Checkpoint>, device: &Device) -> Result<Start> {
    let (mut sam_config, mut known) = match file {
        Some(file) => sam_of(file)?,
        None => (fresh_sam(config.sam), HashMap::new()),
    };
    if config.image_size > 0 {
        sam_config = sam_config.at(config.image_size)?;
        sam_config.fit_biases(&mut known)?;
    }
    sam_config.stretch |= config.stretch;
    let shapes = weights::recorder::shapes_of(|vb| Sam::load(&sam_config, vb))?;
    let mut tensors = initialise(&shapes, config.seed)?;
    tensors.extend(known);
    let fourier = |n: &str| n.ends_with("positional_encoding_gaussian_matrix");
    let params = Params::new(tensors, |n| !fourier(n) && !frozen(config, n), device)?;
    let generator = generator_config(config, &sam_config);
    let model = ModelConfig::new(sam_config, generator);
    let net = Net::load(Stage::Sam, &model, params.var_builder())?;
    Ok(Start { model, params, net })
}

/// A generator, fresh or that of `file`, before the file's frozen SAM.
fn begin_generator(config: &TrainConfig, file: Checkpoint, device: &Device) -> Result<Start> {
    let before = match config.generator {
        GeneratorKind::Auto => generator_of(&file)?,
        _ => None,
    };
    let (mut sam_config, known) = sam_of(file)?;
    sam_config.stretch |= config.stretch;
    let fresh = || generator_config(config, &sam_config);
    let (generator, before) =
        before.map_or_else(|| (fresh(), None), |(generator, tensors)| (generator, Some(tensors)));
    let model = ModelConfig::new(sam_config, generator);
    let mut tensors = initialise(&model.parameter_shapes()?, config.seed)?;
    tensors.retain(|n, _| n.starts_with("generator."));
    if let Some(before) = before {
        tensors.extend(before);
    } else if let Some(no_mask) = known.get("prompt_encoder.no_mask_embed.weight") {
        tensors.insert("generator.decoder.final.conv2.bias".into(), inverse_tanh(no_mask)?);
    }
    tensors.extend(known.into_iter().map(|(n, t)| (format!("sam.{n}"), t)));
    let trains = |n: &str| n.starts_with("generator.") && !frozen(config, n);
    let params = Params::new(tensors, trains, device)?;
    let mut net = AutoSam::load(&model, params.var_builder())?;
    if device.is_cpu() {
        net.freeze_encoder()?;
    }
    Ok(Start { model, params, net: Net::AutoSam(net) })
}

/// A fresh lightweight decoder behind the frozen generator of `file`.
fn begin_lightweight(config: &TrainConfig, file: Checkpoint, device: &Device) -> Result<Start> {
    let model = ModelConfig::of(&file)?;
    file.check(&model.parameter_shapes()?)?;
    let channels = model.sam.embed_channels;
    let shapes = weights::recorder::shapes_of(|vb| LightweightDecoder::load(channels, vb.pp("lightweight")))?;
    let mut tensors = initialise(&shapes, config.seed)?;
    tensors.extend(file.tensors);
    let params = Params::new(tensors, |n| n.starts_with("lightweight."), device)?;
    let net = Net::load(Stage::Lightweight, &model, params.var_builder())?;
    Ok(Start { model, params, net })
}

/// A SAM's configuration and tensors (Meta's names) from a file of ours, of Meta's or of MobileSAM's, or
/// from inside an AutoSAM file.
fn sam_of(file: Checkpoint) -> Result<(SamConfig, HashMap<String, Tensor>)> {
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

/// The generator of an AutoSAM file and its tensors; `None` of another file.
fn generator_of(file: &Checkpoint) -> Result<Option<(GeneratorConfig, HashMap<String, Tensor>)>> {
    if !file.metadata.contains_key(CONFIG_KEY) {
        return Ok(None);
    }
    let tensors = file.tensors.iter().filter(|(name, _)| name.starts_with("generator."));
    let tensors = tensors.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    Ok(Some((ModelConfig::of(file)?.generator, tensors)))
}

/// What the prompt's tanh makes SAM's own dense prompt of, `[1, C]` → `[C]`: a fresh generator begins with the answer
/// that SAM gives without a mask, not with a prompt it never saw.
fn inverse_tanh(no_mask: &Tensor) -> Result<Tensor> {
    let values = no_mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let values: Vec<f32> = values.iter().map(|v| v.clamp(-0.95, 0.95).atanh()).collect();
    Ok(Tensor::new(values, &Device::Cpu)?)
}

/// True of parameters that the configuration keeps as they are; statistics of batch norms go on.
fn frozen(config: &TrainConfig, name: &str) -> bool {
    !params::is_buffer(name) && config.freeze.iter().any(|part| name.contains(part.as_str()))
}

fn fresh_sam(kind: SamKind) -> SamConfig {
    match kind {
        SamKind::Tiny => SamConfig::tiny(),
        SamKind::Lite0 => SamConfig::lite(0),
        SamKind::Lite1 => SamConfig::lite(1),
        SamKind::Lite2 => SamConfig::lite(2),
    }
}

fn generator_config(config: &TrainConfig, sam: &SamConfig) -> GeneratorConfig {
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

/// The network of a stage, as validation runs it.
pub struct Averaged {
    pub(super) net: Net,
    pub(super) input: InputSize,
    pub(super) device: Device,
}

impl Network for Averaged {
    fn input_size(&self) -> InputSize {
        self.input
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.net {
            Net::AutoSam(model) => model.forward(x)?,
            Net::Lightweight(model, decoder) => decoder.forward(&model.dense_prompt(x, false)?)?,
            Net::Sam { sam, dense_pe } => {
                let (sparse, dense) = sam.prompt_encoder.forward(&Prompts::default(), x.dim(0)?)?;
                sam.mask_decoder.mask_logits(&sam.encode_image(x, false)?, dense_pe, &sparse, &dense)?
            }
        })
    }
}
