//! Images as a stream of raw video.

use crate::Result;
use crate::video::source::decoder;
use crate::video::{FrameRate, rgb_buffer};
use gst::prelude::*;
use image::RgbImage;
use std::sync::{Mutex, PoisonError};

/// What the images have in common.
pub(super) struct RawFrames {
    pub width: u32,
    pub height: u32,
    pub rate: FrameRate,
    /// Pixel aspect ratio, width to height.
    pub pixel_aspect: (i32, i32),
}

/// An element that gives the images of `next` until there are no more.
///
/// # Errors
/// If GStreamer lacks `uridecodebin`.
pub(super) fn fed_frames(
    raw: RawFrames,
    next: impl FnMut() -> Option<RgbImage> + Send + 'static,
) -> Result<gst::Element> {
    let element = decoder("appsrc://")?;
    let next = Mutex::new(Some(next));
    element.connect("source-setup", false, move |values| {
        let source = values.get(1)?.get::<gst_app::AppSrc>().ok()?;
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let caps = gst_video::VideoCapsBuilder::new()
            .format(gst_video::VideoFormat::Rgb)
            .width(raw.width.cast_signed())
            .height(raw.height.cast_signed())
            .framerate(gst::Fraction::new(raw.rate.numerator, raw.rate.denominator))
            .pixel_aspect_ratio(gst::Fraction::new(raw.pixel_aspect.0, raw.pixel_aspect.1))
            .build();
        source.set_caps(Some(&caps));
        source.set_format(gst::Format::Time);
        let (rate, mut index) = (raw.rate, 0);
        let callbacks = gst_app::AppSrcCallbacks::builder().need_data(move |source, _| {
            let Some(image) = next() else {
                // Fails only if the pipeline ends.
                let _ = source.end_of_stream();
                return;
            };
            let mut buffer = rgb_buffer(&image);
            if let Some(buffer) = buffer.get_mut() {
                let (begin, end) = (rate.time(index), rate.time(index + 1));
                buffer.set_pts(gst::ClockTime::from_nseconds(begin));
                buffer.set_duration(gst::ClockTime::from_nseconds(end - begin));
            }
            index += 1;
            let _ = source.push_buffer(buffer);
        });
        source.set_callbacks(callbacks.build());
        None
    });
    Ok(element)
}
