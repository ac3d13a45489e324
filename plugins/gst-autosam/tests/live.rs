//! Outputs besides video: masks, metadata, messages, signals. Also changes of properties while playing.

mod common;

use common::{
    Scripted, around, buffer, bytes, caps, gated, messages, model, next_message, scripted, stat, wait,
};
use gst::prelude::*;
use gst_controller::prelude::{InterpolationControlSourceExt, TimedValueControlSourceExt};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ACCURATE: (&str, &str) = ("sync-mode", "frame-accurate");

/// An element whose model answers every pixel with the current `value`.
fn steered(properties: &[(&str, &str)]) -> (gst::Element, gst::Bus, Arc<AtomicU8>) {
    let value = Arc::new(AtomicU8::new(0));
    let says = value.clone();
    let (element, bus) = scripted(properties, move |_| {
        let says = says.clone();
        Ok(Box::new(Scripted(move |_: &_| Ok(says.load(Ordering::Relaxed)))))
    });
    (element, bus, value)
}

/// Records that the streaming thread appends.
type Recorded<T> = Arc<Mutex<Vec<T>>>;

/// Records a pad's output: all buffers, and the names of the events between them.
fn record(pad: &gst::Pad) -> (gst::Pad, Recorded<String>, Recorded<gst::Buffer>) {
    let (log, buffers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let (l, b, e) = (log.clone(), buffers.clone(), log.clone());
    let sink = gst::Pad::builder(gst::PadDirection::Sink)
        .name("recorder")
        .chain_function(move |_, _, buffer| {
            l.lock().unwrap().push("buffer".into());
            b.lock().unwrap().push(buffer);
            Ok(gst::FlowSuccess::Ok)
        })
        .event_function(move |pad, parent, event| {
            e.lock().unwrap().push(event.type_().name().to_string());
            gst::Pad::event_default(pad, parent, event)
        })
        .build();
    sink.set_active(true).unwrap();
    pad.link(&sink).unwrap();
    (sink, log, buffers)
}

#[test]
fn the_mask_pad_outputs_every_frame_s_mask_with_its_timestamps() {
    let (element, _, value) = steered(&[ACCURATE]);
    let pad = element.request_pad_simple("mask").unwrap();
    let template = element.pad_template("mask").unwrap();
    assert!(element.request_pad(&template, None, None).is_none(), "a second mask pad");
    let mut h = around(&element);
    let (sink, log, buffers) = record(&pad);
    let caps = caps("NV12", 50, 38);
    h.set_src_caps(caps.clone());
    for (i, v) in [0, 255, 255, 0].into_iter().enumerate() {
        value.store(v, Ordering::Relaxed);
        h.push_and_pull(buffer(&caps, i as u64)).unwrap();
        wait(|| buffers.lock().unwrap().len() == i + 1);
    }
    h.push_event(gst::event::Eos::new());
    wait(|| log.lock().unwrap().last().is_some_and(|l| l == "eos"));
    let log = log.lock().unwrap();
    let events: Vec<&str> = log.iter().map(String::as_str).filter(|l| *l != "buffer").collect();
    assert_eq!(events, ["stream-start", "caps", "segment", "eos"]);
    let got = sink.current_caps().unwrap();
    let info = gst_video::VideoInfo::from_caps(&got).unwrap();
    assert_eq!((info.format(), info.width(), info.height()), (gst_video::VideoFormat::Gray8, 50, 38));
    assert_eq!(info.fps(), gst::Fraction::new(25, 1));
    for (i, (b, v)) in buffers.lock().unwrap().iter().zip([0, 255, 255, 0]).enumerate() {
        assert_eq!(b.pts(), Some(gst::ClockTime::from_mseconds(40 * i as u64)));
        assert_eq!(b.duration(), Some(gst::ClockTime::from_mseconds(40)));
        assert_eq!(b.size(), info.size());
        let pixels = bytes(b);
        assert!(pixels.chunks(52).all(|row| row[..50].iter().all(|p| *p == v)), "frame {i}");
    }
}

#[test]
fn a_blocked_mask_pad_does_not_delay_video() {
    let (element, _, value) = steered(&[ACCURATE]);
    value.store(255, Ordering::Relaxed);
    let pad = element.request_pad_simple("mask").unwrap();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    // Without a template a pad would accept only the first caps.
    let any = gst::Caps::new_any();
    let template =
        gst::PadTemplate::new("sink", gst::PadDirection::Sink, gst::PadPresence::Always, &any).unwrap();
    let sink = gst::Pad::builder_from_template(&template)
        .chain_function(move |_, _, _| {
            let _ = gate.lock().unwrap().recv();
            count.fetch_add(1, Ordering::Relaxed);
            Ok(gst::FlowSuccess::Ok)
        })
        .build();
    sink.set_active(true).unwrap();
    pad.link(&sink).unwrap();
    let mut h = around(&element);
    for (w, n) in [(64, 50), (32, 50)] {
        let caps = caps("NV12", w, 48);
        h.set_src_caps(caps.clone());
        for i in 0..n {
            h.push_and_pull(buffer(&caps, i)).unwrap();
        }
    }
    assert_eq!(stat(&element, "frames"), 100);
    drop(go);
    wait(|| taken.load(Ordering::Relaxed) >= 4);
    assert!(taken.load(Ordering::Relaxed) <= 6, "masks were not dropped");
}

#[test]
fn a_flush_passes_through_the_mask_pad_and_keeps_its_caps() {
    let (element, _, value) = steered(&[ACCURATE]);
    value.store(255, Ordering::Relaxed);
    let pad = element.request_pad_simple("mask").unwrap();
    let mut h = around(&element);
    let (sink, log, buffers) = record(&pad);
    let caps = caps("RGB", 20, 20);
    h.set_src_caps(caps.clone());
    for i in 0..20 {
        h.push_event(gst::event::FlushStart::new());
        h.push_event(gst::event::FlushStop::new(true));
        h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        h.push_and_pull(buffer(&caps, i)).unwrap();
    }
    // A flush may discard a mask that was not pushed yet, except the last one.
    wait(|| {
        buffers
            .lock()
            .unwrap()
            .last()
            .is_some_and(|b| b.pts() == Some(gst::ClockTime::from_mseconds(40 * 19)))
    });
    assert!(sink.current_caps().is_some());
    let count = |name: &str| log.lock().unwrap().iter().filter(|l| *l == name).count();
    assert_eq!((count("flush-start"), count("flush-stop")), (20, 20));
    element.release_request_pad(&pad);
    h.push_and_pull(buffer(&caps, 1)).unwrap();
    assert!(element.request_pad_simple("mask").is_some(), "no new mask pad after the release");
}

#[test]
fn a_mask_pad_requested_in_mid_stream_sends_the_stream_s_events() {
    let (element, _, _) = steered(&[ACCURATE]);
    let mut h = around(&element);
    let caps = caps("RGB", 20, 20);
    h.set_src_caps(caps.clone());
    h.push_and_pull(buffer(&caps, 0)).unwrap();
    let pad = element.request_pad_simple("mask").unwrap();
    let (sink, log, buffers) = record(&pad);
    h.push_and_pull(buffer(&caps, 1)).unwrap();
    wait(|| !buffers.lock().unwrap().is_empty());
    assert!(sink.current_caps().is_some());
    assert_eq!(log.lock().unwrap()[..3], ["stream-start", "caps", "segment"]);
}

#[test]
fn metadata_contain_regions_confidence_and_the_mask() {
    let (element, _, value) = steered(&[ACCURATE, ("attach-meta", "true")]);
    value.store(204, Ordering::Relaxed);
    let mut h = around(&element);
    let caps = caps("I420", 100, 50);
    h.set_src_caps(caps.clone());
    let out = h.push_and_pull(buffer(&caps, 0)).unwrap();
    let roi = out.meta::<gst_video::VideoRegionOfInterestMeta>().unwrap();
    assert_eq!((roi.roi_type(), roi.rect()), ("polyp", (0, 0, 100, 50)));
    let confidence: f64 = roi.param("detection").unwrap().get("confidence").unwrap();
    assert!((confidence - 0.8).abs() < 1e-6, "{confidence}");
    let mask = gst::meta::CustomMeta::from_buffer(&out, "GstAutoSamMaskMeta").unwrap();
    let s = mask.structure();
    let (w, hgt): (i32, i32) = (s.get("width").unwrap(), s.get("height").unwrap());
    assert_eq!((w, hgt), (32, 16));
    assert_eq!(bytes(&s.get::<gst::Buffer>("mask").unwrap()), vec![255; 32 * 16]);
    // Copies of the buffer, as made by a writing branch after a tee, have the metadata too.
    let copy = out.copy();
    assert!(gst::meta::CustomMeta::from_buffer(&copy, "GstAutoSamMaskMeta").is_ok());
    value.store(0, Ordering::Relaxed);
    let out = h.push_and_pull(buffer(&caps, 1)).unwrap();
    assert!(out.meta::<gst_video::VideoRegionOfInterestMeta>().is_none());
}

#[test]
fn detections_are_reported_as_messages_and_signals() {
    let (element, bus, value) = steered(&[ACCURATE]);
    let signals = Arc::new(Mutex::new(Vec::new()));
    for name in ["detection-started", "detection-ended"] {
        let recorded = signals.clone();
        element.connect(name, false, move |values| {
            let s = values[1].get::<gst::Structure>().unwrap();
            recorded.lock().unwrap().push((name, s.get::<gst::ClockTime>("timestamp").ok()));
            None
        });
    }
    let mut h = around(&element);
    let caps = caps("NV12", 100, 50);
    h.set_src_caps(caps.clone());
    for (i, v) in [0, 255, 255, 0, 255].into_iter().enumerate() {
        value.store(v, Ordering::Relaxed);
        h.push_and_pull(buffer(&caps, i as u64)).unwrap();
    }
    let started = next_message(&bus, "application/x-autosam-detection-started");
    assert_eq!(started.get::<gst::ClockTime>("timestamp").unwrap(), gst::ClockTime::from_mseconds(40));
    assert_eq!((started.get::<u32>("width").unwrap(), started.get::<f64>("confidence").unwrap()), (100, 1.0));
    let ended = next_message(&bus, "application/x-autosam-detection-ended");
    assert_eq!(ended.get::<gst::ClockTime>("timestamp").unwrap(), gst::ClockTime::from_mseconds(120));
    assert_eq!(ended.get::<u64>("pictures").unwrap(), 2);
    // A detection that lasts to the end of the stream ends with it.
    drop(h);
    element.set_state(gst::State::Null).unwrap();
    let ms = |v| Some(gst::ClockTime::from_mseconds(v));
    assert_eq!(
        *signals.lock().unwrap(),
        [
            ("detection-started", ms(40)),
            ("detection-ended", ms(120)),
            ("detection-started", ms(160)),
            ("detection-ended", None)
        ]
    );
}

#[test]
fn a_slow_signal_handler_does_not_delay_video() {
    let (element, _, value) = steered(&[ACCURATE]);
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    element.connect("detection-started", false, move |_| {
        let _ = gate.lock().unwrap().recv();
        None
    });
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    for i in 0..200 {
        value.store(255 * (i % 2) as u8, Ordering::Relaxed);
        h.push_and_pull(buffer(&caps, i)).unwrap();
    }
    assert_eq!(stat(&element, "inferred"), 200);
    drop(go);
}

#[test]
fn a_region_is_shown_only_after_the_hold_off() {
    let (element, _, value) = steered(&[("hold-off", "3"), ("expire-overlay", "0")]);
    value.store(255, Ordering::Relaxed);
    let mut h = around(&element);
    let caps = caps("RGB", 40, 30);
    h.set_src_caps(caps.clone());
    let mut has_overlay = |i| {
        let b = buffer(&caps, i);
        let before = bytes(&b);
        let after = bytes(&h.push_and_pull(b).unwrap());
        // The next frame must see the result of this one.
        wait(|| stat(&element, "pending") == 0);
        after != before
    };
    let [first, second, _, fourth, fifth] = [0, 1, 2, 3, 4].map(&mut has_overlay);
    // The mask of the third frame is the first that is shown; it may be ready before or after that frame is drawn.
    assert_eq!((first, second, fourth, fifth), (false, false, true, true));
}

#[test]
fn statistics_are_posted_at_the_requested_interval() {
    let (element, bus, _) = steered(&[ACCURATE, ("stats-interval", "1")]);
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    for i in 0..5 {
        h.push_and_pull(buffer(&caps, i)).unwrap();
    }
    drop(h);
    element.set_state(gst::State::Null).unwrap();
    let stats = messages(&bus, "application/x-autosam-stats");
    assert!((3..=5).contains(&stats.len()), "{} messages", stats.len());
    assert!(stats.last().unwrap().get::<u64>("frames").unwrap() >= 4);
}

/// The calling thread's scheduling policy, field 41 of proc(5)'s stat; 2 is SCHED_RR.
fn policy() -> u32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // Field 3 follows the name in brackets, which may contain blanks.
    stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap().parse().unwrap()
}

#[test]
fn the_streaming_thread_gets_real_time_priority_if_requested_and_permitted() {
    let (element, bus, _) = steered(&[("realtime-priority", "7")]);
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let mut push = |index| {
        h.push_and_pull(buffer(&caps, index)).unwrap();
        policy()
    };
    assert_eq!(policy(), 0);
    if push(0) == 0 {
        let warning = bus.timed_pop_filtered(gst::ClockTime::from_seconds(5), &[gst::MessageType::Warning]);
        let warning = format!("{:?}", warning.expect("not raised, and no warning"));
        assert!(warning.contains("rtprio"), "{warning}");
        assert_eq!(push(1), 0);
        assert!(bus.pop_filtered(&[gst::MessageType::Warning]).is_none(), "reported twice");
        eprintln!("SKIPPED: this system permits no real-time priority");
        return;
    }
    element.set_property("realtime-priority", 0u32);
    assert_eq!(push(1), 0);
    element.set_property("realtime-priority", 8u32);
    assert_eq!(push(2), 2);
    // The thread may outlive the element, for example in a pool.
    drop(h);
    element.set_state(gst::State::Null).unwrap();
    assert_eq!(policy(), 0);
}

#[test]
fn the_maximum_inference_rate_is_kept_and_timestamp_jumps_do_not_stop_inference() {
    let (element, _, _) = steered(&[("max-inference-rate", "5")]);
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let mut push = |index: u64| {
        h.push_and_pull(buffer(&caps, index)).unwrap();
        wait(|| stat(&element, "pending") == 0);
        stat(&element, "inferred")
    };
    let of_a_second = (0..25).map(&mut push).last().unwrap();
    assert_eq!(of_a_second, 5);
    assert_eq!(push(1_000_000), 6, "far ahead");
    assert_eq!(push(3), 7, "far back");
    assert_eq!(push(4), 7);
}

#[test]
fn properties_follow_a_controller() {
    let (element, _, value) = steered(&[ACCURATE, ("overlay-mode", "mask")]);
    value.store(255, Ordering::Relaxed);
    // The opacity falls from 1 to 0 within 160 ms of stream time.
    let source = gst_controller::InterpolationControlSource::new();
    source.set_mode(gst_controller::InterpolationMode::Linear);
    source.set(gst::ClockTime::ZERO, 1.0);
    source.set(gst::ClockTime::from_mseconds(160), 0.0);
    let binding = gst_controller::DirectControlBinding::new(&element, "opacity", &source);
    element.add_control_binding(&binding).unwrap();
    let mut h = around(&element);
    let caps = caps("RGB", 40, 30);
    h.set_src_caps(caps.clone());
    let mut changed = |i| {
        let b = buffer(&caps, i);
        let before = bytes(&b);
        let after = bytes(&h.push_and_pull(b).unwrap());
        after.iter().zip(before).map(|(a, b)| u64::from(a.abs_diff(b))).sum::<u64>()
    };
    let sums: Vec<u64> = (0..5).map(&mut changed).collect();
    assert!(sums.windows(2).all(|w| w[0] > w[1]), "{sums:?}");
    assert_eq!(sums[4], 0);
    for (name, controllable) in
        [("threshold", true), ("enabled", true), ("model-location", false), ("device", false)]
    {
        let flags = element.find_property(name).unwrap().flags();
        assert_eq!(flags.contains(gst::PARAM_FLAG_CONTROLLABLE), controllable, "{name}");
    }
}

#[test]
fn an_invalid_roi_is_reported_and_changes_nothing() {
    let (element, bus, _) = steered(&[("roi", "8,4,16,16")]);
    element.set_property("roi", "somewhere");
    assert_eq!(element.property::<String>("roi"), "8,4,16,16");
    let said = common::complaints(&bus).join("\n");
    assert!(said.contains("somewhere") && said.contains("X,Y,WIDTH,HEIGHT"), "{said}");
    element.set_property("roi", None::<String>);
    assert_eq!(element.property::<String>("roi"), "auto");
}

#[test]
fn nothing_is_detected_outside_the_roi() {
    let (element, _, value) = steered(&[ACCURATE, ("roi", "16,8,32,32")]);
    value.store(255, Ordering::Relaxed);
    let mut h = around(&element);
    let caps = caps("RGB", 96, 64);
    h.set_src_caps(caps.clone());
    let b = buffer(&caps, 0);
    let before = bytes(&b);
    let after = bytes(&h.push_and_pull(b).unwrap());
    let changed: Vec<(usize, usize)> = (0..96 * 64)
        .filter(|i| before[3 * i..3 * i + 3] != after[3 * i..3 * i + 3])
        .map(|i| (i % 96, i / 96))
        .collect();
    assert!(changed.len() > 900, "{}", changed.len());
    // Mask and frame have pixels of the same size here; enlarging widens the mask by less than one pixel.
    assert!(changed.iter().all(|(x, y)| (14..50).contains(x) && (6..42).contains(y)));
}

#[test]
fn a_model_set_while_playing_takes_over_and_no_frame_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let location = model(dir.path());
    // The random model's mask covers all or nothing, depending on the threshold; this test only needs a model that loads.
    let (mut h, element, bus) = common::harness(&[("model-location", location.to_str().unwrap()), ACCURATE]);
    let signals = Arc::new(Mutex::new(Vec::new()));
    let recorded = signals.clone();
    element.connect("model-updated", false, move |v| {
        let text = |i: usize| v[i].get::<String>().unwrap();
        recorded.lock().unwrap().push((text(1), v[2].get::<bool>().unwrap(), text(3)));
        None
    });
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let mut index = 0;
    let mut push = |n| {
        for _ in 0..n {
            assert_eq!(
                h.push_and_pull(buffer(&caps, index)).unwrap().pts(),
                Some(gst::ClockTime::from_mseconds(40 * index))
            );
            index += 1;
        }
        index
    };
    push(3);
    let whole = std::fs::read(&location).unwrap();
    let truncated = dir.path().join("truncated.safetensors");
    std::fs::write(&truncated, &whole[..whole.len() / 2]).unwrap();
    let other = dir.path().join("other.safetensors");
    std::fs::write(&other, &whole).unwrap();
    for (path, good) in [(&truncated, false), (&other, true)] {
        element.set_property("model-location", path.to_str().unwrap());
        push(5);
        let message = next_message(&bus, "application/x-autosam-model-updated");
        assert_eq!(message.get::<String>("location").unwrap(), path.to_str().unwrap());
        assert_eq!(message.get::<bool>("success").unwrap(), good);
        let error = message.get::<String>("error").unwrap();
        assert_eq!(error.contains("truncated"), !good, "{error}");
        push(3);
    }
    let pushed = push(1);
    assert_eq!(
        (stat(&element, "frames"), stat(&element, "inferred"), stat(&element, "errors")),
        (pushed, pushed, 0)
    );
    wait(|| signals.lock().unwrap().len() == 2);
    assert_eq!(signals.lock().unwrap().iter().map(|s| s.1).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn an_element_without_a_model_accepts_one_later() {
    let (element, bus) = scripted(&[("model-location", "bad"), ACCURATE], |location| match location {
        Some(l) if l == Path::new("good") => Ok(Box::new(Scripted(|_: &_| Ok(255)))),
        _ => Err(autosam_frame::Error::weights("bad", "truncated")),
    });
    let mut h = around(&element);
    let caps = caps("RGB", 40, 30);
    h.set_src_caps(caps.clone());
    let mut has_overlay = |i| {
        let b = buffer(&caps, i);
        let before = bytes(&b);
        bytes(&h.push_and_pull(b).unwrap()) != before
    };
    assert!(!has_overlay(0));
    element.set_property("model-location", "good");
    assert!(next_message(&bus, "application/x-autosam-model-updated").get::<bool>("success").unwrap());
    assert!(has_overlay(1));
}

#[test]
fn slow_inference_is_reported_as_overload() {
    let (element, bus, go) = gated(&[("expire-overlay", "20000000")]);
    let mut h = around(&element);
    let caps = caps("RGB", 40, 30);
    h.set_src_caps(caps.clone());
    let mut index = 0;
    let mut until = |name: &str| {
        let begin = Instant::now();
        loop {
            h.push_and_pull(buffer(&caps, index)).unwrap();
            index += 1;
            if let Some(s) = messages(&bus, name).pop() {
                return s;
            }
            assert!(begin.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let overload = until("application/x-autosam-overload");
    assert!(overload.get::<bool>("active").unwrap());
    assert!(overload.get::<u64>("busy").unwrap() > 20_000_000);
    drop(go);
    assert!(!until("application/x-autosam-overload").get::<bool>("active").unwrap());
}
