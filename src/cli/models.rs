//! `autosam-video models`.

use super::args::parse_device;
use super::progress;
use super::sets::open_each;
use anyhow::bail;
use autosam::data::Dataset;
use autosam::eval::calibrate::calibrate;
use autosam::eval::presence;
use autosam::eval::quantise::quantise;
use autosam::frame::region::CropMode;
use autosam::generator::{HarDNet, HarDNetConfig};
use autosam::model::{self, CONFIG_KEY, Calibration, DeviceChoice, ModelConfig};
use autosam::sam::Sam;
use autosam::weights::published::{self, PUBLISHED};
use autosam::weights::{self, Checkpoint, Dtype, fetch, recorder};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};

/// Lists, fetches, shows, verifies, converts, averages, calibrates and quantizes weights.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Lists the built-in model and the published weights that can be loaded
    List,
    /// Downloads published weights into the cache, verifies them and prints the path
    ///
    /// An interrupted download is resumed. Example: `train --sam "$(autosam-video models fetch sam-vit-b)"`.
    Fetch {
        /// Name as printed by `models list`
        name: String,
        /// Folder to keep them in [default: $XDG_CACHE_HOME/autosam-video/weights]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Mirror of the file; it must have the published hash
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Converts a .pth, .pt or .safetensors file, also a pickled module, to .safetensors. No code in it is run
    ///
    /// From a training checkpoint the model is used: the tensors below state_dict, model, net, ema and other usual keys, without
    /// a prefix such as `module.` that all names share. The used and unused parts are printed.
    Convert {
        /// .pth, .pt or .ckpt of any PyTorch, .safetensors, or a wheel or zip with one such file in it
        file: PathBuf,
        #[command(flatten)]
        part: Part,
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
        /// Number format of the floats written
        #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
        dtype: DtypeArg,
        /// New input size of a TinyViT or EfficientNet-Lite SAM, a multiple of 16 or 32; attention biases are resized to it
        #[arg(long, value_name = "PIXELS")]
        image_size: Option<usize>,
    },
    /// Averages the weights of models trained from the same starting point
    ///
    /// A "model soup" is often better than each of its models, mostly on data unlike the training data. Calibrate it again. A
    /// SAM-only file after an AutoSAM contributes to the SAM only.
    Average {
        #[arg(required = true, num_args = 2.., value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Weight of each file, in their order [default: equal]
        #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
        weights: Vec<f64>,
        /// Keep the first file's calibration; otherwise the result has none
        #[arg(long)]
        keep_calibration: bool,
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
    },
    /// Calibrates a model's probabilities on labelled frames that it was not trained on
    ///
    /// Fits a scale and a bias of the logits (Platt scaling) and stores them in the file. The bias also changes the masks,
    /// because it moves the meaning of 0.5; --mask-mode minmax is not affected. Each --data has the same weight.
    Calibrate {
        #[command(flatten)]
        frames: Frames,
        /// Use only every Nth frame
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        every: u32,
        /// Processor: auto, cpu, cuda or cuda:N
        #[arg(long, default_value = "auto", value_parser = parse_device)]
        device: DeviceChoice,
    },
    /// Fits the minimum mask quality, as predicted by SAM's IoU head, for a frame to keep its overlay
    ///
    /// Stores one number in the file: the lowest limit at which at most --alarms of the polyp-free frames keep an overlay.
    /// Calibrate first. Use frames that the model was not trained on; at least one set must have polyp-free ones.
    Presence {
        #[command(flatten)]
        frames: Frames,
        /// Maximum fraction of polyp-free frames that keep an overlay, 0 to 1
        #[arg(long, value_name = "PART", default_value_t = 0.05)]
        alarms: f64,
        /// Processor: auto, cpu, cuda or cuda:N
        #[arg(long, default_value = "auto", value_parser = parse_device)]
        device: DeviceChoice,
    },
    /// Measures a model's activations for int8 inference on a CPU (--precision int8 or auto)
    ///
    /// Stores their ranges in the file; weights stay as they are, and f32 inference is not affected. Use frames of the training
    /// data: some hundred are enough. Weights that are trained or averaged later must be quantized again. For models with an
    /// EfficientNet-Lite.
    Quantize {
        #[command(flatten)]
        frames: Frames,
        /// Use only every Nth frame
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        every: u32,
    },
    /// Shows the contents of a weights file
    Show {
        /// .safetensors, .pth or .pt [default: the built-in model]
        file: Option<PathBuf>,
        #[command(flatten)]
        part: Part,
        /// Print every tensor's name and shape
        #[arg(long)]
        tensors: bool,
    },
    /// Checks names, shapes and values, and prints the file's SHA-256
    Verify {
        /// .safetensors, .pth or .pt
        file: PathBuf,
        #[command(flatten)]
        part: Part,
    },
}

/// A model, the frames to measure it on, and the file for the result.
#[derive(clap::Args)]
struct Frames {
    /// Weights made by `train` [default: the built-in model]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Folder with images/ and masks/, in any layout that `train --data` supports, or a folder of such; may be repeated
    #[arg(long, value_name = "DIR", required = true)]
    data: Vec<PathBuf>,
    /// Part of the frame that the network sees: auto (the endoscope's image), full, or X,Y,WIDTH,HEIGHT in pixels
    #[arg(long, value_name = "PART", default_value = "auto")]
    roi: CropMode,
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

impl Frames {
    /// The model, every `every`th frame of each set, and a bar that counts them.
    fn open(&self, every: u32) -> anyhow::Result<(Checkpoint, Vec<Dataset>, ProgressBar)> {
        safetensors_name(&self.out)?;
        let checkpoint = model::checkpoint(self.model.as_deref())?;
        let mut sets = open_each(&self.data)?;
        sets.iter_mut().for_each(|set| set.keep_every(every as usize));
        let bar = ProgressBar::new(sets.iter().map(|s| s.items.len() as u64).sum());
        Ok((checkpoint, sets, bar))
    }
}

#[derive(clap::Args)]
struct Part {
    /// Part to use of a file with several models (ema, state_dict.model), or prefix of the tensor names to use
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

impl Part {
    /// Reads the chosen part and prints it if it is not the whole file.
    fn load(&self, file: &Path) -> anyhow::Result<Checkpoint> {
        let checkpoint = weights::load_part(file, self.key.as_deref())?;
        let taken = &checkpoint.taken;
        if !taken.is_plain() {
            println!("{}: {} tensors, {taken}", file.display(), checkpoint.tensors.len());
        }
        if self.key.is_none() && taken.others.iter().any(|(name, _)| !name.is_empty()) {
            println!("Select another part with --key NAME.");
        }
        Ok(checkpoint)
    }
}

fn safetensors_name(out: &Path) -> anyhow::Result<()> {
    if out.extension().is_none_or(|e| e != "safetensors") {
        bail!("{}: --out must end in .safetensors", out.display());
    }
    Ok(())
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DtypeArg {
    F32,
    F16,
    Bf16,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::List => list(),
        Command::Fetch { name, dir, url } => fetch_weights(&name, dir, url.as_deref())?,
        Command::Convert { file, part, out, dtype, image_size } => {
            convert(&file, &part, &out, dtype, image_size)?
        }
        Command::Average { files, weights: shares, keep_calibration, out } => {
            average(&files, shares, keep_calibration, &out)?
        }
        Command::Calibrate { frames, every, device } => calibrate_model(&frames, every, device)?,
        Command::Presence { frames, alarms, device } => fit_presence(&frames, alarms, device)?,
        Command::Quantize { frames, every } => quantize(&frames, every)?,
        Command::Show { file, part, tensors } => show(file.as_deref(), &part, tensors)?,
        Command::Verify { file, part } => verify(&file, &part)?,
    }
    Ok(())
}

/// Prints the built-in model and the published weights.
fn list() {
    println!(
        "autosam-lite  {:.1} MB, built in: AutoSAM at small scale, trained by this project (not Meta's weights)",
        model::SHIPPED.len() as f64 / 1e6
    );
    println!("\nDownloaded from their authors by `models fetch NAME`:");
    for published in PUBLISHED {
        let size = published.bytes.map_or("".to_owned(), |b| format!("{:.0} MB", b as f64 / 1e6));
        let hash = match published.sha256 {
            Some(hash) => format!("sha256 {}…", &hash[..12]),
            None => "no published hash; pinned by the first download".to_owned(),
        };
        println!("{:12}  {:34} {size:>8}  {}, {hash}", published.name, published.what, published.source);
    }
}

/// Downloads published weights and prints their path.
fn fetch_weights(name: &str, dir: Option<PathBuf>, url: Option<&str>) -> anyhow::Result<()> {
    let Some(published) = published::find(name) else {
        let names: Vec<_> = PUBLISHED.iter().map(|k| k.name).collect();
        bail!("unknown weights {name:?}; available: {}", names.join(", "));
    };
    let dir = dir.map_or_else(fetch::cache_dir, Ok)?;
    let bar =
        progress::styled(ProgressBar::new(0), "{bar:32} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
    let path = fetch::fetch(published, url.unwrap_or(published.url), &dir, &mut |have, total| {
        bar.set_length(total.unwrap_or(have));
        bar.set_position(have);
    });
    bar.finish_and_clear();
    println!("{}", path?.display());
    Ok(())
}

/// Writes the model in `file` as safetensors.
fn convert(
    file: &Path,
    part: &Part,
    out: &Path,
    dtype: DtypeArg,
    image_size: Option<usize>,
) -> anyhow::Result<()> {
    safetensors_name(out)?;
    let mut checkpoint = part.load(file)?;
    if let Some(size) = image_size {
        model::resize(&mut checkpoint, size)?;
    }
    let dtype = match dtype {
        DtypeArg::F32 => Dtype::F32,
        DtypeArg::F16 => Dtype::F16,
        DtypeArg::Bf16 => Dtype::Bf16,
    };
    weights::save_safetensors(out, &checkpoint.tensors, &checkpoint.metadata, dtype)?;
    println!("{}: {} tensors", out.display(), checkpoint.tensors.len());
    Ok(())
}

/// Writes the mean of the models in `files`, each with its weight of `shares`.
fn average(files: &[PathBuf], shares: Vec<f64>, keep_calibration: bool, out: &Path) -> anyhow::Result<()> {
    safetensors_name(out)?;
    let mut models = files.iter().map(|f| weights::load(f)).collect::<autosam::Result<Vec<_>>>()?;
    if let Some((first, others)) = models.split_first_mut() {
        others.iter_mut().for_each(|other| model::complete(other, first));
    }
    let shares = if shares.is_empty() { vec![1.0; files.len()] } else { shares };
    let mut mean = weights::average(&models, &shares)?;
    if mean.metadata.contains_key(CONFIG_KEY) {
        // Neither the calibration nor the activations of one model are those of their mean.
        let mut config = ModelConfig { quantisation: None, ..ModelConfig::of(&mean)? };
        if !keep_calibration {
            config.calibration = Calibration::default();
        }
        config.note(&mut mean)?;
    }
    mean.save(out)?;
    println!("{}: mean of {} files", out.display(), files.len());
    Ok(())
}

/// Fits a scale and a bias of the logits.
fn calibrate_model(frames: &Frames, every: u32, device: DeviceChoice) -> anyhow::Result<()> {
    let (mut checkpoint, sets, bar) = frames.open(every)?;
    let found = calibrate(&mut checkpoint, &device.resolve()?, &sets, frames.roi, || bar.inc(1));
    bar.finish_and_clear();
    let found = found?;
    checkpoint.save(&frames.out)?;
    println!(
        "{}: scale {:.4}, bias {:.4}; loss per pixel {:.4} to {:.4} on {} frames",
        frames.out.display(),
        found.calibration.scale,
        found.calibration.bias,
        found.loss.0,
        found.loss.1,
        found.frames
    );
    Ok(())
}

/// Fits the minimum mask quality for a frame to keep its overlay.
fn fit_presence(frames: &Frames, alarms: f64, device: DeviceChoice) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&alarms) {
        bail!("--alarms {alarms}: expected a fraction of the polyp-free frames, 0 to 1");
    }
    let (mut checkpoint, sets, bar) = frames.open(1)?;
    let device = device.resolve()?;
    let found = presence::fit(&mut checkpoint, &device, &sets, frames.roi, alarms, || bar.inc(1))?;
    bar.finish_and_clear();
    checkpoint.save(&frames.out)?;
    match found.presence {
        Some(p) => {
            println!("{}: minimum predicted IoU of a mask {:.3}", frames.out.display(), p.least)
        }
        None => println!(
            "{}: not changed, few enough polyp-free frames have an overlay already",
            frames.out.display()
        ),
    }
    for (what, [all, before, after]) in
        [("polyp-free frames", found.polyp_free), ("frames with a polyp", found.polyps)]
    {
        println!("{what}: {all}; with an overlay: {before} before, {after} after");
    }
    Ok(())
}

/// Stores the ranges of the activations.
fn quantize(frames: &Frames, every: u32) -> anyhow::Result<()> {
    let (mut checkpoint, sets, bar) = frames.open(every)?;
    let found = quantise(&mut checkpoint, &sets, frames.roi, || bar.inc(1));
    bar.finish_and_clear();
    let activations = found?;
    checkpoint.save(&frames.out)?;
    let count = sets.iter().map(|s| s.items.len()).sum::<usize>();
    println!("{}: ranges of {activations} activations, from {count} frames", frames.out.display());
    Ok(())
}

/// Prints what `file`, or the built-in model, contains.
fn show(file: Option<&Path>, part: &Part, tensors: bool) -> anyhow::Result<()> {
    let checkpoint = match file {
        Some(file) => part.load(file)?,
        None => model::checkpoint(None)?,
    };
    println!("{}\n{}", checkpoint.path.display(), kind(&checkpoint)?.0);
    let count: usize = checkpoint.tensors.values().map(|t| t.elem_count()).sum();
    println!("{} tensors, {count} values", checkpoint.tensors.len());
    if tensors {
        let mut all: Vec<_> = checkpoint.shapes().into_iter().collect();
        all.sort();
        for (name, shape) in all {
            println!("{name} {shape:?}");
        }
    }
    Ok(())
}

fn verify(file: &Path, part: &Part) -> anyhow::Result<()> {
    let checkpoint = part.load(file)?;
    let (what, expected) = kind(&checkpoint)?;
    checkpoint.check(&expected)?;
    checkpoint.check_finite()?;
    let hash = weights::sha256_of(file)?;
    let origin =
        PUBLISHED.iter().find(|k| k.sha256 == Some(&hash)).map(|k| format!(" ({}, as published)", k.name));
    println!("{}: {what}; all tensors are valid", file.display());
    println!("sha256 {hash}{}", origin.unwrap_or_default());
    Ok(())
}

/// Description of the model, and the tensors expected in such a file.
fn kind(checkpoint: &Checkpoint) -> anyhow::Result<(String, recorder::Shapes)> {
    if checkpoint.metadata.contains_key(CONFIG_KEY) {
        let config = ModelConfig::of(checkpoint)?;
        let mut what = format!(
            "AutoSAM: SAM at {} px{}, generator at {} px",
            config.sam.image_size,
            if config.sam.stretch { ", frames stretched" } else { "" },
            config.generator.input_size
        );
        let calibration = config.calibration;
        if calibration != Calibration::default() {
            what += &format!("; calibrated: scale {}, bias {}", calibration.scale, calibration.bias);
        }
        if config.quantisation.is_some() {
            what += "; quantized for int8";
        }
        if let Some(presence) = config.presence {
            what += &format!("; minimum predicted IoU of a mask {:.3}", presence.least);
        }
        return Ok((what, config.parameter_shapes()?));
    }
    if let Some(found) = hardnet(checkpoint)? {
        return Ok(found);
    }
    let config = model::sam_config(checkpoint)?;
    let shapes = recorder::shapes_of(|vb| Sam::load(&config, vb))?;
    Ok((format!("SAM at {} px", config.image_size), shapes))
}

/// A HarDNet classifier as its authors publish it, recognised by its tensors. The classifier itself is not used.
fn hardnet(checkpoint: &Checkpoint) -> anyhow::Result<Option<(String, recorder::Shapes)>> {
    for (name, config) in [
        ("HarDNet-39DS", HarDNetConfig::hardnet39ds()),
        ("HarDNet-68", HarDNetConfig::hardnet68()),
        ("HarDNet-85", HarDNetConfig::hardnet85()),
    ] {
        let shapes = recorder::shapes_of(|vb| HarDNet::load(&config, vb))?;
        let fits = |(name, shape): &(String, Vec<usize>)| {
            checkpoint.tensors.get(name).is_some_and(|t| t.dims() == shape.as_slice())
        };
        if shapes.iter().all(fits) {
            let all = checkpoint.shapes().into_iter().collect();
            return Ok(Some((format!("{name}, a generator's backbone"), all)));
        }
    }
    Ok(None)
}
