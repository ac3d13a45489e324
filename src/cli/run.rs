//! `autosam-video run`.

use anyhow::{Context, bail};
use autosam::data::{self, Dataset, Item};
use autosam::engine::mask::MaskSettings;
use autosam::engine::{Engine, Pending, Settings};
use autosam::frame::region::Region;
use autosam::frame::{Frame, FrameMut};
use autosam::model::{self, DeviceChoice, MaskMode, ModelOptions, Precision, Views};
use autosam::overlay::{OverlayMode, Style};
use autosam::video::{FrameRate, Reader, Writer, is_uri};
use autosam::{archive, eval, weights, write_png};
use image::{DynamicImage, GrayImage, RgbImage};
use indicatif::{ProgressBar, ProgressStyle};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Segments a video file, a stream, a folder of frames or a folder of videos, every frame with its own mask.
///
/// Folders: pictures in name order, or a data set (Frame/ and GT/, images/ and masks/), whose masks are then
/// compared with (mean Dice). Nothing is written unless --output or --masks asks for it.
/// Folders of videos: each video gets a folder below --output, complete or not there; what is done is skipped, what cannot
/// be read is told at the end. The same command, on as many machines as there are, shares the work.
#[derive(clap::Args)]
pub struct Args {
    /// Video file, URI (rtsp:// over TCP, rtspu:// over UDP, https://, v4l2://), or folder of frames
    #[arg(long, value_name = "FILE|URI|DIR")]
    input: String,
    /// Overlaid video (.mp4, .mkv, .webm) or folder of overlaid pictures
    #[arg(long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Folder for the masks, one PNG a frame (255 polyp, 0 not)
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// Weights made by `train`; without, the model that comes with the program
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: DeviceChoice,
    /// Of matrix products and convolutions on a GPU; a CPU computes in f32
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    precision: PrecisionArg,
    /// Answer so many mirror images of each frame, 1, 2 or 4, and take the mean: better masks for as many times the work
    #[arg(long, value_name = "N", default_value = "1")]
    views: Views,
    /// Probability from which a pixel is marked, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = parse_part)]
    threshold: f32,
    /// Leave out regions smaller than this part of the picture, 0 to 1
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = parse_part)]
    min_area: f32,
    /// Leave out regions without a pixel this far above the threshold, 0 to 1 [default: 0.27; 0 with minmax]
    #[arg(long, value_name = "P", value_parser = parse_part)]
    hysteresis: Option<f32>,
    /// What of a frame the network sees: auto (the endoscope's picture), full, or X,Y,WIDTH,HEIGHT in pixels
    #[arg(long, value_name = "PART", default_value = "auto")]
    roi: Region,
    /// What is drawn
    #[arg(long, value_enum, default_value_t = Overlay::MaskContour)]
    overlay: Overlay,
    /// sigmoid knows "no polyp"; minmax is the paper's and marks something in every frame
    #[arg(long, value_enum, default_value_t = MaskModeArg::Sigmoid)]
    mask_mode: MaskModeArg,
    /// Serve figures for Prometheus at /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    archive: super::archive::Options,
}

/// What masks are made with.
pub struct Making {
    model: Option<PathBuf>,
    mask: MaskSettings,
    mask_mode: MaskModeArg,
    roi: Region,
}

impl Making {
    /// As an archive keeps it.
    pub fn archive(
        &self,
        formats: Vec<autosam::archive::Format>,
    ) -> anyhow::Result<autosam::archive::Making> {
        Ok(autosam::archive::Making {
            model: match &self.model {
                Some(path) => weights::sha256_of(path)?,
                None => weights::sha256(model::SHIPPED),
            },
            threshold: self.mask.threshold,
            min_area: self.mask.min_area,
            hysteresis: self.mask.hysteresis,
            mask_mode: self.mask_mode.name().to_owned(),
            roi: self.roi,
            formats,
        })
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Overlay {
    None,
    Mask,
    Contour,
    MaskContour,
    Box,
}

/// How logits become masks.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum MaskModeArg {
    Sigmoid,
    Minmax,
}

impl MaskModeArg {
    pub fn mode(self) -> MaskMode {
        match self {
            Self::Sigmoid => MaskMode::Sigmoid,
            Self::Minmax => MaskMode::MinMax,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Minmax => "minmax",
        }
    }

    /// [`MaskSettings::hysteresis`] as given, else what suits the mode: the paper's masks are cut at the threshold alone.
    pub fn hysteresis(self, given: Option<f32>) -> f32 {
        given.unwrap_or(match self {
            Self::Sigmoid => MaskSettings::default().hysteresis,
            Self::Minmax => 0.0,
        })
    }
}

/// See [`Precision`].
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum PrecisionArg {
    F32,
    F16,
    Bf16,
}

impl PrecisionArg {
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

pub fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| format!("{text:?} is none of auto, cpu, cuda, cuda:N")),
    }
}

pub fn parse_part(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(format!("{text} is not within 0 and 1")) }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    super::serve_metrics(args.metrics)?;
    let options = ModelOptions {
        device: args.device,
        precision: args.precision.precision(),
        mask_mode: args.mask_mode.mode(),
        views: args.views,
    };
    let location = args.model.clone();
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
        region: args.roi,
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
    let videos = videos_in(&args.input)?;
    if !videos.is_empty() {
        if args.masks.is_some() {
            bail!(
                "--masks is for one video; of a folder of videos --write says what is kept, below --output"
            );
        }
        let making =
            Making { model: args.model, mask: settings.mask, mask_mode: args.mask_mode, roi: args.roi };
        return super::archive::run(&args.archive, videos, args.output, &making, &start);
    }
    if args.archive.given() {
        bail!("{}: holds no videos, which --jobs, --shard and --redo are for", args.input);
    }
    let source = Source::open(&args.input)?;
    let mut engine = start()?;
    if let Source::Video(_) = &source {
        eprintln!("the same, live: {}", launch_line(&args));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot catch Ctrl-C")?;

    let output = match &args.output {
        None => Output::Nothing,
        Some(path) if path.extension().is_some() && !path.is_dir() => {
            Output::Video(path.clone(), None, source.rate())
        }
        Some(path) => Output::Folder(path.clone()),
    };
    let bar = match source.expected() {
        Some(count) => ProgressBar::new(count)
            .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} frames  {per_sec}  {eta} left")?),
        None => ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {pos} frames  {per_sec}")?),
    };
    let mut results = Results { tally: Tally::default(), output, masks: args.masks.clone(), bar };
    // One picture's mask is made while the one before it is written.
    let mut before: Option<(Picture, Pending)> = None;
    let mut last_scene = None;
    let begin = Instant::now();
    for picture in source {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let picture = match picture {
            Ok(picture) => picture,
            // A broken picture in a folder is left out; a broken stream ends here, what is written stays.
            Err(e) => {
                results.bar.suspend(|| eprintln!("left out: {e:#}"));
                results.tally.unreadable += 1;
                continue;
            }
        };
        if picture.scene != last_scene {
            if let Some(before) = before.take() {
                results.take(before)?;
            }
            engine.control().flush();
            last_scene.clone_from(&picture.scene);
        }
        let pending = engine.begin(&Frame::rgb_image(&picture.rgb), picture.pts);
        if let Some(before) = before.take() {
            results.take(before)?;
        }
        let pending = pending.with_context(|| picture.name.clone())?;
        before = Some((picture, pending));
    }
    if let Some(before) = before {
        results.take(before)?;
    }
    let Results { tally, output, bar, .. } = results;
    bar.finish_and_clear();
    output.finish()?;
    tally.print(begin.elapsed().as_secs_f64());
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted; what was written so far is complete");
    }
    if tally.unreadable > 0 {
        bail!("{} of {} could not be read", tally.unreadable, args.input);
    }
    Ok(())
}

/// Where pictures go once they have their masks.
struct Results {
    tally: Tally,
    output: Output,
    masks: Option<PathBuf>,
    bar: ProgressBar,
}

impl Results {
    /// Waits for the picture's mask; counts and writes.
    fn take(&mut self, (picture, pending): (Picture, Pending)) -> anyhow::Result<()> {
        let Picture { name, mut rgb, truth, .. } = picture;
        let detection = pending.wait().with_context(|| name.clone())?;
        self.tally.frames += 1;
        self.tally.marked += u64::from(!detection.mask.regions.is_empty());
        if truth.is_some() || self.masks.is_some() {
            let mask = detection.mask.enlarge(rgb.width() as usize, rgb.height() as usize);
            if let Some(truth) = truth {
                self.tally.compare(&mask, truth.as_raw(), !detection.mask.regions.is_empty());
            }
            if let Some(dir) = &self.masks {
                let mask =
                    GrayImage::from_raw(rgb.width(), rgb.height(), mask).context("a mask of another size")?;
                write_png(&dir.join(format!("{name}.png")), &DynamicImage::ImageLuma8(mask))?;
            }
        }
        if !matches!(self.output, Output::Nothing) {
            detection.mark.draw(&mut FrameMut::rgb_image(&mut rgb), &Style::default());
            self.output.write(&name, rgb)?;
        }
        self.bar.inc(1);
        Ok(())
    }
}

/// The videos in a folder that holds no pictures itself.
fn videos_in(input: &str) -> anyhow::Result<Vec<archive::Video>> {
    let path = Path::new(input);
    if !path.is_dir() || !data::pictures_in(path)?.is_empty() {
        return Ok(Vec::new());
    }
    Ok(archive::find(path)?)
}

#[derive(Default)]
struct Tally {
    frames: u64,
    marked: u64,
    unreadable: u64,
    positives: u64,
    dice: f64,
    negatives: u64,
    alarms: u64,
}

impl Tally {
    fn compare(&mut self, mask: &[u8], truth: &[u8], marked: bool) {
        if truth.iter().any(|t| *t > 127) {
            self.positives += 1;
            self.dice += eval::dice(mask, truth);
        } else {
            self.negatives += 1;
            self.alarms += u64::from(marked);
        }
    }

    fn print(&self, seconds: f64) {
        println!(
            "{} frames in {seconds:.1} s ({:.1} frames/s), {} with a mark",
            self.frames,
            self.frames as f64 / seconds.max(1e-9),
            self.marked
        );
        if self.positives > 0 {
            println!(
                "mean Dice {:.4} on {} frames with a polyp",
                self.dice / self.positives as f64,
                self.positives
            );
        }
        if self.negatives > 0 {
            println!("{} of {} frames without a polyp have a mark", self.alarms, self.negatives);
        }
    }
}

/// The pipeline that shows the input live. `%` and quotes in names are left to the reader.
fn launch_line(args: &Args) -> String {
    let source = if is_uri(&args.input) {
        format!("uridecodebin uri=\"{}\"", args.input)
    } else {
        format!("filesrc location=\"{}\" ! decodebin", args.input)
    };
    let model =
        args.model.as_ref().map(|m| format!(" model-location=\"{}\"", m.display())).unwrap_or_default();
    format!(
        "gst-launch-1.0 {source} ! videoconvert ! autosam threshold={} roi={}{model} ! videoconvert ! autovideosink",
        args.threshold, args.roi
    )
}

struct Picture {
    /// Without ending; with its sequence's folder where it has one.
    name: String,
    rgb: RgbImage,
    pts: Option<u64>,
    truth: Option<GrayImage>,
    /// The sequence it belongs to, or itself where it stands alone: what was learnt of another scene does not count.
    /// `None` for a video, which is one.
    scene: Option<String>,
}

enum Source {
    Video(Box<VideoSource>),
    Files { items: std::vec::IntoIter<Item>, labelled: bool },
}

struct VideoSource {
    reader: Reader,
    index: u64,
    ended: bool,
}

impl Source {
    fn open(input: &str) -> anyhow::Result<Self> {
        let path = Path::new(input);
        if !path.is_dir() {
            let reader = Reader::open(input)?;
            return Ok(Self::Video(Box::new(VideoSource { reader, index: 0, ended: false })));
        }
        let plain = data::pictures_in(path)?;
        if !plain.is_empty() {
            return Ok(Self::Files { items: plain.into_iter(), labelled: false });
        }
        let set =
            Dataset::open(path).with_context(|| format!("{input} holds no pictures and is no data set"))?;
        for problem in &set.problems {
            eprintln!("left out: {problem}");
        }
        Ok(Self::Files { items: set.items.into_iter(), labelled: true })
    }

    fn rate(&self) -> FrameRate {
        match self {
            Self::Video(v) => v.reader.rate(),
            Self::Files { .. } => FrameRate::DEFAULT,
        }
    }

    fn expected(&self) -> Option<u64> {
        match self {
            Self::Video(v) => v.reader.expected(),
            Self::Files { items, .. } => Some(items.len() as u64),
        }
    }
}

impl Iterator for Source {
    type Item = anyhow::Result<Picture>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Video(v) => {
                if v.ended {
                    return None;
                }
                let picture = v.reader.next_picture();
                v.ended = !matches!(picture, Ok(Some(_)));
                v.index += 1;
                let name = format!("{:06}", v.index - 1);
                picture
                    .map(|p| p.map(|(rgb, pts)| Picture { name, rgb, pts, truth: None, scene: None }))
                    .map_err(Into::into)
                    .transpose()
            }
            Self::Files { items, labelled } => {
                let item = items.next()?;
                let name = if item.sequence.is_empty() {
                    item.name.clone()
                } else {
                    format!("{}/{}", item.sequence, item.name)
                };
                let scene = Some(if item.sequence.is_empty() { &item.name } else { &item.sequence }.clone());
                let labelled = *labelled;
                let picture = item.load().map(|pair| Picture {
                    name,
                    rgb: pair.rgb,
                    pts: None,
                    truth: labelled.then_some(pair.mask),
                    scene,
                });
                Some(picture.map_err(Into::into))
            }
        }
    }
}

enum Output {
    Nothing,
    Folder(PathBuf),
    /// Opened with the first picture, whose size it takes.
    Video(PathBuf, Option<Writer>, FrameRate),
}

impl Output {
    fn write(&mut self, name: &str, rgb: RgbImage) -> anyhow::Result<()> {
        match self {
            Self::Nothing => {}
            Self::Folder(dir) => write_png(&dir.join(format!("{name}.png")), &DynamicImage::ImageRgb8(rgb))?,
            Self::Video(path, writer, rate) => {
                if writer.is_none() {
                    *writer = Some(Writer::create(path, rgb.dimensions(), *rate)?);
                }
                if let Some(writer) = writer {
                    writer.write(&rgb)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        if let Self::Video(_, Some(writer), _) = self {
            writer.finish()?;
        }
        Ok(())
    }
}
