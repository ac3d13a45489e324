//! The examples that a machine without camera and display can run, by the commands that the documentation has.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `examples/NAME` with the freshly built program and plugin in its way.
fn example(name: &str, args: &[&Path], dir: &Path) -> String {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_autosam-video")).parent().unwrap().to_owned();
    let path = format!("{}:{}", built.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new(root().join("examples").join(name))
        .args(args)
        .current_dir(dir)
        .env("PATH", path)
        .env("GST_PLUGIN_PATH", &built)
        .env("GST_REGISTRY", dir.join("registry.bin"))
        .env("SINK", "fakesink")
        .env("STEPS", "3")
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {said}");
    said
}

#[test]
fn fine_tuning_from_nothing_ends_with_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let said = example("finetune.sh", &[Path::new("out")], dir.path());
    assert!(said.contains("mean Dice"), "{said}");
    assert!(dir.path().join("out/run/model.safetensors").exists());
}

#[test]
fn pipelines_run_and_record() {
    let plugin = PathBuf::from(env!("CARGO_BIN_EXE_autosam-video")).with_file_name("libgstautosam.so");
    if !plugin.exists() {
        eprintln!("SKIPPED: {} is not built (cargo build --release --workspace)", plugin.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (clip, recorded) = (dir.path().join("clip.mp4"), dir.path().join("recorded.mkv"));
    let made = Command::new(env!("CARGO_BIN_EXE_autosam-video"))
        .args(["synth", "--sequences", "1", "--frames", "10", "--size", "128x96", "--out"])
        .arg(dir.path().join("data"))
        .arg("--clip")
        .arg(&clip)
        .status()
        .unwrap();
    assert!(made.success());
    example("pipelines.sh", &[Path::new("file"), &clip], dir.path());
    example("pipelines.sh", &[Path::new("record"), &clip, &recorded], dir.path());
    assert!(recorded.metadata().unwrap().len() > 500);
}
