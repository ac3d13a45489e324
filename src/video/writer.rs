use super::{FrameRate, describe, error_on, init, make, rgb_buffer};
use crate::error::partial;
use crate::{Error, Result};
use gst::prelude::*;
use image::RgbImage;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pictures that wait for the encoder at most.
const QUEUE: u64 = 4;

/// How long the encoder may take for its last pictures.
const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(60);

/// Encodes pictures into a file; the format follows the name: `.mp4` or `.mkv` (H.264), `.webm` (VP8).
///
/// The file is written as `NAME.partial` and gets its name when it is complete.
#[derive(Debug)]
pub struct Writer {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    path: PathBuf,
    partial: PathBuf,
    size: (u32, u32),
    rate: FrameRate,
    count: u64,
}

impl Writer {
    /// # Errors
    /// For an unknown ending, a missing encoder (with its package), or a place that cannot be written.
    pub fn create(path: &Path, (width, height): (u32, u32), rate: FrameRate) -> Result<Self> {
        init()?;
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let (encoder, chain, muxer) = match ending.as_str() {
            // Chroma is halved both ways (below), and x264enc takes no half pixel.
            "mp4" | "mkv" if width % 2 + height % 2 > 0 => {
                return Err(Error::invalid(format!(
                    "{}: H.264 needs an even width and height, not {width}x{height}; write a .webm or a folder",
                    path.display()
                )));
            }
            "mp4" | "mkv" => {
                let encoder = make("x264enc", "gstreamer1.0-plugins-ugly")?;
                encoder.set_property_from_str("speed-preset", "veryfast");
                encoder.set_property_from_str("pass", "qual");
                encoder.set_property("quantizer", 18u32);
                let parse = make("h264parse", "gstreamer1.0-plugins-bad")?;
                let muxer = if ending == "mp4" { "mp4mux" } else { "matroskamux" };
                (encoder, vec![parse], make(muxer, "gstreamer1.0-plugins-good")?)
            }
            "webm" => {
                let encoder = make("vp8enc", "gstreamer1.0-plugins-good")?;
                encoder.set_property("deadline", 1i64);
                encoder.set_property("cpu-used", 4i32);
                encoder.set_property("target-bitrate", 6_000_000i32);
                (encoder, vec![], make("webmmux", "gstreamer1.0-plugins-good")?)
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{}: the ending must be .mp4, .mkv or .webm, or the output a folder",
                    path.display()
                )));
            }
        };
        let partial = partial(path)?;
        // GStreamer's own message would name the element, not the reason.
        drop(std::fs::File::create(&partial).map_err(|e| Error::io(&partial, e))?);

        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, width, height)
            .fps(gst::Fraction::new(rate.numerator, rate.denominator))
            .build()
            .and_then(|i| i.to_caps())
            .map_err(|e| Error::Video(format!("{}: {e}", path.display())))?;
        let source = gst_app::AppSrc::builder()
            .caps(&info)
            .format(gst::Format::Time)
            .max_bytes(0)
            .max_buffers(QUEUE)
            .build();
        let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
        // Chroma is halved both ways: players know no other H.264.
        let planar = make("capsfilter", "libgstreamer1.0-0")?;
        let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::I420).build();
        planar.set_property("caps", &caps);
        let sink = make("filesink", "libgstreamer1.0-0")?;
        sink.set_property("location", partial.to_string_lossy().as_ref());
        let mut elements = vec![source.clone().upcast(), convert, planar, encoder];
        elements.extend(chain);
        elements.extend([muxer, sink]);
        let pipeline = gst::Pipeline::new();
        let built = pipeline.add_many(&elements).and_then(|()| gst::Element::link_many(&elements));
        built.map_err(|e| Error::Video(format!("{}: {e}", path.display())))?;
        let writer =
            Self { pipeline, source, path: path.to_owned(), partial, size: (width, height), rate, count: 0 };
        if writer.pipeline.set_state(gst::State::Playing).is_err() {
            return Err(writer.failure());
        }
        Ok(writer)
    }

    /// Appends a picture of the size given at first, one frame duration after the last.
    pub fn write(&mut self, image: &RgbImage) -> Result<()> {
        if image.dimensions() != self.size {
            return Err(Error::Video(format!(
                "{}: a picture of {}x{} among pictures of {}x{}; write a folder of pictures instead",
                self.path.display(),
                image.width(),
                image.height(),
                self.size.0,
                self.size.1
            )));
        }
        // Not appsrc's own blocking, which would outlast an encoder that has failed.
        while self.source.current_level_buffers() >= QUEUE {
            if let Some(e) = error_on(&self.pipeline, &self.path.display().to_string()) {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut buffer = rgb_buffer(image);
        if let Some(buffer) = buffer.get_mut() {
            let begin = self.rate.time(self.count);
            buffer.set_pts(gst::ClockTime::from_nseconds(begin));
            buffer.set_duration(gst::ClockTime::from_nseconds(self.rate.time(self.count + 1) - begin));
        }
        self.count += 1;
        self.source.push_buffer(buffer).map(drop).map_err(|_| self.failure())
    }

    /// Waits for the encoder, then gives the file its name.
    pub fn finish(self) -> Result<()> {
        if self.source.end_of_stream().is_err() {
            return Err(self.failure());
        }
        let what = self.path.display().to_string();
        let ends = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = self.pipeline.bus().and_then(|b| b.timed_pop_filtered(PATIENCE, &ends));
        match message.as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Eos(_)) => {}
            Some(gst::MessageView::Error(e)) => return Err(describe(e, &what)),
            _ => return Err(Error::Video(format!("{what}: the encoder does not end"))),
        }
        let _ = self.pipeline.set_state(gst::State::Null);
        std::fs::rename(&self.partial, &self.path).map_err(|e| Error::io(&self.path, e))
    }

    fn failure(&self) -> Error {
        let what = self.path.display().to_string();
        error_on(&self.pipeline, &what).unwrap_or_else(|| Error::Video(format!("{what}: cannot be encoded")))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish` both are done and neither does anything.
        let _ = self.pipeline.set_state(gst::State::Null);
        let _ = std::fs::remove_file(&self.partial);
    }
}
