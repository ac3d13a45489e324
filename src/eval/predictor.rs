//! A model's answer to one labelled frame, in each of the paper's ways (arXiv 2306.06370, its ablations).

use super::measure::resized;
use super::metrics::nearest;
use crate::data::Pair;
use crate::engine::mask::{Mask, MaskSettings};
use crate::engine::segmenter::{ProbMap, Sample};
use crate::frame::Frame;
use crate::frame::region::Region;
use crate::frame::sample::Sampler;
use crate::generator::LightweightDecoder;
use crate::model::{self, AutoSam, MaskMode, ModelConfig, Views};
use crate::sam::Prompts;
use crate::weights;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use std::path::Path;

/// What prompts SAM, or stands in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The generator's dense prompt: the method.
    #[default]
    AutoSam,
    /// The lightweight decoder on the generator's prompt; no SAM.
    Lightweight,
    /// One point of the truth, the one deepest inside.
    GtPoint,
    /// The truth as SAM's mask prompt.
    GtMask,
    /// AutoSAM's own mask as SAM's mask prompt.
    AutoSamAsMaskPrompt,
}

/// The metadata key of a file that holds a lightweight decoder; its value is the number of the prompt's channels.
pub const LIGHTWEIGHT_KEY: &str = "autosam.lightweight";

/// Logits of a mask prompt made of a binary mask, as training simulates them (`train::prompts`).
const CERTAIN: f32 = 6.0;

/// How a frame is answered.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Way {
    pub mode: Mode,
    pub mask_mode: MaskMode,
    /// What of each frame the model sees.
    pub region: Region,
    /// See [`MaskSettings::hysteresis`]; 0 leaves maps as they are.
    pub hysteresis: f32,
    /// Of [`Mode::AutoSam`].
    pub views: Views,
}

pub struct Predictor {
    model: AutoSam,
    lightweight: Option<LightweightDecoder>,
    way: Way,
    device: Device,
    sampler: Sampler,
    sample: Sample,
}

impl Predictor {
    /// Opens the model at `location` (the shipped one where there is none); [`Mode::Lightweight`] needs the decoder that
    /// `train --stage lightweight` made for it.
    pub fn open(
        location: Option<&Path>,
        lightweight: Option<&Path>,
        way: Way,
        device: &Device,
    ) -> Result<Self> {
        let file = model::checkpoint(location)?;
        let config = ModelConfig::of(&file)?;
        let lightweight = match (way.mode, lightweight) {
            (Mode::Lightweight, None) => {
                return Err(Error::invalid(
                    "mode lightweight needs the decoder's weights: train them with `train --stage lightweight --sam MODEL`, then give --lightweight FILE",
                ));
            }
            (Mode::Lightweight, Some(path)) => {
                Some(load_lightweight(path, config.sam.embed_channels, device)?)
            }
            _ => None,
        };
        let model = AutoSam::from_checkpoint(&file, device)?;
        let sampler = Sampler::new(model.image_size());
        Ok(Self { model, lightweight, way, device: device.clone(), sampler, sample: Sample::default() })
    }

    /// The map of a labelled frame, of the whole of it whatever part the model sees.
    pub fn answer(&mut self, pair: &Pair) -> Result<ProbMap> {
        let frame = Frame::rgb_image(&pair.rgb);
        let area = self.way.region.of(&frame)?;
        self.sampler.sample(&frame.crop(area), &mut self.sample)?;
        let truth = resized(&pair.part(area).mask, self.sample.width, self.sample.height);
        let map = self.predict(&self.sample, &truth)?;
        let map =
            Mask::new(map, &MaskSettings { hysteresis: self.way.hysteresis, ..MaskSettings::default() }).map;
        Ok(map.embedded(area, frame.info.width, frame.info.height))
    }

    /// The map of `sample`. `truth` (the sample's size, 255 polyp) is looked at by the modes that are prompted with it;
    /// where it is empty they have nothing to point at, and nothing is marked.
    fn predict(&self, sample: &Sample, truth: &[u8]) -> Result<ProbMap> {
        let samples = std::slice::from_ref(sample);
        let size = self.model.image_size();
        let x = self.model.preprocess(samples)?;
        let empty = truth.iter().all(|t| *t <= 127);
        let logits = match self.way.mode {
            Mode::AutoSam => {
                let mut maps = self.model.maps(samples, self.way.mask_mode, self.way.views, None)?;
                return Ok(maps.pop().unwrap_or_default());
            }
            Mode::Lightweight => match &self.lightweight {
                Some(decoder) => decoder.forward(&self.model.dense_prompt(&x, false)?)?,
                None => return Err(Error::invalid("mode lightweight needs its decoder")),
            },
            Mode::GtPoint | Mode::GtMask if empty => {
                return Ok(ProbMap {
                    width: sample.width,
                    height: sample.height,
                    data: vec![0; sample.width * sample.height],
                });
            }
            Mode::GtPoint => {
                let (px, py) = deepest(truth, sample.width, sample.height);
                let point = Tensor::new(&[[[px as f32, py as f32]]], &self.device)?;
                let points = Some((point, Tensor::new(&[[1f32]], &self.device)?));
                self.prompted(&x, &Prompts { points, ..Prompts::default() })?
            }
            Mode::GtMask => {
                let low = 4 * self.model.embed(&x)?.dim(2)?;
                let at = |v: usize| v * size / low + size / low / 2;
                let logit = |i: usize| {
                    let (x, y) = (at(i % low), at(i / low));
                    let inside = x < sample.width && y < sample.height && truth[y * sample.width + x] > 127;
                    if inside { CERTAIN } else { -CERTAIN }
                };
                let values: Vec<f32> = (0..low * low).map(logit).collect();
                let masks = Some(Tensor::from_vec(values, (1, 1, low, low), &self.device)?);
                self.prompted(&x, &Prompts { masks, ..Prompts::default() })?
            }
            Mode::AutoSamAsMaskPrompt => {
                let masks = Some(self.model.forward(&x)?);
                self.prompted(&x, &Prompts { masks, ..Prompts::default() })?
            }
        };
        let mut maps = model::probabilities(&logits, samples, size, self.way.mask_mode)?;
        Ok(maps.pop().unwrap_or_default())
    }

    /// SAM's answer to `prompts`, without the generator.
    fn prompted(&self, x: &Tensor, prompts: &Prompts) -> Result<Tensor> {
        let sam = self.model.sam();
        let (sparse, dense) = sam.prompt_encoder.forward(prompts, 1)?;
        let pe = sam.prompt_encoder.dense_pe()?;
        Ok(sam.mask_decoder.mask_logits(&self.model.embed(x)?, &pe, &sparse, &dense)?)
    }
}

/// The decoder that `train --stage lightweight` wrote, for prompts of `channels`.
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

/// The pixel of `mask` that is furthest from what is not mask (the picture's border counts as that), as (x, y).
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

#[cfg(test)]
mod tests {
    use super::deepest;

    #[test]
    fn the_deepest_point_is_the_middle_of_the_largest_part() {
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
