//! `autosam-video eval`.

use super::run::parse_device;
use anyhow::{Context, bail};
use autosam::data::{self, Dataset, Item, SPLITS};
use autosam::engine::segmenter::{ProbMap, Sample};
use autosam::eval::{FrameMetrics, Summary};
use autosam::frame::Frame;
use autosam::frame::sample::Sampler;
use autosam::model::{self, DeviceChoice, MaskMode, ModelOptions};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Measures masks as the field does: the SUN-SEG (VPS) toolbox's figures, and Dice and IoU at 0.5.
///
/// Either of maps on disk (--pred and --gt), or of a model on labelled pictures (--sunseg or --data). Sequences follow the
/// toolbox: the first and last frame of each is left out, figures are averaged over frames, then over sequences.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["pred", "data", "sunseg"])))]
pub struct Args {
    /// Folder of predicted maps, a folder a sequence
    #[arg(long, value_name = "DIR", requires = "gt")]
    pred: Option<PathBuf>,
    /// Folder of masks with the same names
    #[arg(long, value_name = "DIR", requires = "pred")]
    gt: Option<PathBuf>,
    /// Folder with images/ and masks/, every picture counts; or any layout that `train --data` knows
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// SUN-SEG folder; every test split that is there
    #[arg(long, value_name = "DIR")]
    sunseg: Option<PathBuf>,
    /// This split only, such as TestEasyDataset/Unseen
    #[arg(long, value_name = "NAME", requires = "sunseg")]
    split: Option<String>,
    /// Weights made by `train`; without, the model that comes with the program
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: DeviceChoice,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

type Sequences = Vec<Vec<FrameMetrics>>;

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut splits: BTreeMap<String, Summary> = BTreeMap::new();
    let all: Sequences = match (&args.pred, &args.gt, &args.data, &args.sunseg) {
        (Some(pred), Some(gt), _, _) => maps(pred, gt)?,
        (_, _, Some(dir), _) => {
            let set = Dataset::open(dir)?;
            // Stills have no first and last frame.
            let stills = set.items.iter().all(|i| i.sequence.is_empty());
            let measured = measure(&args, &set)?;
            if stills { measured } else { inner(measured) }
        }
        (_, _, _, Some(root)) => {
            let mut all = Vec::new();
            for split in
                SPLITS.into_iter().skip(1).filter(|_| args.split.is_none()).chain(args.split.as_deref())
            {
                if args.split.is_none() && !root.join(split).join("Frame").is_dir() {
                    eprintln!("not there: {}", root.join(split).display());
                    continue;
                }
                let measured = inner(measure(&args, &Dataset::sunseg(root, split)?)?);
                splits.insert(split.to_owned(), Summary::new(&measured));
                all.extend(measured);
            }
            if all.is_empty() {
                bail!("{}: no test split is there", root.display());
            }
            all
        }
        _ => bail!("give --pred and --gt, --data or --sunseg"),
    };
    let summary = Summary::new(&all);
    for (name, split) in &splits {
        print(name, split);
    }
    if splits.len() != 1 {
        print("all", &summary);
    }
    if let Some(path) = &args.json {
        let mut value = serde_json::to_value(&summary)?;
        if !splits.is_empty() {
            value["splits"] = serde_json::to_value(&splits)?;
        }
        autosam::write_atomically(path, serde_json::to_string_pretty(&value)?.as_bytes())?;
    }
    Ok(())
}

/// Without each sequence's first and last frame, as the toolbox.
fn inner(sequences: Sequences) -> Sequences {
    sequences
        .into_iter()
        .map(|mut s| {
            s.pop();
            if !s.is_empty() {
                s.remove(0);
            }
            s
        })
        .collect()
}

/// Metrics of maps on disk.
fn maps(pred: &Path, gt: &Path) -> anyhow::Result<Sequences> {
    let mut sequences = Vec::new();
    for truth in data::folders(gt)? {
        let name = truth.file_name().unwrap_or_default();
        let maps = pred.join(name);
        let predicted: BTreeMap<String, Item> =
            data::pictures_in(&maps)?.into_iter().map(|i| (i.name.clone(), i)).collect();
        let mut frames = Vec::new();
        let items = data::pictures_in(&truth)?;
        // The toolbox does not read the first and last frame, so they may be missing.
        let count = items.len();
        for item in items.into_iter().take(count.saturating_sub(1)).skip(1) {
            let map = predicted
                .get(&item.name)
                .with_context(|| format!("{}: no map of the name {}", maps.display(), item.name))?;
            let (gt, map) = (data::open(&item.image)?.into_luma8(), data::open(&map.image)?.into_luma8());
            let (w, h) = (gt.width() as usize, gt.height() as usize);
            let map =
                ProbMap { width: map.width() as usize, height: map.height() as usize, data: map.into_raw() };
            frames.push(FrameMetrics::new(&map.resized(w, h), gt.as_raw(), w, h));
        }
        sequences.push(frames);
    }
    if sequences.iter().all(Vec::is_empty) {
        bail!("{}: no sequence of three frames or more", gt.display());
    }
    Ok(sequences)
}

/// Metrics of the model on `set`, by sequence.
fn measure(args: &Args, set: &Dataset) -> anyhow::Result<Sequences> {
    for problem in &set.problems {
        eprintln!("left out: {problem}");
    }
    let options = ModelOptions { device: args.device, mask_mode: MaskMode::Sigmoid };
    let mut segmenter = model::open(args.model.as_deref(), &options)?;
    let mut sampler = Sampler::new(segmenter.input_size());
    let (mut sample, mut map) = (Sample::default(), ProbMap::default());
    let bar = ProgressBar::new(set.items.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} frames  {per_sec}  {eta} left")?);
    let mut sequences: Sequences = Vec::new();
    let mut last = None;
    for item in &set.items {
        let pair = item.load()?;
        sampler.sample(&Frame::rgb_image(&pair.rgb), &mut sample)?;
        segmenter.segment(&sample, &mut map)?;
        let (w, h) = (pair.rgb.width() as usize, pair.rgb.height() as usize);
        let metrics = FrameMetrics::new(&map.resized(w, h), pair.mask.as_raw(), w, h);
        match sequences.last_mut() {
            Some(sequence) if last == Some(&item.sequence) => sequence.push(metrics),
            _ => sequences.push(vec![metrics]),
        }
        last = Some(&item.sequence);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(sequences)
}

fn print(name: &str, s: &Summary) {
    let f = |v: Option<f64>| v.map_or("   -  ".to_owned(), |v| format!("{v:.4}"));
    let m = &s.metrics;
    println!("{name}: {} frames", s.frames);
    println!("  Dice@0.5 {}  IoU@0.5 {}", f(m.dice_at_half), f(m.iou_at_half));
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
    println!("  {} of {} frames without a polyp have a mark", s.negatives.with_mask, s.negatives.frames);
}
