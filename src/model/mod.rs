//! AutoSAM (arXiv 2306.06370): a frozen SAM whose dense prompt a small network makes. Frame in, logits and
//! mask out; the same code for live video, files, training and evaluation.

mod config;
mod device;
#[cfg(feature = "cuda")]
mod graph;
mod open;
mod pixels;
mod replay;
#[cfg(feature = "cuda")]
mod side;

pub use config::{CONFIG_KEY, Calibration, ModelConfig, SAM_CONFIG_KEY, complete, resize, sam_config};
pub use device::{DeviceChoice, Precision};
pub use open::{open, open_checkpoint};
pub use pixels::{preprocess, probabilities};

use crate::engine::segmenter::{Mirror, ProbMap, Sample};
use crate::generator::{Generator, GeneratorConfig};
use crate::ops;
use crate::sam::{Prompts, Sam, SamConfig};
use crate::train::TrainConfig;
use crate::train::params::initialise;
use crate::weights::{self, Checkpoint};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The model that every default finds: AutoSAM at small scale, trained by this project (see its card in
/// `models/`). Its weights are not Meta's.
pub const SHIPPED: &[u8] = include_bytes!("../../models/autosam-tiny.safetensors");

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
        Ok(if self.calibration.is_none() { logits } else { ops::affine(&logits, scale.into(), bias.into())? })
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
            ops::join(|| self.embed(x), || self.dense_prompt(x, false))
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
        let mirrors = views.mirrors();
        let mirrored = |sample: &Sample| {
            let &Sample { width, height, ref rgb } = sample;
            let (pixels, _) = rgb.as_chunks::<3>();
            let rgb = |m: &Mirror| m.of(pixels, width).into_flattened();
            mirrors.iter().map(|m| Sample { width, height, rgb: rgb(m) }).collect::<Vec<_>>()
        };
        let x = match mirrors {
            [_] => self.preprocess(samples)?,
            _ => self.preprocess(&samples.iter().flat_map(mirrored).collect::<Vec<_>>())?,
        };
        let logits = ops::autocast(products, || self.forward(&x))?;
        pixels::mean_probabilities(&logits, samples, self.image_size, mode, mirrors)
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
        let full = marked(None);
        let count = full.iter().filter(|v| **v > 0).count();
        for dtype in [DType::F16, DType::BF16] {
            let dice = crate::eval::dice(&full, &marked(Some(dtype)));
            assert!(count > 50 && dice >= 0.995, "{dtype:?}: {count} marked, Dice {dice}");
        }
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

    #[test]
    fn a_cpu_computes_in_f32() {
        assert_eq!(Precision::Bf16.on(&Device::Cpu), None);
    }
}
