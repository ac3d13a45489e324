//! AutoSAM (arXiv 2306.06370): a frozen SAM whose dense prompt a small network makes. Frame in, logits and
//! mask out; the same code for live video, files, training and evaluation.

mod arithmetic;
pub mod backbone;
mod config;
pub mod generator;
#[cfg(feature = "cuda")]
mod graph;
mod object;
mod open;
mod pixels;
mod replay;
pub mod sam;
#[cfg(feature = "cuda")]
mod side;
pub mod weights;

pub use arithmetic::{Arithmetic, Trunk};
pub use autosam_frame::{Error, Result};
pub use autosam_ops::device::{DeviceChoice, Precision};
pub use config::{
    CONFIG_KEY, Calibration, ModelConfig, Presence, Quantisation, SAM_CONFIG_KEY, complete, resize,
    sam_config,
};
pub use open::{open, open_checkpoint};
pub use pixels::{preprocess, probabilities};

use crate::generator::{Generated, Generator};
use crate::sam::{Prompts, Sam};
use crate::weights::Checkpoint;
use autosam_frame::map::{Mirror, ModelInput, ProbMap};
use autosam_frame::resize::InputSize;
use autosam_ops as ops;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::str::FromStr;

/// The model that every default finds: AutoSAM at small scale, trained by this project (see its card in
/// `models/`). Its weights are not Meta's.
pub const SHIPPED: &[u8] = include_bytes!("../../../models/autosam-lite.safetensors");

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
            _ => Err(Error::invalid(format!("invalid views {text:?}: expected 1, 2 or 4"))),
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

/// The joined model.
#[derive(Debug)]
pub struct AutoSam {
    sam: Sam,
    generator: Generator,
    /// SAM's dense positional encoding, `[1, C, g, g]`: the same for every frame.
    dense_pe: Tensor,
    input: InputSize,
    calibration: Calibration,
    presence: Option<Presence>,
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
        Ok(Self {
            sam,
            generator,
            dense_pe,
            input: config.sam.input_size(),
            calibration: config.calibration,
            presence: config.presence,
            device,
            #[cfg(feature = "cuda")]
            side: None,
        })
    }

    /// Builds the model from a checked weight file, for inference: batch norms are folded into convolutions.
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        Self::prepared(&ModelConfig::of(checkpoint)?, checkpoint, device, None)
    }

    /// [`Self::from_checkpoint`] of a file with configuration `config`, its weights in the type of the products they are for
    /// ([`ops::autocast`]).
    fn prepared(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        device: &Device,
        products: Option<DType>,
    ) -> Result<Self> {
        checkpoint.check(&config.parameter_shapes()?)?;
        checkpoint.check_finite()?;
        let vb = VarBuilder::from_tensors(checkpoint.tensors.clone(), DType::F32, device);
        let mut model = Self::load(config, vb)?;
        #[cfg(feature = "cuda")]
        if let Some(side) = side::Side::of(device)? {
            let vb = VarBuilder::from_tensors(checkpoint.tensors.clone(), DType::F32, side.device());
            model.generator = Generator::load(&config.generator, vb.pp("generator"))?;
            model.side = Some(side);
        }
        ops::autocast(products, || model.sam.fold().and_then(|()| model.generator.fold()))?;
        Ok(model)
    }

    /// Prepares SAM's image encoder, which stays frozen below a generator that is trained.
    pub fn freeze_encoder(&mut self) -> Result<()> {
        Ok(self.sam.fold_encoder()?)
    }

    pub fn sam(&self) -> &Sam {
        &self.sam
    }

    /// Side of SAM's square input in pixels.
    pub fn image_size(&self) -> usize {
        self.input.side
    }

    /// Size of its input, and how frames are laid into it.
    pub fn input_size(&self) -> InputSize {
        self.input
    }

    /// [`preprocess`] on this model's device.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn preprocess(&self, samples: &[ModelInput]) -> Result<Tensor> {
        preprocess(samples, self.input.side, &self.device)
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
        Ok(self
            .generator
            .forward(&self.for_generator(x)?, self.dense_pe.dim(2)?, train)?
            .to_dtype(DType::F32)?)
    }

    /// Preprocessed images at the generator's size.
    fn for_generator(&self, x: &Tensor) -> Result<Tensor> {
        let side = self.generator.input_size();
        Ok(if side == self.input.side { x.clone() } else { ops::resize_bilinear(x, side, side, true)? })
    }

    /// [`Generator::generate`] for preprocessed images, `[N, 3, S, S]`: a training step's dense prompt.
    pub fn generate(&self, x: &Tensor) -> Result<Generated> {
        Ok(self.generator.generate(&self.for_generator(x)?, self.dense_pe.dim(2)?)?)
    }

    /// SAM's mask for embeddings and dense prompts, with no sparse prompt: the first mask token's logits, calibrated, lowered
    /// if there is little to be seen ([`Presence`]),
    /// `[N, 1, 4g, 4g]`.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn decode(&self, embeddings: &Tensor, dense_prompt: &Tensor) -> Result<Tensor> {
        let n = embeddings.dim(0)?;
        let (sparse, _) = self.sam.prompt_encoder.forward(&Prompts::default(), n)?;
        let (decoder, pe) = (&self.sam.mask_decoder, &self.dense_pe);
        let (logits, overlaps) = match self.presence {
            Some(_) => {
                let (logits, overlaps) = decoder.mask_and_overlaps(embeddings, pe, &sparse, dense_prompt)?;
                (logits, Some(overlaps))
            }
            None => (decoder.mask_logits(embeddings, pe, &sparse, dense_prompt)?, None),
        };
        let logits = logits.to_dtype(DType::F32)?;
        let Calibration { scale, bias } = self.calibration;
        let logits = if self.calibration.is_none() {
            logits
        } else {
            ops::affine(&logits, scale.into(), bias.into())?
        };
        Ok(match (self.presence, overlaps) {
            (Some(Presence { least, slope }), Some(overlaps)) => {
                ops::gate(&logits, &overlaps.to_dtype(DType::F32)?, least, slope)?
            }
            _ => logits,
        })
    }

    /// [`Self::decode`], not calibrated, and what SAM's IoU head says of the masks, `[N, 1]`.
    pub fn decode_with_overlap(
        &self,
        embeddings: &Tensor,
        dense_prompt: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (sparse, _) = self.sam.prompt_encoder.forward(&Prompts::default(), embeddings.dim(0)?)?;
        let decoder = &self.sam.mask_decoder;
        let (logits, overlap) = decoder.forward(embeddings, &self.dense_pe, &sparse, dense_prompt, false)?;
        Ok((logits.to_dtype(DType::F32)?, overlap.to_dtype(DType::F32)?))
    }

    /// Low-resolution logits `[N, 1, 4g, 4g]` of preprocessed images `[N, 3, S, S]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (embeddings, prompt) = self.embed_and_prompt(x)?;
        self.decode(&embeddings, &prompt)
    }

    /// [`Self::embed`] and [`Self::dense_prompt`] of preprocessed images, side by side.
    fn embed_and_prompt(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        #[cfg(feature = "cuda")]
        if let Some(side) = &self.side {
            let prompt = side.begin(x, |x| self.prompt(x, false))?;
            let embeddings = self.embed(x)?;
            return Ok((embeddings, prompt.join()?));
        }
        // On a CPU side by side: where one has nothing for a second thread, the other has.
        let (embeddings, prompt) = if x.device().is_cpu() {
            ops::join(|| self.embed(x), || self.dense_prompt(x, false))
        } else {
            (self.embed(x), self.dense_prompt(x, false))
        };
        Ok((embeddings?, prompt?))
    }

    /// [`Self::preprocess`] of each sample's mirror images, one after the other.
    fn preprocess_mirrored(&self, samples: &[ModelInput], mirrors: &[Mirror]) -> Result<Tensor> {
        let mirrored = |sample: &ModelInput| {
            let &ModelInput { width, height, ref rgb } = sample;
            let (pixels, _) = rgb.as_chunks::<3>();
            let rgb = |m: &Mirror| m.of(pixels, width).into_flattened();
            mirrors.iter().map(|m| ModelInput { width, height, rgb: rgb(m) }).collect::<Vec<_>>()
        };
        match mirrors {
            [_] => self.preprocess(samples),
            _ => self.preprocess(&samples.iter().flat_map(mirrored).collect::<Vec<_>>()),
        }
    }

    /// Probability maps of `samples`, each the mean over its `views`; the network's products in `products` ([`ops::autocast`]).
    pub fn maps(
        &self,
        samples: &[ModelInput],
        mode: MaskMode,
        views: Views,
        products: Option<DType>,
    ) -> Result<Vec<ProbMap>> {
        let mirrors = views.mirrors();
        let x = self.preprocess_mirrored(samples, mirrors)?;
        let logits = ops::autocast(products, || self.forward(&x))?;
        pixels::mean_probabilities(&logits, samples, self.input.side, mode, mirrors)
    }
}

/// The checkpoint at `location`, or the shipped one where there is none.
pub fn checkpoint(location: Option<&Path>) -> Result<Checkpoint> {
    match location {
        Some(path) => weights::load(path),
        None => weights::load_bytes(Path::new("shipped autosam-lite"), SHIPPED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shaded ball on darker mucosa, which the shipped model takes for a polyp: its middle and its radius in pixels.
    pub(crate) fn lesion(width: usize, height: usize, [cx, cy, radius]: [f32; 3]) -> ModelInput {
        let pixel = |i: usize| {
            let (dx, dy) = ((i % width) as f32 - cx, (i / width) as f32 - cy);
            let far = dx.hypot(dy) / radius;
            if (dx + 0.3 * radius).hypot(dy + 0.3 * radius) < 0.1 * radius {
                [250; 3]
            } else if far < 1.0 {
                let light = 0.65 + 0.6 * (1.0 - far * far).sqrt();
                [215.0, 120.0, 100.0].map(|v: f32| (v * light).min(255.0) as u8)
            } else {
                let span = width as f32;
                let rim = 1.0 - 0.35 * (-((far - 1.1) / 0.15).powi(2)).exp();
                let light = rim * (0.75 + 0.25 * (2.0 * dx / span).cos() * (2.0 * dy / span).cos());
                [150.0, 70.0, 60.0].map(|v: f32| (v * light) as u8)
            }
        };
        ModelInput { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
    }

    /// What a GPU computes in 16 bits, through the same casts on a CPU: the mask is the same but for its edge.
    #[test]
    fn masks_in_16_bits_are_those_in_f32() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let side = model.image_size();
        let x = model.preprocess(&[lesion(side, side, [140.0, 120.0, 50.0])]).unwrap();
        let marked = |dtype| -> Vec<u8> {
            let logits = ops::autocast(dtype, || {
                model.decode(&model.embed(&x).unwrap(), &model.dense_prompt(&x, false).unwrap()).unwrap()
            });
            let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            logits.iter().map(|l| if *l > 0.0 { 255 } else { 0 }).collect()
        };
        let full = marked(None);
        let count = full.iter().filter(|v| **v > 0).count();
        for dtype in [DType::F16, DType::BF16] {
            let marked = marked(Some(dtype));
            let both = full.iter().zip(&marked).filter(|(a, b)| **a > 0 && **b > 0).count();
            let dice = 2.0 * both as f64 / (count + marked.iter().filter(|v| **v > 0).count()) as f64;
            assert!(count > 50 && dice >= 0.995, "{dtype:?}: {count} marked, Dice {dice}");
        }
    }

    #[test]
    fn a_calibration_is_a_map_of_the_logits() {
        let mut checkpoint = checkpoint(None).unwrap();
        let side = ModelConfig::of(&checkpoint).unwrap().sam.image_size;
        let sample = ModelInput {
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
    fn flips_give_the_same_mask_as_the_image_flipped() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let (width, height) = (model.image_size(), model.image_size() - 60);
        let rgb = lesion(width, height, [90.0, 80.0, 45.0]).rgb;
        let pixels = rgb.as_chunks::<3>().0.to_vec();
        let across = Mirror { across: true, down: false };
        let map = |pixels: &[[u8; 3]], views| {
            let sample = ModelInput { width, height, rgb: pixels.as_flattened().to_vec() };
            model.maps(&[sample], MaskMode::Sigmoid, views, None).unwrap().remove(0).data
        };
        let turned = across.of(&pixels, width);
        for views in [Views::Two, Views::Four] {
            let (one, other) = (map(&pixels, views), across.of(&map(&turned, views), width));
            assert!(one.iter().any(|p| *p > 127), "{views:?}");
            assert!(one.iter().zip(&other).all(|(a, b)| a.abs_diff(*b) <= 1), "{views:?}");
        }
        assert_ne!(map(&pixels, Views::One), across.of(&map(&turned, Views::One), width));
        assert!("3".parse::<Views>().unwrap_err().to_string().contains("1, 2 or 4"));
    }

    #[test]
    fn a_cpu_computes_in_f32() {
        assert_eq!(Precision::Bf16.on(&Device::Cpu), None);
    }
}
