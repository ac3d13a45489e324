//! Confidence intervals of metrics: percentile bootstrap over cases, because frames of one patient are similar.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Number of bootstrap resamples.
const RESAMPLES: usize = 2000;

/// A mean, and the interval that contains 95 % of its resamples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    /// Number of cases.
    pub cases: usize,
}

/// The pooled mean of `cases`, each a sum and a count, with its interval; `None` if all counts are 0. Deterministic.
pub fn bootstrap(cases: &[(f64, usize)]) -> Option<Interval> {
    let cases: Vec<(f64, usize)> = cases.iter().copied().filter(|c| c.1 > 0).collect();
    let pooled = |drawn: &mut dyn Iterator<Item = (f64, usize)>| {
        let (sum, count) = drawn.fold((0.0, 0), |(s, n), c| (s + c.0, n + c.1));
        sum / count as f64
    };
    if cases.is_empty() {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| pooled(&mut (0..cases.len()).map(|_| cases[rng.random_range(0..cases.len())])))
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |part: f64| means[(part * (RESAMPLES - 1) as f64).round() as usize];
    Some(Interval {
        mean: pooled(&mut cases.iter().copied()),
        low: at(0.025),
        high: at(0.975),
        cases: cases.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_contains_the_mean_and_narrows_with_more_cases() {
        let cases = |n: usize| -> Vec<(f64, usize)> { (0..n).map(|i| ((i % 10) as f64, 10)).collect() };
        let (few, many) = (bootstrap(&cases(10)).unwrap(), bootstrap(&cases(1000)).unwrap());
        for i in [few, many] {
            assert!((i.mean - 0.45).abs() < 1e-12 && i.low < i.mean && i.mean < i.high, "{i:?}");
        }
        // The mean of n cases has a standard deviation of 0.287 / sqrt(n) here.
        assert!((few.high - few.low - 4.0 * 0.287 / 10f64.sqrt()).abs() < 0.04, "{few:?}");
        assert!((many.high - many.low - 4.0 * 0.287 / 1000f64.sqrt()).abs() < 0.004, "{many:?}");
        assert_eq!(bootstrap(&cases(10)), Some(few));
    }

    #[test]
    fn cases_are_weighted_by_their_counts() {
        assert_eq!(bootstrap(&[(1.0, 1), (0.0, 3), (5.0, 0)]).unwrap().mean, 0.25);
        assert_eq!(bootstrap(&[(0.0, 0)]), None);
    }
}
