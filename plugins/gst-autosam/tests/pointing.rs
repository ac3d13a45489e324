//! Pointing at an object: after navigation events and action signals a promptable model follows it.

mod common;

use autosam_engine::segmenter::{ObjectPrompt, Segmenter};
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::resize::InputSize;
use common::{Scripted, around, bytes, messages, next_message, scripted};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::{NavigationEvent, NavigationModifierType};
use std::path::Path;
use std::sync::{Arc, Mutex};

const SIZE: (i32, i32) = (128, 96);
const ACCURATE: (&str, &str) = ("sync-mode", "frame-accurate");
const BLUE: [u8; 3] = [0, 0, 255];
/// Middles and radius of the two discs.
const FIRST: (f64, f64) = (36.0, 40.0);
const SECOND: (f64, f64) = (92.0, 56.0);
const RADIUS: f64 = 14.0;

/// A model whose object is every pixel with the red value at a foreground point or at the middle of a box, except pixels with the
/// red value at a background point.
struct Promptable {
    asked: Arc<Mutex<Vec<ObjectPrompt>>>,
}

impl Segmenter for Promptable {
    fn input_size(&self) -> InputSize {
        128.into()
    }
    fn segment(&mut self, sample: &ModelInput, out: &mut ProbMap) -> autosam_frame::Result<()> {
        let data = vec![0; sample.width * sample.height];
        *out = ProbMap { width: sample.width, height: sample.height, data };
        Ok(())
    }
    fn takes_prompts(&self) -> bool {
        true
    }
    fn segment_object(
        &mut self,
        sample: &ModelInput,
        prompt: &ObjectPrompt,
        out: &mut ProbMap,
        object: &mut ProbMap,
    ) -> autosam_frame::Result<()> {
        self.segment(sample, out)?;
        self.asked.lock().unwrap().push(prompt.clone());
        let red = |x: f32, y: f32| sample.rgb[3 * (y.round() as usize * sample.width + x.round() as usize)];
        let reds = |foreground: bool| {
            let points = prompt.points.iter().filter(move |p| p.foreground == foreground);
            points.map(|p| red(p.x, p.y)).collect::<Vec<_>>()
        };
        let (mut yes, no) = (reds(true), reds(false));
        yes.extend(prompt.bounds.map(|[l, t, r, b]| red((l + r) / 2.0, (t + b) / 2.0)));
        let is = |p: &[u8]| yes.contains(&p[0]) && !no.contains(&p[0]);
        let data = sample.rgb.chunks_exact(3).map(|p| if is(p) { 255 } else { 0 }).collect();
        *object = ProbMap { width: sample.width, height: sample.height, data };
        Ok(())
    }
}

type Asked = Arc<Mutex<Vec<ObjectPrompt>>>;

/// An element with a promptable model, in a harness, that draws objects in opaque blue.
fn promptable(properties: &[(&str, &str)]) -> (Harness, gst::Element, gst::Bus, Asked) {
    let asked = Asked::default();
    let hears = asked.clone();
    let drawing = [
        ACCURATE,
        ("overlay-mode", "mask"),
        ("opacity", "1"),
        ("prompt-color", "0xff0000ff"),
        ("roi", "full"),
    ];
    let (element, bus) = scripted(&[&drawing[..], properties].concat(), move |_| {
        Ok(Box::new(Promptable { asked: hears.clone() }))
    });
    let mut h = around(&element);
    h.set_src_caps(common::caps("RGB", SIZE.0, SIZE.1));
    (h, element, bus, asked)
}

/// Two discs, of red 200 and 150, on smooth texture, all `shift` pixels to the right.
fn frame(shift: f64) -> gst::Buffer {
    let pixel = |i: i32| {
        let (x, y) = (f64::from(i % SIZE.0) - shift, f64::from(i / SIZE.0));
        let inside = |(cx, cy): (f64, f64)| (x - cx).hypot(y - cy) < RADIUS;
        let red = if inside(FIRST) {
            200
        } else if inside(SECOND) {
            150
        } else {
            40
        };
        let light = 90.0 + 40.0 * (0.21 * x).sin() * (0.17 * y).cos() + 30.0 * (0.07 * x + 0.11 * y).sin();
        [red, light as u8, 60]
    };
    let mut buffer = gst::Buffer::from_mut_slice((0..SIZE.0 * SIZE.1).flat_map(pixel).collect::<Vec<u8>>());
    buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(40));
    buffer
}

/// IoU of the blue pixels of `drawn` with a disc around `centre`; 0 without blue pixels.
fn iou(drawn: &gst::Buffer, centre: (f64, f64)) -> f64 {
    let (mut both, mut any) = (0u32, 0u32);
    for (i, pixel) in bytes(drawn).chunks_exact(3).enumerate() {
        let (x, y) = ((i as i32 % SIZE.0) as f64, (i as i32 / SIZE.0) as f64);
        let (drawn, truth) = (pixel == BLUE, (x - centre.0).hypot(y - centre.1) < RADIUS);
        both += u32::from(drawn && truth);
        any += u32::from(drawn || truth);
    }
    f64::from(both) / f64::from(any)
}

fn is_blue(drawn: &gst::Buffer) -> bool {
    bytes(drawn).chunks_exact(3).any(|p| p == BLUE)
}

fn send(h: &mut Harness, event: NavigationEvent) {
    h.push_upstream_event(event.build());
}

/// Presses a mouse button at `from` and releases it at `to`.
fn drag(
    h: &mut Harness,
    button: i32,
    modifier_state: NavigationModifierType,
    from: (f64, f64),
    to: (f64, f64),
) {
    send(h, NavigationEvent::MouseButtonPress { button, x: from.0, y: from.1, modifier_state });
    send(h, NavigationEvent::MouseButtonRelease { button, x: to.0, y: to.1, modifier_state });
}

fn click(h: &mut Harness, button: i32, at: (f64, f64)) {
    drag(h, button, NavigationModifierType::empty(), at, at);
}

/// The reason of the next refused prompt.
fn refusal(bus: &gst::Bus) -> String {
    next_message(bus, "application/x-autosam-prompt-refused").get("reason").unwrap()
}

/// The id of the next object that ends, and the reason.
fn end(bus: &gst::Bus) -> (u32, String) {
    let s = next_message(bus, "application/x-autosam-prompt-ended");
    (s.get("id").unwrap(), s.get("reason").unwrap())
}

/// The events on the element's src pad about the drawn object: its id, and whether it is shown.
fn objects_announced_downstream(h: &mut Harness) -> Vec<(u32, bool)> {
    let events = std::iter::from_fn(|| h.try_pull_event());
    let own = events.filter_map(|e| {
        e.structure().filter(|s| s.name() == "application/x-autosam-prompt").map(|s| s.to_owned())
    });
    own.map(|s| (s.get("id").unwrap(), s.get("shown").unwrap())).collect()
}

#[test]
fn a_click_draws_the_object_under_it_in_the_prompt_colour() {
    let (mut h, _, bus, asked) = promptable(&[("attach-meta", "true")]);
    assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    assert!(asked.lock().unwrap().is_empty(), "the model was asked although nobody pointed");
    click(&mut h, 1, FIRST);
    let out = h.push_and_pull(frame(0.0)).unwrap();
    assert!(iou(&out, FIRST) > 0.9, "{}", iou(&out, FIRST));
    let started = next_message(&bus, "application/x-autosam-prompt-started");
    assert_eq!(started.get::<u32>("id").unwrap(), 1);
    let left = started.get::<u32>("x").unwrap();
    assert!(left.abs_diff((FIRST.0 - RADIUS) as u32) <= 2, "{left}");
    assert_eq!(objects_announced_downstream(&mut h), [(1, true)]);
    let roi = out.meta::<gst_video::VideoRegionOfInterestMeta>().unwrap();
    assert_eq!((roi.roi_type(), roi.id()), ("prompt", 1));
    let mask = gst::meta::CustomMeta::from_buffer(&out, "GstAutoSamPromptMeta").unwrap();
    assert_eq!(mask.structure().get::<u32>("id").unwrap(), 1);
    // In later frames the prompt is the object's own mask and a point inside it, so that the mask follows the tissue.
    for shift in [0.0, 3.0, 6.0] {
        let out = h.push_and_pull(frame(shift)).unwrap();
        let now = (FIRST.0 + shift, FIRST.1);
        assert!(iou(&out, now) > 0.85, "{shift}: {}", iou(&out, now));
    }
    let last = asked.lock().unwrap().last().unwrap().clone();
    assert!(last.mask.is_some() && last.points.len() == 1 && last.points[0].foreground, "{:?}", last.points);
    assert!((f64::from(last.points[0].x) - FIRST.0 - 6.0).abs() < RADIUS / 2.0, "{:?}", last.points);
    assert_eq!(messages(&bus, "application/x-autosam-prompt-started").len(), 0, "reported again");
}

#[test]
fn a_click_on_another_object_replaces_the_first() {
    let (mut h, _, bus, _) = promptable(&[]);
    click(&mut h, 1, FIRST);
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), FIRST) > 0.9);
    click(&mut h, 1, SECOND);
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), SECOND) > 0.9);
    assert_eq!(end(&bus), (1, "replaced".to_owned()));
    assert_eq!(next_message(&bus, "application/x-autosam-prompt-started").get::<u32>("id").unwrap(), 2);
    assert_eq!(objects_announced_downstream(&mut h), [(1, true), (2, true)]);
}

#[test]
fn background_points_correct_the_object_and_need_one() {
    let (mut h, _, bus, asked) = promptable(&[]);
    for (button, state) in [(3, NavigationModifierType::empty()), (1, NavigationModifierType::SHIFT_MASK)] {
        drag(&mut h, button, state, SECOND, SECOND);
        assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
        assert_eq!(refusal(&bus), "no-object");
        // Two points before the first mask select both discs; then a background point removes one of them.
        click(&mut h, 1, FIRST);
        click(&mut h, 1, SECOND);
        assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), SECOND) > 0.4);
        drag(&mut h, button, state, SECOND, SECOND);
        for _ in 0..3 {
            assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), FIRST) > 0.9);
        }
        let last = asked.lock().unwrap().last().unwrap().clone();
        assert_eq!(last.points.iter().map(|p| p.foreground).collect::<Vec<_>>(), [true, false]);
        send(&mut h, NavigationEvent::new_key_press("Escape"));
    }
}

#[test]
fn a_drag_prompts_with_a_box() {
    let (mut h, _, _, asked) = promptable(&[]);
    let (from, to) = ((SECOND.0 + 16.0, SECOND.1 - 16.0), (SECOND.0 - 16.0, SECOND.1 + 16.0));
    drag(&mut h, 1, NavigationModifierType::empty(), from, to);
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), SECOND) > 0.9);
    let bounds = asked.lock().unwrap()[0].bounds.unwrap();
    let want = [75.5, 39.5, 107.5, 71.5f32];
    assert!(bounds.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.01), "{bounds:?}");
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), SECOND) > 0.9);
    assert_eq!(asked.lock().unwrap()[1].bounds, None, "its mask has replaced the box");
}

#[test]
fn escape_clears_all_prompts() {
    let (mut h, _, bus, _) = promptable(&[]);
    click(&mut h, 1, FIRST);
    assert!(is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    // Queued prompts are cleared, too.
    click(&mut h, 1, SECOND);
    send(&mut h, NavigationEvent::new_key_press("Escape"));
    assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    assert_eq!(end(&bus), (1, "cleared".to_owned()));
    assert_eq!(objects_announced_downstream(&mut h), [(1, true), (1, false)]);
    assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
}

#[test]
fn action_signals_prompt_like_clicks_and_drags() {
    let (mut h, element, bus, asked) = promptable(&[]);
    let point = |at: (f64, f64), foreground: bool| {
        element.emit_by_name::<bool>("prompt-point", &[&at.0, &at.1, &foreground])
    };
    assert!(point(FIRST, true));
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), FIRST) > 0.9);
    assert!(element.emit_by_name::<bool>("clear-prompts", &[]));
    assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    assert!(element.emit_by_name::<bool>("prompt-box", &[&76.0f64, &40.0f64, &32.0f64, &32.0f64]));
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), SECOND) > 0.9);
    assert!(asked.lock().unwrap().last().unwrap().bounds.is_some());
    assert!(!point((1000.0, 3.0), true));
    assert_eq!(refusal(&bus), "outside-frame");
    element.set_property("enabled", false);
    assert!(!point(FIRST, true));
    assert_eq!(refusal(&bus), "disabled");
}

#[test]
fn a_model_without_prompts_is_reported() {
    let (element, bus) = scripted(&[ACCURATE], |_| Ok(Box::new(Scripted(|_: &_| Ok(0)))));
    let mut h = around(&element);
    h.set_src_caps(common::caps("RGB", SIZE.0, SIZE.1));
    click(&mut h, 1, FIRST);
    h.push_and_pull(frame(0.0)).unwrap();
    assert_eq!(refusal(&bus), "unsupported");
    assert_eq!(common::stat(&element, "errors"), 0);
}

#[test]
fn too_many_prompts_are_refused_without_delaying_video() {
    let (element, bus, go) = common::gated(&[]);
    let mut h = around(&element);
    h.set_src_caps(common::caps("RGB", SIZE.0, SIZE.1));
    for _ in 0..17 {
        click(&mut h, 1, FIRST);
    }
    assert_eq!(refusal(&bus), "busy");
    h.push_and_pull(frame(0.0)).unwrap();
    drop(go);
}

#[test]
fn a_flush_and_new_caps_end_the_object() {
    for by_caps in [false, true] {
        let (mut h, _, bus, _) = promptable(&[]);
        click(&mut h, 1, FIRST);
        assert!(is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
        if by_caps {
            let caps = common::caps("RGB", SIZE.0, SIZE.1);
            h.set_src_caps(
                gst::Caps::builder_full()
                    .structure({
                        let mut s = caps.structure(0).unwrap().to_owned();
                        s.set("framerate", gst::Fraction::new(30, 1));
                        s
                    })
                    .build(),
            );
        } else {
            h.push_event(gst::event::FlushStart::new());
            h.push_event(gst::event::FlushStop::new(true));
            h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        }
        assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()), "by caps: {by_caps}");
        assert_eq!(end(&bus), (1, "flush".to_owned()), "by caps: {by_caps}");
    }
}

#[test]
fn a_scene_change_ends_the_object() {
    let (mut h, _, bus, _) = promptable(&[]);
    click(&mut h, 1, FIRST);
    assert!(is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    let other = (0..SIZE.0 * SIZE.1).flat_map(|i| {
        let (x, y) = (i % SIZE.0 / 9, i / SIZE.0 / 9);
        [200, (x * 7919 + y * 104_729) as u8, 60]
    });
    let other = gst::Buffer::from_mut_slice(other.collect::<Vec<u8>>());
    assert!(!is_blue(&h.push_and_pull(other).unwrap()));
    assert_eq!(end(&bus), (1, "scene-change".to_owned()));
}

#[test]
fn an_object_outlives_its_model() {
    let (mut h, element, bus, asked) = promptable(&[]);
    click(&mut h, 1, FIRST);
    assert!(is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    element.set_property("model-location", "another");
    assert!(next_message(&bus, "application/x-autosam-model-updated").get::<bool>("success").unwrap());
    assert!(iou(&h.push_and_pull(frame(0.0)).unwrap(), FIRST) > 0.9);
    assert!(asked.lock().unwrap().last().unwrap().mask.is_some());
    let no: fn(Option<&Path>) -> autosam_frame::Result<Box<dyn Segmenter>> =
        |_| Ok(Box::new(Scripted(|_: &_| Ok(0))));
    element.downcast_ref::<gstautosam::AutoSam>().unwrap().set_model_factory(no);
    element.set_property("model-location", "without prompts");
    assert!(next_message(&bus, "application/x-autosam-model-updated").get::<bool>("success").unwrap());
    assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    assert_eq!(end(&bus), (1, "unsupported".to_owned()));
}

#[test]
fn prompt_positions_are_right_within_a_roi() {
    // The network sees the right half at twice its size.
    let (mut h, _, bus, asked) = promptable(&[("roi", "64,24,64,64")]);
    click(&mut h, 1, FIRST);
    assert!(!is_blue(&h.push_and_pull(frame(0.0)).unwrap()));
    assert_eq!(refusal(&bus), "outside-region");
    click(&mut h, 1, SECOND);
    let out = h.push_and_pull(frame(0.0)).unwrap();
    assert!(iou(&out, SECOND) > 0.85, "{}", iou(&out, SECOND));
    let point = asked.lock().unwrap()[0].points[0];
    assert!((point.x - 55.5).abs() < 0.01 && (point.y - 63.5).abs() < 0.01, "{point:?}");
}

/// The position of a navigation event sent by a sink at `at` after it has passed the elements of `chain`.
fn translated(chain: &str, at: (f64, f64)) -> (f64, f64) {
    common::init();
    let line = format!(
        "videotestsrc ! video/x-raw,format=I420,width=320,height=240 ! autosam enabled=false name=a ! {chain} ! fakesink name=s"
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let places = Arc::new(Mutex::new(Vec::new()));
    let hears = places.clone();
    let pad = pipeline.by_name("a").unwrap().static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::EVENT_UPSTREAM, move |_, info| {
        if let Some(event) = info.event()
            && let Ok(NavigationEvent::MouseButtonPress { x, y, .. }) = NavigationEvent::parse(event)
        {
            hears.lock().unwrap().push((x, y));
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Paused).unwrap();
    pipeline.state(gst::ClockTime::from_seconds(30)).0.unwrap();
    let sink = pipeline.by_name("s").unwrap().static_pad("sink").unwrap();
    sink.push_event(NavigationEvent::new_mouse_button_press(1, at.0, at.1).build());
    pipeline.set_state(gst::State::Null).unwrap();
    let places = places.lock().unwrap();
    assert_eq!(places.len(), 1, "{chain}");
    places[0]
}

/// docs/howto/point.md names these elements.
#[test]
fn downstream_elements_translate_positions() {
    for (chain, at, want) in [
        ("identity", (100.0, 80.0), (100.0, 80.0)),
        ("videoconvert ! video/x-raw,format=RGB", (100.0, 80.0), (100.0, 80.0)),
        (
            "videoscale ! video/x-raw,width=640,height=480,pixel-aspect-ratio=1/1",
            (200.0, 160.0),
            (100.0, 80.0),
        ),
        ("videoscale add-borders=false ! video/x-raw,width=160,height=240", (50.0, 80.0), (100.0, 80.0)),
        ("videocrop left=20 top=10", (100.0, 80.0), (120.0, 90.0)),
        ("videobox left=20 top=10", (100.0, 80.0), (120.0, 90.0)),
        ("queue ! tee ! queue", (100.0, 80.0), (100.0, 80.0)),
    ] {
        let got = translated(chain, at);
        assert!(
            (got.0 - want.0).abs() <= 1.0 && (got.1 - want.1).abs() <= 1.0,
            "{chain}: {got:?}, not {want:?}"
        );
    }
}
