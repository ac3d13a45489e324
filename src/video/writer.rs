use super::{FrameRate, VideoFrame, describe, error_on, init, make, rgb_buffer};
use crate::frame::fs::partial;
use crate::{Error, Result};
use gst::prelude::*;
use image::RgbImage;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Maximum number of frames that wait for the encoder.
const QUEUE: u64 = 4;

/// Extensions of the supported files.
const WRITTEN: [&str; 3] = ["mp4", "mkv", "webm"];

/// How long the encoder may take for its last frames.
const ENCODER_TIMEOUT: gst::ClockTime = gst::ClockTime::from_seconds(60);

/// Maximum loss of an MP4 in milliseconds if the program is killed or the disk is full.
const FRAGMENT: u32 = 1000;
/// Ticks per second of MP4. Milliseconds and the frame durations of 24, 25, 30, 50 and 60 frames/s, also times 1000/1001, are
/// whole numbers of ticks.
const TICKS: u32 = 120_000;

/// Properties shared by all frames of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub width: u32,
    pub height: u32,
    /// Pixel aspect ratio, width to height.
    pub pixel_aspect: (u32, u32),
}

impl Shape {
    /// Geometry of frames with square pixels.
    pub fn square((width, height): (u32, u32)) -> Self {
        Self { width, height, pixel_aspect: (1, 1) }
    }

    /// Geometry of `frame`.
    pub fn of(frame: &VideoFrame) -> Self {
        Self { pixel_aspect: frame.pixel_aspect, ..Self::square(frame.rgb.dimensions()) }
    }
}

/// Encodes frames into a file; the format follows the name: `.mp4` or `.mkv` (H.264), `.webm` (VP8).
///
/// The file is written as `NAME.partial` and renamed when it is closed, even if the encoder or the disk failed: the part
/// written before is playable. A killed program leaves `NAME.partial`, which is playable up to its last second.
#[derive(Debug)]
pub struct Writer {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    path: PathBuf,
    partial: PathBuf,
    shape: Shape,
    rate: FrameRate,
    count: u64,
    /// Whether the encoder or the disk failed, so that no end of stream will come.
    failed: bool,
    closed: bool,
}

impl Writer {
    /// Checks that the format of a file of this name is supported.
    ///
    /// # Errors
    /// If it is not; the error lists the supported extensions.
    pub fn check_name(path: &Path) -> Result<()> {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match WRITTEN.contains(&ending.as_str()) {
            true => Ok(()),
            false => Err(unknown_ending(path)),
        }
    }

    /// `rate` is stated in the file's header; frames are shown at the times passed to [`Self::write_at`].
    ///
    /// # Errors
    /// If the file extension is unknown, the encoder is missing (with its package), or the path cannot be written.
    pub fn create(path: &Path, shape: Shape, rate: FrameRate) -> Result<Self> {
        init()?;
        let failed = |e: &dyn std::fmt::Display| Error::Video(format!("{}: {e}", path.display()));
        let (encoder, muxer) = encoder(path, &shape)?;
        let partial = partial(path)?;
        // GStreamer's own message would name the element, not the reason.
        drop(std::fs::File::create(&partial).map_err(|e| Error::io(&partial, e))?);

        let aspect = |v: u32| i32::try_from(v).unwrap_or(1);
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, shape.width, shape.height)
            .fps(gst::Fraction::new(rate.numerator, rate.denominator))
            .par(gst::Fraction::new(aspect(shape.pixel_aspect.0), aspect(shape.pixel_aspect.1)))
            .build()
            .and_then(|i| i.to_caps())
            .map_err(|e| failed(&e))?;
        let source = gst_app::AppSrc::builder()
            .caps(&info)
            .format(gst::Format::Time)
            .max_bytes(0)
            .max_buffers(QUEUE)
            .build();
        let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
        // Chroma is subsampled in both directions, because players support no other H.264.
        let planar = make("capsfilter", "libgstreamer1.0-0")?;
        let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::I420).build();
        planar.set_property("caps", &caps);
        let sink = make("filesink", "libgstreamer1.0-0")?;
        sink.set_property("location", partial.to_string_lossy().as_ref());
        let mut elements = vec![source.clone().upcast(), convert, planar];
        elements.extend(encoder);
        elements.extend([muxer.clone(), sink]);
        let pipeline = gst::Pipeline::new();
        let built = pipeline.add_many(&elements).and_then(|()| gst::Element::link_many(&elements));
        built.map_err(|e| failed(&e))?;
        for pad in muxer.sink_pads().iter().filter(|pad| pad.has_property("trak-timescale")) {
            pad.set_property("trak-timescale", TICKS);
        }
        let writer = Self {
            pipeline,
            source,
            path: path.to_owned(),
            partial,
            shape,
            rate,
            count: 0,
            failed: false,
            closed: false,
        };
        if writer.pipeline.set_state(gst::State::Playing).is_err() {
            return Err(writer.failure());
        }
        Ok(writer)
    }

    /// Required geometry of the frames.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Path of the closed file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of frames written so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Appends a frame one frame duration after the last one.
    ///
    /// # Errors
    /// See [`Self::write_at`].
    pub fn write(&mut self, image: &RgbImage) -> Result<()> {
        self.write_at(image, self.rate.time(self.count), None)
    }

    /// Appends a frame that is shown from `time` on, in nanoseconds since the start of the file; times must increase.
    ///
    /// # Errors
    /// If the frame has another size, or the encoder or the disk fails.
    pub fn write_at(&mut self, image: &RgbImage, time: u64, duration: Option<u64>) -> Result<()> {
        if image.dimensions() != (self.shape.width, self.shape.height) {
            return Err(Error::Video(format!(
                "{}: a frame is {}x{}, the others are {}x{}",
                self.path.display(),
                image.width(),
                image.height(),
                self.shape.width,
                self.shape.height
            )));
        }
        // appsrc's own blocking would never end after a failure of the encoder.
        while self.source.current_level_buffers() >= QUEUE {
            if let Some(e) = error_on(&self.pipeline, &self.path.display().to_string()) {
                self.failed = true;
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut buffer = rgb_buffer(image);
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(gst::ClockTime::from_nseconds(time));
            let duration =
                duration.unwrap_or_else(|| self.rate.time(self.count + 1) - self.rate.time(self.count));
            buffer.set_duration(gst::ClockTime::from_nseconds(duration));
        }
        self.count += 1;
        if self.source.push_buffer(buffer).is_err() {
            self.failed = true;
            return Err(self.failure());
        }
        Ok(())
    }

    /// Waits for the encoder, then gives the file its name.
    ///
    /// # Errors
    /// If the encoder or the disk fails; the written part is then playable.
    pub fn finish(mut self) -> Result<()> {
        self.close()
    }

    fn close(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let ended = if self.failed { Ok(()) } else { self.end() };
        // Nothing can be done about an encoder that does not stop.
        let _ = self.pipeline.set_state(gst::State::Null);
        let empty = std::fs::metadata(&self.partial).map_or(true, |m| m.len() == 0);
        if self.count == 0 || (empty && (self.failed || ended.is_err())) {
            // The file contains no frame.
            let _ = std::fs::remove_file(&self.partial);
            return ended;
        }
        ended.and(std::fs::rename(&self.partial, &self.path).map_err(|e| Error::io(&self.path, e)))
    }

    fn end(&self) -> Result<()> {
        if self.source.end_of_stream().is_err() {
            return Err(self.failure());
        }
        let what = self.path.display().to_string();
        let ends = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = self.pipeline.bus().and_then(|b| b.timed_pop_filtered(ENCODER_TIMEOUT, &ends));
        match message.as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Eos(_)) => Ok(()),
            Some(gst::MessageView::Error(e)) => Err(describe(e, &what)),
            _ => Err(Error::Video(format!("{what}: the encoder did not finish in time"))),
        }
    }

    fn failure(&self) -> Error {
        let what = self.path.display().to_string();
        error_on(&self.pipeline, &what).unwrap_or_else(|| Error::Video(format!("{what}: encoding failed")))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!("{e}");
        }
    }
}

/// The encoder with its parser, and the muxer, for a file of this name.
fn encoder(path: &Path, shape: &Shape) -> Result<(Vec<gst::Element>, gst::Element)> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match ending.as_str() {
        // Chroma is subsampled in both directions, and x264enc supports no odd sizes.
        "mp4" | "mkv" if shape.width % 2 + shape.height % 2 > 0 => Err(Error::invalid(format!(
            "{}: H.264 needs an even width and height, not {}x{}; write a .webm or a folder",
            path.display(),
            shape.width,
            shape.height
        ))),
        "mp4" | "mkv" => {
            let encoder = make("x264enc", "gstreamer1.0-plugins-ugly")?;
            encoder.set_property_from_str("speed-preset", "veryfast");
            encoder.set_property_from_str("pass", "qual");
            encoder.set_property("quantizer", 18u32);
            // No B-frames: with them mp4mux would use decoding times for the file's length, and players would cut off the last
            // frame of a variable rate.
            encoder.set_property("bframes", 0u32);
            let parse = make("h264parse", "gstreamer1.0-plugins-bad")?;
            let muxer =
                make(if ending == "mp4" { "mp4mux" } else { "matroskamux" }, "gstreamer1.0-plugins-good")?;
            if ending == "mp4" {
                // The file is playable at any moment, and an ordinary MP4 once it is finished.
                muxer.set_property("fragment-duration", FRAGMENT);
                muxer.set_property_from_str("fragment-mode", "first-moov-then-finalise");
            }
            Ok((vec![encoder, parse], muxer))
        }
        "webm" => {
            let encoder = make("vp8enc", "gstreamer1.0-plugins-good")?;
            encoder.set_property("deadline", 1i64);
            encoder.set_property("cpu-used", 4i32);
            encoder.set_property("target-bitrate", 6_000_000i32);
            // The time base of WebM. With the default, frames closer than the stated rate would get the same time.
            encoder.set_property("timebase", gst::Fraction::new(1, 1000));
            Ok((vec![encoder], make("webmmux", "gstreamer1.0-plugins-good")?))
        }
        _ => Err(unknown_ending(path)),
    }
}

fn unknown_ending(path: &Path) -> Error {
    Error::invalid(format!("{}: expected a file ending in .mp4, .mkv or .webm, or a folder", path.display()))
}
