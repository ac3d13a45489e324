//! Synthetic sequences: the same bytes for the same seed, exact and binary masks, SUN-SEG's layout.

use autosam::Error;
use autosam::synth::{DatasetConfig, Sequence, SequenceConfig, sequence_seed, write_dataset};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

fn config(frames: usize) -> SequenceConfig {
    SequenceConfig { width: 160, height: 128, frames, polyps: true }
}

fn dataset(sequences: usize, negatives: usize, frames: usize) -> DatasetConfig {
    DatasetConfig { sequence: config(frames), sequences, negatives, seed: 5, ..DatasetConfig::default() }
}

fn write(dir: &Path, config: &DatasetConfig) -> autosam::Result<autosam::synth::Summary> {
    write_dataset(dir, config, &AtomicBool::new(false), |_, _| Ok(()))
}

/// Every file below `dir` with its bytes.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn binary(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_autosam-video")).arg("synth").args(args).output().unwrap()
}

#[test]
fn frames_are_a_pure_function_of_seed_and_number() {
    let (a, b) = (Sequence::new(9, config(12)).unwrap(), Sequence::new(9, config(12)).unwrap());
    let last = a.frame(11);
    assert_eq!(a.frame(3), b.frame(3));
    assert_eq!(last, b.frame(11), "the order of frames must not matter");
    let other = Sequence::new(10, config(12)).unwrap();
    assert_ne!(a.frame(3).0, other.frame(3).0);
    assert_ne!(a.frame(3).0, a.frame(4).0, "the camera moves");
}

#[test]
fn masks_are_binary_and_polyps_come_in_a_realistic_range_of_sizes() {
    let mut areas = Vec::new();
    for seed in 0..10 {
        let sequence = Sequence::new(seed, config(80)).unwrap();
        for i in (0..80).step_by(8) {
            let (frame, mask) = sequence.frame(i);
            assert_eq!(frame.dimensions(), (160, 128));
            assert_eq!(mask.dimensions(), (160, 128));
            assert!(mask.pixels().all(|p| p.0[0] == 0 || p.0[0] == 255));
            areas.push(mask.pixels().filter(|p| p.0[0] > 0).count() as f32 / (160.0 * 128.0));
        }
    }
    let empty = areas.iter().filter(|a| **a == 0.0).count();
    let mut seen: Vec<f32> = areas.iter().copied().filter(|a| *a > 0.0).collect();
    seen.sort_by(f32::total_cmp);
    let median = seen[seen.len() / 2];
    assert!(seen.len() >= 50, "polyps in {} of {} frames", seen.len(), areas.len());
    assert!(empty >= 5, "{empty} of {} frames without polyp", areas.len());
    assert!(*seen.last().unwrap() < 0.5, "largest {}", seen.last().unwrap());
    assert!((0.005..0.15).contains(&median), "median {median}");
}

#[test]
fn masks_follow_the_edges_in_the_frame() {
    // The image's contrast must be higher at the mask's edge than at the same edge moved by a fifth of the image. Comparing
    // frames with and without polyps directly would need their exposure and compression.
    let (mut at_edge, mut elsewhere) = (0.0f64, 0.0f64);
    for seed in 20..32 {
        let sequence = Sequence::new(seed, config(30)).unwrap();
        for i in [0, 10, 20, 29] {
            let (frame, mask) = sequence.frame(i);
            let grey = |x: u32, y: u32| frame.get_pixel(x, y).0.iter().map(|c| *c as f64).sum::<f64>();
            let contrast = |x: u32, y: u32| {
                (grey(x + 1, y) - grey(x - 1, y)).abs() + (grey(x, y + 1) - grey(x, y - 1)).abs()
            };
            for y in 20..108 {
                for x in 40..120 {
                    if mask.get_pixel(x, y) != mask.get_pixel(x + 1, y) {
                        at_edge += contrast(x, y);
                        elsewhere += 0.5 * (contrast(x - 30, y) + contrast(x + 30, y));
                    }
                }
            }
        }
    }
    assert!(at_edge > 1.2 * elsewhere, "{at_edge} at edges, {elsewhere} elsewhere");
}

#[test]
fn sequences_without_polyps_have_empty_masks() {
    let sequence = Sequence::new(3, SequenceConfig { polyps: false, ..config(40) }).unwrap();
    for i in (0..40).step_by(5) {
        let (frame, mask) = sequence.frame(i);
        assert!(mask.pixels().all(|p| p.0[0] == 0));
        assert!(frame.pixels().any(|p| p.0[0] > 60), "frame {i} is black");
    }
}

#[test]
fn layout_counts_and_bytes_do_not_depend_on_threads() {
    let (one, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = dataset(2, 1, 11);
    let threads = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let summary = threads(1).install(|| write(one.path(), &config)).unwrap();
    threads(3).install(|| write(three.path(), &config)).unwrap();
    assert_eq!((summary.sequences, summary.frames), (3, 33));
    let files = tree(one.path());
    assert_eq!(files, tree(three.path()));
    assert_eq!(files.len(), 2 * 2 * 11 + 11);
    for case in 1..=2 {
        for frame in 1..=11 {
            let name = format!("synth_{case:04}-1_a1_image{frame:05}");
            assert!(files.contains_key(&format!("TrainDataset/Frame/case{case}_1/{name}.jpg")));
            let mask = &files[&format!("TrainDataset/GT/case{case}_1/{name}.png")];
            let mask = image::load_from_memory(mask).unwrap();
            assert_eq!((mask.width(), mask.height()), (160, 128));
        }
    }
    assert!(files.contains_key("SUN-Negative/case1/synth_0001-1_a1_image00001.jpg"));

    // Sequence 2 equals the library's sequence of that number.
    let sequence = Sequence::new(sequence_seed(5, 1, true), config.sequence.clone()).unwrap();
    let mask = &files["TrainDataset/GT/case2_1/synth_0002-1_a1_image00004.png"];
    assert_eq!(image::load_from_memory(mask).unwrap().into_luma8(), sequence.frame(3).1);
}

#[test]
fn stopping_leaves_complete_sequences_only() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let mut frames = 0;
    let result = write_dataset(dir.path(), &dataset(3, 0, 10), &stop, |_, _| {
        frames += 1;
        stop.store(frames >= 12, Ordering::Relaxed);
        Ok(())
    });
    // With many threads the second sequence may be complete before the flag is checked.
    assert!(matches!(result, Err(Error::Interrupted)));
    let files = tree(dir.path());
    assert_eq!(files.len() % 20, 0, "{:?}", files.keys());
    assert!(!files.is_empty() && files.len() < 60);
    assert!(files.keys().all(|f| f.starts_with("TrainDataset/")), "{:?}", files.keys());
}

#[test]
fn a_folder_that_is_not_empty_needs_force() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.txt"), "keep").unwrap();
    let mut config = dataset(1, 0, 2);
    let text = write(dir.path(), &config).unwrap_err().to_string();
    assert!(text.contains("is not empty") && text.contains("--force"), "{text}");
    assert_eq!(tree(dir.path()).len(), 1);
    config.force = true;
    config.split = "TestEasyDataset/Unseen".into();
    write(dir.path(), &config).unwrap();
    config.sequence.frames = 1;
    write(dir.path(), &config).unwrap();
    let names: Vec<String> = tree(dir.path()).into_keys().collect();
    assert_eq!(
        names,
        [
            "TestEasyDataset/Unseen/Frame/case1_1/synth_0001-1_a1_image00001.jpg",
            "TestEasyDataset/Unseen/GT/case1_1/synth_0001-1_a1_image00001.png",
            "mine.txt"
        ]
    );
}

#[test]
fn invalid_values_are_reported_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let text = |change: &dyn Fn(&mut DatasetConfig)| {
        let mut config = dataset(1, 0, 2);
        change(&mut config);
        write(dir.path(), &config).unwrap_err().to_string()
    };
    assert_eq!(text(&|c| c.sequence.width = 8), "synth: width 8 is not within 32 and 4096");
    assert_eq!(text(&|c| c.sequence.height = 5000), "synth: height 5000 is not within 32 and 4096");
    assert_eq!(text(&|c| c.sequence.frames = 0), "synth: a sequence needs at least 1 frame");
    assert_eq!(text(&|c| c.sequences = 0), "synth: nothing to write: 0 sequences and 0 negatives");
    assert_eq!(text(&|c| c.quality = 0), "synth: JPEG quality 0 is not within 1 and 100");
    assert!(text(&|c| c.split = "../out".into()).contains("is not a folder below"));
    assert!(tree(dir.path()).is_empty(), "nothing is written for bad values");
}

#[test]
fn the_command_writes_a_data_set_and_reports_bad_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/set");
    let path = out.to_str().unwrap();
    let run = binary(&["--out", path, "--sequences", "1", "--frames", "2", "--seed", "4", "--size", "96x64"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(String::from_utf8_lossy(&run.stdout).contains("1 sequences, 2 frames"));
    assert_eq!(tree(&out).len(), 4);

    let again = binary(&["--out", path, "--sequences", "1", "--frames", "2"]);
    assert!(!again.status.success());
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("is not empty; choose another folder, or --force")
    );

    let size = binary(&["--out", path, "--size", "640"]);
    assert!(!size.status.success());
    assert!(String::from_utf8_lossy(&size.stderr).contains("expected WIDTHxHEIGHT, e.g. 640x512"));
}
