//! `autosam-video synth`.

use super::args::{size_parser, stop_flag};
use super::progress;
use anyhow::Context;
use autosam::synth::{DatasetConfig, FRAME_RATE, SequenceConfig, write_dataset};
use autosam::video::{FrameRate, Shape, Writer};
use std::path::PathBuf;

/// Makes labelled synthetic endoscopy sequences in SUN-SEG's layout.
///
/// Writes DIR/SPLIT/{Frame,GT}/caseN_1/ and, for negatives, DIR/SUN-Negative/caseN/. The same seed gives the same
/// bytes for any number of threads. Ctrl-C keeps the complete sequences.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write into; must be empty or new, unless --force
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of sequences with polyps
    #[arg(long, value_name = "N", default_value_t = 4)]
    sequences: usize,
    /// Number of frames per sequence
    #[arg(long, value_name = "N", default_value_t = 100)]
    frames: usize,
    /// Random seed; sequence k of a seed does not depend on --sequences
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Frame size in pixels
    #[arg(long, value_name = "WxH", default_value = "640x512", value_parser = size_parser(32..=4096, "640x512"))]
    size: (u32, u32),
    /// Number of sequences without polyps
    #[arg(long, value_name = "N", default_value_t = 0)]
    negatives: usize,
    /// Part of the data set to write: TrainDataset, TestEasyDataset/Unseen, …
    #[arg(long, value_name = "NAME", default_value = "TrainDataset")]
    split: PathBuf,
    /// Write into a folder that is not empty; sequences of the same name are replaced
    #[arg(long)]
    force: bool,
    /// Also write the sequences, one after another, as a video (.mp4, .mkv, .webm)
    #[arg(long, value_name = "FILE")]
    clip: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let (width, height) = args.size;
    let config = DatasetConfig {
        sequence: SequenceConfig { width, height, frames: args.frames, polyps: true },
        sequences: args.sequences,
        negatives: args.negatives,
        seed: args.seed,
        split: args.split,
        force: args.force,
        ..DatasetConfig::default()
    };
    let stop = stop_flag()?;
    let total = (args.sequences + args.negatives) * args.frames;
    let bar = progress::frames(Some(total as u64));
    let rate = FrameRate { numerator: FRAME_RATE as i32, denominator: 1 };
    let mut clip: Option<Writer> = None;
    let result = write_dataset(&args.out, &config, &stop, |rgb, _| {
        bar.inc(1);
        let Some(path) = &args.clip else { return Ok(()) };
        // Created with the first frame, because the clip may be in the folder that must be empty.
        if clip.is_none() {
            clip = Some(Writer::create(path, Shape::square(args.size), rate)?);
        }
        clip.as_mut().map_or(Ok(()), |clip| clip.write(rgb))
    });
    bar.finish_and_clear();
    let summary = result.with_context(|| format!("cannot write synthetic data to {}", args.out.display()))?;
    if let Some(clip) = clip {
        clip.finish()?;
    }
    println!(
        "{} sequences, {} frames, {} of them with a polyp in view: {}",
        summary.sequences,
        summary.frames,
        summary.with_polyp,
        args.out.display()
    );
    Ok(())
}
