//! Whether a probability means what it says: of the pixels that are polyp with p, a part p should be.

use serde::Serialize;

/// Steps of probability.
const BINS: usize = 16;

/// Parts of frames by the probability that was said: how much was said so, the mean of what was said, and how much of it is
/// polyp. Every frame weighs alike, however many pixels it has.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reliability([Bin; BINS]);

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Bin {
    share: f64,
    said: f64,
    polyp: f64,
}

/// [`Reliability`] as numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// Mean distance between what is said and what is, over pixels said to be polyp with more than a sixteenth (the sure
    /// background would hide all else); `None` where there are none.
    pub error: Option<f64>,
    /// Mean probability said, part that is polyp, and the part of a frame that this was said of.
    pub bins: Vec<[f64; 3]>,
}

impl Reliability {
    /// Of one frame: how many pixels have each value (0 to 255), not polyp and polyp.
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
    fn what_is_said_is_held_against_what_is() {
        let mut counts = [[0; 256]; 2];
        counts[0][0] = 700;
        // Said with 0.6, and so in half the cases.
        counts[0][153] = 50;
        counts[1][153] = 50;
        // Said with 1, and so.
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
