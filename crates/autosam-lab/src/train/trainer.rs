//! The training loop's state and steps, for every stage.

use super::cache::EmbeddingCache;
use super::checkpoint;
use super::config::{Stage, TrainConfig};
use super::losses::Loss;
use super::networks::{self, LossContext, Start, Trainable};
use super::optimizer::{Adam, Gradients};
use super::origin::Origin;
use super::parallel::Group;
use super::params::{self, Params};
use crate::data::loader::Batch;
use crate::{Error, Result};
use autosam_frame::resize::InputSize;
use autosam_model::weights::{self, Dtype};
use autosam_model::{self as model, AutoSam, Flips, ModelConfig, Network, Predictor, PredictorOptions};
use autosam_ops as ops;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

/// Report of one step.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// Number of completed steps, including this one.
    pub step: u64,
    pub bce: f64,
    pub dice_loss: f64,
    /// Weighted sum of the auxiliary terms.
    pub auxiliary: f64,
    pub gradient_norm: f64,
    pub learning_rate: f64,
}

/// Weights, optimiser, moving average and step of a run.
pub struct Trainer {
    config: TrainConfig,
    model: ModelConfig,
    params: Params,
    net: Box<dyn Trainable>,
    average: HashMap<String, Tensor>,
    adam: Adam,
    step: u64,
    device: Device,
    cache: Option<RefCell<EmbeddingCache>>,
    group: Option<Group>,
    teacher: Option<Predictor<AutoSam>>,
}

impl Trainer {
    /// Stage [`Stage::Sam`]: a fresh small SAM, or the one in `sam`. Stage [`Stage::Generator`]: a generator for the
    /// frozen SAM in `sam`, fresh or from that file. Stage [`Stage::Lightweight`]: a fresh decoder for the frozen
    /// generator of the AutoSAM in `sam`. Without `sam` the last two use the shipped model.
    pub fn new(config: &TrainConfig, sam: Option<&Path>, device: &Device) -> Result<Self> {
        let file = match (sam, config.stage) {
            (None, Stage::Sam) => None,
            (path, _) => Some(model::checkpoint(path)?),
        };
        let Start { model, params, net } = networks::begin(config, file, device)?;
        let average = params
            .trained()
            .iter()
            .map(|(n, v)| Ok((n.clone(), v.copy()?.detach())))
            .collect::<Result<_>>()?;
        let adam = Adam::new(config.optimizer.clone());
        Ok(Self {
            config: config.clone(),
            model,
            params,
            net,
            average,
            adam,
            step: 0,
            device: device.clone(),
            cache: None,
            group: None,
            teacher: None,
        })
    }

    /// Replaces the backbone's random weights by those in `file`, pretrained on ImageNet.
    ///
    /// # Errors
    /// If the file lacks a tensor of the backbone or has one of another shape.
    pub fn begin_with(&mut self, file: &Path) -> Result<()> {
        let prefix = self.net.backbone()?;
        let known = weights::load(file)?.tensors;
        let mut count = 0;
        for (name, var) in self.params.trained() {
            let Some(inner) = name.strip_prefix(prefix) else { continue };
            let Some(tensor) = known.get(inner) else {
                return Err(Error::weights(file, format!("it has no {inner}, which this backbone needs")));
            };
            if tensor.dims() != var.dims() {
                let text = format!("{inner} is {:?}, this backbone needs {:?}", tensor.dims(), var.dims());
                return Err(Error::weights(file, text));
            }
            var.set(&tensor.to_dtype(DType::F32)?.to_device(&self.device)?)?;
            self.average.insert(name.clone(), var.copy()?.detach());
            count += 1;
        }
        if count == 0 {
            return Err(Error::invalid("--init: this network has no pretrained backbone to start from"));
        }
        Ok(())
    }

    /// Size of the network's input, and how images are fitted into it.
    pub fn input_size(&self) -> InputSize {
        self.model.sam.input_size()
    }

    /// Side of the network's input in pixels.
    pub fn image_size(&self) -> usize {
        self.model.sam.image_size
    }

    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Number of completed steps.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Number of trained parameters, without buffers.
    pub fn parameter_count(&self) -> usize {
        let trained = self.params.trained().iter();
        trained.filter(|(n, _)| !params::is_buffer(n)).map(|(_, v)| v.elem_count()).sum()
    }

    /// Hexadecimal SHA-256 of everything that must be equal in all processes of a run: configuration, step and trained
    /// weights.
    pub fn fingerprint(&self) -> Result<String> {
        let mut bytes = format!("{:?} {:?} {}", self.config, self.model, self.step).into_bytes();
        for var in self.params.trained().values() {
            let values = var.as_tensor().flatten_all()?.to_vec1::<f32>()?;
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        Ok(weights::sha256(&bytes))
    }

    /// Hexadecimal SHA-256 of the frozen weights.
    pub(super) fn frozen_fingerprint(&self) -> Result<String> {
        let mut frozen: Vec<(String, Tensor)> = self.params.snapshot().into_iter().collect();
        frozen.retain(|(name, _)| !self.params.trained().contains_key(name));
        frozen.sort_by(|a, b| a.0.cmp(&b.0));
        let mut hash = Sha256::new();
        for (name, tensor) in frozen {
            hash.update(&name);
            for value in tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
                hash.update(value.to_le_bytes());
            }
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Makes every further step a common step of all processes of `group`, with the mean of their gradients.
    pub fn join(&mut self, group: Group) {
        self.group = Some(group);
    }

    /// Logical OR of `here` over all processes of the run.
    pub fn in_any_process(&self, here: bool) -> Result<bool> {
        self.group.as_ref().map_or(Ok(here), |group| group.any(here))
    }

    /// This process's rank and the number of processes.
    pub fn place(&self) -> (usize, usize) {
        self.group.as_ref().map_or((0, 1), |group| (group.rank(), group.size()))
    }

    /// Number of images per step, over all processes.
    pub fn images_per_step(&self) -> usize {
        self.config.batch * self.config.accumulate * self.place().1
    }

    /// Enables the cache of the frozen encoder's embeddings in `dir`, with room for `views` of them and at most `limit`
    /// bytes.
    ///
    /// # Errors
    /// For stage sam, whose encoder changes, and if the cache cannot be opened.
    pub fn cache_embeddings(&mut self, dir: &Path, views: usize, limit: u64) -> Result<()> {
        if self.config.stage != Stage::Generator {
            return Err(Error::invalid(
                "views applies only to stage generator, whose embeddings can be cached (stage sam trains the encoder, stage lightweight does not use it); set views=0",
            ));
        }
        let mut encoder: Vec<(String, Tensor)> = self.params.snapshot().into_iter().collect();
        encoder.retain(|(name, _)| name.starts_with("sam.image_encoder."));
        encoder.sort_by(|a, b| a.0.cmp(&b.0));
        let mut bytes = format!("{:?}", self.model.sam).into_bytes();
        for (name, tensor) in &encoder {
            bytes.extend(name.as_bytes());
            bytes.extend(tensor.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()));
        }
        let length = self.model.sam.embed_channels * self.model.sam.grid().pow(2);
        let cache = EmbeddingCache::open(dir, &weights::sha256(&bytes), length, views, limit)?;
        self.cache = Some(RefCell::new(cache));
        Ok(())
    }

    /// Adds distillation (arXiv 1503.02531): the cross-entropy against the probabilities of the model in `file`,
    /// averaged over four flips of each image, is added to the loss.
    ///
    /// # Errors
    /// For stage sam, and if the file is not an AutoSAM or has another input size.
    pub fn learn_from(&mut self, file: &Path) -> Result<()> {
        if self.config.stage == Stage::Sam {
            return Err(Error::invalid(
                "--teacher: stage sam learns objects of every kind, but a teacher knows only one kind; use it with stage generator",
            ));
        }
        let teacher = AutoSam::from_checkpoint(&weights::load(file)?, &self.device)?;
        if teacher.image_size() != self.image_size() {
            return Err(Error::invalid(format!(
                "{}: the teacher's input is {} px, the student's {}; change one of them with `models convert --image-size`",
                file.display(),
                teacher.image_size(),
                self.image_size()
            )));
        }
        let options =
            PredictorOptions { flips: Flips::Four, products: self.autocast(), ..Default::default() };
        self.teacher = Some(Predictor::new(teacher, options));
        Ok(())
    }

    /// Number of cached embeddings, capacity, and size of one in bytes; `None` without a cache.
    pub fn cache_fill(&self) -> Option<(usize, usize, usize)> {
        let cache = self.cache.as_ref()?.borrow();
        let (held, room) = cache.fill();
        Some((held, room, cache.record_bytes()))
    }

    /// One optimiser step over `batches` (the micro-batches of gradient accumulation).
    ///
    /// # Errors
    /// If the loss or a gradient is not finite; no weight is changed then.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        let learning_rate = self.config.learning_rate_at(self.step);
        let share = 1.0 / batches.len() as f64;
        let (rank, size) = self.place();
        let mut gradients = Gradients::default();
        let (mut bce, mut dice_loss, mut auxiliary) = (0.0, 0.0, 0.0);
        for (micro, batch) in batches.iter().enumerate() {
            let ([b, d, a], grads) = self.backward(batch, micro * size + rank)?;
            bce += b * share;
            dice_loss += d * share;
            auxiliary += a * share;
            gradients.add(self.params.trained(), grads, share)?;
        }
        if let Some(group) = &self.group {
            let mut means = [bce, dice_loss, auxiliary].map(|v| v as f32);
            group.mean(&mut means)?;
            [bce, dice_loss, auxiliary] = means.map(f64::from);
            gradients.average(self.params.trained(), group)?;
            self.params.average_buffers(group)?;
        }
        let backbone = self.config.backbone_rate;
        let rate =
            |name: &str| if name.contains(".backbone.") { learning_rate * backbone } else { learning_rate };
        let gradient_norm = self.adam.step(self.params.trained(), &gradients, rate)?;
        if !gradient_norm.is_finite() {
            return Err(Error::Diverged(format!(
                "the gradient of step {} is not finite; lower learning_rate",
                self.step + 1
            )));
        }
        self.step += 1;
        self.update_average()?;
        Ok(StepReport { step: self.step, bce, dice_loss, auxiliary, gradient_norm, learning_rate })
    }

    /// BCE, Dice and auxiliary loss of `batch`, and the gradients of their sum.
    fn backward(&mut self, batch: &Batch, micro: usize) -> Result<([f64; 3], GradStore)> {
        let device = self.device.clone();
        // Allowed because nothing inside waits for other processes.
        ops::in_pool_of(&device, || self.backward_here(batch, micro))
    }

    fn backward_here(&mut self, batch: &Batch, micro: usize) -> Result<([f64; 3], GradStore)> {
        let loss = ops::taped(|| ops::autocast(self.autocast(), || self.loss(batch, micro)))?;
        let (bce, dice) = (scalar(&loss.bce)?, scalar(&loss.dice)?);
        let auxiliary = loss.auxiliary.as_ref().map_or(Ok(0.0), scalar)?;
        if !(bce + dice + auxiliary).is_finite() {
            return Err(Error::Diverged(format!(
                "the loss of step {} is not finite (BCE {bce}, Dice {dice}); images: {}. Lower learning_rate, or remove those images",
                self.step + 1,
                batch.ids.join(", ")
            )));
        }
        Ok(([bce, dice, auxiliary], loss.total()?.backward()?))
    }

    /// The type of a step's products and convolutions; `None` for f32.
    fn autocast(&self) -> Option<DType> {
        (self.config.autocast && self.device.is_cuda()).then_some(DType::BF16)
    }

    fn loss(&self, batch: &Batch, micro: usize) -> Result<Loss> {
        let context = LossContext {
            config: &self.config,
            model: &self.model,
            device: &self.device,
            step: self.step,
            micro,
            teacher: self.teacher.as_ref(),
            cache: self.cache.as_ref(),
        };
        let mut loss = self.net.loss(&context, batch)?;
        loss.auxiliary = loss.auxiliary.map(|t| t.to_dtype(DType::F32)).transpose()?;
        Ok(loss)
    }

    fn update_average(&mut self) -> Result<()> {
        let step = self.step as f64;
        let ramp = if self.config.ema_ramp { (1.0 + step) / (10.0 + step) } else { 1.0 };
        let keep = self.config.ema.min(ramp);
        for (name, var) in self.params.trained() {
            if let Some(average) = self.average.get_mut(name) {
                ops::blend(average, &var.as_detached_tensor(), keep, 1.0 - keep)?;
            }
        }
        Ok(())
    }

    /// A separate network with the averaged weights, for validation. A SAM is used without a prompt.
    pub fn averaged(&self) -> Result<Predictor<Box<dyn Network>>> {
        let mut tensors = self.params.snapshot();
        for (name, average) in &self.average {
            // A copy, because the average is updated in place.
            tensors.insert(name.clone(), average.copy()?);
        }
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &self.device);
        let net: Box<dyn Network> = networks::load(self.config.stage, &self.model, vb)?;
        Ok(Predictor::new(net, PredictorOptions::default()))
    }

    /// Writes the averaged model in the stage's file format ([`Trainable::file`]): an AutoSAM, a SAM with Meta's tensor
    /// names, or only the lightweight decoder.
    pub fn save_model(&self, path: &Path, dtype: Dtype) -> Result<()> {
        let mut tensors = self.params.snapshot();
        tensors.extend(self.average.clone());
        let file = self.net.file(&self.model, tensors).map_err(|e| Error::invalid(e.to_string()))?;
        let metadata = HashMap::from([(file.key.to_owned(), file.config)]);
        weights::save_safetensors(path, &file.tensors, &metadata, dtype)
    }

    /// Writes the checkpoint of the run in `out` with its `origin`.
    pub(super) fn save_checkpoint(&self, out: &Path, origin: &Origin) -> Result<()> {
        checkpoint::save(out, &self.config, origin, self.step, &self.params, &self.average, &self.adam)
    }

    /// Restores the checkpoint in `out`, which must have the same `origin`.
    pub(super) fn resume(&mut self, out: &Path, origin: &Origin) -> Result<()> {
        let (step, average) = checkpoint::restore(out, &self.config, origin, &self.params, &mut self.adam)?;
        self.step = step;
        self.average = average;
        Ok(())
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_scalar::<f32>()?))
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
