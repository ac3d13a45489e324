//! One optimiser step after another, for either stage.

use super::cache::EmbeddingCache;
use super::checkpoint;
use super::config::{Stage, Target, TrainConfig};
use super::losses::{Loss, bce_with_logits, low_resolution_target, overlap_loss, segmentation_loss};
use super::network::{self, Averaged, Net, Start};
use super::optimizer::{Adam, Gradients};
use super::origin::Origin;
use super::parallel::Group;
use super::params::{self, Params};
use super::prompts::{self, PromptKind};
use crate::data::loader::Batch;
use crate::eval::predictor::LIGHTWEIGHT_KEY;
use crate::{Error, Result};
use autosam_frame::Rect;
use autosam_frame::map::ModelInput;
use autosam_frame::resize::InputSize;
use autosam_model::sam::Sam;
use autosam_model::weights::{self, Dtype};
use autosam_model::{
    self as model, AutoSam, CONFIG_KEY, MaskMode, ModelConfig, Predictor, PredictorOptions, SAM_CONFIG_KEY,
    Views,
};
use autosam_ops as ops;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use half::f16;
use rand::SeedableRng;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    pub bce: f64,
    pub dice_loss: f64,
    /// The auxiliary terms' sum, weighted.
    pub auxiliary: f64,
    pub gradient_norm: f64,
    pub learning_rate: f64,
}

/// Weights, optimiser, moving average and position of a run.
pub struct Trainer {
    config: TrainConfig,
    model: ModelConfig,
    params: Params,
    net: Net,
    average: HashMap<String, Tensor>,
    adam: Adam,
    step: u64,
    device: Device,
    cache: Option<RefCell<EmbeddingCache>>,
    group: Option<Group>,
    teacher: Option<Predictor<AutoSam>>,
}

impl Trainer {
    /// Stage [`Stage::Sam`]: a fresh small SAM, or the one in `sam` to go on from. Stage
    /// [`Stage::Generator`]: a generator before the frozen SAM in `sam`, fresh or the one of that file to go on from. Stage [`Stage::Lightweight`]: a fresh
    /// decoder behind the frozen generator of the AutoSAM in `sam`. Without `sam` the last two take the shipped model.
    pub fn new(config: &TrainConfig, sam: Option<&Path>, device: &Device) -> Result<Self> {
        let file = match (sam, config.stage) {
            (None, Stage::Sam) => None,
            (path, _) => Some(model::checkpoint(path)?),
        };
        let Start { model, params, net } = network::begin(config, file, device)?;
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

    /// Takes the backbone's weights from `file`, pretrained on ImageNet, in place of random ones.
    ///
    /// # Errors
    /// A file that has no tensor of the backbone, or lacks one, or has one of another shape.
    pub fn begin_with(&mut self, file: &Path) -> Result<()> {
        let prefix = match self.config.stage {
            Stage::Sam => "image_encoder.backbone.",
            Stage::Generator => "generator.backbone.",
            Stage::Lightweight => return Err(Error::invalid("--init: stage lightweight trains no backbone")),
        };
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

    /// Size of the network's input, and how images are laid into it.
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

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Trained parameters, buffers left out.
    pub fn parameter_count(&self) -> usize {
        let trained = self.params.trained().iter();
        trained.filter(|(n, _)| !params::is_buffer(n)).map(|(_, v)| v.elem_count()).sum()
    }

    /// What must be the same in all processes of a run: configuration, position and trained weights, as hexadecimal SHA-256.
    pub fn fingerprint(&self) -> Result<String> {
        let mut bytes = format!("{:?} {:?} {}", self.config, self.model, self.step).into_bytes();
        for var in self.params.trained().values() {
            let values = var.as_tensor().flatten_all()?.to_vec1::<f32>()?;
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        Ok(weights::sha256(&bytes))
    }

    /// SHA-256 of the weights that are not trained, as hexadecimal.
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

    /// From now on every step is one of all processes of `group`, with the mean of their gradients.
    pub fn join(&mut self, group: Group) {
        self.group = Some(group);
    }

    /// True in every process of the run where `here` is true in one.
    pub fn in_any_process(&self, here: bool) -> Result<bool> {
        self.group.as_ref().map_or(Ok(here), |group| group.any(here))
    }

    /// This process's rank and the number of all.
    pub fn place(&self) -> (usize, usize) {
        self.group.as_ref().map_or((0, 1), |group| (group.rank(), group.size()))
    }

    /// Images that a step takes, in all processes together.
    pub fn images_per_step(&self) -> usize {
        self.config.batch * self.config.accumulate * self.place().1
    }

    /// From now on the frozen encoder's embeddings are kept in `dir`: room for `views` of them, `limit` bytes at most.
    ///
    /// # Errors
    /// Stage sam, whose encoder changes; a cache that cannot be opened.
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

    /// From now on the mean of what the model in `file` makes of four mirror images of each image is learned beside the mask
    /// (distillation, arXiv 1503.02531; cross-entropy of its probabilities).
    ///
    /// # Errors
    /// Stage sam; a file that is no AutoSAM, or one of another input size.
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
            PredictorOptions { views: Views::Four, products: self.autocast(), ..Default::default() };
        self.teacher = Some(Predictor::new(teacher, options));
        Ok(())
    }

    /// Embeddings held, the most there is room for, and bytes of one; `None` without a cache.
    pub fn cache_fill(&self) -> Option<(usize, usize, usize)> {
        let cache = self.cache.as_ref()?.borrow();
        let (held, room) = cache.fill();
        Some((held, room, cache.record_bytes()))
    }

    /// The encoder's answer to `x`, the preprocessed `samples`: from the cache where it is there.
    fn embeddings(&self, model: &AutoSam, samples: &[ModelInput], x: &Tensor) -> Result<Tensor> {
        let Some(cache) = &self.cache else { return model.embed(x) };
        let mut cache = cache.borrow_mut();
        let keys: Vec<[u8; 32]> = samples.iter().map(EmbeddingCache::key).collect();
        let mut found: Vec<Option<Vec<f16>>> = keys.iter().map(|k| cache.get(k)).collect();
        let missing: Vec<u32> = (0..).zip(&found).filter(|(_, f)| f.is_none()).map(|(i, _)| i).collect();
        if !missing.is_empty() {
            let of = Tensor::new(missing.as_slice(), x.device())?;
            let fresh = model.embed(&x.index_select(&of, 0)?)?.to_dtype(DType::F16)?.flatten_from(1)?;
            for (i, values) in missing.iter().zip(fresh.to_vec2::<f16>()?) {
                cache.put(keys[*i as usize], &values)?;
                found[*i as usize] = Some(values);
            }
        }
        let all: Vec<f16> = found.into_iter().flatten().flatten().collect();
        let (c, g) = (self.model.sam.embed_channels, self.model.sam.grid());
        Ok(Tensor::from_vec(all, (samples.len(), c, g, g), &self.device)?.to_dtype(DType::F32)?)
    }

    /// One optimiser step over `batches` (the micro-batches of gradient accumulation).
    ///
    /// # Errors
    /// Where loss or gradient is not finite; no weight is changed then.
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
        // Nothing inside waits for other processes.
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

    /// What products and convolutions of a step are computed in, where that is not f32.
    fn autocast(&self) -> Option<DType> {
        (self.config.autocast && self.device.is_cuda()).then_some(DType::BF16)
    }

    fn loss(&self, batch: &Batch, micro: usize) -> Result<Loss> {
        let mut loss = match &self.net {
            Net::AutoSam(model) => self.generator_loss(model, batch)?,
            Net::Lightweight(model, decoder) => {
                let x = self.input(&batch.samples)?;
                let logits = decoder.forward(&model.dense_prompt(&x, false)?.detach())?;
                let low = 4 * self.model.sam.grid();
                let logits = ops::resize_bilinear(&logits, low, low, false)?;
                let target = self.target(&batch.masks, low, self.config.target)?;
                let loss = segmentation_loss(&logits, &target, self.config.mask_mode)?;
                self.taught(loss, &logits, batch)?
            }
            Net::Sam { sam, dense_pe } => self.sam_loss(sam, dense_pe, batch, micro)?,
        };
        loss.auxiliary = loss.auxiliary.map(|t| t.to_dtype(DType::F32)).transpose()?;
        Ok(loss)
    }

    fn input(&self, samples: &[ModelInput]) -> Result<Tensor> {
        model::preprocess(samples, self.image_size(), &self.device)
    }

    /// Masks at `low × low`, `[N, 1, low, low]`.
    fn target(&self, masks: &[Vec<u8>], low: usize, kind: Target) -> Result<Tensor> {
        Ok(low_resolution_target(masks, self.image_size(), low, kind, &self.device)?)
    }

    /// Of the mask that the frozen SAM makes of the generator's prompt, of what its IoU head says of it, and of the generator's own
    /// logits.
    fn generator_loss(&self, model: &AutoSam, batch: &Batch) -> Result<Loss> {
        let x = self.input(&batch.samples)?;
        let generated = model.generate(&x)?;
        let embeddings = self.embeddings(model, &batch.samples, &x)?;
        let (logits, overlap) = model.decode_with_overlap(&embeddings, &generated.prompt)?;
        let config = &self.config;
        let target = self.target(&batch.masks, logits.dim(2)?, config.target)?;
        let mut loss = segmentation_loss(&logits, &target, config.mask_mode)?;
        if config.overlap_weight > 0.0 && config.mask_mode == MaskMode::Sigmoid {
            loss.add(&overlap_loss(&overlap, &logits, &target)?, config.overlap_weight)?;
        }
        if let Some(own) = generated.own.filter(|_| config.own_weight > 0.0) {
            let target = self.target(&batch.masks, own.dim(2)?, config.target)?;
            loss.add(&segmentation_loss(&own, &target, config.mask_mode)?.total()?, config.own_weight)?;
        }
        self.taught(loss, &logits, batch)
    }

    /// Of what a SAM answers when it is asked for objects of every kind, and of what its IoU head says of the answer.
    fn sam_loss(&self, sam: &Sam, dense_pe: &Tensor, batch: &Batch, micro: usize) -> Result<Loss> {
        let size = self.image_size();
        let seed = self.config.seed ^ self.step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ micro as u64;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let kind = self.config.prompts.draw(&mut rng);
        let (mut samples, mut masks) = (batch.samples.clone(), batch.masks.clone());
        if kind == PromptKind::None {
            masks.iter_mut().for_each(|mask| mask.fill(0));
        } else {
            let point = kind == PromptKind::Point;
            self.config.objects.choose(&mut samples, &mut masks, size, point, &mut rng);
        }
        let low = 4 * dense_pe.dim(2)?;
        let prompts = prompts::simulate(kind, &masks, size, low, &mut rng, &self.device)?;
        let (sparse, dense) = sam.prompt_encoder.forward(&prompts, masks.len())?;
        let embeddings = sam.encode_image(&self.input(&samples)?, true)?;
        let (logits, overlap) = sam.mask_decoder.forward(&embeddings, dense_pe, &sparse, &dense, false)?;
        let target = self.target(&masks, low, self.config.target)?;
        let mut loss = segmentation_loss(&logits, &target, MaskMode::Sigmoid)?;
        loss.add(&overlap_loss(&overlap, &logits, &target)?, self.config.overlap_weight)?;
        Ok(loss)
    }

    /// Adds what the teacher, if there is one, says of the samples.
    fn taught(&self, mut loss: Loss, logits: &Tensor, batch: &Batch) -> Result<Loss> {
        let Some(teacher) = &self.teacher else { return Ok(loss) };
        let size = self.image_size();
        let answers: Vec<Vec<u8>> = teacher
            .maps(&batch.samples)?
            .into_iter()
            .map(|map| {
                let whole = Rect::whole(map.width, map.height);
                map.embedded(whole, size, size).data
            })
            .collect();
        let answers = self.target(&answers, logits.dim(2)?, Target::Area)?;
        loss.add(&bce_with_logits(logits, &answers)?.mean_all()?, self.config.teacher_weight)?;
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

    /// The averaged weights in a network of their own, for validation. A SAM answers without a prompt.
    pub fn averaged(&self) -> Result<Predictor<Averaged>> {
        let mut tensors = self.params.snapshot();
        for (name, average) in &self.average {
            // A copy: the average goes on in place.
            tensors.insert(name.clone(), average.copy()?);
        }
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &self.device);
        let net = Net::load(self.config.stage, &self.model, vb)?;
        let averaged = Averaged { net, input: self.input_size(), device: self.device.clone() };
        Ok(Predictor::new(averaged, PredictorOptions::default()))
    }

    /// Writes the averaged model: stage generator, an AutoSAM file that every command opens; stage sam, a
    /// SAM with Meta's tensor names; stage lightweight, the decoder alone.
    pub fn save_model(&self, path: &Path, dtype: Dtype) -> Result<()> {
        let mut tensors = self.params.snapshot();
        tensors.extend(self.average.clone());
        let (key, json) = match self.config.stage {
            Stage::Sam => (SAM_CONFIG_KEY, serde_json::to_string(&self.model.sam)),
            Stage::Generator => (CONFIG_KEY, serde_json::to_string(&self.model)),
            Stage::Lightweight => {
                let own = |(n, t): (String, Tensor)| Some((n.strip_prefix("lightweight.")?.to_owned(), t));
                tensors = tensors.into_iter().filter_map(own).collect();
                (LIGHTWEIGHT_KEY, Ok(self.model.sam.embed_channels.to_string()))
            }
        };
        let json = json.map_err(|e| Error::invalid(e.to_string()))?;
        weights::save_safetensors(path, &tensors, &HashMap::from([(key.to_owned(), json)]), dtype)
    }

    /// Writes the checkpoint of the run in `out`, which began with `origin`.
    pub(super) fn save_checkpoint(&self, out: &Path, origin: &Origin) -> Result<()> {
        checkpoint::save(out, &self.config, origin, self.step, &self.params, &self.average, &self.adam)
    }

    /// Goes back to the checkpoint in `out`, of a run that began with `origin`.
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
