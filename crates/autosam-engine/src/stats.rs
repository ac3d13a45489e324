//! The engine's counters and timers. They are updated without locks from the streaming and the worker thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Summary of one kind of delay since the engine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Number of measurements; if 0, the other fields are 0 too.
    pub count: u64,
    pub last: Duration,
    pub mean: Duration,
    pub max: Duration,
}

/// A snapshot of the engine's statistics. `frames = inferred + skipped + errors + pending`, always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames submitted, with or without inference.
    pub frames: u64,
    /// Frames for which the network computed a mask.
    pub inferred: u64,
    /// Frames passed without inference: the worker was busy with another, or was not ready, or the caller requested it.
    pub skipped: u64,
    /// Frames whose inference failed or panicked.
    pub errors: u64,
    /// Number of model reloads after such a failure.
    pub restarts: u64,
    /// Frames that wait for the worker or are processed by it (0 to 2).
    pub pending: u64,
    /// One inference, without the time spent waiting for the worker.
    pub inference: Latency,
    /// Delay that the engine's user added to each frame ([`super::Engine::record_video_delay`]).
    pub video_delay: Latency,
    /// Age of each drawn mask: time from the resizing of its frame until it was drawn.
    pub annotation_delay: Latency,
}

/// [`Latency`] while it is being measured.
pub(super) struct Timer {
    count: AtomicU64,
    last: AtomicU64,
    sum: AtomicU64,
    max: AtomicU64,
    histogram: metrics::Histogram,
}

impl Timer {
    fn new(histogram: metrics::Histogram) -> Self {
        Self {
            count: AtomicU64::new(0),
            last: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
            histogram,
        }
    }

    pub(super) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
        self.max.fetch_max(nanos, Relaxed);
        self.count.fetch_add(1, Relaxed);
        self.histogram.record(duration.as_secs_f64());
    }

    fn snapshot(&self) -> Latency {
        let count = self.count.load(Relaxed);
        Latency {
            count,
            last: Duration::from_nanos(self.last.load(Relaxed)),
            mean: Duration::from_nanos(self.sum.load(Relaxed).checked_div(count).unwrap_or(0)),
            max: Duration::from_nanos(self.max.load(Relaxed)),
        }
    }
}

/// A counter that is also reported to the process's metrics recorder, if one is installed.
pub(super) struct Count {
    value: AtomicU64,
    counter: metrics::Counter,
}

impl Count {
    fn new(counter: metrics::Counter) -> Self {
        Self { value: AtomicU64::new(0), counter }
    }

    pub(super) fn add_one(&self) {
        self.value.fetch_add(1, Relaxed);
        self.counter.increment(1);
    }

    fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

/// All counters and timers, under the names that a metrics recorder sees.
pub(super) struct Counters {
    pub(super) frames: Count,
    pub(super) inferred: Count,
    pub(super) skipped: Count,
    pub(super) errors: Count,
    pub(super) restarts: Count,
    pub(super) inference: Timer,
    pub(super) video_delay: Timer,
    pub(super) annotation_delay: Timer,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            frames: Count::new(metrics::counter!("autosam_frames_total")),
            inferred: Count::new(metrics::counter!("autosam_inferred_total")),
            skipped: Count::new(metrics::counter!("autosam_skipped_total")),
            errors: Count::new(metrics::counter!("autosam_errors_total")),
            restarts: Count::new(metrics::counter!("autosam_restarts_total")),
            inference: Timer::new(metrics::histogram!("autosam_inference_seconds")),
            video_delay: Timer::new(metrics::histogram!("autosam_video_delay_seconds")),
            annotation_delay: Timer::new(metrics::histogram!("autosam_annotation_delay_seconds")),
        }
    }

    pub(super) fn snapshot(&self) -> Stats {
        // Outcomes are read before submissions, so that a frame in between counts as pending and never as minus one.
        let (inferred, skipped, errors) = (self.inferred.get(), self.skipped.get(), self.errors.get());
        let frames = self.frames.get();
        Stats {
            frames,
            inferred,
            skipped,
            errors,
            restarts: self.restarts.get(),
            pending: frames.saturating_sub(inferred + skipped + errors),
            inference: self.inference.snapshot(),
            video_delay: self.video_delay.snapshot(),
            annotation_delay: self.annotation_delay.snapshot(),
        }
    }
}
