//! The live benchmark and the monitor, with the element itself between their pads.

mod common;

use autosam::bench::live::{self, LiveBench};
use autosam::monitor::{Monitor, MonitorOptions};
use common::{init, model};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn properties(model: &Path) -> Vec<(String, String)> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    // Marks something in every picture.
    vec![
        pair("model-location", model.to_str().unwrap()),
        pair("threshold", "0.1"),
        pair("hold-off", "1"),
        pair("hysteresis", "0"),
        pair("expire-overlay", "0"),
    ]
}

fn pictures(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for i in 0..3u8 {
        let picture = image::RgbImage::from_fn(160, 120, |x, y| image::Rgb([(x + y) as u8, 90 + i, 60]));
        picture.save(dir.join(format!("{i}.png"))).unwrap();
    }
}

#[test]
fn the_benchmark_counts_every_frame_and_finds_no_changed_pixel() {
    init();
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("frames"));
    for (format, streams) in [("NV12", 1), ("UYVY", 1), ("RGBA", 2)] {
        let bench = LiveBench {
            format: format.into(),
            size: (320, 240),
            rate: 100,
            frames: 40,
            warm_up: 20,
            streams,
            input: Some(dir.path().join("frames")),
            check_every: 2,
            properties: properties(&model(dir.path())),
        };
        let (report, delays) = live::run(&bench).unwrap();
        let all = 40 * streams as u64;
        assert_eq!(report.frames_in, report.frames_out, "{report:?}");
        assert_eq!(report.frames_out + report.dropped, all, "{report:?}");
        assert_eq!(delays.video.len() as u64, report.frames_out);
        assert!(report.marked > 0 && report.inferred > 0, "{report:?}");
        assert_eq!(report.pixels_changed_outside_mask, Some(0), "{format}");
        assert!(report.frames_checked > 0 && report.frames_checked <= all, "{report:?}");
        assert_eq!(report.bytes_copied_per_frame, 0.0, "{format}: not in place");
        let (video, annotation) = (report.video_delay_ms.unwrap(), report.annotation_delay_ms.unwrap());
        assert!(video.p50 <= video.p99 && video.p99 <= video.max && annotation.p50 > 0.0);
    }
}

#[test]
fn the_benchmark_says_what_it_cannot_use() {
    init();
    let bench = LiveBench {
        format: "NV12".into(),
        size: (64, 64),
        rate: 30,
        frames: 1,
        warm_up: 0,
        streams: 1,
        input: None,
        check_every: 1,
        properties: vec![("no-such-thing".into(), "1".into())],
    };
    let said = |bench: &LiveBench| live::run(bench).unwrap_err().to_string();
    assert!(said(&bench).contains("no-such-thing"));
    assert!(said(&LiveBench { format: "VHS".into(), ..bench.clone() }).contains("VHS"));
    assert!(
        said(&LiveBench { input: Some("/no/such/folder".into()), ..bench.clone() })
            .contains("/no/such/folder")
    );
    assert!(live::run(&LiveBench { frames: 0, ..bench }).is_err());
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A header's value and the picture that follows it.
fn part(reader: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(text) = line.strip_prefix("Content-Length: ") {
            length = text.trim().parse().unwrap();
        }
        if line == "\r\n" && length > 0 {
            break;
        }
    }
    let mut picture = vec![0; length];
    reader.read_exact(&mut picture).unwrap();
    picture
}

#[test]
fn the_monitor_shows_pictures_figures_and_what_is_found() {
    init();
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("frames"));
    let options = MonitorOptions {
        input: dir.path().join("frames").to_str().unwrap().to_owned(),
        http: Some(([127, 0, 0, 1], 0).into()),
        window: false,
        repeat: true,
        properties: properties(&model(dir.path())),
    };
    let monitor = Monitor::start(&options).unwrap();
    let address = monitor.address().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let ends = stop.clone();
    let playing = std::thread::spawn(move || monitor.run(&ends, |_| ()));

    let page = get(address, "/");
    assert!(
        page.starts_with("HTTP/1.1 200") && page.contains("/live.mjpeg") && page.contains("nosniff"),
        "{page}"
    );
    assert!(
        get(address, "/page.js").contains("text/javascript")
            && get(address, "/page.css").contains("text/css")
    );
    assert!(get(address, "/page.css/../../Cargo.toml").starts_with("HTTP/1.1 404"));

    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /live.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    for _ in 0..3 {
        let picture =
            image::load_from_memory_with_format(&part(&mut reader), image::ImageFormat::Jpeg).unwrap();
        assert_eq!((picture.width(), picture.height()), (160, 120));
    }
    let begin = Instant::now();
    loop {
        let answer = get(address, "/state.json");
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        let state: serde_json::Value = serde_json::from_str(json).unwrap();
        if state["regions"].as_u64() > Some(0) {
            assert!(
                state["confidence"].as_f64() > Some(0.0) && state["detections"].as_u64() > Some(0),
                "{state}"
            );
            assert!(
                state["frames"].as_u64() > Some(0) && state["annotation_delay_ms"].as_f64() > Some(0.0),
                "{state}"
            );
            assert!(state["picture"].as_str().unwrap().starts_with("160 × 120"), "{state}");
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{state}");
        std::thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, Ordering::Relaxed);
    playing.join().unwrap().unwrap();
    assert!(TcpStream::connect(address).is_err(), "it serves on");
}

#[test]
fn the_monitor_ends_with_its_input_and_says_what_is_missing() {
    init();
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("frames"));
    let options = MonitorOptions {
        input: dir.path().join("frames").to_str().unwrap().to_owned(),
        http: None,
        window: false,
        repeat: false,
        properties: properties(&model(dir.path())),
    };
    Monitor::start(&options).unwrap().run(&AtomicBool::new(false), |_| ()).unwrap();
    let said = |input: &str| {
        Monitor::start(&MonitorOptions { input: input.into(), ..options.clone() }).err().unwrap()
    };
    assert!(said("/no/such/clip.mp4").to_string().contains("/no/such/clip.mp4"));
    assert!(said("/dev/video93").to_string().contains("no such camera"));
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    assert!(said(dir.path().join("empty").to_str().unwrap()).to_string().contains("empty"));
}
