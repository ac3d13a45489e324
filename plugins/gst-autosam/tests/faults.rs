//! Faults. In each case video continues, a bus message reports the fault, the element recovers or passes frames unchanged, and no
//! thread is left. The models are scripted, through the element's hook for tests.
//!
//! Threads are counted by name, so these tests run one after another.

mod common;

use autosam_engine::segmenter::Segmenter;
use autosam_frame::map::ModelInput;
use common::{
    Scripted, around, buffer, bytes, caps, complaints, gated, model, scripted, stat, threads, wait,
};
use gst::prelude::*;
use gst_check::Harness;
use parking_lot::{Mutex, MutexGuard};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A test's turn. After the test, once element and harness are dropped, no thread of the element may be left.
struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Turn {
    fn new() -> Self {
        Self(ONE_AT_A_TIME.lock())
    }
}

fn end(element: gst::Element, h: Option<Harness>) {
    drop(h);
    element.set_state(gst::State::Null).unwrap();
    drop(element);
    wait(|| ["autosam-worker", "autosam-loader", "autosam-notices"].iter().all(|name| threads(name) == 0));
}

fn always(value: u8) -> autosam_frame::Result<Box<dyn Segmenter>> {
    Ok(Box::new(Scripted(move |_: &ModelInput| Ok(value))))
}

/// Pushes frame `index` and returns whether an overlay was drawn.
fn has_overlay(h: &mut Harness, caps: &gst::Caps, index: u64) -> bool {
    let b = buffer(caps, index);
    let (before, pts) = (bytes(&b), b.pts());
    let after = h.push_and_pull(b).unwrap();
    assert_eq!(after.pts(), pts);
    bytes(&after) != before
}

/// Pushes frames until one has an overlay (again).
fn until_overlay(h: &mut Harness, caps: &gst::Caps) {
    let mut indices = 1000..;
    wait(|| has_overlay(h, caps, indices.next().unwrap()));
}

/// An element whose model first fails with `fault`. It can be loaded again, and then works, once the returned sender is dropped.
fn fails_once(
    fault: impl Fn() -> autosam_frame::Result<u8> + Send + Sync + 'static,
) -> (gst::Element, gst::Bus, Sender<()>) {
    let (opened, fault) = (AtomicUsize::new(0), Arc::new(fault));
    let (repaired, gate): (_, Receiver<()>) = channel();
    let gate = Mutex::new(gate);
    let (element, bus) = scripted(&[("expire-overlay", "0")], move |_| {
        let first = opened.fetch_add(1, Ordering::Relaxed) == 0;
        if !first {
            let _ = gate.lock().recv();
        }
        let fault = fault.clone();
        Ok(Box::new(Scripted(move |_: &ModelInput| if first { fault() } else { Ok(255) })))
    });
    (element, bus, repaired)
}

/// Checks that a fault in the worker is reported once with `reason`, and that the element recovers.
fn is_reported_and_recovers(
    fault: impl Fn() -> autosam_frame::Result<u8> + Send + Sync + 'static,
    reason: &str,
) {
    let _turn = Turn::new();
    let (element, bus, repaired) = fails_once(fault);
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    assert!(!has_overlay(&mut h, &caps, 0));
    wait(|| stat(&element, "errors") == 1);
    assert!(!has_overlay(&mut h, &caps, 1));
    drop(repaired);
    until_overlay(&mut h, &caps);
    let said = complaints(&bus);
    assert!(said.len() == 1 && said[0].starts_with("warning:") && said[0].contains(reason), "{said:?}");
    assert_eq!(stat(&element, "restarts"), 1);
    end(element, Some(h));
}

#[test]
fn a_worker_panic_is_reported_and_survived() {
    is_reported_and_recovers(|| panic!("index out of bounds"), "panicked: index out of bounds");
}

#[test]
fn a_device_out_of_memory_is_reported_and_survived() {
    let oom =
        || Err(autosam_frame::Error::Candle(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into())));
    is_reported_and_recovers(oom, "CUDA_ERROR_OUT_OF_MEMORY");
}

#[test]
fn a_model_that_keeps_failing_is_retried_at_growing_intervals() {
    let _turn = Turn::new();
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let begin = std::time::Instant::now();
    let (element, bus) = scripted(&[], move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Scripted(|_: &ModelInput| Err(autosam_frame::Error::Invalid("broken".into())))))
    });
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let mut frames = 0;
    wait(|| {
        assert!(!has_overlay(&mut h, &caps, frames));
        frames += 1;
        opened.load(Ordering::Relaxed) >= 4
    });
    // The model is loaded again after 0.1, 0.2 and 0.4 s, not with every frame.
    assert!(begin.elapsed() >= Duration::from_millis(700), "opened 4 times in {:?}", begin.elapsed());
    wait(|| stat(&element, "pending") == 0);
    assert!(complaints(&bus).len() <= opened.load(Ordering::Relaxed), "more warnings than failures");
    assert_eq!(stat(&element, "frames"), frames);
    end(element, Some(h));
}

#[test]
fn a_model_file_truncated_while_loading_leaves_the_old_model_in_use() {
    let _turn = Turn::new();
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(model(dir.path())).unwrap();
    let path = dir.path().join("swapped.safetensors");
    // The file is truncated and restored repeatedly while it is loaded. Any outcome is right except a crash, a stop or a mask of
    // the truncated file.
    let (stop, stopped) = channel::<()>();
    let (writes, bytes) = (path.clone(), whole.clone());
    std::fs::write(&path, &whole).unwrap();
    let writer = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_micros(200)).is_err() {
            for part in [&bytes[..bytes.len() / 3], &bytes[..], &bytes[..8]] {
                std::fs::write(&writes, part).unwrap();
            }
        }
    });
    let (element, bus) = scripted(&[("expire-overlay", "0")], move |location| match location {
        None => always(255),
        Some(path) => autosam_model::open(Some(path), &autosam_model::ModelOptions::default()),
    });
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    until_overlay(&mut h, &caps);
    let mut failed = 0;
    for i in 0..30 {
        element.set_property("model-location", path.to_str().unwrap());
        let message = common::next_message(&bus, "application/x-autosam-model-updated");
        failed += u32::from(!message.get::<bool>("success").unwrap());
        has_overlay(&mut h, &caps, i);
    }
    stop.send(()).unwrap();
    writer.join().unwrap();
    assert!(failed > 0, "the file was never truncated while it was loaded");
    assert_eq!(stat(&element, "errors"), 0);
    end(element, Some(h));
}

#[test]
fn a_stalled_worker_delays_no_frame_and_its_old_mask_expires() {
    let _turn = Turn::new();
    let (element, bus, go) = gated(&[("expire-overlay", "60000000")]);
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    has_overlay(&mut h, &caps, 0);
    go.send(()).unwrap();
    wait(|| stat(&element, "inferred") == 1);
    // From here on the worker hangs. Frames pass, first with the mask, then without.
    let begin = std::time::Instant::now();
    for i in 1..100 {
        let overlay = has_overlay(&mut h, &caps, i);
        assert!(!overlay || begin.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!has_overlay(&mut h, &caps, 100), "a mask older than 60 ms");
    let mut overloads = Vec::new();
    wait(|| {
        has_overlay(&mut h, &caps, 101);
        overloads.extend(common::messages(&bus, "application/x-autosam-overload"));
        !overloads.is_empty()
    });
    assert!(overloads[0].get::<bool>("active").unwrap());
    drop(go);
    until_overlay(&mut h, &caps);
    end(element, Some(h));
}

#[test]
fn a_caps_storm_passes_every_frame() {
    let _turn = Turn::new();
    let (element, bus) = scripted(&[], |_| always(255));
    let mut h = around(&element);
    for i in 0..400u64 {
        let format = ["NV12", "UYVY", "RGB", "BGRA"][i as usize % 4];
        let caps = caps(format, 16 + (i % 37) as i32, 16 + (i % 23) as i32);
        h.set_src_caps(caps.clone());
        has_overlay(&mut h, &caps, i);
    }
    assert_eq!(stat(&element, "frames"), 400);
    assert_eq!(complaints(&bus), [""; 0]);
    end(element, Some(h));
}

#[test]
fn a_flush_storm_passes_every_frame_and_no_old_mask() {
    let _turn = Turn::new();
    let (element, bus) = scripted(&[("expire-overlay", "0")], |_| always(255));
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    for i in 0..400 {
        h.push_event(gst::event::FlushStart::new());
        h.push_event(gst::event::FlushStop::new(true));
        h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        has_overlay(&mut h, &caps, i);
    }
    assert_eq!(stat(&element, "frames"), 400);
    until_overlay(&mut h, &caps);
    assert_eq!(complaints(&bus), [""; 0]);
    end(element, Some(h));
}

#[test]
fn a_seek_storm_on_a_file_still_reaches_its_end() {
    let _turn = Turn::new();
    common::init();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clip.avi");
    let run = |launch: &str| gst::parse::launch(launch).unwrap().downcast::<gst::Pipeline>().unwrap();
    let wait_for = |pipeline: &gst::Pipeline, kind| {
        let ends = [kind, gst::MessageType::Error];
        let m = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(30), &ends).unwrap();
        assert_eq!(m.type_(), kind, "{m:?}");
    };
    let writes = run(&format!(
        "videotestsrc num-buffers=100 ! video/x-raw,format=I420,width=64,height=48,framerate=25/1 ! avimux ! filesink location={}",
        file.display()
    ));
    writes.set_state(gst::State::Playing).unwrap();
    wait_for(&writes, gst::MessageType::Eos);
    writes.set_state(gst::State::Null).unwrap();
    let reads = run(&format!(
        "filesrc location={} ! avidemux ! autosam name=a ! fakesink sync=false",
        file.display()
    ));
    let element = reads.by_name("a").unwrap();
    element.downcast_ref::<gstautosam::AutoSam>().unwrap().set_model_factory(|_| always(255));
    reads.set_state(gst::State::Paused).unwrap();
    wait_for(&reads, gst::MessageType::AsyncDone);
    for i in 0..60u64 {
        let to = gst::ClockTime::from_mseconds(i * 997 % 3900);
        reads.seek_simple(gst::SeekFlags::FLUSH, to).unwrap();
        if i % 3 == 0 {
            wait_for(&reads, gst::MessageType::AsyncDone);
        }
    }
    reads.set_state(gst::State::Playing).unwrap();
    wait_for(&reads, gst::MessageType::Eos);
    reads.set_state(gst::State::Null).unwrap();
    drop(reads);
    end(element, None);
}

#[test]
fn jumping_and_missing_timestamps_are_not_changed() {
    let _turn = Turn::new();
    let (element, bus) =
        scripted(&[("max-inference-rate", "1000"), ("expire-overlay", "0")], |_| always(255));
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let times = [
        Some(0),
        Some(40),
        Some(3_600_000),
        Some(80),
        None,
        Some(80),
        Some(80),
        Some(1),
        None,
        Some(u64::MAX / 2_000_000),
    ];
    for time in times.map(|t| t.map(gst::ClockTime::from_mseconds)) {
        for duration in [None, Some(gst::ClockTime::MAX)] {
            let mut b = buffer(&caps, 0);
            {
                let b = b.get_mut().unwrap();
                b.set_pts(time);
                b.set_duration(duration);
                b.set_flags(gst::BufferFlags::DISCONT);
            }
            let out = h.push_and_pull(b).unwrap();
            assert_eq!((out.pts(), out.duration()), (time, duration));
            assert!(out.flags().contains(gst::BufferFlags::DISCONT));
        }
    }
    assert_eq!(stat(&element, "frames"), 20);
    until_overlay(&mut h, &caps);
    assert_eq!(complaints(&bus), [""; 0]);
    end(element, Some(h));
}

#[test]
fn a_jumping_clock_has_no_effect() {
    let _turn = Turn::new();
    let (element, bus) = scripted(&[], |_| always(255));
    let mut h = around(&element);
    h.use_testclock();
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    for (i, second) in [0u64, 1, 100_000, 100_001, 1_000_000].into_iter().enumerate() {
        h.set_time(gst::ClockTime::from_seconds(second)).unwrap();
        has_overlay(&mut h, &caps, i as u64);
    }
    until_overlay(&mut h, &caps);
    assert_eq!(complaints(&bus), [""; 0]);
    end(element, Some(h));
}

#[test]
fn buffers_that_hold_no_frame_pass_and_are_reported_once() {
    let _turn = Turn::new();
    let (element, bus) = scripted(&[("expire-overlay", "0")], |_| always(255));
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    for size in [0usize, 1, 63, 64 * 48, 64 * 48 * 3 / 2 - 1, 64 * 48 * 2] {
        let before: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let mut b = gst::Buffer::from_mut_slice(before.clone());
        b.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(7));
        let out = h.push_and_pull(b).unwrap();
        assert_eq!(out.pts(), Some(gst::ClockTime::from_mseconds(7)));
        // The last buffer is larger than a frame, which is at its start.
        assert!(size > 64 * 48 * 3 / 2 || bytes(&out) == before, "{size}");
    }
    until_overlay(&mut h, &caps);
    // Stopping the element waits until all messages are posted.
    end(element, Some(h));
    let said = complaints(&bus);
    assert!(said.len() == 1 && said[0].contains("64x48 NV12"), "{said:?}");
}

#[test]
fn removing_an_element_during_inference_leaves_the_pipeline_running() {
    let _turn = Turn::new();
    let (element, _, go) = gated(&[]);
    let pipeline = gst::Pipeline::new();
    let make = |name: &str| gst::ElementFactory::make(name).build().unwrap();
    let (source, filter, sink) = (make("videotestsrc"), make("capsfilter"), make("fakesink"));
    source.set_property("is-live", true);
    filter.set_property("caps", caps("NV12", 64, 48));
    sink.set_property("sync", false);
    sink.set_property("signal-handoffs", true);
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    sink.connect("handoff", false, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        None
    });
    pipeline.add_many([&source, &filter, &element, &sink]).unwrap();
    gst::Element::link_many([&source, &filter, &element, &sink]).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    wait(|| seen.load(Ordering::Relaxed) >= 3 && stat(&element, "pending") > 0);
    // While the worker processes a frame, the pad is blocked, the element removed, and the rest linked.
    let (blocked, is_blocked) = channel();
    let blocked = Mutex::new(Some(blocked));
    let pad = filter.static_pad("src").unwrap();
    let probe = pad
        .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |_, _| {
            if let Some(b) = blocked.lock().take() {
                b.send(()).unwrap();
            }
            gst::PadProbeReturn::Ok
        })
        .unwrap();
    is_blocked.recv_timeout(Duration::from_secs(30)).unwrap();
    pipeline.remove(&element).unwrap();
    let goes = std::thread::spawn(move || {
        // The change to NULL waits for the frame that the worker processes.
        element.set_state(gst::State::Null).unwrap();
        element
    });
    filter.link(&sink).unwrap();
    let before = seen.load(Ordering::Relaxed);
    pad.remove_probe(probe);
    wait(|| seen.load(Ordering::Relaxed) > before + 3);
    drop(go);
    let element = goes.join().unwrap();
    pipeline.set_state(gst::State::Null).unwrap();
    end(element, None);
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `AUTOSAM_SOAK=1000000 cargo test --release -p gst-autosam --test faults soak -- --ignored --nocapture`
#[test]
#[ignore = "minutes; see docs/live.md"]
fn soak() {
    let _turn = Turn::new();
    let frames: u64 = std::env::var("AUTOSAM_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let values = AtomicUsize::new(0);
    let values = Arc::new(values);
    let properties =
        [("attach-meta", "true"), ("motion-compensation", "true"), ("stats-interval", "100000000")];
    let (element, bus) = scripted(&properties, move |_: Option<&Path>| {
        let values = values.clone();
        Ok(Box::new(Scripted(move |_: &ModelInput| {
            Ok((values.fetch_add(1, Ordering::Relaxed) / 7 % 2 * 255) as u8)
        })))
    });
    let mask = element.request_pad_simple("mask").unwrap();
    let sink =
        gst::Pad::builder(gst::PadDirection::Sink).chain_function(|_, _, _| Ok(gst::FlowSuccess::Ok)).build();
    sink.set_active(true).unwrap();
    mask.link(&sink).unwrap();
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let begin = std::time::Instant::now();
    let mut early = 0;
    for i in 0..frames {
        let b = buffer(&caps, i);
        h.push(b).unwrap();
        h.pull().unwrap();
        while bus.pop().is_some() {}
        if i % 10_000 == 0 {
            h.push_event(gst::event::FlushStart::new());
            h.push_event(gst::event::FlushStop::new(true));
            h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
            while h.try_pull_event().is_some() {}
        }
        if i == frames / 10 {
            early = resident();
        }
        if i % (frames / 10).max(1) == 0 {
            println!(
                "{i} frames, {} inferred, {} KiB resident, {:.0} s",
                stat(&element, "inferred"),
                resident(),
                begin.elapsed().as_secs_f64()
            );
        }
    }
    let late = resident();
    println!(
        "{frames} frames in {:.0} s: {early} KiB after a tenth, {late} KiB at the end",
        begin.elapsed().as_secs_f64()
    );
    assert_eq!(stat(&element, "frames"), frames);
    assert!(late < early + early / 20 + 2048, "memory grows: {early} KiB to {late} KiB");
    end(element, Some(h));
}
