//! SAM asked about one object, beside the automatic mask, from the same image embedding.

use super::{AutoSam, MaskMode, Views, pixels};
use crate::Result;
use crate::sam::Prompts;
use autosam_engine::segmenter::ObjectPrompt;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_ops as ops;
use candle_core::{DType, Tensor};

/// Largest logit of a mask prompt: probabilities of 0 and 1 have none.
const MOST_LOGIT: f32 = 6.0;

impl AutoSam {
    /// The probability map of `sample`, as [`Self::maps`] gives it, and that of the object of `prompt`. The embedding of the frame
    /// as it is serves both.
    pub(super) fn maps_with_object(
        &self,
        sample: &ModelInput,
        prompt: &ObjectPrompt,
        mode: MaskMode,
        views: Views,
        products: Option<DType>,
    ) -> Result<(ProbMap, ProbMap)> {
        let (samples, mirrors) = (std::slice::from_ref(sample), views.mirrors());
        let x = self.preprocess_mirrored(samples, mirrors)?;
        let (logits, object) = ops::autocast(products, || -> Result<(Tensor, Tensor)> {
            let (embeddings, dense) = self.embed_and_prompt(&x)?;
            let logits = self.decode(&embeddings, &dense)?;
            // The first view is the frame itself.
            let embedding = embeddings.narrow(0, 0, 1)?.contiguous()?;
            Ok((logits, self.decode_object(&embedding, &self.prompts(prompt)?)?))
        })?;
        let mut maps = pixels::mean_probabilities(&logits, samples, self.input.side, mode, mirrors)?;
        let mut object = pixels::probabilities(&object, samples, self.input.side, MaskMode::Sigmoid)?;
        Ok((maps.pop().unwrap_or_default(), object.pop().unwrap_or_default()))
    }

    /// SAM's single mask for `prompts`, without the generator and not calibrated, `[N, 1, 4g, 4g]`.
    fn decode_object(&self, embeddings: &Tensor, prompts: &Prompts) -> Result<Tensor> {
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

    /// The logits of `mask`, of the input's size, at the decoder's, `[1, 1, 4g, 4g]`: certainly nothing in the padding.
    fn mask_prompt(&self, mask: &ProbMap) -> Result<Tensor> {
        let low = 4 * self.dense_pe.dim(2)?;
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
    use crate::checkpoint;
    use autosam_engine::segmenter::ObjectPoint;
    use candle_core::Device;

    /// IoU of `map` with the disc of [`crate::tests::lesion`].
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
    fn an_object_is_found_by_point_box_and_earlier_mask_and_the_automatic_mask_stays() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let (width, height, disc) = (model.image_size(), model.image_size() - 60, [120.0, 90.0, 45.0]);
        let sample = crate::tests::lesion(width, height, disc);
        let ask = |prompt: &ObjectPrompt, views| {
            model.maps_with_object(&sample, prompt, MaskMode::Sigmoid, views, None).unwrap()
        };
        let centre = ObjectPrompt {
            points: vec![ObjectPoint { x: 120.0, y: 90.0, foreground: true }],
            ..Default::default()
        };
        let bounds = ObjectPrompt { bounds: Some([75.0, 45.0, 165.0, 135.0]), ..Default::default() };
        let (_, first) = ask(&centre, Views::One);
        let again = ObjectPrompt { mask: Some(first), ..centre.clone() };
        for (name, prompt) in [("point", &centre), ("box", &bounds), ("mask and point", &again)] {
            let (_, map) = ask(prompt, Views::One);
            let found = iou(&map, disc);
            println!("{name}: IoU {found:.3}");
            assert!((map.width, map.height) == (width, height) && found >= 0.5, "{name}: {found:.3}");
        }
        for views in [Views::One, Views::Two] {
            let alone = model.maps(std::slice::from_ref(&sample), MaskMode::Sigmoid, views, None).unwrap();
            assert_eq!(ask(&centre, views).0, alone[0], "{views:?}");
        }
    }
}
