//! The complete network: SAM's image encoder and the prompt generator in parallel, then SAM's mask decoder.

use crate::Result;
use crate::aux_stream::AuxStream;
use crate::config::{Calibration, ModelConfig, Presence};
use crate::generator::{Generated, Generator};
use crate::pixels::preprocess;
use crate::sam::{Prompts, Sam};
use crate::weights::Checkpoint;
use autosam_frame::map::ModelInput;
use autosam_frame::resize::InputSize;
use autosam_ops as ops;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

/// SAM with its prompt generator.
#[derive(Debug)]
pub struct AutoSam {
    pub(super) sam: Sam,
    pub(super) generator: Generator,
    /// SAM's dense positional encoding, `[1, C, g, g]`: the same for every frame.
    pub(super) dense_pe: Tensor,
    pub(super) input: InputSize,
    calibration: Calibration,
    presence: Option<Presence>,
    pub(super) device: Device,
    /// The stream that the generator is computed on, in parallel with the encoder, if it is on a GPU.
    aux: Option<AuxStream>,
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
            aux: None,
        })
    }

    /// Builds the model from a checked weight file, for inference: batch norms are folded into convolutions.
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        Self::prepared(&ModelConfig::of(checkpoint)?, checkpoint, device, None)
    }

    /// [`Self::from_checkpoint`] for a file with configuration `config`, with weights converted to the type of the
    /// products that use them ([`ops::autocast`]).
    pub(super) fn prepared(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        device: &Device,
        products: Option<DType>,
    ) -> Result<Self> {
        checkpoint.check(&config.parameter_shapes()?)?;
        checkpoint.check_finite()?;
        let vb = VarBuilder::from_tensors(checkpoint.tensors.clone(), DType::F32, device);
        let mut model = Self::load(config, vb)?;
        if let Some(aux) = AuxStream::of(device)? {
            let vb = VarBuilder::from_tensors(checkpoint.tensors.clone(), DType::F32, aux.device());
            model.generator = Generator::load(&config.generator, vb.pp("generator"))?;
            model.aux = Some(aux);
        }
        ops::autocast(products, || model.sam.fold().and_then(|()| model.generator.fold()))?;
        Ok(model)
    }

    /// Prepares SAM's image encoder, which stays frozen while the generator is trained.
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

    /// Size of its input, and how frames are fitted into it.
    pub fn input_size(&self) -> InputSize {
        self.input
    }

    /// Width and height of the mask that SAM decodes, and of its mask prompt.
    pub fn mask_size(&self) -> usize {
        4 * self.dense_pe.dims()[2]
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
        if let Some(aux) = &self.aux {
            return aux.begin(x, |x| self.prompt(x, train))?.join();
        }
        self.prompt(x, train)
    }

    /// [`Self::dense_prompt`] on the generator's device.
    fn prompt(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self
            .generator
            .forward(&self.for_generator(x)?, self.dense_pe.dim(2)?, train)?
            .to_dtype(DType::F32)?)
    }

    /// Preprocessed images at the generator's size.
    pub(super) fn for_generator(&self, x: &Tensor) -> Result<Tensor> {
        let side = self.generator.input_size();
        Ok(if side == self.input.side { x.clone() } else { ops::resize_bilinear(x, side, side, true)? })
    }

    /// [`Generator::generate`] for preprocessed images, `[N, 3, S, S]`: a training step's dense prompt.
    pub fn generate(&self, x: &Tensor) -> Result<Generated> {
        Ok(self.generator.generate(&self.for_generator(x)?, self.dense_pe.dim(2)?)?)
    }

    /// SAM's mask for embeddings and dense prompts without sparse prompts: the first mask token's logits `[N, 1, 4g,
    /// 4g]`, calibrated, and reduced if SAM predicts a low overlap ([`Presence`]).
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

    /// [`Self::decode`] without calibration, and the overlap that SAM's IoU head predicts for each mask, `[N, 1]`.
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

    /// [`Self::embed`] and [`Self::dense_prompt`] of preprocessed images, in parallel.
    pub(super) fn embed_and_prompt(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        if let Some(aux) = &self.aux {
            let prompt = aux.begin(x, |x| self.prompt(x, false))?;
            let embeddings = self.embed(x)?;
            return Ok((embeddings, prompt.join()?));
        }
        // In parallel on a CPU too, because one network may have work for a second thread while the other has none.
        let (embeddings, prompt) = if x.device().is_cpu() {
            ops::join(|| self.embed(x), || self.dense_prompt(x, false))
        } else {
            (self.embed(x), self.dense_prompt(x, false))
        };
        Ok((embeddings?, prompt?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lesion;
    use crate::{CONFIG_KEY, checkpoint};

    /// Emulates a GPU's 16-bit products with the same casts on a CPU. Masks differ only at their edges.
    #[test]
    fn masks_in_16_bits_equal_f32_masks_up_to_edges() {
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
    fn a_calibration_scales_and_shifts_the_logits() {
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
        // A default calibration is not stored in the file.
        logits(Calibration::default());
        assert!(!checkpoint.metadata[CONFIG_KEY].contains("calibration"));
    }
}
