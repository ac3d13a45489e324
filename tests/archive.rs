//! Folders of videos: outputs, skipped videos, and several processes on one folder, one of which is killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn program(input: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autosam-video"));
    command.arg("run").arg("--input").arg(input).arg("--output").arg(output).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn good(input: &Path, output: &Path, more: &[&str]) -> String {
    let done = program(input, output, more).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    text(&done)
}

fn bad(input: &Path, output: &Path, more: &[&str]) -> String {
    let done = program(input, output, more).output().unwrap();
    assert!(!done.status.success() && !text(&done).contains("panicked"), "{}", text(&done));
    text(&done)
}

/// `count` copies of a clip of `frames` frames, in folders.
fn videos(dir: &Path, count: usize, frames: &str) -> PathBuf {
    let clip = dir.join("clip.webm");
    let made = Command::new(env!("CARGO_BIN_EXE_autosam-video"))
        .args(["synth", "--sequences", "1", "--size", "96x64", "--frames", frames, "--seed", "3", "--out"])
        .arg(dir.join("synthetic"))
        .arg("--clip")
        .arg(&clip)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let input = dir.join("videos");
    for i in 0..count {
        let folder = input.join(format!("room{}", i % 2));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(&clip, folder.join(format!("v{i}.webm"))).unwrap();
    }
    input
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

/// Decodes COCO's run lengths by the published rule.
fn decoded(counts: &str, size: usize) -> Vec<u8> {
    let (mut runs, mut bytes): (Vec<i64>, _) = (Vec::new(), counts.bytes().peekable());
    while bytes.peek().is_some() {
        let (mut x, mut shift) = (0i64, 0);
        loop {
            let c = i64::from(bytes.next().unwrap()) - 48;
            x |= (c & 0x1f) << shift;
            shift += 5;
            if c & 0x20 == 0 {
                if c & 0x10 != 0 {
                    x |= -1 << shift;
                }
                break;
            }
        }
        if runs.len() > 2 {
            x += runs[runs.len() - 2];
        }
        runs.push(x);
    }
    let mut out: Vec<u8> =
        runs.iter().enumerate().flat_map(|(i, n)| vec![255 * (i % 2) as u8; *n as usize]).collect();
    assert_eq!(out.len(), size);
    out.shrink_to_fit();
    out
}

#[test]
fn every_format_contains_the_same_masks() {
    let dir = tempfile::tempdir().unwrap();
    let input = videos(dir.path(), 1, "8");
    let output = dir.path().join("out");
    // With minmax every frame has a mask; the shipped model may detect nothing in such a small clip.
    let said = good(&input, &output, &["--write", "png,coco,dicom-seg", "--mask-mode", "minmax"]);
    assert!(said.contains("1 videos done, 0 done before"), "{said}");
    let folder = output.join("room0/v0.webm");
    let summary = json(&folder.join("summary.json"));
    assert_eq!((summary["frames"].as_u64(), summary["marked_frames"].as_u64()), (Some(8), Some(8)));
    let coco = json(&folder.join("coco.json"));
    assert_eq!(
        (coco["images"].as_array().unwrap().len(), coco["annotations"].as_array().unwrap().len()),
        (8, 8)
    );
    let seg = dicom_object::open_file(folder.join("segmentation-0001.dcm")).unwrap();
    let number = |name: &str| seg.element_by_name(name).unwrap().to_int::<usize>().unwrap();
    let (w, h) = (number("Columns"), number("Rows"));
    assert_eq!((w, h, number("NumberOfFrames")), (96, 64, 8));
    let bits = seg.element_by_name("PixelData").unwrap().to_bytes().unwrap().into_owned();
    let mut inside = 0;
    for (i, annotation) in coco["annotations"].as_array().unwrap().iter().enumerate() {
        let png = image::open(folder.join(format!("masks/{i:06}.png"))).unwrap().into_luma8();
        let columns = decoded(annotation["segmentation"]["counts"].as_str().unwrap(), w * h);
        for (x, y, pixel) in png.enumerate_pixels() {
            let (x, y) = (x as usize, y as usize);
            assert_eq!(columns[x * h + y], pixel.0[0], "frame {i} at {x},{y}");
            let at = i * w * h + y * w + x;
            assert_eq!(bits[at / 8] >> (at % 8) & 1 == 1, pixel.0[0] > 0, "frame {i} at {x},{y}");
            inside += u64::from(pixel.0[0] > 0);
        }
    }
    let areas: u64 =
        coco["annotations"].as_array().unwrap().iter().map(|a| a["area"].as_u64().unwrap()).sum();
    assert!(inside > 0 && areas == inside, "{areas} {inside}");
    let csv = std::fs::read_to_string(folder.join("frames.csv")).unwrap();
    assert_eq!(csv.lines().count(), 9);
    let page = std::fs::read_to_string(output.join("index.html")).unwrap();
    assert!(page.contains("1 of 1 videos done, 0 failed") && page.contains("<svg"), "{page}");
}

#[test]
fn a_bad_file_is_reported_and_finished_videos_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let input = videos(dir.path(), 2, "3");
    std::fs::write(input.join("room0/broken.mp4"), b"not a video").unwrap();
    let output = dir.path().join("out");
    let said = bad(&input, &output, &["--jobs", "2"]);
    assert!(said.contains("2 videos done, 0 done before, 0 processed elsewhere, 1 failed"), "{said}");
    assert!(said.contains("failed: room0/broken.mp4: video: "), "{said}");
    let csv = std::fs::read_to_string(output.join("summary.csv")).unwrap();
    assert_eq!((csv.matches(",done,").count(), csv.matches(",failed,").count()), (2, 1), "{csv}");
    let first = std::fs::metadata(output.join("room0/v0.webm/summary.json")).unwrap().modified().unwrap();
    std::fs::remove_file(input.join("room0/broken.mp4")).unwrap();
    let said = good(&input, &output, &[]);
    assert!(said.contains("0 videos done, 2 done before"), "{said}");
    assert_eq!(
        std::fs::metadata(output.join("room0/v0.webm/summary.json")).unwrap().modified().unwrap(),
        first
    );
    let said = bad(&input, &output, &["--threshold", "0.7"]);
    assert!(said.contains("other settings") && said.contains("--redo"), "{said}");
    assert!(good(&input, &output, &["--threshold", "0.7", "--redo"]).contains("2 videos done"));
    assert_eq!(json(&output.join("room1/v1.webm/summary.json"))["making"]["threshold"], 0.7f32);
    assert!(bad(&input, &output, &["--shard", "2/2"]).contains("from 0 to n-1"));
}

fn summaries(output: &Path) -> BTreeSet<PathBuf> {
    let pattern = |room: &str| std::fs::read_dir(output.join(room)).into_iter().flatten();
    ["room0", "room1"].iter().flat_map(|r| pattern(r)).map(|e| e.unwrap().path()).collect()
}

#[test]
fn after_a_process_is_killed_no_video_is_lost_or_processed_twice() {
    const COUNT: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let input = videos(dir.path(), COUNT, "12");
    let output = dir.path().join("out");
    let start = || program(&input, &output, &["--write", "png"]).spawn().unwrap();
    let mut victim = start();
    let others: Vec<Child> = (0..2).map(|_| start()).collect();
    // One process is killed (SIGKILL) as soon as it may be processing a video.
    let begin = Instant::now();
    let work = output.join(".autosam/work");
    while std::fs::read_dir(&work).map_or(0, Iterator::count) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "no process began");
        std::thread::sleep(Duration::from_millis(2));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    let mut done = 0;
    for other in others {
        let finished = other.wait_with_output().unwrap();
        assert!(finished.status.success(), "{}", text(&finished));
        let said = text(&finished);
        done +=
            said.split(" videos done").next().unwrap().rsplit('\n').next().unwrap().parse::<usize>().unwrap();
    }
    let there = summaries(&output);
    // The killed process's finished videos count too, and no video is counted twice.
    assert!(done <= there.len(), "{done} of {}", there.len());
    // The next run processes the remaining videos.
    let said = good(&input, &output, &["--write", "png"]);
    let left = COUNT - there.len();
    assert!(said.contains(&format!("{left} videos done, {} done before", there.len())), "{said}");
    assert_eq!(summaries(&output).len(), COUNT);
    for folder in summaries(&output) {
        assert_eq!(json(&folder.join("summary.json"))["frames"], 12);
        assert_eq!(std::fs::read_dir(folder.join("masks")).unwrap().count(), 12);
    }
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "work was left behind");
}
