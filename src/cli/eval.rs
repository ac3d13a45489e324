//! `autosam-video eval`.

use super::args::{MaskModeArg, Network, parse_part};
use super::progress;
use anyhow::bail;
use autosam::data::{Dataset, SPLITS};
use autosam::eval::alarms::Alarm;
use autosam::eval::maps;
use autosam::eval::measure::{self, Evaluation, Sequence};
use autosam::eval::predictor::{EvalOptions, LabelledPredictor, Mode};
use autosam::frame::region::CropMode;
use autosam::model::DeviceChoice;
use autosam::report::{self, Case, Report, Sheet};
use std::path::{Path, PathBuf};

/// Frames per row of a contact sheet.
const COLUMNS: usize = 6;
/// Worst frames on a contact sheet.
const WORST: usize = 24;
/// Default frame rate in frames per second.
const RATE: f64 = 25.0;
/// Alarms on a contact sheet.
const ALARMS: usize = 60;

/// Evaluates masks: the SUN-SEG (VPS) toolbox's metrics, Dice and IoU at 0.5 with bootstrap intervals, and metrics of live
/// video (docs/metrics.md).
///
/// Evaluates maps on disk (--pred and --gt) or a model on labelled images (--sunseg or --data). Sequences follow the
/// toolbox: the first and last frame of each are ignored, metrics are averaged over frames, then over sequences. Stills
/// follow PraNet: every image has the same weight. For AutoSAM's protocol on GlaS and MoNuSeg add --mask-mode minmax.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["pred", "data", "sunseg"])))]
pub struct Args {
    /// Folder of predicted maps: one folder per sequence, or stills of one set or in one folder per set
    #[arg(long, value_name = "DIR", requires = "gt", conflicts_with_all = ["data", "sunseg", "views", "precision"])]
    pred: Option<PathBuf>,
    /// Folder of masks with the same names, or of data sets with masks (PraNet's TestDataset)
    #[arg(long, value_name = "DIR", requires = "pred")]
    gt: Option<PathBuf>,
    /// Folder with images/ and masks/, in any layout that `train --data` supports, or a folder of such; may be repeated
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// SUN-SEG folder; all test splits in it are evaluated
    #[arg(long, value_name = "DIR")]
    sunseg: Option<PathBuf>,
    /// Evaluate only this split, e.g. TestEasyDataset/Unseen
    #[arg(long, value_name = "NAME", requires = "sunseg")]
    split: Option<String>,
    #[command(flatten)]
    network: Network,
    /// Source of SAM's prompt; several, or `all`, are compared in one table
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [ModeArg::Autosam])]
    mode: Vec<ModeArg>,
    /// The decoder of `train --stage lightweight`, for --mode lightweight
    #[arg(long, value_name = "FILE")]
    lightweight: Option<PathBuf>,
    /// Conversion of logits to probabilities: sigmoid allows empty masks; minmax, from the paper, finds something in every frame
    #[arg(long, value_enum, default_value_t = MaskModeArg::Sigmoid)]
    mask_mode: MaskModeArg,
    /// Margin above 0.5 that a region must reach in at least one pixel, 0 to 1 [default: 0.27; 0 with minmax]
    #[arg(long, value_name = "P", value_parser = parse_part, conflicts_with = "pred")]
    hysteresis: Option<f32>,
    /// Part of the frame that the network sees: auto (the endoscope's image), full, or X,Y,WIDTH,HEIGHT in pixels
    #[arg(long, value_name = "PART", default_value = "auto")]
    roi: CropMode,
    /// Evaluate only polyp-free parts: the largest square without polyp pixels of each image. Use it to measure false alarms on
    /// a data set with few polyp-free images
    #[arg(long, conflicts_with_all = ["tile", "pred"])]
    polyp_free: bool,
    /// Cut images into square tiles of this size in pixels (MoNuSeg: 512)
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(32..))]
    tile: Option<u32>,
    /// Frame rate of the sequences, for metrics measured in time
    #[arg(long, value_name = "N", default_value_t = RATE)]
    rate: f64,
    /// Write the metrics as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write report.md and report.html with plots, the worst, median and best frames, and every false alarm. They contain frames
    /// of the data
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Stop if an image cannot be used, instead of skipping it
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeArg {
    /// The generator's dense prompt (AutoSAM)
    Autosam,
    /// A small decoder instead of SAM
    Lightweight,
    /// One point of the ground truth
    GtPoint,
    /// The box of the ground truth
    GtBox,
    /// The ground truth as a mask prompt
    GtMask,
    /// AutoSAM's mask as a mask prompt
    AutosamAsMaskPrompt,
    /// No prompt
    NoPrompt,
    /// A dense prompt of random numbers
    RandomPrompt,
    /// All modes (lightweight only with --lightweight)
    All,
}

impl ModeArg {
    fn mode(self) -> Mode {
        match self {
            Self::Autosam | Self::All => Mode::AutoSam,
            Self::Lightweight => Mode::Lightweight,
            Self::GtPoint => Mode::GtPoint,
            Self::GtBox => Mode::GtBox,
            Self::GtMask => Mode::GtMask,
            Self::AutosamAsMaskPrompt => Mode::AutoSamAsMaskPrompt,
            Self::NoPrompt => Mode::NoPrompt,
            Self::RandomPrompt => Mode::RandomPrompt,
        }
    }

    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// One evaluated set.
struct Part {
    name: String,
    sequences: Vec<Sequence>,
    /// Whether the first and last frame of each sequence count.
    ends: bool,
    sheets: Vec<Sheet>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        bail!("--rate {}: expected a number above 0", args.rate);
    }
    let parts = match (&args.pred, &args.gt) {
        (Some(pred), Some(gt)) => {
            let bar = progress::frames(None);
            let scored = maps::score_maps(pred, gt, || bar.inc(1))?;
            bar.finish_and_clear();
            for note in &scored.notes {
                eprintln!("warning: {note}");
            }
            let part = |set: maps::ScoredSet| Part {
                name: set.name,
                sequences: set.sequences,
                ends: true,
                sheets: Vec::new(),
            };
            scored.sets.into_iter().map(part).collect()
        }
        _ => models(&args)?,
    };
    let evaluations: Vec<(String, Evaluation)> =
        parts.iter().map(|p| (p.name.clone(), Evaluation::new(&p.sequences, args.rate, p.ends))).collect();
    if evaluations.iter().all(|(_, e)| e.summary.frames == 0) {
        bail!("nothing to evaluate: no sequence has three frames or more");
    }
    for (name, evaluation) in &evaluations {
        print(name, evaluation);
    }
    let several_modes = args.modes().len() > 1;
    // Modes are not pooled, because they saw the same frames.
    let all = (!several_modes).then(|| {
        let sequences: Vec<Sequence> = parts.iter().flat_map(|p| p.sequences.clone()).collect();
        Evaluation::new(&sequences, args.rate, parts.iter().all(|p| p.ends))
    });
    if let (Some(all), true) = (&all, evaluations.len() > 1) {
        print("all", all);
    }
    if several_modes {
        let rows: Vec<(String, &Evaluation)> = evaluations.iter().map(|(n, e)| (n.clone(), e)).collect();
        print!("\n{}", report::table(&rows));
    }
    if let Some(path) = &args.json {
        let mut value = match &all {
            Some(all) => serde_json::to_value(all)?,
            None => serde_json::json!({}),
        };
        value["splits"] = evaluations
            .iter()
            .map(|(name, e)| Ok((name.clone(), serde_json::to_value(e)?)))
            .collect::<Result<serde_json::Map<_, _>, serde_json::Error>>()?
            .into();
        autosam::write_atomically(path, serde_json::to_string_pretty(&value)?.as_bytes())?;
    }
    if let Some(dir) = &args.report {
        let model = args
            .network
            .model
            .as_ref()
            .map_or("the shipped autosam-lite".to_owned(), |m| m.display().to_string());
        let about = match &args.pred {
            Some(pred) => vec![format!("maps: {}", pred.display())],
            None => vec![
                format!("model: {model}"),
                format!("masks: {}", args.mask_mode.name()),
                format!("roi: {}", args.roi),
            ],
        };
        let mut page = Report::new("Evaluation", about);
        for ((name, evaluation), part) in evaluations.into_iter().zip(parts) {
            page.add(&name, evaluation, part.sheets);
        }
        page.write(dir)?;
        println!("report: {}", dir.join("report.html").display());
    }
    Ok(())
}

impl Args {
    fn modes(&self) -> Vec<ModeArg> {
        if !self.mode.contains(&ModeArg::All) {
            return self.mode.clone();
        }
        let all = [
            ModeArg::Autosam,
            ModeArg::Lightweight,
            ModeArg::GtPoint,
            ModeArg::GtBox,
            ModeArg::GtMask,
            ModeArg::AutosamAsMaskPrompt,
            ModeArg::NoPrompt,
            ModeArg::RandomPrompt,
        ];
        all.into_iter().filter(|m| *m != ModeArg::Lightweight || self.lightweight.is_some()).collect()
    }

    fn sets(&self) -> anyhow::Result<Vec<(String, Dataset)>> {
        let mut sets = Vec::new();
        for dir in &self.data {
            let found = super::sets::open(dir, self.strict)?;
            sets.extend(found.into_iter().map(|set| (set.name.clone(), set)));
        }
        if let Some(root) = &self.sunseg {
            let splits: Vec<&str> = match &self.split {
                Some(split) => vec![split],
                None => {
                    let (there, missing): (Vec<&str>, Vec<&str>) =
                        SPLITS.into_iter().skip(1).partition(|s| root.join(s).join("Frame").is_dir());
                    for split in missing {
                        eprintln!("not found: {}", root.join(split).display());
                    }
                    there
                }
            };
            if splits.is_empty() {
                bail!(
                    "{}: contains no test split; expected one of {}",
                    root.display(),
                    SPLITS[1..].join(", ")
                );
            }
            for split in splits {
                sets.push((split.to_owned(), Dataset::sunseg(root, split)?));
            }
        }
        for (_, set) in &mut sets {
            super::sets::verify(set, self.strict)?;
            if self.polyp_free {
                *set = set.clone().polyp_free()?;
            }
            if let Some(side) = self.tile {
                *set = set.clone().tiled(side)?;
            }
        }
        Ok(sets)
    }
}

/// Evaluates every data set in every mode.
fn models(args: &Args) -> anyhow::Result<Vec<Part>> {
    let (sets, modes, device) = (args.sets()?, args.modes(), args.network.device.resolve()?);
    let count = sets.iter().map(|(_, s)| s.items.len()).sum::<usize>() * modes.len();
    let bar = progress::frames(Some(count as u64));
    let mut parts = Vec::new();
    for (name, set) in &sets {
        for mode in &modes {
            let mut predictor = LabelledPredictor::open(
                args.network.model.as_deref(),
                args.lightweight.as_deref(),
                EvalOptions {
                    mode: mode.mode(),
                    mask_mode: args.mask_mode.mode(),
                    roi: args.roi,
                    hysteresis: args.mask_mode.hysteresis(args.hysteresis),
                    flips: args.network.views,
                    precision: args.network.precision.precision(),
                },
                &device,
            )?;
            let mut damaged = 0;
            let left_out = |e: &autosam::Error| {
                damaged += 1;
                bar.suspend(|| eprintln!("left out: {e}"));
            };
            let sequences = measure::measure(&mut predictor, set, || bar.inc(1), left_out)?;
            if args.strict && damaged > 0 {
                bail!("{}: {damaged} images cannot be used (--strict)", set.root.display());
            }
            let sheets = match args.report {
                Some(_) => sheets(&mut predictor, set, &sequences, args.rate)?,
                None => Vec::new(),
            };
            parts.push(Part {
                name: if modes.len() > 1 { format!("{name}, {}", mode.name()) } else { name.clone() },
                // Stills have no first and last frame.
                ends: set.items.iter().all(|i| i.sequence.is_empty()),
                sequences,
                sheets,
            });
        }
    }
    bar.finish_and_clear();
    Ok(parts)
}

/// Contact sheets of the frames with a polyp and of the alarms without one.
fn sheets(
    predictor: &mut LabelledPredictor,
    set: &Dataset,
    sequences: &[Sequence],
    rate: f64,
) -> anyhow::Result<Vec<Sheet>> {
    let mut sheets: Vec<Sheet> = cases(predictor, set, sequences)?.into_iter().collect();
    sheets.extend(alarms(set, sequences, rate)?);
    Ok(sheets)
}

/// The worst frames with a polyp, then a row of the median ones and one of the best; `None` without any.
fn cases(
    predictor: &mut LabelledPredictor,
    set: &Dataset,
    sequences: &[Sequence],
) -> anyhow::Result<Option<Sheet>> {
    let mut order: Vec<(f64, usize)> = sequences
        .iter()
        .flat_map(|s| &s.frames)
        .filter_map(|f| Some((f.metrics.dice_at_half?, f.item)))
        .collect();
    if order.is_empty() {
        return Ok(None);
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let from = |start: usize, count: usize| order.iter().skip(start).take(count);
    let (middle, end) = ((order.len() / 2).saturating_sub(COLUMNS / 2), order.len().saturating_sub(COLUMNS));
    let shown = from(0, WORST).chain(from(middle, COLUMNS)).chain(from(end, COLUMNS));
    let mut cases = Vec::new();
    for (_, item) in shown {
        let pair = set.items[*item].load()?;
        let map = predictor.answer(&pair)?;
        cases.push(Case { label: String::new(), rgb: pair.rgb, truth: pair.mask, map });
    }
    Ok(Some(Sheet {
        file: "cases".into(),
        caption: "The 24 worst frames by Dice, then six around the median and the six best. Green: the model's overlay; white: outline of the ground truth.".into(),
        image: report::contact_sheet(&cases, COLUMNS)?,
    }))
}

/// Contact sheets of all alarms on polyp-free sequences; each alarm is shown by its frame with the largest overlay.
fn alarms(set: &Dataset, sequences: &[Sequence], rate: f64) -> anyhow::Result<Vec<Sheet>> {
    let mut sheets = Vec::new();
    for (protocol, (file, how)) in
        [("alarms", "with each frame by itself"), ("live-alarms", "through the live filter")]
            .into_iter()
            .enumerate()
    {
        let all: Vec<(&str, &Alarm)> =
            sequences.iter().flat_map(|s| s.alarms[protocol].iter().map(|a| (s.name.as_str(), a))).collect();
        for (page, part) in all.chunks(ALARMS).enumerate() {
            let case = |(sequence, alarm): &(&str, &Alarm)| {
                let pair = set.items[alarm.item].load()?;
                let label = format!("{sequence}/{} {:.2}s", alarm.name, alarm.frames as f64 / rate);
                Ok(Case { label, rgb: pair.rgb, truth: pair.mask, map: alarm.map.clone() })
            };
            let cases = part.iter().map(case).collect::<anyhow::Result<Vec<_>>>()?;
            let first = page * ALARMS;
            sheets.push(Sheet {
                file: format!("{file}-{}", page + 1),
                caption: format!(
                    "Alarms in polyp-free video {how}, {} to {} of {}: the frame with the largest overlay, its name and the alarm's duration.",
                    first + 1,
                    first + part.len(),
                    all.len()
                ),
                image: report::contact_sheet(&cases, COLUMNS)?,
            });
        }
    }
    Ok(sheets)
}

/// Writes a report of the model at `model` on `sets` to `dir`, with metrics and contact sheets. `train` calls it at the end.
pub fn write_validation_report(
    model: &Path,
    sets: &[Dataset],
    roi: CropMode,
    device: DeviceChoice,
    dir: &Path,
) -> anyhow::Result<()> {
    let options = EvalOptions { roi, ..EvalOptions::default() };
    let mut predictor = LabelledPredictor::open(Some(model), None, options, &device.resolve()?)?;
    let mut page = Report::new("Validation", vec![format!("model: {}", model.display())]);
    for set in sets {
        let sequences = measure::measure(&mut predictor, set, || {}, |e| eprintln!("left out: {e}"))?;
        let sheets = sheets(&mut predictor, set, &sequences, RATE)?;
        page.add(&set.name, Evaluation::new(&sequences, RATE, true), sheets);
    }
    Ok(page.write(dir)?)
}

fn print(name: &str, e: &Evaluation) {
    let f = |v: Option<f64>| v.map_or("   -  ".to_owned(), |v| format!("{v:.4}"));
    let interval =
        |key: &str| e.intervals.get(key).map_or(String::new(), |i| format!(" [{:.4}, {:.4}]", i.low, i.high));
    let m = &e.summary.metrics;
    println!("{name}: {} frames", e.summary.frames);
    println!(
        "  Dice@0.5 {}{}  IoU@0.5 {}{}",
        f(m.dice_at_half),
        interval("dice@0.5"),
        f(m.iou_at_half),
        interval("iou@0.5")
    );
    println!(
        "  S {}  E mean {} max {}  Fw {}  F mean {} max {}  MAE {}",
        f(m.s_measure),
        f(m.mean_e),
        f(m.max_e),
        f(m.weighted_f),
        f(m.mean_f),
        f(m.max_f),
        f(m.mae)
    );
    println!(
        "  Dice mean {} max {}  IoU mean {} max {}  Sen mean {} max {}",
        f(m.mean_dice),
        f(m.max_dice),
        f(m.mean_iou),
        f(m.max_iou),
        f(m.mean_sensitivity),
        f(m.max_sensitivity)
    );
    println!(
        "  {} of {} frames without a polyp have an overlay",
        e.summary.negatives.with_mask, e.summary.negatives.frames
    );
    if let Some(live) = &e.live {
        println!(
            "  polyps found {} of {}, after {} s (median); neighbouring masks overlap by {}; {} changes/s; outlines {} % off",
            live.recall.map_or(0.0, |r| (r * live.appearances as f64).round()),
            live.appearances,
            f(live.first_detection_median),
            f(live.consistency),
            f(live.flicker),
            f(live.boundary_error)
        );
        if live.polyp_free_minutes > 0.0 {
            let alarms: Vec<String> = live
                .false_alarms
                .iter()
                .map(|a| format!("{} of {}+ frames", f(a.per_minute), a.hold_off))
                .collect();
            println!("  false alarms per minute of polyp-free video: {}", alarms.join(", "));
        }
    }
    if let Some(polyp_free) = &e.polyp_free_video {
        println!("{polyp_free}");
    }
}
