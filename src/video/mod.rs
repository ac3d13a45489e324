//! Files, streams and cameras in, files out, by GStreamer: `uridecodebin` to an appsink, an appsrc to an encoder.

mod element;
mod raw;
mod reader;
mod writer;

pub use element::autosam_element;
pub(crate) use element::set;
pub(crate) use raw::{convert, info, rgb_buffer};
pub(crate) use reader::uri_of;
pub use reader::{Reader, is_uri};
pub use writer::Writer;

use crate::{Error, Result};
use gst::prelude::*;
use std::time::Duration;

/// Frames a second, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    pub numerator: i32,
    pub denominator: i32,
}

impl FrameRate {
    /// Frames a second of sources that do not say.
    pub const DEFAULT: Self = Self { numerator: 25, denominator: 1 };

    /// When frame `index` begins, in nanoseconds.
    pub fn time(self, index: u64) -> u64 {
        u128::from(index)
            .saturating_mul(1_000_000_000 * self.denominator.max(1) as u128)
            .checked_div(self.numerator.max(1) as u128)
            .map_or(0, |t| t as u64)
    }
}

pub(crate) fn init() -> Result<()> {
    gst::init().map_err(|e| Error::Video(format!("GStreamer does not start: {e}")))
}

/// Makes the element `factory`, or says which Debian package has it.
pub(crate) fn make(factory: &str, package: &str) -> Result<gst::Element> {
    gst::ElementFactory::make(factory)
        .build()
        .map_err(|_| Error::Video(format!("GStreamer has no element {factory}; apt install {package}")))
}

/// How long a source may take to stop.
const PARTING: Duration = Duration::from_secs(3);

/// Stops a pipeline that reads. rtspsrc of GStreamer 1.22 may wait without end for a server that has gone silent: whoever
/// stops it does not; a thread of its own goes on waiting.
pub(crate) fn stop(pipeline: &gst::Pipeline) {
    let pipeline = pipeline.clone();
    let (stopped, ended) = crossbeam_channel::bounded(1);
    let stopping = std::thread::Builder::new().name("autosam-stop".into()).spawn(move || {
        // Nothing can be done about a pipeline that does not stop, nor about one that nobody waits for any more.
        let _ = pipeline.set_state(gst::State::Null);
        let _ = stopped.send(());
    });
    if stopping.is_err() || ended.recv_timeout(PARTING).is_err() {
        tracing::warn!("the source does not stop");
    }
}

/// The first error on the pipeline's bus, where there is one.
pub(crate) fn error_on(pipeline: &gst::Pipeline, what: &str) -> Option<Error> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(e) => Some(describe(e, what)),
        _ => None,
    }
}

pub(crate) fn describe(e: &gst::message::Error, what: &str) -> Error {
    let detail =
        e.debug().map(|d| format!(" ({})", d.lines().last().unwrap_or_default())).unwrap_or_default();
    Error::Video(format!("{what}: {}{detail}", e.error()))
}
