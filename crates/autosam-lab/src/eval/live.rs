//! Metrics of live video that a frame's Dice does not show: false alarms per minute, polyps found, time to the first
//! detection, stability. docs/metrics.md defines each metric and names its source.

use super::metrics::nearest;
use autosam_frame::Luma;
use autosam_frame::flow::Flow;
use serde::Serialize;

/// Minimum durations of an alarm in frames.
pub const HOLD_OFFS: [usize; 4] = [1, 3, 6, 13];

/// One frame as a viewer sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Whether the truth has a polyp.
    pub positive: bool,
    /// Whether the frame has an overlay.
    pub marked: bool,
    /// Whether the overlay's centre of mass is on a polyp.
    pub hit: bool,
    /// Overlap (IoU) with the previous mask after motion compensation; `None` if both are empty or no previous mask
    /// exists.
    pub consistency: Option<f64>,
    /// Mean distance between the outlines, as a fraction of the frame's diagonal; `None` unless both masks exist.
    pub boundary: Option<f64>,
}

/// Evaluates one sequence, frame by frame.
#[derive(Debug, Default)]
pub struct Watcher {
    before: Option<(Luma, Vec<bool>)>,
}

impl Watcher {
    /// Adds the next frame: its `luma` (`None` if only masks are available), and mask and truth (255 polyp) of the
    /// luma's size `width × height`.
    pub fn observe(
        &mut self,
        luma: Option<Luma>,
        mask: &[u8],
        truth: &[u8],
        width: usize,
        height: usize,
    ) -> Observed {
        let mask: Vec<bool> = mask.iter().map(|v| *v > 127).collect();
        let truth: Vec<bool> = truth.iter().map(|v| *v > 127).collect();
        let (positive, marked) = (truth.contains(&true), mask.contains(&true));
        let consistency = match (&self.before, &luma) {
            (Some((before, last)), Some(now))
                if (before.width, before.height) == (now.width, now.height)
                    && (marked || last.contains(&true)) =>
            {
                let warped = Flow::between(before, now).warp(last);
                let count = |f: fn(bool, bool) -> bool| {
                    warped.iter().zip(&mask).filter(|(a, b)| f(**a, **b)).count() as f64
                };
                let any = count(|a, b| a || b);
                Some(if any == 0.0 { 0.0 } else { count(|a, b| a && b) / any })
            }
            _ => None,
        };
        let hit = marked && positive && {
            let lit = || (0..mask.len()).filter(|i| mask[*i]);
            let n = lit().count();
            let (x, y) =
                (lit().map(|i| i % width).sum::<usize>() / n, lit().map(|i| i / width).sum::<usize>() / n);
            truth[y * width + x]
        };
        let boundary = (marked && positive).then(|| boundary_distance(&mask, &truth, width, height));
        self.before = luma.map(|l| (l, mask));
        Observed { positive, marked, hit, consistency, boundary }
    }
}

/// Mean distance between the outlines over the pixels of both, divided by the diagonal.
fn boundary_distance(a: &[bool], b: &[bool], width: usize, height: usize) -> f64 {
    let outline = |m: &[bool]| -> Vec<bool> {
        let inside = |x: usize, y: usize| x < width && y < height && m[y * width + x];
        (0..m.len())
            .map(|i| {
                let (x, y) = (i % width, i / width);
                let around = [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)];
                m[i] && around.iter().any(|(x, y)| !inside(*x, *y))
            })
            .collect()
    };
    let (a, b) = (outline(a), outline(b));
    let (mut sum, mut count) = (0.0, 0.0);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let near = nearest(to, width, height);
        for i in (0..from.len()).filter(|i| from[*i]) {
            let at = near[i] as usize;
            let (dy, dx) = ((at / width).abs_diff(i / width), (at % width).abs_diff(i % width));
            sum += (dx as f64).hypot(dy as f64);
            count += 1.0;
        }
    }
    sum / count / (width as f64).hypot(height as f64)
}

/// Metrics over sequences; `None` (JSON `null`) if undefined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Live {
    pub frames_per_second: f64,
    pub polyp_free_minutes: f64,
    pub false_alarms: Vec<FalseAlarms>,
    /// Number of times that a polyp came into view.
    pub appearances: usize,
    /// Fraction of them with a hit.
    pub recall: Option<f64>,
    /// Seconds from a polyp's appearance to its first hit: median and mean over those that were hit.
    pub first_detection_median: Option<f64>,
    pub first_detection_mean: Option<f64>,
    /// Mean overlap of consecutive masks after motion compensation.
    pub consistency: Option<f64>,
    /// Number of times per second that the overlay appears or disappears while a polyp is in view.
    pub flicker: Option<f64>,
    /// Mean distance of outlines, in hundredths of the diagonal.
    pub boundary_error: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FalseAlarms {
    /// Number of frames that an overlay must last.
    pub hold_off: usize,
    pub events: usize,
    pub per_minute: Option<f64>,
}

impl Live {
    pub fn new(sequences: &[Vec<Observed>], rate: f64) -> Self {
        let stretches = |positive: bool| {
            sequences
                .iter()
                .flat_map(|s| s.chunk_by(|a, b| a.positive == b.positive))
                .filter(move |s| s[0].positive == positive)
        };
        let minutes = stretches(false).map(<[Observed]>::len).sum::<usize>() as f64 / rate / 60.0;
        let false_alarms = HOLD_OFFS.map(|hold_off| {
            let events = stretches(false)
                .flat_map(|s| s.chunk_by(|a, b| a.marked == b.marked))
                .filter(|run| run[0].marked && run.len() >= hold_off)
                .count();
            FalseAlarms { hold_off, events, per_minute: (minutes > 0.0).then(|| events as f64 / minutes) }
        });
        let appearances = stretches(true).count();
        let mut delays: Vec<f64> =
            stretches(true).filter_map(|s| s.iter().position(|o| o.hit)).map(|n| n as f64 / rate).collect();
        delays.sort_by(f64::total_cmp);
        let changes: usize =
            stretches(true).map(|s| s.windows(2).filter(|w| w[0].marked != w[1].marked).count()).sum();
        let seconds = stretches(true).map(<[Observed]>::len).sum::<usize>() as f64 / rate;
        let all = || sequences.iter().flatten();
        Self {
            frames_per_second: rate,
            polyp_free_minutes: minutes,
            false_alarms: false_alarms.to_vec(),
            appearances,
            recall: (appearances > 0).then(|| delays.len() as f64 / appearances as f64),
            first_detection_median: (!delays.is_empty()).then(|| delays[delays.len() / 2]),
            first_detection_mean: mean(delays.iter().copied()),
            consistency: mean(all().filter_map(|o| o.consistency)),
            flicker: (seconds > 0.0).then(|| changes as f64 / seconds),
            boundary_error: mean(all().filter_map(|o| o.boundary)).map(|b| 100.0 * b),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(s, n), v| (s + v, n + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pattern: &str) -> Vec<Observed> {
        // n: polyp-free, N: polyp-free with overlay; p: polyp, P: polyp with overlay elsewhere, H: hit.
        pattern
            .chars()
            .map(|c| Observed {
                positive: "pPH".contains(c),
                marked: "NPH".contains(c),
                hit: c == 'H',
                consistency: None,
                boundary: None,
            })
            .collect()
    }

    #[test]
    fn alarms_must_last_a_minimum_duration() {
        let live = Live::new(&[seen("nNnNNNnnppHHN"), seen("NNNNNNNNNNNNNn")], 10.0);
        let events: Vec<usize> = live.false_alarms.iter().map(|f| f.events).collect();
        assert_eq!(events, [4, 2, 1, 1]);
        assert!((live.polyp_free_minutes - 23.0 / 600.0).abs() < 1e-12);
        assert!((live.false_alarms[0].per_minute.unwrap() - 4.0 / (23.0 / 600.0)).abs() < 1e-9);
    }

    #[test]
    fn time_to_detection_starts_at_the_appearance() {
        let live = Live::new(&[seen("nppPHpHn"), seen("pppp"), seen("H")], 10.0);
        assert_eq!(live.appearances, 3);
        assert!((live.recall.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(live.first_detection_median, Some(0.3));
        assert!((live.first_detection_mean.unwrap() - 0.15).abs() < 1e-12);
        // Off to on, on to off, off to on, in 1.1 seconds.
        assert!((live.flicker.unwrap() - 3.0 / 1.1).abs() < 1e-9);
        assert_eq!(Live::new(&[], 25.0).recall, None);
    }

    #[test]
    fn overlay_stability_is_measured() {
        let (w, h) = (32usize, 24usize);
        let disc = |cx: usize| -> Vec<u8> {
            (0..w * h)
                .map(|i| if (i % w).abs_diff(cx).pow(2) + (i / w).abs_diff(12).pow(2) < 30 { 255 } else { 0 })
                .collect()
        };
        let luma = || Some(Luma { width: w, height: h, data: vec![9; w * h] });
        let mut watcher = Watcher::default();
        let first = watcher.observe(luma(), &disc(10), &disc(12), w, h);
        assert!(first.hit && first.consistency.is_none());
        let error = first.boundary.unwrap() * 40.0;
        assert!((0.5..2.0).contains(&error), "{error}");
        let second = watcher.observe(luma(), &disc(10), &disc(25), w, h);
        assert_eq!((second.hit, second.consistency), (false, Some(1.0)));
        let third = watcher.observe(luma(), &vec![0; w * h], &disc(25), w, h);
        assert_eq!((third.marked, third.consistency, third.boundary), (false, Some(0.0), None));
    }
}
