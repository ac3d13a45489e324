//! One run in several processes.

use super::*;

/// A free port on loopback for the processes of a run.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn two_processes_equal_one_that_accumulates_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // Each process caches its own embeddings.
    let config = TrainConfig { views: 2, schedule: Schedule::Constant, ..config(5) };
    let job = |config: TrainConfig, out: &str, rank: Option<usize>| Job {
        cache: (dir.path().join(out).join("cache"), 1 << 30),
        place: rank.map(|rank| Place {
            rank,
            size: 2,
            local_rank: rank,
            address: ("127.0.0.1".into(), port),
        }),
        ..job(config, dir.path(), out)
    };
    let one = fit_until(&job(TrainConfig { accumulate: 2, ..config.clone() }, "one", None), 0);
    one.result.unwrap();
    // Process 1 is asked to stop; both stop after the same step.
    let long = TrainConfig { steps: 6, ..config };
    let (first, second) = (job(long.clone(), "two", Some(0)), job(long, "two", Some(1)));
    let (a, b) = std::thread::scope(|scope| {
        let second = scope.spawn(|| fit_until(&second, 5));
        (fit_until(&first, 0), second.join().unwrap())
    });
    for result in [a.result, b.result] {
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    }
    assert_eq!(a.losses, b.losses, "all processes report the same loss");
    for (one, two) in one.losses.iter().zip(&a.losses) {
        assert!((one - two).abs() < 1e-6, "{one} in one process, {two} in two");
    }
    let checkpoint = |out: &str| weights::load(&dir.path().join(out).join("checkpoint.safetensors")).unwrap();
    let (one, two) = (checkpoint("one"), checkpoint("two"));
    let mut compared = 0;
    for (name, tensor) in one.tensors.iter().filter(|(n, _)| n.starts_with("param/")) {
        // Running statistics differ: one process updates them twice per step, two processes average them.
        if !autosam::train::params::is_buffer(name) {
            let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(tensor), values(&two.tensors[name]), "{name}");
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared} tensors");
    assert!(dir.path().join("two/cache/rank-1").is_dir());
}

/// If one of two processes is killed, the other reports it, and the resumed run ends with the weights of an uninterrupted run.
#[test]
fn a_killed_process_ends_the_run_and_resume_continues_it() {
    let dir = tempfile::tempdir().unwrap();
    images(&dir.path().join("data"));
    let steps = 12;
    let config = TrainConfig { checkpoint_every: 1, ..config(steps) };
    std::fs::write(dir.path().join("config.toml"), toml::to_string(&config).unwrap()).unwrap();
    let sam = small_sam(dir.path());
    let start = |out: &str, rank: usize, port: u16, resume: bool| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_autosam-video"));
        command.arg("train").arg("--config").arg(dir.path().join("config.toml")).arg("--sam").arg(&sam);
        command.arg("--data").arg(dir.path().join("data")).arg("--out").arg(dir.path().join(out));
        command.args(resume.then_some("--resume"));
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string()).env("WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let both = |out: &str, resume: bool| {
        let port = free_port();
        let processes = [start(out, 0, port, resume), start(out, 1, port, resume)];
        processes.map(|p| p.wait_with_output().unwrap())
    };
    assert!(both("whole", false).iter().all(|p| p.status.success()));

    let port = free_port();
    let (mut first, mut second) = (start("broken", 0, port, false), start("broken", 1, port, false));
    let log = dir.path().join("broken/log.jsonl");
    let done = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    while done() < 3 {
        assert!(first.try_wait().unwrap().is_none(), "the run ended before its third step");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    second.kill().unwrap();
    second.wait().unwrap();
    let first = first.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&first.stderr);
    assert!(!first.status.success() && text.contains("process 1 of the run is gone"), "{text}");
    assert!((done() as u64) < steps);

    assert!(both("broken", true).iter().all(|p| p.status.success()));
    assert_eq!(bytes(dir.path(), "whole"), bytes(dir.path(), "broken"));
    assert_eq!(done() as u64, steps);
}
