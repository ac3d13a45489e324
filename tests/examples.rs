//! Runs the documented examples that need neither camera nor display.

use parking_lot::{Mutex, MutexGuard};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs one test at a time. Cameras and pipelines run in real time, and a slow reader would lose frames.
fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock()
}

/// The folder of build outputs: the program, the plugin, and the examples in `examples/`.
fn built() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_autosam-video")).parent().unwrap().to_owned()
}

/// The freshly built plugin, which `cargo test` leaves in `deps`; the file next to the program may be older.
fn plugin() -> PathBuf {
    built().join("deps/libgstautosam.so")
}

/// Whether `needed` exists; prints a note if not.
fn there(needed: &Path) -> bool {
    if !needed.exists() {
        eprintln!("SKIPPED: {} is missing (cargo test --release --workspace builds it)", needed.display());
    }
    needed.exists()
}

/// Whether Debian's Python has these GStreamer bindings; prints a note if not.
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

/// `program` in an environment with the freshly built program and plugin.
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

/// Runs `program` and returns its output.
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
fn fine_tuning_on_synthetic_data_produces_a_model() {
    let _turn = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let said = example("finetune.sh", &[Path::new("out")], dir.path());
    assert!(said.contains("mean Dice"), "{said}");
    assert!(dir.path().join("out/run/model.safetensors").exists());
}

#[test]
fn pipelines_run_and_record() {
    let _turn = exclusive();
    if !there(&plugin()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (clip, recorded) = (clip(dir.path()), dir.path().join("recorded.mkv"));
    example("pipelines.sh", &[Path::new("file"), &clip], dir.path());
    example("pipelines.sh", &[Path::new("record"), &clip, &recorded], dir.path());
    assert!(recorded.metadata().unwrap().len() > 500);
}

/// Ends a server when its test ends in any way.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_rtsp_server_serves_a_clip_with_and_without_overlay() {
    let _turn = exclusive();
    if !there(&plugin()) || !python(&["GstRtspServer"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clip = clip(dir.path());
    for overlay in [false, true] {
        let mut server = command(&root().join("examples/rtsp_server.py"), dir.path());
        server.arg(&clip).args(["--port", "0"]).args(overlay.then_some("--marked")).stdout(Stdio::piped());
        let mut server = Server(server.spawn().unwrap());
        let mut address = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = Path::new(address.trim());
        let output = dir.path().join(if overlay { "overlay.webm" } else { "camera.webm" });
        let args = [Path::new("run"), Path::new("--input"), address, Path::new("--output"), &output];
        let said = said(Path::new(env!("CARGO_BIN_EXE_autosam-video")), &args, dir.path());
        assert!(said.contains("frames in"), "{said}");
        assert!(output.metadata().unwrap().len() > 500);
        if !overlay {
            example("pipelines.sh", &[Path::new("rtsp"), address], dir.path());
        }
    }
}

/// The output so far is kept, the error is reported, and the program does not wait for the server.
#[test]
fn a_camera_that_goes_silent_ends_the_run() {
    let _turn = exclusive();
    if !python(&["GstRtspServer"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.mp4");
    let synth =
        ["synth", "--sequences", "1", "--frames", "300", "--size", "64x64", "--out", "data", "--clip"];
    let program = Path::new(env!("CARGO_BIN_EXE_autosam-video"));
    assert!(command(program, dir.path()).args(synth).arg(&long).status().unwrap().success());
    let mut server = command(&root().join("examples/rtsp_server.py"), dir.path());
    let mut server = Server(server.arg(&long).args(["--port", "0"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut address = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let output = dir.path().join("out.webm");
    let mut run = command(program, dir.path());
    run.args(["run", "--input", address.trim(), "--output"]).arg(&output).stderr(Stdio::piped());
    let mut run = run.spawn().unwrap();
    while !dir.path().join("out.webm.partial").exists() {
        assert!(run.try_wait().unwrap().is_none(), "the run ended before its first frame");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(Command::new("kill").args(["-STOP", &server.0.id().to_string()]).status().unwrap().success());
    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("no frame for 20 s"), "{said}");
    assert!(output.metadata().unwrap().len() > 500);
}

#[test]
fn masks_are_read_from_rust_and_from_python() {
    let _turn = exclusive();
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
fn the_library_writes_the_mask_of_an_image() {
    let _turn = exclusive();
    let program = built().join("examples/segment");
    if !there(&program) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, mask) = (dir.path().join("image.png"), dir.path().join("mask.png"));
    image::RgbImage::from_pixel(90, 70, image::Rgb([180, 90, 80])).save(&image).unwrap();
    said(&program, &[&image, &mask], dir.path());
    assert_eq!(image::image_dimensions(&mask).unwrap(), (90, 70));
}

/// A folder with three videos.
fn archive(dir: &Path) -> PathBuf {
    let (clip, videos) = (clip(dir), dir.join("archive/videos"));
    std::fs::create_dir_all(&videos).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::copy(&clip, videos.join(format!("{name}.mp4"))).unwrap();
    }
    videos
}

/// Modification times of the videos' summaries.
fn done(output: &Path) -> Vec<std::time::SystemTime> {
    let modified = |name| output.join(name).join("summary.json").metadata().unwrap().modified().unwrap();
    ["a.mp4", "b.mp4", "c.mp4"].map(modified).into()
}

#[test]
fn slurm_array_tasks_share_an_archive_without_repeating_work() {
    let _turn = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let (videos, output) = (archive(dir.path()), dir.path().join("archive/masks"));
    let tasks = || {
        let start = |task: &str| {
            let mut script = command(&root().join("examples/jobs/slurm-array.sh"), dir.path());
            script.env("SLURM_ARRAY_TASK_ID", task).env("SLURM_ARRAY_TASK_COUNT", "2");
            script.args([&videos, &output]).spawn().unwrap()
        };
        for mut task in [start("0"), start("1")] {
            assert!(task.wait().unwrap().success());
        }
        done(&output)
    };
    assert_eq!(tasks(), tasks());
}

#[test]
fn the_pods_of_an_indexed_job_share_an_archive() {
    let _turn = exclusive();
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path());
    let job = std::fs::read_to_string(root().join("examples/jobs/kubernetes-indexed.yaml")).unwrap();
    let shell: Vec<&str> = job
        .lines()
        .skip_while(|l| l.trim() != "- >-")
        .skip(1)
        .take_while(|l| l.trim() != "resources:")
        .collect();
    let shell = shell.join(" ").replace("/archive/", &format!("{}/archive/", dir.path().display()));
    assert!(shell.contains("$JOB_COMPLETION_INDEX/8") && job.contains("completions: 8"), "{shell}");
    for index in 0..8 {
        let mut pod = command(Path::new("/bin/sh"), dir.path());
        let status =
            pod.args(["-c", &shell]).env("JOB_COMPLETION_INDEX", index.to_string()).status().unwrap();
        assert!(status.success(), "pod {index}");
    }
    assert_eq!(done(&dir.path().join("archive/masks")).len(), 3);
}

/// Uses stand-ins for `scontrol` and `srun`, which name this machine and start two processes.
#[test]
fn slurms_training_job_trains_in_two_processes() {
    let _turn = exclusive();
    let dir = tempfile::tempdir().unwrap();
    clip(dir.path());
    let stand_in = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join("bin").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    stand_in("scontrol", "echo 127.0.0.1");
    stand_in(
        "srun",
        "export SLURM_NTASKS=2\nSLURM_PROCID=1 SLURM_LOCALID=1 \"$@\" &\nSLURM_PROCID=0 SLURM_LOCALID=0 \"$@\" && wait $!",
    );
    let job = || {
        let mut script = command(&root().join("examples/jobs/slurm-train.sh"), dir.path());
        let path = format!(
            "{}:{}:{}",
            dir.path().join("bin").display(),
            built().display(),
            std::env::var("PATH").unwrap()
        );
        script
            .env("PATH", path)
            .env("SLURM_JOB_ID", std::process::id().to_string())
            .env("SLURM_JOB_NODELIST", "node");
        script.args(["--sunseg", "data", "--out", "run", "--set", "batch=2", "--set", "checkpoint_every=1"]);
        script.args(["--set", "steps=2"]).output().unwrap()
    };
    let said = job();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && text.contains("2 processes"), "{text}");
    assert!(dir.path().join("run/model.safetensors").exists());
    // After a requeue the job finds its checkpoint, here with nothing left to do.
    let again = job();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

/// Runs the Debian package's service as systemd would.
#[test]
fn the_monitor_notifies_the_service_manager() {
    let _turn = exclusive();
    if !there(&plugin()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let frames = dir.path().join("frames");
    std::fs::create_dir(&frames).unwrap();
    image::RgbImage::new(64, 48).save(frames.join("0.png")).unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_autosam-video"));
    let mut child = command(program, dir.path())
        .args(["monitor", "--no-window", "--repeat", "--http", "127.0.0.1:0", "--input"])
        .arg(&frames)
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("WATCHDOG_USEC", "400000")
        .spawn()
        .unwrap();
    let heard = || {
        let mut bytes = [0; 256];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).trim().to_owned()
    };
    let first_three = [heard(), heard(), heard()];
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(first_three, ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
}
