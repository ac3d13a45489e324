//! `autosam-video data`.

use super::progress;
use super::sets::open_each;
use anyhow::bail;
use autosam::data::split::{SplitConfig, split};
use autosam::data::{Dataset, check, layout, reorganize};
use indicatif::ProgressBar;
use std::path::PathBuf;

/// Checks and splits data sets, and assembles SUN-SEG.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Decodes every image and mask and prints a table: clips, frames, polyp-free frames, polyp area, interpretation of masks,
    /// problems
    Check {
        /// Data sets in any layout that `train --data` supports, or folders that contain such
        #[arg(required = true, value_name = "DIR")]
        sets: Vec<PathBuf>,
        /// End with an error if any file cannot be used
        #[arg(long)]
        strict: bool,
    },
    /// Holds out a fraction of a set of stills for validation. Look-alikes stay on one side, and images that resemble one of
    /// --apart are left out. Creates OUT/train, OUT/val (links) and OUT/split.md
    Split {
        /// Data sets with masks
        #[arg(required = true, value_name = "DIR")]
        sets: Vec<PathBuf>,
        /// New folder to create
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Other validation and test sets, whose look-alikes are left out
        #[arg(long, value_name = "DIR")]
        apart: Vec<PathBuf>,
        /// Fraction to hold out, 0 to 1
        #[arg(long, default_value_t = SplitConfig::default().part)]
        part: f64,
        /// Maximum difference between the perceptual hashes of look-alikes, in bits of 144
        #[arg(long, value_name = "BITS", default_value_t = SplitConfig::default().distance)]
        distance: u32,
    },
    /// Prints the supported data set layouts
    Layouts,
    /// Combines the SUN database's frames with SUN-SEG's annotations (the data set's reorganisation step)
    SunsegReorganize {
        /// The database's frames: SUN-Positive with case1, case2, ..., or its parts as downloaded
        /// (sundatabase_positive_part1 and _part2, or the folder that contains them)
        #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
        positive: Vec<PathBuf>,
        /// The annotation archive, unpacked: TrainDataset/GT, TestEasyDataset/Seen/GT, ...
        #[arg(long, value_name = "DIR")]
        annotations: PathBuf,
        /// Folder for the combined data set [default: next to the annotations]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check { sets, strict } => check_sets(&sets, strict),
        Command::Split { sets, out, apart, part, distance } => {
            if !(0.0..=1.0).contains(&part) {
                bail!("--part {part}: expected a number between 0 and 1");
            }
            let (sets, apart) = (open_each(&sets)?, open_each(&apart)?);
            let count = sets.iter().chain(&apart).map(|s| s.items.len() as u64).sum();
            let bar = progress::counting(count, "images  {eta} left");
            let split = split(&sets, &apart, SplitConfig { part, distance }, || bar.inc(1))?;
            bar.finish_and_clear();
            split.write(&out)?;
            println!(
                "{}: {} for training, {} for validation, {} left out; {} groups of look-alikes (split.md)",
                out.display(),
                split.train.len(),
                split.val.len(),
                split.left_out.len(),
                split.groups.len()
            );
            Ok(())
        }
        Command::Layouts => {
            print!("{}", layout::table());
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
            println!(
                "{}: {} clips, {} frames; {} cases of the SUN database were found",
                out.display(),
                report.clips,
                report.frames,
                report.cases
            );
            if !report.missing.is_empty() {
                let given: Vec<String> = positive.iter().map(|p| p.display().to_string()).collect();
                bail!(
                    "{} masks have no frame; is {} complete? The database has two parts, and --positive needs both",
                    report.missing.len(),
                    given.join(" and ")
                );
            }
            Ok(())
        }
    }
}

fn check_sets(dirs: &[PathBuf], strict: bool) -> anyhow::Result<()> {
    let (mut sets, mut unreadable) = (Vec::new(), Vec::new());
    for dir in dirs {
        match Dataset::open_all(dir) {
            Ok(found) => {
                sets.extend(found.sets);
                unreadable.extend(found.unreadable);
            }
            // Check the other folders as well.
            Err(e) if dirs.len() > 1 => unreadable.push(e.to_string()),
            Err(e) => return Err(e.into()),
        }
    }
    let count = sets.iter().map(|s| s.items.len() as u64).sum();
    let bar = progress::counting(count, "frames  {eta} left");
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
    for folder in &unreadable {
        println!("not read: {folder}");
    }
    for warning in lines.iter().flat_map(|l| &l.warnings) {
        println!("warning: {warning}");
    }
    for note in lines.iter().flat_map(|l| &l.notes) {
        println!("note: {note}");
    }
    if strict && !(problems.is_empty() && unreadable.is_empty()) {
        bail!(
            "{} images cannot be used, {} folders cannot be read as a data set (--strict)",
            problems.len(),
            unreadable.len()
        );
    }
    if sets.is_empty() {
        bail!("found no data set in the given folders");
    }
    Ok(())
}
