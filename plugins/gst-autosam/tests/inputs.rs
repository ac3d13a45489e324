//! Real inputs of capture cards, towers and files: formats, pixel aspect ratios, fields, rates; live and paused pipelines.

mod common;

use autosam_frame::PixelFormat;
use autosam_frame::map::ModelInput;
use common::{Scripted, around, buffer, bytes, caps, complaints, gated, init, model, scripted, stat};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::prelude::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ACCURATE: (&str, &str) = ("sync-mode", "frame-accurate");

/// The last sample that the network saw.
type Seen = Arc<Mutex<ModelInput>>;

/// An element whose network detects a polyp everywhere, and the sample that it sees.
fn detecting(properties: &[(&str, &str)]) -> (gst::Element, gst::Bus, Seen) {
    let seen = Seen::default();
    let sees = seen.clone();
    let (element, bus) = scripted(properties, move |_| {
        let sees = sees.clone();
        Ok(Box::new(Scripted(move |sample: &ModelInput| {
            *sees.lock().unwrap() = sample.clone();
            Ok(255)
        })))
    });
    (element, bus, seen)
}

/// `caps` with one more field.
fn with(mut caps: gst::Caps, name: &str, value: impl gst::glib::value::ToSendValue + Sync) -> gst::Caps {
    caps.make_mut().set(name, value);
    caps
}

/// Rows of plane 0 without padding.
fn rows(info: &gst_video::VideoInfo, buffer: &gst::Buffer) -> Vec<Vec<u8>> {
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer.as_ref(), info).unwrap();
    let stride = frame.plane_stride()[0] as usize;
    frame.plane_data(0).unwrap().chunks(stride).map(<[u8]>::to_vec).collect()
}

#[test]
fn formats_of_ten_and_twelve_bits_keep_every_bit_outside_the_overlay() {
    for format in ["v210", "P010_10LE", "P012_LE", "I420_10LE", "I422_10LE", "YUY2", "Y42B", "GRAY8"] {
        // The overlay covers columns 12 to 29 and lines 8 to 19.
        let (element, bus, _) =
            detecting(&[ACCURATE, ("roi", "12,8,18,12"), ("overlay-mode", "mask"), ("opacity", "1")]);
        let mut h = around(&element);
        let caps = caps(format, 50, 38);
        h.set_src_caps(caps.clone());
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        let before = buffer(&caps, 0);
        let (old, memory) = (rows(&info, &before), before.as_ptr());
        let after = h.push_and_pull(before).unwrap();
        assert_eq!(after.as_ptr(), memory, "{format}: copied");
        let new = rows(&info, &after);
        // Bytes of a line that hold columns 12 to 29.
        let columns = match format {
            "v210" => 2 * 16..5 * 16,
            "YUY2" | "P010_10LE" | "P012_LE" | "I420_10LE" | "I422_10LE" => 24..60,
            _ => 12..30,
        };
        for (y, (old, new)) in old.iter().zip(&new).enumerate() {
            let differ: Vec<usize> = (0..old.len()).filter(|i| old[*i] != new[*i]).collect();
            assert_eq!(!differ.is_empty(), (8..20).contains(&y), "{format} line {y}");
            assert!(differ.iter().all(|i| columns.contains(i)), "{format} line {y}: {differ:?}");
        }
        if format == "v210" {
            let words = |rows: &[Vec<u8>]| -> Vec<u8> {
                rows.iter().flatten().skip(3).step_by(4).map(|b| b >> 6).collect()
            };
            assert_eq!(words(&old), words(&new), "bits that hold no value");
        }
        assert_eq!(complaints(&bus), [""; 0]);
    }
}

/// Runs a pipeline with an `autosam` in it to its end.
fn played(launch: &str) -> Result<(), String> {
    init();
    let pipeline = gst::parse::launch(launch).unwrap().downcast::<gst::Pipeline>().unwrap();
    let bus = pipeline.bus().unwrap();
    let started = pipeline.set_state(gst::State::Playing);
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(30), &ends);
    pipeline.set_state(gst::State::Null).unwrap();
    match message.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Eos(_)) if started.is_ok() => Ok(()),
        other => Err(format!("{launch}: {other:?}")),
    }
}

#[test]
fn formats_of_usb_grabbers_are_negotiated_without_a_converter() {
    // v4l2src offers several formats at a time, or one.
    let offers = ["{ YUY2 }", "{ UYVY }", "{ NV12 }", "{ YUY2, YV12 }", "{ YVYU, UYVY, NV12 }", "{ GRAY8 }"];
    for format in offers {
        let caps = format!("video/x-raw,format=(string){format},width=640,height=480,framerate=30/1");
        let source = format!("videotestsrc num-buffers=3 ! capsfilter caps=\"{caps}\"");
        played(&format!("{source} ! autosam overlay-mode=none ! fakevideosink sync=false")).unwrap();
    }
    for decoder in ["jpegdec", "jpegparse ! avdec_mjpeg"] {
        if gst::ElementFactory::find(decoder.rsplit(' ').next().unwrap()).is_none() {
            eprintln!("SKIPPED: {decoder} is not installed");
            continue;
        }
        // Most grabbers compress 4:2:2.
        let source = "videotestsrc num-buffers=3 ! video/x-raw,format=Y42B,width=640,height=480 ! jpegenc";
        played(&format!("{source} ! {decoder} ! autosam overlay-mode=none ! fakevideosink sync=false"))
            .unwrap();
    }
}

#[test]
fn the_network_sees_non_square_pixels_as_a_monitor_shows_them() {
    // Width, height, pixel aspect ratio, and the height of a sample 32 wide.
    for (w, h, aspect, height) in
        [(720, 576, (16, 15), 24), (720, 576, (64, 45), 18), (720, 480, (8, 9), 24), (1440, 1080, (4, 3), 18)]
    {
        let (element, _, seen) = detecting(&[ACCURATE, ("roi", "full")]);
        let mut h_ = around(&element);
        let fraction = gst::Fraction::new(aspect.0, aspect.1);
        let caps = with(caps("I420", w, h), "pixel-aspect-ratio", fraction);
        h_.set_src_caps(caps.clone());
        let before = buffer(&caps, 0);
        let old = bytes(&before);
        let new = bytes(&h_.push_and_pull(before).unwrap());
        let sample = seen.lock().unwrap();
        assert_eq!((sample.width, sample.height), (32, height), "{w}x{h} {aspect:?}");
        // The mask still covers the whole frame.
        let luma = (w * h) as usize;
        let same = old[..luma].iter().zip(&new[..luma]).filter(|(a, b)| a == b).count();
        assert!(same < luma / 20, "{same} of {luma} pixels have no overlay");
    }
}

/// A frame in NV12 of a bright upper and a black lower field.
fn combed(caps: &gst::Caps) -> gst::Buffer {
    let info = gst_video::VideoInfo::from_caps(caps).unwrap();
    let mut buffer = buffer(caps, 0);
    let b = buffer.get_mut().unwrap();
    let mut frame = gst_video::VideoFrameRef::from_buffer_ref_writable(b, &info).unwrap();
    let stride = frame.plane_stride()[0] as usize;
    for (y, row) in frame.plane_data_mut(0).unwrap().chunks_mut(stride).enumerate() {
        row.fill(if y % 2 == 0 { 235 } else { 16 });
    }
    frame.plane_data_mut(1).unwrap().fill(128);
    drop(frame);
    buffer
}

#[test]
fn the_network_sees_one_field_and_the_overlay_is_drawn_on_both() {
    for (mode, flagged) in [("interleaved", false), ("mixed", true), ("mixed", false), ("progressive", false)]
    {
        let (element, bus, seen) = detecting(&[ACCURATE, ("roi", "0,40,96,40"), ("overlay-mode", "mask")]);
        let mut h = around(&element);
        let caps = with(caps("NV12", 96, 120), "interlace-mode", mode);
        h.set_src_caps(caps.clone());
        let mut frame = combed(&caps);
        if flagged {
            frame.get_mut().unwrap().set_video_flags(gst_video::VideoBufferFlags::INTERLACED);
        }
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        let old = rows(&info, &frame);
        let new = rows(&info, &h.push_and_pull(frame).unwrap());
        let sample = seen.lock().unwrap();
        let fields = mode == "interleaved" || flagged;
        let white = sample.rgb.iter().all(|v| *v >= 250);
        assert_eq!(white, fields, "{mode}: the network sees {:?}", &sample.rgb[..3]);
        // In both cases the network sees 96 x 40 pixels of the frame.
        assert_eq!((sample.width, sample.height), (32, 13), "{mode}");
        let drawn: Vec<usize> = (0..120).filter(|y| old[*y] != new[*y]).collect();
        assert_eq!(drawn, (40..80).collect::<Vec<_>>(), "{mode}");
        assert_eq!(complaints(&bus), [""; 0]);
    }
}

#[test]
fn positions_are_reported_in_lines_of_the_frame() {
    let (element, bus, _) = detecting(&[ACCURATE, ("roi", "0,40,96,40")]);
    let mut h = around(&element);
    let caps = with(caps("NV12", 96, 120), "interlace-mode", "interleaved");
    h.set_src_caps(caps.clone());
    h.push_and_pull(combed(&caps)).unwrap();
    let message = common::next_message(&bus, "application/x-autosam-detection-started");
    let number = |name| message.get::<u32>(name).unwrap();
    assert_eq!((number("x"), number("y"), number("width"), number("height")), (0, 40, 96, 40));
}

#[test]
fn fields_in_separate_buffers_are_reported_with_the_fix() {
    let (element, bus, _) = detecting(&[ACCURATE]);
    let mut h = around(&element);
    let caps = with(caps("NV12", 96, 120), "interlace-mode", "fields");
    h.set_src_caps(caps.clone());
    let frame = buffer(&caps, 0);
    let before = bytes(&frame);
    assert_eq!(bytes(&h.push_and_pull(frame).unwrap()), before);
    common::wait(|| bus.have_pending());
    let said = std::cell::RefCell::new(Vec::new());
    common::wait(|| {
        said.borrow_mut().extend(complaints(&bus));
        !said.borrow().is_empty()
    });
    assert!(said.borrow()[0].contains("deinterlace"), "{:?}", said.borrow());
    // Fields in separate buffers need a caps feature that the pads do not have, so the pipeline does not start.
    let alternate = "video/x-raw(format:Interlaced),format=NV12,width=96,height=120,interlace-mode=alternate";
    let template = element.pad_template("sink").unwrap();
    let alternate: gst::Caps = alternate.parse().unwrap();
    assert!(!template.caps().can_intersect(&alternate));
}

#[test]
fn timestamps_are_kept_at_all_frame_rates_and_without_one() {
    // 23.976, 29.97, 50 and 59.94 frames/s; 0/1 is a variable rate.
    let rates = [(24_000, 1001), (30_000, 1001), (50, 1), (60_000, 1001), (0, 1)];
    for (mode, (numerator, denominator)) in
        ["async", "frame-accurate"].iter().flat_map(|mode| rates.map(|rate| (*mode, rate)))
    {
        let (element, bus, _) = detecting(&[("sync-mode", mode)]);
        let mut h = around(&element);
        let rate = gst::Fraction::new(numerator, denominator);
        let caps = with(caps("NV12", 64, 48), "framerate", rate);
        h.set_src_caps(caps.clone());
        let second = 1_000_000_000u64;
        let time = |i: u64| match numerator {
            // A grabber that drops every third frame of 30, with jitter.
            0 => (i + i / 3) * second / 30 + i * i % 7,
            n => i * second * denominator as u64 / n as u64,
        };
        for i in 0..40 {
            let mut frame = buffer(&caps, i);
            let b = frame.get_mut().unwrap();
            let (pts, duration) = (
                gst::ClockTime::from_nseconds(time(i)),
                gst::ClockTime::from_nseconds(time(i + 1) - time(i)),
            );
            b.set_pts(pts);
            b.set_dts(pts);
            b.set_duration(duration);
            b.set_offset(i);
            let out = h.push_and_pull(frame).unwrap();
            assert_eq!(
                (out.pts(), out.dts(), out.duration(), out.offset()),
                (Some(pts), Some(pts), Some(duration), i),
                "{rate} {mode}"
            );
        }
        assert_eq!(h.sinkpad().unwrap().current_caps().unwrap(), caps);
        assert_eq!(stat(&element, "frames"), 40);
        assert_eq!(complaints(&bus), [""; 0]);
    }
}

/// A network that takes `time` for each frame.
fn slow(properties: &[(&str, &str)], time: Duration) -> (gst::Element, gst::Bus) {
    scripted(properties, move |_| {
        Ok(Box::new(Scripted(move |_: &ModelInput| {
            std::thread::sleep(time);
            Ok(255)
        })))
    })
}

fn latency(h: &mut Harness) -> Duration {
    Duration::from_nanos(h.query_latency().unwrap().nseconds())
}

#[test]
fn frame_accurate_answers_the_latency_query_with_the_measured_time() {
    let (element, bus) = slow(&[ACCURATE], Duration::from_millis(150));
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    h.set_upstream_latency(gst::ClockTime::from_mseconds(7));
    let upstream = Duration::from_millis(7);
    assert!(latency(&mut h) > upstream, "no latency is assumed before the first frame");
    for i in 0..3 {
        h.push_and_pull(buffer(&caps, i)).unwrap();
    }
    let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(10), &[gst::MessageType::Latency]);
    assert!(message.is_some(), "no latency message");
    let known = latency(&mut h);
    assert!(known >= upstream + Duration::from_millis(300), "{known:?}: no margin");
    let pad = element.request_pad_simple("mask").unwrap();
    let mut query = gst::query::Latency::new();
    assert!(pad.query(&mut query));
    assert_eq!(Duration::from_nanos(query.result().1.nseconds()), known, "the mask pad");
    while bus.pop_filtered(&[gst::MessageType::Latency]).is_some() {}
    element.set_property_from_str("sync-mode", "async");
    let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(10), &[gst::MessageType::Latency]);
    assert!(message.is_some(), "no latency message");
    assert_eq!(latency(&mut h), upstream);
}

#[test]
fn a_model_too_slow_for_a_live_source_is_reported_once_with_the_fix() {
    // Frames come every 40 ms.
    let (element, bus) = slow(&[ACCURATE], Duration::from_millis(45));
    let mut h = around(&element);
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    h.set_upstream_latency(gst::ClockTime::ZERO);
    h.query_latency();
    for i in 0..30 {
        h.push_and_pull(buffer(&caps, i)).unwrap();
    }
    drop(h);
    element.set_state(gst::State::Null).unwrap();
    let warnings = complaints(&bus);
    assert!(warnings.len() == 1 && warnings[0].contains("sync-mode=async"), "{warnings:?}");
}

#[test]
fn the_latency_is_measured_before_the_first_frame() {
    let dir = tempfile::tempdir().unwrap();
    let location = model(dir.path());
    let asked = |h: &mut Harness| {
        h.set_src_caps(caps("NV12", 64, 48));
        h.set_upstream_latency(gst::ClockTime::ZERO);
        latency(h)
    };
    let (unknown, _) = scripted(&[ACCURATE], |_| Ok(Box::new(Scripted(|_: &ModelInput| Ok(0)))));
    let assumed = asked(&mut around(&unknown));
    // By chance the measured time may equal the assumed one, but not every time.
    let known = |_| {
        let (mut h, _, _) = common::harness(&[("model-location", location.to_str().unwrap()), ACCURATE]);
        asked(&mut h) != assumed
    };
    assert!((0..3).any(known), "{assumed:?} is only the assumed latency");
}

/// Numbers of frames that a live pipeline with a slow model renders and drops.
fn rendered_and_dropped() -> (u64, u64) {
    // This is longer than a sink's tolerance for late frames (20 ms).
    let (element, _) = slow(&[ACCURATE], Duration::from_millis(50));
    element.set_bus(None);
    let source = "videotestsrc is-live=true num-buffers=20 ! capsfilter caps=video/x-raw,format=NV12,width=64,height=48,framerate=5/1";
    let source = gst::parse::bin_from_description(source, true).unwrap();
    let sink = gst::ElementFactory::make("fakevideosink").build().unwrap();
    let pipeline = gst::Pipeline::new();
    pipeline.add_many([source.upcast_ref(), &element, &sink]).unwrap();
    gst::Element::link_many([source.upcast_ref(), &element, &sink]).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Latency];
    loop {
        let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(60), &kinds).expect("an end");
        match message.view() {
            gst::MessageView::Eos(_) => break,
            // gst-launch-1.0 and players do the same.
            gst::MessageView::Latency(_) => pipeline.recalculate_latency().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    // fakevideosink is a bin around the sink.
    let inner = sink.downcast_ref::<gst::Bin>().map_or(sink.clone(), |bin| bin.children()[0].clone());
    let stats = inner.property::<gst::Structure>("stats");
    let (rendered, dropped) = (stats.get::<u64>("rendered").unwrap(), stats.get::<u64>("dropped").unwrap());
    pipeline.set_state(gst::State::Null).unwrap();
    (rendered, dropped)
}

#[test]
fn a_live_pipeline_with_a_sink_that_syncs_renders_every_frame() {
    // A busy machine may be late by chance. Without the latency nearly every frame would be late in every attempt.
    let mut played = (0..3).map(|_| rendered_and_dropped());
    assert!(played.any(|frames| frames == (20, 0)), "frames were dropped in all three attempts");
}

#[test]
fn a_paused_pipeline_shows_its_frame_with_that_frame_s_own_mask() {
    // The element waits as long as a mask may be shown.
    let properties = [("overlay-mode", "mask"), ("opacity", "1"), ("expire-overlay", "20000000000")];
    let (element, _) = slow(&properties, Duration::from_millis(50));
    element.set_bus(None);
    let source = "videotestsrc num-buffers=100 pattern=black ! capsfilter caps=video/x-raw,format=RGB,width=64,height=48,framerate=25/1";
    let source = gst::parse::bin_from_description(source, true).unwrap();
    let sink = gst_app::AppSink::builder().build();
    let pipeline = gst::Pipeline::new();
    pipeline.add_many([source.upcast_ref(), &element, sink.upcast_ref()]).unwrap();
    gst::Element::link_many([source.upcast_ref(), &element, sink.upcast_ref()]).unwrap();
    pipeline.set_state(gst::State::Paused).unwrap();
    let timeout = gst::ClockTime::from_seconds(20);
    pipeline.state(timeout).0.unwrap();
    for place in [None, Some(1000), Some(200), Some(2000)] {
        if let Some(place) = place {
            let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
            pipeline.seek_simple(flags, gst::ClockTime::from_mseconds(place)).unwrap();
            pipeline.state(timeout).0.unwrap();
        }
        let frame = sink.try_pull_preroll(timeout).unwrap().buffer_owned().unwrap();
        assert_eq!(frame.pts(), Some(gst::ClockTime::from_mseconds(place.unwrap_or(0))));
        let drawn = bytes(&frame).chunks(3).filter(|p| *p == [0, 255, 64]).count();
        assert!(drawn > 64 * 48 * 9 / 10, "at {place:?} {drawn} pixels");
    }
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_paused_pipeline_does_not_wait_for_a_model_that_hangs() {
    let (element, _, go) = gated(&[("expire-overlay", "50000000")]);
    let mut h = around(&element);
    element.set_state(gst::State::Paused).unwrap();
    let caps = caps("NV12", 64, 48);
    h.set_src_caps(caps.clone());
    let frame = buffer(&caps, 0);
    let before = bytes(&frame);
    assert_eq!(bytes(&h.push_and_pull(frame).unwrap()), before);
    assert_eq!(stat(&element, "pending"), 1, "it waited for the mask");
    drop(go);
}

#[test]
fn the_pads_offer_every_format() {
    init();
    let template = gst::ElementFactory::find("autosam").unwrap().static_pad_templates();
    let sink = template.iter().find(|t| t.name_template() == "sink").unwrap().caps();
    for format in PixelFormat::ALL {
        assert!(sink.can_intersect(&caps(format.name(), 720, 576)), "{}", format.name());
    }
}
