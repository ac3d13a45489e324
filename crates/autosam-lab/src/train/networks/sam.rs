//! Stage sam: trains a small promptable SAM on objects of every kind.

use super::start::{Start, fresh_sam, frozen, generator_config, sam_of};
use super::trainable::{LossContext, ModelFile, Trainable};
use crate::Result;
use crate::data::loader::Batch;
use crate::train::config::TrainConfig;
use crate::train::losses::{Loss, overlap_loss, segmentation_loss};
use crate::train::params::Params;
use crate::train::prompts::{self, PromptKind};
use autosam_frame::resize::InputSize;
use autosam_model::sam::{Prompts, Sam, SamConfig};
use autosam_model::weights::{self, Checkpoint, init::initialise};
use autosam_model::{MaskMode, ModelConfig, Network, SAM_CONFIG_KEY};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use rand::SeedableRng;
use std::collections::HashMap;

/// A SAM whose parameters are all trained.
pub struct PromptedSam {
    sam: Sam,
    dense_pe: Tensor,
    input: InputSize,
}

impl PromptedSam {
    pub fn load(config: &SamConfig, vb: VarBuilder) -> candle_core::Result<Self> {
        let sam = Sam::load(config, vb)?;
        let dense_pe = sam.prompt_encoder.dense_pe()?;
        Ok(Self { sam, dense_pe, input: config.input_size() })
    }
}

impl Network for PromptedSam {
    fn input_size(&self) -> InputSize {
        self.input
    }

    fn device(&self) -> &Device {
        self.dense_pe.device()
    }

    /// Logits without a prompt.
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let (sparse, dense) = self.sam.prompt_encoder.forward(&Prompts::default(), x.dim(0)?)?;
        let embeddings = self.sam.encode_image(x, false)?;
        Ok(self.sam.mask_decoder.mask_logits(&embeddings, &self.dense_pe, &sparse, &dense)?)
    }
}

impl Trainable for PromptedSam {
    /// Loss of SAM's mask for simulated prompts, and of its IoU head's prediction.
    fn loss(&self, context: &LossContext, batch: &Batch) -> Result<Loss> {
        let (config, size, dense_pe) = (context.config, context.image_size(), &self.dense_pe);
        let seed = config.seed ^ context.step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ context.micro as u64;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let kind = config.prompts.draw(&mut rng);
        let (mut samples, mut masks) = (batch.samples.clone(), batch.masks.clone());
        if kind == PromptKind::None {
            masks.iter_mut().for_each(|mask| mask.fill(0));
        } else {
            let point = kind == PromptKind::Point;
            config.objects.choose(&mut samples, &mut masks, size, point, &mut rng);
        }
        let low = 4 * dense_pe.dim(2)?;
        let prompts = prompts::simulate(kind, &masks, size, low, &mut rng, context.device)?;
        let (sparse, dense) = self.sam.prompt_encoder.forward(&prompts, masks.len())?;
        let embeddings = self.sam.encode_image(&context.input(&samples)?, true)?;
        let (logits, overlap) =
            self.sam.mask_decoder.forward(&embeddings, dense_pe, &sparse, &dense, false)?;
        let target = context.target(&masks, low, config.target)?;
        let mut loss = segmentation_loss(&logits, &target, MaskMode::Sigmoid)?;
        loss.add(&overlap_loss(&overlap, &logits, &target)?, config.overlap_weight)?;
        Ok(loss)
    }

    fn backbone(&self) -> Result<&'static str> {
        Ok("image_encoder.backbone.")
    }

    /// The file of a SAM with Meta's tensor names.
    fn file(&self, model: &ModelConfig, tensors: HashMap<String, Tensor>) -> serde_json::Result<ModelFile> {
        Ok(ModelFile { tensors, key: SAM_CONFIG_KEY, config: serde_json::to_string(&model.sam)? })
    }
}

/// A fresh small SAM, or the one in `file`.
pub fn begin(config: &TrainConfig, file: Option<Checkpoint>, device: &Device) -> Result<Start> {
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
    let net = PromptedSam::load(&model.sam, params.var_builder())?;
    Ok(Start { model, params, net: Box::new(net) })
}
