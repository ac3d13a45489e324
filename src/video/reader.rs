use super::{FrameRate, error_on, init, make};
use crate::{Error, Result};
use gst::prelude::*;
use image::RgbImage;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a source may stay silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// A camera's end comes sooner after its last picture: rtpsession, too, ends a stream that has been silent for long.
const FAREWELL: Duration = Duration::from_secs(5);

/// Decodes a file or a URI (`rtsp://`, `v4l2://`, `https://`, …) picture by picture.
#[derive(Debug)]
pub struct Reader {
    pipeline: gst::Pipeline,
    sink: gst_app::AppSink,
    what: String,
    camera: bool,
    first: Option<gst::Sample>,
    rate: FrameRate,
    size: (u32, u32),
}

/// True of `scheme://…`.
pub fn is_uri(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// `input` where it is a URI, else the URI of the file of this name, which must be there.
pub(crate) fn uri_of(input: &str) -> Result<String> {
    if is_uri(input) {
        return Ok(input.to_owned());
    }
    let path = Path::new(input).canonicalize().map_err(|e| Error::io(input, e))?;
    let uri = gst::glib::filename_to_uri(&path, None);
    uri.map(|u| u.to_string()).map_err(|e| Error::Video(format!("{}: {e}", path.display())))
}

impl Reader {
    /// Opens `input` and waits for its first picture. `rtsp://` travels over TCP, `rtspu://` over UDP.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing file; [`Error::Video`] with GStreamer's reason for what is not video.
    pub fn open(input: &str) -> Result<Self> {
        init()?;
        let uri = uri_of(input)?;
        let source = make("uridecodebin", "gstreamer1.0-plugins-base")?;
        source.set_property("uri", &uri);
        let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
        let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::Rgb).build();
        // A camera does not wait: room for a burst, or its server's end of the stream is lost behind the pictures.
        let camera = uri.starts_with("rtsp");
        let ahead = if camera { 16 } else { 2 };
        let sink = gst_app::AppSink::builder().caps(&caps).max_buffers(ahead).sync(false).build();
        let pipeline = gst::Pipeline::new();
        let linked = pipeline
            .add_many([&source, &convert, sink.upcast_ref()])
            .and_then(|()| convert.link(&sink))
            .map_err(|e| Error::Video(e.to_string()));
        linked?;
        if uri.starts_with("rtsp://") {
            source.connect("source-setup", false, |values| {
                let rtsp = values.get(1).and_then(|v| v.get::<gst::Element>().ok())?;
                if rtsp.has_property("protocols") && rtsp.has_property("tcp-timeout") {
                    // Nothing may be lost, the end of the stream neither. rtspu:// asks for UDP.
                    rtsp.set_property_from_str("protocols", "tcp");
                    // Ours comes first and names the camera.
                    rtsp.set_property("tcp-timeout", 3 * PATIENCE.as_micros() as u64);
                }
                None
            });
        }
        let target = convert.downgrade();
        source.connect_pad_added(move |_, pad| {
            let Some(sink) = target.upgrade().and_then(|c| c.static_pad("sink")) else { return };
            let is_video = pad
                .current_caps()
                .is_some_and(|c| c.structure(0).is_some_and(|s| s.name().starts_with("video/")));
            // The first video stream; audio and further streams stay unlinked.
            if is_video && !sink.is_linked() && pad.link(&sink).is_err() {
                gst::glib::g_warning!("autosam", "the video stream cannot be converted to RGB");
            }
        });
        let mut reader = Self {
            pipeline,
            sink,
            what: input.to_owned(),
            camera,
            first: None,
            rate: FrameRate::DEFAULT,
            size: (0, 0),
        };
        if reader.pipeline.set_state(gst::State::Playing).is_err() {
            return Err(reader.failure("cannot be played"));
        }
        reader.first = reader.pull()?;
        let Some(first) = &reader.first else {
            return Err(Error::Video(format!("{input}: no pictures in it")));
        };
        let info = info(first, input)?;
        reader.size = (info.width(), info.height());
        if info.fps().numer() > 0 {
            reader.rate = FrameRate { numerator: info.fps().numer(), denominator: info.fps().denom() };
        }
        Ok(reader)
    }

    /// Width and height of the first picture.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    pub fn rate(&self) -> FrameRate {
        self.rate
    }

    /// Number of pictures by duration and rate, where the source knows its duration.
    pub fn expected(&self) -> Option<u64> {
        let duration = self.pipeline.query_duration::<gst::ClockTime>()?;
        let rate = self.rate;
        Some(
            (duration.nseconds() as f64 * 1e-9 * f64::from(rate.numerator) / f64::from(rate.denominator))
                .round() as u64,
        )
    }

    /// The next picture and its timestamp in nanoseconds; `None` at the end.
    pub fn next_picture(&mut self) -> Result<Option<(RgbImage, Option<u64>)>> {
        let sample = match self.first.take() {
            Some(sample) => Some(sample),
            None => self.pull()?,
        };
        let Some(sample) = sample else { return Ok(None) };
        let info = info(&sample, &self.what)?;
        let bad = || Error::Video(format!("{}: a picture that cannot be read", self.what));
        let buffer = sample.buffer().ok_or_else(bad)?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).map_err(|_| bad())?;
        let stride = info.stride().first().and_then(|s| usize::try_from(*s).ok()).ok_or_else(bad)?;
        let row = 3 * info.width() as usize;
        let data = frame.plane_data(0).map_err(|_| bad())?;
        let pixels: Vec<u8> = data
            .chunks(stride)
            .take(info.height() as usize)
            .flat_map(|r| &r[..row.min(r.len())])
            .copied()
            .collect();
        let image = RgbImage::from_raw(info.width(), info.height(), pixels).ok_or_else(bad)?;
        Ok(Some((image, buffer.pts().map(gst::ClockTime::nseconds))))
    }

    fn pull(&self) -> Result<Option<gst::Sample>> {
        let begin = Instant::now();
        loop {
            if let Some(sample) = self.sink.try_pull_sample(gst::ClockTime::from_mseconds(200)) {
                return Ok(Some(sample));
            }
            if let Some(e) = error_on(&self.pipeline, &self.what) {
                return Err(e);
            }
            if self.sink.is_eos() && !(self.camera && begin.elapsed() > FAREWELL) {
                return Ok(None);
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::Video(format!("{}: no picture for {} s", self.what, PATIENCE.as_secs())));
            }
        }
    }

    fn failure(&self, otherwise: &str) -> Error {
        error_on(&self.pipeline, &self.what)
            .unwrap_or_else(|| Error::Video(format!("{}: {otherwise}", self.what)))
    }
}

fn info(sample: &gst::Sample, what: &str) -> Result<gst_video::VideoInfo> {
    sample
        .caps()
        .and_then(|c| gst_video::VideoInfo::from_caps(c).ok())
        .ok_or_else(|| Error::Video(format!("{what}: pictures without a format")))
}

impl Drop for Reader {
    fn drop(&mut self) {
        super::stop(&self.pipeline);
    }
}
