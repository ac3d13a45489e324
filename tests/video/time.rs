//! Rows 7, 8 and 12: every output keeps the input's times, relative to the first frame.

use super::support::*;
use std::path::Path;

/// Processes the file by itself and as an archive; returns the times in `frames.csv` and the summary.
fn through(input: &Path) -> (Vec<f64>, serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let read = times(input);
    let name = input.file_name().unwrap();
    for ending in ["mp4", "mkv", "webm"] {
        let output = dir.path().join(format!("o.{ending}"));
        good(input, &output, &[]);
        let written = times(&output);
        assert!(same_times(&read, &written), "{name:?} to {ending}: {read:?} {written:?}");
    }
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(input, folder.join(name)).unwrap();
    let output = dir.path().join("out");
    good(&folder, &output, &["--write", "coco"]);
    let csv = csv_times(&output.join(name).join("frames.csv"));
    assert!(same_times(&read, &csv), "{name:?}: {read:?} {csv:?}");
    assert_eq!(csv[0], 0.0, "{name:?}");
    (csv, json(&output.join(name).join("summary.json")))
}

#[test]
fn a_variable_frame_rate_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vfr.mp4");
    let times: Vec<u64> = (0..60).filter(|n| *n < 20 || n % 3 == 0).map(|n| n * 1000 / 30).collect();
    make_timed(&times, "30/1", &format!("{H264} ! mp4mux ! filesink location={}", path.display()));
    let (csv, summary) = through(&path);
    let last = *csv.last().unwrap();
    assert!((last - 1.9).abs() < 0.002, "{last}");
    let rate = summary["frames_per_second"].as_f64().unwrap();
    assert!((rate - (times.len() - 1) as f64 / 1.9).abs() < 0.1, "{rate}");
    assert!((summary["seconds"].as_f64().unwrap() - 1.93).abs() < 0.05, "{summary}");
}

#[test]
fn a_webm_without_a_rate_keeps_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.webm");
    let times: Vec<u64> = (0..25).map(|n| n * 20).collect();
    let chain = format!(
        "videoconvert ! vp8enc deadline=1 timebase=1/1000 ! webmmux ! filesink location={}",
        path.display()
    );
    // Browsers record such files.
    make_timed(&times, "0/1", &chain);
    let (csv, summary) = through(&path);
    assert!((csv[24] - 0.48).abs() < 0.002, "{csv:?}");
    assert!((summary["frames_per_second"].as_f64().unwrap() - 50.0).abs() < 0.1, "{summary}");
}

#[test]
fn frames_csv_detections_and_dicom_count_from_the_first_frame() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::create_dir(&input).unwrap();
    let source = moving(12, "width=96,height=64,framerate=25/1");
    let h264 = H264.replace("x264enc", "x264enc bframes=3 b-adapt=false");
    for (muxer, name) in [("mp4mux", "bf.mp4"), ("mpegtsmux", "bf.ts"), ("matroskamux", "bf.mkv")] {
        make(&format!("{source} ! {h264} ! {muxer} ! filesink location={}", input.join(name).display()));
    }
    let output = dir.path().join("out");
    good(&input, &output, &["--write", "dicom-seg", "--mask-mode", "minmax"]);
    let expected: Vec<f64> = (0..12).map(|n| f64::from(n) * 0.04).collect();
    for name in ["bf.mp4", "bf.ts", "bf.mkv"] {
        let folder = output.join(name);
        let csv = csv_times(&folder.join("frames.csv"));
        assert!(
            csv.len() == 12 && csv.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.0011),
            "{name}: {csv:?}"
        );
        let summary = json(&folder.join("summary.json"));
        assert_eq!(summary["frames_per_second"], 25.0, "{name}");
        let stretches = &summary["stretches_s"];
        assert_eq!(stretches[0][0], 0.0, "{name}: {summary}");
        let seg = dicom_object::open_file(folder.join("segmentation-0001.dcm")).unwrap();
        let groups = seg.element_by_name("PerFrameFunctionalGroupsSequence").unwrap().items().unwrap();
        let offsets: Vec<f64> = groups
            .iter()
            .map(|group| {
                let position = group.element_by_name("TemporalPositionSequence").unwrap().items().unwrap();
                position[0].element_by_name("TemporalPositionTimeOffset").unwrap().to_float64().unwrap()
            })
            .collect();
        assert_eq!(offsets.len(), 12);
        assert!(offsets.iter().zip(&csv).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {offsets:?} {csv:?}");
    }
}

fn rate(rate: &str, expected: f64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.mp4");
    let source = moving(8, &format!("width=64,height=48,framerate={rate}"));
    make(&format!("{source} ! {H264} ! mp4mux ! filesink location={}", path.display()));
    let (csv, summary) = through(&path);
    assert!((summary["frames_per_second"].as_f64().unwrap() - expected).abs() < 1e-6, "{summary}");
    assert!((csv[7] - 7.0 / expected).abs() < 1e-4, "{csv:?}");
}

#[test]
fn the_film_rate_of_23_976_is_kept() {
    rate("24000/1001", 24000.0 / 1001.0);
}

#[test]
fn the_ntsc_rate_of_29_97_is_kept() {
    rate("30000/1001", 30000.0 / 1001.0);
}

#[test]
fn the_rate_of_50_is_kept() {
    rate("50/1", 50.0);
}

#[test]
fn the_ntsc_rate_of_59_94_is_kept() {
    rate("60000/1001", 60000.0 / 1001.0);
}
