//! One inference on a CPU captured as a graph and replayed in memory that stays, as [`super::graph`] does on a GPU.

use super::pixels::{byte, check, map_of, normalise_into, probability};
use super::{AutoSam, MaskMode, Views};
use crate::Result;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_ops::CapturedGraph;
use candle_core::{Device, Tensor};

/// Inferences before one is captured, which takes as long as three: a few frames are done before.
const WARM_UP: usize = 2;

/// Runs inferences and, once there were a few, replays them.
#[derive(Default)]
pub(super) struct Replay {
    seen: usize,
    graph: Option<CapturedGraph>,
    /// Capturing failed once: it would again.
    gave_up: bool,
}

impl Replay {
    #[cfg(test)]
    pub fn replays(&self) -> bool {
        self.graph.is_some()
    }

    /// The probability map of `sample`, the mean over its `views`; always by the same `model`, mode and views.
    pub fn run(
        &mut self,
        model: &AutoSam,
        sample: &ModelInput,
        mode: MaskMode,
        views: Views,
        out: &mut ProbMap,
    ) -> Result<()> {
        let (size, mirrors) = (model.input.side, views.mirrors());
        let shape = (mirrors.len(), 3, size, size);
        let network = |x: &Tensor| -> Result<Tensor> { Ok(probability(&model.forward(x)?, size, mode)?) };
        check(std::slice::from_ref(sample), size)?;
        if self.graph.is_none() && self.seen >= WARM_UP && !self.gave_up {
            match CapturedGraph::capture(shape, |x| network(x).map_err(candle_core::Error::wrap)) {
                Ok(graph) => {
                    tracing::debug!(bytes = graph.memory(), "inferences are replayed without allocation");
                    self.graph = Some(graph);
                }
                Err(e) => {
                    tracing::warn!(
                        "cannot replay inferences; inference will be slower and use more memory: {e}"
                    );
                    self.gave_up = true;
                }
            }
        }
        self.seen += 1;
        let fill = |x: &mut [f32]| {
            for (x, mirror) in x.chunks_exact_mut(3 * size * size).zip(mirrors) {
                normalise_into(sample, *mirror, size, x);
            }
        };
        match &mut self.graph {
            Some(graph) => graph.run(fill, |p| map_of(p, byte, size, sample, mirrors, out))?,
            None => {
                let mut x = vec![0f32; mirrors.len() * 3 * size * size];
                fill(&mut x);
                let p = network(&Tensor::from_vec(x, shape, &Device::Cpu)?)?.flatten_all()?.to_vec1()?;
                map_of(&p, byte, size, sample, mirrors, out);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::{GeneratorConfig, PromptDecoderConfig};
    use crate::sam::config::VitConfig;
    use crate::sam::{DecoderConfig, EncoderConfig, SamConfig};
    use crate::weights::Checkpoint;
    use crate::weights::init::initialise;
    use crate::{Calibration, ModelConfig, checkpoint};
    use autosam_ops as ops;
    use std::collections::HashMap;

    /// The shipped model, in every mode and number of views.
    #[test]
    fn inferences_are_replayed_and_give_what_they_gave() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let (width, height) = (model.image_size(), model.image_size() - 61);
        let sample = |centre: f32| crate::tests::lesion(width, height, [centre, 80.0, 45.0]);
        let cases = [
            (MaskMode::Sigmoid, Views::One),
            (MaskMode::Sigmoid, Views::Four),
            (MaskMode::MinMax, Views::One),
            (MaskMode::MinMax, Views::Two),
        ];
        for (mode, views) in cases {
            let mut replay = Replay::default();
            let mut map = ProbMap::default();
            for (i, centre) in [90.0, 130.0, 170.0, 110.0, 90.0].into_iter().enumerate() {
                let sample = sample(centre);
                ops::in_pool(|| replay.run(&model, &sample, mode, views, &mut map)).unwrap();
                assert_eq!(replay.replays(), i >= WARM_UP, "{mode:?}, {views:?}");
                let expected = model.maps(&[sample], mode, views, None).unwrap().remove(0);
                assert_eq!(map, expected, "{mode:?}, {views:?}, picture {i}");
                assert!(map.data.iter().any(|p| *p > 127));
            }
        }
    }

    /// SAM's ViT with windows and a grid and the published generators; EfficientNet-Lite on both sides, with a say about presence.
    #[test]
    fn networks_of_other_kinds_are_replayed() {
        let encoder = EncoderConfig::Vit(VitConfig {
            embed_dim: 32,
            depth: 2,
            heads: 2,
            global_blocks: vec![1],
            window: 5,
            mlp_ratio: 2,
        });
        let vit = SamConfig {
            image_size: 128,
            stretch: false,
            encoder,
            embed_channels: 32,
            decoder: DecoderConfig::default(),
        };
        let calibration = Calibration { scale: 0.5, bias: 0.25 };
        let published = |mut generator: GeneratorConfig| {
            if let PromptDecoderConfig::Small(decoder) = &mut generator.decoder {
                decoder.channels = vit.embed_channels;
            }
            ModelConfig { calibration, ..ModelConfig::new(vit.clone(), generator) }
        };
        let lite = SamConfig::lite(0).at(128).unwrap();
        let generator = GeneratorConfig::efficientnet_lite(1, 96, lite.embed_channels);
        let presence = Some(crate::Presence { least: 0.7, slope: 10.0 });
        let configs = [
            published(GeneratorConfig::hardnet39ds(64)),
            published(GeneratorConfig::hardnet68(96)),
            published(GeneratorConfig::hardnet85(64)),
            ModelConfig { presence, ..ModelConfig::new(lite, generator) },
        ];
        for config in configs {
            let tensors = initialise(&config.parameter_shapes().unwrap(), 0).unwrap();
            let mut checkpoint = Checkpoint {
                path: "drawn".into(),
                tensors,
                metadata: HashMap::new(),
                taken: Default::default(),
            };
            config.note(&mut checkpoint).unwrap();
            let model = AutoSam::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
            let network = |x: &Tensor| model.forward(x).map_err(candle_core::Error::wrap)?.flatten_all();
            for images in [1, 2] {
                // As before a recording: weights are packed at their first use.
                network(
                    &Tensor::zeros((images, 3, 128, 128), candle_core::DType::F32, &Device::Cpu).unwrap(),
                )
                .unwrap();
                CapturedGraph::capture((images, 3, 128, 128), network).unwrap();
            }
        }
    }
}
