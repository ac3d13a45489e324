//! Metrics against the SUN-SEG (VPS) toolbox: `vps_metrics_*`.

use crate::support::folders;
use autosam::eval::{FrameMetrics, Summary};
use serde_json::Value;
use std::collections::BTreeMap;

const BAR: f64 = 1e-6;

fn agrees(what: &str, ours: f64, expected: &Value) {
    match expected.as_f64() {
        Some(e) => assert!((ours - e).abs() < BAR, "{what}: {ours}, the toolbox has {e}"),
        None => assert!(!ours.is_finite(), "{what}: {ours}, the toolbox has none"),
    }
}

fn mean(c: &[f64]) -> f64 {
    c.iter().sum::<f64>() / c.len() as f64
}

fn max(c: &[f64]) -> f64 {
    if c.iter().any(|v| v.is_nan()) { f64::NAN } else { c.iter().fold(f64::MIN, |a, b| a.max(*b)) }
}

#[test]
fn metrics_agree_with_the_toolbox() {
    let Some(dir) = folders().into_iter().find(|d| d.join("vps_metrics_expected.json").exists()) else {
        eprintln!("SKIPPED: no vps_metrics_expected.json in {:?}; set AUTOSAM_GOLDENS", folders());
        return;
    };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(dir.join("vps_metrics_expected.json")).unwrap()).unwrap();
    let bytes = std::fs::read(dir.join("vps_metrics_frames.safetensors")).unwrap();
    let maps = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut sequences: BTreeMap<String, Vec<FrameMetrics>> = BTreeMap::new();
    for frame in expected["frames"].as_array().unwrap() {
        let sequence = frame["sequence"].as_str().unwrap();
        let name = format!("{sequence}/{:03}", frame["frame"].as_u64().unwrap());
        let (pred, gt) =
            (maps.tensor(&format!("{name}.pred")).unwrap(), maps.tensor(&format!("{name}.gt")).unwrap());
        let m = FrameMetrics::new(pred.data(), gt.data(), gt.shape()[1], gt.shape()[0]);
        for (key, value) in [
            ("Smeasure", m.s_measure),
            ("wFmeasure", m.weighted_f),
            ("MAE", m.mae),
            ("adpEm", m.adaptive_e),
            ("adpFm", m.adaptive_f),
            ("meanEm", mean(&m.e)),
            ("maxEm", max(&m.e)),
            ("meanFm", mean(&m.f)),
            ("maxFm", max(&m.f)),
            ("meanDice", mean(&m.dice)),
            ("maxDice", max(&m.dice)),
            ("meanIoU", mean(&m.iou)),
            ("maxIoU", max(&m.iou)),
            ("meanSen", mean(&m.sensitivity)),
            ("maxSen", max(&m.sensitivity)),
            ("meanSpe", mean(&m.specificity)),
            ("maxSpe", max(&m.specificity)),
        ] {
            agrees(&format!("{name} {} {key}", frame["kind"]), value, &frame[key]);
        }
        sequences.entry(sequence.to_owned()).or_default().push(m);
    }
    let kept: Vec<Vec<FrameMetrics>> = sequences.into_values().map(|s| s[1..s.len() - 1].to_vec()).collect();
    let ours = serde_json::to_value(Summary::new(&kept).metrics).unwrap();
    for (key, value) in expected["dataset"].as_object().unwrap() {
        agrees(&format!("data set {key}"), ours[key].as_f64().unwrap_or(f64::NAN), value);
    }
}
