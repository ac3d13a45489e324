//! Latency of sync-mode=frame-accurate, measured from how long frames wait for their masks.

use autosam_engine::segmenter::Segmenter;
use autosam_frame::map::{ModelInput, ProbMap};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Number of recent frames whose maximum counts.
const RECENT: usize = 250;
/// Assumed until a frame has waited.
const ASSUMED: Duration = Duration::from_millis(100);
/// Latencies are multiples of this, so that small changes post no message.
const STEP: Duration = Duration::from_millis(10);

/// Number of frames after which the element judges whether the model keeps up.
const ENOUGH: usize = 25;

/// Times of the last frames, and the latency derived from them.
#[derive(Default)]
pub struct Times {
    recent: VecDeque<Duration>,
    latency: Option<Duration>,
}

impl Times {
    /// Adds the time of another frame. Returns true if the latency changed. It rises immediately and falls only to half or less.
    pub fn note(&mut self, took: Duration) -> bool {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
        // Twice the maximum leaves a margin for other load on the machine.
        let needed = 2 * self.recent.iter().max().copied().unwrap_or_default();
        let needed = STEP * u32::try_from(needed.as_nanos().div_ceil(STEP.as_nanos())).unwrap_or(u32::MAX);
        let before = self.latency.unwrap_or(ASSUMED);
        let falls = self.recent.len() == RECENT && needed <= before / 2;
        if self.latency.is_none() || needed > before || falls {
            self.latency = Some(needed);
        }
        self.latency != Some(before)
    }

    /// Whether frames that arrive every `interval` take longer than that, so that a live pipeline falls behind.
    pub fn falls_behind(&self, interval: Duration) -> bool {
        let count = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        self.recent.len() >= ENOUGH && self.recent.iter().sum::<Duration>() > interval * count
    }

    pub fn latency(&self) -> gst::ClockTime {
        let latency = self.latency.unwrap_or(ASSUMED).as_nanos();
        gst::ClockTime::from_nseconds(u64::try_from(latency).unwrap_or(u64::MAX / 2))
    }
}

/// Runs two inferences on a black image and returns the time of the second; the first takes longer.
pub fn rehearse(model: &mut dyn Segmenter) -> autosam_frame::Result<Duration> {
    let side = model.input_size().side;
    let sample = ModelInput { width: side, height: side, rgb: vec![0; 3 * side * side] };
    let mut out = ProbMap::default();
    model.segment(&sample, &mut out)?;
    let begin = Instant::now();
    model.segment(&sample, &mut out)?;
    Ok(begin.elapsed())
}

/// Adds `own` to the answer to a latency query and returns whether the source is live; `None` for other queries.
pub fn add(query: &mut gst::QueryRef, own: gst::ClockTime) -> Option<bool> {
    let gst::QueryViewMut::Latency(latency) = query.view_mut() else { return None };
    let (live, min, max) = latency.result();
    latency.set(live, min + own, max.map(|max| max + own));
    Some(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_latency_rises_immediately_and_falls_only_after_many_faster_frames() {
        let mut times = Times::default();
        assert_eq!(times.latency(), gst::ClockTime::from_mseconds(100));
        assert!(!times.falls_behind(ms(1)));
        assert!(times.note(ms(17)) && !times.note(ms(18)));
        assert_eq!(times.latency(), gst::ClockTime::from_mseconds(40));
        assert!(times.note(ms(33)));
        assert_eq!(times.latency(), gst::ClockTime::from_mseconds(70));
        // A little less is no reason for another message.
        assert!((0..RECENT).all(|_| !times.note(ms(25))));
        assert!(times.falls_behind(ms(24)) && !times.falls_behind(ms(25)));
        let changes = (0..2 * RECENT).filter(|_| times.note(ms(9))).count();
        assert_eq!((changes, times.latency()), (1, gst::ClockTime::from_mseconds(20)));
    }
}
