//! `autosam-video eval`.

use super::run::{MaskModeArg, parse_device, parse_part};
use anyhow::bail;
use autosam::data::{Dataset, SPLITS};
use autosam::eval::measure::{self, Evaluation, Sequence};
use autosam::eval::predictor::{Mode, Predictor, Way};
use autosam::frame::region::Region;
use autosam::model::{DeviceChoice, Views};
use autosam::report::{self, Case, Report};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

/// Frames a row of a contact sheet.
const COLUMNS: usize = 6;
/// Worst frames on a contact sheet.
const WORST: usize = 24;

/// Measures masks as the field does: the SUN-SEG (VPS) toolbox's figures, Dice and IoU at 0.5 with bootstrap intervals,
/// and what counts on a monitor (docs/metrics.md).
///
/// Either of maps on disk (--pred and --gt), or of a model on labelled pictures (--sunseg or --data). Sequences follow the
/// toolbox: the first and last frame of each is left out, figures are averaged over frames, then over sequences. Stills
/// follow PraNet: every picture counts alike. For GlaS and MoNuSeg as AutoSAM has it, add --mask-mode minmax.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["pred", "data", "sunseg"])))]
pub struct Args {
    /// Folder of predicted maps, a folder a sequence
    #[arg(long, value_name = "DIR", requires = "gt", conflicts_with_all = ["data", "sunseg"])]
    pred: Option<PathBuf>,
    /// Folder of masks with the same names
    #[arg(long, value_name = "DIR", requires = "pred")]
    gt: Option<PathBuf>,
    /// Folder with images/ and masks/, any layout that `train --data` knows, or a folder of such; several may be given
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// SUN-SEG folder; every test split that is there
    #[arg(long, value_name = "DIR")]
    sunseg: Option<PathBuf>,
    /// This split only, such as TestEasyDataset/Unseen
    #[arg(long, value_name = "NAME", requires = "sunseg")]
    split: Option<String>,
    /// Weights made by `train`; without, the model that comes with the program
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// What prompts SAM; several, or `all`, are compared in one table
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [ModeArg::Autosam])]
    mode: Vec<ModeArg>,
    /// The decoder of `train --stage lightweight`, for --mode lightweight
    #[arg(long, value_name = "FILE")]
    lightweight: Option<PathBuf>,
    /// sigmoid knows "no polyp"; minmax is the paper's and marks something in every frame
    #[arg(long, value_enum, default_value_t = MaskModeArg::Sigmoid)]
    mask_mode: MaskModeArg,
    /// Leave out regions without a pixel this far above 0.5, 0 to 1 [default: 0.27; 0 with minmax]
    #[arg(long, value_name = "P", value_parser = parse_part, conflicts_with = "pred")]
    hysteresis: Option<f32>,
    /// Answer so many mirror images of each frame, 1, 2 or 4, and take the mean: better masks for as many times the work
    #[arg(long, value_name = "N", default_value = "1", conflicts_with = "pred")]
    views: Views,
    /// What of a frame the network sees: auto (the endoscope's picture), full, or X,Y,WIDTH,HEIGHT in pixels
    #[arg(long, value_name = "PART", default_value = "auto")]
    roi: Region,
    /// Measure on polyp-free parts alone: of each picture the largest square beside its polyps, as false alarms are where
    /// a data set has few pictures without a polyp
    #[arg(long, conflicts_with_all = ["tile", "pred"])]
    polyp_free: bool,
    /// Cut pictures into tiles of so many pixels a side (MoNuSeg: 512)
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(32..))]
    tile: Option<u32>,
    /// Frames a second of the sequences, for what is measured in time
    #[arg(long, value_name = "N", default_value_t = 25.0)]
    rate: f64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: DeviceChoice,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write report.md and report.html with plots and the worst, median and best frames. These hold pictures of the data
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Stop at pictures that cannot be used, instead of leaving them out
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeArg {
    /// The generator's dense prompt: the method
    Autosam,
    /// A small decoder in SAM's place
    Lightweight,
    /// One point of the truth
    GtPoint,
    /// The truth as a mask prompt
    GtMask,
    /// AutoSAM's mask as a mask prompt
    AutosamAsMaskPrompt,
    /// Each of these (lightweight where --lightweight is given)
    All,
}

impl ModeArg {
    fn mode(self) -> Mode {
        match self {
            Self::Autosam | Self::All => Mode::AutoSam,
            Self::Lightweight => Mode::Lightweight,
            Self::GtPoint => Mode::GtPoint,
            Self::GtMask => Mode::GtMask,
            Self::AutosamAsMaskPrompt => Mode::AutoSamAsMaskPrompt,
        }
    }

    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// Something measured: its name, its sequences, whether first and last frames count.
struct Part {
    name: String,
    sequences: Vec<Sequence>,
    ends: bool,
    sheet: Option<RgbImage>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        bail!("--rate {}: expected a number above 0", args.rate);
    }
    let parts = match (&args.pred, &args.gt) {
        (Some(pred), Some(gt)) => {
            let bar = progress(0);
            let sequences = measure::score_maps(pred, gt, || bar.inc(1))?;
            bar.finish_and_clear();
            vec![Part { name: pred.display().to_string(), sequences, ends: true, sheet: None }]
        }
        _ => models(&args)?,
    };
    let evaluations: Vec<(String, Evaluation)> =
        parts.iter().map(|p| (p.name.clone(), Evaluation::new(&p.sequences, args.rate, p.ends))).collect();
    if evaluations.iter().all(|(_, e)| e.summary.frames == 0) {
        bail!("nothing to measure: no sequence of three frames or more");
    }
    for (name, evaluation) in &evaluations {
        print(name, evaluation);
    }
    let several_modes = args.modes().len() > 1;
    // Over modes there is nothing to add up: they saw the same frames.
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
        let model =
            args.model.as_ref().map_or("the shipped autosam-tiny".to_owned(), |m| m.display().to_string());
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
            page.add(&name, evaluation, part.sheet);
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
            ModeArg::GtMask,
            ModeArg::AutosamAsMaskPrompt,
        ];
        all.into_iter().filter(|m| *m != ModeArg::Lightweight || self.lightweight.is_some()).collect()
    }

    fn sets(&self) -> anyhow::Result<Vec<(String, Dataset)>> {
        let mut sets = Vec::new();
        for dir in &self.data {
            sets.extend(Dataset::open_all(dir)?.into_iter().map(|set| (set.name.clone(), set)));
        }
        if let Some(root) = &self.sunseg {
            let splits: Vec<&str> = match &self.split {
                Some(split) => vec![split],
                None => {
                    let (there, missing): (Vec<&str>, Vec<&str>) =
                        SPLITS.into_iter().skip(1).partition(|s| root.join(s).join("Frame").is_dir());
                    for split in missing {
                        eprintln!("not there: {}", root.join(split).display());
                    }
                    there
                }
            };
            if splits.is_empty() {
                bail!(
                    "{}: no test split is there; expected one of {}",
                    root.display(),
                    SPLITS[1..].join(", ")
                );
            }
            for split in splits {
                sets.push((split.to_owned(), Dataset::sunseg(root, split)?));
            }
        }
        for (_, set) in &mut sets {
            set.verify();
            for problem in &set.problems {
                eprintln!("left out: {problem}");
            }
            if self.strict && !set.problems.is_empty() {
                bail!("{}: {} pictures cannot be used (--strict)", set.root.display(), set.problems.len());
            }
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

/// Every data set in every mode.
fn models(args: &Args) -> anyhow::Result<Vec<Part>> {
    let (sets, modes, device) = (args.sets()?, args.modes(), args.device.resolve()?);
    let bar = progress((sets.iter().map(|(_, s)| s.items.len()).sum::<usize>() * modes.len()) as u64);
    let mut parts = Vec::new();
    for (name, set) in &sets {
        for mode in &modes {
            let mut predictor = Predictor::open(
                args.model.as_deref(),
                args.lightweight.as_deref(),
                Way {
                    mode: mode.mode(),
                    mask_mode: args.mask_mode.mode(),
                    region: args.roi,
                    hysteresis: args.mask_mode.hysteresis(args.hysteresis),
                    views: args.views,
                },
                &device,
            )?;
            let sequences = measure::measure(&mut predictor, set, || bar.inc(1))?;
            let sheet = match args.report {
                Some(_) => Some(sheet(&mut predictor, set, &sequences)?),
                None => None,
            };
            parts.push(Part {
                name: if modes.len() > 1 { format!("{name}, {}", mode.name()) } else { name.clone() },
                // Stills have no first and last frame.
                ends: set.items.iter().all(|i| i.sequence.is_empty()),
                sequences,
                sheet,
            });
        }
    }
    bar.finish_and_clear();
    Ok(parts)
}

/// The worst frames with a polyp, then a row of the median ones and one of the best.
pub fn sheet(predictor: &mut Predictor, set: &Dataset, sequences: &[Sequence]) -> anyhow::Result<RgbImage> {
    let mut order: Vec<(f64, usize)> = sequences
        .iter()
        .flat_map(|s| &s.frames)
        .filter_map(|f| Some((f.metrics.dice_at_half?, f.item)))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let from = |start: usize, count: usize| order.iter().skip(start).take(count);
    let (middle, end) = ((order.len() / 2).saturating_sub(COLUMNS / 2), order.len().saturating_sub(COLUMNS));
    let shown = from(0, WORST).chain(from(middle, COLUMNS)).chain(from(end, COLUMNS));
    let mut cases = Vec::new();
    for (_, item) in shown {
        let pair = set.items[*item].load()?;
        let map = predictor.answer(&pair)?;
        cases.push(Case { rgb: pair.rgb, truth: pair.mask, map });
    }
    Ok(report::contact_sheet(&cases, COLUMNS)?)
}

/// The contact sheet of the model at `model` on `sets`, and their figures, into `dir`: what `train` ends with.
pub fn look(
    model: &Path,
    sets: &[Dataset],
    region: Region,
    device: DeviceChoice,
    dir: &Path,
) -> anyhow::Result<()> {
    let way = Way { region, ..Way::default() };
    let mut predictor = Predictor::open(Some(model), None, way, &device.resolve()?)?;
    let mut page = Report::new("Validation", vec![format!("model: {}", model.display())]);
    for set in sets {
        let sequences = measure::measure(&mut predictor, set, || {})?;
        let sheet = sheet(&mut predictor, set, &sequences)?;
        page.add(&set.name, Evaluation::new(&sequences, 25.0, true), Some(sheet));
    }
    Ok(page.write(dir)?)
}

fn progress(length: u64) -> ProgressBar {
    let style = if length == 0 {
        "{spinner} {pos} frames  {per_sec}"
    } else {
        "{bar:32} {pos}/{len} frames  {per_sec}  {eta} left"
    };
    let bar = if length == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(length) };
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
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
        "  {} of {} frames without a polyp have a mark",
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
            println!("  false alarms a minute of polyp-free video: {}", alarms.join(", "));
        }
    }
}
