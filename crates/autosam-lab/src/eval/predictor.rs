//! Predictions for labelled frames, in each mode of the paper's ablations (arXiv 2306.06370).

use super::metrics::nearest;
use crate::data::Pair;
use crate::{Error, Result};
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::mask::{Mask, MaskSettings};
use autosam_frame::region::CropMode;
use autosam_frame::resize::Resizer;
use autosam_frame::{Frame, Rect};
use autosam_model::generator::LightweightDecoder;
use autosam_model::sam::{Prompts, SamConfig};
use autosam_model::weights;
use autosam_model::{
    self as model, AutoSam, Flips, MaskMode, ModelConfig, Network, Precision, Predictor, PredictorOptions,
    PromptSource, Prompted,
};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::GrayImage;
use image::imageops::{self, FilterType};
use rand::{Rng, SeedableRng};
use std::path::Path;

/// Source of SAM's prompt, or replacement of SAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The generator's dense prompt, as in AutoSAM.
    #[default]
    AutoSam,
    /// The lightweight decoder on the generator's prompt, without SAM.
    Lightweight,
    /// The point deepest inside the truth.
    GtPoint,
    /// The truth as SAM's mask prompt.
    GtMask,
    /// The truth's box.
    GtBox,
    /// AutoSAM's own mask as SAM's mask prompt.
    AutoSamAsMaskPrompt,
    /// No prompt: the frozen SAM without the generator.
    NoPrompt,
    /// A dense prompt of random numbers in (-1, 1), the same for every frame.
    RandomPrompt,
}

/// The metadata key of a lightweight decoder's file; its value is the number of prompt channels.
pub const LIGHTWEIGHT_KEY: &str = "autosam.lightweight";

/// Absolute logit of a mask prompt from a binary mask, as in training (`train::prompts`).
const CERTAIN: f32 = 6.0;

/// Options of evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvalOptions {
    pub mode: Mode,
    pub mask_mode: MaskMode,
    /// The part of each frame that the model sees.
    pub roi: CropMode,
    /// See [`MaskSettings::hysteresis`]; 0 leaves maps unchanged.
    pub hysteresis: f32,
    /// For [`Mode::AutoSam`].
    pub flips: Flips,
    pub precision: Precision,
}

/// A model that predicts masks of labelled frames.
pub struct LabelledPredictor {
    predictor: Predictor<Prompted>,
    options: EvalOptions,
    resizer: Resizer,
    sample: ModelInput,
}

impl LabelledPredictor {
    /// Opens the model at `location`, or the shipped one for `None`. [`Mode::Lightweight`] needs the decoder that
    /// `train --stage lightweight` trained for it.
    ///
    /// # Errors
    /// If weights are unusable, or the mode's decoder is missing.
    pub fn open(
        location: Option<&Path>,
        lightweight: Option<&Path>,
        options: EvalOptions,
        device: &Device,
    ) -> Result<Self> {
        let file = model::checkpoint(location)?;
        let config = ModelConfig::of(&file)?;
        let source = match (options.mode, lightweight) {
            (Mode::Lightweight, None) => {
                return Err(Error::invalid(
                    "mode lightweight needs the decoder's weights: train them with `train --stage lightweight --sam MODEL` and pass --lightweight FILE",
                ));
            }
            (Mode::Lightweight, Some(path)) => {
                PromptSource::Lightweight(load_lightweight(path, config.sam.embed_channels, device)?)
            }
            (Mode::RandomPrompt, _) => PromptSource::Dense(random_prompt(&config.sam, device)?),
            (Mode::AutoSamAsMaskPrompt, _) => PromptSource::OwnMask,
            // The prompt from the truth is set for each frame.
            (Mode::NoPrompt | Mode::GtPoint | Mode::GtBox | Mode::GtMask, _) => {
                PromptSource::Given(Prompts::default())
            }
            (Mode::AutoSam, _) => PromptSource::Generated,
        };
        let (model, arithmetic) = AutoSam::with_precision(&file, device, options.precision)?;
        let resizer = Resizer::new(model.input_size());
        let plain = PredictorOptions { mask_mode: options.mask_mode, ..PredictorOptions::default() };
        let how = match options.mode {
            Mode::AutoSam => {
                PredictorOptions { flips: options.flips, products: arithmetic.products, ..plain }
            }
            _ => plain,
        };
        let predictor = Predictor::new(Prompted { model, source }, how);
        Ok(Self { predictor, options, resizer, sample: ModelInput::default() })
    }

    /// The map of a whole labelled frame, whatever part the model sees, without regions that fail the hysteresis
    /// threshold.
    pub fn answer(&mut self, pair: &Pair) -> Result<ProbMap> {
        let map = self.raw(pair)?;
        Ok(self.settled(map))
    }

    /// A map of [`Self::raw`] without regions that fail the hysteresis threshold ([`EvalOptions::hysteresis`]).
    pub fn settled(&self, map: ProbMap) -> ProbMap {
        Mask::new(map, &MaskSettings { hysteresis: self.options.hysteresis, ..MaskSettings::default() }).map
    }

    /// The network's own map of a whole labelled frame.
    pub fn raw(&mut self, pair: &Pair) -> Result<ProbMap> {
        let frame = Frame::rgb_image(&pair.rgb);
        let area = self.options.roi.of(&frame)?;
        self.resizer.resize(&frame.crop(area), &mut self.sample)?;
        let truth = resized(&pair.part(area).mask, self.sample.width, self.sample.height);
        let map = self.predict(&truth)?;
        Ok(map.embedded(area, frame.info.width, frame.info.height))
    }

    /// The map of the current input. Modes that prompt with the truth use `truth` (the input's size, 255 polyp); if it
    /// is empty, their map is empty.
    fn predict(&mut self, truth: &[u8]) -> Result<ProbMap> {
        let (width, height) = (self.sample.width, self.sample.height);
        if matches!(self.options.mode, Mode::GtPoint | Mode::GtBox | Mode::GtMask) {
            if truth.iter().all(|t| *t <= 127) {
                return Ok(ProbMap { width, height, data: vec![0; width * height] });
            }
            let prompts = self.truth_as_prompt(truth)?;
            self.predictor.set_prompt(PromptSource::Given(prompts));
        }
        let mut maps = self.predictor.maps(std::slice::from_ref(&self.sample))?;
        Ok(maps.pop().unwrap_or_default())
    }

    /// Converts `truth`, which is not empty, to a point, box or mask prompt.
    fn truth_as_prompt(&self, truth: &[u8]) -> Result<Prompts> {
        let (width, height) = (self.sample.width, self.sample.height);
        let model = &self.predictor.network().model;
        let device = model.device();
        let none = Prompts::default();
        Ok(match self.options.mode {
            Mode::GtPoint => {
                let (x, y) = deepest(truth, width, height);
                let point = Tensor::new(&[[[x as f32, y as f32]]], device)?;
                Prompts { points: Some((point, Tensor::new(&[[1f32]], device)?)), ..none }
            }
            Mode::GtBox => match Rect::around(truth, width, 127) {
                Some(r) => {
                    let corners = [r.left, r.top, r.left + r.width - 1, r.top + r.height - 1];
                    let boxes = Tensor::new(&[corners.map(|v| v as f32)], device)?;
                    Prompts { boxes: Some(boxes), ..none }
                }
                None => none,
            },
            Mode::GtMask => {
                let (size, low) = (model.image_size(), model.mask_size());
                let at = |v: usize| v * size / low + size / low / 2;
                let logit = |i: usize| {
                    let (x, y) = (at(i % low), at(i / low));
                    let inside = x < width && y < height && truth[y * width + x] > 127;
                    if inside { CERTAIN } else { -CERTAIN }
                };
                let values: Vec<f32> = (0..low * low).map(logit).collect();
                Prompts { masks: Some(Tensor::from_vec(values, (1, 1, low, low), device)?), ..none }
            }
            _ => none,
        })
    }
}

/// A dense prompt of random numbers in (-1, 1), `[1, C, g, g]`.
fn random_prompt(sam: &SamConfig, device: &Device) -> Result<Tensor> {
    let shape = (1, sam.embed_channels, sam.grid(), sam.grid());
    let count = sam.embed_channels * sam.grid().pow(2);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let values = (0..count).map(|_| rng.random_range(-1.0..1.0f32)).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Loads the decoder written by `train --stage lightweight` for prompts of `channels`.
fn load_lightweight(path: &Path, channels: usize, device: &Device) -> Result<LightweightDecoder> {
    let file = weights::load(path)?;
    if !file.metadata.contains_key(LIGHTWEIGHT_KEY) {
        return Err(Error::weights(
            path,
            "no lightweight decoder; expected a file of `train --stage lightweight`",
        ));
    }
    file.check(&weights::recorder::shapes_of(|vb| LightweightDecoder::load(channels, vb))?)?;
    let vb = VarBuilder::from_tensors(file.tensors, DType::F32, device);
    Ok(LightweightDecoder::load(channels, vb)?)
}

/// The pixel (x, y) of `mask` that is furthest from the background and the image's border. Distances are Euclidean,
/// unlike in [`ProbMap::deepest`], so that results of [`Mode::GtPoint`] are comparable with other implementations.
fn deepest(mask: &[u8], width: usize, height: usize) -> (usize, usize) {
    let (w, h) = (width + 2, height + 2);
    let outside: Vec<bool> = (0..w * h)
        .map(|i| {
            let (x, y) = ((i % w).wrapping_sub(1), (i / w).wrapping_sub(1));
            x >= width || y >= height || mask[y * width + x] <= 127
        })
        .collect();
    let near = nearest(&outside, w, h);
    let depth = |i: usize| {
        let at = near[i] as usize;
        (at / w).abs_diff(i / w).pow(2) + (at % w).abs_diff(i % w).pow(2)
    };
    let best = (0..w * h).filter(|i| !outside[*i]).max_by_key(|i| depth(*i)).unwrap_or(w + 1);
    (best % w - 1, best / w - 1)
}

/// Resizes `mask` to `width × height` by nearest neighbour.
pub fn resized(mask: &GrayImage, width: usize, height: usize) -> Vec<u8> {
    imageops::resize(mask, width as u32, height as u32, FilterType::Nearest).into_raw()
}

#[cfg(test)]
mod tests {
    use super::deepest;

    #[test]
    fn the_deepest_point_is_in_the_middle_of_the_largest_component() {
        let mut mask = vec![0u8; 20 * 12];
        for y in 2..9 {
            for x in 3..10 {
                mask[y * 20 + x] = 255;
            }
        }
        mask[10 * 20 + 18] = 255;
        assert_eq!(deepest(&mask, 20, 12), (6, 5));
        assert_eq!(deepest(&[255; 9], 3, 3), (1, 1));
    }
}
