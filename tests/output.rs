//! Closed or full standard output and standard error, as with `autosam-video models list | head -1`.
#![cfg(feature = "archive")]

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autosam-video"));
    command.args(args);
    command
}

/// The writing end of a pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn commands_succeed_if_nobody_reads_their_output() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for part in ["images", "masks"] {
        std::fs::create_dir_all(data.join(part)).unwrap();
        let mut image = image::GrayImage::new(32, 32);
        image.put_pixel(9, 9, image::Luma([255]));
        image.save(data.join(part).join("a.png")).unwrap();
    }
    let (folder, output) = (data.to_str().unwrap(), dir.path().join("out"));
    let run = ["run", "--device", "cpu", "--input", folder, "--output", output.to_str().unwrap()];
    let commands: [&[&str]; 9] = [
        &["--help"],
        &["--version"],
        &["models", "list"],
        &["models", "show"],
        &["completions", "bash"],
        &["config", "schema"],
        &["data", "check", folder],
        &["eval", "--device", "cpu", "--data", folder],
        &run,
    ];
    for args in commands {
        let done = program(args).stdout(closed()).output().unwrap();
        assert!(done.status.success(), "{args:?}: {:?} {}", done.status, errors(&done));
        assert!(!errors(&done).contains("panicked"), "{args:?}: {}", errors(&done));
        let done = program(args).stdout(closed()).stderr(closed()).output().unwrap();
        assert!(done.status.success(), "{args:?} without stderr: {:?}", done.status);
    }
    assert!(output.is_dir(), "the output must still be written");
}

#[test]
fn errors_keep_their_exit_status_if_nobody_reads_them() {
    let missing = ["run", "--input", "/nonexistent.mp4", "--output", "/nonexistent.webm"];
    let status = program(&missing).stderr(closed()).env("AUTOSAM_LOG", "trace").status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let done = program(&["models", "list"]).stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let text = errors(&done);
    assert!(text.starts_with("error: cannot write to standard output: No space left"), "{text}");
}
