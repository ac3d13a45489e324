//! `autosam-video data`.

use anyhow::bail;
use autosam::data::split::{SplitConfig, split};
use autosam::data::{Dataset, check, reorganize};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// Looks after data sets: checks them, splits them, puts SUN-SEG together.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Decodes every picture and mask and prints a table: clips, frames, polyp-free frames, polyp area, problems
    Check {
        /// Data sets, in any layout that `train --data` knows, or folders of such
        #[arg(required = true, value_name = "DIR")]
        sets: Vec<PathBuf>,
        /// End with an error where anything cannot be used
        #[arg(long)]
        strict: bool,
    },
    /// Keeps a part of stills aside for validation. Look-alikes stay on one side, and what resembles a picture of --apart
    /// is left out. Makes OUT/train, OUT/val (links) and OUT/split.md
    Split {
        /// Data sets with masks
        #[arg(required = true, value_name = "DIR")]
        sets: Vec<PathBuf>,
        /// A new folder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Other validation and test sets
        #[arg(long, value_name = "DIR")]
        apart: Vec<PathBuf>,
        /// The part that is kept aside, 0 to 1
        #[arg(long, default_value_t = SplitConfig::default().part)]
        part: f64,
        /// Pictures whose perceptual hashes differ in so many of 144 bits or fewer are look-alikes
        #[arg(long, value_name = "BITS", default_value_t = SplitConfig::default().distance)]
        distance: u32,
    },
    /// Puts the SUN database's frames beside SUN-SEG's annotations (the data set's reorganisation step)
    SunsegReorganize {
        /// The database's SUN-Positive, with case1, case2, ...
        #[arg(long, value_name = "DIR")]
        positive: PathBuf,
        /// The annotation archive, unpacked: TrainDataset/GT, TestEasyDataset/Seen/GT, ...
        #[arg(long, value_name = "DIR")]
        annotations: PathBuf,
        /// Where the joined data set goes; beside the annotations where nothing is given
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check { sets, strict } => check_sets(&sets, strict),
        Command::Split { sets, out, apart, part, distance } => {
            if !(0.0..=1.0).contains(&part) {
                bail!("--part {part}: expected a number within 0 and 1");
            }
            let (sets, apart) = (open_all(&sets)?, open_all(&apart)?);
            let count = sets.iter().chain(&apart).map(|s| s.items.len() as u64).sum();
            let bar = ProgressBar::new(count)
                .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} pictures  {eta} left")?);
            let split = split(&sets, &apart, SplitConfig { part, distance }, || bar.inc(1))?;
            bar.finish_and_clear();
            split.write(&out)?;
            println!(
                "{}: {} to train on, {} to validate on, {} left out; {} groups of look-alikes (split.md)",
                out.display(),
                split.train.len(),
                split.val.len(),
                split.left_out.len(),
                split.groups.len()
            );
            Ok(())
        }
        Command::SunsegReorganize { positive, annotations, out } => {
            let bar = ProgressBar::new_spinner();
            let out = out.as_deref().unwrap_or(&annotations);
            let report = reorganize::sunseg(&positive, &annotations, out, |r| {
                bar.set_message(format!("{} clips, {} frames", r.clips, r.frames));
                bar.tick();
            })?;
            bar.finish_and_clear();
            for line in report.missing.iter().take(10) {
                eprintln!("left out: {line}");
            }
            println!("{}: {} clips, {} frames", out.display(), report.clips, report.frames);
            if !report.missing.is_empty() {
                bail!(
                    "{} masks have no frame; is {} the whole of it?",
                    report.missing.len(),
                    positive.display()
                );
            }
            Ok(())
        }
    }
}

fn open_all(dirs: &[PathBuf]) -> autosam::Result<Vec<Dataset>> {
    let sets: Vec<_> = dirs.iter().map(|dir| Dataset::open_all(dir)).collect::<Result<_, _>>()?;
    Ok(sets.concat())
}

fn check_sets(dirs: &[PathBuf], strict: bool) -> anyhow::Result<()> {
    let sets = open_all(dirs)?;
    let bar = ProgressBar::new(sets.iter().map(|s| s.items.len() as u64).sum())
        .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} frames  {eta} left")?);
    let lines: Vec<check::Census> = sets.iter().map(|s| s.census(|| bar.inc(1))).collect();
    bar.finish_and_clear();
    println!("{}", check::HEADING);
    for line in &lines {
        println!("{line}");
    }
    let problems: Vec<&String> = lines.iter().flat_map(|l| &l.problems).collect();
    for problem in &problems {
        println!("{problem}");
    }
    if strict && !problems.is_empty() {
        bail!("{} pictures cannot be used (--strict)", problems.len());
    }
    Ok(())
}
