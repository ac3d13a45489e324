//! The monitor's page: documents that are part of the program, the newest picture, and figures as JSON.

use crate::Result;
use crate::serve::{Answer, Client, Server};
use serde::Serialize;
use std::borrow::Cow;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Viewers of the live picture at a time; the next see the page without it. Fewer than a server's clients, so that figures
/// always get through.
pub const MOST_VIEWERS: usize = 8;

const BOUNDARY: &str = "autosam-picture";

/// Figures of the element, at `/state.json` together with [`Found`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct State {
    pub uptime_s: f64,
    /// Size and format; `None` before the first picture.
    pub picture: Option<String>,
    pub frames: u64,
    pub inferred: u64,
    pub skipped: u64,
    pub errors: u64,
    pub inference_ms: f64,
    pub video_delay_ms: f64,
    pub video_delay_max_ms: f64,
    pub annotation_delay_ms: f64,
}

/// What is on the present picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Found {
    pub regions: usize,
    /// Of the surest region, 0 to 1.
    pub confidence: f64,
    /// Times that something came into view.
    pub detections: u64,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    state: &'a State,
    #[serde(flatten)]
    found: Found,
    problem: Option<&'a str>,
}

/// What the page shows; written by the pipeline, which never waits for a viewer.
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
}

impl Board {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        // Plain values: whole after a panic too.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a picture (JPEG) in the place of the last.
    pub fn show(&self, jpeg: &[u8]) {
        let jpeg = jpeg.into();
        let mut shown = self.shown();
        shown.number += 1;
        shown.jpeg = jpeg;
        drop(shown);
        self.newer.notify_all();
    }

    /// Whether anybody looks at the picture.
    pub fn watched(&self) -> bool {
        self.viewers.load(Ordering::Relaxed) > 0
    }

    pub fn set(&self, state: State) {
        self.shown().state = state;
    }

    /// What went wrong last, for the page to say.
    pub fn set_problem(&self, text: &str) {
        self.shown().problem = Some(text.to_owned());
    }

    /// Notes the confidences of a picture's regions.
    pub fn found(&self, confidences: impl Iterator<Item = f64>) {
        let (regions, confidence) = confidences.fold((0, 0.0), |(n, most), c| (n + 1, f64::max(most, c)));
        let mut shown = self.shown();
        let begins = shown.found.regions == 0 && regions > 0;
        shown.found = Found { regions, confidence, detections: shown.found.detections + u64::from(begins) };
    }

    fn document(&self) -> serde_json::Result<Vec<u8>> {
        let shown = self.shown();
        let document =
            Document { state: &shown.state, found: shown.found, problem: shown.problem.as_deref() };
        serde_json::to_vec(&document)
    }

    /// The picture after number `last`; `None` where none came within a second.
    fn next(&self, last: u64) -> Option<(u64, Arc<[u8]>)> {
        let waiting = |s: &mut Shown| s.number == last;
        let wait = self.newer.wait_timeout_while(self.shown(), Duration::from_secs(1), waiting);
        let (shown, late) = wait.unwrap_or_else(PoisonError::into_inner);
        (!late.timed_out()).then(|| (shown.number, shown.jpeg.clone()))
    }
}

/// One that looks at the picture, counted for as long as it lives.
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

/// Serves `board` at `address`: `/`, its script and style, `/live.mjpeg`, `/state.json`.
///
/// # Errors
/// For an address that cannot be taken.
pub fn serve(address: SocketAddr, board: Arc<Board>) -> Result<Server> {
    Server::start(address, move |path| match path {
        "/" => text("text/html; charset=utf-8", include_str!("page.html")),
        "/page.js" => text("text/javascript; charset=utf-8", include_str!("page.js")),
        "/page.css" => text("text/css; charset=utf-8", include_str!("page.css")),
        "/state.json" => match board.document() {
            Ok(json) => Answer::Document("application/json", json.into()),
            Err(_) => Answer::NotFound,
        },
        "/live.mjpeg" => match Viewer::new(&board) {
            Some(viewer) => Answer::Stream(
                "multipart/x-mixed-replace; boundary=autosam-picture",
                Box::new(move |client| pictures(&viewer.0, client)),
            ),
            None => Answer::NotFound,
        },
        _ => Answer::NotFound,
    })
}

fn text(kind: &'static str, text: &'static str) -> Answer {
    Answer::Document(kind, Cow::Borrowed(text.as_bytes()))
}

/// Writes pictures, each the newest, for as long as they are taken.
fn pictures(board: &Board, client: &mut Client) -> std::io::Result<()> {
    let mut last = board.shown().number;
    // Opens the first part: viewers show a part once the next begins.
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
