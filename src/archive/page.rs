//! The overview of an archive: `index.html` and `summary.csv` with all its videos. They contain no images of patients.

use super::{LeftOut, Summary, Video};
use crate::{Error, Result, write_atomically};
use std::fmt::Write as _;
use std::path::Path;

/// Progress of a video.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Done(Box<Summary>),
    Failed(String),
    Open,
}

/// The `summary.json` of a video's folder.
///
/// # Errors
/// If the file is missing, because the folder does not belong to an archive.
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

/// Writes `index.html` and `summary.csv` from the results on disk, so that any of several processes can write them last.
pub fn write_pages(videos: &[Video], left_out: &[LeftOut], output: &Path) -> Result<()> {
    let mut csv = String::from(
        "video,state,frames,seconds,marked_frames,marked_part,stretches,first_mark_s,largest_area,reason\n",
    );
    let mut rows = String::new();
    let (mut done, mut failed, mut incomplete) = (0, 0, 0);
    for video in videos {
        let name = video.name();
        let state = state(video, output).unwrap_or_else(|e| State::Failed(e.to_string()));
        // Writing to a String cannot fail.
        let _ = match &state {
            State::Done(s) => {
                done += 1;
                incomplete += usize::from(!s.problems.is_empty());
                row(&mut csv, &mut rows, video, s)
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
    let mut others = String::new();
    for file in left_out {
        let name = file.relative.to_string_lossy();
        let _ = writeln!(csv, "{},left out,,,,,,,,{}", quoted(&name), quoted(&file.reason));
        let _ = write!(others, "<li>{}: {}", escaped(&name), escaped(&file.reason));
    }
    if !others.is_empty() {
        others = format!(
            "<details><summary>{} files left out</summary><ul>{others}</ul></details>",
            left_out.len()
        );
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>autosam-video</title>{STYLE}<body>\
         <h1>{done} of {} videos done, {failed} failed{}</h1>\
         <p>For research only; not a medical device. The bar shows where a video has detections.</p>\
         <table><tr><th>video<th>frames<th>seconds<th>with a detection<th>fraction<th>first detection, s<th>largest<th>detections\n{rows}</table>{others}</html>\n",
        videos.len(),
        if incomplete > 0 { format!(", {incomplete} incomplete") } else { String::new() }
    );
    write_atomically(&output.join("summary.csv"), csv.as_bytes())?;
    write_atomically(&output.join("index.html"), page.as_bytes())
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\"").replace('\n', " "))
}

/// Appends a finished video's row to both files.
fn row(csv: &mut String, rows: &mut String, video: &Video, s: &Summary) -> std::fmt::Result {
    let name = video.name();
    // Summaries of earlier versions contain no times.
    let at = |frame: u64| frame as f64 / s.frames_per_second;
    let seconds = if s.seconds > 0.0 { s.seconds } else { at(s.frames) };
    let first =
        s.stretches_s.first().map(|(from, _)| *from).or(s.stretches.first().map(|(from, _)| at(*from)));
    let first = first.map_or(String::new(), |first| format!("{first:.2}"));
    let part = s.marked_frames as f64 / s.frames.max(1) as f64;
    let (stretches, problems) = (s.stretches.len(), s.problems.join("; "));
    let (state, reason) =
        if problems.is_empty() { ("done", String::new()) } else { ("not whole", quoted(&problems)) };
    writeln!(
        csv,
        "{},{state},{},{seconds:.2},{},{part:.4},{stretches},{first},{:.6},{reason}",
        quoted(&name),
        s.frames,
        s.marked_frames,
        s.largest_area
    )?;
    let class = if problems.is_empty() { "" } else { " class=bad" };
    writeln!(
        rows,
        "<tr{class}><td><a href=\"{}/\">{}</a>{}<td>{}<td>{seconds:.1}<td>{}<td>{:.1} %<td>{first}<td>{:.2} %<td>{}",
        link(video),
        escaped(&name),
        if problems.is_empty() { String::new() } else { format!("<br>incomplete: {}", escaped(&problems)) },
        s.frames,
        s.marked_frames,
        100.0 * part,
        100.0 * s.largest_area,
        strip(s)
    )
}

const STYLE: &str = "<style>body{font:15px/1.5 sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#222}table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:right}td:first-child,th:first-child,.bad td{text-align:left}.bad{background:#fdecea}svg{display:block;background:#eee}</style>";

/// A bar that represents the video's duration, with its detections in green.
fn strip(s: &Summary) -> String {
    const WIDTH: u64 = 240;
    let scale = WIDTH as f64 / s.frames.max(1) as f64;
    // Several stretches in the same column are drawn once.
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

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The relative URL of the video's folder.
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
    fn file_names_are_escaped_in_html_and_csv() {
        let dir = tempfile::tempdir().unwrap();
        let name = "<script>\"x\" & y, z.mp4";
        let video = Video { path: name.into(), relative: name.into() };
        write_pages(&[video], &[], dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
        assert!(!page.contains("<script") && page.contains("0 of 1 videos done"), "{page}");
        let csv = std::fs::read_to_string(dir.path().join("summary.csv")).unwrap();
        assert!(csv.contains("\"<script>\"\"x\"\" & y, z.mp4\",open"), "{csv}");
    }
}
