//! The examples that a machine without camera and display can run, by the commands that the documentation has.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Folder of what was built: the program, the plugin, and in `examples/` the examples.
fn built() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_autosam-video")).parent().unwrap().to_owned()
}

/// The freshly built plugin: `cargo test` leaves it among its own files, and a file beside the program may be an older one.
fn plugin() -> PathBuf {
    built().join("deps/libgstautosam.so")
}

/// Whether `needed` is there; says so where it is not.
fn there(needed: &Path) -> bool {
    if !needed.exists() {
        eprintln!("SKIPPED: {} is missing (cargo test --release --workspace builds it)", needed.display());
    }
    needed.exists()
}

/// Debian's Python with these of GStreamer's bindings; says so where they are missing.
fn python(bindings: &[&str]) -> bool {
    let script = bindings.iter().fold("import gi".to_owned(), |script, name| {
        script + &format!("\ngi.require_version('{name}', '1.0')")
    });
    let found = Command::new("/usr/bin/python3").args(["-c", &script]).output();
    let found = found.is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("SKIPPED: Python has no {bindings:?} (apt install python3-gi gir1.2-gst-rtsp-server-1.0)");
    }
    found
}

/// `program`, with the freshly built program and plugin in its way.
fn command(program: &Path, dir: &Path) -> Command {
    let path = format!("{}:{}", built().display(), std::env::var("PATH").unwrap_or_default());
    let plugins = dir.join("plugins");
    std::fs::create_dir_all(&plugins).unwrap();
    let linked = plugins.join("libgstautosam.so");
    if !linked.exists() && plugin().exists() {
        std::os::unix::fs::symlink(plugin(), linked).unwrap();
    }
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env("PATH", path)
        .env("GST_PLUGIN_PATH", plugins)
        .env("GST_REGISTRY", dir.join("registry.bin"))
        .env("SINK", "fakesink")
        .env("STEPS", "3");
    command
}

/// Runs `program` and returns what it said.
fn said(program: &Path, args: &[&Path], dir: &Path) -> String {
    let output = command(program, dir).args(args).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}", program.display());
    said
}

/// Runs `examples/NAME`.
fn example(name: &str, args: &[&Path], dir: &Path) -> String {
    said(&root().join("examples").join(name), args, dir)
}

/// A short synthetic clip with a polyp in view.
fn clip(dir: &Path) -> PathBuf {
    let clip = dir.join("clip.mp4");
    let made = Command::new(env!("CARGO_BIN_EXE_autosam-video"))
        .args(["synth", "--sequences", "1", "--frames", "10", "--size", "128x96", "--out"])
        .arg(dir.join("data"))
        .arg("--clip")
        .arg(&clip)
        .status()
        .unwrap();
    assert!(made.success());
    clip
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
    if !there(&plugin()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (clip, recorded) = (clip(dir.path()), dir.path().join("recorded.mkv"));
    example("pipelines.sh", &[Path::new("file"), &clip], dir.path());
    example("pipelines.sh", &[Path::new("record"), &clip, &recorded], dir.path());
    assert!(recorded.metadata().unwrap().len() > 500);
}

/// Ends a server with its test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_rtsp_server_gives_a_camera_and_a_marked_picture() {
    if !there(&plugin()) || !python(&["GstRtspServer"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clip = clip(dir.path());
    for marked in [false, true] {
        let mut server = command(&root().join("examples/rtsp_server.py"), dir.path());
        server.arg(&clip).args(["--port", "0"]).args(marked.then_some("--marked")).stdout(Stdio::piped());
        let mut server = Server(server.spawn().unwrap());
        let mut address = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = Path::new(address.trim());
        let output = dir.path().join(if marked { "marked.webm" } else { "camera.webm" });
        let args = [Path::new("run"), Path::new("--input"), address, Path::new("--output"), &output];
        let said = said(Path::new(env!("CARGO_BIN_EXE_autosam-video")), &args, dir.path());
        assert!(said.contains("frames in"), "{said}");
        assert!(output.metadata().unwrap().len() > 500);
        if !marked {
            example("pipelines.sh", &[Path::new("rtsp"), address], dir.path());
        }
    }
}

#[test]
fn masks_are_read_from_rust_and_from_python() {
    let (masks, bus) = (built().join("examples/read_masks"), built().join("examples/watch_bus"));
    if !there(&masks) || !there(&bus) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clip = clip(dir.path());
    said(&masks, &[&clip], dir.path());
    let stats = said(&bus, &[&clip], dir.path());
    assert!(stats.contains("at the end") && stats.contains("frames=(guint64)10"), "{stats}");
    if there(&plugin()) && python(&["GstVideo"]) {
        let script = root().join("plugins/gst-autosam/examples/read_masks.py");
        said(&script, &[&clip], dir.path());
    }
}

#[test]
fn the_library_writes_the_mask_of_a_picture() {
    let program = built().join("examples/segment");
    if !there(&program) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (picture, mask) = (dir.path().join("picture.png"), dir.path().join("mask.png"));
    image::RgbImage::from_pixel(90, 70, image::Rgb([180, 90, 80])).save(&picture).unwrap();
    said(&program, &[&picture, &mask], dir.path());
    assert_eq!(image::image_dimensions(&mask).unwrap(), (90, 70));
}
