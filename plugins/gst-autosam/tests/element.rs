//! The element's contract with a pipeline; each test checks one promise.

mod common;

use autosam_frame::PixelFormat;
use common::{buffer, bytes, caps, complaints, harness, init, model, stat, wait};
use gst::prelude::*;
use gst_check::Harness;
use std::path::{Path, PathBuf};

#[test]
fn frame_accurate_draws_every_frame_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let location = model(dir.path());
    for format in PixelFormat::ALL.map(PixelFormat::name) {
        let (mut h, element, bus) = harness(&[
            ("model-location", location.to_str().unwrap()),
            ("sync-mode", "frame-accurate"),
            ("threshold", "0.1"),
        ]);
        let caps = caps(format, 50, 38);
        h.set_src_caps(caps.clone());
        for i in 0..3 {
            let before = buffer(&caps, i);
            let want = bytes(&before);
            let after = h.push_and_pull(before).unwrap();
            assert_ne!(bytes(&after), want, "{format}: no overlay");
            assert_eq!(after.pts(), Some(gst::ClockTime::from_mseconds(40 * i)));
            assert_eq!(after.duration(), Some(gst::ClockTime::from_mseconds(40)));
        }
        assert_eq!((stat(&element, "frames"), stat(&element, "inferred")), (3, 3));
        assert_eq!(complaints(&bus), [""; 0]);
    }
}

#[test]
fn async_drops_no_frame_and_draws_as_soon_as_a_mask_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (mut h, element, _) = harness(&[
        ("model-location", model(dir.path()).to_str().unwrap()),
        ("threshold", "0.1"),
        ("expire-overlay", "0"),
        ("hold-off", "1"),
    ]);
    let caps = caps("NV12", 320, 240);
    h.set_src_caps(caps.clone());
    for i in 0..50 {
        let out = h.push_and_pull(buffer(&caps, i)).unwrap();
        assert_eq!(out.pts(), Some(gst::ClockTime::from_mseconds(40 * i)));
    }
    wait(|| stat(&element, "pending") == 0);
    let total = stat(&element, "inferred") + stat(&element, "skipped") + stat(&element, "errors");
    assert_eq!((stat(&element, "frames"), total), (50, 50));
    let last = buffer(&caps, 50);
    let want = bytes(&last);
    assert_ne!(bytes(&h.push_and_pull(last).unwrap()), want);
}

#[test]
fn flushes_and_caps_changes_discard_old_masks() {
    let dir = tempfile::tempdir().unwrap();
    let (mut h, element, _) = harness(&[
        ("model-location", model(dir.path()).to_str().unwrap()),
        ("threshold", "0.1"),
        ("expire-overlay", "0"),
        ("hold-off", "1"),
        ("inference-interval", "1000"),
    ]);
    let small = caps("RGB", 64, 48);
    h.set_src_caps(small.clone());
    // Only frame 0 is inferred; its mask stays until it is discarded.
    h.push_and_pull(buffer(&small, 0)).unwrap();
    wait(|| stat(&element, "inferred") == 1);
    let has_overlay = |h: &mut Harness, caps: &gst::Caps, i| {
        let b = buffer(caps, i);
        let before = bytes(&b);
        bytes(&h.push_and_pull(b).unwrap()) != before
    };
    assert!(has_overlay(&mut h, &small, 1));
    h.push_event(gst::event::FlushStart::new());
    h.push_event(gst::event::FlushStop::new(true));
    h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert!(!has_overlay(&mut h, &small, 2), "a mask from before the flush");
    element.set_property("inference-interval", 1u32);
    h.push_and_pull(buffer(&small, 3)).unwrap();
    wait(|| stat(&element, "inferred") >= 2);
    element.set_property("inference-interval", 1000u32);
    assert!(has_overlay(&mut h, &small, 4));
    let large = caps("RGB", 128, 96);
    h.set_src_caps(large.clone());
    assert!(!has_overlay(&mut h, &large, 5), "a mask from before the caps change");
}

#[test]
fn frame_sizes_may_change_in_mid_stream_down_to_one_pixel() {
    let dir = tempfile::tempdir().unwrap();
    let (mut h, _, bus) = harness(&[
        ("model-location", model(dir.path()).to_str().unwrap()),
        ("sync-mode", "frame-accurate"),
        ("threshold", "0.1"),
    ]);
    for (i, (w, hgt)) in [(1, 1), (4099, 7), (7, 4099), (2, 3), (640, 480), (1, 1)].into_iter().enumerate() {
        for format in ["NV12", "I420", "UYVY", "YUY2", "Y42B", "v210", "P010_10LE", "GRAY8", "BGRA", "RGB"] {
            let caps = caps(format, w, hgt);
            h.set_src_caps(caps.clone());
            let b = buffer(&caps, i as u64);
            let before = bytes(&b);
            assert_ne!(bytes(&h.push_and_pull(b).unwrap()), before, "{format} {w}x{hgt}");
        }
    }
    assert_eq!(complaints(&bus), [""; 0]);
}

#[test]
fn a_stream_without_frames_ends_with_eos() {
    let (mut h, element, bus) = harness(&[]);
    h.set_src_caps(caps("NV12", 64, 64));
    assert!(h.push_event(gst::event::Eos::new()));
    assert!(std::iter::from_fn(|| h.try_pull_event()).any(|e| e.type_() == gst::EventType::Eos));
    assert_eq!(stat(&element, "frames"), 0);
    assert_eq!(complaints(&bus), [""; 0]);
}

#[test]
fn overlay_none_and_enabled_false_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let location = model(dir.path());
    for off in [("overlay-mode", "none"), ("enabled", "false")] {
        let (mut h, element, _) = harness(&[
            ("model-location", location.to_str().unwrap()),
            ("sync-mode", "frame-accurate"),
            ("threshold", "0.1"),
            off,
        ]);
        let caps = caps("I420", 63, 47);
        h.set_src_caps(caps.clone());
        let b = buffer(&caps, 0);
        let before = bytes(&b);
        assert_eq!(bytes(&h.push_and_pull(b).unwrap()), before);
        assert_eq!(stat(&element, "inferred"), u64::from(off.0 == "overlay-mode"));
    }
}

/// Files that are not a model, and the part of the message that must follow the path.
fn bad_models(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let whole = std::fs::read(model(dir)).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    vec![
        (dir.join("nowhere.safetensors"), "No such file"),
        (file("truncated.safetensors", &whole[..whole.len() / 2]), "truncated"),
        (file("text.safetensors", b"these are not weights, but a few words"), "not"),
        (file("empty.safetensors", b""), "empty"),
    ]
}

#[test]
fn a_model_that_cannot_be_loaded_is_a_bus_error_with_path_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    init();
    for (path, reason) in bad_models(dir.path()) {
        let element = gst::ElementFactory::make("autosam")
            .property("model-location", path.to_str().unwrap())
            .property_from_str("on-error", "fail")
            .build()
            .unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Paused).is_err(), "{path:?}");
        let said = complaints(&bus).join("\n");
        assert!(said.starts_with("error:") && said.contains(path.to_str().unwrap()), "{said}");
        assert!(said.contains(reason), "{reason}: {said}");
        element.set_state(gst::State::Null).unwrap();
    }
}

#[test]
fn with_passthrough_video_continues_and_a_warning_gives_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    for (path, reason) in bad_models(dir.path()) {
        let (mut h, _, bus) = harness(&[("model-location", path.to_str().unwrap())]);
        let caps = caps("NV12", 64, 64);
        h.set_src_caps(caps.clone());
        for i in 0..3 {
            let b = buffer(&caps, i);
            let before = bytes(&b);
            assert_eq!(bytes(&h.push_and_pull(b).unwrap()), before);
        }
        let said = complaints(&bus).join("\n");
        assert!(said.starts_with("warning:") && said.contains(path.to_str().unwrap()), "{said}");
        assert!(said.contains(reason), "{reason}: {said}");
    }
}

#[test]
fn states_can_be_cycled() {
    init();
    let pipeline = gst::parse::launch(
        "videotestsrc num-buffers=5 ! video/x-raw,format=NV12,width=64,height=64 ! autosam ! fakesink",
    )
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    for _ in 0..5 {
        pipeline.set_state(gst::State::Playing).unwrap();
        let ends = [gst::MessageType::Eos, gst::MessageType::Error];
        let message =
            pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(30), &ends).unwrap();
        assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
        pipeline.set_state(gst::State::Null).unwrap();
    }
}

#[test]
fn async_adds_no_latency() {
    let (mut h, _, _) = harness(&[]);
    h.set_src_caps(caps("NV12", 64, 64));
    h.set_upstream_latency(gst::ClockTime::from_mseconds(7));
    assert_eq!(h.query_latency(), Some(gst::ClockTime::from_mseconds(7)));
}

#[test]
fn late_frames_are_not_dropped() {
    let (_, element, _) = harness(&[]);
    assert!(!element.property::<bool>("qos"));
}
