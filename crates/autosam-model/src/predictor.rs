//! The single entry point for inference: live video, evaluation and validation all call a [`Predictor`].

use crate::Result;
use crate::exec::{Executor, Inference, on_device};
use crate::network::{Network, PromptSource, Prompted};
use crate::options::{Flips, MaskMode};
use autosam_engine::segmenter::ObjectPrompt;
use autosam_frame::map::{ModelInput, ProbMap};
use candle_core::DType;

/// How logits become probability maps.
#[derive(Debug, Clone, Copy, Default)]
pub struct PredictorOptions {
    pub mask_mode: MaskMode,
    /// Test-time augmentation.
    pub flips: Flips,
    /// The type of matrix products ([`crate::Arithmetic::products`]); `None` for f32.
    pub products: Option<DType>,
}

/// A network, ready for inference.
pub struct Predictor<N> {
    network: N,
    options: PredictorOptions,
    executor: Executor,
}

impl<N: Network> Predictor<N> {
    /// Runs every operation separately: for batches, and for networks that change between calls.
    pub fn new(network: N, options: PredictorOptions) -> Self {
        Self { network, options, executor: Executor::default() }
    }

    /// A predictor whose [`Self::segment`] replays a captured inference after a few calls, if the device supports it.
    /// For live video.
    pub fn replaying(network: N, options: PredictorOptions) -> Self {
        let executor = Executor::fastest(network.device(), options.flips.count());
        Self { network, options, executor }
    }

    pub fn network(&self) -> &N {
        &self.network
    }

    /// Whether [`Self::segment`] already replays a captured inference.
    pub fn replays(&self) -> bool {
        self.executor.replays()
    }

    /// Writes the probabilities of `sample` to `out`, whose memory is reused.
    ///
    /// # Errors
    /// If the input is larger than the network's, or the device fails.
    pub fn segment(&mut self, sample: &ModelInput, out: &mut ProbMap) -> Result<()> {
        let inference = inference(&self.network, self.options);
        let executor = &mut self.executor;
        on_device(self.network.device(), || executor.run(&inference, sample, out))
    }

    /// As [`Self::segment`]; also writes the probabilities of the object of `prompt` from the same image embedding. Not
    /// replayed.
    ///
    /// # Errors
    /// As [`Self::segment`], and if the network does not support prompts.
    pub fn segment_object(
        &mut self,
        sample: &ModelInput,
        prompt: &ObjectPrompt,
    ) -> Result<(ProbMap, ProbMap)> {
        let inference = inference(&self.network, self.options);
        on_device(self.network.device(), || inference.maps_with_object(sample, prompt))
    }

    /// Probabilities of `samples`, computed together on the calling thread; not replayed.
    ///
    /// # Errors
    /// As [`Self::segment`].
    pub fn maps(&self, samples: &[ModelInput]) -> Result<Vec<ProbMap>> {
        inference(&self.network, self.options).maps(samples)
    }
}

impl Predictor<Prompted> {
    /// Changes the source of SAM's prompt.
    pub fn set_prompt(&mut self, source: PromptSource) {
        self.network.source = source;
        // A captured inference contains the previous prompt.
        self.executor = Executor::default();
    }
}

fn inference<'a>(network: &'a dyn Network, options: PredictorOptions) -> Inference<'a> {
    let PredictorOptions { mask_mode, flips, products } = options;
    Inference { network, mode: mask_mode, flips, products }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lesion;
    use crate::{AutoSam, Precision, checkpoint};
    use autosam_frame::map::Mirror;
    use candle_core::Device;
    use std::sync::Arc;

    /// Tests the shipped model in every mask mode and with every number of flips.
    #[test]
    fn replayed_inferences_equal_eager_ones() {
        let model = Arc::new(AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap());
        let (width, height) = (model.image_size(), model.image_size() - 61);
        let sample = |centre: f32| lesion(width, height, [centre, 80.0, 45.0]);
        let cases = [
            (MaskMode::Sigmoid, Flips::One),
            (MaskMode::Sigmoid, Flips::Four),
            (MaskMode::MinMax, Flips::One),
            (MaskMode::MinMax, Flips::Two),
        ];
        for (mode, flips) in cases {
            let options = PredictorOptions { mask_mode: mode, flips, products: None };
            let mut predictor = Predictor::replaying(model.clone(), options);
            let mut map = ProbMap::default();
            for (i, centre) in [90.0, 130.0, 170.0, 110.0, 90.0].into_iter().enumerate() {
                let sample = sample(centre);
                predictor.segment(&sample, &mut map).unwrap();
                assert_eq!(predictor.replays(), i >= 2, "{mode:?}, {flips:?}");
                let expected = predictor.maps(&[sample]).unwrap().remove(0);
                assert_eq!(map, expected, "{mode:?}, {flips:?}, frame {i}");
                assert!(map.data.iter().any(|p| *p > 127));
            }
        }
    }

    #[test]
    fn a_flipped_image_has_the_flipped_mask() {
        let model = Arc::new(AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap());
        let (width, height) = (model.image_size(), model.image_size() - 60);
        let rgb = lesion(width, height, [90.0, 80.0, 45.0]).rgb;
        let pixels = rgb.as_chunks::<3>().0.to_vec();
        let across = Mirror { across: true, down: false };
        let map = |pixels: &[[u8; 3]], flips| {
            let sample = ModelInput { width, height, rgb: pixels.as_flattened().to_vec() };
            let options = PredictorOptions { flips, ..PredictorOptions::default() };
            Predictor::new(model.clone(), options).maps(&[sample]).unwrap().remove(0).data
        };
        let turned = across.of(&pixels, width);
        for flips in [Flips::Two, Flips::Four] {
            let (one, other) = (map(&pixels, flips), across.of(&map(&turned, flips), width));
            assert!(one.iter().any(|p| *p > 127), "{flips:?}");
            assert!(one.iter().zip(&other).all(|(a, b)| a.abs_diff(*b) <= 1), "{flips:?}");
        }
        assert_ne!(map(&pixels, Flips::One), across.of(&map(&turned, Flips::One), width));
        assert!("3".parse::<Flips>().unwrap_err().to_string().contains("1, 2 or 4"));
    }

    #[test]
    fn a_cpu_computes_in_f32() {
        assert_eq!(Precision::Bf16.on(&Device::Cpu), None);
    }
}
