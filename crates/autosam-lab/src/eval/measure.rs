//! Scores sequences with a model or with maps on disk, and computes a data set's metrics from them.

use super::alarms::{Alarm, Collector, Drawn, LiveFilter, PolypFree};
use super::intervals::{Interval, bootstrap};
use super::live::{Live, Observed, Watcher};
use super::metrics::FrameMetrics;
use super::predictor::{LabelledPredictor, resized};
use super::reliability::{Calibration, Reliability};
use super::summary::Summary;
use crate::data::{Dataset, Item, Pair, case_of};
use crate::{Error, Result};
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::motion;
use autosam_frame::resize::Resizer;
use autosam_frame::{Frame, Luma};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Frames decoded and scored at a time.
const CHUNK: usize = 16;

/// Longest side at which motion and outlines are evaluated.
pub(super) const WATCHED: usize = 256;

/// Metrics of one frame.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The frame's name, and its index in its data set.
    pub name: String,
    pub item: usize,
    pub metrics: FrameMetrics,
    pub seen: Observed,
    /// Whether it has an overlay with the filter of live video; `None` for stills and for maps from disk.
    pub live_overlay: Option<bool>,
}

/// A sequence's frames in order; stills are one sequence without a name.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub name: String,
    pub frames: Vec<Scored>,
    /// False alarms if no frame has a polyp: for single frames, and with the live filter.
    pub alarms: [Vec<Alarm>; 2],
}

impl Sequence {
    /// A sequence without stored alarms.
    pub(super) fn new(name: String, frames: Vec<Scored>) -> Self {
        Self { name, frames, alarms: Default::default() }
    }
}

/// State of the evaluation of one sequence.
#[derive(Default)]
struct Watch {
    watcher: Watcher,
    filter: LiveFilter,
    collectors: [Collector; 2],
}

impl Watch {
    /// Scores the next frame, item `at` of the data set.
    fn score(
        &mut self,
        item: &Item,
        at: usize,
        pair: &Pair,
        mut answer: Answer,
        metrics: FrameMetrics,
    ) -> Scored {
        let (w, h) = (answer.watched.width, answer.watched.height);
        // Stills have no neighbours in time.
        let still = item.sequence.is_empty();
        let luma = (!still).then_some(answer.watched);
        let truth = resized(&pair.mask, w, h);
        let seen = self.watcher.observe(luma, &answer.map.resized(w, h), &truth, w, h);
        let live_overlay = (!still).then(|| {
            self.filter.apply(&mut answer.raw, answer.small);
            let (w, h) = (pair.mask.width() as usize, pair.mask.height() as usize);
            let drawn = answer.raw.resized(w, h).iter().any(|p| *p > 127);
            self.collectors[0].observe(metrics.marked, &item.name, at, &answer.map);
            self.collectors[1].observe(drawn, &item.name, at, &answer.raw);
            drawn
        });
        Scored { name: item.name.clone(), item: at, metrics, seen, live_overlay }
    }

    /// Stores the alarms of the sequence that ends here.
    fn end(&mut self, sequence: Option<&mut Sequence>) {
        let Self { collectors, .. } = std::mem::take(self);
        if let Some(sequence) = sequence
            && !sequence.name.is_empty()
            && sequence.frames.iter().all(|frame| !frame.metrics.positive)
        {
            sequence.alarms = collectors.map(Collector::finish);
        }
    }
}

/// The model's maps for one frame, and copies of the frame for motion compensation.
struct Answer {
    /// The network's own map.
    raw: ProbMap,
    /// The map for scoring the single frame.
    map: ProbMap,
    watched: Luma,
    small: Luma,
}

/// Scores the model on `set` at the frames' own size. `done` is called after each frame. A damaged frame is left out,
/// and `left_out` is called with the reason.
///
/// # Errors
/// The model's errors.
pub fn measure(
    predictor: &mut LabelledPredictor,
    set: &Dataset,
    mut done: impl FnMut(),
    mut left_out: impl FnMut(&Error),
) -> Result<Vec<Sequence>> {
    let (mut watched, mut small) = (Resizer::new(WATCHED), Resizer::new(motion::SIDE));
    let mut sample = ModelInput::default();
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut watch = Watch::default();
    for (chunk, items) in set.items.chunks(CHUNK).enumerate() {
        let loaded: Vec<Result<Pair>> = items.par_iter().map(Item::load).collect();
        loaded.iter().filter_map(|pair| pair.as_ref().err()).for_each(&mut left_out);
        let pairs: Vec<(usize, Pair)> =
            (0..).zip(loaded).filter_map(|(i, pair)| Some((i, pair.ok()?))).collect();
        let mut answers = Vec::new();
        for (_, pair) in &pairs {
            let frame = Frame::rgb_image(&pair.rgb);
            watched.resize(&frame, &mut sample)?;
            let mut copy = Luma::default();
            small.luma(&frame, &mut copy)?;
            let raw = predictor.raw(pair)?;
            let map = predictor.settled(raw.clone());
            answers.push(Answer { raw, map, watched: bt601_luma(&sample), small: copy });
            done();
        }
        let metrics: Vec<FrameMetrics> = pairs
            .par_iter()
            .zip(&answers)
            .map(|((_, pair), answer)| {
                let (w, h) = (pair.mask.width() as usize, pair.mask.height() as usize);
                FrameMetrics::new(&answer.map.resized(w, h), pair.mask.as_raw(), w, h)
            })
            .collect();
        for (((i, pair), answer), metrics) in pairs.iter().zip(answers).zip(metrics) {
            let item = &items[*i];
            if sequences.last().is_none_or(|s| s.name != item.sequence) {
                watch.end(sequences.last_mut());
                sequences.push(Sequence::new(item.sequence.clone(), Vec::new()));
            }
            let scored = watch.score(item, chunk * CHUNK + i, pair, answer, metrics);
            if let Some(sequence) = sequences.last_mut() {
                sequence.frames.push(scored);
            }
        }
    }
    watch.end(sequences.last_mut());
    Ok(sequences)
}

/// BT.601's luma in 8-bit weights. `Resizer::luma` would take green, because the frame is RGB here; the metrics are defined on
/// luma.
fn bt601_luma(s: &ModelInput) -> Luma {
    let luma = |p: &[u8]| ((77 * u32::from(p[0]) + 150 * u32::from(p[1]) + 29 * u32::from(p[2])) >> 8) as u8;
    Luma { width: s.width, height: s.height, data: s.rgb.chunks_exact(3).map(luma).collect() }
}

/// Metrics of one sequence or case.
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

/// All metrics of a data set.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    #[serde(flatten)]
    pub summary: Summary,
    /// 95 % bootstrap intervals over cases (over images for stills), of metrics that are means over frames.
    pub intervals: BTreeMap<String, Interval>,
    pub sequences: Vec<Line>,
    pub cases: Vec<Line>,
    /// Over all frames, including first and last ones; `None` for stills.
    pub live: Option<Live>,
    /// False alarms of sequences without a polyp, over all frames; `None` if all have polyps.
    pub polyp_free_video: Option<PolypFree>,
    /// Over all counted frames.
    pub calibration: Calibration,
    /// Dice over thresholds 1 to 0, averaged as the toolbox does; for plots.
    #[serde(skip)]
    pub dice_curve: Vec<f64>,
}

impl Evaluation {
    /// Evaluates `sequences` at `rate` frames per second. With `ends` every frame counts; otherwise each sequence's
    /// first and last frame is excluded from the toolbox's metrics.
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
        let intervals = intervals(&by_case);
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
            calibration: Reliability::calibration(&reliability),
            live: (!stills).then(|| Live::new(&observed, rate)),
            polyp_free_video: PolypFree::new(&drawn(sequences), rate),
            dice_curve,
        }
    }
}

/// Confidence intervals of the means by name, by resampling cases with replacement.
fn intervals(by_case: &BTreeMap<String, Vec<&FrameMetrics>>) -> BTreeMap<String, Interval> {
    let interval = |pick: &dyn Fn(&FrameMetrics) -> Option<f64>| {
        let cases: Vec<(f64, usize)> = by_case
            .values()
            .map(|frames| frames.iter().filter_map(|f| pick(f)).fold((0.0, 0), |(s, n), v| (s + v, n + 1)))
            .collect();
        bootstrap(&cases)
    };
    let curve_mean = |c: &[f64]| Some(c.iter().sum::<f64>() / c.len() as f64).filter(|v| v.is_finite());
    [
        ("dice@0.5", interval(&|f| f.dice_at_half)),
        ("iou@0.5", interval(&|f| f.iou_at_half)),
        ("Smeasure", interval(&|f| Some(f.s_measure))),
        ("meanDice", interval(&|f| curve_mean(&f.dice))),
        ("negatives with an overlay", interval(&|f| (!f.positive).then(|| f64::from(u8::from(f.marked))))),
    ]
    .into_iter()
    .filter_map(|(name, i)| Some((name.to_owned(), i?)))
    .collect()
}

/// What is drawn on each frame of `sequences`, without stills.
fn drawn(sequences: &[Sequence]) -> Vec<Vec<Drawn>> {
    let seen =
        |f: &Scored| Drawn { positive: f.metrics.positive, overlay: f.metrics.marked, live: f.live_overlay };
    let videos = sequences.iter().filter(|s| !s.name.is_empty());
    videos.map(|s| s.frames.iter().map(seen).collect()).collect()
}
