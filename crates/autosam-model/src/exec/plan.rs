//! One inference on a CPU, captured as a graph and replayed in memory that is kept.

use super::Inference;
use super::warm_up::WarmUp;
use crate::Result;
use crate::pixels::{byte, check, map_of, normalise_into, probability};
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_ops::CapturedGraph;
use candle_core::{Device, Tensor};

/// Runs inferences on a CPU and, after a few, replays them without allocation.
#[derive(Default)]
pub(crate) struct Plan(WarmUp<CapturedGraph>);

impl Plan {
    pub fn replays(&self) -> bool {
        self.0.graph().is_some()
    }

    /// Writes the probability map of `sample` to `out`; `inference` must be the same at every call.
    pub fn run(&mut self, inference: &Inference, sample: &ModelInput, out: &mut ProbMap) -> Result<()> {
        let (size, mirrors) = (inference.size(), inference.mirrors());
        let shape = (mirrors.len(), 3, size, size);
        let network =
            |x: &Tensor| -> Result<Tensor> { Ok(probability(&inference.logits(x)?, size, inference.mode)?) };
        check(std::slice::from_ref(sample), size)?;
        let fill = |x: &mut [f32]| {
            for (x, mirror) in x.chunks_exact_mut(3 * size * size).zip(mirrors) {
                normalise_into(sample, *mirror, size, x);
            }
        };
        let capture = || {
            let graph = CapturedGraph::capture(shape, |x| network(x).map_err(candle_core::Error::wrap))?;
            tracing::debug!(bytes = graph.memory(), "inferences are replayed without allocation");
            Ok::<_, candle_core::Error>(graph)
        };
        let failed = "cannot replay inferences; inference will be slower and use more memory";
        match self.0.next(capture, failed) {
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
    use crate::{AutoSam, Calibration, ModelConfig};
    use std::collections::HashMap;

    /// SAM's ViT with windowed and global attention and the published generators; EfficientNet-Lite in encoder and
    /// generator, with presence.
    #[test]
    fn all_kinds_of_networks_are_replayed() {
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
                // Weights are packed at their first use, so inferences run before the capture as usual.
                network(
                    &Tensor::zeros((images, 3, 128, 128), candle_core::DType::F32, &Device::Cpu).unwrap(),
                )
                .unwrap();
                CapturedGraph::capture((images, 3, 128, 128), network).unwrap();
            }
        }
    }
}
