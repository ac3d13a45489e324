//! From a model or maps on disk to scored sequences, and from these to a data set's figures.

use super::intervals::{Interval, bootstrap};
use super::live::{Live, Observed, Watcher};
use super::metrics::FrameMetrics;
use super::predictor::Predictor;
use super::reliability::{Calibration, Reliability};
use super::summary::Summary;
use crate::data::{self, Dataset, Item, case_of};
use crate::engine::segmenter::{ProbMap, Sample};
use crate::frame::sample::{Sampler, fitted};
use crate::frame::{Frame, Luma};
use crate::{Error, Result};
use image::GrayImage;
use image::imageops::{self, FilterType};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Frames decoded and scored at a time.
const CHUNK: usize = 16;

/// Longest side at which motion and outlines are judged.
const WATCHED: usize = 256;

/// One frame's measures.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The frame's name, and its place in the data set it came from.
    pub name: String,
    pub item: usize,
    pub metrics: FrameMetrics,
    pub seen: Observed,
}

/// A sequence's frames in order; stills are one sequence without a name.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub name: String,
    pub frames: Vec<Scored>,
}

/// The model's answers on `set`, scored at the frames' own size. `done` is called after each frame.
pub fn measure(predictor: &mut Predictor, set: &Dataset, mut done: impl FnMut()) -> Result<Vec<Sequence>> {
    let mut watched = Sampler::new(WATCHED);
    let mut small = Sample::default();
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut watcher = Watcher::default();
    for (chunk, items) in set.items.chunks(CHUNK).enumerate() {
        let pairs = items.par_iter().map(Item::load).collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::new();
        for pair in &pairs {
            watched.sample(&Frame::rgb_image(&pair.rgb), &mut small)?;
            answers.push((predictor.answer(pair)?, luma(&small)));
            done();
        }
        let metrics: Vec<FrameMetrics> = pairs
            .par_iter()
            .zip(&answers)
            .map(|(pair, (map, _))| {
                let (w, h) = (pair.mask.width() as usize, pair.mask.height() as usize);
                FrameMetrics::new(&map.resized(w, h), pair.mask.as_raw(), w, h)
            })
            .collect();
        for (i, (((item, pair), (map, luma)), metrics)) in
            items.iter().zip(&pairs).zip(answers).zip(metrics).enumerate()
        {
            if sequences.last().is_none_or(|s| s.name != item.sequence) {
                sequences.push(Sequence { name: item.sequence.clone(), frames: Vec::new() });
                watcher = Watcher::default();
            }
            let (w, h) = (luma.width, luma.height);
            // Stills have no neighbour in time.
            let luma = (!item.sequence.is_empty()).then_some(luma);
            let seen = watcher.observe(luma, &map.resized(w, h), &resized(&pair.mask, w, h), w, h);
            let scored = Scored { name: item.name.clone(), item: chunk * CHUNK + i, metrics, seen };
            if let Some(sequence) = sequences.last_mut() {
                sequence.frames.push(scored);
            }
        }
    }
    Ok(sequences)
}

/// Maps in `pred` against masks in `gt`, a folder a sequence in each; names agree but for the ending. Each sequence's
/// first and last frame is not read (the VPS toolbox's protocol), so it may be missing.
pub fn score_maps(pred: &Path, gt: &Path, done: impl Fn() + Sync) -> Result<Vec<Sequence>> {
    let mut sequences = Vec::new();
    for truth in data::folders(gt)? {
        let name = truth.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let maps = pred.join(&name);
        let predicted: HashMap<String, Item> =
            data::pictures_in(&maps)?.into_iter().map(|i| (i.name.clone(), i)).collect();
        let items = data::pictures_in(&truth)?;
        let count = items.len();
        let inner: Vec<(usize, Item)> =
            items.into_iter().enumerate().take(count.saturating_sub(1)).skip(1).collect();
        let frames = inner
            .par_iter()
            .map(|(at, item)| {
                let map = predicted
                    .get(&item.name)
                    .ok_or_else(|| Error::data(&maps, format!("no map of the name {}", item.name)))?;
                let (gt, map) = (data::open(&item.image)?.into_luma8(), data::open(&map.image)?.into_luma8());
                let (w, h) = (gt.width() as usize, gt.height() as usize);
                let map = ProbMap {
                    width: map.width() as usize,
                    height: map.height() as usize,
                    data: map.into_raw(),
                };
                let metrics = FrameMetrics::new(&map.resized(w, h), gt.as_raw(), w, h);
                let (sw, sh) = fitted(w, h, WATCHED);
                let seen =
                    Watcher::default().observe(None, &map.resized(sw, sh), &resized(&gt, sw, sh), sw, sh);
                done();
                Ok(Scored { name: item.name.clone(), item: *at, metrics, seen })
            })
            .collect::<Result<Vec<_>>>()?;
        sequences.push(Sequence { name, frames });
    }
    if sequences.iter().all(|s| s.frames.is_empty()) {
        return Err(Error::data(gt, "no sequence of three frames or more"));
    }
    Ok(sequences)
}

/// `mask` at `width × height`, nearest.
pub fn resized(mask: &GrayImage, width: usize, height: usize) -> Vec<u8> {
    imageops::resize(mask, width as u32, height as u32, FilterType::Nearest).into_raw()
}

fn luma(s: &Sample) -> Luma {
    let grey = |p: &[u8]| ((77 * u32::from(p[0]) + 150 * u32::from(p[1]) + 29 * u32::from(p[2])) >> 8) as u8;
    Luma { width: s.width, height: s.height, data: s.rgb.chunks_exact(3).map(grey).collect() }
}

/// A sequence's or a case's line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub name: String,
    pub frames: usize,
    #[serde(rename = "dice@0.5")]
    pub dice: Option<f64>,
    #[serde(rename = "iou@0.5")]
    pub iou: Option<f64>,
    #[serde(rename = "Smeasure")]
    pub s_measure: Option<f64>,
}

/// All figures of a data set.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    #[serde(flatten)]
    pub summary: Summary,
    /// 95 % bootstrap intervals over cases (over pictures for stills), of figures that are means over frames.
    pub intervals: BTreeMap<String, Interval>,
    pub sequences: Vec<Line>,
    pub cases: Vec<Line>,
    /// Over all frames, first and last ones too; `None` for stills.
    pub live: Option<Live>,
    /// Over all frames that count.
    pub calibration: Calibration,
    /// Dice over thresholds 1 to 0, averaged as the toolbox does; for plots.
    #[serde(skip)]
    pub dice_curve: Vec<f64>,
}

impl Evaluation {
    /// Of `sequences` of frames at `rate` a second. With `ends` every frame counts, else each sequence's first and last
    /// frame is left out of the toolbox's figures.
    pub fn new(sequences: &[Sequence], rate: f64, ends: bool) -> Self {
        let inner = |s: &Sequence| -> Vec<Scored> {
            let skip = usize::from(!ends);
            let keep = s.frames.len().saturating_sub(2 * skip);
            s.frames.iter().skip(skip).take(keep).cloned().collect()
        };
        let scored: Vec<(&str, Vec<Scored>)> =
            sequences.iter().map(|s| (s.name.as_str(), inner(s))).filter(|s| !s.1.is_empty()).collect();
        let metrics: Vec<Vec<FrameMetrics>> =
            scored.iter().map(|(_, f)| f.iter().map(|s| s.metrics.clone()).collect()).collect();
        let summary = Summary::new(&metrics);

        let mut by_case: BTreeMap<String, Vec<&FrameMetrics>> = BTreeMap::new();
        for ((name, frames), metrics) in scored.iter().zip(&metrics) {
            for (frame, m) in frames.iter().zip(metrics) {
                let case = if name.is_empty() { frame.name.clone() } else { case_of(name).to_owned() };
                by_case.entry(case).or_default().push(m);
            }
        }
        let interval = |pick: &dyn Fn(&FrameMetrics) -> Option<f64>| {
            let cases: Vec<(f64, usize)> = by_case
                .values()
                .map(|frames| {
                    frames.iter().filter_map(|f| pick(f)).fold((0.0, 0), |(s, n), v| (s + v, n + 1))
                })
                .collect();
            bootstrap(&cases)
        };
        let curve_mean = |c: &[f64]| Some(c.iter().sum::<f64>() / c.len() as f64).filter(|v| v.is_finite());
        let intervals = [
            ("dice@0.5", interval(&|f| f.dice_at_half)),
            ("iou@0.5", interval(&|f| f.iou_at_half)),
            ("Smeasure", interval(&|f| Some(f.s_measure))),
            ("meanDice", interval(&|f| curve_mean(&f.dice))),
            ("negatives with a mark", interval(&|f| (!f.positive).then(|| f64::from(u8::from(f.marked))))),
        ]
        .into_iter()
        .filter_map(|(name, i)| Some((name.to_owned(), i?)))
        .collect();

        let reliability: Vec<Reliability> = metrics.iter().flatten().map(|m| m.reliability).collect();
        let stills = scored.iter().all(|(name, _)| name.is_empty());
        let line = |name: &str, frames: &[&FrameMetrics]| {
            let mean = |pick: &dyn Fn(&FrameMetrics) -> Option<f64>| {
                let values: Vec<f64> = frames.iter().filter_map(|f| pick(f)).collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            Line {
                name: name.to_owned(),
                frames: frames.len(),
                dice: mean(&|f| f.dice_at_half),
                iou: mean(&|f| f.iou_at_half),
                s_measure: mean(&|f| Some(f.s_measure)),
            }
        };
        let observed: Vec<Vec<Observed>> =
            sequences.iter().map(|s| s.frames.iter().map(|f| f.seen.clone()).collect()).collect();
        let count = metrics.len().max(1) as f64;
        let dice_curve = (0..metrics.first().and_then(|s| s.first()).map_or(0, |f| f.dice.len()))
            .map(|i| {
                metrics.iter().map(|s| s.iter().map(|f| f.dice[i]).sum::<f64>() / s.len() as f64).sum::<f64>()
                    / count
            })
            .collect();
        Self {
            summary,
            intervals,
            sequences: match stills {
                true => Vec::new(),
                false => scored
                    .iter()
                    .zip(&metrics)
                    .map(|((name, _), m)| line(name, &m.iter().collect::<Vec<_>>()))
                    .collect(),
            },
            cases: match stills {
                true => Vec::new(),
                false => by_case.iter().map(|(name, frames)| line(name, frames)).collect(),
            },
            calibration: Reliability::figures(&reliability),
            live: (!stills).then(|| Live::new(&observed, rate)),
            dice_curve,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &Path, side: u32, lit: impl Fn(u32, u32) -> u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        GrayImage::from_fn(side, side, |x, y| image::Luma([lit(x, y)])).save(path).unwrap();
    }

    #[test]
    fn maps_are_scored_by_sequence_and_case() {
        let dir = tempfile::tempdir().unwrap();
        let (pred, gt) = (dir.path().join("pred"), dir.path().join("gt"));
        for (sequence, shift) in [("case1_1", 0), ("case1_2", 4), ("case2_1", 8)] {
            for i in 0..4 {
                let square = |from: u32| {
                    move |x: u32, y: u32| {
                        if (from..from + 8).contains(&x) && (4..12).contains(&y) { 255 } else { 0 }
                    }
                };
                save(&gt.join(sequence).join(format!("{i}.png")), 24, square(2));
                save(&pred.join(sequence).join(format!("{i}.png")), 24, square(2 + shift));
            }
        }
        let sequences = score_maps(&pred, &gt, || {}).unwrap();
        let e = Evaluation::new(&sequences, 25.0, true);
        assert_eq!((e.summary.frames, e.sequences.len(), e.cases.len()), (6, 3, 2));
        let dice: Vec<f64> = e.sequences.iter().map(|l| l.dice.unwrap()).collect();
        assert_eq!(dice, [1.0, 0.5, 0.0]);
        assert_eq!(e.cases[0].dice, Some(0.75));
        assert_eq!((e.intervals["dice@0.5"].mean, e.intervals["dice@0.5"].cases), (0.5, 2));
        let live = e.live.unwrap();
        assert_eq!((live.appearances, live.recall), (3, Some(2.0 / 3.0)));
        let text = score_maps(&gt, &dir.path().join("none"), || {}).unwrap_err().to_string();
        assert!(text.contains("none"), "{text}");
        std::fs::remove_file(pred.join("case2_1/1.png")).unwrap();
        let text = score_maps(&pred, &gt, || {}).unwrap_err().to_string();
        assert!(text.contains("no map of the name 1"), "{text}");
    }
}
