//! Stage generator: trains the prompt generator through a frozen SAM.

use super::start::{Start, frozen, generator_config, sam_of};
use super::trainable::{LossContext, ModelFile, Trainable};
use crate::Result;
use crate::data::loader::Batch;
use crate::train::cache::EmbeddingCache;
use crate::train::config::{GeneratorKind, TrainConfig};
use crate::train::losses::{Loss, overlap_loss, segmentation_loss};
use crate::train::params::Params;
use autosam_frame::map::ModelInput;
use autosam_frame::resize::InputSize;
use autosam_model::generator::GeneratorConfig;
use autosam_model::weights::{Checkpoint, init::initialise};
use autosam_model::{AutoSam, CONFIG_KEY, MaskMode, ModelConfig, Network};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use half::f16;
use std::collections::HashMap;

/// An AutoSAM whose generator is trained.
pub struct PromptGenerator(AutoSam);

impl PromptGenerator {
    pub fn load(model: &ModelConfig, vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self(AutoSam::load(model, vb)?))
    }

    /// The encoder's embeddings of `x`, the preprocessed `samples`, from the cache if available.
    fn embeddings(&self, context: &LossContext, samples: &[ModelInput], x: &Tensor) -> Result<Tensor> {
        let Some(cache) = context.cache else { return self.0.embed(x) };
        let mut cache = cache.borrow_mut();
        let keys: Vec<[u8; 32]> = samples.iter().map(EmbeddingCache::key).collect();
        let mut found: Vec<Option<Vec<f16>>> = keys.iter().map(|k| cache.get(k)).collect();
        let missing: Vec<u32> = (0..).zip(&found).filter(|(_, f)| f.is_none()).map(|(i, _)| i).collect();
        if !missing.is_empty() {
            let of = Tensor::new(missing.as_slice(), x.device())?;
            let fresh = self.0.embed(&x.index_select(&of, 0)?)?.to_dtype(DType::F16)?.flatten_from(1)?;
            for (i, values) in missing.iter().zip(fresh.to_vec2::<f16>()?) {
                cache.put(keys[*i as usize], &values)?;
                found[*i as usize] = Some(values);
            }
        }
        let all: Vec<f16> = found.into_iter().flatten().flatten().collect();
        let (c, g) = (context.model.sam.embed_channels, context.model.sam.grid());
        Ok(Tensor::from_vec(all, (samples.len(), c, g, g), context.device)?.to_dtype(DType::F32)?)
    }
}

impl Network for PromptGenerator {
    fn input_size(&self) -> InputSize {
        self.0.input_size()
    }

    fn device(&self) -> &Device {
        self.0.device()
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

impl Trainable for PromptGenerator {
    /// Loss of the mask that the frozen SAM decodes from the generator's prompt, of its IoU head's prediction, and of
    /// the generator's own logits.
    fn loss(&self, context: &LossContext, batch: &Batch) -> Result<Loss> {
        let x = context.input(&batch.samples)?;
        let generated = self.0.generate(&x)?;
        let embeddings = self.embeddings(context, &batch.samples, &x)?;
        let (logits, overlap) = self.0.decode_with_overlap(&embeddings, &generated.prompt)?;
        let config = context.config;
        let target = context.target(&batch.masks, logits.dim(2)?, config.target)?;
        let mut loss = segmentation_loss(&logits, &target, config.mask_mode)?;
        if config.overlap_weight > 0.0 && config.mask_mode == MaskMode::Sigmoid {
            loss.add(&overlap_loss(&overlap, &logits, &target)?, config.overlap_weight)?;
        }
        if let Some(own) = generated.own.filter(|_| config.own_weight > 0.0) {
            let target = context.target(&batch.masks, own.dim(2)?, config.target)?;
            loss.add(&segmentation_loss(&own, &target, config.mask_mode)?.total()?, config.own_weight)?;
        }
        context.taught(loss, &logits, batch)
    }

    fn backbone(&self) -> Result<&'static str> {
        Ok("generator.backbone.")
    }

    /// The file of an AutoSAM, which every command can open.
    fn file(&self, model: &ModelConfig, tensors: HashMap<String, Tensor>) -> serde_json::Result<ModelFile> {
        Ok(ModelFile { tensors, key: CONFIG_KEY, config: serde_json::to_string(model)? })
    }
}

/// A generator, fresh or from `file`, with the file's frozen SAM.
pub fn begin(config: &TrainConfig, file: Checkpoint, device: &Device) -> Result<Start> {
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
    let mut net = PromptGenerator::load(&model, params.var_builder())?;
    if device.is_cpu() {
        net.0.freeze_encoder()?;
    }
    Ok(Start { model, params, net: Box::new(net) })
}

/// The generator of an AutoSAM file and its tensors; `None` for other files.
fn generator_of(file: &Checkpoint) -> Result<Option<(GeneratorConfig, HashMap<String, Tensor>)>> {
    if !file.metadata.contains_key(CONFIG_KEY) {
        return Ok(None);
    }
    let tensors = file.tensors.iter().filter(|(name, _)| name.starts_with("generator."));
    let tensors = tensors.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    Ok(Some((ModelConfig::of(file)?.generator, tensors)))
}

/// The inverse tanh of SAM's own dense prompt without a mask, `[1, C]` → `[C]`. A fresh generator starts with that
/// prompt instead of one that SAM never saw.
fn inverse_tanh(no_mask: &Tensor) -> Result<Tensor> {
    let values = no_mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let values: Vec<f32> = values.iter().map(|v| v.clamp(-0.95, 0.95).atanh()).collect();
    Ok(Tensor::new(values, &Device::Cpu)?)
}
