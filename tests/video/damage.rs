//! Rows 6 and 20: truncated and damaged files are reported, and written output is kept.

use super::support::*;
use std::path::Path;
use std::time::{Duration, Instant};

/// An archive with one truncated video: its readable part is processed, every run reports it, and it is processed again once it
/// is complete.
fn cut_short(muxer: &str, ending: &str) {
    cut_short_of(&format!("{H264} ! {muxer}"), ending);
}

/// [`cut_short`] for any encoder and muxer.
fn cut_short_of(chain: &str, ending: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (input, output, full) =
        (dir.path().join("in"), dir.path().join("out"), dir.path().join(format!("full.{ending}")));
    std::fs::create_dir(&input).unwrap();
    let source = moving(30, "width=96,height=64,framerate=25/1");
    make(&format!("{source} ! {chain} ! filesink location={}", full.display()));
    let video = input.join(format!("v.{ending}"));
    cut(&full, &video, 0.6);

    let text = bad(&input, &output, &["--write", "coco"]);
    assert!(text.contains("incomplete") && text.contains("cut short"), "{text}");
    let summary = json(&output.join(format!("v.{ending}/summary.json")));
    let frames = summary["frames"].as_u64().unwrap();
    assert!((5..30).contains(&frames), "{summary}");
    assert!(!summary["problems"].as_array().unwrap().is_empty(), "{summary}");
    let page = std::fs::read_to_string(output.join("index.html")).unwrap();
    assert!(page.contains("1 incomplete") && page.contains("cut short"), "{page}");

    // The next run does not process it again, but still reports it.
    let text = bad(&input, &output, &["--write", "coco"]);
    assert!(text.contains("0 videos done, 1 done before") && text.contains("incomplete"), "{text}");

    std::fs::copy(&full, &video).unwrap();
    let text = good(&input, &output, &["--write", "coco"]);
    assert!(text.contains("1 videos done"), "{text}");
    let summary = json(&output.join(format!("v.{ending}/summary.json")));
    assert_eq!(summary["frames"], 30);
    assert_eq!(summary["problems"].as_array().unwrap().len(), 0, "{summary}");

    // The same for a single file.
    cut(&full, &video, 0.6);
    let overlaid = dir.path().join("o.mp4");
    let text = bad(&video, &overlaid, &[]);
    assert!(text.contains("cut short"), "{text}");
    assert_eq!(decoded(&overlaid).len() as u64, frames);
}

#[test]
fn a_cut_mp4_is_reported_and_processed_again_once_it_is_whole() {
    cut_short("mp4mux faststart=true", "mp4");
}

#[test]
fn a_cut_mkv_is_reported_and_processed_again_once_it_is_whole() {
    cut_short("matroskamux", "mkv");
}

#[test]
fn a_cut_ogg_is_reported_and_processed_again_once_it_is_whole() {
    cut_short_of("theoraenc ! oggmux max-page-delay=1", "ogv");
}

#[test]
fn a_cut_flv_is_reported_and_processed_again_once_it_is_whole() {
    cut_short("flvmux", "flv");
}

/// GStreamer would wait 20 s for the table of such a file.
#[test]
fn an_mp4_without_its_table_is_reported_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("full.mp4");
    make(&format!(
        "{} ! {H264} ! mp4mux ! filesink location={}",
        moving(30, "width=96,height=64,framerate=25/1"),
        full.display()
    ));
    for (part, name) in [(0.6, "half.mp4"), (0.98, "end.mov")] {
        let video = dir.path().join(name);
        cut(&full, &video, part);
        let begin = Instant::now();
        let text = bad(&video, &dir.path().join("o.mp4"), &[]);
        assert!(text.contains(name) && text.contains("moov") && text.contains("copy it again"), "{text}");
        assert!(begin.elapsed() < Duration::from_secs(15), "the program waits for the table");
    }
}

#[test]
fn files_without_video_or_decoder_are_reported_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound.wav");
    make(&format!("audiotestsrc num-buffers=20 ! wavenc ! filesink location={}", sound.display()));
    let text = bad(&sound, &dir.path().join("o.mp4"), &[]);
    assert!(text.contains("sound.wav: contains no video"), "{text}");
    // Video without a decoder, together with sound.
    let odd = dir.path().join("odd.avi");
    let source = moving(5, "width=96,height=64,framerate=25/1");
    make(&format!(
        "avimux name=m ! filesink location={} {source} ! jpegenc ! m. audiotestsrc num-buffers=5 ! m.",
        odd.display()
    ));
    let mut bytes = std::fs::read(&odd).unwrap();
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|at| &bytes[*at..at + 4] == b"MJPG").collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at..at + 4].copy_from_slice(b"ULRG"));
    std::fs::write(&odd, bytes).unwrap();
    let text = bad(&odd, &dir.path().join("o.mp4"), &[]);
    assert!(text.contains("odd.avi: ") && text.contains("no decoder"), "{text}");
}

#[test]
fn a_cut_avi_is_reported_and_processed_again_once_it_is_whole() {
    cut_short("avimux", "avi");
}

#[test]
fn a_cut_transport_stream_is_reported_and_processed_again_once_it_is_whole() {
    cut_short("mpegtsmux", "ts");
}

#[test]
fn a_live_mkv_without_sizes_that_ends_in_a_frame_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (full, short) = (dir.path().join("full.mkv"), dir.path().join("short.mkv"));
    let source = moving(30, "width=96,height=64,framerate=25/1");
    make(&format!("{source} ! {H264} ! matroskamux streamable=true ! filesink location={}", full.display()));
    good(&full, &dir.path().join("full.webm"), &[]);
    cut(&full, &short, 0.6);
    assert!(bad(&short, &dir.path().join("short.webm"), &[]).contains("cut short"));
}

#[test]
fn packets_missing_from_a_transport_stream_are_reported_and_joined_recordings_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (one, joined, lossy) =
        (dir.path().join("one.ts"), dir.path().join("joined.ts"), dir.path().join("lossy.ts"));
    let source = moving(25, "width=160,height=120,framerate=25/1");
    make(&format!("{source} ! {H264} ! mpegtsmux ! filesink location={}", one.display()));
    let bytes = std::fs::read(&one).unwrap();
    std::fs::write(&joined, [bytes.as_slice(), &bytes].concat()).unwrap();
    good(&joined, &dir.path().join("joined.webm"), &[]);
    let mut less = bytes.clone();
    less.drain(bytes.len() / 188 / 2 * 188..(bytes.len() / 188 / 2 + 3) * 188);
    std::fs::write(&lossy, less).unwrap();
    let text = bad(&lossy, &dir.path().join("lossy.webm"), &[]);
    assert!(text.contains("packets of the transport stream are missing"), "{text}");
}

#[test]
fn a_transport_stream_whose_program_changes_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    // Recordings of two devices have different packet numbers and codecs.
    for (number, chain) in [(256, H264), (512, H264), (256, MPEG2)] {
        let part = dir.path().join("part.ts");
        let source = moving(20, "width=160,height=120,framerate=25/1");
        let location = part.display();
        make(&format!(
            "{source} ! {chain} ! m.sink_{number} mpegtsmux name=m ! filesink location={location}"
        ));
        bytes.extend(std::fs::read(part).unwrap());
    }
    let (video, output) = (dir.path().join("v.ts"), dir.path().join("o.mp4"));
    std::fs::write(&video, bytes).unwrap();
    good(&video, &output, &[]);
    let frames = decoded(&output).len();
    // Elementary streams without an end code keep their last frame.
    assert!((57..=60).contains(&frames), "{frames} frames");
}

#[test]
fn lost_frames_of_a_damaged_mp4_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (full, damaged) = (dir.path().join("full.mp4"), dir.path().join("damaged.mp4"));
    let source = moving(30, "width=96,height=64,framerate=25/1");
    make(&format!("{source} ! {H264} ! mp4mux faststart=true ! filesink location={}", full.display()));
    let mut bytes = std::fs::read(&full).unwrap();
    // Bad sectors and incomplete downloads leave such holes.
    let middle = bytes.len() / 2;
    bytes[middle..middle + 3000].fill(0);
    std::fs::write(&damaged, bytes).unwrap();
    let text = bad(&damaged, &dir.path().join("o.webm"), &[]);
    assert!(text.contains("of 30 frames could be read") || text.contains("frames are damaged"), "{text}");
}

#[test]
fn frames_of_another_size_are_written_to_a_second_file() {
    let dir = tempfile::tempdir().unwrap();
    let (large, small, changing) =
        (dir.path().join("l.ts"), dir.path().join("s.ts"), dir.path().join("c.ts"));
    for (path, size) in [(&large, "width=160,height=120"), (&small, "width=80,height=60")] {
        let source = moving(20, &format!("{size},framerate=25/1"));
        make(&format!("{source} ! {H264} ! mpegtsmux ! filesink location={}", path.display()));
    }
    std::fs::write(&changing, [std::fs::read(&large).unwrap(), std::fs::read(&small).unwrap()].concat())
        .unwrap();
    let masks = dir.path().join("masks");
    let text = good(&changing, &dir.path().join("o.mp4"), &["--masks", masks.to_str().unwrap()]);
    assert!(text.contains("80x60") && text.contains("o-2.mp4"), "{text}");
    let (first, second) = (decoded(&dir.path().join("o.mp4")), decoded(&dir.path().join("o-2.mp4")));
    assert_eq!((first.len(), first[0].size), (20, (160, 120)));
    assert_eq!((second.len(), second[0].size), (20, (80, 60)));
    assert_eq!(std::fs::read_dir(&masks).unwrap().count(), 40);
    assert_eq!(image::image_dimensions(masks.join("000030.png")).unwrap(), (80, 60));
}

/// A video that takes some seconds to process.
fn long(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("long.mp4");
    let source = "videotestsrc num-buffers=600 pattern=smpte horizontal-speed=3 ! video/x-raw,width=320,height=240,framerate=25/1";
    make(&format!("{source} ! {H264} ! mp4mux ! filesink location={}", path.display()));
    path
}

/// Starts the program and waits until `bytes` of its output are written.
fn under_way(input: &Path, output: &Path, bytes: u64) -> std::process::Child {
    let mut command = program();
    command.arg("--input").arg(input).arg("--output").arg(output);
    let child =
        command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut partial = output.as_os_str().to_owned();
    partial.push(".partial");
    let begin = Instant::now();
    while std::fs::metadata(&partial).map_or(0, |m| m.len()) < bytes {
        assert!(begin.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn ctrl_c_leaves_a_file_that_plays() {
    let dir = tempfile::tempdir().unwrap();
    let input = long(dir.path());
    for ending in ["mp4", "mkv", "webm"] {
        let output = dir.path().join(format!("o.{ending}"));
        let child = under_way(&input, &output, 20_000);
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let done = child.wait_with_output().unwrap();
        assert!(!done.status.success() && said(&done).contains("interrupted"), "{}", said(&done));
        assert!((10..600).contains(&decoded(&output).len()), "{ending}");
    }
}

#[test]
fn a_killed_program_leaves_a_playable_part() {
    let dir = tempfile::tempdir().unwrap();
    let input = long(dir.path());
    for ending in ["mp4", "mkv"] {
        let output = dir.path().join(format!("o.{ending}"));
        let mut child = under_way(&input, &output, 200_000);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(decoded(&dir.path().join(format!("o.{ending}.partial"))).len() >= 10, "{ending}");
    }
}

#[test]
fn a_full_disk_leaves_a_file_that_plays() {
    let dir = tempfile::tempdir().unwrap();
    let input = long(dir.path());
    for ending in ["mp4", "mkv"] {
        let output = dir.path().join(format!("o.{ending}"));
        // With a limit on file sizes a write fails like on a full disk.
        let done = std::process::Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 400; exec \"$0\" run --device cpu --input \"$1\" --output \"$2\"",
            ])
            .args([env!("CARGO_BIN_EXE_autosam-video").as_ref(), input.as_os_str(), output.as_os_str()])
            .output()
            .unwrap();
        let text = said(&done);
        assert!(!done.status.success() && text.contains("is kept") && !text.contains("panicked"), "{text}");
        assert!((10..600).contains(&decoded(&output).len()), "{ending}");
    }
}

/// A disk in memory that is unmounted at the end of the test.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` if this user may not mount one.
    fn new(dir: &Path, kilobytes: u32) -> Option<Self> {
        std::fs::create_dir(dir).unwrap();
        let disk = Self(dir.to_owned());
        disk.mount(&format!("size={kilobytes}k")).then_some(disk)
    }

    fn mount(&self, options: &str) -> bool {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0);
        command.output().is_ok_and(|done| done.status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Fails if the disk was not mounted, which needs no cleanup.
        let _ = std::process::Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_fails_an_archive_s_video_by_name_and_the_next_run_finishes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    let source = moving(12, "width=96,height=64,framerate=25/1");
    make(&format!("{source} ! {H264} ! mp4mux ! filesink location={}", input.join("v.mp4").display()));
    let Some(disk) = SmallDisk::new(&output, 24) else {
        eprintln!("SKIPPED: this user cannot mount a disk in memory (mount -t tmpfs)");
        return;
    };
    let text = bad(&input, &output, &["--write", "png,coco"]);
    assert!(text.contains("failed: v.mp4") && text.contains("No space left"), "{text}");
    assert!(!output.join("v.mp4").exists(), "an incomplete result must not appear");
    assert!(disk.mount("remount,size=4m"));
    let text = good(&input, &output, &["--write", "png,coco"]);
    assert!(text.contains("1 videos done"), "{text}");
    assert_eq!(std::fs::read_dir(output.join("v.mp4/masks")).unwrap().count(), 12);
}
