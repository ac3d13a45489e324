//! The live benchmark and the monitor, together with the element itself.

mod common;

use autosam::bench::live::{self, LiveBench};
use autosam::monitor::{Monitor, MonitorOptions};
use common::model;
use gst::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

/// Critical warnings of GStreamer.
static CRITICALS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn init() {
    static ONCE: Once = Once::new();
    common::init();
    ONCE.call_once(|| {
        let (domain, levels) = (Some("GStreamer"), gst::glib::LogLevels::LEVEL_CRITICAL);
        gst::glib::log_set_handler(domain, levels, false, false, |_, _, text| {
            CRITICALS.lock().unwrap().push(text.to_owned());
        });
    });
}

fn properties(model: &Path) -> Vec<(String, String)> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    // With these settings every frame has a mask.
    vec![
        pair("model-location", model.to_str().unwrap()),
        pair("threshold", "0.1"),
        pair("hold-off", "1"),
        pair("hysteresis", "0"),
        pair("expire-overlay", "0"),
    ]
}

fn write_frames(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for i in 0..3u8 {
        let frame = image::RgbImage::from_fn(160, 120, |x, y| image::Rgb([(x + y) as u8, 90 + i, 60]));
        frame.save(dir.join(format!("{i}.png"))).unwrap();
    }
}

#[test]
fn the_benchmark_counts_every_frame_and_finds_no_changed_pixel() {
    init();
    let dir = tempfile::tempdir().unwrap();
    write_frames(&dir.path().join("frames"));
    // With few frames, only frame-accurate mode guarantees a mask on slow machines.
    for (format, streams, mode) in [("NV12", 1, "async"), ("UYVY", 1, "frame-accurate"), ("RGBA", 2, "async")]
    {
        let mut properties = properties(&model(dir.path()));
        properties.push(("sync-mode".into(), mode.into()));
        let bench = LiveBench {
            format: format.into(),
            size: (320, 240),
            rate: 100,
            frames: 40,
            warm_up: 20,
            streams,
            input: Some(dir.path().join("frames")),
            check_every: 2,
            properties,
        };
        let (report, delays) = live::run(&bench).unwrap();
        let all = 40 * streams as u64;
        assert_eq!(report.frames_in, report.frames_out, "{report:?}");
        assert_eq!(report.frames_out + report.dropped, all, "{report:?}");
        assert_eq!(delays.video.len() as u64, report.frames_out);
        assert!(mode == "async" || (report.marked > 0 && report.inferred > 0), "{report:?}");
        assert_eq!(report.pixels_changed_outside_mask, Some(0), "{format}");
        assert!(report.frames_checked > 0 && report.frames_checked <= all, "{report:?}");
        assert_eq!(report.bytes_copied_per_frame, 0.0, "{format}: not in place");
        let video = report.video_delay_ms.unwrap();
        assert!(video.p50 <= video.p99 && video.p99 <= video.max);
        assert!(mode == "async" || report.annotation_delay_ms.unwrap().p50 > 0.0);
    }
}

#[test]
fn the_benchmark_names_unusable_settings() {
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

fn post(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits until the page's statistics are as `expected`, and returns them.
fn until(
    address: SocketAddr,
    timeout: Duration,
    expected: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let begin = Instant::now();
    loop {
        let answer = get(address, "/state.json");
        let state = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        if expected(&state) {
            return state;
        }
        assert!(begin.elapsed() < timeout, "{state}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A monitor without a window that runs on a thread of its own.
struct Watched {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    playing: std::thread::JoinHandle<autosam::Result<()>>,
}

impl Watched {
    fn start(input: &str, repeat: bool, properties: Vec<(String, String)>) -> Self {
        let options = MonitorOptions {
            input: input.to_owned(),
            http: Some(([127, 0, 0, 1], 0).into()),
            token_file: None,
            names: Vec::new(),
            window: false,
            repeat,
            properties,
        };
        let monitor = Monitor::start(&options).unwrap();
        let address = monitor.address().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        Self { address, stop, playing: std::thread::spawn(move || monitor.run(&ends, |_| ())) }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.playing.join().unwrap().unwrap();
    }
}

/// A header's value and the frame that follows it.
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
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn the_monitor_shows_frames_metrics_and_detections() {
    init();
    let dir = tempfile::tempdir().unwrap();
    write_frames(&dir.path().join("frames"));
    let input = dir.path().join("frames");
    let watched = Watched::start(input.to_str().unwrap(), true, properties(&model(dir.path())));
    let address = watched.address;

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
        let frame =
            image::load_from_memory_with_format(&part(&mut reader), image::ImageFormat::Jpeg).unwrap();
        assert_eq!((frame.width(), frame.height()), (160, 120));
    }
    let state = until(address, Duration::from_secs(20), |state| state["regions"].as_u64() > Some(0));
    assert!(state["confidence"].as_f64() > Some(0.0) && state["detections"].as_u64() > Some(0), "{state}");
    assert!(
        state["frames"].as_u64() > Some(0) && state["annotation_delay_ms"].as_f64() > Some(0.0),
        "{state}"
    );
    assert!(state["picture"].as_str().unwrap().starts_with("160 × 120"), "{state}");
    assert!(post(address, "/prompt?point=0.5,0.5").starts_with("HTTP/1.1 200"));
    until(address, Duration::from_secs(60), |state| {
        state["prompt"].as_str().is_some_and(|p| p.starts_with("object 1") || p.contains("refused"))
    });
    watched.end();
    assert!(TcpStream::connect(address).is_err(), "the page is still served");
    assert_eq!(*CRITICALS.lock().unwrap(), [""; 0]);
}

#[test]
fn the_monitor_ends_with_its_input_and_names_missing_inputs() {
    init();
    let dir = tempfile::tempdir().unwrap();
    write_frames(&dir.path().join("frames"));
    let options = MonitorOptions {
        input: dir.path().join("frames").to_str().unwrap().to_owned(),
        http: None,
        token_file: None,
        names: Vec::new(),
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

#[test]
fn a_live_source_that_falls_silent_is_opened_again() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let camera = || {
        let line = format!(
            "videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=25/1 ! \
             x264enc tune=zerolatency key-int-max=5 ! mpegtsmux ! udpsink host=127.0.0.1 port={port}"
        );
        let pipeline = gst::parse::launch(&line).unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        pipeline
    };
    let first = camera();
    let input = format!("udp://127.0.0.1:{port}");
    let watched = Watched::start(&input, false, properties(&model(dir.path())));
    let (address, timeout) = (watched.address, Duration::from_secs(60));
    let plays = |state: &serde_json::Value| state["frames"].as_u64() > Some(5) && state["problem"].is_null();
    until(address, timeout, plays);
    first.set_state(gst::State::Null).unwrap();
    until(address, timeout, |state| {
        state["problem"].as_str().is_some_and(|p| p.contains("no frame for 10 s"))
    });
    let second = camera();
    until(address, timeout, plays);
    watched.end();
    second.set_state(gst::State::Null).unwrap();
}

/// Writes the output of `chain` to `path` as H.264 in MP4.
fn video(chain: &str, path: &Path) {
    let line = format!("{chain} ! h264parse ! mp4mux ! filesink location={}", path.display());
    let pipeline = gst::parse::launch(&line).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &kinds).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}

/// The first frame of `input` that the monitor's page shows.
fn shown(input: &Path, model: &Path) -> image::RgbImage {
    let mut properties = properties(model);
    properties.push(("overlay-mode".into(), "none".into()));
    let watched = Watched::start(input.to_str().unwrap(), true, properties);
    let mut stream = TcpStream::connect(watched.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /live.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let frame = part(&mut BufReader::new(stream));
    watched.end();
    image::load_from_memory_with_format(&frame, image::ImageFormat::Jpeg).unwrap().to_rgb8()
}

#[test]
fn the_monitor_shows_videos_upright_and_deinterlaced() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let (path, model) = (dir.path().join("v.mp4"), model(dir.path()));
    // The video is white above and black below. Its track header states a quarter turn clockwise.
    let white = "videotestsrc num-buffers=8 pattern=white ! video/x-raw,width=160,height=60,framerate=25/1";
    video(&format!("{white} ! videobox bottom=-60 ! x264enc speed-preset=ultrafast"), &path);
    let mut bytes = std::fs::read(&path).unwrap();
    let matrix = bytes.windows(4).position(|w| w == b"tkhd").unwrap() + 44;
    let turned = [0, 1 << 16, 0, -1 << 16, 0, 0].map(i32::to_be_bytes).concat();
    bytes[matrix..matrix + 24].copy_from_slice(&turned);
    std::fs::write(&path, bytes).unwrap();
    let frame = shown(&path, &model);
    assert_eq!(frame.dimensions(), (120, 160));
    assert!(frame.get_pixel(100, 80).0[0] > 200 && frame.get_pixel(20, 80).0[0] < 50);

    let moving = "videotestsrc num-buffers=16 pattern=smpte100 horizontal-speed=40 ! \
                  video/x-raw,format=I420,width=320,height=240,framerate=50/1";
    let fields = "interlace field-pattern=1:1 ! x264enc interlaced=true speed-preset=ultrafast";
    video(&format!("{moving} ! {fields}"), &path);
    let frame = shown(&path, &model);
    assert_eq!(frame.dimensions(), (320, 240));
    // The bars are vertical, so only combing differs from the mean of the lines above and below.
    let at = |x: u32, y: u32| i32::from(frame.get_pixel(x, y).0[1]);
    let combs = |(x, y): (u32, u32)| (2 * at(x, y) - at(x, y - 1) - at(x, y + 1)).unsigned_abs();
    let all = (1..239).flat_map(|y| (0..320).map(move |x| (x, y)));
    let mean = all.map(combs).sum::<u32>() as f64 / (238.0 * 320.0);
    assert!(mean < 4.0, "combs of {mean}");
}
