//! One inference on a CPU recorded as a plan and replayed in memory that stays, as [`super::graph`] does on a GPU.

use super::pixels::{byte, check, map_of, normalise_into, probability};
use super::{AutoSam, MaskMode, Views};
use crate::Result;
use crate::engine::segmenter::{ProbMap, Sample};
use crate::ops::Plan;
use candle_core::{Device, Tensor};

/// Inferences before one is recorded, which takes as long as three: a few pictures are done before.
const WARM_UP: usize = 2;

/// Runs inferences and, once there were a few, replays them.
#[derive(Default)]
pub(super) struct Replay {
    seen: usize,
    plan: Option<Plan>,
    /// Recording failed once: it would again.
    gave_up: bool,
}

impl Replay {
    #[cfg(test)]
    pub fn replays(&self) -> bool {
        self.plan.is_some()
    }

    /// The probability map of `sample`, the mean over its `views`; always by the same `model`, mode and views.
    pub fn run(
        &mut self,
        model: &AutoSam,
        sample: &Sample,
        mode: MaskMode,
        views: Views,
        out: &mut ProbMap,
    ) -> Result<()> {
        let (size, mirrors) = (model.image_size, views.mirrors());
        let shape = (mirrors.len(), 3, size, size);
        let network = |x: &Tensor| -> Result<Tensor> { Ok(probability(&model.forward(x)?, size, mode)?) };
        check(std::slice::from_ref(sample), size)?;
        if self.plan.is_none() && self.seen >= WARM_UP && !self.gave_up {
            match Plan::record(shape, |x| network(x).map_err(candle_core::Error::wrap)) {
                Ok(plan) => {
                    tracing::debug!(bytes = plan.memory(), "inferences are replayed in memory that stays");
                    self.plan = Some(plan);
                }
                Err(e) => {
                    tracing::warn!("inferences are not replayed, which costs time and memory: {e}");
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
        match &mut self.plan {
            Some(plan) => plan.run(fill, |p| map_of(p, byte, size, sample, mirrors, out))?,
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
    use crate::generator::GeneratorConfig;
    use crate::model::{Calibration, ModelConfig, checkpoint};
    use crate::ops;
    use crate::sam::config::VitConfig;
    use crate::sam::{DecoderConfig, EncoderConfig, SamConfig};
    use crate::train::params::initialise;
    use crate::weights::Checkpoint;
    use std::collections::HashMap;

    /// The shipped model, in every mode and number of views.
    #[test]
    fn inferences_are_replayed_and_give_what_they_gave() {
        let model = AutoSam::from_checkpoint(&checkpoint(None).unwrap(), &Device::Cpu).unwrap();
        let (width, height) = (model.image_size(), model.image_size() - 61);
        let sample = |centre: usize| {
            let inside = |i: usize| (i % width).abs_diff(centre) + (i / width).abs_diff(80) < 60;
            let pixel = |i: usize| if inside(i) { [205, 110, 95] } else { [150 + (i % 13) as u8, 70, 60] };
            Sample { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
        };
        let cases = [
            (MaskMode::Sigmoid, Views::One),
            (MaskMode::Sigmoid, Views::Four),
            (MaskMode::MinMax, Views::One),
            (MaskMode::MinMax, Views::Two),
        ];
        for (mode, views) in cases {
            let mut replay = Replay::default();
            let mut map = ProbMap::default();
            for (i, centre) in [90, 130, 170, 110, 90].into_iter().enumerate() {
                let sample = sample(centre);
                ops::in_pool(|| replay.run(&model, &sample, mode, views, &mut map)).unwrap();
                assert_eq!(replay.replays(), i >= WARM_UP, "{mode:?}, {views:?}");
                let expected = model.maps(&[sample], mode, views, None).unwrap().remove(0);
                assert_eq!(map, expected, "{mode:?}, {views:?}, picture {i}");
                assert!(map.data.iter().any(|p| *p > 127));
            }
        }
    }

    /// SAM's ViT with windows and a grid, and the published generators.
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
        let sam =
            SamConfig { image_size: 128, encoder, embed_channels: 32, decoder: DecoderConfig::default() };
        let mut generators = [
            GeneratorConfig::hardnet39ds(64),
            GeneratorConfig::hardnet68(96),
            GeneratorConfig::hardnet85(64),
        ];
        for generator in &mut generators {
            generator.decoder.channels = sam.embed_channels;
            let calibration = Calibration { scale: 0.5, bias: 0.25 };
            let config = ModelConfig { sam: sam.clone(), generator: generator.clone(), calibration };
            let tensors = initialise(&config.parameter_shapes().unwrap(), 0).unwrap();
            let mut checkpoint = Checkpoint { path: "drawn".into(), tensors, metadata: HashMap::new() };
            config.note(&mut checkpoint).unwrap();
            let model = AutoSam::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
            let network = |x: &Tensor| model.forward(x).map_err(candle_core::Error::wrap)?.flatten_all();
            for images in [1, 2] {
                Plan::record((images, 3, 128, 128), network).unwrap();
            }
        }
    }
}
