//! Fast metrics during training: Dice at 0.5 on frames with a polyp, alarms on frames without.

use crate::Result;
use crate::data::Dataset;
use crate::eval::dice;
use autosam_frame::map::ModelInput;
use autosam_frame::region::CropMode;
use autosam_frame::resize::{InputSize, Resizer};
use autosam_model::{Network, Predictor};

/// Images per forward pass.
const BATCH: usize = 8;

/// Metrics of one data set at the network's size (`eval` uses the frame's size).
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Validation {
    pub name: String,
    /// Mean over frames with a polyp; `None` without such frames.
    pub dice: Option<f64>,
    pub positives: usize,
    pub negatives: usize,
    /// Number of frames without a polyp in which any pixel is above the threshold.
    pub alarms: usize,
}

/// Validation frames in memory at the network's size.
pub(super) struct Sets(Vec<(String, Vec<Labelled>)>);

/// A frame and its mask, both at the network's size.
type Labelled = (ModelInput, Vec<u8>);

impl Sets {
    pub fn load(sets: &[Dataset], roi: CropMode, size: InputSize) -> Result<Self> {
        let mut resizer = Resizer::new(size);
        let mut all = Vec::new();
        for set in sets {
            let mut items = Vec::new();
            for item in &set.items {
                items.push(item.model_input(roi, &mut resizer)?);
            }
            all.push((set.name.clone(), items));
        }
        Ok(Self(all))
    }

    pub fn run<N: Network>(&self, network: &Predictor<N>) -> Result<Vec<Validation>> {
        let mut results = Vec::new();
        for (name, items) in &self.0 {
            let (mut sum, mut result) =
                (0.0, Validation { name: name.clone(), dice: None, positives: 0, negatives: 0, alarms: 0 });
            for chunk in items.chunks(BATCH) {
                let samples: Vec<ModelInput> = chunk.iter().map(|(s, _)| s.clone()).collect();
                for (map, (_, truth)) in network.maps(&samples)?.iter().zip(chunk) {
                    if truth.iter().any(|t| *t > 127) {
                        result.positives += 1;
                        sum += dice(&map.data, truth);
                    } else {
                        result.negatives += 1;
                        result.alarms += usize::from(map.data.iter().any(|p| *p > 127));
                    }
                }
            }
            result.dice = (result.positives > 0).then(|| sum / result.positives as f64);
            results.push(result);
        }
        Ok(results)
    }
}
