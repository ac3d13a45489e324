//! Benchmark of the model from frame to mask, and of each stage.

use super::{Percentiles, fresh_pages, images, peak_memory_mb};
use crate::engine::mask::{Mask, MaskSettings};
use crate::engine::segmenter::{ModelInput, ProbMap};
use crate::engine::{Engine, Pending, Settings};
use crate::frame::Frame;
use crate::frame::resize::Resizer;
use crate::generator::GeneratorConfig;
use crate::model::{
    self, Arithmetic, AutoSam, Calibration, DeviceChoice, Flips, MaskMode, ModelConfig, ModelOptions,
    Precision,
};
use crate::ops;
use crate::overlay::{Overlay, OverlayMode};
use crate::process;
use crate::sam::SamConfig;
use crate::train::TrainConfig;
use crate::weights::Checkpoint;
use crate::weights::init::initialise;
use crate::{Error, Result};
use candle_core::Device;
use image::RgbImage;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Settings of the benchmark.
#[derive(Debug, Clone)]
pub struct ModelBench {
    /// Weights; the shipped model if `None`.
    pub model: Option<PathBuf>,
    /// Random weights instead, see [`untrained`].
    pub untrained: Option<String>,
    pub device: DeviceChoice,
    pub precision: Precision,
    pub views: Flips,
    /// Number of timed frames, after a few untimed ones.
    pub frames: usize,
    /// Size of the frames in pixels.
    pub size: (u32, u32),
    /// Folder of images; synthetic frames if `None`.
    pub input: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelReport {
    /// Rate of frames processed one after another.
    pub frames_per_s: f64,
    /// Rate if the next frame is submitted during inference.
    pub overlapped_frames_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Median time of each stage, run separately and without test-time augmentation. On a CPU encoder and generator run in
    /// parallel, so the total is less than the sum.
    pub stages_ms: BTreeMap<&'static str, f64>,
    /// Peak memory of the process, including frames, without GPU memory.
    pub peak_memory_mb: Option<f64>,
    /// Memory pages per frame requested from the OS after the first few frames; 0 if all memory is reused.
    pub fresh_pages_per_frame: Option<f64>,
    /// Allocations by all threads from an input to its map, after the first few inferences; `None` if the program does not use
    /// [`process::Allocator`] or was built without `count-allocations`.
    pub allocations_per_inference: Option<f64>,
    pub frames: usize,
    pub size: String,
    pub device: &'static str,
    /// Number format of inference: `f32`, `f16`, `bf16` or `int8`.
    pub precision: &'static str,
}

/// Stages in the order they run.
pub const STAGES: [&str; 7] =
    ["sample", "preprocess", "encoder", "generator", "decoder", "probabilities", "mask_and_mark"];

const WARM_UP: usize = 5;
/// 6 MB each at 1080p, which count towards the peak memory.
const MOST_IMAGES: usize = 8;

/// A published SAM architecture and `train`'s default generator with random weights, which are as fast as trained ones.
///
/// # Errors
/// If the name is not `vit_h`, `vit_l`, `vit_b` or `mobile_sam`.
pub fn untrained(sam: &str) -> Result<Checkpoint> {
    let sam = match sam {
        "vit_h" => SamConfig::vit_h(),
        "vit_l" => SamConfig::vit_l(),
        "vit_b" => SamConfig::vit_b(),
        "mobile_sam" => SamConfig::mobile_sam(),
        other => {
            return Err(Error::invalid(format!(
                "unknown SAM {other:?}: expected vit_h, vit_l, vit_b or mobile_sam"
            )));
        }
    };
    let generator = GeneratorConfig::tiny(TrainConfig::default().generator_input, sam.embed_channels);
    // No mask: a noise mask with a thousand regions would take unrealistically long to draw.
    let calibration = Calibration { scale: 0.0, bias: -8.0 };
    let config = ModelConfig { calibration, ..ModelConfig::new(sam, generator) };
    let tensors = initialise(&config.parameter_shapes()?, 0)?;
    let path = PathBuf::from("untrained weights");
    let mut checkpoint = Checkpoint { path, tensors, metadata: HashMap::new(), taken: Default::default() };
    config.note(&mut checkpoint)?;
    Ok(checkpoint)
}

/// Times the engine (from frame to mask and overlay, one frame after another), then each stage separately.
///
/// # Errors
/// If the model, device or folder cannot be used.
pub fn run(bench: &ModelBench) -> Result<ModelReport> {
    if bench.frames == 0 {
        return Err(Error::invalid("a benchmark needs at least 1 frame"));
    }
    let (width, height) = bench.size;
    let images = images(bench.input.as_deref(), width, height, MOST_IMAGES.min(bench.frames))?;
    let options = ModelOptions {
        device: bench.device,
        precision: bench.precision,
        mask_mode: MaskMode::Sigmoid,
        flips: bench.views,
    };
    let checkpoint = Arc::new(match &bench.untrained {
        Some(sam) => untrained(sam)?,
        None => model::checkpoint(bench.model.as_deref())?,
    });
    let weights = checkpoint.clone();
    let factory = Box::new(move || model::open_checkpoint(&weights, &options));
    let mut engine = Engine::start(factory, Settings::default(), Box::new(|_| ()))?;
    let mut times = Vec::with_capacity(bench.frames);
    let mut pages = None;
    for (i, image) in images.iter().cycle().take(WARM_UP + bench.frames).enumerate() {
        if i == WARM_UP {
            pages = fresh_pages();
        }
        let begin = Instant::now();
        engine.segment(&Frame::rgb_image(image), None)?;
        if i >= WARM_UP {
            times.push(begin.elapsed());
        }
    }
    let pages = fresh_pages().zip(pages).map(|(after, before)| after - before);
    let overlapped = overlapped(&mut engine, &images, bench.frames)?;
    let peak_memory_mb = peak_memory_mb();
    drop(engine);
    let Some(whole) = Percentiles::of(&times) else { return Err(Error::invalid("nothing was measured")) };
    let device = bench.device.resolve()?;
    Ok(ModelReport {
        frames_per_s: times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64(),
        overlapped_frames_per_s: overlapped,
        p50_ms: whole.p50,
        p99_ms: whole.p99,
        stages_ms: stages(bench, &checkpoint, &images, &device)?,
        peak_memory_mb,
        fresh_pages_per_frame: pages.map(|pages| pages as f64 / bench.frames as f64),
        allocations_per_inference: allocations(bench, &checkpoint, &options, &images)?,
        frames: times.len(),
        size: format!("{width}x{height}"),
        device: if device.is_cpu() { "cpu" } else { "cuda" },
        precision: Arithmetic::of(
            bench.precision,
            &device,
            &ModelConfig::of(&checkpoint)?,
            &checkpoint.path,
        )?
        .name(),
    })
}

/// Frames per second if the next frame is resized during inference.
fn overlapped(engine: &mut Engine, images: &[RgbImage], frames: usize) -> Result<f64> {
    let mut before: Option<Pending> = None;
    let mut begin = Instant::now();
    for (i, image) in images.iter().cycle().take(WARM_UP + frames).enumerate() {
        if i == WARM_UP {
            begin = Instant::now();
        }
        let next = engine.submit(&Frame::rgb_image(image), None)?;
        if let Some(pending) = before.replace(next) {
            pending.wait()?;
        }
    }
    if let Some(pending) = before {
        pending.wait()?;
    }
    Ok(frames as f64 / begin.elapsed().as_secs_f64())
}

/// See [`ModelReport::allocations_per_inference`]. Nothing else runs at the same time.
fn allocations(
    bench: &ModelBench,
    checkpoint: &Checkpoint,
    options: &ModelOptions,
    images: &[RgbImage],
) -> Result<Option<f64>> {
    if process::all_allocations() == 0 {
        return Ok(None);
    }
    let mut segmenter = model::open_checkpoint(checkpoint, options)?;
    let mut resizer = Resizer::new(segmenter.input_size());
    let mut sample = ModelInput::default();
    let mut map = ProbMap::default();
    let (mut asked, frames) = (0, bench.frames.min(50));
    for (i, image) in images.iter().cycle().take(WARM_UP + frames).enumerate() {
        resizer.resize(&Frame::rgb_image(image), &mut sample)?;
        let before = process::all_allocations();
        segmenter.segment(&sample, &mut map)?;
        if i >= WARM_UP {
            asked += process::all_allocations() - before;
        }
    }
    Ok(Some(asked as f64 / frames as f64))
}

fn stages(
    bench: &ModelBench,
    checkpoint: &Checkpoint,
    images: &[RgbImage],
    device: &Device,
) -> Result<BTreeMap<&'static str, f64>> {
    let (model, Arithmetic { products, .. }) = AutoSam::with_precision(checkpoint, device, bench.precision)?;
    let size = model.image_size();
    let mut resizer = Resizer::new(size);
    resizer.set_parallel(!device.is_cpu());
    let mut samples = [ModelInput::default()];
    let mut clock = Clock { device, times: vec![Vec::new(); STAGES.len()] };
    for image in images.iter().cycle().take(WARM_UP + bench.frames.min(50)) {
        let frame = Frame::rgb_image(image);
        let stages = || -> Result<()> {
            clock.time(0, || resizer.resize(&frame, &mut samples[0]))?;
            let x = clock.time(1, || model.preprocess(&samples))?;
            let embedding = clock.time(2, || ops::autocast(products, || model.embed(&x)))?;
            let prompt = clock.time(3, || ops::autocast(products, || model.dense_prompt(&x, false)))?;
            let logits = clock.time(4, || ops::autocast(products, || model.decode(&embedding, &prompt)))?;
            let maps = clock.time(5, || model::probabilities(&logits, &samples, size, MaskMode::Sigmoid))?;
            let (width, height) = (frame.info.width, frame.info.height);
            clock.time(6, || {
                for map in maps {
                    let mask = Mask::new(map, &MaskSettings::default());
                    std::hint::black_box(Overlay::new(&mask, width, height, OverlayMode::default(), 0));
                }
                Ok(())
            })
        };
        ops::in_pool_of(device, stages)?;
    }
    let median =
        |times: &Vec<Duration>| Percentiles::of(times.get(WARM_UP..).unwrap_or(times)).map(|p| p.p50);
    Ok(STAGES.into_iter().zip(&clock.times).filter_map(|(name, t)| Some((name, median(t)?))).collect())
}

struct Clock<'a> {
    device: &'a Device,
    times: Vec<Vec<Duration>>,
}

impl Clock<'_> {
    fn time<T>(&mut self, stage: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = work();
        // Launches on a GPU are asynchronous: wait for the result.
        self.device.synchronize()?;
        self.times[stage].push(begin.elapsed());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_timed() {
        let bench = ModelBench {
            model: None,
            untrained: None,
            device: DeviceChoice::Cpu,
            precision: Precision::F32,
            views: Flips::One,
            frames: 2,
            size: (320, 240),
            input: None,
        };
        let report = run(&bench).unwrap();
        assert_eq!(report.frames, 2);
        assert!(report.frames_per_s > 0.0 && report.overlapped_frames_per_s > 0.0);
        assert!(report.p50_ms <= report.p99_ms);
        assert!(STAGES.iter().all(|s| report.stages_ms[s] > 0.0), "{report:?}");
        assert!(run(&ModelBench { frames: 0, ..bench }).is_err());
    }
}
