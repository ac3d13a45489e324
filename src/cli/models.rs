//! `autosam-video models`.

use anyhow::bail;
use autosam::model::{self, CONFIG_KEY, ModelConfig};
use autosam::sam::Sam;
use autosam::weights::known::KNOWN;
use autosam::weights::{self, Checkpoint, recorder};
use std::path::{Path, PathBuf};

/// Lists, shows and verifies weights.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The model that comes with the program, and published weights that it can load
    List,
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

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::List => {
            println!(
                "autosam-tiny  {:.1} MB, comes with the program: AutoSAM at small scale, trained by this project (not Meta's weights)",
                model::SHIPPED.len() as f64 / 1e6
            );
            println!("\nFor `train --sam`, from their authors:");
            for known in KNOWN {
                println!("{:12}  {:24} {} ({})", known.name, known.file, known.what, known.source);
            }
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
    let bytes = std::fs::read(file).map_err(|e| autosam::Error::io(file, e))?;
    println!("{}: {what}; all tensors are as they should be", file.display());
    println!("sha256 {}", weights::sha256(&bytes));
    Ok(())
}

/// In words, and the tensors that such a file has.
fn kind(checkpoint: &Checkpoint) -> anyhow::Result<(String, recorder::Shapes)> {
    if checkpoint.metadata.contains_key(CONFIG_KEY) {
        let config = ModelConfig::of(checkpoint)?;
        let what = format!(
            "AutoSAM: SAM at {} px, generator at {} px",
            config.sam.image_size, config.generator.input_size
        );
        return Ok((what, config.parameter_shapes()?));
    }
    let config = model::sam_config(checkpoint)?;
    let shapes = recorder::shapes_of(|vb| Sam::load(&config, vb))?;
    Ok((format!("SAM at {} px", config.image_size), shapes))
}
