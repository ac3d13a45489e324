//! Measures how much inference in 16 bits changes masks: Dice against the masks in f32, at the network's size.
//!
//!     cargo run --release --example precision -- --data kvasir/val
//!     cargo run --release --features cuda --example precision -- --data kvasir/val --cuda
//!
//! On a CPU, products that a GPU computes in 16 bits go through the same casts one at a time.

use autosam::data::Dataset;
use autosam::engine::segmenter::{ModelInput, ProbMap};
use autosam::eval;
use autosam::frame::region::CropMode;
use autosam::frame::{Frame, resize::Resizer};
use autosam::model::{self, AutoSam, DeviceChoice, MaskMode, ModelOptions, Precision};
use autosam::ops;
use candle_core::Device;
use clap::Parser;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: autosam::process::Allocator = autosam::process::Allocator;

#[derive(Parser)]
struct Args {
    /// Folder of images, in any layout that `eval` supports
    #[arg(long)]
    data: PathBuf,
    /// Weights [default: the shipped model]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Use the first GPU
    #[arg(long)]
    cuda: bool,
}

/// Probabilities of `samples`' pixels, 0 to 255, with products in `precision`.
fn maps(args: &Args, samples: &[ModelInput], precision: Precision) -> anyhow::Result<Vec<Vec<u8>>> {
    if args.cuda {
        let options = ModelOptions { device: DeviceChoice::Cuda(0), precision, ..ModelOptions::default() };
        let mut segmenter = model::open(args.model.as_deref(), &options)?;
        let mut map_of = |sample: &ModelInput| {
            let mut map = ProbMap::default();
            segmenter.segment(sample, &mut map).map(|()| map.data)
        };
        return Ok(samples.iter().map(&mut map_of).collect::<Result<_, _>>()?);
    }
    let model = AutoSam::from_checkpoint(&model::checkpoint(args.model.as_deref())?, &Device::Cpu)?;
    let map_of = |sample: &ModelInput| {
        let sample = std::slice::from_ref(sample);
        let x = model.preprocess(sample)?;
        let logits = ops::autocast(precision.dtype(), || {
            model.decode(&model.embed(&x)?, &model.dense_prompt(&x, false)?)
        })?;
        let maps = model::probabilities(&logits, sample, model.image_size(), MaskMode::Sigmoid)?;
        Ok(maps.into_iter().map(|map| map.data).next().unwrap_or_default())
    };
    samples.iter().map(map_of).collect()
}

fn main() -> anyhow::Result<()> {
    // SAFETY: this is the first action of the program; no other thread exists.
    unsafe { autosam::process::settle() };
    let args = Args::parse();
    let config = model::ModelConfig::of(&model::checkpoint(args.model.as_deref())?)?;
    let mut resizer = Resizer::new(config.sam.image_size);
    let mut samples = Vec::new();
    for item in Dataset::open(&args.data)?.items {
        let image = item.load()?.rgb;
        let frame = Frame::rgb_image(&image);
        let mut sample = ModelInput::default();
        resizer.resize(&frame.crop(CropMode::Auto.of(&frame)?), &mut sample)?;
        samples.push(sample);
    }
    let full = maps(&args, &samples, Precision::F32)?;
    println!("| products | images with a mask | mean Dice | worst | below 0.995 |\n|---|---|---|---|---|");
    for precision in [Precision::F16, Precision::Bf16] {
        let half = maps(&args, &samples, precision)?;
        let has_mask = |map: &[u8]| map.iter().any(|p| *p > 127);
        let pairs = full.iter().zip(&half).filter(|(a, b)| has_mask(a) || has_mask(b));
        let dice: Vec<f64> = pairs.map(|(a, b)| eval::dice(a, b)).collect();
        let mean = dice.iter().sum::<f64>() / dice.len() as f64;
        let worst = dice.iter().copied().fold(f64::INFINITY, f64::min);
        let below = dice.iter().filter(|d| **d < 0.995).count();
        println!("| {precision:?} | {} | {mean:.4} | {worst:.4} | {below} |", dice.len());
    }
    Ok(())
}
