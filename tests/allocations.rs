//! Allocations in the steady state.

use autosam::engine::segmenter::{ModelInput, ProbMap};
use autosam::model::{
    self, AutoSam, DeviceChoice, Flips, ModelConfig, ModelOptions, Precision, Quantisation, Trunk,
};
use autosam::process::{self, Allocator};
use autosam::weights::Checkpoint;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn sample(side: usize, at: usize) -> ModelInput {
    let (width, height) = (side, side * 9 / 16);
    let rgb = (0..3 * width * height).map(|i| ((i * 7 + at * 31) % 251) as u8).collect();
    ModelInput { width, height, rgb }
}

/// The shipped model with ranges that its activations may have.
fn quantised() -> Checkpoint {
    let mut file = model::checkpoint(None).unwrap();
    let mut model = AutoSam::from_checkpoint(&file, &candle_core::Device::Cpu).unwrap();
    let x = model.preprocess(&[sample(model.image_size(), 0)]).unwrap();
    let mut ranges = |trunk| {
        let mut count = 0;
        let mut see = |_: &candle_core::Tensor| {
            count += 1;
            Ok(())
        };
        model.observe(trunk, &x, &mut see).unwrap();
        // Inputs of depth-wise convolutions must have ranges that begin at 0. This test does not depend on which those are.
        Some(vec![[0.0, 6.0]; count])
    };
    let quantisation = Quantisation { encoder: ranges(Trunk::Encoder), generator: ranges(Trunk::Generator) };
    let config = ModelConfig { quantisation: Some(quantisation), ..ModelConfig::of(&file).unwrap() };
    config.note(&mut file).unwrap();
    file
}

/// No thread allocates between a sample and its probability map. This is the only test of its process, because the allocations of
/// other tests would be counted.
#[test]
fn inference_allocates_nothing_in_the_steady_state() {
    #[cfg(target_arch = "x86_64")]
    let has_kernels = is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let has_kernels = false;
    if !has_kernels {
        return eprintln!("SKIPPED: matrix products allocate on this processor (no x86 with FMA)");
    }
    let file = quantised();
    for (flips, precision, frames) in [
        (Flips::One, Precision::F32, 100),
        (Flips::Four, Precision::F32, 10),
        // Int8 is slow on processors without instructions for it.
        (Flips::One, Precision::Int8, 10),
    ] {
        let options = ModelOptions { device: DeviceChoice::Cpu, flips, precision, ..ModelOptions::default() };
        let mut segmenter = model::open_checkpoint(&file, &options).unwrap();
        let samples: Vec<ModelInput> = (0..4).map(|at| sample(segmenter.input_size().side, at)).collect();
        let mut map = ProbMap::default();
        let mut asked_by = |frames: usize| {
            let before = process::all_allocations();
            for sample in samples.iter().cycle().take(frames) {
                segmenter.segment(sample, &mut map).unwrap();
            }
            process::all_allocations() - before
        };
        asked_by(8);
        // The buffers that a thread needs depend on the work it steals; after a few more inferences all exist.
        let mut asked = Vec::new();
        while asked.len() < 5 && !asked.contains(&0) {
            asked.push(asked_by(frames));
        }
        assert!(asked.contains(&0), "in {frames} inferences of {flips:?} each, {precision:?}: {asked:?}");
    }
}
