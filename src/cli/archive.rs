//! `autosam-video run` on a folder of videos.

use super::run::Making;
use anyhow::{Context, bail};
use autosam::archive::{Archive, Format, Outcome, Shard, Video};
use autosam::engine::Engine;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Flags that only a folder of videos knows.
#[derive(clap::Args)]
#[command(next_help_heading = "A folder of videos")]
pub struct Options {
    /// Videos worked on beside each other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// This process's part of the videos, i from 0 to n-1: for array and indexed jobs. Without, processes with the
    /// same --output share the videos between them by locks
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    /// What is written of each video beside frames.csv and summary.json
    #[arg(long, value_enum, value_name = "FORMAT", value_delimiter = ',', default_values_t = [FormatArg::Png, FormatArg::Coco])]
    write: Vec<FormatArg>,
    /// Do again what is done
    #[arg(long)]
    redo: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// masks/NNNNNN.png, one a frame
    Png,
    /// coco.json: COCO annotations, masks as run lengths
    Coco,
    /// segmentation-NNNN.dcm: DICOM Segmentation objects
    DicomSeg,
    /// Nothing more
    None,
}

impl Options {
    /// True where a flag was given that makes no sense for one video.
    pub fn given(&self) -> bool {
        self.jobs > 1 || self.shard.is_some() || self.redo
    }

    fn formats(&self) -> Vec<Format> {
        let known = [
            (FormatArg::Png, Format::Png),
            (FormatArg::Coco, Format::Coco),
            (FormatArg::DicomSeg, Format::DicomSeg),
        ];
        known.into_iter().filter(|(arg, _)| self.write.contains(arg)).map(|(_, format)| format).collect()
    }
}

pub fn run(
    options: &Options,
    videos: Vec<Video>,
    output: Option<PathBuf>,
    making: &Making,
    engine: &(dyn Fn() -> autosam::Result<Engine> + Sync),
) -> anyhow::Result<()> {
    let output = output.context("a folder of videos needs --output DIR")?;
    if output.is_file() {
        bail!("{}: a folder of videos needs a folder as --output", output.display());
    }
    let archive = Archive {
        videos,
        output: output.clone(),
        making: making.archive(options.formats())?,
        shard: options.shard,
        redo: options.redo,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot catch Ctrl-C")?;
    let mine = archive
        .shard
        .map_or(archive.videos.len(), |s| archive.videos.len().saturating_sub(s.index).div_ceil(s.count));
    let bar = ProgressBar::new(mine as u64)
        .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} videos  {elapsed}  {msg}")?);
    let tally = archive.run(usize::from(options.jobs), engine, &stop, &|video, outcome| {
        let name = video.name();
        match outcome {
            Outcome::Done(s) => {
                bar.set_message(format!("{name}: {} of {} frames with a mark", s.marked_frames, s.frames));
            }
            Outcome::Failed(reason) => bar.suspend(|| eprintln!("failed: {name}: {reason}")),
            Outcome::Skipped | Outcome::Elsewhere | Outcome::Interrupted => {}
        }
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    println!(
        "{} videos done, {} were done before, {} in other hands, {} failed",
        tally.done,
        tally.skipped,
        tally.elsewhere,
        tally.failed.len()
    );
    println!("{}", output.join("index.html").display());
    if tally.interrupted > 0 {
        bail!("interrupted; the same command goes on with the {} videos left", tally.interrupted);
    }
    if !tally.failed.is_empty() {
        let names: Vec<_> = tally.failed.iter().map(|(name, _)| name.as_str()).collect();
        bail!("failed: {}", names.join(", "));
    }
    Ok(())
}
