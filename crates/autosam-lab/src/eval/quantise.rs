//! Measures activation ranges for int8 inference ([`Quantisation`]) on frames: the ranges that minimise the
//! quantisation error.

use crate::data::Dataset;
use autosam_frame::region::CropMode;
use autosam_frame::resize::Resizer;
use autosam_frame::{Error, Result};
use autosam_model::weights::Checkpoint;
use autosam_model::{AutoSam, ModelConfig, Quantisation, Trunk};
use autosam_ops as ops;
use candle_core::Device;
use rayon::prelude::*;

/// Bins between 0 and the largest magnitude, on each side.
const BINS: usize = 2048;
/// Candidate limits per side of a range.
const ENDS: usize = 64;
/// Steps of a byte.
const STEPS: f64 = 255.0;

/// Histogram of an activation's values.
#[derive(Debug, Clone)]
struct Histogram {
    /// Upper limit of the last bin, a power of two that grows with the values.
    end: f32,
    /// Counts from `-end` to `end`.
    counts: Vec<u64>,
    range: [f32; 2],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { end: 2f32.powi(-10), counts: vec![0; 2 * BINS], range: [0.0; 2] }
    }
}

impl Histogram {
    fn add(&mut self, values: &[f32]) -> Result<()> {
        let [low, high] = values.iter().fold(self.range, |[low, high], v| [low.min(*v), high.max(*v)]);
        // `min` and `max` skip NaN.
        if !low.is_finite() || !high.is_finite() || values.iter().any(|v| v.is_nan()) {
            return Err(Error::invalid("an activation is not finite: the model is damaged"));
        }
        self.range = [low, high];
        while self.end <= high.max(-low) {
            self.widen();
        }
        let scale = BINS as f32 / self.end;
        for v in values {
            let bin = (v * scale).floor() as isize + BINS as isize;
            self.counts[bin.clamp(0, 2 * BINS as isize - 1) as usize] += 1;
        }
        Ok(())
    }

    /// Doubles the limit and the width of every bin.
    fn widen(&mut self) {
        let mut counts = vec![0; 2 * BINS];
        for (bin, count) in self.counts.iter().enumerate() {
            counts[BINS / 2 + bin / 2] += count;
        }
        (self.counts, self.end) = (counts, 2.0 * self.end);
    }

    /// The centre of a bin.
    fn value(&self, bin: usize) -> f64 {
        (bin as f64 + 0.5 - BINS as f64) * f64::from(self.end) / BINS as f64
    }

    /// The range with the smallest squared quantisation error.
    fn best(&self) -> [f32; 2] {
        let ends = |end: f32| (1..=ENDS).map(move |i| f64::from(end) * i as f64 / ENDS as f64);
        let lows: Vec<f64> = if self.range[0] < 0.0 { ends(self.range[0]).collect() } else { vec![0.0] };
        // The costs of clipped values are independent on each side.
        let cost = |outside: &dyn Fn(f64) -> f64| -> f64 {
            let bins = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
            bins.map(|(bin, count)| outside(self.value(bin)).powi(2) * *count as f64).sum()
        };
        let below: Vec<f64> = lows.iter().map(|low| cost(&|v| (low - v).max(0.0))).collect();
        let all = self.counts.iter().sum::<u64>() as f64;
        let mut best = (f64::INFINITY, self.range);
        for high in ends(self.range[1]) {
            let above = cost(&|v| (v - high).max(0.0));
            for (low, below) in lows.iter().zip(&below) {
                let inside = all * ((high - low) / STEPS).powi(2) / 12.0;
                let error = inside + above + below;
                if error < best.0 {
                    best = (error, [*low as f32, high as f32]);
                }
            }
        }
        best.1
    }
}

/// Measures the ranges of a model's activations on the frames of `sets` and stores them in its `checkpoint`. `tick` is
/// called for every frame. Returns the number of activations.
///
/// # Errors
/// If the file contains no model, the model has no EfficientNet-Lite, or frames are missing or cannot be read.
pub fn quantise(
    checkpoint: &mut Checkpoint,
    sets: &[Dataset],
    roi: CropMode,
    mut tick: impl FnMut(),
) -> Result<usize> {
    let mut config = ModelConfig::of(checkpoint)?;
    let mut model = AutoSam::from_checkpoint(checkpoint, &Device::Cpu)?;
    let trunks = model.trunks();
    if trunks.is_empty() {
        return Err(Error::weights(
            &checkpoint.path,
            "nothing to quantise: int8 is for models with an EfficientNet-Lite",
        ));
    }
    if sets.iter().all(|set| set.items.is_empty()) {
        return Err(Error::invalid("no frame to measure activations on: the data sets are empty"));
    }
    let mut seen: Vec<Vec<Histogram>> = vec![Vec::new(); trunks.len()];
    let mut resizer = Resizer::new(model.input_size());
    for item in sets.iter().flat_map(|set| &set.items) {
        let (sample, _) = item.model_input(roi, &mut resizer)?;
        let x = model.preprocess(&[sample])?;
        for (trunk, seen) in trunks.iter().zip(&mut seen) {
            let mut activations = Vec::new();
            ops::in_pool(|| {
                model.observe(*trunk, &x, &mut |activation| {
                    activations.push(activation.flatten_all()?.to_vec1::<f32>()?);
                    Ok(())
                })
            })?;
            seen.resize(activations.len(), Histogram::default());
            seen.par_iter_mut().zip(&activations).try_for_each(|(seen, values)| seen.add(values))?;
        }
        tick();
    }
    let ranges = |trunk: Trunk| -> Option<Vec<[f32; 2]>> {
        let at = trunks.iter().position(|t| *t == trunk)?;
        Some(seen[at].par_iter().map(Histogram::best).collect())
    };
    let quantisation = Quantisation { encoder: ranges(Trunk::Encoder), generator: ranges(Trunk::Generator) };
    config.quantisation = Some(quantisation);
    config.note(checkpoint)?;
    Ok(seen.iter().map(Vec::len).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squared quantisation error for a range.
    fn error(values: &[f32], range: [f32; 2]) -> f64 {
        let scale = ops::ByteScale::of(range);
        let byte = |v: f32| (v / scale.step + scale.zero).round().clamp(0.0, 255.0);
        values.iter().map(|v| f64::from(scale.step * (byte(*v) - scale.zero) - v).powi(2)).sum()
    }

    #[test]
    fn the_best_range_excludes_outliers() {
        // A bell-shaped distribution and one outlier.
        let part = |i: usize, by: usize| (i * by % 1000) as f32 / 1000.0 - 0.5;
        let mut values: Vec<f32> = (0..1_000_000)
            .map(|i| [919, 729, 709, 863, 17, 313].into_iter().map(|by| part(i, by)).sum())
            .collect();
        values.push(6.0);
        let mut histogram = Histogram::default();
        values.chunks(1000).for_each(|some| histogram.add(some).unwrap());
        let best = histogram.best();
        assert!(best[0] < -1.0 && best[1] > 1.0 && best[1] < 5.0, "{best:?}");
        assert!(error(&values, best) < error(&values, histogram.range), "{best:?}");
    }

    #[test]
    fn ranges_that_begin_at_zero_keep_zero() {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 / 100.0 - 2.0).clamp(0.0, 6.0)).collect();
        histogram.add(&values).unwrap();
        let [low, high] = histogram.best();
        assert_eq!(low, 0.0);
        assert!((high - 6.0).abs() < 0.1, "{high}");
        assert!(histogram.add(&[f32::NAN]).is_err() && histogram.add(&[f32::INFINITY]).is_err());
    }
}
