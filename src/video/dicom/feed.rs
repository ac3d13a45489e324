//! Images as a stream of raw video.

use crate::Result;
use crate::video::source::decoder;
use crate::video::{FrameRate, rgb_buffer};
use gst::prelude::*;
use image::RgbImage;
use parking_lot::Mutex;

/// Properties shared by all images.
pub(super) struct RawFrames {
    pub width: u32,
    pub height: u32,
    pub times: Times,
    /// Pixel aspect ratio, width to height.
    pub pixel_aspect: (i32, i32),
}

/// The times of frames.
pub(super) enum Times {
    /// At equal intervals.
    Rate(FrameRate),
    /// The start of each frame in nanoseconds, not decreasing. The last frame is as long as the one before it.
    Begins(Vec<u64>),
}

impl Times {
    /// The rate for caps; 0 if the intervals differ.
    fn rate(&self) -> gst::Fraction {
        match self {
            Self::Rate(rate) => gst::Fraction::new(rate.numerator, rate.denominator),
            Self::Begins(_) => gst::Fraction::new(0, 1),
        }
    }

    /// The start of frame `index` in nanoseconds. Frames beyond the last stated one follow at its interval.
    fn begin(&self, index: usize) -> u64 {
        match self {
            Self::Rate(rate) => rate.time(index as u64),
            Self::Begins(begins) => begins.get(index).copied().unwrap_or_else(|| {
                let last = begins.last().copied().unwrap_or(0);
                let step = begins.len().checked_sub(2).map_or(0, |before| last - begins[before]);
                last.saturating_add(step.saturating_mul((index + 1).saturating_sub(begins.len()) as u64))
            }),
        }
    }
}

/// An element that outputs the images that `next` returns, each with its number, until it returns `None`.
///
/// # Errors
/// If GStreamer lacks `uridecodebin`.
pub(super) fn fed_frames(
    raw: RawFrames,
    next: impl FnMut() -> Option<(usize, RgbImage)> + Send + 'static,
) -> Result<gst::Element> {
    let element = decoder("appsrc://")?;
    let feed = Mutex::new(Some((raw, next)));
    element.connect("source-setup", false, move |values| {
        let source = values.get(1)?.get::<gst_app::AppSrc>().ok()?;
        let (raw, mut next) = feed.lock().take()?;
        let times = raw.times;
        let caps = gst_video::VideoCapsBuilder::new()
            .format(gst_video::VideoFormat::Rgb)
            .width(raw.width.cast_signed())
            .height(raw.height.cast_signed())
            .framerate(times.rate())
            .pixel_aspect_ratio(gst::Fraction::new(raw.pixel_aspect.0, raw.pixel_aspect.1))
            .build();
        source.set_caps(Some(&caps));
        source.set_format(gst::Format::Time);
        let callbacks = gst_app::AppSrcCallbacks::builder().need_data(move |source, _| {
            let Some((index, image)) = next() else {
                // Fails only if the pipeline has stopped.
                let _ = source.end_of_stream();
                return;
            };
            let mut buffer = rgb_buffer(&image);
            if let Some(buffer) = buffer.get_mut() {
                let (begin, end) = (times.begin(index), times.begin(index + 1));
                buffer.set_pts(gst::ClockTime::from_nseconds(begin));
                buffer.set_duration(gst::ClockTime::from_nseconds(end - begin));
            }
            let _ = source.push_buffer(buffer);
        });
        source.set_callbacks(callbacks.build());
        None
    });
    Ok(element)
}
