//! Row 6: holes of zero bytes in files, which demuxers and decoders skip silently; truncated DV; further tracks.

use super::support::*;
use gst::prelude::*;
use std::path::{Path, PathBuf};

/// Number of frames of the videos here, 1.6 s. That is at least two clusters of Matroska, which begin at key frames after 0.5 s.
const FRAMES: usize = 40;
/// The frame with the hole in its data or at its end. It is not the last frame of a group of pictures (GOP) or of a cluster.
const HIT: usize = 5;

/// A video by `chain` in `dir`, whose frames are larger than a hole.
fn noisy(dir: &Path, caps: &str, chain: &str, ending: &str, frames: usize) -> PathBuf {
    let path = dir.join(format!("full.{ending}"));
    let source = format!("videotestsrc num-buffers={frames} pattern=snow ! video/x-raw,{caps}");
    make(&format!("{source} ! {chain} ! filesink location={}", path.display()));
    path
}

/// Offset and length of frame `index` in the file. `demuxer` must output a frame in one piece.
fn place(path: &Path, bytes: &[u8], demuxer: &str, index: usize) -> (usize, usize) {
    // Demuxers choose their own block size; without a demuxer, blocks are DV frames.
    let source = format!("filesrc blocksize=144000 location={}", path.display());
    let description = format!("{source} ! {demuxer} ! appsink name=sink sync=false");
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    (0..index).for_each(|_| drop(sink.pull_sample().unwrap()));
    let sample = sink.pull_sample().unwrap();
    pipeline.set_state(gst::State::Null).unwrap();
    let frame = sample.buffer().unwrap().map_readable().unwrap().to_vec();
    let find = |part: &[u8]| bytes.windows(part.len()).position(|window| window == part);
    // Some containers split a frame or change its first bytes.
    let middle = frame.len() / 2;
    let at = find(&frame).or_else(|| find(&frame[middle..middle + 64])?.checked_sub(middle));
    (at.expect("the frame's data are in the file"), frame.len())
}

/// Checks that a file is read without a report while it is intact. With `size` zero bytes in the middle of a frame, and with as
/// many around that frame's end, a problem must be reported and at least `kept` frames be read: if a frame's header is lost,
/// GStreamer's Matroska demuxer continues at the next cluster. `demuxer` outputs the file's frames.
fn holes_are_reported(
    caps: &str,
    chain: &str,
    (ending, demuxer): (&str, &str),
    size: usize,
    kept: [usize; 2],
) {
    let dir = tempfile::tempdir().unwrap();
    let full = noisy(dir.path(), caps, chain, ending, FRAMES);
    good(&full, &dir.path().join("full.webm"), &[]);
    // Some muxers omit the last frames.
    let whole = decoded(&dir.path().join("full.webm")).len();
    assert!(whole >= FRAMES - 4, "{ending}: {whole} frames without a hole");
    let bytes = std::fs::read(&full).unwrap();
    let (begin, length) = place(&full, &bytes, demuxer, HIT);
    assert!(length > size, "{ending}: frame {HIT} has {length} bytes");
    for (centre, kept) in [begin + length / 2, begin + length].into_iter().zip(kept) {
        let mut bytes = bytes.clone();
        bytes[centre - size / 2..centre + size / 2].fill(0);
        let holed = dir.path().join(format!("holed.{ending}"));
        std::fs::write(&holed, bytes).unwrap();
        let output = dir.path().join("holed.webm");
        let text = bad(&holed, &output, &[]);
        assert!(REPORTS.iter().any(|part| text.contains(part)), "{ending}: {text}");
        // A frame whose header is lost may have another size, which starts another output file.
        let parts = ["holed", "holed-2", "holed-3"].map(|name| dir.path().join(format!("{name}.webm")));
        let count: usize = parts.iter().filter(|part| part.exists()).map(|part| decoded(part).len()).sum();
        assert!(count >= kept, "{ending}: {count} frames: {text}");
        parts.iter().filter(|part| part.exists()).for_each(|part| std::fs::remove_file(part).unwrap());
    }
}

/// The program's reports of a hole.
const REPORTS: [&str; 3] = ["holes of zero bytes", "damaged", "could be read"];
const SMALL: &str = "width=160,height=120,framerate=25/1";
/// One thread gives the same bytes on every machine; with several threads the rate control depends on their timing.
const X264: &str = "videoconvert ! video/x-raw,format=I420 ! x264enc threads=1 speed-preset=ultrafast key-int-max=10 ! h264parse";

#[test]
fn holes_in_avi_are_reported() {
    holes_are_reported(SMALL, "jpegenc ! avimux", ("avi", "avidemux"), 8192, [38, 38]);
    holes_are_reported(SMALL, &format!("{X264} ! avimux"), ("avi", "avidemux"), 4096, [30, 30]);
}

#[test]
fn holes_in_matroska_are_reported() {
    holes_are_reported(SMALL, "jpegenc ! matroskamux", ("mkv", "matroskademux"), 8192, [38, 24]);
    holes_are_reported(SMALL, &format!("{X264} ! matroskamux"), ("mkv", "matroskademux"), 4096, [30, 24]);
}

/// Each frame takes several ASF packets.
#[test]
fn holes_in_asf_are_reported() {
    let chain = "videoconvert ! avenc_wmv2 bitrate=4000000 ! asfmux";
    holes_are_reported(SMALL, chain, ("asf", "asfdemux"), 4096, [30, 30]);
}

#[test]
fn holes_in_dv_are_reported() {
    let caps = "width=720,height=576,framerate=25/1";
    holes_are_reported(caps, "videoconvert ! avenc_dvvideo", ("dv", "identity"), 8192, [38, 38]);
}

/// GStreamer's demuxer fails for the rest of such a file.
#[test]
fn a_cut_dv_is_processed_up_to_its_last_complete_frame() {
    let dir = tempfile::tempdir().unwrap();
    let full =
        noisy(dir.path(), "width=720,height=576,framerate=25/1", "videoconvert ! avenc_dvvideo", "dv", 20);
    let short = dir.path().join("short.dv");
    cut(&full, &short, 0.53);
    let output = dir.path().join("o.mp4");
    let text = bad(&short, &output, &[]);
    assert!(text.contains("cut short") && text.contains("its last frame has"), "{text}");
    assert_eq!(decoded(&output).len(), 10);
}

#[test]
fn a_second_video_track_is_named_and_can_be_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let video = dir.path().join("two.mkv");
    let track = |size: &str| format!("{} ! {H264} ! m.", moving(10, &format!("{size},framerate=25/1")));
    make(&format!(
        "matroskamux name=m ! filesink location={} {} {}",
        video.display(),
        track("width=160,height=120"),
        track("width=96,height=64")
    ));
    let (first, second) = (dir.path().join("1.mp4"), dir.path().join("2.mp4"));
    let text = good(&video, &first, &[]);
    assert!(text.contains("of 2 video tracks only 1 (160x120) is used; not used: 2 (96x64)"), "{text}");
    assert_eq!(decoded(&first)[0].size, (160, 120));
    good(&video, &second, &["--track", "2"]);
    assert_eq!(decoded(&second)[0].size, (96, 64));
    let text = bad(&video, &dir.path().join("3.mp4"), &["--track", "3"]);
    assert!(text.contains("two.mkv: it has 2 video tracks, but no track 3"), "{text}");
    // An archive stores it as a note.
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    std::fs::copy(&video, input.join("two.mkv")).unwrap();
    good(&input, &output, &["--write", "none"]);
    let notes = &json(&output.join("two.mkv/summary.json"))["notes"];
    assert!(notes[0].as_str().unwrap().contains("of 2 video tracks"), "{notes}");
}
