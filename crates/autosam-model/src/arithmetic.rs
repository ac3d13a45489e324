//! The number formats that a model computes in.

use crate::autosam::AutoSam;
use crate::backbone::EfficientNetLite;
use crate::config::{ModelConfig, Quantisation};
use crate::weights::Checkpoint;
use crate::{Error, Precision, Result};
use autosam_ops as ops;
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// The number formats of a precision on a device, for a given model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// The type of products for [`ops::autocast`]; `None` for f32.
    pub products: Option<DType>,
    /// Whether EfficientNet-Lite backbones compute in int8.
    pub bytes: bool,
}

/// An EfficientNet-Lite backbone of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trunk {
    /// In SAM's image encoder.
    Encoder,
    /// In the generator.
    Generator,
}

impl Arithmetic {
    /// For the model of the file at `path` with configuration `config`. [`Precision::Auto`] is int8 if the CPU has
    /// instructions for it and the model was quantised.
    ///
    /// # Errors
    /// If [`Precision::Int8`] is requested and the model was not quantised.
    pub fn of(precision: Precision, device: &Device, config: &ModelConfig, path: &Path) -> Result<Self> {
        let quantised = config.quantisation.is_some();
        let bytes = match precision {
            _ if !device.is_cpu() => false,
            Precision::Int8 => true,
            Precision::Auto => quantised && ops::has_fast_bytes(),
            Precision::F32 | Precision::F16 | Precision::Bf16 => false,
        };
        if bytes && !quantised {
            return Err(Error::weights(
                path,
                "not quantised, which precision int8 needs; use `autosam-video models quantize --model FILE --data DIR --out FILE`, or precision f32",
            ));
        }
        if bytes && !ops::has_fast_bytes() {
            tracing::warn!(
                "this CPU has no AVX-512 VNNI: int8 is many times slower than f32 here; use precision auto"
            );
        }
        Ok(Self { products: precision.on(device), bytes })
    }

    /// `f32`, `f16`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self.products {
            _ if self.bytes => "int8",
            Some(dtype) => dtype.as_str(),
            None => "f32",
        }
    }
}

impl AutoSam {
    /// [`Self::prepared`] for `precision`, and the resulting number formats.
    ///
    /// # Errors
    /// If the weights are unusable, or if int8 is requested and the model was not quantised.
    pub fn with_precision(
        checkpoint: &Checkpoint,
        device: &Device,
        precision: Precision,
    ) -> Result<(Self, Arithmetic)> {
        let config = ModelConfig::of(checkpoint)?;
        let arithmetic = Arithmetic::of(precision, device, &config, &checkpoint.path)?;
        let mut model = Self::prepared(&config, checkpoint, device, arithmetic.products)?;
        if let (true, Some(quantisation)) = (arithmetic.bytes, &config.quantisation) {
            model.quantise(quantisation).map_err(|e| {
                Error::weights(
                    &checkpoint.path,
                    format!("its quantisation is unusable: {e}; use `models quantize`"),
                )
            })?;
        }
        Ok((model, arithmetic))
    }

    /// Switches the backbones for which `quantisation` has ranges to int8.
    fn quantise(&mut self, quantisation: &Quantisation) -> Result<()> {
        for (trunk, ranges) in
            [(Trunk::Encoder, &quantisation.encoder), (Trunk::Generator, &quantisation.generator)]
        {
            match (self.trunk(trunk), ranges) {
                (Some(backbone), Some(ranges)) => backbone.quantise(ranges)?,
                (None, Some(_)) => {
                    return Err(Error::invalid(format!("{trunk:?} is not an EfficientNet-Lite")));
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// The model's EfficientNet-Lite backbones.
    pub fn trunks(&mut self) -> Vec<Trunk> {
        [Trunk::Encoder, Trunk::Generator].into_iter().filter(|t| self.trunk(*t).is_some()).collect()
    }

    /// Calls `see` with the f32 values of the activations that int8 inference stores in bytes, for preprocessed images
    /// `[N, 3, S, S]`.
    ///
    /// # Errors
    /// The errors of `see`, or if the model lacks `trunk` ([`Self::trunks`]).
    pub fn observe(&mut self, trunk: Trunk, x: &Tensor, see: &mut crate::backbone::Observer) -> Result<()> {
        let x = if trunk == Trunk::Generator { self.for_generator(x)? } else { x.clone() };
        let Some(backbone) = self.trunk(trunk) else {
            return Err(Error::invalid(format!("{trunk:?} is not an EfficientNet-Lite")));
        };
        backbone.observed(&x, usize::MAX, false, see)?;
        Ok(())
    }

    fn trunk(&mut self, trunk: Trunk) -> Option<&mut EfficientNetLite> {
        match trunk {
            Trunk::Encoder => self.sam.lite_backbone(),
            Trunk::Generator => self.generator.lite_backbone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flips, Predictor, PredictorOptions, checkpoint};
    use autosam_frame::map::ProbMap;
    use std::sync::Arc;

    /// The shipped model, quantised with activation ranges of a few frames.
    fn quantised() -> Checkpoint {
        let mut file = checkpoint(None).unwrap();
        let mut model = AutoSam::from_checkpoint(&file, &Device::Cpu).unwrap();
        let size = model.image_size();
        let frames: Vec<_> =
            [90.0, 130.0, 170.0].map(|x| crate::testing::lesion(size, size - 61, [x, 80.0, 45.0])).into();
        let x = model.preprocess(&frames).unwrap();
        let mut ranges = |trunk| {
            let mut ranges = Vec::new();
            let mut see = |activation: &Tensor| {
                let all = activation.flatten_all()?;
                ranges.push([all.min(0)?.to_scalar::<f32>()?, all.max(0)?.to_scalar::<f32>()?]);
                Ok(())
            };
            model.observe(trunk, &x, &mut see).unwrap();
            Some(ranges)
        };
        let quantisation =
            Quantisation { encoder: ranges(Trunk::Encoder), generator: ranges(Trunk::Generator) };
        let config = ModelConfig { quantisation: Some(quantisation), ..ModelConfig::of(&file).unwrap() };
        config.note(&mut file).unwrap();
        file
    }

    #[test]
    fn int8_is_replayed_and_approximates_f32_masks() {
        let file = quantised();
        let (exact, _) = AutoSam::with_precision(&file, &Device::Cpu, Precision::F32).unwrap();
        let (model, arithmetic) = AutoSam::with_precision(&file, &Device::Cpu, Precision::Int8).unwrap();
        assert_eq!(arithmetic.name(), "int8");
        let (width, height) = (model.image_size(), model.image_size() - 61);
        let (exact, model) = (Arc::new(exact), Arc::new(model));
        for flips in [Flips::One, Flips::Two] {
            let options = PredictorOptions { flips, ..PredictorOptions::default() };
            let mut predictor = Predictor::replaying(model.clone(), options);
            let mut map = ProbMap::default();
            for centre in [90.0, 130.0, 170.0, 110.0] {
                let sample = crate::testing::lesion(width, height, [centre, 80.0, 45.0]);
                predictor.segment(&sample, &mut map).unwrap();
                let of = |model: &Arc<AutoSam>| {
                    Predictor::new(model.clone(), options)
                        .maps(std::slice::from_ref(&sample))
                        .unwrap()
                        .remove(0)
                };
                assert_eq!(map, of(&model), "replayed and eager");
                let expected = of(&exact);
                assert_ne!(map, expected, "bytes were used");
                let over = |p: &u8| *p > 127;
                let both = map.data.iter().zip(&expected.data).filter(|(a, b)| over(a) && over(b)).count();
                let sum = [&map, &expected]
                    .map(|m| m.data.iter().filter(|p| over(p)).count())
                    .iter()
                    .sum::<usize>();
                let dice = 2.0 * both as f64 / sum as f64;
                assert!(sum > 1000 && dice > 0.95, "Dice {dice:.4} of {sum} pixels");
            }
            assert!(predictor.replays());
        }
    }

    #[test]
    fn int8_without_quantisation_is_an_error_that_names_the_command() {
        let mut file = checkpoint(None).unwrap();
        let config = ModelConfig { quantisation: None, ..ModelConfig::of(&file).unwrap() };
        config.note(&mut file).unwrap();
        let text = AutoSam::with_precision(&file, &Device::Cpu, Precision::Int8).unwrap_err().to_string();
        assert!(text.contains("models quantize"), "{text}");
        let auto = Arithmetic::of(Precision::Auto, &Device::Cpu, &config, &file.path).unwrap();
        assert_eq!(auto.name(), "f32");
        // Ranges for a different network.
        let few = Quantisation { encoder: Some(vec![[0.0, 6.0]]), generator: None };
        ModelConfig { quantisation: Some(few), ..config }.note(&mut file).unwrap();
        let text = AutoSam::with_precision(&file, &Device::Cpu, Precision::Int8).unwrap_err().to_string();
        assert!(text.contains("quantisation is unusable") && text.contains("models quantize"), "{text}");
    }
}
