//! Aggregates frames to a data set's metrics: averages over frames, then over sequences; means and maxima of the averaged
//! curves last (the VPS toolbox's order).

use super::metrics::{Curve, FrameMetrics};
use serde::Serialize;

/// A data set's metrics; `None` (JSON `null`) if undefined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    #[serde(rename = "Smeasure")]
    pub s_measure: Option<f64>,
    #[serde(rename = "meanEm")]
    pub mean_e: Option<f64>,
    #[serde(rename = "maxEm")]
    pub max_e: Option<f64>,
    #[serde(rename = "adpEm")]
    pub adaptive_e: Option<f64>,
    #[serde(rename = "wFmeasure")]
    pub weighted_f: Option<f64>,
    #[serde(rename = "meanFm")]
    pub mean_f: Option<f64>,
    #[serde(rename = "maxFm")]
    pub max_f: Option<f64>,
    #[serde(rename = "adpFm")]
    pub adaptive_f: Option<f64>,
    #[serde(rename = "MAE")]
    pub mae: Option<f64>,
    #[serde(rename = "meanDice")]
    pub mean_dice: Option<f64>,
    #[serde(rename = "maxDice")]
    pub max_dice: Option<f64>,
    #[serde(rename = "meanIoU")]
    pub mean_iou: Option<f64>,
    #[serde(rename = "maxIoU")]
    pub max_iou: Option<f64>,
    #[serde(rename = "meanSen")]
    pub mean_sensitivity: Option<f64>,
    #[serde(rename = "maxSen")]
    pub max_sensitivity: Option<f64>,
    #[serde(rename = "meanSpe")]
    pub mean_specificity: Option<f64>,
    #[serde(rename = "maxSpe")]
    pub max_specificity: Option<f64>,
    /// Mean over frames with a polyp.
    #[serde(rename = "dice@0.5")]
    pub dice_at_half: Option<f64>,
    #[serde(rename = "iou@0.5")]
    pub iou_at_half: Option<f64>,
}

/// Number of frames without a polyp, and of those with an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Negatives {
    pub frames: usize,
    pub with_mask: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub frames: usize,
    pub metrics: Metrics,
    pub negatives: Negatives,
}

impl Summary {
    /// Summarises sequences of frames, all of which count. (The VPS toolbox excludes each sequence's first and last
    /// frame; remove them before.) Empty sequences are skipped.
    pub fn new(sequences: &[Vec<FrameMetrics>]) -> Self {
        let sequences: Vec<&[FrameMetrics]> =
            sequences.iter().map(Vec::as_slice).filter(|s| !s.is_empty()).collect();
        let frames = || sequences.iter().copied().flatten();
        let scalar = |pick: fn(&FrameMetrics) -> f64| {
            let of = |s: &[FrameMetrics]| s.iter().map(pick).sum::<f64>() / s.len() as f64;
            defined(sequences.iter().map(|s| of(s)).sum::<f64>() / sequences.len() as f64)
        };
        let curve = |pick: fn(&FrameMetrics) -> &Curve| {
            let length = frames().next().map_or(0, |f| pick(f).len());
            let at = |i: usize| {
                let of = |s: &[FrameMetrics]| s.iter().map(|f| pick(f)[i]).sum::<f64>() / s.len() as f64;
                sequences.iter().map(|s| of(s)).sum::<f64>() / sequences.len() as f64
            };
            let values: Curve = (0..length).map(at).collect();
            // As in NumPy, one undefined value makes the metric undefined.
            let max = values
                .iter()
                .fold(f64::NEG_INFINITY, |m, v| if v.is_nan() || m.is_nan() { f64::NAN } else { m.max(*v) });
            (defined(values.iter().sum::<f64>() / values.len() as f64), defined(max))
        };
        let over_positives = |pick: fn(&FrameMetrics) -> Option<f64>| {
            let values: Vec<f64> = frames().filter_map(pick).collect();
            defined(values.iter().sum::<f64>() / values.len() as f64)
        };
        let (mean_e, max_e) = curve(|f| &f.e);
        let (mean_f, max_f) = curve(|f| &f.f);
        let (mean_dice, max_dice) = curve(|f| &f.dice);
        let (mean_iou, max_iou) = curve(|f| &f.iou);
        let (mean_sensitivity, max_sensitivity) = curve(|f| &f.sensitivity);
        let (mean_specificity, max_specificity) = curve(|f| &f.specificity);
        Self {
            frames: frames().count(),
            metrics: Metrics {
                s_measure: scalar(|f| f.s_measure),
                mean_e,
                max_e,
                adaptive_e: scalar(|f| f.adaptive_e),
                weighted_f: scalar(|f| f.weighted_f),
                mean_f,
                max_f,
                adaptive_f: scalar(|f| f.adaptive_f),
                mae: scalar(|f| f.mae),
                mean_dice,
                max_dice,
                mean_iou,
                max_iou,
                mean_sensitivity,
                max_sensitivity,
                mean_specificity,
                max_specificity,
                dice_at_half: over_positives(|f| f.dice_at_half),
                iou_at_half: over_positives(|f| f.iou_at_half),
            },
            negatives: Negatives {
                frames: frames().filter(|f| !f.positive).count(),
                with_mask: frames().filter(|f| !f.positive && f.marked).count(),
            },
        }
    }
}

fn defined(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}
