//! Labelling a clip of synthetic endoscopy over HTTP, as the page does: clicks, propagation, a killed program, the data set.

use autosam::label::frames::{Frames, Part};
use autosam::synth::{Sequence, SequenceConfig};
use autosam::video::{FrameRate, Shape, Writer};
use image::GrayImage;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// One of the sequences of tests/pointing.rs.
const SEED: u64 = 207;
/// Frames of the clip. The click is on frame `CLICKED`.
const FRAMES: usize = 14;
const CLICKED: usize = 1;

fn is_set(value: u8) -> bool {
    value > 127
}

fn part(truth: &GrayImage) -> f64 {
    truth.iter().filter(|v| is_set(**v)).count() as f64 / truth.len() as f64
}

fn iou(mask: &GrayImage, truth: &GrayImage) -> f64 {
    let pairs = || mask.iter().zip(truth.iter()).map(|(m, t)| (is_set(*m), is_set(*t)));
    let (both, any) = (pairs().filter(|p| p.0 && p.1).count(), pairs().filter(|p| p.0 || p.1).count());
    both as f64 / any.max(1) as f64
}

/// The middle of the polyp's longest row, as fractions of the frame.
fn middle(truth: &GrayImage) -> (f64, f64) {
    let (w, h) = truth.dimensions();
    let (mut best, mut at) = (0, (0, 0));
    for y in 0..h {
        let mut run = 0;
        for x in 0..w {
            run = if is_set(truth.get_pixel(x, y).0[0]) { run + 1 } else { 0 };
            if run > best {
                (best, at) = (run, (x + 1 - run / 2, y));
            }
        }
    }
    (f64::from(at.0) / f64::from(w), (f64::from(at.1) + 0.5) / f64::from(h))
}

/// Writes a clip that shows a polyp from the beginning, and returns its truth.
fn clip(path: &Path) -> Vec<GrayImage> {
    let sequence = Sequence::new(SEED, SequenceConfig { frames: 120, ..SequenceConfig::default() }).unwrap();
    let start =
        (0..60).step_by(3).find(|i| (0.015..0.2).contains(&part(&sequence.frame(*i).1))).expect("a polyp");
    let first = start.saturating_sub(CLICKED);
    let frames: Vec<_> = (first..first + FRAMES).map(|i| sequence.frame(i)).collect();
    let shape = Shape::square(frames[0].0.dimensions());
    let mut writer = Writer::create(path, shape, FrameRate::DEFAULT).unwrap();
    frames.iter().for_each(|(rgb, _)| writer.write(rgb).unwrap());
    writer.finish().unwrap();
    frames.into_iter().map(|(_, truth)| truth).collect()
}

fn command(args: &[&str], clip: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autosam-video"));
    command.arg("label").args(args).arg("--input").arg(clip).arg("--output").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The message with which the program ends instead of serving.
fn refused(args: &[&str], clip: &Path, out: &Path) -> String {
    let mut child = command(args, clip, out).spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let done = child.wait_with_output().unwrap();
    assert!(!done.status.success() && !text(&done).contains("panicked"), "{}", text(&done));
    text(&done)
}

/// The running program.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(clip: &Path, out: &Path) -> Self {
        let mut child =
            command(&["--http", "127.0.0.1:0"], clip, out).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().trim_start_matches("http://").trim_end_matches('/');
        Self { address: address.parse().unwrap_or_else(|_| panic!("{line:?}")), child }
    }

    /// Status and body of the answer.
    fn ask(&self, request: &str, origin: Option<&str>) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let origin = origin.map_or_else(String::new, |origin| format!("Origin: {origin}\r\n"));
        write!(stream, "{request} HTTP/1.1\r\nHost: {}\r\n{origin}\r\n", self.address).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer[head + 4..].to_vec())
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let (status, body) = self.ask(&format!("GET {path}"), None);
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&self.get("/state.json")).unwrap()
    }

    /// A change as the page sends it; the state after it, or the reason why it is refused.
    fn post(&self, path: &str) -> Result<Value, String> {
        let origin = format!("http://{}", self.address);
        let (status, body) = self.ask(&format!("POST {path}"), Some(&origin));
        match status {
            200 => Ok(serde_json::from_slice(&body).unwrap()),
            409 => Err(String::from_utf8(body).unwrap()),
            _ => panic!("{path}: {status} {}", String::from_utf8_lossy(&body)),
        }
    }

    /// Waits for the end of propagation.
    fn propagated(&self) -> Value {
        let begin = Instant::now();
        loop {
            let state = self.state();
            if state["running"] == false {
                return state;
            }
            assert!(begin.elapsed() < Duration::from_secs(300), "{state}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The letters of the labels in `state`: m manual, e empty, p propagated, a accepted, `.` none.
fn letters(state: &Value) -> String {
    let mut letters = ".".repeat(FRAMES).into_bytes();
    for label in state["labels"].as_array().unwrap() {
        letters[label[0].as_u64().unwrap() as usize] = label[1].as_str().unwrap().as_bytes()[0];
    }
    String::from_utf8(letters).unwrap()
}

fn checks_access(program: &Program, click: &str) {
    let (port, other) = (program.address.port(), "https://evil.example");
    for origin in [None, Some(other), Some("null"), Some("http://127.0.0.1:1"), Some("http://localhost:1")] {
        assert_eq!(program.ask(&format!("POST {click}"), origin).0, 403, "{origin:?} at {port}");
    }
    for path in ["/", "/state.json", "/frame.jpg?frame=0"] {
        assert_eq!(program.ask(&format!("GET {path}"), Some(other)).0, 403, "{path}");
    }
    assert_eq!(letters(&program.state()), ".".repeat(FRAMES), "a refused request must not change a label");
}

fn checks_data_set(out: &Path, truth: &[GrayImage], labelled: std::ops::Range<usize>) {
    for (frame, truth) in truth.iter().enumerate() {
        let (image, mask) =
            (format!("Frame/clip/{frame:06}.png"), out.join(format!("GT/clip/{frame:06}.png")));
        assert_eq!(out.join(image).exists(), mask.exists());
        if !labelled.contains(&frame) && frame != 0 {
            assert!(!mask.exists(), "frame {frame}");
            continue;
        }
        let mask = image::open(&mask).unwrap().into_luma8();
        if frame == 0 {
            assert!(mask.iter().all(|v| *v == 0), "labelled as polyp-free");
            continue;
        }
        let fits = iou(&mask, truth);
        println!("frame {frame}: IoU {fits:.3}");
        assert!(fits >= 0.6, "frame {frame}: IoU {fits:.3}");
    }
    let coco: Value = serde_json::from_slice(&std::fs::read(out.join("coco.json")).unwrap()).unwrap();
    assert_eq!(coco["images"].as_array().unwrap().len(), labelled.len() + 1);
    assert_eq!(coco["annotations"].as_array().unwrap().len(), labelled.len());
    for image in coco["images"].as_array().unwrap() {
        assert!(out.join(image["file_name"].as_str().unwrap()).exists(), "{image}");
    }
    let cvat = std::fs::read_to_string(out.join("cvat.xml")).unwrap();
    assert_eq!(cvat.matches("<mask ").count(), labelled.len());
    assert_eq!(cvat.matches("source=\"manual\"").count(), 1);
    let check =
        Command::new(env!("CARGO_BIN_EXE_autosam-video")).args(["data", "check"]).arg(out).output().unwrap();
    println!("{}", text(&check));
    assert!(check.status.success(), "{}", text(&check));
}

#[test]
fn a_clip_is_labelled_over_http_survives_a_kill_and_becomes_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("clip.mp4"), dir.path().join("out"));
    let truth = clip(&path);
    let program = Program::start(&path, &out);
    let (x, y) = middle(&truth[CLICKED]);
    let click = format!("/prompt?frame={CLICKED}&point={x:.5},{y:.5}");
    checks_access(&program, &click);

    // What cannot be done is said.
    assert!(program.post("/undo").unwrap_err().contains("nothing to undo"));
    assert!(program.post("/propagate?frame=1").unwrap_err().contains("click a polyp"));
    assert!(
        program.post("/prompt?frame=1&background=0.5,0.5").unwrap_err().contains("click the polyp first")
    );
    assert!(program.post("/prompt?frame=99&point=0.5,0.5").unwrap_err().contains("no such frame"));
    let origin = format!("http://{}", program.address);
    for wrong in
        ["/prompt?frame=1&point=2,0", "/prompt?frame=x&point=0.5,0.5", "/empty", "/accept", "/nothing"]
    {
        assert_eq!(program.ask(&format!("POST {wrong}"), Some(&origin)).0, 400, "{wrong}");
    }

    program.post(&click).unwrap();
    assert!(image::load_from_memory(&program.get("/mask.png?frame=1")).unwrap().color().has_alpha());
    assert_eq!(image::load_from_memory(&program.get("/frame.jpg?frame=1")).unwrap().width(), 640);
    // A frame that a person labelled ends propagation and stays.
    program.post("/empty?frame=4").unwrap();
    program.post("/propagate?frame=1").unwrap();
    let state = program.propagated();
    assert_eq!(letters(&state), ".mppe.........", "{state}");
    assert!(state["ended"].as_str().unwrap().contains("frame 4 is labelled"), "{state}");
    // A propagation is one change.
    assert_eq!(letters(&program.post("/undo").unwrap()), ".m..e.........");
    assert_eq!(letters(&program.post("/undo").unwrap()), ".m............");
    program.post("/propagate?frame=1").unwrap();
    let state = program.propagated();
    assert_eq!(letters(&state), ".mpppppppppppp", "{state}");
    for label in &state["labels"].as_array().unwrap()[1..] {
        assert!((0.0..=1.0).contains(&label[2].as_f64().unwrap()), "{label}");
    }
    program.post("/empty?frame=0").unwrap();
    let in_use = refused(&["--http", "127.0.0.1:0"], &path, &out);
    assert!(in_use.contains("another `autosam-video label`"), "{in_use}");

    // Killed without a warning: the next start has every label.
    let before = program.state();
    drop(program);
    let mut program = Program::start(&path, &out);
    assert_eq!(program.state()["labels"], before["labels"]);
    program.post("/accept?frame=2").unwrap();
    assert!(program.post("/accept?frame=2").unwrap_err().contains("no propagated mask"));
    program.post("/accept?all").unwrap();
    // A correction replaces the mask of its frame only, and a cleared frame leaves the data set.
    let state = program.post("/save").unwrap();
    assert_eq!(letters(&state), "emaaaaaaaaaaaa");
    assert!(state["note"].as_str().unwrap().contains("13 frames with a polyp, 1 without"), "{state}");
    program.post("/prompt?frame=13&clear").unwrap();
    program.post("/prompt?frame=12&clear").unwrap();
    assert_eq!(program.state()["saved"], false);
    // Ctrl-C saves.
    let pid = rustix::process::Pid::from_child(&program.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(program.child.wait().unwrap().success());
    checks_data_set(&out, &truth, CLICKED..12);
}

#[test]
fn other_addresses_other_clips_and_too_little_memory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("clip.mp4"), dir.path().join("out"));
    clip(&path);
    for address in ["0.0.0.0:0", "192.0.2.1:8081", "[::]:0"] {
        let said = refused(&["--http", address], &path, &out);
        assert!(said.contains("is not a loopback address") && !out.exists(), "{said}");
    }
    let part = Part { from: 0.0, seconds: None, memory: 300_000 };
    let said = Frames::read(&path, &part, |_| ()).unwrap_err().to_string();
    assert!(["--from", "--seconds", "--memory-mb"].iter().all(|flag| said.contains(flag)), "{said}");
    let said = refused(&["--from", "60"], &path, &out);
    assert!(said.contains("no frame between --from and --seconds"), "{said}");

    let program = Program::start(&path, &out);
    program.post("/empty?frame=3").unwrap();
    drop(program);
    let other = dir.path().join("other.mp4");
    let mut bytes = std::fs::read(&path).unwrap();
    // Another recording of the same length. The comment's text is not decoded.
    bytes.extend_from_slice(b"\0\0\0\x08free");
    std::fs::write(&other, bytes).unwrap();
    let said = refused(&["--http", "127.0.0.1:0"], &other, &out);
    assert!(said.contains("a session of another clip") && said.contains("--output"), "{said}");
    // A part of the same clip goes on with its labels, under the numbers of the whole.
    let part = ["--http", "127.0.0.1:0", "--from", "0.1", "--seconds", "0.2"];
    let mut child = command(&part, &path, &out).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let program = Program { child, address };
    let state = program.state();
    assert_eq!((&state["first"], &state["count"]), (&Value::from(3), &Value::from(5)), "{state}");
    assert_eq!(letters(&state), "...e..........");
}
