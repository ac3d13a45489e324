//! State that the element carries from one frame to the next.

use super::input::Input;
use super::meta::{Attacher, pixels};
use super::notify::{Notice, Notices};
use super::settings::{Settings, SyncMode};
use autosam_engine::priority::RealtimeGuard;
use autosam_engine::{Engine, Shown};
use std::time::{Duration, Instant};

/// Created on the way from READY to PAUSED and dropped on the way back.
#[derive(Default)]
pub struct State {
    pub engine: Option<Engine>,
    pub notices: Option<Notices>,
    /// `None` if the caps are not supported.
    pub input: Option<Input>,
    /// Frames since the start, for `inference-interval`.
    count: u64,
    /// When `max-inference-rate` allows the next inference, in ns of timestamps.
    due_at: u64,
    /// The frame on which the current detection began.
    detected: Option<Began>,
    overloaded: bool,
    /// Whether an unusable frame was reported since the last usable one.
    pub reported: bool,
    /// Whether the warning about a model too slow for a live source was posted.
    behind: bool,
    /// When statistics were last posted.
    last_stats: Option<Instant>,
    realtime: Option<RealtimeGuard>,
    /// The `realtime-priority` that the system refused.
    refused: u8,
    pub attacher: Attacher,
    /// Id of the object drawn on the last frame.
    pub object: Option<u32>,
}

struct Began {
    pts: Option<gst::ClockTime>,
    frames: u64,
}

impl State {
    pub fn new(engine: Engine, notices: Option<Notices>) -> Self {
        Self { engine: Some(engine), notices, ..Self::default() }
    }

    /// Whether this frame is due for inference.
    pub fn due(&mut self, settings: &Settings, pts: Option<u64>) -> bool {
        let due = self.count.is_multiple_of(u64::from(settings.inference_interval));
        self.count += 1;
        if settings.max_inference_rate <= 0.0 || settings.sync_mode == SyncMode::FrameAccurate {
            return due;
        }
        let Some(now) = pts else { return due };
        let period = (1e9 / settings.max_inference_rate) as u64;
        // Timestamps may jump: one far before the scheduled time restarts the schedule.
        if !due || (now < self.due_at && self.due_at - now <= period) {
            return false;
        }
        self.due_at = self.due_at.saturating_add(period);
        if self.due_at <= now || self.due_at - now > period {
            self.due_at = now.saturating_add(period);
        }
        true
    }

    /// Gives the streaming thread the real-time priority `level`; 0 restores the ordinary one.
    pub fn apply_realtime_priority(&mut self, level: u8) {
        let done = match &self.realtime {
            Some(realtime) => realtime.level() == level && realtime.is_here(),
            None => level == 0 || level == self.refused,
        };
        if done {
            return;
        }
        self.realtime = None;
        if level > 0 {
            match RealtimeGuard::this_thread(level) {
                Ok(realtime) => self.realtime = Some(realtime),
                Err(e) => {
                    self.refused = level;
                    self.send(Notice::Setting(e.to_string()));
                }
            }
        }
    }

    pub fn send(&self, notice: Notice) {
        if let Some(notices) = &self.notices {
            notices.send(notice);
        }
    }

    /// Warns once that the model is too slow to compute a mask for each frame of a live source.
    pub fn falls_behind(&mut self) {
        if !self.behind {
            self.behind = true;
            self.send(Notice::Warning(
                "The model takes longer than a frame lasts: with sync-mode=frame-accurate a live pipeline falls behind, \
                 and its sink drops frames. Use sync-mode=async, a lower frame rate, or a faster device"
                    .to_owned(),
            ));
        }
    }

    pub fn report_once(&mut self, text: String) {
        if !self.reported {
            self.reported = true;
            self.send(Notice::Warning(text));
        }
    }

    /// Posts messages about changes with this frame: detections, overload, statistics.
    pub fn post_changes(
        &mut self,
        shown: Option<&Shown>,
        settings: &Settings,
        pts: Option<gst::ClockTime>,
        (width, height): (usize, usize),
    ) {
        match (shown.and_then(|s| s.detection.mask.regions.first().zip(Some(s))), &mut self.detected) {
            (Some((largest, shown)), None) => {
                self.detected = Some(Began { pts, frames: 1 });
                let (x, y, w, h) = pixels(largest, shown.shift, width, height);
                let structure = gst::Structure::builder("application/x-autosam-detection-started")
                    .field("timestamp", pts)
                    .field("confidence", f64::from(largest.confidence))
                    .field("regions", shown.detection.mask.regions.len() as u32)
                    .field("x", x)
                    .field("y", y)
                    .field("width", w)
                    .field("height", h)
                    .build();
                self.send(Notice::Detection("detection-started", structure));
            }
            (Some(_), Some(began)) => began.frames += 1,
            (None, Some(_)) => self.ended(pts),
            (None, None) => {}
        }
        if let Some(engine) = &self.engine {
            let (max_age, busy) = (settings.mask_max_age(), engine.control().busy());
            let late = busy.is_some_and(|b| b > max_age);
            // The overload ends once an inference finished in time.
            let over = || !late && engine.control().stats().inference.last <= max_age;
            if late != self.overloaded && (late || over()) {
                self.overloaded = late;
                let structure = gst::Structure::builder("application/x-autosam-overload")
                    .field("active", late)
                    .field("busy", busy.unwrap_or(Duration::ZERO).as_nanos() as u64)
                    .build();
                self.send(Notice::Overload(structure));
            }
        }
        let interval = Duration::from_nanos(settings.stats_interval.nseconds());
        if !interval.is_zero() && self.last_stats.get_or_insert_with(Instant::now).elapsed() >= interval {
            self.last_stats = Some(Instant::now());
            self.send(Notice::Stats);
        }
    }

    /// Reports the end of the current detection, if there is one.
    pub fn ended(&mut self, pts: Option<gst::ClockTime>) {
        if let Some(began) = self.detected.take() {
            let structure = gst::Structure::builder("application/x-autosam-detection-ended")
                .field("timestamp", pts)
                .field("began", began.pts)
                .field("pictures", began.frames)
                .build();
            self.send(Notice::Detection("detection-ended", structure));
        }
    }
}
