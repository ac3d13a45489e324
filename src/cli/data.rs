//! `autosam-video data`.

use anyhow::bail;
use autosam::data::{Dataset, check, reorganize};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// Looks after data sets: checks them, puts SUN-SEG together.
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

fn check_sets(dirs: &[PathBuf], strict: bool) -> anyhow::Result<()> {
    let mut sets = Vec::new();
    for dir in dirs {
        sets.extend(Dataset::open_all(dir)?);
    }
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
