//! Evaluation of masks against the truth: metrics of one frame, and of a data set by the VPS protocol.

pub mod alarms;
pub mod calibrate;
pub mod intervals;
pub mod live;
pub mod maps;
pub mod measure;
mod metrics;
pub mod predictor;
pub mod presence;
pub mod quantise;
pub mod reliability;
mod summary;

pub use metrics::FrameMetrics;
pub use summary::{Metrics, Negatives, Summary};

/// Dice of two binary masks of the same size (pixels above 127 count): `2 |A ∩ B| / (|A| + |B|)`; 1 if both are empty.
///
/// # Panics
/// If the lengths differ.
pub fn dice(prediction: &[u8], truth: &[u8]) -> f64 {
    assert_eq!(prediction.len(), truth.len(), "the masks have different sizes");
    let (mut both, mut sum) = (0u64, 0u64);
    for (p, t) in prediction.iter().zip(truth) {
        let (p, t) = (*p > 127, *t > 127);
        both += u64::from(p && t);
        sum += u64::from(p) + u64::from(t);
    }
    if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
}

#[cfg(test)]
mod tests {
    use super::dice;

    #[test]
    fn dice_is_twice_the_overlap_over_the_sum() {
        assert!((dice(&[255, 255, 0, 0], &[255, 0, 0, 0]) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(dice(&[0, 0], &[0, 0]), 1.0);
        assert_eq!(dice(&[255, 0], &[0, 255]), 0.0);
    }
}
