//! Reliability of probabilities: of the pixels with probability p, a fraction p should be polyp.

use serde::Serialize;

/// Number of probability bins.
const BINS: usize = 16;

/// Reliability diagram: for each bin of predicted probability the fraction of the frame, the mean probability and the
/// fraction that is polyp. Every frame has the same weight, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reliability([Bin; BINS]);

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Bin {
    share: f64,
    said: f64,
    polyp: f64,
}

/// Summary of a [`Reliability`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// Mean distance between predicted and true fractions, over pixels with a probability above 1/16 (the certain
    /// background would dominate otherwise); `None` without such pixels.
    pub error: Option<f64>,
    /// Mean predicted probability, fraction that is polyp, and fraction of a frame in the bin.
    pub bins: Vec<[f64; 3]>,
}

impl Reliability {
    /// The diagram of one frame, from the number of background and polyp pixels of each value (0 to 255).
    pub fn of(counts: &[[u32; 256]; 2]) -> Self {
        let pixels = counts.iter().flatten().map(|n| u64::from(*n)).sum::<u64>().max(1) as f64;
        let mut bins = [Bin::default(); BINS];
        for value in 0..256 {
            let bin = &mut bins[value * BINS / 256];
            let part = |n: u32| f64::from(n) / pixels;
            let all = part(counts[0][value]) + part(counts[1][value]);
            bin.share += all;
            bin.said += all * value as f64 / 255.0;
            bin.polyp += part(counts[1][value]);
        }
        Self(bins)
    }

    /// The mean over `frames`.
    pub fn calibration(frames: &[Self]) -> Calibration {
        let count = frames.len().max(1) as f64;
        let mut bins = [Bin::default(); BINS];
        for frame in frames {
            for (bin, one) in bins.iter_mut().zip(&frame.0) {
                bin.share += one.share / count;
                bin.said += one.said / count;
                bin.polyp += one.polyp / count;
            }
        }
        let unsure = || bins[1..].iter();
        let weight: f64 = unsure().map(|b| b.share).sum();
        let apart: f64 = unsure().map(|b| (b.said - b.polyp).abs()).sum();
        let filled = bins.iter().filter(|b| b.share > 0.0);
        Calibration {
            error: (weight > 0.0).then(|| apart / weight),
            bins: filled.map(|b| [b.said / b.share, b.polyp / b.share, b.share]).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicted_probabilities_are_compared_with_true_fractions() {
        let mut counts = [[0; 256]; 2];
        counts[0][0] = 700;
        // Predicted with 0.6, and polyp in half the cases.
        counts[0][153] = 50;
        counts[1][153] = 50;
        // Predicted with 1, and polyp.
        counts[1][255] = 200;
        let c = Reliability::calibration(&[Reliability::of(&counts); 3]);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert_eq!(c.bins.len(), 3);
        for (got, want) in c.bins.iter().zip([[0.0, 0.0, 0.7], [0.6, 0.5, 0.1], [1.0, 1.0, 0.2]]) {
            assert!(got.iter().zip(want).all(|(a, b)| close(*a, b)), "{got:?}");
        }
        assert!(close(c.error.unwrap(), 0.1 * 0.1 / 0.3), "{c:?}");
        assert_eq!(Reliability::calibration(&[]).error, None);
    }
}
