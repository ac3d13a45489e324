//! What an archive's folder tells people: `index.html` and `summary.csv` over all its videos. No picture of a patient is in
//! them.

use super::{Summary, Video};
use crate::{Error, Result, write_atomically};
use std::fmt::Write as _;
use std::path::Path;

/// How far a video is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Done(Box<Summary>),
    Failed(String),
    Open,
}

/// The `summary.json` of a video's folder.
///
/// # Errors
/// Where there is none: the folder is not of an archive.
pub(super) fn summary(place: &Path) -> Result<Summary> {
    let path = place.join("summary.json");
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::data(&path, format!("not a video's summary: {e}")))
}

fn state(video: &Video, output: &Path) -> Result<State> {
    let place = output.join(&video.relative);
    if place.is_dir() {
        return Ok(State::Done(Box::new(summary(&place)?)));
    }
    let failed = output.join(".autosam/failed").join(video.id());
    Ok(std::fs::read_to_string(failed).map_or(State::Open, State::Failed))
}

/// Writes `index.html` and `summary.csv` from what is on disk, so that any of several processes may write them last.
pub fn write_pages(videos: &[Video], output: &Path) -> Result<()> {
    let mut csv = String::from(
        "video,state,frames,seconds,marked_frames,marked_part,stretches,first_mark_s,largest_area,reason\n",
    );
    let mut rows = String::new();
    let (mut done, mut failed) = (0, 0);
    for video in videos {
        let name = video.name();
        let state = state(video, output).unwrap_or_else(|e| State::Failed(e.to_string()));
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\"").replace('\n', " "));
        // Writing to a String cannot fail.
        let _ = match &state {
            State::Done(s) => {
                done += 1;
                let at = |frame: u64| frame as f64 / s.frames_per_second;
                let first =
                    s.stretches.first().map_or(String::new(), |(from, _)| format!("{:.2}", at(*from)));
                let part = s.marked_frames as f64 / s.frames.max(1) as f64;
                let (stretches, seconds) = (s.stretches.len(), at(s.frames));
                let _ = writeln!(
                    csv,
                    "{},done,{},{seconds:.2},{},{part:.4},{stretches},{first},{:.6},",
                    quoted(&name),
                    s.frames,
                    s.marked_frames,
                    s.largest_area
                );
                writeln!(
                    rows,
                    "<tr><td><a href=\"{}/\">{}</a><td>{}<td>{seconds:.1}<td>{}<td>{:.1} %<td>{first}<td>{:.2} %<td>{}",
                    link(video),
                    escaped(&name),
                    s.frames,
                    s.marked_frames,
                    100.0 * part,
                    100.0 * s.largest_area,
                    strip(s)
                )
            }
            State::Failed(reason) => {
                failed += 1;
                let _ = writeln!(csv, "{},failed,,,,,,,,{}", quoted(&name), quoted(reason));
                writeln!(rows, "<tr class=bad><td>{}<td colspan=7>{}", escaped(&name), escaped(reason))
            }
            State::Open => {
                let _ = writeln!(csv, "{},open,,,,,,,,", quoted(&name));
                writeln!(rows, "<tr><td>{}<td colspan=7>not done yet", escaped(&name))
            }
        };
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>autosam-video</title>{STYLE}<body>\
         <h1>{done} of {} videos done, {failed} failed</h1>\
         <p>For research only; not a medical device. The strip shows where a video has marks.</p>\
         <table><tr><th>video<th>frames<th>seconds<th>with a mark<th>part<th>first mark, s<th>largest<th>marks\n{rows}</table></html>\n",
        videos.len()
    );
    write_atomically(&output.join("summary.csv"), csv.as_bytes())?;
    write_atomically(&output.join("index.html"), page.as_bytes())
}

const STYLE: &str = "<style>body{font:15px/1.5 sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#222}table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:right}td:first-child,th:first-child,.bad td{text-align:left}.bad{background:#fdecea}svg{display:block;background:#eee}</style>";

/// The video's length as a line, its stretches with a mark in green.
fn strip(s: &Summary) -> String {
    const WIDTH: u64 = 240;
    let scale = WIDTH as f64 / s.frames.max(1) as f64;
    // What falls on the same column is drawn once.
    let mut columns: Vec<(u64, u64)> = Vec::new();
    for (from, to) in &s.stretches {
        let (left, right) = ((*from as f64 * scale) as u64, ((*to + 1) as f64 * scale).ceil() as u64);
        match columns.last_mut() {
            Some((_, end)) if left <= *end => *end = right.max(*end),
            _ => columns.push((left, right)),
        }
    }
    let bars: String = columns
        .iter()
        .map(|(left, right)| {
            format!("<rect x=\"{left}\" width=\"{}\" height=\"14\" fill=\"#2a7\"/>", right - left)
        })
        .collect();
    format!("<svg width=\"{WIDTH}\" height=\"14\">{bars}</svg>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A relative address of the video's folder.
fn link(video: &Video) -> String {
    let mut out = String::new();
    for byte in video.relative.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(*byte))
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_cannot_become_markup() {
        let dir = tempfile::tempdir().unwrap();
        let name = "<script>\"x\" & y, z.mp4";
        let video = Video { path: name.into(), relative: name.into() };
        write_pages(&[video], dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
        assert!(!page.contains("<script") && page.contains("0 of 1 videos done"), "{page}");
        let csv = std::fs::read_to_string(dir.path().join("summary.csv")).unwrap();
        assert!(csv.contains("\"<script>\"\"x\"\" & y, z.mp4\",open"), "{csv}");
    }
}
