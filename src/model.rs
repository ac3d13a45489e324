//! AutoSAM (arXiv 2306.06370): a frozen SAM whose dense prompt a small network makes. Frame in, logits and
//! mask out; the same code for live video, files, training and evaluation.

mod device;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod side;

pub use device::{DeviceChoice, Precision};

use crate::engine::segmenter::{Mirror, ProbMap, Sample, Segmenter};
use crate::generator::{Generator, GeneratorConfig};
use crate::ops;
use crate::sam::{Prompts, Sam, SamConfig};
use crate::train::TrainConfig;
use crate::train::losses::min_max;
use crate::train::params::initialise;
use crate::weights::{self, Checkpoint};
use crate::{Error, Result};
use candle_core::{DType, Device, DeviceLocation, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// The model that every default finds: AutoSAM at small scale, trained by this project (see its card in
/// `models/`). Its weights are not Meta's.
pub const SHIPPED: &[u8] = include_bytes!("../models/autosam-tiny.safetensors");

/// The metadata key of our weight files that holds a [`ModelConfig`] as JSON.
pub const CONFIG_KEY: &str = "autosam";

/// The metadata key of a small SAM's file (`train --stage sam`) that holds its [`SamConfig`] as JSON.
pub const SAM_CONFIG_KEY: &str = "autosam.sam";

/// SAM's pixel mean and standard deviation, RGB, for values of 0 to 255.
const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskMode {
    /// `sigmoid(logit)`: an image without a polyp gets no mask. The one for live video.
    #[default]
    Sigmoid,
    /// Logits stretched to [0, 1] per image, as the paper: every image gets a foreground.
    MinMax,
}

/// How many mirror images of a frame are answered; their mean is the answer (test-time augmentation). Each costs as much as
/// the frame itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Views {
    /// The frame as it is.
    #[default]
    One,
    /// And left to right.
    Two,
    /// And both of them top to bottom.
    Four,
}

impl FromStr for Views {
    type Err = Error;

    /// `1`, `2` or `4`.
    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "1" => Ok(Self::One),
            "2" => Ok(Self::Two),
            "4" => Ok(Self::Four),
            _ => Err(Error::invalid(format!("views {text:?} is none of 1, 2, 4"))),
        }
    }
}

impl Views {
    pub fn count(self) -> u32 {
        self.mirrors().len() as u32
    }

    fn mirrors(self) -> &'static [Mirror] {
        const ALL: [Mirror; 4] = [
            Mirror { across: false, down: false },
            Mirror { across: true, down: false },
            Mirror { across: false, down: true },
            Mirror { across: true, down: true },
        ];
        match self {
            Self::One => &ALL[..1],
            Self::Two => &ALL[..2],
            Self::Four => &ALL,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct ModelOptions {
    pub device: DeviceChoice,
    pub precision: Precision,
    pub mask_mode: MaskMode,
    pub views: Views,
}

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
    fn is_none(&self) -> bool {
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

/// The joined model.
#[derive(Debug)]
pub struct AutoSam {
    sam: Sam,
    generator: Generator,
    /// SAM's dense positional encoding, `[1, C, g, g]`: the same for every frame.
    dense_pe: Tensor,
    image_size: usize,
    calibration: Calibration,
    device: Device,
    /// Where the generator lies if it is computed beside the encoder on a GPU.
    #[cfg(feature = "cuda")]
    side: Option<side::Side>,
}

impl AutoSam {
    /// Builds the model from `sam.…` and `generator.…` below `vb`.
    pub fn load(config: &ModelConfig, vb: VarBuilder) -> candle_core::Result<Self> {
        let sam = Sam::load(&config.sam, vb.pp("sam"))?;
        let generator = Generator::load(&config.generator, vb.pp("generator"))?;
        let dense_pe = sam.prompt_encoder.dense_pe()?;
        let device = vb.device().clone();
        let (image_size, calibration) = (config.sam.image_size, config.calibration);
        Ok(Self {
            sam,
            generator,
            dense_pe,
            image_size,
            calibration,
            device,
            #[cfg(feature = "cuda")]
            side: None,
        })
    }

    /// Builds the model from a checked weight file, for inference: batch norms are folded into convolutions.
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        Self::prepared(checkpoint, device, None)
    }

    /// [`Self::from_checkpoint`], its weights in the type of the products they are for ([`ops::autocast`]).
    pub(crate) fn prepared(
        checkpoint: &Checkpoint,
        device: &Device,
        products: Option<DType>,
    ) -> Result<Self> {
        let config = ModelConfig::of(checkpoint)?;
        checkpoint.check(&config.parameter_shapes()?)?;
        let vb = VarBuilder::from_tensors(checkpoint.tensors.clone(), DType::F32, device);
        let mut model = Self::load(&config, vb)?;
        #[cfg(feature = "cuda")]
        if let Some(side) = side::Side::of(device)? {
            let vb = VarBuilder::from_tensors(checkpoint.tensors.clone(), DType::F32, side.device());
            model.generator = Generator::load(&config.generator, vb.pp("generator"))?;
            model.side = Some(side);
        }
        ops::autocast(products, || model.sam.fold().and_then(|()| model.generator.fold()))?;
        Ok(model)
    }

    pub fn sam(&self) -> &Sam {
        &self.sam
    }

    /// Side of SAM's square input in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// [`preprocess`] on this model's device.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn preprocess(&self, samples: &[Sample]) -> Result<Tensor> {
        preprocess(samples, self.image_size, &self.device)
    }

    /// SAM's image embedding of preprocessed images, `[N, 3, S, S]` → `[N, C, g, g]`. Frozen: it does not
    /// depend on the generator.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn embed(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.sam.encode_image(x, false)?)
    }

    /// The generator's dense prompt for preprocessed images, `[N, 3, S, S]` → `[N, C, g, g]`.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn dense_prompt(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(side) = &self.side {
            return side.begin(x, |x| self.prompt(x, train))?.join();
        }
        self.prompt(x, train)
    }

    /// [`Self::dense_prompt`] where the generator is.
    fn prompt(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let side = self.generator.input_size();
        let x = if side == self.image_size { x.clone() } else { ops::resize_bilinear(x, side, side, true)? };
        Ok(self.generator.forward(&x, self.dense_pe.dim(2)?, train)?.to_dtype(DType::F32)?)
    }

    /// SAM's mask for embeddings and dense prompts, with no sparse prompt: the first mask token's logits, calibrated,
    /// `[N, 1, 4g, 4g]`.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn decode(&self, embeddings: &Tensor, dense_prompt: &Tensor) -> Result<Tensor> {
        let n = embeddings.dim(0)?;
        let (sparse, _) = self.sam.prompt_encoder.forward(&Prompts::default(), n)?;
        let logits = self.sam.mask_decoder.mask_logits(embeddings, &self.dense_pe, &sparse, dense_prompt)?;
        let logits = logits.to_dtype(DType::F32)?;
        let Calibration { scale, bias } = self.calibration;
        Ok(if self.calibration.is_none() { logits } else { logits.affine(scale.into(), bias.into())? })
    }

    /// Low-resolution logits `[N, 1, 4g, 4g]` of preprocessed images `[N, 3, S, S]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(side) = &self.side {
            let prompt = side.begin(x, |x| self.prompt(x, false))?;
            let embeddings = self.embed(x)?;
            return self.decode(&embeddings, &prompt.join()?);
        }
        // On a CPU side by side: where one has nothing for a second thread, the other has.
        let (embeddings, prompt) = if x.device().is_cpu() {
            rayon::join(|| self.embed(x), || self.dense_prompt(x, false))
        } else {
            (self.embed(x), self.dense_prompt(x, false))
        };
        self.decode(&embeddings?, &prompt?)
    }

    /// Probability maps of `samples`, each the mean over its `views`; the network's products in `products` ([`ops::autocast`]).
    pub fn maps(
        &self,
        samples: &[Sample],
        mode: MaskMode,
        views: Views,
        products: Option<DType>,
    ) -> Result<Vec<ProbMap>> {
        let answer = |samples: &[Sample]| {
            let x = self.preprocess(samples)?;
            let logits = ops::autocast(products, || self.forward(&x))?;
            probabilities(&logits, samples, self.image_size, mode)
        };
        let mirrors = views.mirrors();
        if let [_] = mirrors {
            return answer(samples);
        }
        let mirrored = |sample: &Sample| {
            let &Sample { width, height, ref rgb } = sample;
            let (pixels, _) = rgb.as_chunks::<3>();
            let rgb = |m: &Mirror| m.of(pixels, width).into_flattened();
            mirrors.iter().map(|m| Sample { width, height, rgb: rgb(m) }).collect::<Vec<_>>()
        };
        let maps = answer(&samples.iter().flat_map(mirrored).collect::<Vec<_>>())?;
        Ok(maps.chunks_exact(mirrors.len()).map(|maps| mean(maps, mirrors)).collect())
    }
}

/// The mean of the maps of a sample's mirror images.
fn mean(maps: &[ProbMap], mirrors: &[Mirror]) -> ProbMap {
    let mut sums: Vec<u16> = maps[0].data.iter().map(|_| 0).collect();
    for (map, mirror) in maps.iter().zip(mirrors) {
        for (sum, p) in sums.iter_mut().zip(mirror.of(&map.data, map.width)) {
            *sum += u16::from(p);
        }
    }
    let n = mirrors.len() as u16;
    let data = sums.iter().map(|sum| ((sum + n / 2) / n) as u8).collect();
    ProbMap { data, ..maps[0] }
}

/// Normalises by SAM's mean and standard deviation and pads with zeros below and to the right:
/// samples whose longest side is the image size → `[N, 3, S, S]`.
pub fn preprocess(samples: &[Sample], size: usize, device: &Device) -> Result<Tensor> {
    for sample in samples {
        if sample.width > size || sample.height > size || sample.rgb.len() != 3 * sample.width * sample.height
        {
            return Err(Error::invalid(format!(
                "a {}x{} sample of {} bytes does not fit a network of {size} px",
                sample.width,
                sample.height,
                sample.rgb.len()
            )));
        }
    }
    Ok(if device.is_cpu() { normalise(samples, size)? } else { upload(samples, size, device)? })
}

/// [`preprocess`] on a CPU, in one pass.
fn normalise(samples: &[Sample], size: usize) -> candle_core::Result<Tensor> {
    let s = size;
    let mut data = vec![0f32; samples.len() * 3 * s * s];
    for (sample, out) in samples.iter().zip(data.chunks_exact_mut(3 * s * s)) {
        for (c, plane) in out.chunks_exact_mut(s * s).enumerate() {
            let (scale, shift) = (1.0 / PIXEL_STD[c], -PIXEL_MEAN[c] / PIXEL_STD[c]);
            for (row, line) in sample.rgb.chunks_exact(3 * sample.width).zip(plane.chunks_exact_mut(s)) {
                for (v, px) in line.iter_mut().zip(row.chunks_exact(3)) {
                    *v = f32::from(px[c]) * scale + shift;
                }
            }
        }
    }
    Tensor::from_vec(data, (samples.len(), 3, s, s), &Device::Cpu)
}

/// [`preprocess`] on a GPU: bytes go over, a quarter of what floats would be, and become floats there.
fn upload(samples: &[Sample], size: usize, device: &Device) -> candle_core::Result<Tensor> {
    let images = samples.iter().map(|sample| {
        normalise_bytes(&Tensor::from_slice(&sample.rgb, (sample.height, sample.width, 3), device)?, size)
    });
    Tensor::cat(&images.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// [`preprocess`] of one picture's bytes `[H, W, 3]`, where they are.
fn normalise_bytes(rgb: &Tensor, size: usize) -> candle_core::Result<Tensor> {
    let shift = std::array::from_fn(|c| -PIXEL_MEAN[c] / PIXEL_STD[c]);
    ops::normalised(rgb, size, PIXEL_STD.map(|std| 1.0 / std), shift)
}

/// Probability maps of the samples that gave `logits [N, 1, 4g, 4g]`: enlarged to the network's `size`
/// (bilinear) and cropped to each sample.
pub fn probabilities(
    logits: &Tensor,
    samples: &[Sample],
    size: usize,
    mode: MaskMode,
) -> Result<Vec<ProbMap>> {
    let all = probability_bytes(logits, size, mode)?.flatten_all()?.to_vec1::<u8>()?;
    Ok(samples
        .iter()
        .zip(all.chunks_exact(size * size))
        .map(|(sample, p)| cropped(p, size, sample))
        .collect())
}

/// Probabilities of `logits [N, 1, 4g, 4g]`, `[N, 1, size, size]`, 255 for 1. Rounded to bytes where they are: what comes over from a
/// GPU is a quarter of the floats.
fn probability_bytes(logits: &Tensor, size: usize, mode: MaskMode) -> candle_core::Result<Tensor> {
    match mode {
        MaskMode::Sigmoid => ops::probability_bytes(logits, size),
        MaskMode::MinMax => {
            let p = ops::resize_bilinear(&min_max(logits)?, size, size, false)?;
            p.affine(255.0, 0.5)?.to_dtype(DType::U8)
        }
    }
}

/// The part of a map `p`, `size` pixels a side, that belongs to `sample`.
fn cropped(p: &[u8], size: usize, sample: &Sample) -> ProbMap {
    let mut data = Vec::with_capacity(sample.width * sample.height);
    for row in p.chunks_exact(size).take(sample.height) {
        data.extend_from_slice(&row[..sample.width]);
    }
    ProbMap { width: sample.width, height: sample.height, data }
}

/// An [`AutoSam`] as the engine sees it.
struct AutoSamSegmenter {
    model: Arc<AutoSam>,
    mask_mode: MaskMode,
    views: Views,
    /// See [`Precision::on`].
    products: Option<DType>,
    #[cfg(feature = "cuda")]
    recorder: graph::Recorder,
}

impl AutoSamSegmenter {
    fn new(model: Arc<AutoSam>, options: &ModelOptions, products: Option<DType>) -> Self {
        Self {
            model,
            mask_mode: options.mask_mode,
            views: options.views,
            products,
            #[cfg(feature = "cuda")]
            recorder: graph::Recorder::default(),
        }
    }

    /// On a GPU, on this thread alone: one view is recorded and replayed.
    fn on_a_gpu(&mut self, sample: &Sample) -> Result<Vec<ProbMap>> {
        /// A GPU's stream takes one inference at a time: one that is being recorded would take in another's.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let model = self.model.clone();
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), Views::One) = (&model.device, self.views) {
            let (size, products, mode) = (model.image_size, self.products, self.mask_mode);
            let compute = |rgb: &Tensor| -> Result<Tensor> {
                let x = normalise_bytes(rgb, size)?;
                Ok(probability_bytes(&ops::autocast(products, || model.forward(&x))?, size, mode)?)
            };
            let read = |map: &[u8]| vec![cropped(map, size, sample)];
            return self.recorder.run(device, &sample.rgb, (sample.width, sample.height), compute, read);
        }
        model.maps(std::slice::from_ref(sample), self.mask_mode, self.views, self.products)
    }
}

impl Segmenter for AutoSamSegmenter {
    fn input_size(&self) -> usize {
        self.model.image_size()
    }

    fn spares_the_cpu(&self) -> bool {
        !self.model.device.is_cpu()
    }

    fn segment(&mut self, sample: &Sample, out: &mut ProbMap) -> Result<()> {
        let maps = if self.model.device.is_cpu() {
            let samples = std::slice::from_ref(sample);
            // Inside the pool: from outside, every kernel would be handed over and waited for.
            rayon::scope(|_| self.model.maps(samples, self.mask_mode, self.views, self.products))?
        } else {
            self.on_a_gpu(sample)?
        };
        if let Some(map) = maps.into_iter().next_back() {
            *out = map;
        }
        Ok(())
    }
}

/// The checkpoint at `location`, or the shipped one where there is none.
pub fn checkpoint(location: Option<&Path>) -> Result<Checkpoint> {
    match location {
        Some(path) => weights::load(path),
        None => weights::load_bytes(Path::new("shipped autosam-tiny"), SHIPPED),
    }
}

/// A SAM as published and the generator that `train` makes, weights drawn at random: it knows nothing, and takes as long as one that
/// does.
///
/// # Errors
/// For a name that is none of `vit_h`, `vit_l`, `vit_b` and `mobile_sam`.
pub fn untrained(sam: &str) -> Result<Checkpoint> {
    let sam = match sam {
        "vit_h" => SamConfig::vit_h(),
        "vit_l" => SamConfig::vit_l(),
        "vit_b" => SamConfig::vit_b(),
        "mobile_sam" => SamConfig::mobile_sam(),
        other => {
            return Err(Error::invalid(format!("{other:?} is none of vit_h, vit_l, vit_b, mobile_sam")));
        }
    };
    let generator = GeneratorConfig::tiny(TrainConfig::default().generator_input, sam.embed_channels);
    // No mask at all: one of noise, in a thousand pieces, would take longer to draw than any.
    let calibration = Calibration { scale: 0.0, bias: -8.0 };
    let config = ModelConfig { sam, generator, calibration };
    let tensors = initialise(&config.parameter_shapes()?, 0)?;
    let path = PathBuf::from("untrained weights");
    let mut checkpoint = Checkpoint { path, tensors, metadata: HashMap::new() };
    config.note(&mut checkpoint)?;
    Ok(checkpoint)
}

/// What an open model was made of. A file that was replaced since is another.
#[derive(Debug, PartialEq)]
struct Origin {
    file: Option<(PathBuf, SystemTime, u64)>,
    device: DeviceLocation,
    products: Option<DType>,
}

impl Origin {
    fn of(location: Option<&Path>, device: &Device, products: Option<DType>) -> Result<Self> {
        let file = location.map(|path| {
            let whole = path.canonicalize()?;
            let data = whole.metadata()?;
            Ok((whole, data.modified()?, data.len()))
        });
        let file = file.transpose().map_err(|e| Error::io(location.unwrap_or(Path::new("")), e))?;
        Ok(Self { file, device: device.location(), products })
    }
}

/// The model of `location` on `device`, prepared for `products`: one copy of its weights in the process, for as long as anybody uses it.
fn shared(location: Option<&Path>, device: &Device, products: Option<DType>) -> Result<Arc<AutoSam>> {
    static OPEN: Mutex<Vec<(Origin, Weak<AutoSam>)>> = Mutex::new(Vec::new());
    let origin = Origin::of(location, device, products)?;
    // Held while loading, so that two who want the same load it once. A panic in here leaves the list whole.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|(_, model)| model.strong_count() > 0);
    if let Some(model) = open.iter().find(|(o, _)| *o == origin).and_then(|(_, model)| model.upgrade()) {
        return Ok(model);
    }
    let model = Arc::new(AutoSam::prepared(&checkpoint(location)?, device, products)?);
    open.push((origin, Arc::downgrade(&model)));
    Ok(model)
}

/// Opens the weights at `location`, or the shipped model where there is none, ready for the engine. Whoever opens the same
/// on the same device shares its weights.
pub fn open(location: Option<&Path>, options: &ModelOptions) -> Result<Box<dyn Segmenter>> {
    let device = options.device.resolve()?;
    let products = options.precision.on(&device);
    let model = shared(location, &device, products)?;
    Ok(Box::new(AutoSamSegmenter::new(model, options, products)))
}

/// [`open`] of weights that are in memory, shared with nobody.
pub fn open_checkpoint(checkpoint: &Checkpoint, options: &ModelOptions) -> Result<Box<dyn Segmenter>> {
    let device = options.device.resolve()?;
    let products = options.precision.on(&device);
    let model = Arc::new(AutoSam::prepared(checkpoint, &device, products)?);
    Ok(Box::new(AutoSamSegmenter::new(model, options, products)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a GPU computes in 16 bits, through the same casts on a CPU: the mask is the same but for its edge.
    #[test]
    fn masks_in_16_bits_are_those_in_f32() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let side = model.image_size();
        let disc = |i: usize| ((i % side) as f32 - 140.0).hypot((i / side) as f32 - 120.0) < 50.0;
        let pixel = |i: usize| if disc(i) { [205, 110, 95] } else { [150 + (i % 13) as u8, 70, 60] };
        let sample = Sample { width: side, height: side, rgb: (0..side * side).flat_map(pixel).collect() };
        let x = model.preprocess(&[sample]).unwrap();
        let marked = |dtype| -> Vec<u8> {
            let logits = ops::autocast(dtype, || {
                model.decode(&model.embed(&x).unwrap(), &model.dense_prompt(&x, false).unwrap()).unwrap()
            });
            let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            logits.iter().map(|l| if *l > 0.0 { 255 } else { 0 }).collect()
        };
        let (full, half) = (marked(None), marked(Some(DType::F16)));
        let (count, dice) = (full.iter().filter(|v| **v > 0).count(), crate::eval::dice(&full, &half));
        assert!(count > 50 && dice >= 0.995, "{count} marked, Dice {dice}");
    }

    #[test]
    fn what_a_gpu_makes_of_bytes_is_what_the_cpu_makes() {
        let sample = |width: usize, height: usize| {
            let rgb = (0..3 * width * height).map(|i| (i * 7 % 256) as u8).collect();
            Sample { width, height, rgb }
        };
        let samples = [sample(16, 9), sample(5, 16), sample(16, 16)];
        let values = |t: Tensor| (t.dims().to_vec(), t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let there = values(upload(&samples, 16, &Device::Cpu).unwrap());
        assert_eq!(there, values(normalise(&samples, 16).unwrap()));
        assert_eq!(there.0, [3, 3, 16, 16]);
    }

    #[test]
    fn a_calibration_is_a_map_of_the_logits() {
        let mut checkpoint = checkpoint(None).unwrap();
        let side = ModelConfig::of(&checkpoint).unwrap().sam.image_size;
        let sample = Sample {
            width: side,
            height: side,
            rgb: (0..3 * side * side).map(|i| (i % 251) as u8).collect(),
        };
        let mut logits = |calibration| {
            let config = ModelConfig { calibration, ..ModelConfig::of(&checkpoint).unwrap() };
            config.note(&mut checkpoint).unwrap();
            let model = AutoSam::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
            let x = model.preprocess(std::slice::from_ref(&sample)).unwrap();
            model.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (plain, mapped) =
            (logits(Calibration::default()), logits(Calibration { scale: 0.5, bias: -2.0 }));
        assert!(plain.iter().zip(&mapped).all(|(a, b)| (0.5 * a - 2.0 - b).abs() < 1e-4));
        // As it was before there was any: no word of it in the file.
        logits(Calibration::default());
        assert!(!checkpoint.metadata[CONFIG_KEY].contains("calibration"));
    }

    #[test]
    fn views_answer_a_picture_as_its_mirror_image() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let (width, height) = (model.image_size(), model.image_size() - 60);
        let inside = |i: usize| ((i % width) as f32 - 90.0).hypot((i / width) as f32 - 80.0) < 45.0;
        let pixel = |i: usize| if inside(i) { [205, 110, 95] } else { [150 + (i % 13) as u8, 70, 60] };
        let pixels: Vec<[u8; 3]> = (0..width * height).map(pixel).collect();
        let across = Mirror { across: true, down: false };
        let map = |pixels: &[[u8; 3]], views| {
            let sample = Sample { width, height, rgb: pixels.as_flattened().to_vec() };
            model.maps(&[sample], MaskMode::Sigmoid, views, None).unwrap().remove(0).data
        };
        let turned = across.of(&pixels, width);
        for views in [Views::Two, Views::Four] {
            let (one, other) = (map(&pixels, views), across.of(&map(&turned, views), width));
            assert!(one.iter().any(|p| *p > 127), "{views:?}");
            assert!(one.iter().zip(&other).all(|(a, b)| a.abs_diff(*b) <= 1), "{views:?}");
        }
        assert_ne!(map(&pixels, Views::One), across.of(&map(&turned, Views::One), width));
        assert!("3".parse::<Views>().unwrap_err().to_string().contains("1, 2, 4"));
    }

    /// Eagerly and replayed as a graph, in f32 and in 16 bits.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_answers_as_the_cpu() {
        let _turn = ops::tests::gpu_turn();
        let side = ModelConfig::of(&checkpoint(None).unwrap()).unwrap().sam.image_size;
        let (width, height) = (side, side - 60);
        let sample = |centre: f32| {
            let inside = |i: usize| ((i % width) as f32 - centre).hypot((i / width) as f32 - 80.0) < 45.0;
            let pixel = |i: usize| if inside(i) { [205, 110, 95] } else { [150 + (i % 13) as u8, 70, 60] };
            Sample { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
        };
        let answer = |device, precision, views, centres: &[f32]| -> Result<Vec<Vec<u8>>> {
            let options = ModelOptions { device, precision, views, ..ModelOptions::default() };
            let mut segmenter = open(None, &options)?;
            let mut map = ProbMap::default();
            let mut of =
                |centre: &f32| segmenter.segment(&sample(*centre), &mut map).map(|()| map.data.clone());
            centres.iter().map(&mut of).collect()
        };
        let recorded = |precision| {
            let options =
                ModelOptions { device: DeviceChoice::Cuda(0), precision, ..ModelOptions::default() };
            let device = options.device.resolve().unwrap();
            let products = precision.on(&device);
            let model = AutoSam::prepared(&checkpoint(None).unwrap(), &device, products).unwrap();
            let mut segmenter = AutoSamSegmenter::new(Arc::new(model), &options, products);
            (0..4).for_each(|_| segmenter.segment(&sample(90.0), &mut ProbMap::default()).unwrap());
            segmenter.recorder.replays()
        };
        let centres = [90.0, 120.0, 150.0, 180.0, 90.0];
        for views in [Views::One, Views::Two] {
            let expected = answer(DeviceChoice::Cpu, Precision::F32, views, &centres).unwrap();
            for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
                let found = match answer(DeviceChoice::Cuda(0), precision, views, &centres) {
                    Ok(found) => found,
                    Err(e) => return eprintln!("SKIPPED: {e}"),
                };
                for (a, b) in found.iter().zip(&expected) {
                    let (mut both, mut sum) = (0, 0);
                    for (a, b) in a.iter().zip(b) {
                        both += usize::from(*a > 127 && *b > 127);
                        sum += usize::from(*a > 127) + usize::from(*b > 127);
                        assert!(precision != Precision::F32 || a.abs_diff(*b) <= 2, "{views:?}: {a}, {b}");
                    }
                    let dice = 2.0 * both as f64 / sum as f64;
                    assert!(sum > 1000 && dice >= 0.995, "{precision:?}, {views:?}: Dice {dice:.4}");
                }
                assert_eq!(found[0], found[4], "{precision:?}: eager and replayed");
                assert!(views != Views::One || recorded(precision), "{precision:?}: not recorded");
            }
        }
    }

    #[test]
    fn a_cpu_computes_in_f32() {
        assert_eq!(Precision::Bf16.on(&Device::Cpu), None);
    }

    #[test]
    fn the_same_weights_are_in_memory_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, SHIPPED).unwrap();
        let copy = dir.path().join("copy.safetensors");
        std::fs::write(&copy, SHIPPED).unwrap();
        let open = |path: &Path| shared(Some(path), &Device::Cpu, None).unwrap();
        let (first, second, other) = (open(&path), open(&path), open(&copy));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        // Nobody holds what nobody uses, and a file that has changed is opened anew.
        let gone = Arc::downgrade(&other);
        drop(other);
        assert!(gone.upgrade().is_none());
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(!Arc::ptr_eq(&first, &open(&path)));
        let text = shared(Some(&dir.path().join("nowhere")), &Device::Cpu, None).unwrap_err().to_string();
        assert!(text.contains("nowhere"), "{text}");
    }
}
