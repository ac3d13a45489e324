//! Video input from files, streams and cameras, and output to files, with GStreamer: `uridecodebin` to an appsink, an appsrc to
//! an encoder.

mod container;
#[cfg(feature = "archive")]
pub(crate) mod dicom;
mod element;
mod raw;
mod reader;
mod source;
mod upright;
mod watch;
mod writer;

pub use element::autosam_element;
pub(crate) use element::set;
pub(crate) use raw::{convert, info, rgb_buffer};
pub use reader::{Reader, VideoFrame};
pub use source::is_uri;
pub(crate) use source::{decoder, uri_of};
pub use upright::UPRIGHT;
pub(crate) use upright::upright;
pub use writer::{Shape, Writer};

use crate::{Error, Result};
use gst::prelude::*;
use std::time::Duration;

/// Frame rate as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    pub numerator: i32,
    pub denominator: i32,
}

impl FrameRate {
    /// Default for sources that state no frame rate.
    pub const DEFAULT: Self = Self { numerator: 25, denominator: 1 };

    /// Frames per second.
    pub fn per_second(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator.max(1))
    }

    /// Start of frame `index` in nanoseconds, at most `i64::MAX`.
    pub fn time(self, index: u64) -> u64 {
        let [numerator, denominator] =
            [self.numerator, self.denominator].map(|v| u64::from(v.max(1).unsigned_abs()));
        index
            .mul_div_floor(1_000_000_000 * denominator, numerator)
            .unwrap_or(u64::MAX)
            .min(i64::MAX.unsigned_abs())
    }
}

pub(crate) fn init() -> Result<()> {
    gst::init().map_err(|e| Error::Video(format!("cannot start GStreamer: {e}")))
}

/// Creates the element `factory`; the error names the Debian package that contains it.
pub(crate) fn make(factory: &str, package: &str) -> Result<gst::Element> {
    gst::ElementFactory::make(factory)
        .build()
        .map_err(|_| Error::Video(format!("GStreamer has no element {factory}; apt install {package}")))
}

/// Time limit for a source to stop.
const PARTING: Duration = Duration::from_secs(3);

/// Stops a reading pipeline. rtspsrc of GStreamer 1.22 may wait endlessly for a silent server; the caller does not wait,
/// but leaves the waiting to a separate thread.
pub(crate) fn stop(pipeline: &gst::Pipeline) {
    let pipeline = pipeline.clone();
    let (stopped, ended) = crossbeam_channel::bounded(1);
    let stopping = std::thread::Builder::new().name("autosam-stop".into()).spawn(move || {
        // Nothing can be done about a pipeline that does not stop, and no caller is left to inform.
        let _ = pipeline.set_state(gst::State::Null);
        let _ = stopped.send(());
    });
    if stopping.is_err() || ended.recv_timeout(PARTING).is_err() {
        tracing::warn!("the source did not stop in time");
    }
}

/// The first error on the pipeline's bus, if any.
pub(crate) fn error_on(pipeline: &gst::Pipeline, what: &str) -> Option<Error> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(e) => Some(describe(e, what)),
        _ => None,
    }
}

pub(crate) fn describe(e: &gst::message::Error, what: &str) -> Error {
    let error = e.error();
    if error.matches(gst::CoreError::MissingPlugin) {
        return Error::Video(format!(
            "{what}: {error}: install gstreamer1.0-libav and gstreamer1.0-plugins-bad, or convert the file with `ffmpeg -i FILE -c:v libx264 FILE.mp4`"
        ));
    }
    // The file contains only sound or subtitles, which stay unlinked.
    if e.debug().is_some_and(|d| d.contains("reason not-linked")) {
        return Error::Video(format!("{what}: contains no video"));
    }
    let detail =
        e.debug().map(|d| format!(" ({})", d.lines().last().unwrap_or_default())).unwrap_or_default();
    Error::Video(format!("{what}: {error}{detail}"))
}
