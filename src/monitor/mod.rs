//! A live picture with its masks, to look at: in a window, and on a page of a small HTTP server ([`page`]).
//!
//! The picture goes through the element `autosam`; a copy of it is reduced and compressed only while somebody looks, into
//! a slot where a newer picture takes an older one's place. No picture is kept.

pub mod page;
mod source;

use crate::serve::Server;
use crate::video::{self, autosam_element, make};
use crate::{Error, Result};
use gst::prelude::*;
use page::{Board, State};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is shown, and where.
#[derive(Debug, Clone)]
pub struct MonitorOptions {
    /// File, URI, folder of pictures, `/dev/videoN`, `decklink` or `decklink:N`.
    pub input: String,
    /// Where the page is served; without, there is none.
    pub http: Option<SocketAddr>,
    pub window: bool,
    /// Begin anew at the end.
    pub repeat: bool,
    /// Properties of the element, as `gst-launch-1.0` takes them.
    pub properties: Vec<(String, String)>,
}

/// Largest picture on the page; larger ones are reduced.
const PAGE_SIZE: (i32, i32) = (1280, 720);
/// Pictures a second on the page at most.
const PAGE_PERIOD: Duration = Duration::from_millis(33);

/// A running monitor. Dropping it ends pipeline and page.
pub struct Monitor {
    // The page goes first: it holds on to the board only.
    server: Option<Server>,
    pipeline: gst::Pipeline,
    element: gst::Element,
    /// Ends what feeds the pipeline when dropped.
    _source: source::Source,
    board: Arc<Board>,
    repeat: bool,
}

impl Monitor {
    /// Starts playing and serving.
    ///
    /// # Errors
    /// For an input, property or address that cannot be used, and for elements that are missing.
    pub fn start(options: &MonitorOptions) -> Result<Self> {
        let board = Arc::new(Board::default());
        let element = autosam_element()?;
        for (name, value) in &options.properties {
            video::set(&element, name, value)?;
        }
        if element.has_property("attach-meta") {
            element.set_property("attach-meta", true);
        }
        let pipeline = gst::Pipeline::new();
        let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
        let tee = make("tee", "libgstreamer1.0-0")?;
        chain(&pipeline, &[convert.clone(), element.clone(), tee.clone()])?;
        // Short, so that what is shown is not far behind what the element does.
        let queue = make("queue", "libgstreamer1.0-0")?;
        queue.set_property("max-size-buffers", 2u32);
        let sink =
            make(if options.window { "autovideosink" } else { "fakesink" }, "gstreamer1.0-plugins-good")?;
        sink.set_property("sync", true);
        let shown = make("videoconvert", "gstreamer1.0-plugins-base")?;
        chain(&pipeline, &[tee.clone(), queue, shown, sink])?;
        if options.http.is_some() {
            page_branch(&pipeline, &tee, &board)?;
        }
        watch(&element, &board)?;
        let source = source::Source::add(&options.input, &pipeline, &convert, options.repeat)?;
        let server = options.http.map(|address| page::serve(address, board.clone())).transpose()?;
        let monitor = Self { server, pipeline, element, _source: source, board, repeat: options.repeat };
        if monitor.pipeline.set_state(gst::State::Playing).is_err() {
            let otherwise = || Error::Video(format!("{}: cannot be played", options.input));
            return Err(video::error_on(&monitor.pipeline, &options.input).unwrap_or_else(otherwise));
        }
        Ok(monitor)
    }

    /// Where the page is.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// Plays to the end of the input, or until `stop`; what the bus says goes to `tell`.
    ///
    /// # Errors
    /// The pipeline's.
    pub fn run(&self, stop: &AtomicBool, mut tell: impl FnMut(&str)) -> Result<()> {
        let Some(bus) = self.pipeline.bus() else {
            return Err(Error::Video("a pipeline without a bus".into()));
        };
        let begin = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let message = bus.timed_pop(gst::ClockTime::from_mseconds(100));
            self.board.set(self.state(begin.elapsed()));
            match message.as_ref().map(|m| m.view()) {
                Some(gst::MessageView::Error(e)) => return Err(video::describe(e, "monitor")),
                Some(gst::MessageView::Warning(w)) => {
                    let text = w.error().to_string();
                    tell(&text);
                    self.board.set_problem(&text);
                }
                Some(gst::MessageView::Eos(_)) if self.repeat => {
                    self.pipeline.seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO).map_err(|_| {
                        Error::Video("the input cannot begin anew: leave out --repeat".into())
                    })?;
                }
                Some(gst::MessageView::Eos(_)) => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    fn state(&self, uptime: Duration) -> State {
        let stats = self.element.property::<gst::Structure>("stats");
        let count = |name| stats.get::<u64>(name).unwrap_or(0);
        let ms = |name: &str| stats.get::<u64>(name).unwrap_or(0) as f64 / 1e6;
        let caps = self.element.static_pad("src").and_then(|p| p.current_caps());
        let info = caps.and_then(|c| gst_video::VideoInfo::from_caps(&c).ok());
        State {
            uptime_s: uptime.as_secs_f64(),
            picture: info.map(|i| format!("{} × {} {}", i.width(), i.height(), i.format().to_str())),
            frames: count("frames"),
            inferred: count("inferred"),
            skipped: count("skipped"),
            errors: count("errors"),
            inference_ms: ms("inference-last"),
            video_delay_ms: ms("video-delay-last"),
            video_delay_max_ms: ms("video-delay-max"),
            annotation_delay_ms: ms("annotation-delay-last"),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.server = None;
        crate::video::stop(&self.pipeline);
    }
}

/// Adds what is not yet in `pipeline` and links one to the next.
fn chain(pipeline: &gst::Pipeline, elements: &[gst::Element]) -> Result<()> {
    let failed = |e: gst::glib::BoolError| Error::Video(e.to_string());
    for element in elements.iter().filter(|e| e.parent().is_none()) {
        pipeline.add(element).map_err(failed)?;
    }
    gst::Element::link_many(elements).map_err(failed)
}

/// From `tee` to the board: reduced, compressed, the newest alone, and nothing at all while nobody looks.
fn page_branch(pipeline: &gst::Pipeline, tee: &gst::Element, board: &Arc<Board>) -> Result<()> {
    let queue = make("queue", "libgstreamer1.0-0")?;
    queue.set_property("max-size-buffers", 1u32);
    queue.set_property_from_str("leaky", "downstream");
    let scale = make("videoscale", "gstreamer1.0-plugins-base")?;
    let size = make("capsfilter", "libgstreamer1.0-0")?;
    let caps = gst::Caps::builder("video/x-raw")
        .field("width", gst::IntRange::new(1, PAGE_SIZE.0))
        .field("height", gst::IntRange::new(1, PAGE_SIZE.1))
        .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
        .build();
    size.set_property("caps", &caps);
    let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
    let encoder = make("jpegenc", "gstreamer1.0-plugins-good")?;
    encoder.set_property("quality", 82i32);
    let pictures = board.clone();
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(move |sink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        if let Some(bytes) = sample.buffer().and_then(|b| b.map_readable().ok()) {
            pictures.show(&bytes);
        }
        Ok(gst::FlowSuccess::Ok)
    });
    let sink =
        gst_app::AppSink::builder().sync(true).max_buffers(1).drop(true).callbacks(callbacks.build()).build();
    // The other branch paces; this one must not hold up the start where nobody looks.
    sink.set_property("async", false);
    let (viewers, last) = (board.clone(), Mutex::new(None::<Instant>));
    let pad = queue.static_pad("sink").ok_or_else(|| Error::Video("a queue without a pad".into()))?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if !viewers.watched() || last.is_some_and(|l| l.elapsed() < PAGE_PERIOD) {
            return gst::PadProbeReturn::Drop;
        }
        *last = Some(Instant::now());
        gst::PadProbeReturn::Ok
    });
    chain(pipeline, &[tee.clone(), queue, scale, size, convert, encoder, sink.upcast()])
}

/// Notes of every picture what was found on it.
fn watch(element: &gst::Element, board: &Arc<Board>) -> Result<()> {
    let pad = element.static_pad("src").ok_or_else(|| Error::Video("the element has no src pad".into()))?;
    let board = board.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
        if let Some(buffer) = probe.buffer() {
            let confidences = buffer
                .iter_meta::<gst_video::VideoRegionOfInterestMeta>()
                .filter(|m| m.roi_type() == "polyp")
                .map(|m| m.param("detection").and_then(|p| p.get::<f64>("confidence").ok()).unwrap_or(0.0));
            board.found(confidences);
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}
