//! A model's answer to one labelled frame, in each of the paper's ways (arXiv 2306.06370, its ablations).

use super::metrics::nearest;
use crate::data::Pair;
use crate::{Error, Result};
use autosam_frame::Frame;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::mask::{Mask, MaskSettings};
use autosam_frame::region::Region;
use autosam_frame::resize::Resizer;
use autosam_model::generator::LightweightDecoder;
use autosam_model::sam::Prompts;
use autosam_model::weights;
use autosam_model::{self as model, Arithmetic, AutoSam, MaskMode, ModelConfig, Precision, Views};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::GrayImage;
use image::imageops::{self, FilterType};
use rand::{Rng, SeedableRng};
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
    /// The truth's box.
    GtBox,
    /// AutoSAM's own mask as SAM's mask prompt.
    AutoSamAsMaskPrompt,
    /// No prompt: what the frozen SAM knows without the generator.
    NoPrompt,
    /// A dense prompt of random numbers in (-1, 1), the same for every frame.
    RandomPrompt,
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
    pub precision: Precision,
}

pub struct Predictor {
    model: AutoSam,
    arithmetic: Arithmetic,
    lightweight: Option<LightweightDecoder>,
    way: Way,
    device: Device,
    sampler: Resizer,
    sample: ModelInput,
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
                    "mode lightweight needs the decoder's weights: train them with `train --stage lightweight --sam MODEL` and pass --lightweight FILE",
                ));
            }
            (Mode::Lightweight, Some(path)) => {
                Some(load_lightweight(path, config.sam.embed_channels, device)?)
            }
            _ => None,
        };
        let (model, arithmetic) = AutoSam::with_precision(&file, device, way.precision)?;
        let sampler = Resizer::new(model.input_size());
        let (device, sample) = (device.clone(), ModelInput::default());
        Ok(Self { model, arithmetic, lightweight, way, device, sampler, sample })
    }

    /// The map of a labelled frame, of the whole of it whatever part the model sees, without regions that are nowhere certain.
    pub fn answer(&mut self, pair: &Pair) -> Result<ProbMap> {
        let map = self.raw(pair)?;
        Ok(self.settled(map))
    }

    /// A map of [`Self::raw`] without regions that are nowhere certain ([`Way::hysteresis`]).
    pub fn settled(&self, map: ProbMap) -> ProbMap {
        Mask::new(map, &MaskSettings { hysteresis: self.way.hysteresis, ..MaskSettings::default() }).map
    }

    /// The network's own map of a labelled frame, of the whole of it.
    pub fn raw(&mut self, pair: &Pair) -> Result<ProbMap> {
        let frame = Frame::rgb_image(&pair.rgb);
        let area = self.way.region.of(&frame)?;
        self.sampler.resize(&frame.crop(area), &mut self.sample)?;
        let truth = resized(&pair.part(area).mask, self.sample.width, self.sample.height);
        let map = self.predict(&self.sample, &truth)?;
        Ok(map.embedded(area, frame.info.width, frame.info.height))
    }

    /// The map of `sample`. `truth` (the sample's size, 255 polyp) is looked at by the modes that are prompted with it;
    /// where it is empty they have nothing to point at, and nothing is marked.
    fn predict(&self, sample: &ModelInput, truth: &[u8]) -> Result<ProbMap> {
        let samples = std::slice::from_ref(sample);
        let size = self.model.image_size();
        let x = self.model.preprocess(samples)?;
        let empty = truth.iter().all(|t| *t <= 127);
        let logits = match self.way.mode {
            Mode::AutoSam => {
                let mut maps =
                    self.model.maps(samples, self.way.mask_mode, self.way.views, self.arithmetic.products)?;
                return Ok(maps.pop().unwrap_or_default());
            }
            Mode::Lightweight => match &self.lightweight {
                Some(decoder) => decoder.forward(&self.model.dense_prompt(&x, false)?)?,
                None => return Err(Error::invalid("mode lightweight needs its decoder")),
            },
            Mode::GtPoint | Mode::GtBox | Mode::GtMask if empty => {
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
            Mode::GtBox => {
                let inside = |v: &[u8]| v.iter().any(|t| *t > 127);
                let rows: Vec<usize> = truth
                    .chunks_exact(sample.width)
                    .enumerate()
                    .filter_map(|(y, row)| inside(row).then_some(y))
                    .collect();
                let column = |x: &usize| truth.iter().skip(*x).step_by(sample.width).any(|t| *t > 127);
                let columns: Vec<usize> = (0..sample.width).filter(column).collect();
                let end = |all: &[usize], at: usize| all[at] as f32;
                let corners = [
                    end(&columns, 0),
                    end(&rows, 0),
                    end(&columns, columns.len() - 1),
                    end(&rows, rows.len() - 1),
                ];
                let boxes = Some(Tensor::new(&[corners], &self.device)?);
                self.prompted(&x, &Prompts { boxes, ..Prompts::default() })?
            }
            Mode::NoPrompt => self.prompted(&x, &Prompts::default())?,
            Mode::RandomPrompt => {
                let embeddings = self.model.embed(&x)?;
                let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
                let values = (0..embeddings.elem_count()).map(|_| rng.random_range(-1.0..1.0f32)).collect();
                let prompt = Tensor::from_vec(values, embeddings.shape(), &self.device)?;
                self.model.decode(&embeddings, &prompt)?
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

/// The pixel of `mask` that is furthest from what is not mask (the image's border counts as that), as (x, y).
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

/// `mask` at `width × height`, nearest.
pub fn resized(mask: &GrayImage, width: usize, height: usize) -> Vec<u8> {
    imageops::resize(mask, width as u32, height as u32, FilterType::Nearest).into_raw()
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
