//! Row 6: holes in files, of zero bytes, which demuxers and decoders pass over in silence; DV that is cut; further tracks.

use super::support::*;
use std::path::{Path, PathBuf};

/// A video of `chain` in `dir`, large enough for a hole to lie within frames.
fn noisy(dir: &Path, caps: &str, chain: &str, ending: &str) -> PathBuf {
    let path = dir.join(format!("full.{ending}"));
    let source = format!("videotestsrc num-buffers=20 pattern=snow ! video/x-raw,{caps}");
    make(&format!("{source} ! {chain} ! filesink location={}", path.display()));
    path
}

/// The whole file is read without a word, one with `size` zero bytes in its middle is not.
fn a_hole_is_reported(caps: &str, chain: &str, ending: &str, size: usize) {
    let dir = tempfile::tempdir().unwrap();
    let full = noisy(dir.path(), caps, chain, ending);
    good(&full, &dir.path().join("full.webm"), &[]);
    let mut bytes = std::fs::read(&full).unwrap();
    assert!(bytes.len() > 4 * size, "{ending}: {} bytes", bytes.len());
    let middle = bytes.len() / 2;
    bytes[middle..middle + size].fill(0);
    let holed = dir.path().join(format!("holed.{ending}"));
    std::fs::write(&holed, bytes).unwrap();
    let output = dir.path().join("holed.webm");
    let text = bad(&holed, &output, &[]);
    let told = ["holes of zero bytes", "damaged", "could be read"];
    assert!(told.iter().any(|part| text.contains(part)), "{ending}: {text}");
    assert!(decoded(&output).len() >= 8, "{ending}: what is there is kept");
}

const SMALL: &str = "width=160,height=120,framerate=25/1";

#[test]
fn holes_in_avi_are_reported() {
    a_hole_is_reported(SMALL, "jpegenc ! avimux", "avi", 8192);
    a_hole_is_reported(SMALL, &format!("{H264} ! avimux"), "avi", 4096);
}

#[test]
fn holes_in_matroska_are_reported() {
    a_hole_is_reported(SMALL, "jpegenc ! matroskamux", "mkv", 8192);
    a_hole_is_reported(SMALL, &format!("{H264} ! matroskamux"), "mkv", 4096);
}

#[test]
fn holes_in_asf_are_reported() {
    a_hole_is_reported(SMALL, "videoconvert ! avenc_wmv2 bitrate=2000000 ! asfmux", "asf", 8192);
}

#[test]
fn holes_in_dv_are_reported() {
    a_hole_is_reported("width=720,height=576,framerate=25/1", "videoconvert ! avenc_dvvideo", "dv", 8192);
}

/// It used to fail as a whole.
#[test]
fn a_cut_dv_is_worked_on_up_to_its_last_whole_frame() {
    let dir = tempfile::tempdir().unwrap();
    let full = noisy(dir.path(), "width=720,height=576,framerate=25/1", "videoconvert ! avenc_dvvideo", "dv");
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
    // An archive keeps it as a note.
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    std::fs::copy(&video, input.join("two.mkv")).unwrap();
    good(&input, &output, &["--write", "none"]);
    let notes = &json(&output.join("two.mkv/summary.json"))["notes"];
    assert!(notes[0].as_str().unwrap().contains("of 2 video tracks"), "{notes}");
}
