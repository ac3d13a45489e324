//! `autosam-video run`.

mod launch;
mod output;
mod source;

use super::args::{MaskModeArg, Network, parse_part, stop_flag};
use super::progress;
use anyhow::{Context, bail};
use autosam::data;
use autosam::engine::mask::MaskSettings;
use autosam::engine::{Engine, Pending, Settings};
use autosam::frame::region::CropMode;
use autosam::frame::{Frame, FrameMut};
use autosam::model::{self, ModelOptions};
use autosam::overlay::{OverlayMode, Style};
use autosam::{archive, eval, weights, write_png};
use image::{DynamicImage, GrayImage};
use indicatif::ProgressBar;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use output::Output;
use source::{Source, SourceFrame};

/// Segments a video file, a stream, a folder of frames or a folder of videos, each frame with its own mask.
///
/// A folder of images is processed in name order, after all of them were decoded once: damaged ones are printed first, left out,
/// and make the exit status 1. For a data set (Frame/ and GT/, images/ and masks/) the masks are also
/// compared with its own (mean Dice). Nothing is written unless --output or --masks is given.
/// In a folder of videos each video gets a folder below --output, which appears once it is complete. Finished videos are
/// skipped; videos that cannot be read, or only in part, are listed at the end. Start the same command on several machines to
/// share the work. If a video is cut short or damaged, its readable part is processed, the problem is printed, and the exit
/// status is 1.
#[derive(clap::Args)]
pub struct Args {
    /// Video file, URI (rtsp:// over TCP, rtspu:// over UDP, https://, v4l2://), or folder of frames
    #[arg(long, value_name = "FILE|URI|DIR")]
    input: String,
    /// Kind of files to use from a folder that contains both videos and images
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Video track of a file that has several, from 1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    track: u16,
    /// Video with overlay (.mp4, .mkv, .webm; frames keep their timestamps) or folder for images with overlay
    #[arg(long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Folder for the masks, one PNG per frame (255 polyp, 0 background)
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    #[command(flatten)]
    network: Network,
    /// Minimum probability of a polyp pixel, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = parse_part)]
    threshold: f32,
    /// Minimum size of a region as a fraction of the frame, 0 to 1
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = parse_part)]
    min_area: f32,
    /// Margin above the threshold that a region must reach in at least one pixel, 0 to 1 [default: 0.27; 0 with minmax]
    #[arg(long, value_name = "P", value_parser = parse_part)]
    hysteresis: Option<f32>,
    /// Part of the frame that the network sees: auto (the endoscope's image), full, or X,Y,WIDTH,HEIGHT in pixels
    #[arg(long, value_name = "PART", default_value = "auto")]
    roi: CropMode,
    /// Style of the overlay
    #[arg(long, value_enum, default_value_t = Overlay::MaskContour)]
    overlay: Overlay,
    /// Conversion of logits to probabilities: sigmoid allows empty masks; minmax, from the paper, finds something in every frame
    #[arg(long, value_enum, default_value_t = MaskModeArg::Sigmoid)]
    mask_mode: MaskModeArg,
    /// Serve Prometheus metrics at /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    archive: super::archive::Options,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    Videos,
    Images,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Overlay {
    None,
    Mask,
    Contour,
    MaskContour,
    Box,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    super::serve_metrics(args.metrics)?;
    let options = ModelOptions {
        device: args.network.device,
        precision: args.network.precision.precision(),
        mask_mode: args.mask_mode.mode(),
        flips: args.network.views,
    };
    let location = args.network.model.clone();
    let settings = Settings {
        mask: MaskSettings {
            threshold: args.threshold,
            min_area: args.min_area,
            hysteresis: args.mask_mode.hysteresis(args.hysteresis),
        },
        overlay: match args.overlay {
            Overlay::None => OverlayMode::None,
            Overlay::Mask => OverlayMode::Mask,
            Overlay::Contour => OverlayMode::Contour,
            Overlay::MaskContour => OverlayMode::MaskContour,
            Overlay::Box => OverlayMode::Box,
        },
        roi: args.roi,
        ..Settings::default()
    };
    let start = || {
        let location = location.clone();
        Engine::start(
            Box::new(move || model::open(location.as_deref(), &options)),
            settings,
            Box::new(|_| ()),
        )
    };
    if let Some(found) = videos_in(&args.input, args.only)? {
        if args.masks.is_some() {
            bail!("--masks applies to a single video; for a folder of videos choose the files with --write");
        }
        if args.track > 1 {
            bail!("--track applies to a single video; of a folder's videos the first track is used");
        }
        let provenance = provenance(&args, settings.mask)?;
        return super::archive::run(&args.archive, found, args.output, provenance, &start);
    }
    if args.archive.given() {
        bail!(
            "{}: contains no videos; --jobs, --shard and --redo apply only to a folder of videos",
            args.input
        );
    }
    let source = Source::open(&args.input, args.track.into())?;
    let engine = start()?;
    if let Source::Video(_) = &source {
        match launch::line(&args) {
            Some(line) => eprintln!("live equivalent: {line}"),
            None => eprintln!(
                "there is no live equivalent: the element does not support --mask-mode minmax, and decodebin does not support --track"
            ),
        }
    }
    segment(&args, source, engine)
}

/// The model and settings of the masks, which an archive stores with them.
fn provenance(args: &Args, mask: MaskSettings) -> anyhow::Result<archive::Provenance> {
    Ok(archive::Provenance {
        model: match &args.network.model {
            Some(path) => weights::sha256_of(path)?,
            None => weights::sha256(model::SHIPPED),
        },
        threshold: mask.threshold,
        min_area: mask.min_area,
        hysteresis: mask.hysteresis,
        mask_mode: args.mask_mode.name().to_owned(),
        roi: args.roi,
        formats: args.archive.formats(),
    })
}

/// Segments every frame of `source` and writes the outputs that `args` requests. Outputs are closed and kept even if it fails.
fn segment(args: &Args, mut source: Source, mut engine: Engine) -> anyhow::Result<()> {
    let stop = stop_flag()?;
    let bar = progress::frames(source.expected());
    let output = Output::new(args.output.as_deref(), source.rate(), matches!(source, Source::Video(_)))?;
    let tally = Tally { unreadable: source.unreadable(), ..Tally::default() };
    let mut results = Results { tally, output, masks: args.masks.clone(), bar };
    let begin = Instant::now();
    let ended = results.all(&mut source, &mut engine, &stop);
    let Results { tally, output, bar, .. } = results;
    bar.finish_and_clear();
    let begun = output.has_begun() || args.masks.as_ref().is_some_and(|dir| dir.is_dir());
    let closed = output.finish();
    tally.print(begin.elapsed().as_secs_f64());
    if let Err(e) = ended.and(closed) {
        let kept = format!("stopped after {} frames; the output up to there is kept", tally.frames);
        return Err(if tally.frames > 0 && begun { e.context(kept) } else { e });
    }
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted; the output so far is complete");
    }
    let problems = source.problems();
    if !problems.is_empty() {
        bail!("{}: {}", args.input, problems.join("; "));
    }
    if tally.unreadable > 0 {
        bail!("{} of {} could not be read", tally.unreadable, args.input);
    }
    Ok(())
}

/// Destination of frames with their masks.
struct Results {
    tally: Tally,
    output: Output,
    masks: Option<PathBuf>,
    bar: ProgressBar,
}

impl Results {
    /// Segments every frame of `source` until its end or until `stop`.
    fn all(&mut self, source: &mut Source, engine: &mut Engine, stop: &AtomicBool) -> anyhow::Result<()> {
        // The mask of one frame is computed while the previous frame is written.
        let mut before: Option<(SourceFrame, Pending)> = None;
        let mut last = None;
        while let Some(frame) = source.next().filter(|_| !stop.load(Ordering::Relaxed)) {
            let frame = match frame {
                Ok(frame) => frame,
                Err(e) => {
                    self.bar.suspend(|| eprintln!("left out: {e:#}"));
                    self.tally.unreadable += 1;
                    continue;
                }
            };
            // State from another sequence or frame size must not carry over.
            let scene = (frame.scene.clone(), frame.shape());
            if last.as_ref() != Some(&scene) {
                if let Some(before) = before.take() {
                    self.take(before)?;
                }
                engine.control().flush();
                last = Some(scene);
            }
            let seen = Frame::rgb_image(&frame.frame.rgb).with_pixel_aspect(frame.frame.pixel_aspect);
            let pending = engine.submit(&seen, frame.timed.then_some(frame.frame.time));
            if let Some(before) = before.take() {
                self.take(before)?;
            }
            let pending = pending.with_context(|| frame.name.clone())?;
            before = Some((frame, pending));
        }
        before.map_or(Ok(()), |before| self.take(before))
    }

    /// Waits for the frame's mask, counts it and writes it.
    fn take(&mut self, (frame, pending): (SourceFrame, Pending)) -> anyhow::Result<()> {
        let SourceFrame { name, mut frame, truth, .. } = frame;
        let rgb = &mut frame.rgb;
        let detection = pending.wait().with_context(|| name.clone())?;
        self.tally.frames += 1;
        self.tally.detections += u64::from(!detection.mask.regions.is_empty());
        if truth.is_some() || self.masks.is_some() {
            let mask = detection.mask.enlarge(rgb.width() as usize, rgb.height() as usize);
            if let Some(truth) = truth {
                self.tally.compare(&mask, truth.as_raw(), !detection.mask.regions.is_empty());
            }
            if let Some(dir) = &self.masks {
                let mask = GrayImage::from_raw(rgb.width(), rgb.height(), mask)
                    .context("the mask's size differs from the frame's")?;
                write_png(&dir.join(format!("{name}.png")), &DynamicImage::ImageLuma8(mask))?;
            }
        }
        if !matches!(self.output, Output::Nothing) {
            detection.overlay.draw(&mut FrameMut::rgb_image(rgb), &Style::default());
            self.output.write(&name, frame)?;
        }
        self.bar.inc(1);
        Ok(())
    }
}

/// The videos in a folder; `None` if `input` is not a folder, or a folder of images.
fn videos_in(input: &str, only: Option<Only>) -> anyhow::Result<Option<archive::Found>> {
    let path = Path::new(input);
    if !path.is_dir() || only == Some(Only::Images) {
        return Ok(None);
    }
    let (found, images) = (archive::find(path)?, data::images_in(path)?.len());
    match (found.videos.len(), only) {
        (0, Some(Only::Videos)) => bail!("{input}: contains no videos"),
        (0, _) => Ok(None),
        (videos, None) if images > 0 => bail!(
            "{input}: contains {images} images and {videos} videos ({}, …); choose with --only videos or --only images",
            found.videos[0].name()
        ),
        _ => Ok(Some(found)),
    }
}

#[derive(Default)]
struct Tally {
    frames: u64,
    detections: u64,
    unreadable: u64,
    positives: u64,
    dice: f64,
    negatives: u64,
    alarms: u64,
}

impl Tally {
    fn compare(&mut self, mask: &[u8], truth: &[u8], detected: bool) {
        if truth.iter().any(|t| *t > 127) {
            self.positives += 1;
            self.dice += eval::dice(mask, truth);
        } else {
            self.negatives += 1;
            self.alarms += u64::from(detected);
        }
    }

    fn print(&self, seconds: f64) {
        println!(
            "{} frames in {seconds:.1} s ({:.1} frames/s), {} with a detection",
            self.frames,
            self.frames as f64 / seconds.max(1e-9),
            self.detections
        );
        if self.positives > 0 {
            println!(
                "mean Dice {:.4} on {} frames with a polyp",
                self.dice / self.positives as f64,
                self.positives
            );
        }
        if self.negatives > 0 {
            println!("{} of {} frames without a polyp have a detection", self.alarms, self.negatives);
        }
    }
}
