//! The command `models`.

use super::*;

#[test]
fn the_shipped_model_is_listed_shown_and_verified() {
    assert!(good(&["models", "list"]).contains("autosam-lite"));
    assert!(good(&["models", "show"]).contains("AutoSAM: SAM at 256 px"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.safetensors");
    std::fs::write(&file, autosam::model::SHIPPED).unwrap();
    assert!(good(&["models", "verify", path(&file)]).contains("sha256"));
    const MOST: usize = 20_000_000;
    assert!(autosam::model::SHIPPED.len() <= MOST);
}

#[test]
fn convert_selects_a_part_by_key_and_prints_the_selection() {
    use autosam::weights::{Dtype, load, save_safetensors};
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("two.safetensors"), dir.path().join("one.safetensors"));
    let tensor = |v: f32| candle_core::Tensor::new(&[v], &candle_core::Device::Cpu).unwrap();
    let names = [("student.module.w", 1.0), ("teacher.module.w", 2.0), ("teacher.module.b", 3.0)];
    let tensors = names.map(|(name, v)| (name.to_owned(), tensor(v))).into();
    save_safetensors(&from, &tensors, &Default::default(), Dtype::F32).unwrap();
    let said = good(&["models", "convert", path(&from), "--key", "teacher", "--out", path(&to)]);
    let taken =
        "2 tensors, taken from teacher, without the prefix module.; not taken: the top level (1 tensor)";
    assert!(said.contains(taken), "{said}");
    assert_eq!(load(&to).unwrap().tensors["w"].to_vec1::<f32>().unwrap(), [2.0]);
    assert!(!good(&["models", "convert", path(&to), "--out", path(&to)]).contains("taken"));
    let said = bad(&["models", "convert", path(&from), "--key", "ema", "--out", path(&to)]);
    assert!(
        said.contains("no part ema") && said.contains("student (1 tensor), teacher (2 tensors)"),
        "{said}"
    );
}

#[test]
fn weights_are_converted_and_fetched_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, half) = (dir.path().join("w.safetensors"), dir.path().join("half.safetensors"));
    std::fs::write(&file, autosam::model::SHIPPED).unwrap();
    good(&["models", "convert", path(&file), "--out", path(&half), "--dtype", "bf16"]);
    assert!(good(&["models", "verify", path(&half)]).contains("AutoSAM: SAM at 256 px"));
    good(&["models", "convert", path(&half), "--out", path(&half), "--image-size", "192"]);
    assert!(good(&["models", "verify", path(&half)]).contains("AutoSAM: SAM at 192 px"));
    assert!(
        bad(&["models", "convert", path(&file), "--out", path(&half), "--image-size", "100"])
            .contains("multiple of 32")
    );
    assert!(
        bad(&["models", "convert", path(&file), "--out", path(&dir.path().join("x.pth"))])
            .contains(".safetensors")
    );
    assert!(bad(&["models", "fetch", "sam-vit-x"]).contains("sam-vit-b"));
    // If nothing listens on the port, the error says where to put the file.
    let said =
        bad(&["models", "fetch", "mobile-sam", "--dir", path(dir.path()), "--url", "http://127.0.0.1:9/x"]);
    assert!(said.contains("put mobile_sam.pt (SHA-256 6dbb9052"), "{said}");
    // The same with its log as JSON: one object per line.
    let output = Command::new(env!("CARGO_BIN_EXE_autosam-video"))
        .args([
            "--log-format",
            "json",
            "models",
            "fetch",
            "mobile-sam",
            "--url",
            "http://127.0.0.1:9/x",
            "--dir",
        ])
        .arg(dir.path())
        .env("AUTOSAM_LOG", "autosam=info")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = errors.lines().find(|l| l.starts_with('{')).unwrap_or_else(|| panic!("{errors}"));
    let log: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (log["level"].as_str(), log["target"].as_str()),
        (Some("INFO"), Some("autosam_model::weights::fetch"))
    );
    let listed = good(&["models", "list"]);
    assert!(listed.contains("hardnet-85") && listed.contains("no published hash"), "{listed}");
}

#[test]
fn a_model_is_calibrated_on_labelled_frames() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("calibrated.safetensors"));
    good(&[
        "synth",
        "--out",
        path(&data),
        "--sequences",
        "1",
        "--frames",
        "8",
        "--seed",
        "3",
        "--size",
        "96x80",
    ]);
    let train = data.join("TrainDataset");
    let calibrate = ["models", "calibrate", "--every", "2", "--device", "cpu", "--out", path(&out), "--data"];
    let said = good(&[&calibrate[..], &[path(&train)]].concat());
    assert!(said.contains("on 4 frames"), "{said}");
    let losses: Vec<f64> = said
        .split("loss per pixel ")
        .nth(1)
        .unwrap()
        .split(" on ")
        .next()
        .unwrap()
        .split(" to ")
        .map(|n| n.parse().unwrap())
        .collect();
    assert!(losses[1] <= losses[0], "{said}");
    let shown = good(&["models", "show", path(&out)]);
    assert!(shown.contains("calibrated: scale"), "{shown}");
    // The numbers still have 16 bits.
    let size = |p: &Path| std::fs::metadata(p).unwrap().len();
    assert!(size(&out).abs_diff(autosam::model::SHIPPED.len() as u64) < 1000);
    let nowhere = dir.path().join("nowhere");
    let refused = bad(&[&calibrate[..], &[path(&nowhere)]].concat());
    assert!(refused.contains("nowhere"), "{refused}");
}
