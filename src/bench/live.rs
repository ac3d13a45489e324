//! Benchmark of the element in a pipeline with a live source and saturated inference.

use super::integrity::{Allowed, changed_outside};
use super::shown::{self, ShownMask};
use super::{Percentiles, labelled};
use crate::video::{self, FrameRate};
use crate::{Error, Result};
use gst::prelude::*;
use image::GrayImage;
use parking_lot::Mutex;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Settings of the benchmark.
#[derive(Debug, Clone)]
pub struct LiveBench {
    /// A raw video format of the element, by its GStreamer name.
    pub format: String,
    pub size: (u32, u32),
    /// Frames per second.
    pub rate: u32,
    /// Number of measured frames per stream.
    pub frames: u64,
    /// Number of warm-up frames, which are not measured.
    pub warm_up: u64,
    /// Number of parallel pipelines in this process.
    pub streams: usize,
    /// Folder of images; synthetic frames if `None`.
    pub input: Option<PathBuf>,
    /// The pixels of every Nth frame are compared with the source's. This runs on the streaming thread and slows down the
    /// measured path.
    pub check_every: u64,
    /// Properties of the element, in the syntax of `gst-launch-1.0`.
    pub properties: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveReport {
    /// Delay from the element's sink pad to its source pad.
    pub video_delay_ms: Option<Percentiles>,
    /// Age of each drawn mask; `None` if none was drawn.
    pub annotation_delay_ms: Option<Percentiles>,
    pub frames_in: u64,
    pub frames_out: u64,
    pub inferred: u64,
    pub skipped: u64,
    /// Samples that differ from the source's outside the overlay; `None` if the element does not report its mask (no property
    /// `attach-meta`).
    pub pixels_changed_outside_mask: Option<u64>,
    /// Number of frames whose pixels were checked.
    pub frames_checked: u64,
    /// Mean intersection over union of the shown mask with the frame's own true mask, over the checked frames with a polyp;
    /// frames without a shown mask count as 0. `None` if no true masks are known.
    pub mask_iou: Option<f64>,
    /// Frames due at the source that did not leave the element.
    pub dropped: u64,
    /// Frames with a detection.
    pub marked: u64,
    /// Bytes of frame memory copied between the pads: 0 if the element works in place.
    pub bytes_copied_per_frame: f64,
    /// Buffers per frame that left the element with other memory than they entered with.
    pub buffers_allocated_per_frame: f64,
    /// Heap allocations of the element's own code on the streaming thread; `None` if the element does not count them
    /// (allocations by GStreamer, for metadata, are not included).
    pub allocations_per_frame: Option<f64>,
    pub inferences_per_s: f64,
    pub format: String,
    pub size: String,
    pub fps: u32,
    pub streams: usize,
}

/// Every measured delay, for plots.
#[derive(Debug, Clone, Default)]
pub struct Delays {
    pub video: Vec<Duration>,
    pub annotation: Vec<Duration>,
}

/// Memory for different frames, in bytes.
const FRAME_MEMORY: usize = 256 << 20;
const MOST_FRAMES: usize = 48;

/// Time limit for the last frames.
const DRAIN_TIMEOUT: gst::ClockTime = gst::ClockTime::from_seconds(20);

/// Runs the pipelines in real time.
///
/// # Errors
/// If a format, size, folder or property is invalid, if the element is missing, or if the pipeline fails.
pub fn run(bench: &LiveBench) -> Result<(LiveReport, Delays)> {
    if bench.rate == 0 || bench.frames == 0 || bench.streams == 0 {
        return Err(Error::invalid(
            "a live benchmark needs a rate, a number of frames and a number of streams of at least 1",
        ));
    }
    // This comes before frames are made, so that errors appear at once.
    drop(video::autosam_element()?);
    let (width, height) = bench.size;
    let rate = FrameRate { numerator: i32::try_from(bench.rate).unwrap_or(i32::MAX), denominator: 1 };
    let info = video::info(&bench.format, width, height, rate)?;
    let most = (FRAME_MEMORY / info.size().max(1)).clamp(2, MOST_FRAMES);
    let (frames, truths): (Vec<_>, Vec<_>) = labelled(bench.input.as_deref(), width, height, most)?
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    let frames = Arc::new(TestFrames { buffers: video::convert(&frames, &info)?, truths });
    let streams = (0..bench.streams).map(|_| Stream::new(bench, rate, &info, frames.clone()));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let ran: Vec<Result<Tally>> = std::thread::scope(|scope| {
        let threads: Vec<_> = streams.iter().map(|s| scope.spawn(|| s.run(bench, rate))).collect();
        let lost = || Err(Error::engine("a stream's thread panicked"));
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| lost())).collect()
    });
    let seconds = begin.elapsed().as_secs_f64() * bench.frames as f64 / (bench.frames + bench.warm_up) as f64;
    let mut sum = Tally::default();
    for tally in ran {
        sum.add(tally?);
    }
    let per_frame = |n: u64| n as f64 / sum.frames_out.max(1) as f64;
    let report = LiveReport {
        video_delay_ms: Percentiles::of(&sum.delays.video),
        annotation_delay_ms: Percentiles::of(&sum.delays.annotation),
        frames_in: sum.frames_in,
        frames_out: sum.frames_out,
        inferred: sum.inferred,
        skipped: sum.skipped,
        pixels_changed_outside_mask: streams.iter().all(|s| s.reports_mask).then_some(sum.changed),
        frames_checked: sum.checked,
        mask_iou: (sum.labelled > 0).then(|| sum.iou / sum.labelled as f64),
        dropped: (bench.frames * bench.streams as u64).saturating_sub(sum.frames_out),
        marked: sum.delays.annotation.len() as u64,
        bytes_copied_per_frame: per_frame(sum.copied * info.size() as u64),
        buffers_allocated_per_frame: per_frame(sum.copied),
        allocations_per_frame: sum.allocations.map(per_frame),
        inferences_per_s: sum.inferred as f64 / seconds,
        format: bench.format.clone(),
        size: format!("{width}x{height}"),
        fps: bench.rate,
        streams: bench.streams,
    };
    Ok((report, sum.delays))
}

/// The frames that the source sends repeatedly.
struct TestFrames {
    buffers: Vec<gst::Buffer>,
    /// True masks of the frames; `None` if unknown.
    truths: Vec<Option<GrayImage>>,
}

/// Counts of one stream, without the warm-up.
#[derive(Default)]
struct Tally {
    delays: Delays,
    frames_in: u64,
    frames_out: u64,
    inferred: u64,
    skipped: u64,
    changed: u64,
    checked: u64,
    /// Number of checked frames with a polyp, and the sum of their IoU (see [`LiveReport::mask_iou`]).
    labelled: u64,
    iou: f64,
    copied: u64,
    allocations: Option<u64>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.delays.video.extend(other.delays.video);
        self.delays.annotation.extend(other.delays.annotation);
        self.frames_in += other.frames_in;
        self.frames_out += other.frames_out;
        self.inferred += other.inferred;
        self.skipped += other.skipped;
        self.changed += other.changed;
        self.checked += other.checked;
        self.labelled += other.labelled;
        self.iou += other.iou;
        self.copied += other.copied;
        self.allocations = other.allocations.map(|n| n + self.allocations.unwrap_or(0));
    }
}

/// The frame between the element's pads, and counts of the previous ones.
#[derive(Default)]
struct Passing {
    since: Option<Instant>,
    memory: usize,
    /// When the first measured frame arrived.
    before: Option<Counted>,
    /// The last annotation delay; a different value means a newly drawn mask.
    drawn: u64,
    tally: Tally,
}

struct Stream {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    element: gst::Element,
    pool: gst::BufferPool,
    frames: Arc<TestFrames>,
    passing: Arc<Mutex<Passing>>,
    reports_mask: bool,
}

impl Stream {
    fn new(
        bench: &LiveBench,
        rate: FrameRate,
        info: &gst_video::VideoInfo,
        frames: Arc<TestFrames>,
    ) -> Result<Self> {
        let failed = |e: gst::glib::BoolError| Error::Video(e.to_string());
        let caps = info.to_caps().map_err(failed)?;
        // Like a capture card: frames that are not fetched in time are replaced by newer ones.
        let source = gst_app::AppSrc::builder()
            .caps(&caps)
            .format(gst::Format::Time)
            .is_live(true)
            .max_buffers(2)
            .max_bytes(0)
            .leaky_type(gst_app::AppLeakyType::Downstream)
            .build();
        let element = video::autosam_element()?;
        video::set(&element, "on-error", "fail")?;
        for (name, value) in &bench.properties {
            video::set(&element, name, value)?;
        }
        let reports_mask = element.has_property("attach-meta");
        if reports_mask {
            element.set_property("attach-meta", true);
        }
        let sink = video::make("fakesink", "libgstreamer1.0-0")?;
        sink.set_property("sync", false);
        let pipeline = gst::Pipeline::new();
        let elements = [source.upcast_ref(), &element, &sink];
        pipeline.add_many(elements).and_then(|()| gst::Element::link_many(elements)).map_err(failed)?;

        let pool = gst_video::VideoBufferPool::new();
        let mut config = pool.config();
        config.set_params(Some(&caps), u32::try_from(info.size()).unwrap_or(u32::MAX), 4, 0);
        pool.set_config(config).and_then(|()| pool.set_active(true)).map_err(failed)?;
        let stream = Self {
            pipeline,
            source,
            element,
            pool: pool.upcast(),
            frames,
            passing: Arc::default(),
            reports_mask,
        };
        stream.watch(bench, rate, info)?;
        Ok(stream)
    }

    /// Adds probes to the element's pads. Both run on the streaming thread, one frame after another.
    fn watch(&self, bench: &LiveBench, rate: FrameRate, info: &gst_video::VideoInfo) -> Result<()> {
        let (warm_up, check_every) = (bench.warm_up, bench.check_every.max(1));
        let pad = |name| {
            self.element
                .static_pad(name)
                .ok_or_else(|| Error::Video(format!("the element has no {name} pad")))
        };
        let counts =
            move |buffer: &gst::BufferRef| buffer.pts().is_some_and(|t| t.nseconds() >= rate.time(warm_up));
        let passing = self.passing.clone();
        pad("sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, probe| {
            if let Some(buffer) = probe.buffer() {
                let mut now = passing.lock();
                if counts(buffer) {
                    now.tally.frames_in += 1;
                    if now.before.is_none() {
                        now.before = pad.parent_element().map(|e| Counted::of(&e));
                    }
                }
                now.memory = place(buffer);
                now.since = Some(Instant::now());
            }
            gst::PadProbeReturn::Ok
        });
        let (passing, frames, info, reports_mask) =
            (self.passing.clone(), self.frames.clone(), info.clone(), self.reports_mask);
        pad("src")?.add_probe(gst::PadProbeType::BUFFER, move |pad, probe| {
            let end = Instant::now();
            let Some(buffer) = probe.buffer() else { return gst::PadProbeReturn::Ok };
            let mut now = passing.lock();
            let now = &mut *now;
            let stats = pad.parent_element().map(|e| e.property::<gst::Structure>("stats"));
            let drawn = stats.and_then(|s| s.get::<u64>("annotation-delay-last").ok()).unwrap_or(0);
            let another = drawn != std::mem::replace(&mut now.drawn, drawn);
            if !counts(buffer) {
                return gst::PadProbeReturn::Ok;
            }
            now.tally.frames_out += 1;
            now.tally.copied += u64::from(place(buffer) != now.memory);
            if let Some(since) = now.since.take() {
                now.tally.delays.video.push(end.duration_since(since));
            }
            if another {
                now.tally.delays.annotation.push(Duration::from_nanos(drawn));
            }
            if reports_mask && buffer.offset().is_multiple_of(check_every) {
                let index = buffer.offset() as usize % frames.buffers.len();
                let shown = ShownMask::of(buffer);
                let frame = |b| gst_video::VideoFrameRef::from_buffer_ref_readable(b, &info);
                let before = frame(frames.buffers[index].as_ref());
                if let (Ok(before), Ok(after)) = (before, frame(buffer.as_ref())) {
                    now.tally.checked += 1;
                    now.tally.changed += changed_outside(&before, &after, &Allowed::of(shown.as_ref()));
                }
                if let Some(iou) = frames.truths[index].as_ref().and_then(|t| shown::iou(shown.as_ref(), t)) {
                    now.tally.labelled += 1;
                    now.tally.iou += iou;
                }
            }
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }

    /// Plays all frames at their rate.
    fn run(&self, bench: &LiveBench, rate: FrameRate) -> Result<Tally> {
        let failure = || {
            let otherwise = || Error::Video("the live pipeline does not reach PLAYING".into());
            video::error_on(&self.pipeline, "live pipeline").unwrap_or_else(otherwise)
        };
        self.pipeline.set_state(gst::State::Playing).map_err(|_| failure())?;
        let begin = Instant::now();
        for i in 0..bench.warm_up + bench.frames {
            let due = Duration::from_nanos(rate.time(i));
            if let Some(rest) = due.checked_sub(begin.elapsed()) {
                std::thread::sleep(rest);
            }
            let buffer = self.buffer(i, rate)?;
            self.source.push_buffer(buffer).map_err(|_| failure())?;
        }
        self.source.end_of_stream().map_err(|_| failure())?;
        let ends = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = self.pipeline.bus().and_then(|b| b.timed_pop_filtered(DRAIN_TIMEOUT, &ends));
        match message.as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Eos(_)) => {}
            Some(gst::MessageView::Error(e)) => return Err(video::describe(e, "live pipeline")),
            _ => return Err(failure()),
        }
        let after = Counted::of(&self.element);
        let mut passing = self.passing.lock();
        let before = passing.before.unwrap_or_default();
        let mut tally = std::mem::take(&mut passing.tally);
        tally.inferred = after.inferred.saturating_sub(before.inferred);
        tally.skipped = after.skipped.saturating_sub(before.skipped);
        tally.allocations = after.allocations.map(|n| n.saturating_sub(before.allocations.unwrap_or(0)));
        Ok(tally)
    }

    /// Frame `i` in its own memory, from a pool as with a capture card.
    fn buffer(&self, i: u64, rate: FrameRate) -> Result<gst::Buffer> {
        let failed = || Error::Video("no memory for a frame".into());
        let mut buffer = self.pool.acquire_buffer(None).map_err(|_| failed())?;
        let buffers = &self.frames.buffers;
        let from = &buffers[i as usize % buffers.len()];
        let b = buffer.get_mut().ok_or_else(failed)?;
        b.set_pts(gst::ClockTime::from_nseconds(rate.time(i)));
        b.set_duration(gst::ClockTime::from_nseconds(rate.time(i + 1) - rate.time(i)));
        b.set_offset(i);
        let from = from.map_readable().map_err(|_| failed())?;
        let mut to = b.map_writable().map_err(|_| failed())?;
        if to.len() != from.len() {
            return Err(failed());
        }
        to.copy_from_slice(&from);
        drop(to);
        Ok(buffer)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop.
        let _ = self.pipeline.set_state(gst::State::Null);
        let _ = self.pool.set_active(false);
    }
}

/// The element's statistics.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    inferred: u64,
    skipped: u64,
    allocations: Option<u64>,
}

impl Counted {
    fn of(element: &gst::Element) -> Self {
        let stats = element.property::<gst::Structure>("stats");
        let number = |name| stats.get::<u64>(name).ok();
        Self {
            inferred: number("inferred").unwrap_or(0),
            skipped: number("skipped").unwrap_or(0),
            allocations: number("allocations"),
        }
    }
}

/// Address of the frame's memory.
fn place(buffer: &gst::BufferRef) -> usize {
    buffer.map_readable().map_or(0, |m| m.as_ptr() as usize)
}
