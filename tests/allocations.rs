//! What the program's allocator is asked for in the steady state.

use autosam::engine::segmenter::{ProbMap, Sample};
use autosam::model::{self, DeviceChoice, ModelOptions, Views};
use autosam::process::{self, Allocator};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn sample(side: usize, at: usize) -> Sample {
    let (width, height) = (side, side * 9 / 16);
    let rgb = (0..3 * width * height).map(|i| ((i * 7 + at * 31) % 251) as u8).collect();
    Sample { width, height, rgb }
}

/// From a sample to its probability map: nothing, on any thread. (One test a process: whatever else ran would be counted.)
#[test]
fn inference_takes_no_memory() {
    #[cfg(target_arch = "x86_64")]
    let has_kernels = is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let has_kernels = false;
    if !has_kernels {
        return eprintln!("SKIPPED: products take memory here, this is no x86 with FMA");
    }
    for (views, frames) in [(Views::One, 100), (Views::Four, 10)] {
        let options = ModelOptions { device: DeviceChoice::Cpu, views, ..ModelOptions::default() };
        let mut segmenter = model::open(None, &options).unwrap();
        let samples: Vec<Sample> = (0..4).map(|at| sample(segmenter.input_size(), at)).collect();
        let mut map = ProbMap::default();
        let mut asked_by = |frames: usize| {
            let before = process::all_allocations();
            for sample in samples.iter().cycle().take(frames) {
                segmenter.segment(sample, &mut map).unwrap();
            }
            process::all_allocations() - before
        };
        asked_by(8);
        // Which buffers a thread needs depends on what it takes up from others: after a few more there are enough.
        let asked: Vec<u64> = (0..5).map(|_| asked_by(frames)).collect();
        assert!(asked.contains(&0), "in {frames} inferences of {views:?} each: {asked:?}");
    }
}
