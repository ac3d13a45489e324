//! One optimiser step after another, for either stage.

use super::cache::EmbeddingCache;
use super::checkpoint;
use super::config::{GeneratorKind, Stage, Target, TrainConfig};
use super::losses::{Loss, bce_with_logits, segmentation_loss};
use super::optimizer::{Adam, Gradients};
use super::parallel::Group;
use super::params::{self, Params};
use super::prompts;
use crate::data::loader::Batch;
use crate::engine::segmenter::{ProbMap, Sample};
use crate::eval::predictor::LIGHTWEIGHT_KEY;
use crate::frame::Rect;
use crate::generator::{GeneratorConfig, LightweightDecoder};
use crate::model::{self, AutoSam, CONFIG_KEY, Calibration, MaskMode, ModelConfig, SAM_CONFIG_KEY, Views};
use crate::ops;
use crate::sam::{Prompts, Sam, SamConfig};
use crate::weights::{self, Checkpoint, Dtype};
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use half::f16;
use rand::SeedableRng;
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
    pub gradient_norm: f64,
    pub learning_rate: f64,
}

/// The network being fitted.
enum Net {
    Sam { sam: Sam, dense_pe: Tensor },
    AutoSam(AutoSam),
    Lightweight(AutoSam, LightweightDecoder),
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
    teacher: Option<AutoSam>,
}

impl Trainer {
    /// Stage [`Stage::Sam`]: a fresh small SAM, or the one in `sam` to go on from. Stage
    /// [`Stage::Generator`]: a fresh generator before the frozen SAM in `sam`. Stage [`Stage::Lightweight`]: a fresh
    /// decoder behind the frozen generator of the AutoSAM in `sam`. Without `sam` the last two take the shipped model.
    pub fn new(config: &TrainConfig, sam: Option<&Path>, device: &Device) -> Result<Self> {
        let file = match (sam, config.stage) {
            (None, Stage::Sam) => None,
            (path, _) => Some(model::checkpoint(path)?),
        };
        let (model, params, net) = match config.stage {
            Stage::Sam => {
                let (mut sam_config, mut known) = match file {
                    Some(file) => sam_of(file)?,
                    None => (SamConfig::tiny(), HashMap::new()),
                };
                if config.image_size > 0 {
                    sam_config = sam_config.at(config.image_size)?;
                    sam_config.fit_biases(&mut known)?;
                }
                let shapes = weights::recorder::shapes_of(|vb| Sam::load(&sam_config, vb))?;
                let mut tensors = params::initialise(&shapes, config.seed)?;
                tensors.extend(known);
                let fourier = |n: &str| n.ends_with("positional_encoding_gaussian_matrix");
                let params = Params::new(tensors, |n| !fourier(n), device)?;
                let sam = Sam::load(&sam_config, params.var_builder())?;
                let dense_pe = sam.prompt_encoder.dense_pe()?;
                let model = ModelConfig {
                    generator: generator_config(config, &sam_config),
                    sam: sam_config,
                    calibration: Calibration::default(),
                };
                (model, params, Net::Sam { sam, dense_pe })
            }
            Stage::Generator => {
                let Some(file) = file else { return Err(Error::invalid("the generator needs a SAM")) };
                let (sam_config, known) = sam_of(file)?;
                let model = ModelConfig {
                    generator: generator_config(config, &sam_config),
                    sam: sam_config,
                    calibration: Calibration::default(),
                };
                let mut tensors = params::initialise(&model.parameter_shapes()?, config.seed)?;
                tensors.retain(|n, _| n.starts_with("generator."));
                if let Some(no_mask) = known.get("prompt_encoder.no_mask_embed.weight") {
                    tensors.insert("generator.decoder.final.conv2.bias".into(), inverse_tanh(no_mask)?);
                }
                tensors.extend(known.into_iter().map(|(n, t)| (format!("sam.{n}"), t)));
                let params = Params::new(tensors, |n| n.starts_with("generator."), device)?;
                let net = Net::AutoSam(AutoSam::load(&model, params.var_builder())?);
                (model, params, net)
            }
            Stage::Lightweight => {
                let Some(file) = file else { return Err(Error::invalid("the decoder needs an AutoSAM")) };
                let model = ModelConfig::of(&file)?;
                file.check(&model.parameter_shapes()?)?;
                let channels = model.sam.embed_channels;
                let shapes = weights::recorder::shapes_of(|vb| {
                    LightweightDecoder::load(channels, vb.pp("lightweight"))
                })?;
                let mut tensors = params::initialise(&shapes, config.seed)?;
                tensors.extend(file.tensors);
                let params = Params::new(tensors, |n| n.starts_with("lightweight."), device)?;
                let decoder = LightweightDecoder::load(channels, params.var_builder().pp("lightweight"))?;
                let net = Net::Lightweight(AutoSam::load(&model, params.var_builder())?, decoder);
                (model, params, net)
            }
        };
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

    /// Pictures that a step takes, in all processes together.
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
                "views is for stage generator, which has embeddings to keep (stage sam trains the encoder, stage lightweight does without); set views=0",
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

    /// From now on the mean of what the model in `file` makes of four mirror images of each picture is learned beside the mask
    /// (distillation, arXiv 1503.02531; cross-entropy of its probabilities).
    ///
    /// # Errors
    /// A file that is no AutoSAM, or one of another input size.
    pub fn learn_from(&mut self, file: &Path) -> Result<()> {
        let teacher = AutoSam::from_checkpoint(&weights::load(file)?, &self.device)?;
        if teacher.image_size() != self.image_size() {
            return Err(Error::invalid(format!(
                "{}: the teacher sees {} px, what it teaches {}; `models convert --image-size` changes one of them",
                file.display(),
                teacher.image_size(),
                self.image_size()
            )));
        }
        self.teacher = Some(teacher);
        Ok(())
    }

    /// Embeddings held, the most there is room for, and bytes of one; `None` without a cache.
    pub fn cache_fill(&self) -> Option<(usize, usize, usize)> {
        let cache = self.cache.as_ref()?.borrow();
        let (held, room) = cache.fill();
        Some((held, room, cache.record_bytes()))
    }

    /// The encoder's answer to `x`, the preprocessed `samples`: from the cache where it is there.
    fn embeddings(&self, model: &AutoSam, samples: &[Sample], x: &Tensor) -> Result<Tensor> {
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
        let (mut bce, mut dice_loss) = (0.0, 0.0);
        for (micro, batch) in batches.iter().enumerate() {
            let (b, d, grads) = self.backward(batch, micro * size + rank)?;
            bce += b * share;
            dice_loss += d * share;
            gradients.add(self.params.trained(), grads, share)?;
        }
        if let Some(group) = &self.group {
            let mut means = [bce as f32, dice_loss as f32];
            group.mean(&mut means)?;
            [bce, dice_loss] = means.map(f64::from);
            gradients.average(self.params.trained(), group)?;
            self.params.average_buffers(group)?;
        }
        let gradient_norm = self.adam.step(self.params.trained(), &gradients, learning_rate)?;
        if !gradient_norm.is_finite() {
            return Err(Error::Diverged(format!(
                "the gradient of step {} is not finite; lower learning_rate",
                self.step + 1
            )));
        }
        self.step += 1;
        self.update_average()?;
        Ok(StepReport { step: self.step, bce, dice_loss, gradient_norm, learning_rate })
    }

    /// BCE and Dice loss of `batch`, and the gradients of their sum.
    fn backward(&mut self, batch: &Batch, micro: usize) -> Result<(f64, f64, GradStore)> {
        let device = self.device.clone();
        // Nothing inside waits for other processes.
        ops::in_pool_of(&device, || self.backward_here(batch, micro))
    }

    fn backward_here(&mut self, batch: &Batch, micro: usize) -> Result<(f64, f64, GradStore)> {
        let loss = ops::taped(|| ops::autocast(self.autocast(), || self.loss(batch, micro)))?;
        let (bce, dice) = (scalar(&loss.bce)?, scalar(&loss.dice)?);
        if !(bce + dice).is_finite() {
            return Err(Error::Diverged(format!(
                "the loss of step {} is not finite (BCE {bce}, Dice {dice}); images: {}. Lower learning_rate, or leave those images out",
                self.step + 1,
                batch.ids.join(", ")
            )));
        }
        Ok((bce, dice, loss.total()?.backward()?))
    }

    /// What products and convolutions of a step are computed in, where that is not f32.
    fn autocast(&self) -> Option<DType> {
        (self.config.autocast && self.device.is_cuda()).then_some(DType::BF16)
    }

    fn loss(&self, batch: &Batch, micro: usize) -> Result<Loss> {
        let n = batch.samples.len();
        let size = self.image_size();
        let x = model::preprocess(&batch.samples, size, &self.device)?;
        let (logits, mode) = match &self.net {
            Net::AutoSam(model) => {
                let prompt = model.dense_prompt(&x, true)?;
                (model.decode(&self.embeddings(model, &batch.samples, &x)?, &prompt)?, self.config.mask_mode)
            }
            Net::Lightweight(model, decoder) => {
                let logits = decoder.forward(&model.dense_prompt(&x, false)?.detach())?;
                let low = 4 * self.model.sam.grid();
                (ops::resize_bilinear(&logits, low, low, false)?, self.config.mask_mode)
            }
            Net::Sam { sam, dense_pe } => {
                let seed = self.config.seed ^ self.step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ micro as u64;
                let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
                let kind = self.config.prompts.draw(&mut rng);
                let low = 4 * dense_pe.dim(2)?;
                let prompts = prompts::simulate(kind, &batch.masks, size, low, &mut rng, &self.device)?;
                let (sparse, dense) = sam.prompt_encoder.forward(&prompts, n)?;
                let embeddings = sam.encode_image(&x, true)?;
                (sam.mask_decoder.mask_logits(&embeddings, dense_pe, &sparse, &dense)?, MaskMode::Sigmoid)
            }
        };
        let low = logits.dim(2)?;
        let target = low_resolution_target(&batch.masks, size, low, self.config.target, &self.device)?;
        let mut loss = segmentation_loss(&logits, &target, mode)?;
        if let Some(teacher) = &self.teacher {
            let answers: Vec<Vec<u8>> = teacher
                .maps(&batch.samples, MaskMode::Sigmoid, Views::Four, self.autocast())?
                .into_iter()
                .map(|map| {
                    let whole = Rect::whole(map.width, map.height);
                    map.embedded(whole, size, size).data
                })
                .collect();
            let answers = low_resolution_target(&answers, size, low, Target::Area, &self.device)?;
            let told = bce_with_logits(&logits, &answers)?.mean_all()?;
            loss.bce = (loss.bce + (told * self.config.teacher_weight)?)?;
        }
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
    pub fn averaged(&self) -> Result<Validator> {
        let mut tensors = self.params.snapshot();
        for (name, average) in &self.average {
            // A copy: the average goes on in place.
            tensors.insert(name.clone(), average.copy()?);
        }
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &self.device);
        let net = match self.config.stage {
            Stage::Sam => {
                let sam = Sam::load(&self.model.sam, vb)?;
                let dense_pe = sam.prompt_encoder.dense_pe()?;
                Net::Sam { sam, dense_pe }
            }
            Stage::Generator => Net::AutoSam(AutoSam::load(&self.model, vb)?),
            Stage::Lightweight => Net::Lightweight(
                AutoSam::load(&self.model, vb.clone())?,
                LightweightDecoder::load(self.model.sam.embed_channels, vb.pp("lightweight"))?,
            ),
        };
        Ok(Validator { net, size: self.image_size(), device: self.device.clone() })
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

    pub fn save_checkpoint(&self, out: &Path) -> Result<()> {
        checkpoint::save(out, &self.config, self.step, &self.params, &self.average, &self.adam)
    }

    /// Goes back to the checkpoint in `out`.
    pub fn resume(&mut self, out: &Path) -> Result<()> {
        let (step, average) = checkpoint::restore(out, &self.config, &self.params, &mut self.adam)?;
        self.step = step;
        self.average = average;
        Ok(())
    }
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

/// What the prompt's tanh makes SAM's own dense prompt of, `[1, C]` → `[C]`: a fresh generator begins with the answer
/// that SAM gives without a mask, not with a prompt it never saw.
fn inverse_tanh(no_mask: &Tensor) -> Result<Tensor> {
    let values = no_mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let values: Vec<f32> = values.iter().map(|v| v.clamp(-0.95, 0.95).atanh()).collect();
    Ok(Tensor::new(values, &Device::Cpu)?)
}

fn generator_config(config: &TrainConfig, sam: &SamConfig) -> GeneratorConfig {
    let size = config.generator_input;
    match config.generator {
        GeneratorKind::Tiny => GeneratorConfig::tiny(size, sam.embed_channels),
        GeneratorKind::HarDNet39ds => GeneratorConfig::hardnet39ds(size),
        GeneratorKind::HarDNet68 => GeneratorConfig::hardnet68(size),
        GeneratorKind::HarDNet85 => GeneratorConfig::hardnet85(size),
    }
}

/// Averaged weights, ready to answer.
pub struct Validator {
    net: Net,
    size: usize,
    device: Device,
}

impl Validator {
    /// Probability maps of `samples`.
    pub fn segment(&self, samples: &[Sample]) -> Result<Vec<ProbMap>> {
        let x = model::preprocess(samples, self.size, &self.device)?;
        let logits = match &self.net {
            Net::AutoSam(model) => model.forward(&x)?,
            Net::Lightweight(model, decoder) => decoder.forward(&model.dense_prompt(&x, false)?)?,
            Net::Sam { sam, dense_pe } => {
                let (sparse, dense) = sam.prompt_encoder.forward(&Prompts::default(), samples.len())?;
                sam.mask_decoder.mask_logits(&sam.encode_image(&x, false)?, dense_pe, &sparse, &dense)?
            }
        };
        model::probabilities(&logits, samples, self.size, MaskMode::Sigmoid)
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_scalar::<f32>()?))
}

/// `size × size` masks (0 or 255) → `[N, 1, low, low]` in [0, 1].
fn low_resolution_target(
    masks: &[Vec<u8>],
    size: usize,
    low: usize,
    target: Target,
    device: &Device,
) -> Result<Tensor> {
    let step = size / low;
    let reach = match target {
        Target::Area => step,
        // As torch.nn.functional.interpolate: the first pixel of each cell.
        Target::Nearest => 1,
    };
    let scale = 1.0 / (reach * reach * 255) as f32;
    let cell = |mask: &[u8], x: usize, y: usize| {
        let rows = (y * step..).take(reach).map(|y| &mask[y * size + x * step..][..reach]);
        rows.flatten().map(|p| u32::from(*p)).sum::<u32>() as f32 * scale
    };
    let out: Vec<f32> =
        masks.iter().flat_map(|mask| (0..low * low).map(move |i| cell(mask, i % low, i / low))).collect();
    Ok(Tensor::from_vec(out, (masks.len(), 1, low, low), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::prompts::PromptMix;

    /// A disc at a place of its own in each of two pictures.
    fn batch(size: usize) -> Batch {
        let (mut samples, mut masks) = (Vec::new(), Vec::new());
        for (cx, cy) in [(0.3, 0.6), (0.7, 0.4)] {
            let inside = |i: usize| {
                let (x, y) = ((i % size) as f32 / size as f32, (i / size) as f32 / size as f32);
                (x - cx).hypot(y - cy) < 0.2
            };
            let pixel = |i: usize| if inside(i) { [200, 120, 110] } else { [90 + (i % 17) as u8, 40, 50] };
            samples.push(Sample {
                width: size,
                height: size,
                rgb: (0..size * size).flat_map(pixel).collect(),
            });
            masks.push((0..size * size).map(|i| if inside(i) { 255 } else { 0 }).collect());
        }
        Batch { samples, masks, ids: vec!["a".into(), "b".into()] }
    }

    #[test]
    fn a_cell_of_the_target_is_its_share_or_its_first_pixel() {
        // 4 x 4 pixels for 2 x 2 cells.
        let mask = vec![255, 0, 0, 255, 255, 255, 0, 0, 0, 0, 255, 255, 0, 255, 255, 255];
        let target = |kind| {
            let t = low_resolution_target(std::slice::from_ref(&mask), 4, 2, kind, &Device::Cpu).unwrap();
            let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(|v| (v * 100.0).round() / 100.0).collect::<Vec<_>>()
        };
        assert_eq!(target(Target::Area), [0.75, 0.25, 0.25, 1.0]);
        assert_eq!(target(Target::Nearest), [1.0, 0.0, 0.0, 1.0]);
    }

    fn only(kind: &str) -> PromptMix {
        let one = |k| if k == kind { 1.0 } else { 0.0 };
        PromptMix { none: one("none"), point: one("point"), bbox: one("bbox"), mask: one("mask") }
    }

    /// In f16, which a CPU has too; a GPU takes bf16 through the same casts.
    #[test]
    fn a_step_in_16_bits_has_the_loss_and_gradient_of_one_in_32() {
        let config = TrainConfig { stage: Stage::Sam, prompts: only("point"), ..TrainConfig::default() };
        let trainer = Trainer::new(&config, None, &Device::Cpu).unwrap();
        let batch = batch(trainer.image_size());
        let name = "image_encoder.layers.1.blocks.0.mlp.fc1.weight";
        let step = |dtype| {
            let loss = ops::autocast(dtype, || trainer.loss(&batch, 0)).unwrap().total().unwrap();
            // Scaled, or f16, unlike bf16, would lose small gradients.
            let grads = (&loss * 4096.0).unwrap().backward().unwrap();
            let grad = grads.get(&trainer.params.trained()[name]).unwrap().flatten_all().unwrap();
            (loss.to_scalar::<f32>().unwrap(), grad.to_vec1::<f32>().unwrap())
        };
        let ((a, ga), (b, gb)) = (step(None), step(Some(DType::F16)));
        assert!(a != b && (a / b - 1.0).abs() < 2e-3, "{a} and {b}");
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        let difference = norm(&mut ga.iter().zip(&gb).map(|(a, b)| a - b));
        let size = norm(&mut ga.iter().copied());
        assert!(difference < 0.05 * size, "{difference} of {size}");
    }

    /// Weights of a SAM: the slope of the loss along its gradient is the gradient's length. (A frozen SAM's goldens
    /// see no weight's gradient.)
    #[test]
    fn sams_gradients_are_the_slopes_of_its_loss() {
        for kind in ["none", "mask"] {
            let config =
                TrainConfig { stage: Stage::Sam, prompts: only(kind), batch: 2, ..TrainConfig::default() };
            let trainer = Trainer::new(&config, None, &Device::Cpu).unwrap();
            // Training begins with small masks, hence small gradients; ten times larger ones stand clear of rounding.
            let last = &trainer.params.trained()["mask_decoder.output_hypernetworks_mlps.0.layers.2.weight"];
            last.set(&(last.as_detached_tensor() * 10.0).unwrap()).unwrap();
            let batch = batch(trainer.image_size());
            let total = || {
                let loss = trainer.loss(&batch, 0).unwrap().total().unwrap();
                (f64::from(loss.to_scalar::<f32>().unwrap()), loss)
            };
            let grads = total().1.backward().unwrap();
            let mut checked = 0;
            // A prime stride reaches every kind of layer at a fraction of the time.
            for (name, var) in trainer.params.trained().iter().step_by(17) {
                let Some(grad) = grads.get(var) else { continue };
                let norm =
                    f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
                // What is smaller drowns in the loss's last digits.
                if norm < 0.02 {
                    continue;
                }
                let theta = var.as_detached_tensor().copy().unwrap();
                let step = 2e-3 / norm;
                let at = |sign: f64| {
                    var.set(&(&theta + (grad * (sign * step / norm)).unwrap()).unwrap()).unwrap();
                    total().0
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
                var.set(&theta).unwrap();
                assert!(
                    (slope / norm - 1.0).abs() < 0.1,
                    "{kind} {name}: gradient {norm:.3e}, slope {slope:.3e}"
                );
                checked += 1;
            }
            assert!(checked >= 5, "{kind}: {checked} tensors have a gradient worth checking");
        }
    }
}
