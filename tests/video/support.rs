//! Creates inputs, runs the program, and reads its outputs with GStreamer.

use gst::prelude::*;
use std::path::Path;
use std::process::{Command, Output};

/// Time limit of a pipeline.
const TIMEOUT: gst::ClockTime = gst::ClockTime::from_seconds(120);
/// Elements that encode raw video as H.264, quickly.
pub const H264: &str =
    "videoconvert ! video/x-raw,format=I420 ! x264enc speed-preset=ultrafast key-int-max=10 ! h264parse";
/// Elements that encode raw video as MPEG-2.
pub const MPEG2: &str = "videoconvert ! video/x-raw,format=I420 ! mpeg2enc ! mpegvideoparse";

/// Plays a pipeline to its end.
pub fn make(description: &str) {
    gst::init().unwrap();
    let pipeline = gst::parse::launch(description).unwrap_or_else(|e| panic!("{description}: {e}"));
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(TIMEOUT, &ends);
    pipeline.set_state(gst::State::Null).unwrap();
    match message.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Eos(_)) => {}
        Some(gst::MessageView::Error(e)) => panic!("{description}: {} {:?}", e.error(), e.debug()),
        _ => panic!("{description}: no end"),
    }
}

/// A source of `frames` frames with a moving test image; `caps` are `width=…,height=…` and further caps.
pub fn moving(frames: u32, caps: &str) -> String {
    format!("videotestsrc num-buffers={frames} pattern=ball ! video/x-raw,{caps}")
}

/// Encodes `times` (in milliseconds) frames with a caps rate of `rate` through `chain`, whose first element takes raw RGB.
pub fn make_timed(times: &[u64], rate: &str, chain: &str) {
    gst::init().unwrap();
    let description = format!(
        "appsrc name=source format=time caps=video/x-raw,format=RGB,width=64,height=48,framerate={rate} ! {chain}"
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let source = pipeline.by_name("source").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    for (i, time) in times.iter().enumerate() {
        let mut buffer = gst::Buffer::from_mut_slice(vec![(i * 7 % 250) as u8; 64 * 48 * 3]);
        let (buffer_mut, next) = (buffer.get_mut().unwrap(), times.get(i + 1).copied().unwrap_or(time + 20));
        buffer_mut.set_pts(gst::ClockTime::from_mseconds(*time));
        buffer_mut.set_duration(gst::ClockTime::from_mseconds(next - time));
        source.push_buffer(buffer).unwrap();
    }
    source.end_of_stream().unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(TIMEOUT, &ends);
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(matches!(message.as_ref().map(|m| m.view()), Some(gst::MessageView::Eos(_))), "{message:?}");
}

/// A frame of a file, as GStreamer decodes it.
pub struct Decoded {
    /// Stream time in seconds.
    pub time: f64,
    pub size: (u32, u32),
    pub pixel_aspect: (i32, i32),
    pub progressive: bool,
}

/// Every frame of the file.
pub fn decoded(path: &Path) -> Vec<Decoded> {
    gst::init().unwrap();
    assert!(path.is_file(), "{} does not exist", path.display());
    let uri = gst::glib::filename_to_uri(path, None).unwrap();
    let description = format!(
        "uridecodebin uri={uri} force-sw-decoders=true ! videoconvert ! appsink name=sink sync=false"
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut frames = Vec::new();
    while let Some(sample) = sink.try_pull_sample(TIMEOUT) {
        let info = gst_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
        let segment = sample.segment().unwrap().downcast_ref::<gst::ClockTime>().unwrap();
        let pts = sample.buffer().unwrap().pts().unwrap();
        frames.push(Decoded {
            time: segment.to_stream_time(pts).unwrap().nseconds() as f64 / 1e9,
            size: (info.width(), info.height()),
            pixel_aspect: (info.par().numer(), info.par().denom()),
            progressive: info.interlace_mode() == gst_video::VideoInterlaceMode::Progressive,
        });
    }
    let whole = sink.is_eos();
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(whole, "{}: no end", path.display());
    frames
}

pub fn times(path: &Path) -> Vec<f64> {
    decoded(path).iter().map(|f| f.time).collect()
}

/// Whether both have the same times relative to their first, within a millisecond, which is Matroska's precision.
pub fn same_times(a: &[f64], b: &[f64]) -> bool {
    let from_first = |times: &[f64]| -> Vec<f64> { times.iter().map(|t| t - times[0]).collect() };
    a.len() == b.len() && from_first(a).iter().zip(from_first(b)).all(|(a, b)| (a - b).abs() < 0.00101)
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autosam-video"));
    command.args(["run", "--device", "cpu"]);
    command
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `run` with input, output and more flags; returns whether it succeeded, and its output.
pub fn run(input: &Path, output: &Path, more: &[&str]) -> (bool, String) {
    let done = program().arg("--input").arg(input).arg("--output").arg(output).args(more).output().unwrap();
    let text = said(&done);
    assert!(!text.contains("panicked"), "{text}");
    (done.status.success(), text)
}

/// [`run`] that must succeed.
pub fn good(input: &Path, output: &Path, more: &[&str]) -> String {
    let (good, text) = run(input, output, more);
    assert!(good, "{text}");
    text
}

/// [`run`] that must fail.
pub fn bad(input: &Path, output: &Path, more: &[&str]) -> String {
    let (good, text) = run(input, output, more);
    assert!(!good, "{text}");
    text
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

/// The column `time_s` of a `frames.csv`.
pub fn csv_times(path: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect()
}

/// Keeps the first part of a file.
pub fn cut(path: &Path, to: &Path, part: f64) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(to, &bytes[..(bytes.len() as f64 * part) as usize]).unwrap();
}
