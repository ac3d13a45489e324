//! Video, frame by frame.

use super::container::{self, Promise};
use super::source::{SOURCE_TIMEOUT, begin_of, decoder, is_uri, uri_of};
use super::upright::upright;
use super::watch::{Seen, watch};
use super::{FrameRate, error_on, init, make};
use crate::{Error, Result};
use gst::prelude::*;
use image::RgbImage;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time after a camera's last frame within which an end of stream counts. Later ones come from rtpsession, which also ends
/// streams that have been silent for long.
const FAREWELL: Duration = Duration::from_secs(5);

/// A decoded frame as shown on a monitor: upright and progressive, with pixels of aspect ratio `pixel_aspect`.
#[derive(Debug, Clone)]
pub struct VideoFrame {
    pub rgb: RgbImage,
    /// Nanoseconds since the video's first frame, by the container's timestamps; larger with each frame.
    pub time: u64,
    /// Duration in nanoseconds, if stated by the stream.
    pub duration: Option<u64>,
    /// Pixel aspect ratio, width to height.
    pub pixel_aspect: (u32, u32),
}

/// Decodes a file or a URI (`rtsp://`, `v4l2://`, `https://`, …) frame by frame.
#[derive(Debug)]
pub struct Reader {
    pipeline: gst::Pipeline,
    sink: gst_app::AppSink,
    what: String,
    camera: bool,
    first: Option<gst::Sample>,
    nominal: Option<FrameRate>,
    size: (u32, u32),
    promise: Promise,
    clock: Clock,
    seen: Arc<Seen>,
    /// The error that ended the stream early.
    broken: Option<Error>,
    ended: bool,
}

impl Reader {
    /// Opens `input` and waits for the first frame of its first video track. `rtsp://` travels over TCP, `rtspu://` over UDP.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing file; [`Error::Video`] with GStreamer's reason if the input is not video.
    pub fn open(input: &str) -> Result<Self> {
        Self::open_track(input, 1)
    }

    /// [`Self::open`] of video track `track`, from 1.
    ///
    /// # Errors
    /// Those of [`Self::open`], and an error if the file has fewer tracks.
    pub fn open_track(input: &str, track: usize) -> Result<Self> {
        init()?;
        let uri = uri_of(input)?;
        let mut promise =
            if is_uri(input) { Promise::default() } else { container::promise(Path::new(input)) };
        if track > 1 {
            // The container states the number of frames of the first track.
            promise.frames = None;
        }
        // GStreamer would wait forever for the missing table.
        if let Some(reason) = &promise.hopeless {
            return Err(Error::Video(format!("{input}: {reason}")));
        }
        #[cfg(feature = "archive")]
        if !is_uri(input) && super::dicom::is_dicom(Path::new(input)) {
            let (source, promise) = super::dicom::source(Path::new(input))?;
            return Self::play(input, source, track, false, promise);
        }
        if let Some(length) = promise.usable {
            return Self::play(input, begin_of(Path::new(input), length)?, track, false, promise);
        }
        // A camera does not wait: if a burst of frames filled the queue, the server's end of stream would be lost.
        let camera = uri.starts_with("rtsp");
        Self::play(input, decoder(&uri)?, track, camera, promise)
    }

    fn play(input: &str, source: gst::Element, track: usize, camera: bool, promise: Promise) -> Result<Self> {
        let upright = upright()?;
        let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
        let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::Rgb).build();
        let ahead = if camera { 16 } else { 2 };
        let sink = gst_app::AppSink::builder().caps(&caps).max_buffers(ahead).sync(false).build();
        let pipeline = gst::Pipeline::new();
        let linked = pipeline
            .add_many([&source, &upright, &convert, sink.upcast_ref()])
            .and_then(|()| gst::Element::link_many([&upright, &convert, sink.upcast_ref()]))
            .map_err(|e| Error::Video(e.to_string()));
        linked?;
        let seen = Arc::new(Seen::of_track(track));
        watch(&source, &upright, &seen);
        let mut reader = Self {
            pipeline,
            sink,
            what: input.to_owned(),
            camera,
            first: None,
            nominal: None,
            size: (0, 0),
            promise,
            clock: Clock::default(),
            seen,
            broken: None,
            ended: false,
        };
        if reader.pipeline.set_state(gst::State::Playing).is_err() {
            return Err(reader.failure("cannot be played"));
        }
        reader.first = reader.pull().map_err(|e| reader.seen.missing_track(input).unwrap_or(e))?;
        let Some(first) = &reader.first else {
            return Err(Error::Video(format!("{input}: contains no frames")));
        };
        let info = info(first, input)?;
        reader.size = (info.width(), info.height());
        reader.nominal = (info.fps().numer() > 0)
            .then(|| FrameRate { numerator: info.fps().numer(), denominator: info.fps().denom() });
        reader.clock.step = reader.rate().time(1);
        if reader.promise.lasts {
            let duration = reader.pipeline.query_duration::<gst::ClockTime>();
            reader.promise.seconds = duration.map(|d| d.nseconds() as f64 / 1e9);
        }
        Ok(reader)
    }

    /// Width and height of the first frame.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The rate stated by the stream, if any. Frames may have other times; see [`VideoFrame::time`].
    pub fn nominal_rate(&self) -> Option<FrameRate> {
        self.nominal
    }

    /// [`Self::nominal_rate`], otherwise the default.
    pub fn rate(&self) -> FrameRate {
        self.nominal.unwrap_or(FrameRate::DEFAULT)
    }

    /// Number of frames by the container, or by duration and rate if the duration is known.
    pub fn expected(&self) -> Option<u64> {
        if self.promise.frames.is_some() {
            return self.promise.frames;
        }
        let seconds = self.promise.seconds.or_else(|| {
            let duration = self.pipeline.query_duration::<gst::ClockTime>()?;
            Some(duration.nseconds() as f64 * 1e-9)
        })?;
        let rate = self.nominal?;
        Some((seconds * rate.per_second()).round() as u64)
    }

    /// The container's time of the first frame in nanoseconds, from which [`VideoFrame::time`] counts.
    pub fn start(&self) -> u64 {
        self.clock.start.unwrap_or(0)
    }

    /// When the last frame ended, in nanoseconds since the first.
    pub fn end(&self) -> u64 {
        self.clock.end
    }

    /// Frame rate computed from the frames' times; the stream's own rate if they agree.
    pub fn measured_rate(&self) -> f64 {
        let nominal = self.rate().per_second();
        let (steps, last) = (self.clock.frames.saturating_sub(1) as f64, self.clock.last as f64 / 1e9);
        // Containers round times to a millisecond.
        let agrees = self.nominal.is_some() && (steps / nominal - last).abs() < 0.002;
        if agrees || last <= 0.0 { nominal } else { steps / last }
    }

    /// The next frame; `None` at the end. A stream with an error ends there; [`Self::problems`] gives the reason.
    ///
    /// # Errors
    /// If the error occurs before the first frame.
    pub fn next_frame(&mut self) -> Result<Option<VideoFrame>> {
        if self.ended {
            return Ok(None);
        }
        let next = match self.first.take() {
            Some(sample) => self.frame(&sample).map(Some),
            None => match self.pull() {
                Ok(Some(sample)) => self.frame(&sample).map(Some),
                other => other.map(|_| None),
            },
        };
        self.ended = !matches!(next, Ok(Some(_)));
        match next {
            Err(e) if self.clock.frames > 0 => {
                self.broken = Some(e);
                Ok(None)
            }
            next => next,
        }
    }

    fn frame(&mut self, sample: &gst::Sample) -> Result<VideoFrame> {
        let info = info(sample, &self.what)?;
        let bad = || Error::Video(format!("{}: cannot read a frame", self.what));
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
        let rgb = RgbImage::from_raw(info.width(), info.height(), pixels).ok_or_else(bad)?;
        let duration = buffer.duration().map(gst::ClockTime::nseconds).filter(|d| *d > 0);
        let stamp = buffer.pts().and_then(|pts| {
            let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
            segment.to_stream_time(pts).map(gst::ClockTime::nseconds)
        });
        let time = self.clock.next(stamp, duration);
        let side = |v: i32| u32::try_from(v).unwrap_or(1).max(1);
        Ok(VideoFrame {
            rgb,
            time,
            duration,
            pixel_aspect: (side(info.par().numer()), side(info.par().denom())),
        })
    }

    /// Missing and damaged parts, after [`Self::next_frame`] has reached the end. Each entry is a reason why the frames are not
    /// the whole video.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.promise.faults.clone();
        if let Some(e) = &self.broken {
            problems.push(format!(
                "the stream ended unexpectedly after frame {}: {e}",
                self.clock.frames.saturating_sub(1)
            ));
        }
        let frames = self.clock.frames;
        if let Some(expected) = self.promise.frames.filter(|expected| frames < *expected) {
            problems.push(format!("{frames} of {expected} frames could be read"));
        } else if let Some(seconds) = self.promise.seconds.filter(|_| !self.longer_sound()) {
            let read = self.clock.end as f64 / 1e9;
            // Containers round durations and differ in whether they include the last frame's.
            if read + (2.5 * self.clock.step as f64 / 1e9).max(0.1) < seconds {
                problems.push(format!("{read:.2} of {seconds:.2} s could be read"));
            }
        }
        problems.extend(self.seen.problems());
        problems
    }

    /// Remarks on unprocessed contents of the file, such as further video tracks, and on missing statements of its container.
    /// Available after the first frame.
    pub fn notes(&self) -> Vec<String> {
        [self.seen.notes(), self.promise.notes.clone()].concat()
    }

    /// Whether the stated duration may be that of the sound.
    fn longer_sound(&self) -> bool {
        self.promise.lasts && self.seen.has_audio()
    }

    /// Number of frames stated by the container, if any.
    pub fn promised(&self) -> Option<u64> {
        self.promise.frames
    }

    fn pull(&self) -> Result<Option<gst::Sample>> {
        let begin = Instant::now();
        loop {
            if let Some(sample) = self.sink.try_pull_sample(gst::ClockTime::from_mseconds(200)) {
                return Ok(Some(sample));
            }
            if let Some(e) = self.seen.no_decoder(&self.what).or_else(|| error_on(&self.pipeline, &self.what))
            {
                return Err(e);
            }
            if self.sink.is_eos() && !(self.camera && begin.elapsed() > FAREWELL) {
                return Ok(None);
            }
            if begin.elapsed() > SOURCE_TIMEOUT {
                return Err(Error::Video(format!(
                    "{}: no frame for {} s",
                    self.what,
                    SOURCE_TIMEOUT.as_secs()
                )));
            }
        }
    }

    fn failure(&self, otherwise: &str) -> Error {
        error_on(&self.pipeline, &self.what)
            .unwrap_or_else(|| Error::Video(format!("{}: {otherwise}", self.what)))
    }
}

/// The clock of a video's frames: nanoseconds since the first.
#[derive(Debug, Default)]
struct Clock {
    /// Stream time of the first frame.
    start: Option<u64>,
    /// When the last frame began and ended.
    last: u64,
    end: u64,
    frames: u64,
    /// A frame's duration if the stream does not state it.
    step: u64,
}

impl Clock {
    /// The time of the next frame, whose stream time is `stamp`. Frames without a time, or with a time that goes back, directly
    /// follow the previous frame.
    fn next(&mut self, stamp: Option<u64>, duration: Option<u64>) -> u64 {
        let follows = if self.frames == 0 { 0 } else { self.end.max(self.last + 1) };
        let start = *self.start.get_or_insert(stamp.unwrap_or(0));
        let time = stamp.and_then(|stamp| stamp.checked_sub(start)).unwrap_or(follows);
        let time = if self.frames > 0 && time <= self.last { follows } else { time };
        self.frames += 1;
        self.last = time;
        self.end = time + duration.unwrap_or(self.step);
        time
    }
}

fn info(sample: &gst::Sample, what: &str) -> Result<gst_video::VideoInfo> {
    sample
        .caps()
        .and_then(|c| gst_video::VideoInfo::from_caps(c).ok())
        .ok_or_else(|| Error::Video(format!("{what}: the frames have no format")))
}

impl Drop for Reader {
    fn drop(&mut self) {
        super::stop(&self.pipeline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_the_first_frame_and_never_go_back() {
        let mut clock = Clock { step: 40, ..Clock::default() };
        let times: Vec<u64> = [Some(780), Some(820), None, Some(880), Some(700), Some(1000)]
            .into_iter()
            .map(|stamp| clock.next(stamp, None))
            .collect();
        assert_eq!(times, [0, 40, 80, 100, 140, 220]);
        assert_eq!((clock.start, clock.end, clock.frames), (Some(780), 260, 6));
    }
}
