//! The monitor's page: built-in documents, the latest frame, statistics as JSON, and prompts by pointer.

use crate::Result;
use crate::pointing;
pub use crate::pointing::Pointing;
use crate::serve::access::Access;
use crate::serve::{Answer, Client, Method, Request, Server};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::borrow::Cow;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Maximum number of viewers of the video; others get the page without video. It is below the server's limit of clients, so that
/// statistics are always served.
pub const MOST_VIEWERS: usize = 8;

const BOUNDARY: &str = "autosam-frame";

/// Statistics of the element, at `/state.json` together with [`Found`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct State {
    pub uptime_s: f64,
    /// Size and format; `None` before the first frame.
    #[serde(rename = "picture")]
    pub frame_format: Option<String>,
    pub frames: u64,
    pub inferred: u64,
    pub skipped: u64,
    pub errors: u64,
    pub inference_ms: f64,
    pub video_delay_ms: f64,
    pub video_delay_max_ms: f64,
    pub annotation_delay_ms: f64,
}

/// Detections on the current frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Found {
    pub regions: usize,
    /// Highest confidence of all regions, 0 to 1.
    pub confidence: f64,
    /// Number of detections so far.
    pub detections: u64,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    state: &'a State,
    #[serde(flatten)]
    found: Found,
    problem: Option<&'a str>,
    prompt: Option<&'a str>,
}

/// Content of the page; written by the pipeline, which never waits for a viewer.
#[derive(Default)]
pub struct Board {
    shown: Mutex<Shown>,
    newer: Condvar,
    viewers: AtomicUsize,
}

#[derive(Default)]
struct Shown {
    number: u64,
    jpeg: Arc<[u8]>,
    state: State,
    found: Found,
    problem: Option<String>,
    prompt: Option<String>,
}

impl Board {
    /// Replaces the last frame (JPEG).
    pub fn show(&self, jpeg: &[u8]) {
        let jpeg = jpeg.into();
        let mut shown = self.shown.lock();
        shown.number += 1;
        shown.jpeg = jpeg;
        drop(shown);
        self.newer.notify_all();
    }

    /// Whether a viewer is connected.
    pub fn watched(&self) -> bool {
        self.viewers.load(Ordering::Relaxed) > 0
    }

    pub fn set(&self, state: State) {
        self.shown.lock().state = state;
    }

    /// Sets the last problem for the page, or clears it.
    pub fn set_problem(&self, text: Option<&str>) {
        self.shown.lock().problem = text.map(str::to_owned);
    }

    /// Sets the outcome of the last prompt for the page.
    pub fn set_prompt(&self, text: &str) {
        self.shown.lock().prompt = Some(text.to_owned());
    }

    /// Records the confidences of a frame's regions.
    pub fn found(&self, confidences: impl Iterator<Item = f64>) {
        let (regions, confidence) = confidences.fold((0, 0.0), |(n, most), c| (n + 1, f64::max(most, c)));
        let mut shown = self.shown.lock();
        let begins = shown.found.regions == 0 && regions > 0;
        shown.found = Found { regions, confidence, detections: shown.found.detections + u64::from(begins) };
    }

    fn document(&self) -> serde_json::Result<Vec<u8>> {
        let shown = self.shown.lock();
        let document = Document {
            state: &shown.state,
            found: shown.found,
            problem: shown.problem.as_deref(),
            prompt: shown.prompt.as_deref(),
        };
        serde_json::to_vec(&document)
    }

    /// The frame after number `last`; `None` if none arrives within a second.
    fn next(&self, last: u64) -> Option<(u64, Arc<[u8]>)> {
        let mut shown = self.shown.lock();
        self.newer.wait_while_for(&mut shown, |shown| shown.number == last, Duration::from_secs(1));
        (shown.number != last).then(|| (shown.number, shown.jpeg.clone()))
    }
}

/// A viewer of the video, counted while it exists.
struct Viewer(Arc<Board>);

impl Viewer {
    fn new(board: &Arc<Board>) -> Option<Self> {
        let mine = Self(board.clone());
        (board.viewers.fetch_add(1, Ordering::AcqRel) < MOST_VIEWERS).then_some(mine)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves `board` at `address` to clients that `access` admits: `/` with its script and style, `/live.mjpeg` and `/state.json`.
/// `POST /prompt` calls `point`, which returns whether the prompt was queued.
///
/// # Errors
/// If the address cannot be used.
pub fn serve(
    address: SocketAddr,
    access: Access,
    board: Arc<Board>,
    point: impl Fn(Pointing) -> bool + Send + Sync + 'static,
) -> Result<Server> {
    Server::start(address, access, move |request: Request| {
        match (request.method, request.path) {
        (Method::Post, "/prompt") => match Pointing::parse(request.query) {
            Some(pointing) if point(pointing) => Answer::Done,
            Some(_) => Answer::Refused("no frame yet, or too many prompts wait\n".into()),
            None => Answer::Mistaken(
                "expected point=X,Y, background=X,Y, box=LEFT,TOP,RIGHT,BOTTOM or clear; positions from 0 to 1\n"
                    .into(),
            ),
        },
        (Method::Post, _) => Answer::GetOnly,
        (Method::Get, "/") => text("text/html; charset=utf-8", include_str!("page.html")),
        (Method::Get, "/page.js") => text("text/javascript; charset=utf-8", include_str!("page.js")),
        (Method::Get, "/pointer.js") => text("text/javascript; charset=utf-8", pointing::SCRIPT),
        (Method::Get, "/page.css") => text("text/css; charset=utf-8", include_str!("page.css")),
        (Method::Get, "/state.json") => match board.document() {
            Ok(json) => Answer::Document("application/json", json.into()),
            Err(_) => Answer::NotFound,
        },
        (Method::Get, "/live.mjpeg") => match Viewer::new(&board) {
            Some(viewer) => Answer::Stream(
                "multipart/x-mixed-replace; boundary=autosam-frame",
                Box::new(move |client| frames(&viewer.0, client)),
            ),
            None => Answer::NotFound,
        },
        (Method::Get, _) => Answer::NotFound,
    }
    })
}

fn text(kind: &'static str, text: &'static str) -> Answer {
    Answer::Document(kind, Cow::Borrowed(text.as_bytes()))
}

/// Writes the latest frame repeatedly, as long as the client accepts it.
fn frames(board: &Board, client: &mut Client) -> std::io::Result<()> {
    let mut last = board.shown.lock().number;
    // Browsers show a part when the next one begins, so each frame is followed by a boundary; this is the first.
    write!(client, "--{BOUNDARY}\r\n")?;
    while !client.ended() {
        let Some((number, jpeg)) = board.next(last) else { continue };
        last = number;
        let mut part =
            format!("Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", jpeg.len()).into_bytes();
        part.extend_from_slice(&jpeg);
        part.extend_from_slice(format!("\r\n--{BOUNDARY}\r\n").as_bytes());
        client.write_all(&part)?;
    }
    Ok(())
}
