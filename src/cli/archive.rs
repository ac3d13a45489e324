//! `autosam-video run` on a folder of videos.

use super::args::stop_flag;
use super::progress;
use anyhow::{Context, bail};
use autosam::archive::{Archive, Format, Found, LeftOut, Outcome, Provenance, Shard};
use autosam::engine::Engine;
use std::path::PathBuf;

/// Flags that apply only to a folder of videos.
#[derive(clap::Args)]
#[command(next_help_heading = "A folder of videos")]
pub struct Options {
    /// Number of videos processed in parallel
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// This process's share of the videos, i from 0 to n-1, for array and indexed jobs [default: processes with the same
    /// --output share the videos by locks]
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    /// Files to write for each video in addition to frames.csv and summary.json
    #[arg(long, value_enum, value_name = "FORMAT", value_delimiter = ',', default_values_t = [FormatArg::Png, FormatArg::Coco])]
    write: Vec<FormatArg>,
    /// Process finished videos again
    #[arg(long)]
    redo: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// masks/NNNNNN.png, one per frame
    Png,
    /// coco.json: COCO annotations, masks as run lengths
    Coco,
    /// segmentation-NNNN.dcm: DICOM Segmentation objects
    DicomSeg,
    /// cvat.xml: CVAT for video 1.1
    Cvat,
    /// No further files
    None,
}

impl Options {
    /// Whether a flag was given that makes no sense for a single video.
    pub fn given(&self) -> bool {
        self.jobs > 1 || self.shard.is_some() || self.redo
    }

    /// Files written for each video in addition to its tables.
    pub fn formats(&self) -> Vec<Format> {
        let known = [
            (FormatArg::Png, Format::Png),
            (FormatArg::Coco, Format::Coco),
            (FormatArg::DicomSeg, Format::DicomSeg),
            (FormatArg::Cvat, Format::Cvat),
        ];
        known.into_iter().filter(|(arg, _)| self.write.contains(arg)).map(|(_, format)| format).collect()
    }
}

pub fn run(
    options: &Options,
    found: Found,
    output: Option<PathBuf>,
    provenance: Provenance,
    engine: &(dyn Fn() -> autosam::Result<Engine> + Sync),
) -> anyhow::Result<()> {
    let output = output.context("a folder of videos needs --output DIR")?;
    if output.is_file() {
        bail!("{}: a folder of videos needs a folder as --output", output.display());
    }
    print_left_out(&found.left_out);
    let archive = Archive {
        videos: found.videos,
        left_out: found.left_out,
        output: output.clone(),
        provenance,
        shard: options.shard,
        redo: options.redo,
    };
    let stop = stop_flag()?;
    let mine = archive
        .shard
        .map_or(archive.videos.len(), |s| archive.videos.len().saturating_sub(s.index).div_ceil(s.count));
    let bar = progress::counting(mine as u64, "videos  {elapsed}  {msg}");
    let tally = archive.run(usize::from(options.jobs), engine, &stop, &|video, outcome| {
        let name = video.name();
        match outcome {
            Outcome::Done(s) if !s.problems.is_empty() => {
                bar.suspend(|| eprintln!("incomplete: {name}: {}", s.problems.join("; ")));
            }
            Outcome::Done(s) => {
                bar.set_message(format!(
                    "{name}: {} of {} frames with a detection",
                    s.marked_frames, s.frames
                ));
            }
            Outcome::Failed(reason) => bar.suspend(|| eprintln!("failed: {name}: {reason}")),
            Outcome::Skipped(_) | Outcome::Elsewhere | Outcome::Interrupted => {}
        }
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    println!(
        "{} videos done, {} done before, {} processed elsewhere, {} failed",
        tally.done,
        tally.skipped,
        tally.elsewhere,
        tally.failed.len()
    );
    println!("{}", output.join("index.html").display());
    if tally.interrupted > 0 {
        bail!("interrupted; run the same command again for the remaining {} videos", tally.interrupted);
    }
    let listed = |what: &str, names: &[(String, String)]| {
        let names: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let bad = [listed("failed", &tally.failed), listed("incomplete", &tally.incomplete)];
    let bad: Vec<_> = bad.into_iter().flatten().collect();
    if !bad.is_empty() {
        bail!("{}", bad.join("; "));
    }
    Ok(())
}

/// Prints the number and some names of skipped files; the HTML page lists all of them.
fn print_left_out(files: &[LeftOut]) {
    const NAMED: usize = 5;
    if files.is_empty() {
        return;
    }
    let names: Vec<_> = files.iter().take(NAMED).map(|f| f.relative.to_string_lossy()).collect();
    let more = if files.len() > NAMED { ", …" } else { "" };
    eprintln!("{} files are left out: {}{more}", files.len(), names.join(", "));
}
