//! The page: built-in documents, frames and masks by number, the state as JSON, and changes by POST.

use super::labeller::{Labeller, Refused, Snapshot};
use super::session::{Label, Status};
use crate::pointing::{self, Pointing};
use crate::serve::access::Access;
use crate::serve::{Answer, Method, Request, Server};
use crate::{Error, Result};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

/// What the page answers to a query that it does not know.
const USAGE: &str = "expected /prompt?frame=N&point=X,Y (or background=X,Y, box=LEFT,TOP,RIGHT,BOTTOM, clear), \
                     /empty?frame=N, /accept?frame=N, /accept?all, /propagate?frame=N, /stop, /undo or /save\n";

/// Serves `labeller` at `address` to clients that `access` admits.
///
/// # Errors
/// If the address cannot be used.
pub fn serve(address: SocketAddr, access: Access, labeller: Arc<Labeller>) -> Result<Server> {
    Server::start(address, access, move |request: Request| match request.method {
        Method::Get => get(&labeller, request.path, request.query),
        Method::Post => match post(&labeller, request.path, request.query) {
            Some(Ok(note)) => state(&labeller, &note),
            Some(Err(Refused(why))) => Answer::Refused(Cow::Owned(why + "\n")),
            None => Answer::Mistaken(USAGE.into()),
        },
    })
}

fn text(kind: &'static str, text: &'static str) -> Answer {
    Answer::Document(kind, Cow::Borrowed(text.as_bytes()))
}

fn get(labeller: &Labeller, path: &str, query: &str) -> Answer {
    match path {
        "/" => text("text/html; charset=utf-8", include_str!("page.html")),
        "/page.js" => text("text/javascript; charset=utf-8", include_str!("page.js")),
        "/pointer.js" => text("text/javascript; charset=utf-8", pointing::SCRIPT),
        "/page.css" => text("text/css; charset=utf-8", include_str!("page.css")),
        "/state.json" => state(labeller, ""),
        "/frame.jpg" => match number(query).and_then(|frame| labeller.frames().jpeg(frame)) {
            Some(jpeg) => Answer::Document("image/jpeg", Cow::Owned(jpeg.to_vec())),
            None => Answer::NotFound,
        },
        "/mask.png" => match number(query).and_then(|frame| labeller.mask(frame)) {
            Some(mask) => match png(&mask, labeller.frames().size()) {
                Ok(png) => Answer::Document("image/png", png.into()),
                Err(e) => Answer::Refused(Cow::Owned(format!("{e}\n"))),
            },
            None => Answer::NotFound,
        },
        _ => Answer::NotFound,
    }
}

/// The frame of `frame=N`.
fn number(query: &str) -> Option<u64> {
    query.strip_prefix("frame=")?.parse().ok()
}

/// Makes the change of a request and returns a note for the person; `None` for a request with a mistake.
fn post(labeller: &Arc<Labeller>, path: &str, query: &str) -> Option<std::result::Result<String, Refused>> {
    let done = |()| String::new();
    Some(match path {
        "/prompt" => {
            let (frame, pointing) = query.split_once('&')?;
            labeller.prompt(number(frame)?, Pointing::parse(pointing)?).map(done)
        }
        "/empty" => labeller.set_empty(number(query)?).map(done),
        "/accept" => {
            let frame = if query == "all" { None } else { Some(number(query)?) };
            labeller.accept(frame).map(|count| format!("{count} accepted"))
        }
        "/propagate" => labeller.propagate(number(query)?).map(done),
        "/stop" if query.is_empty() => {
            labeller.stop();
            Ok(String::new())
        }
        "/undo" if query.is_empty() => labeller.undo().map(|frame| format!("undone on frame {frame}")),
        "/save" if query.is_empty() => labeller.save().map(|exported| exported.to_string()),
        _ => return None,
    })
}

fn state(labeller: &Labeller, note: &str) -> Answer {
    let document = document(labeller, &labeller.snapshot(), note);
    match serde_json::to_vec(&document) {
        Ok(json) => Answer::Document("application/json", json.into()),
        Err(_) => Answer::NotFound,
    }
}

/// `labels` has an entry for each labelled frame that is loaded: its number, a letter (m manual, e empty, p propagated, a accepted),
/// the confidence and the prompts.
fn document(labeller: &Labeller, snapshot: &Snapshot, note: &str) -> Value {
    let frames = labeller.frames();
    let (numbers, (width, height), aspect) = (frames.numbers(), frames.size(), frames.pixel_aspect());
    let letter = |label: &Label| match label.status {
        Status::Manual => "m",
        Status::Empty => "e",
        Status::Propagated if label.accepted => "a",
        Status::Propagated => "p",
    };
    let labels: Vec<_> = snapshot
        .labels
        .range(numbers.clone())
        .map(|(frame, label)| {
            let prompts: Vec<String> = label.prompts.iter().map(Pointing::to_string).collect();
            json!([frame, letter(label), label.confidence, prompts])
        })
        .collect();
    let seconds = |frame: u64| frames.time(frame).unwrap_or(0) as f64 / 1e9;
    json!({
        "first": numbers.start,
        "count": numbers.end - numbers.start,
        "start_s": seconds(numbers.start),
        "end_s": seconds(numbers.end.saturating_sub(1)),
        "width": width,
        "height": height,
        "pixel_aspect": f64::from(aspect.0) / f64::from(aspect.1.max(1)),
        "version": snapshot.version,
        "labels": labels,
        "running": snapshot.propagation.running,
        "at": snapshot.propagation.frame,
        "ended": snapshot.propagation.ended,
        "undoable": snapshot.undoable,
        "saved": snapshot.saved,
        "note": note,
    })
}

/// `mask` as the alpha of a white image.
fn png(mask: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>> {
    let pixels: Vec<u8> = mask.iter().flat_map(|v| [255, *v]).collect();
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Sub)
        .write_image(&pixels, width, height, ExtendedColorType::La8)
        .map_err(|e| Error::Video(format!("a mask cannot be compressed: {e}")))?;
    Ok(png)
}
