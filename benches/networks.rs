//! Times of networks and training steps, one JSON line per run: `{"case": …, "seconds": …}`.
//!
//!     cargo bench --bench networks                    # every case, the median of five runs
//!     cargo bench --bench networks -- generator       # cases whose name contains a word
//!     cargo bench --bench networks -- --serve         # one run for each case named on a line of standard input
//!     cargo bench --bench networks -- --dump DIR      # weights, input and output of each network, as safetensors
//!     AUTOSAM_BENCH_MODEL=FILE AUTOSAM_BENCH_PRECISION=int8 cargo bench --bench networks -- shipped
//!     AUTOSAM_BENCH_DEVICE=cuda AUTOSAM_BENCH_PRECISION=bf16 cargo bench --features cuda --bench networks
//!
//! `benches/pytorch.py` runs the same cases in PyTorch beside this program, `benches/openvino.py` the shipped network in other
//! engines.

use autosam::bench;
use autosam::data::loader::Batch;
use autosam::engine::segmenter::{ModelInput, ProbMap, Segmenter};
use autosam::generator::{Generator, GeneratorConfig};
use autosam::model::{self, AutoSam, DeviceChoice, MaskMode, ModelConfig, ModelOptions, Precision};
use autosam::ops;
use autosam::sam::{Prompts, Sam, SamConfig};
use autosam::train::config::GeneratorKind;
use autosam::train::prompts::PromptMix;
use autosam::train::{Stage, TrainConfig, Trainer};
use autosam::weights::{Checkpoint, Dtype, init::initialise, recorder::shapes_of, save_safetensors};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: autosam::process::Allocator = autosam::process::Allocator;

type Failure = Box<dyn std::error::Error>;
type Outcome<T> = Result<T, Failure>;

const CASES: [&str; 12] = [
    // These run only if they are requested.
    "vit_h_1024",
    // From the bytes of a downscaled 1080p frame to the bytes of its mask.
    "frame_vit_h",
    "frame_vit_b",
    "vit_b_1024",
    "tiny_vit_1024",
    "mask_decoder_64",
    "hardnet85_352",
    "hardnet68_256",
    "shipped",
    // Four frames at once, to see whether batching the frames of several elements would pay. Not in benches/pytorch.py.
    "shipped_x4",
    "train_generator",
    "train_sam",
];

/// Images of a training step.
const BATCH: usize = 8;

fn main() -> Outcome<()> {
    // SAFETY: this is the first action of the program; no other thread exists.
    unsafe { autosam::process::settle() };
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let scratch = tempfile::tempdir()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--serve"] => {
            let mut cases = HashMap::new();
            for line in std::io::stdin().lock().lines() {
                let name = line?;
                if !cases.contains_key(&name) {
                    let mut case = Case::open(&name, scratch.path())?;
                    case.run()?;
                    cases.insert(name.clone(), case);
                }
                if let Some(case) = cases.get_mut(&name) {
                    report(&name, case.time()?);
                }
            }
        }
        ["--dump", dir] => {
            for name in
                CASES.iter().filter(|n| !n.starts_with("train") && !n.ends_with("_x4") && !on_a_gpu(n))
            {
                dump(name, Path::new(dir))?;
            }
        }
        words => {
            for name in CASES
                .iter()
                .filter(|n| !words.is_empty() || !on_a_gpu(n))
                .filter(|n| words.is_empty() || words.iter().any(|w| n.contains(w)))
            {
                let mut case = Case::open(name, scratch.path())?;
                // Inference on a GPU is recorded after a few runs.
                for _ in 0..if place()?.0.is_cpu() { 1 } else { 5 } {
                    case.run()?;
                }
                let mut times = (0..5).map(|_| case.time()).collect::<Outcome<Vec<_>>>()?;
                times.sort_by(f64::total_cmp);
                report(name, times[times.len() / 2]);
            }
        }
    }
    Ok(())
}

/// Cases that take minutes on a CPU.
fn on_a_gpu(case: &str) -> bool {
    case.starts_with("vit_h") || case.starts_with("frame_")
}

fn report(case: &str, seconds: f64) {
    println!("{}", serde_json::json!({ "case": case, "seconds": seconds }));
}

/// Numbers in [-1, 1), which the PyTorch program reads from the dump.
fn noise(shape: &[usize]) -> Outcome<Tensor> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u32)
        .map(|i| {
            let mixed = (i.wrapping_mul(0x9E37_79B9) ^ 0x5BF0_3635).wrapping_mul(0x85EB_CA6B);
            (mixed ^ (mixed >> 13)) as f32 / 2f32.powi(31) - 1.0
        })
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Input size of the shipped model in pixels.
fn side() -> Outcome<usize> {
    Ok(ModelConfig::of(&model::checkpoint(None)?)?.sam.image_size)
}

/// Device of the cases, and number format of their products (`AUTOSAM_BENCH_DEVICE`, `AUTOSAM_BENCH_PRECISION`).
fn place() -> Outcome<(Device, Option<DType>)> {
    let device = match std::env::var("AUTOSAM_BENCH_DEVICE").as_deref() {
        Ok("cuda") => DeviceChoice::Cuda(0).resolve()?,
        Ok("cpu") | Err(_) => Device::Cpu,
        Ok(other) => return Err(format!("AUTOSAM_BENCH_DEVICE={other}: cpu or cuda").into()),
    };
    let products = match std::env::var("AUTOSAM_BENCH_PRECISION").as_deref() {
        Ok("bf16") => Some(DType::BF16),
        Ok("f16") => Some(DType::F16),
        Ok("f32" | "int8") | Err(_) => None,
        Ok(other) => return Err(format!("AUTOSAM_BENCH_PRECISION={other}: f32, f16, bf16 or int8").into()),
    };
    Ok((device, products))
}

/// [`place`] as options for opening a model.
fn options() -> Outcome<ModelOptions> {
    let (device, products) = place()?;
    Ok(ModelOptions {
        device: if device.is_cpu() { DeviceChoice::Cpu } else { DeviceChoice::Cuda(0) },
        precision: match products {
            None if std::env::var("AUTOSAM_BENCH_PRECISION").is_ok_and(|p| p == "int8") => Precision::Int8,
            None => Precision::F32,
            Some(DType::BF16) => Precision::Bf16,
            Some(_) => Precision::F16,
        },
        ..ModelOptions::default()
    })
}

/// Weights to use instead of the shipped model's (`AUTOSAM_BENCH_MODEL`).
fn weights() -> Option<PathBuf> {
    std::env::var_os("AUTOSAM_BENCH_MODEL").map(PathBuf::from)
}

/// One network on one input, or one training step.
enum Case {
    Network { run: Box<Run>, x: Tensor },
    Shipped(Box<dyn Segmenter>, ModelInput),
    Batch(Box<AutoSam>, Vec<ModelInput>),
    Step(Box<Trainer>, Vec<Batch>),
}

impl Case {
    /// Builds the case named `name`; it writes its files below `scratch`.
    fn open(name: &str, scratch: &Path) -> Outcome<Self> {
        match name {
            "shipped" => {
                let segmenter = model::open(weights().as_deref(), &options()?)?;
                Ok(Self::Shipped(segmenter, frames(1, side()?).samples.remove(0)))
            }
            "shipped_x4" => {
                let model = AutoSam::from_checkpoint(&model::checkpoint(None)?, &place()?.0)?;
                Ok(Self::Batch(Box::new(model), frames(4, side()?).samples))
            }
            "train_generator" => {
                let config = TrainConfig {
                    batch: BATCH,
                    views: 1,
                    generator: GeneratorKind::EfficientNetLite0,
                    generator_input: side()?,
                    overlap_weight: 0.0,
                    own_weight: 0.0,
                    ..TrainConfig::default()
                };
                let mut trainer = Trainer::new(&config, None, &place()?.0)?;
                trainer.cache_embeddings(&scratch.join("cache"), BATCH, 1 << 30)?;
                Ok(Self::Step(Box::new(trainer), vec![frames(BATCH, side()?)]))
            }
            "train_sam" => {
                let prompts = PromptMix { none: 1.0, point: 0.0, bbox: 0.0, mask: 0.0 };
                let image_size = side()?;
                let config = TrainConfig {
                    stage: Stage::Sam,
                    batch: BATCH,
                    image_size,
                    prompts,
                    overlap_weight: 0.0,
                    ..TrainConfig::default()
                };
                Ok(Self::Step(
                    Box::new(Trainer::new(&config, None, &place()?.0)?),
                    vec![frames(BATCH, image_size)],
                ))
            }
            "frame_vit_h" | "frame_vit_b" => {
                let segmenter =
                    model::open_checkpoint(&bench::model::untrained(&name["frame_".len()..])?, &options()?)?;
                let frame = frames(1, 1024).samples.remove(0);
                let rgb = frame.rgb[..576 * 1024 * 3].to_vec();
                Ok(Self::Shipped(segmenter, ModelInput { width: 1024, height: 576, rgb }))
            }
            _ => {
                let (run, x, _) = network(name)?;
                Ok(Self::Network { run, x: x.to_device(&place()?.0)? })
            }
        }
    }

    fn run(&mut self) -> Outcome<()> {
        match self {
            Self::Network { run, x } => {
                ops::in_pool_of(x.device(), || run(x))?;
                x.device().synchronize()?;
            }
            Self::Shipped(segmenter, sample) => segmenter.segment(sample, &mut ProbMap::default())?,
            Self::Batch(model, samples) => {
                ops::in_pool(|| -> autosam::Result<()> {
                    let logits = model.forward(&model.preprocess(samples)?)?;
                    model::probabilities(&logits, samples, model.image_size(), MaskMode::Sigmoid)?;
                    Ok(())
                })?;
            }
            Self::Step(trainer, batches) => {
                trainer.step(batches)?;
            }
        }
        Ok(())
    }

    fn time(&mut self) -> Outcome<f64> {
        let start = Instant::now();
        self.run()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Writes frames with discs on a background, and their masks.
fn frames(n: usize, size: usize) -> Batch {
    let mut batch = Batch { samples: Vec::new(), masks: Vec::new(), ids: Vec::new() };
    for k in 0..n {
        let centre = (0.3 + 0.05 * k as f32) * size as f32;
        let inside =
            |i: usize| ((i % size) as f32 - centre).hypot((i / size) as f32 - centre) < 0.2 * size as f32;
        let pixel = |i: usize| if inside(i) { [200, 120, 110] } else { [90 + (i % 17) as u8, 40, k as u8] };
        batch.samples.push(ModelInput {
            width: size,
            height: size,
            rgb: (0..size * size).flat_map(pixel).collect(),
        });
        batch.masks.push((0..size * size).map(|i| if inside(i) { 255 } else { 0 }).collect());
        batch.ids.push(k.to_string());
    }
    batch
}

/// From an input to an output.
type Run = dyn Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync;

type Network = (Box<Run>, Tensor, HashMap<String, Tensor>);

/// A network in inference, its input, and its weights.
fn network(name: &str) -> Outcome<Network> {
    let (device, products) = place()?;
    let sam = |config: SamConfig| -> Outcome<(Sam, HashMap<String, Tensor>)> {
        let tensors = initialise(&shapes_of(|vb| Sam::load(&config, vb))?, 0)?;
        let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &device);
        let mut sam = Sam::load(&config, vb)?;
        ops::autocast(products, || sam.fold())?;
        Ok((sam, tensors))
    };
    let generator = |config: GeneratorConfig, grid: usize| -> Outcome<Network> {
        let tensors = initialise(&shapes_of(|vb| Generator::load(&config, vb))?, 0)?;
        let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &device);
        let mut generator = Generator::load(&config, vb)?;
        ops::autocast(products, || generator.fold())?;
        let x = noise(&[1, 3, config.input_size, config.input_size])?;
        Ok((Box::new(move |x| ops::autocast(products, || generator.forward(x, grid, false))), x, tensors))
    };
    match name {
        "vit_h_1024" | "vit_b_1024" | "tiny_vit_1024" => {
            let config = match name {
                "vit_h_1024" => SamConfig::vit_h(),
                "vit_b_1024" => SamConfig::vit_b(),
                _ => SamConfig::mobile_sam(),
            };
            let (sam, tensors) = sam(config)?;
            let x = noise(&[1, 3, 1024, 1024])?;
            Ok((Box::new(move |x| ops::autocast(products, || sam.encode_image(x, false))), x, tensors))
        }
        "mask_decoder_64" => {
            let (sam, tensors) = sam(SamConfig::mobile_sam())?;
            let x = noise(&[2, 256, 64, 64])?;
            let dense_pe = sam.prompt_encoder.dense_pe()?;
            let run = move |x: &Tensor| {
                let (sparse, _) = sam.prompt_encoder.forward(&Prompts::default(), 1)?;
                let (embeddings, dense) = (x.narrow(0, 0, 1)?, x.narrow(0, 1, 1)?);
                ops::autocast(products, || {
                    sam.mask_decoder.mask_logits(&embeddings, &dense_pe, &sparse, &dense)
                })
            };
            Ok((Box::new(run), x, tensors))
        }
        "hardnet85_352" => generator(GeneratorConfig::hardnet85(352), 64),
        "hardnet68_256" => generator(GeneratorConfig::hardnet68(256), 64),
        _ => Err(format!("{name}: none of {}", CASES.join(", ")).into()),
    }
}

/// Writes `NAME.safetensors` with weights, the input `x` and the output `y`.
fn dump(name: &str, dir: &Path) -> Outcome<()> {
    let path: PathBuf = dir.join(format!("{name}.safetensors"));
    let tensors = if name == "shipped" {
        // The network's logits, because the PyTorch program has neither calibration nor presence.
        let mut checkpoint: Checkpoint = model::checkpoint(None)?;
        let config = ModelConfig::of(&checkpoint)?;
        ModelConfig::new(config.sam, config.generator).note(&mut checkpoint)?;
        let model = AutoSam::from_checkpoint(&checkpoint, &Device::Cpu)?;
        let side = side()?;
        let samples = frames(1, side).samples;
        let mut tensors = checkpoint.tensors;
        let rgb: Vec<f32> = samples[0].rgb.iter().map(|v| f32::from(*v)).collect();
        tensors.insert("x".into(), Tensor::from_vec(rgb, (side, side, 3), &Device::Cpu)?);
        tensors.insert("y".into(), model.forward(&model.preprocess(&samples)?)?);
        tensors
    } else {
        let (run, x, mut tensors) = network(name)?;
        tensors.insert("y".into(), run(&x.to_device(&place()?.0)?)?.to_device(&Device::Cpu)?);
        tensors.insert("x".into(), x);
        tensors
    };
    save_safetensors(&path, &tensors, &HashMap::new(), Dtype::F32)?;
    Ok(())
}
