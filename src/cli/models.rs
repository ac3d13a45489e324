//! `autosam-video models`.

use super::run::parse_device;
use anyhow::bail;
use autosam::data::Dataset;
use autosam::eval::calibrate::calibrate;
use autosam::frame::region::Region;
use autosam::generator::{HarDNet, HarDNetConfig};
use autosam::model::{self, CONFIG_KEY, Calibration, DeviceChoice, ModelConfig};
use autosam::sam::Sam;
use autosam::weights::known::{self, KNOWN};
use autosam::weights::{self, Checkpoint, Dtype, fetch, recorder};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

/// Lists, fetches, shows, verifies, converts, averages and calibrates weights.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The model that comes with the program, and published weights that it can load
    List,
    /// Downloads published weights into the cache, checks them and prints where they are
    ///
    /// A download that was cut goes on where it stopped. `train --sam "$(autosam-video models fetch sam-vit-b)"`.
    Fetch {
        /// As `models list` has it
        name: String,
        /// Folder to keep them in [default: $XDG_CACHE_HOME/autosam-video/weights]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// A mirror of the file; the hash stays the published one
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Writes the tensors of a .pth, .pt or .safetensors file as .safetensors; of a pickled module too. No code in it is run
    Convert {
        file: PathBuf,
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
        /// Number format of the floats written
        #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
        dtype: DtypeArg,
        /// Another side of a TinyViT SAM's input, a multiple of 16: attention's biases are stretched to the windows that this needs
        #[arg(long, value_name = "PIXELS")]
        image_size: Option<usize>,
    },
    /// Averages the weights of models that were trained from the same beginning
    ///
    /// A "model soup": often better than each of them, most where the data is unlike the training's. Calibrate it anew. After an
    /// AutoSAM a SAM alone counts for its SAM.
    Average {
        #[arg(required = true, num_args = 2.., value_name = "FILE")]
        files: Vec<PathBuf>,
        /// What each file counts for, in their order; alike without
        #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
        weights: Vec<f64>,
        /// The first file's calibration is the mean's; without, it has none
        #[arg(long)]
        keep_calibration: bool,
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
    },
    /// Fits a model's probabilities to labelled frames that it was not trained on
    ///
    /// Two numbers (Platt scaling) that go into the file: a scale and a bias of its logits. The masks change where the bias moves
    /// what 0.5 means; --mask-mode minmax does not.
    Calibrate {
        /// Made by `train`; without, the model that comes with the program
        #[arg(long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// Folder with images/ and masks/, any layout that `train --data` knows, or a folder of such; several may be given, and
        /// count alike
        #[arg(long, value_name = "DIR", required = true)]
        data: Vec<PathBuf>,
        /// Every Nth frame only
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        every: u32,
        /// What of a frame the network sees: auto (the endoscope's picture), full, or X,Y,WIDTH,HEIGHT in pixels
        #[arg(long, value_name = "PART", default_value = "auto")]
        roi: Region,
        /// auto, cpu, cuda or cuda:N
        #[arg(long, default_value = "auto", value_parser = parse_device)]
        device: DeviceChoice,
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
    },
    /// What a weights file holds
    Show {
        /// .safetensors, .pth or .pt; without, the model that comes with the program
        file: Option<PathBuf>,
        /// Print every tensor's name and shape
        #[arg(long)]
        tensors: bool,
    },
    /// Checks names, shapes and values, and prints the file's SHA-256
    Verify {
        /// .safetensors, .pth or .pt
        file: PathBuf,
    },
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
        Command::List => {
            println!(
                "autosam-tiny  {:.1} MB, comes with the program: AutoSAM at small scale, trained by this project (not Meta's weights)",
                model::SHIPPED.len() as f64 / 1e6
            );
            println!("\nFrom their authors, by `models fetch NAME`:");
            for known in KNOWN {
                let size = known.bytes.map_or("".to_owned(), |b| format!("{:.0} MB", b as f64 / 1e6));
                let hash = match known.sha256 {
                    Some(hash) => format!("sha256 {}…", &hash[..12]),
                    None => "no published hash; pinned by the first download".to_owned(),
                };
                println!("{:12}  {:34} {size:>8}  {}, {hash}", known.name, known.what, known.source);
            }
        }
        Command::Fetch { name, dir, url } => {
            let Some(known) = known::find(&name) else {
                let names: Vec<_> = KNOWN.iter().map(|k| k.name).collect();
                bail!("{name}: not in the manifest; there are {}", names.join(", "));
            };
            let dir = dir.map_or_else(fetch::cache_dir, Ok)?;
            let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
                "{bar:32} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
            )?);
            let path = fetch::fetch(known, url.as_deref().unwrap_or(known.url), &dir, &mut |have, total| {
                bar.set_length(total.unwrap_or(have));
                bar.set_position(have);
            });
            bar.finish_and_clear();
            println!("{}", path?.display());
        }
        Command::Convert { file, out, dtype, image_size } => {
            safetensors_name(&out)?;
            let mut checkpoint = weights::load(&file)?;
            if let Some(size) = image_size {
                model::resize(&mut checkpoint, size)?;
            }
            let dtype = match dtype {
                DtypeArg::F32 => Dtype::F32,
                DtypeArg::F16 => Dtype::F16,
                DtypeArg::Bf16 => Dtype::Bf16,
            };
            weights::save_safetensors(&out, &checkpoint.tensors, &checkpoint.metadata, dtype)?;
            println!("{}: {} tensors", out.display(), checkpoint.tensors.len());
        }
        Command::Average { files, weights: shares, keep_calibration, out } => {
            safetensors_name(&out)?;
            let mut models = files.iter().map(|f| weights::load(f)).collect::<autosam::Result<Vec<_>>>()?;
            if let Some((first, others)) = models.split_first_mut() {
                others.iter_mut().for_each(|other| model::complete(other, first));
            }
            let shares = if shares.is_empty() { vec![1.0; files.len()] } else { shares };
            let mut mean = weights::average(&models, &shares)?;
            if !keep_calibration && mean.metadata.contains_key(CONFIG_KEY) {
                // That of one of them is not that of their mean.
                let config = ModelConfig { calibration: Calibration::default(), ..ModelConfig::of(&mean)? };
                config.note(&mut mean)?;
            }
            mean.save(&out)?;
            println!("{}: the mean of {} files", out.display(), files.len());
        }
        Command::Calibrate { model, data, every, roi, device, out } => {
            safetensors_name(&out)?;
            let mut checkpoint = model::checkpoint(model.as_deref())?;
            let mut sets = Vec::new();
            for dir in &data {
                sets.extend(Dataset::open_all(dir)?);
            }
            sets.iter_mut().for_each(|set| set.keep_every(every as usize));
            let bar = ProgressBar::new(sets.iter().map(|s| s.items.len() as u64).sum());
            let found = calibrate(&mut checkpoint, &device.resolve()?, &sets, roi, || bar.inc(1));
            bar.finish_and_clear();
            let found = found?;
            checkpoint.save(&out)?;
            println!(
                "{}: scale {:.4}, bias {:.4}; loss a pixel {:.4} to {:.4} on {} frames",
                out.display(),
                found.calibration.scale,
                found.calibration.bias,
                found.loss.0,
                found.loss.1,
                found.frames
            );
        }
        Command::Show { file, tensors } => {
            let checkpoint = model::checkpoint(file.as_deref())?;
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
        }
        Command::Verify { file } => verify(&file)?,
    }
    Ok(())
}

fn verify(file: &Path) -> anyhow::Result<()> {
    let checkpoint = weights::load(file)?;
    let (what, expected) = kind(&checkpoint)?;
    checkpoint.check(&expected)?;
    let bad = checkpoint.not_finite()?;
    if let Some(first) = bad.first() {
        bail!(
            "{}: {} tensors hold values that are not finite, the first is {first}",
            file.display(),
            bad.len()
        );
    }
    let hash = weights::sha256_of(file)?;
    let origin =
        KNOWN.iter().find(|k| k.sha256 == Some(&hash)).map(|k| format!(" ({}, as published)", k.name));
    println!("{}: {what}; all tensors are as they should be", file.display());
    println!("sha256 {hash}{}", origin.unwrap_or_default());
    Ok(())
}

/// In words, and the tensors that such a file has.
fn kind(checkpoint: &Checkpoint) -> anyhow::Result<(String, recorder::Shapes)> {
    if checkpoint.metadata.contains_key(CONFIG_KEY) {
        let config = ModelConfig::of(checkpoint)?;
        let mut what = format!(
            "AutoSAM: SAM at {} px, generator at {} px",
            config.sam.image_size, config.generator.input_size
        );
        let calibration = config.calibration;
        if calibration != Calibration::default() {
            what += &format!("; calibrated: scale {}, bias {}", calibration.scale, calibration.bias);
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

/// A HarDNet alone, as its authors publish it: by the tensors that it has. Its classifier is not used here.
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
