//! The summary of a video.

use super::{Provenance, Video};
use crate::engine::Detection;
use crate::video::Reader;
use crate::weights::sha256_of;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// A video's `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its path below the input.
    pub video: String,
    pub bytes: u64,
    pub sha256: String,
    /// Time of the file's last change, in milliseconds since 1970.
    #[serde(default)]
    pub modified_ms: Option<u64>,
    /// Size of the first frame, upright.
    pub width: u32,
    pub height: u32,
    /// Pixel aspect ratio, width to height.
    #[serde(default = "square")]
    pub pixel_aspect: (u32, u32),
    /// Computed from the frames' times; the mean if the rate varies.
    pub frames_per_second: f64,
    pub frames: u64,
    /// Number of frames stated by the container, if any.
    #[serde(default)]
    pub promised_frames: Option<u64>,
    /// Reasons why `frames` is less than the whole video; empty if nothing is missing.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Further remarks on the written files.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Time from the first frame to the end of the last.
    #[serde(default)]
    pub seconds: f64,
    /// The first frame's time by the container; all other times are relative to it.
    #[serde(default)]
    pub start_s: f64,
    pub marked_frames: u64,
    /// First and last frame of each stretch of frames with a detection.
    pub stretches: Vec<(u64, u64)>,
    /// Times of the first and the last frame of each stretch.
    #[serde(default)]
    pub stretches_s: Vec<(f64, f64)>,
    /// Area of the largest region of any frame, as a fraction of the frame, 0 to 1.
    pub largest_area: f32,
    pub seconds_taken: f64,
    pub program: String,
    #[serde(rename = "making")]
    pub provenance: Provenance,
}

/// What files with masks say about their video.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    /// Its name.
    pub video: String,
    /// This program and its version.
    pub program: String,
    /// Size of the first frame.
    pub width: u32,
    pub height: u32,
}

/// This program's name and version.
pub(crate) fn program() -> String {
    format!("autosam-video {}", env!("CARGO_PKG_VERSION"))
}

fn square() -> (u32, u32) {
    (1, 1)
}

impl Summary {
    /// An empty summary, before any frame is read.
    pub(super) fn begun(video: &Video, reader: &Reader, provenance: &Provenance) -> Result<Self> {
        let meta = fs::metadata(&video.path).map_err(|e| Error::io(&video.path, e))?;
        let (width, height) = reader.size();
        Ok(Self {
            video: video.name(),
            bytes: meta.len(),
            sha256: sha256_of(&video.path)?,
            modified_ms: modified(&meta),
            width,
            height,
            pixel_aspect: square(),
            frames_per_second: 0.0,
            frames: 0,
            promised_frames: reader.promised(),
            problems: Vec::new(),
            notes: Vec::new(),
            seconds: 0.0,
            start_s: 0.0,
            marked_frames: 0,
            stretches: Vec::new(),
            stretches_s: Vec::new(),
            largest_area: 0.0,
            seconds_taken: 0.0,
            program: program(),
            provenance: provenance.clone(),
        })
    }

    pub(super) fn header(&self) -> Header {
        let (video, program) = (self.video.clone(), self.program.clone());
        Header { video, program, width: self.width, height: self.height }
    }

    /// Counts another frame, shown at `time`.
    pub(super) fn count(&mut self, time: u64, detection: &Detection) {
        let (frame, time) = (self.frames, seconds(time));
        self.frames += 1;
        let Some(largest) = detection.mask.regions.first() else { return };
        self.marked_frames += 1;
        self.largest_area = self.largest_area.max(largest.area);
        match (self.stretches.last_mut(), self.stretches_s.last_mut()) {
            (Some((_, last)), Some((_, until))) if *last + 1 == frame => (*last, *until) = (frame, time),
            _ => {
                self.stretches.push((frame, frame));
                self.stretches_s.push((time, time));
            }
        }
    }

    /// Whether the file at `path` has changed since this summary was made.
    pub(super) fn outdated(&self, path: &Path) -> Result<bool> {
        let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if meta.len() != self.bytes {
            return Ok(true);
        }
        // A file that was only touched or copied counts as unchanged.
        let touched = self.modified_ms.is_some() && self.modified_ms != modified(&meta);
        Ok(touched && sha256_of(path)? != self.sha256)
    }
}

fn modified(meta: &fs::Metadata) -> Option<u64> {
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Converts nanoseconds to seconds.
pub(super) fn seconds(time: u64) -> f64 {
    time as f64 / 1e9
}
