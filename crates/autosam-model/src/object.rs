//! SAM prompted for one object, in addition to the automatic mask, from the same image embedding.

use crate::Result;
use crate::autosam::AutoSam;
use crate::sam::Prompts;
use autosam_engine::segmenter::ObjectPrompt;
use autosam_frame::map::ProbMap;
use candle_core::{DType, Tensor};

/// Largest logit of a mask prompt, because probabilities of 0 and 1 have no finite logit.
const MOST_LOGIT: f32 = 6.0;

impl AutoSam {
    /// [`Self::forward`], and the logits `[1, 1, 4g, 4g]` of the object of `prompt` in the first image. Both use the
    /// same image embedding.
    pub(super) fn forward_with_object(&self, x: &Tensor, prompt: &ObjectPrompt) -> Result<(Tensor, Tensor)> {
        let (embeddings, dense) = self.embed_and_prompt(x)?;
        let logits = self.decode(&embeddings, &dense)?;
        let embedding = embeddings.narrow(0, 0, 1)?.contiguous()?;
        Ok((logits, self.decode_prompts(&embedding, &self.prompts(prompt)?)?))
    }

    /// SAM's single mask for `prompts`, without the generator; not calibrated, `[N, 1, 4g, 4g]`.
    pub(super) fn decode_prompts(&self, embeddings: &Tensor, prompts: &Prompts) -> Result<Tensor> {
        let (sparse, dense) = self.sam.prompt_encoder.forward(prompts, embeddings.dim(0)?)?;
        let logits = self.sam.mask_decoder.mask_logits(embeddings, &self.dense_pe, &sparse, &dense)?;
        Ok(logits.to_dtype(DType::F32)?)
    }

    /// `prompt` as tensors.
    fn prompts(&self, prompt: &ObjectPrompt) -> Result<Prompts> {
        let device = &self.device;
        let points = if prompt.points.is_empty() {
            None
        } else {
            let count = prompt.points.len();
            let coords: Vec<f32> = prompt.points.iter().flat_map(|p| [p.x, p.y]).collect();
            let labels: Vec<f32> = prompt.points.iter().map(|p| f32::from(u8::from(p.foreground))).collect();
            Some((
                Tensor::from_vec(coords, (1, count, 2), device)?,
                Tensor::from_vec(labels, (1, count), device)?,
            ))
        };
        let boxes = prompt.bounds.map(|corners| Tensor::new(&[corners], device)).transpose()?;
        let masks = prompt.mask.as_ref().map(|mask| self.mask_prompt(mask)).transpose()?;
        Ok(Prompts { points, boxes, masks })
    }

    /// Logits of `mask`, resized from the input's size to the decoder's, `[1, 1, 4g, 4g]`, with the lowest logit in the
    /// padding.
    fn mask_prompt(&self, mask: &ProbMap) -> Result<Tensor> {
        let low = self.mask_size();
        let step = self.input.side / low;
        let logit = |i: usize| {
            let (x, y) = (i % low * step + step / 2, i / low * step + step / 2);
            if x >= mask.width || y >= mask.height {
                return -MOST_LOGIT;
            }
            let p = f32::from(mask.data[y * mask.width + x]) / 255.0;
            (p / (1.0 - p)).ln().clamp(-MOST_LOGIT, MOST_LOGIT)
        };
        Ok(Tensor::from_vec((0..low * low).map(logit).collect::<Vec<f32>>(), (1, 1, low, low), &self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flips, Predictor, PredictorOptions, checkpoint};
    use autosam_engine::segmenter::ObjectPoint;
    use candle_core::Device;
    use std::sync::Arc;

    /// IoU of `map` with the disc of [`crate::testing::lesion`].
    fn iou(map: &ProbMap, [cx, cy, radius]: [f32; 3]) -> f64 {
        let (mut both, mut any) = (0u32, 0u32);
        for (i, p) in map.data.iter().enumerate() {
            let inside = ((i % map.width) as f32 - cx).hypot((i / map.width) as f32 - cy) < radius;
            both += u32::from(inside && *p >= 128);
            any += u32::from(inside || *p >= 128);
        }
        f64::from(both) / f64::from(any.max(1))
    }

    #[test]
    fn an_object_is_segmented_by_point_box_and_mask_without_changing_the_automatic_mask() {
        let model = Arc::new(AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap());
        let predictor =
            |flips| Predictor::new(model.clone(), PredictorOptions { flips, ..PredictorOptions::default() });
        let (width, height, disc) = (model.image_size(), model.image_size() - 60, [120.0, 90.0, 45.0]);
        let sample = crate::testing::lesion(width, height, disc);
        let ask = |prompt: &ObjectPrompt, flips| predictor(flips).segment_object(&sample, prompt).unwrap();
        let centre = ObjectPrompt {
            points: vec![ObjectPoint { x: 120.0, y: 90.0, foreground: true }],
            ..Default::default()
        };
        let bounds = ObjectPrompt { bounds: Some([75.0, 45.0, 165.0, 135.0]), ..Default::default() };
        let (_, first) = ask(&centre, Flips::One);
        let again = ObjectPrompt { mask: Some(first), ..centre.clone() };
        for (name, prompt) in [("point", &centre), ("box", &bounds), ("mask and point", &again)] {
            let (_, map) = ask(prompt, Flips::One);
            let found = iou(&map, disc);
            println!("{name}: IoU {found:.3}");
            assert!((map.width, map.height) == (width, height) && found >= 0.5, "{name}: {found:.3}");
        }
        for flips in [Flips::One, Flips::Two] {
            let automatic = predictor(flips).maps(std::slice::from_ref(&sample)).unwrap();
            assert_eq!(ask(&centre, flips).0, automatic[0], "{flips:?}");
        }
    }
}
