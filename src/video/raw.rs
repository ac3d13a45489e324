//! Frames in memory as raw video.

use super::{FrameRate, error_on, init, make};
use crate::{Error, Result};
use gst::prelude::*;
use image::RgbImage;

/// The layout of raw video of GStreamer's `format`.
///
/// # Errors
/// If the format is unknown or does not support the size.
pub(crate) fn info(format: &str, width: u32, height: u32, rate: FrameRate) -> Result<gst_video::VideoInfo> {
    init()?;
    let known = gst_video::VideoFormat::from_string(format);
    if matches!(known, gst_video::VideoFormat::Unknown | gst_video::VideoFormat::Encoded) {
        return Err(Error::invalid(format!(
            "unknown raw video format {format:?}: expected one of GStreamer's (NV12, UYVY, RGBA, …)"
        )));
    }
    gst_video::VideoInfo::builder(known, width, height)
        .fps(gst::Fraction::new(rate.numerator, rate.denominator))
        .build()
        .map_err(|e| Error::invalid(format!("{format} of {width}x{height}: {e}")))
}

/// An image in GStreamer's RGB layout, whose rows begin at multiples of four bytes.
pub(crate) fn rgb_buffer(image: &RgbImage) -> gst::Buffer {
    let (row, stride) = (3 * image.width() as usize, (3 * image.width() as usize).next_multiple_of(4));
    let mut bytes = vec![0; stride * image.height() as usize];
    for (to, from) in bytes.chunks_exact_mut(stride.max(1)).zip(image.as_raw().chunks_exact(row.max(1))) {
        to[..row].copy_from_slice(from);
    }
    gst::Buffer::from_mut_slice(bytes)
}

/// Converts frames, all of the size of `to`, to its format (`videoconvert`).
///
/// # Errors
/// If GStreamer cannot convert to it.
pub(crate) fn convert(images: &[RgbImage], to: &gst_video::VideoInfo) -> Result<Vec<gst::Buffer>> {
    init()?;
    let failed = |e: gst::glib::BoolError| Error::Video(e.to_string());
    let rate = FrameRate { numerator: to.fps().numer(), denominator: to.fps().denom() };
    let from = info("RGB", to.width(), to.height(), rate)?;
    let source = gst_app::AppSrc::builder()
        .caps(&from.to_caps().map_err(failed)?)
        .format(gst::Format::Time)
        .max_bytes(0)
        .build();
    let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
    let sink = gst_app::AppSink::builder().caps(&to.to_caps().map_err(failed)?).sync(false).build();
    let pipeline = gst::Pipeline::new();
    let elements = [source.upcast_ref(), &convert, sink.upcast_ref()];
    pipeline.add_many(elements).and_then(|()| gst::Element::link_many(elements)).map_err(failed)?;
    let failure = || {
        let otherwise = || Error::Video(format!("frames cannot be converted to {}", to.format()));
        error_on(&pipeline, "conversion").unwrap_or_else(otherwise)
    };
    let work = || -> Result<Vec<gst::Buffer>> {
        pipeline.set_state(gst::State::Playing).map_err(|_| failure())?;
        let mut converted = Vec::with_capacity(images.len());
        for (i, image) in images.iter().enumerate() {
            if image.dimensions() != (to.width(), to.height()) {
                return Err(Error::invalid("frames of different sizes in one stream"));
            }
            let mut buffer = rgb_buffer(image);
            if let Some(buffer) = buffer.get_mut() {
                buffer.set_pts(gst::ClockTime::from_nseconds(rate.time(i as u64)));
            }
            source.push_buffer(buffer).map_err(|_| failure())?;
            let sample = sink.try_pull_sample(gst::ClockTime::from_seconds(20)).ok_or_else(failure)?;
            converted.push(sample.buffer_owned().ok_or_else(failure)?);
        }
        Ok(converted)
    };
    let result = work();
    // Nothing can be done about a pipeline that does not stop.
    let _ = pipeline.set_state(gst::State::Null);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_converted_to_any_raw_format() {
        let red = RgbImage::from_pixel(33, 17, image::Rgb([255, 0, 0]));
        for format in ["NV12", "UYVY", "RGBA", "I420", "BGRx"] {
            let to = info(format, 33, 17, FrameRate::DEFAULT).unwrap();
            let buffers = convert(&[red.clone(), red.clone()], &to).unwrap();
            assert_eq!(buffers.len(), 2);
            assert_eq!(buffers[0].size(), to.size(), "{format}");
        }
        let to = info("RGBA", 33, 17, FrameRate::DEFAULT).unwrap();
        let pixels = convert(std::slice::from_ref(&red), &to).unwrap().remove(0);
        assert_eq!(pixels.map_readable().unwrap()[..4], [255, 0, 0, 255]);
        assert!(info("VHS", 8, 8, FrameRate::DEFAULT).unwrap_err().to_string().contains("VHS"));
        let other = info("RGBA", 32, 17, FrameRate::DEFAULT).unwrap();
        assert!(convert(&[red], &other).is_err());
    }
}
