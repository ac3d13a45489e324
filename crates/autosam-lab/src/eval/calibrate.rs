//! Calibration of a model's probabilities by Platt scaling (Platt 1999; temperature scaling, arXiv 1706.04599, with a
//! bias): the affine map of its logits that maximises the likelihood of labelled pixels. Its two parameters are fitted
//! on frames that the model was not trained on.

use crate::data::Dataset;
use crate::{Error, Result};
use autosam_frame::region::CropMode;
use autosam_frame::resize::Resizer;
use autosam_model::weights::Checkpoint;
use autosam_model::{AutoSam, Calibration, ModelConfig};
use autosam_ops as ops;
use candle_core::Device;

/// Logits are clamped to ± this.
const MOST: f64 = 24.0;
/// Width of a bin of logits.
const STEP: f64 = 1.0 / 32.0;
const ITERATIONS: usize = 50;

/// Weighted number of background and polyp pixels by logit.
#[derive(Debug, Clone)]
struct Bins(Vec<[f64; 2]>);

impl Bins {
    fn new() -> Self {
        Self(vec![[0.0; 2]; (2.0 * MOST / STEP) as usize + 1])
    }

    fn add(&mut self, logit: f32, polyp: bool, weight: f64) {
        let at = (f64::from(logit).clamp(-MOST, MOST) + MOST) / STEP;
        self.0[at.round() as usize][usize::from(polyp)] += weight;
    }

    fn logits(&self) -> impl Iterator<Item = (f64, [f64; 2])> + '_ {
        self.0.iter().enumerate().map(|(i, counts)| (i as f64 * STEP - MOST, *counts))
    }

    /// Mean negative log likelihood of the labels under `c`, in nats.
    fn loss(&self, c: Calibration) -> f64 {
        let (mut sum, mut weight) = (0.0, 0.0);
        for (logit, [background, polyp]) in self.logits() {
            let z = f64::from(c.scale) * logit + f64::from(c.bias);
            // log(1 + e^z), without overflow.
            let soft = z.max(0.0) + (-z.abs()).exp().ln_1p();
            sum += background * soft + polyp * (soft - z);
            weight += background + polyp;
        }
        sum / weight.max(f64::MIN_POSITIVE)
    }

    /// Minimises [`Self::loss`], which is convex, by Newton's method with step halving.
    fn fit(&self) -> Calibration {
        let mut best = Calibration::default();
        let mut loss = self.loss(best);
        for _ in 0..ITERATIONS {
            let (mut gradient, mut curve) = ([0f64; 2], [0f64; 3]);
            for (logit, [background, polyp]) in self.logits() {
                let p = 1.0 / (1.0 + (-(f64::from(best.scale) * logit + f64::from(best.bias))).exp());
                let (slope, bend) = ((background + polyp) * p - polyp, (background + polyp) * p * (1.0 - p));
                gradient = [gradient[0] + slope * logit, gradient[1] + slope];
                curve = [curve[0] + bend * logit * logit, curve[1] + bend * logit, curve[2] + bend];
            }
            let determinant = curve[0] * curve[2] - curve[1] * curve[1];
            if determinant.abs() < f64::MIN_POSITIVE {
                break;
            }
            let step = [
                (curve[2] * gradient[0] - curve[1] * gradient[1]) / determinant,
                (curve[0] * gradient[1] - curve[1] * gradient[0]) / determinant,
            ];
            let better = (0..20).map(|n| 0.5f64.powi(n)).find_map(|size| {
                let next = Calibration {
                    scale: (f64::from(best.scale) - size * step[0]) as f32,
                    bias: (f64::from(best.bias) - size * step[1]) as f32,
                };
                let after = self.loss(next);
                (next.scale > 0.0 && after < loss).then_some((next, after))
            });
            let Some((next, after)) = better else { break };
            (best, loss) = (next, after);
        }
        best
    }
}

/// Result of [`calibrate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibrated {
    pub calibration: Calibration,
    /// Negative log likelihood per pixel before and after, in nats.
    pub loss: (f64, f64),
    pub frames: usize,
}

/// Fits a model's calibration and stores it in its `checkpoint`. Sets have equal weight, and so have the frames within
/// a set. `tick` is called for every frame.
///
/// # Errors
/// If the file contains no model, or frames are missing or cannot be read.
pub fn calibrate(
    checkpoint: &mut Checkpoint,
    device: &Device,
    sets: &[Dataset],
    roi: CropMode,
    mut tick: impl FnMut(),
) -> Result<Calibrated> {
    let mut config = ModelConfig::of(checkpoint)?;
    config.calibration = Calibration::default();
    config.note(checkpoint)?;
    let model = AutoSam::from_checkpoint(checkpoint, device)?;
    let (size, mut bins, mut frames) = (model.image_size(), Bins::new(), 0);
    let mut resizer = Resizer::new(model.input_size());
    for set in sets {
        for item in &set.items {
            let (sample, mask) = item.model_input(roi, &mut resizer)?;
            let (width, height) = (sample.width, sample.height);
            let logits = model.forward(&model.preprocess(&[sample])?)?;
            let logits = ops::resize_bilinear(&logits, size, size, false)?.flatten_all()?.to_vec1::<f32>()?;
            let weight = 1.0 / (sets.len() * set.items.len() * width * height) as f64;
            for (row, mask) in logits.chunks_exact(size).zip(mask.chunks_exact(width)) {
                for (logit, truth) in row.iter().zip(mask) {
                    bins.add(*logit, *truth > 127, weight);
                }
            }
            frames += 1;
            tick();
        }
    }
    if frames == 0 {
        return Err(Error::invalid("no frame to calibrate on: the data sets are empty"));
    }
    let calibration = bins.fit();
    config.calibration = calibration;
    config.note(checkpoint)?;
    Ok(Calibrated { calibration, loss: (bins.loss(Calibration::default()), bins.loss(calibration)), frames })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_true_calibration_is_recovered() {
        // Expected labels of an overconfident model that predicts too many polyps.
        let truth = Calibration { scale: 0.4, bias: -1.2 };
        let mut bins = Bins::new();
        for i in -300..300 {
            let logit = i as f32 / 30.0;
            let p = 1.0 / (1.0 + (-f64::from(truth.scale * logit + truth.bias)).exp());
            let many = 1.0 + f64::from(logit.abs());
            bins.add(logit, true, many * p);
            bins.add(logit, false, many * (1.0 - p));
        }
        let found = bins.fit();
        assert!(
            (found.scale - truth.scale).abs() < 5e-3 && (found.bias - truth.bias).abs() < 2e-2,
            "{found:?}"
        );
        assert!(bins.loss(found) < bins.loss(Calibration::default()));
    }

    #[test]
    fn calibration_of_separable_labels_stays_finite() {
        let mut bins = Bins::new();
        (-200..200).for_each(|i| bins.add(i as f32 / 10.0, i > 3, 1.0));
        let found = bins.fit();
        assert!(found.scale.is_finite() && found.bias.is_finite() && found.scale > 0.0, "{found:?}");
    }
}
