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
use page::{Board, Pointing, State};
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Input and outputs of the monitor.
#[derive(Debug, Clone)]
pub struct MonitorOptions {
    /// File, URI, folder of images, `/dev/videoN`, `decklink` or `decklink:N`.
    pub input: String,
    /// Address of the page; no page if `None`. At any address except loopback it requires an access token.
    pub http: Option<SocketAddr>,
    /// File with the access token, which is then required on loopback as well. Without it, a token is generated at start if
    /// required.
    pub token_file: Option<PathBuf>,
    /// Further host names of the page, for example a proxy's, besides addresses and this machine's own name. With any of them the
    /// token is required.
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

/// How long a live source may be silent before it is opened again.
const SILENCE: Duration = Duration::from_secs(10);
/// First and longest pause before a lost source is opened again; the pause doubles with every attempt.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Schemes of URIs whose video comes from a camera or an encoder, which may come back.
const LIVE_SCHEMES: [&str; 9] =
    ["rtsp://", "rtspu://", "rtspt://", "rtsps://", "rtmp://", "rtmps://", "srt://", "udp://", "rtp://"];

/// Events reported by [`Monitor::run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The monitor runs, with video or waiting for its source; reported several times a second.
    Running,
    /// A warning, or the reason why the source was lost.
    Problem(&'a str),
}

/// A running monitor. Dropping it ends pipeline and page.
pub struct Monitor {
    // Dropped first, because the page uses the other fields.
    server: Option<Server>,
    /// The token generated at start; a token from a file is not printed.
    token: Option<Token>,
    options: MonitorOptions,
    board: Arc<Board>,
    /// `None` while waiting for a lost source.
    playing: Arc<Mutex<Option<Playing>>>,
}

impl Monitor {
    /// Starts playing and serving.
    ///
    /// # Errors
    /// If the input, a property, the token or the address cannot be used, or an element is missing.
    pub fn start(options: &MonitorOptions) -> Result<Self> {
        let (access, token) = access(options)?;
        let board = Arc::new(Board::default());
        let playing = Playing::prepare(options, &board)?;
        let started = Arc::new(Mutex::new(None::<Playing>));
        let pointed = started.clone();
        let point = move |pointing| pointed.lock().as_ref().is_some_and(|playing| playing.point(pointing));
        let serve = |address| page::serve(address, access, board.clone(), point);
        let server = options.http.map(serve).transpose()?;
        playing.play(&options.input)?;
        *started.lock() = Some(playing);
        Ok(Self { server, token, options: options.clone(), board, playing: started })
    }

    /// The page's address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// The page's link, with the token if one was generated at start.
    pub fn link(&self) -> Option<String> {
        let mut address = self.address()?;
        if address.ip().is_unspecified() {
            address.set_ip(outward());
        }
        let link = format!("http://{address}/");
        Some(self.token.as_ref().map_or_else(|| link.clone(), |token| token.in_link(&link)))
    }

    /// Plays to the end of the input, or until `stop`. If a live source is lost after it has played, it is opened again, after a
    /// pause that doubles with every attempt, from 1 to 30 s. The loss is shown on the page and passed to `report`.
    ///
    /// # Errors
    /// The pipeline's error, if the input is not a live source or has never played.
    pub fn run(&self, stop: &AtomicBool, mut report: impl FnMut(Progress)) -> Result<()> {
        let (begin, mut played, mut pause) = (Instant::now(), false, PAUSES.0);
        let mut opened = Ok(());
        while !stop.load(Ordering::Relaxed) {
            let mut frames = 0;
            let played_to_the_end =
                opened.and_then(|()| self.play(stop, begin, played, &mut frames, &mut report));
            let Err(lost) = played_to_the_end else { return Ok(()) };
            if frames > 0 {
                (played, pause) = (true, PAUSES.0);
            }
            if !(played && is_live(&self.options.input)) {
                return Err(lost);
            }
            let text = format!("{lost}; the source will be opened again in {} s", pause.as_secs());
            self.board.set_problem(Some(&text));
            report(Progress::Problem(&text));
            let last = self.playing.lock().take();
            drop(last);
            let waits = Instant::now();
            while waits.elapsed() < pause && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                report(Progress::Running);
            }
            pause = (2 * pause).min(PAUSES.1);
            let again = Playing::prepare(&self.options, &self.board);
            let again = again.and_then(|playing| playing.play(&self.options.input).map(|()| playing));
            opened = again.map(|playing| *self.playing.lock() = Some(playing));
        }
        Ok(())
    }

    /// Plays to the end of the input or until `stop`, and counts the `frames`. If `again`, the first frame clears the problem
    /// shown on the page.
    ///
    /// # Errors
    /// If the pipeline fails, or a live source ends or falls silent.
    fn play(
        &self,
        stop: &AtomicBool,
        begin: Instant,
        again: bool,
        frames: &mut u64,
        report: &mut impl FnMut(Progress),
    ) -> Result<()> {
        let input = &self.options.input;
        let live = is_live(input);
        let bus = self.with_playing(|playing| playing.pipeline.bus())?;
        let bus = bus.ok_or_else(|| Error::Video("a pipeline without a bus".into()))?;
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let message = bus.timed_pop(gst::ClockTime::from_mseconds(100));
            let state = self.with_playing(|playing| playing.state(begin.elapsed()))?;
            if state.frames > *frames {
                if *frames == 0 && again {
                    self.board.set_problem(None);
                }
                (*frames, last) = (state.frames, Instant::now());
            }
            self.board.set(state);
            report(Progress::Running);
            match message.as_ref().map(|m| m.view()) {
                Some(gst::MessageView::Error(e)) => return Err(video::describe(e, "monitor")),
                Some(gst::MessageView::Warning(w)) => {
                    let text = w.error().to_string();
                    report(Progress::Problem(&text));
                    self.board.set_problem(Some(&text));
                }
                Some(gst::MessageView::Eos(_)) if self.options.repeat => self.rewind()?,
                Some(gst::MessageView::Eos(_)) if live => {
                    return Err(Error::Video(format!("{input}: the stream has ended")));
                }
                Some(gst::MessageView::Eos(_)) => return Ok(()),
                Some(gst::MessageView::Element(e)) => {
                    if let Some(text) = e.structure().and_then(outcome) {
                        self.board.set_prompt(&text);
                    }
                }
                _ => {}
            }
            if live && *frames > 0 && last.elapsed() > SILENCE {
                return Err(Error::Video(format!("{input}: no frame for {} s", SILENCE.as_secs())));
            }
        }
        Ok(())
    }

    /// Calls `f` with the playing pipeline.
    ///
    /// # Errors
    /// If there is none, because a lost source could not be opened again.
    fn with_playing<R>(&self, f: impl FnOnce(&Playing) -> R) -> Result<R> {
        let none = || Error::Video(format!("{}: cannot be opened", self.options.input));
        self.playing.lock().as_ref().map(f).ok_or_else(none)
    }

    /// Seeks to the beginning.
    fn rewind(&self) -> Result<()> {
        let pipeline = self.with_playing(|playing| playing.pipeline.clone())?;
        pipeline
            .seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO)
            .map_err(|_| Error::Video("the input cannot be restarted: omit --repeat".into()))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.server = None;
        self.playing.lock().take();
    }
}

/// Whether `input` is a camera or an encoder, which may come back.
fn is_live(input: &str) -> bool {
    let device =
        input.starts_with("/dev/video") || (input.starts_with("decklink") && !Path::new(input).exists());
    device || LIVE_SCHEMES.iter().any(|scheme| input.starts_with(scheme))
}

/// A pipeline from the source to window and page. Dropping it stops it.
struct Playing {
    pipeline: gst::Pipeline,
    element: gst::Element,
    /// Stops the thread that feeds the pipeline when dropped.
    _source: source::Source,
}

impl Playing {
    fn prepare(options: &MonitorOptions, board: &Arc<Board>) -> Result<Self> {
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
        // A short queue, so that the display shows the element's latest output.
        let queue = make("queue", "libgstreamer1.0-0")?;
        queue.set_property("max-size-buffers", 2u32);
        let sink =
            make(if options.window { "autovideosink" } else { "fakesink" }, "gstreamer1.0-plugins-good")?;
        sink.set_property("sync", true);
        let shown = make("videoconvert", "gstreamer1.0-plugins-base")?;
        chain(&pipeline, &[tee.clone(), queue, shown, sink])?;
        if options.http.is_some() {
            page_branch(&pipeline, &tee, board)?;
        }
        watch(&element, board)?;
        let source = source::Source::add(&options.input, &pipeline, &upright, options.repeat)?;
        Ok(Self { pipeline, element, _source: source })
    }

    fn play(&self, input: &str) -> Result<()> {
        if self.pipeline.set_state(gst::State::Playing).is_err() {
            let otherwise = || Error::Video(format!("{input}: cannot be played"));
            return Err(video::error_on(&self.pipeline, input).unwrap_or_else(otherwise));
        }
        Ok(())
    }

    fn info(&self) -> Option<gst_video::VideoInfo> {
        let caps = self.element.static_pad("src").and_then(|pad| pad.current_caps());
        caps.and_then(|caps| gst_video::VideoInfo::from_caps(&caps).ok())
    }

    fn state(&self, uptime: Duration) -> State {
        let stats = self.element.property::<gst::Structure>("stats");
        let count = |name| stats.get::<u64>(name).unwrap_or(0);
        let ms = |name: &str| stats.get::<u64>(name).unwrap_or(0) as f64 / 1e6;
        State {
            uptime_s: uptime.as_secs_f64(),
            frame_format: self
                .info()
                .map(|i| format!("{} × {} {}", i.width(), i.height(), i.format().to_str())),
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

    /// Passes a viewer's prompt to the element. Returns false if it was not queued: before the first frame, or if too many
    /// prompts wait.
    fn point(&self, pointing: Pointing) -> bool {
        let Some(info) = self.info() else { return false };
        let (width, height) = (f64::from(info.width()), f64::from(info.height()));
        // Positions are limited to the last pixel.
        let place = |part: f64, size: f64| (part * size).min(size - 0.5);
        match pointing {
            Pointing::Point { x, y, foreground } => {
                let (x, y) = (place(x, width), place(y, height));
                self.element.emit_by_name("prompt-point", &[&x, &y, &foreground])
            }
            Pointing::Box { left, top, right, bottom } => {
                let size = ((right - left) * width, (bottom - top) * height);
                let corner = (place(left, width), place(top, height));
                self.element.emit_by_name("prompt-box", &[&corner.0, &corner.1, &size.0, &size.1])
            }
            Pointing::Clear => self.element.emit_by_name("clear-prompts", &[]),
        }
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        video::stop(&self.pipeline);
    }
}

/// The text for the page about an element's message on a prompt; `None` for other messages.
fn outcome(message: &gst::StructureRef) -> Option<String> {
    let id = message.get::<u32>("id").map_or_else(|_| String::new(), |id| format!(" {id}"));
    let reason = || message.get::<String>("reason").unwrap_or_default();
    match message.name().strip_prefix("application/x-autosam-")? {
        "prompt-started" => Some(format!("object{id} is followed")),
        "prompt-ended" => Some(format!("object{id} ended: {}", reason())),
        "prompt-refused" => Some(format!("prompt refused: {}", reason())),
        _ => None,
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
    let shown = board.clone();
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(move |sink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        if let Some(bytes) = sample.buffer().and_then(|b| b.map_readable().ok()) {
            shown.show(&bytes);
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
        let mut last = last.lock();
        if !viewers.watched() || last.is_some_and(|l| l.elapsed() < PAGE_PERIOD) {
            // Not `Drop`: the bindings would free the buffer, and GStreamer would then warn that it has none to free.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cameras_and_streams_are_live_and_files_are_not() {
        for live in ["/dev/video0", "decklink", "decklink:1", "rtsp://camera/1", "srt://encoder:9000"] {
            assert!(is_live(live), "{live}");
        }
        for file in
            ["clip.mp4", "frames/", "file:///clip.mp4", "https://example.org/clip.mp4", "/data/video0"]
        {
            assert!(!is_live(file), "{file}");
        }
    }
}
