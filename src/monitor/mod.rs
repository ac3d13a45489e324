//! Shows live video with its masks in a window and on a web page ([`page`]).
//!
//! Video goes through the element `autosam`. A copy is downscaled and compressed only while a viewer is connected, into
//! a slot where a newer frame replaces an older one. No frame is stored.

pub mod page;
mod source;

use crate::serve::Server;
use crate::serve::access::{Access, Token};
use crate::video::{self, autosam_element, make};
use crate::{Error, Result};
use gst::prelude::*;
use page::{Board, State};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Input and outputs of the monitor.
#[derive(Debug, Clone)]
pub struct MonitorOptions {
    /// File, URI, folder of images, `/dev/videoN`, `decklink` or `decklink:N`.
    pub input: String,
    /// Address of the page; no page if `None`. At any address except loopback it requires an access token.
    pub http: Option<SocketAddr>,
    /// The file that has the token, which is then asked for on loopback too; without, one is made at start if one is needed.
    pub token_file: Option<PathBuf>,
    /// Names that the page is reached by, beside addresses and this machine's own name: a proxy's, say. Any asks for a token.
    pub names: Vec<String>,
    pub window: bool,
    /// Restart at the end.
    pub repeat: bool,
    /// Properties of the element, in the syntax of `gst-launch-1.0`.
    pub properties: Vec<(String, String)>,
}

/// Maximum frame size on the page; larger frames are downscaled.
const PAGE_SIZE: (i32, i32) = (1280, 720);
/// Maximum frame rate on the page.
const PAGE_PERIOD: Duration = Duration::from_millis(33);

/// A running monitor. Dropping it ends pipeline and page.
pub struct Monitor {
    // The page is dropped first: it uses only the board.
    server: Option<Server>,
    /// The token made at start; one from a file is not for printing.
    token: Option<Token>,
    pipeline: gst::Pipeline,
    element: gst::Element,
    /// Stops the thread that feeds the pipeline when dropped.
    _source: source::Source,
    board: Arc<Board>,
    repeat: bool,
}

impl Monitor {
    /// Starts playing and serving.
    ///
    /// # Errors
    /// If the input, a property, the token or the address cannot be used, or an element is missing.
    pub fn start(options: &MonitorOptions) -> Result<Self> {
        let (access, token) = access(options)?;
        let board = Arc::new(Board::default());
        let element = autosam_element()?;
        for (name, value) in &options.properties {
            video::set(&element, name, value)?;
        }
        if element.has_property("attach-meta") {
            element.set_property("attach-meta", true);
        }
        let pipeline = gst::Pipeline::new();
        let upright = video::upright()?;
        let convert = make("videoconvert", "gstreamer1.0-plugins-base")?;
        let tee = make("tee", "libgstreamer1.0-0")?;
        chain(&pipeline, &[upright.clone(), convert, element.clone(), tee.clone()])?;
        // Short, so that the display is close to the element's output.
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
        let source = source::Source::add(&options.input, &pipeline, &upright, options.repeat)?;
        let server = options.http.map(|address| page::serve(address, access, board.clone())).transpose()?;
        let monitor =
            Self { server, token, pipeline, element, _source: source, board, repeat: options.repeat };
        if monitor.pipeline.set_state(gst::State::Playing).is_err() {
            let otherwise = || Error::Video(format!("{}: cannot be played", options.input));
            return Err(video::error_on(&monitor.pipeline, &options.input).unwrap_or_else(otherwise));
        }
        Ok(monitor)
    }

    /// The page's address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// The page's link, with the token if one was made at start.
    pub fn link(&self) -> Option<String> {
        let mut address = self.address()?;
        if address.ip().is_unspecified() {
            address.set_ip(outward());
        }
        let link = format!("http://{address}/");
        Some(self.token.as_ref().map_or_else(|| link.clone(), |token| token.in_link(&link)))
    }

    /// Plays to the end of the input, or until `stop`; bus messages are passed to `tell`.
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
                    self.pipeline
                        .seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO)
                        .map_err(|_| Error::Video("the input cannot be restarted: omit --repeat".into()))?;
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

/// The access rules of the page, and the token if one is generated.
fn access(options: &MonitorOptions) -> Result<(Access, Option<Token>)> {
    let given = options.token_file.as_deref().map(Token::read).transpose()?;
    // With another host name a proxy forwards requests from other machines to loopback.
    let needed = options.http.is_some_and(|a| !a.ip().is_loopback()) || !options.names.is_empty();
    let made = (given.is_none() && needed).then(Token::random).transpose()?;
    let token = given.or_else(|| made.clone());
    Ok((Access::Guarded { token, names: options.names.clone() }, made))
}

/// This machine's address in its network; loopback if it has none.
fn outward() -> IpAddr {
    // Finds the route to an unassigned address (RFC 5737); nothing is sent.
    let route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    route().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

/// Adds missing elements to `pipeline` and links each to the next.
fn chain(pipeline: &gst::Pipeline, elements: &[gst::Element]) -> Result<()> {
    let failed = |e: gst::glib::BoolError| Error::Video(e.to_string());
    for element in elements.iter().filter(|e| e.parent().is_none()) {
        pipeline.add(element).map_err(failed)?;
    }
    gst::Element::link_many(elements).map_err(failed)
}

/// The branch from `tee` to the board: downscales and compresses the latest frame, only while a viewer is connected.
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
    // The other branch sets the pace; this one must not delay the start if there is no viewer.
    sink.set_property("async", false);
    let (viewers, last) = (board.clone(), Mutex::new(None::<Instant>));
    let pad = queue.static_pad("sink").ok_or_else(|| Error::Video("a queue without a pad".into()))?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if !viewers.watched() || last.is_some_and(|l| l.elapsed() < PAGE_PERIOD) {
            // Not `Drop`: the bindings free the buffer themselves then, and GStreamer complains that it has none to free.
            return gst::PadProbeReturn::Handled;
        }
        *last = Some(Instant::now());
        gst::PadProbeReturn::Ok
    });
    chain(pipeline, &[tee.clone(), queue, scale, size, convert, encoder, sink.upcast()])
}

/// Records the detections of every frame.
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
