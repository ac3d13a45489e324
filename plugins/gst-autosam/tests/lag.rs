//! Overlays while a slow model lags behind a pan: masks follow the tissue, or are not drawn.

mod common;

use autosam_engine::segmenter::Segmenter;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::resize::InputSize;
use common::{around, bytes, scripted, stat, wait};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

const SIZE: (usize, usize) = (320, 180);
const RADIUS: f32 = 26.0;
const FRAMES: u64 = 150;
/// Duration of an inference in frames: 15, 10 and 5 inferences/s at 30 frames/s.
const SLOW: [u64; 3] = [2, 3, 6];

/// A lattice of random values, smooth between them.
fn noise(x: f32, y: f32, cell: f32) -> f32 {
    let (x, y) = (x / cell, y / cell);
    let (left, top) = (x.floor(), y.floor());
    let at = |dx: i32, dy: i32| {
        let seed = (left as i32 + dx).wrapping_mul(374_761_393) ^ (top as i32 + dy).wrapping_mul(668_265_263);
        let mixed = (seed as u32 ^ (seed as u32 >> 13)).wrapping_mul(1_274_126_177);
        f32::from((mixed >> 16) as u8) / 255.0
    };
    let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
    let (u, v) = (smooth(x - left), smooth(y - top));
    let row = |dy: i32| at(0, dy) + u * (at(1, dy) - at(0, dy));
    row(0) + v * (row(1) - row(0))
}

/// A pan over textured tissue with one red polyp.
#[derive(Clone, Copy)]
struct Pan {
    /// Amplitude of the view's motion in pixels; `period` is its duration in frames.
    reach: (f32, f32),
    period: f32,
    /// The frame at which the view jumps to other tissue.
    cut: Option<u64>,
}

impl Pan {
    fn view(&self, frame: u64) -> (f32, f32) {
        let turn = std::f32::consts::TAU * frame as f32 / self.period;
        let away = if self.cut.is_some_and(|cut| frame >= cut) { 5000.0 } else { 0.0 };
        (self.reach.0 * turn.sin() + away, self.reach.1 * (0.7 * turn).sin())
    }

    fn polyp(&self, frame: u64, x: usize, y: usize) -> bool {
        let (dx, dy) = self.view(frame);
        let (x, y) = (x as f32 + dx - 160.0, y as f32 + dy - 90.0);
        x * x + y * y < RADIUS * RADIUS
    }

    fn buffer(&self, frame: u64) -> gst::Buffer {
        let (dx, dy) = self.view(frame);
        let mut rgb = Vec::with_capacity(3 * SIZE.0 * SIZE.1);
        for (y, x) in (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| (y, x))) {
            let (wx, wy) = (x as f32 + dx, y as f32 + dy);
            let light = 60.0 * noise(wx, wy, 23.0) + 40.0 * noise(wx + 900.0, wy, 9.0);
            let green = if self.polyp(frame, x, y) { 10.0 } else { 70.0 };
            rgb.extend([(130.0 + light) as u8, (green + 0.7 * light) as u8, (40.0 + 0.5 * light) as u8]);
        }
        let mut buffer = gst::Buffer::from_mut_slice(rgb);
        buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_useconds(33_333 * frame));
        buffer
    }

    /// Intersection over union of the overlay and the polyp; `None` if there is neither.
    fn iou(&self, frame: u64, drawn: &[u8]) -> Option<f64> {
        let (mut both, mut any) = (0u32, 0u32);
        for (i, pixel) in drawn.chunks_exact(3).enumerate() {
            let (drawn, true_) = (pixel == GREEN, self.polyp(frame, i % SIZE.0, i / SIZE.0));
            both += u32::from(drawn && true_);
            any += u32::from(drawn || true_);
        }
        (any > 0).then(|| f64::from(both) / f64::from(any))
    }
}

const GREEN: [u8; 3] = [0, 255, 0];

/// Finds the polyp by its colour. If there is a gate, each inference waits until it opens.
struct Slow(Arc<Mutex<Option<Receiver<()>>>>);

impl Segmenter for Slow {
    fn input_size(&self) -> InputSize {
        96.into()
    }
    fn segment(&mut self, sample: &ModelInput, out: &mut ProbMap) -> autosam_frame::Result<()> {
        if let Some(gate) = &*self.0.lock().unwrap() {
            // The gate closes for good at the end of a test.
            let _ = gate.recv();
        }
        let red = |p: &[u8]| if i32::from(p[0]) - i32::from(p[1]) > 95 { 255 } else { 0 };
        let data = sample.rgb.chunks_exact(3).map(red).collect();
        *out = ProbMap { width: sample.width, height: sample.height, data };
        Ok(())
    }
}

/// The IoU of each frame, starting with the first that has an overlay; `None` for frames without overlay and polyp. The model
/// sees every `slow`-th frame, and its mask is ready with the next frame that it sees, independently of this machine's speed.
/// With 0 each frame gets its own mask.
fn play(pan: Pan, slow: u64, properties: &[(&str, &str)]) -> Vec<Option<f64>> {
    let drawing =
        [("overlay-mode", "mask"), ("opacity", "1"), ("color", "0xff00ff00"), ("expire-overlay", "0")];
    let accurate = [("sync-mode", "frame-accurate")];
    let interval = slow.max(1).to_string();
    let timing = if slow == 0 { accurate } else { [("inference-interval", interval.as_str())] };
    let (open, gate): (Sender<()>, Receiver<()>) = channel();
    let gate = Arc::new(Mutex::new((slow > 0).then_some(gate)));
    let (element, _) =
        scripted(&[&drawing[..], &timing, properties].concat(), move |_| Ok(Box::new(Slow(gate.clone()))));
    let mut h = around(&element);
    h.set_src_caps(
        gst::Caps::builder("video/x-raw")
            .field("format", "RGB")
            .field("width", SIZE.0 as i32)
            .field("height", SIZE.1 as i32)
            .field("framerate", gst::Fraction::new(30, 1))
            .build(),
    );
    let mut ious = Vec::new();
    for frame in 0..FRAMES {
        h.push(pan.buffer(frame)).unwrap();
        let drawn = bytes(&h.pull().unwrap());
        if !ious.is_empty() || drawn.chunks_exact(3).any(|p| p == GREEN) {
            ious.push(pan.iou(frame, &drawn));
        }
        if slow > 0 && frame % slow == slow - 1 {
            let before = stat(&element, "inferred");
            open.send(()).unwrap();
            wait(|| stat(&element, "inferred") > before);
        }
    }
    drop(open);
    ious
}

/// Frames without an overlay count as 0.
fn mean(ious: &[Option<f64>]) -> f64 {
    let with: Vec<f64> = ious.iter().copied().flatten().collect();
    with.iter().sum::<f64>() / with.len() as f64
}

const GENTLE: Pan = Pan { reach: (40.0, 15.0), period: 110.0, cut: None };
/// Up to two thirds of the frame's width a second.
const BRISK: Pan = Pan { reach: (95.0, 30.0), period: 90.0, cut: None };

#[test]
fn masks_of_a_slow_model_follow_a_pan() {
    for (name, pan) in [("gentle", GENTLE), ("brisk", BRISK)] {
        let own = mean(&play(pan, 0, &[]));
        assert!(own > 0.85, "{name}: each frame's own mask has {own:.3}");
        for slow in SLOW {
            let (auto, always) = (play(pan, slow, &[]), play(pan, slow, &[("motion-compensation", "true")]));
            let still = mean(&play(pan, slow, &[("motion-compensation", "false")]));
            assert!(auto.len() as u64 > FRAMES - 3 * slow - 2, "{name}, {slow}: {} frames", auto.len());
            let (auto, always) = (mean(&auto), mean(&always));
            println!(
                "{name} pan, {} inferences/s: IoU {auto:.3} (always {always:.3}, still {still:.3}, own {own:.3})",
                30 / slow
            );
            assert!(auto >= 0.8 * own && always >= 0.8 * own, "{name}, {slow}: {auto:.3} of {own:.3}");
            assert!(still < auto, "{name}, {slow}: {still:.3} without following, {auto:.3} with");
        }
    }
}

#[test]
fn masks_follow_a_pan_with_the_default_filter() {
    let own = mean(&play(GENTLE, 0, &[]));
    for slow in SLOW {
        let filter = [("smoothing", "0.4"), ("hysteresis", "0.45")];
        let auto = mean(&play(GENTLE, slow, &filter));
        println!("default filter, {} inferences/s: IoU {auto:.3} (own {own:.3})", 30 / slow);
        assert!(auto >= 0.8 * own, "{slow}: {auto:.3} of {own:.3}");
    }
}

#[test]
fn a_mask_is_not_drawn_after_a_scene_change() {
    const CUT: usize = 80;
    let pan = Pan { cut: Some(CUT as u64), ..GENTLE };
    // With `slow` = 1 the last mask from before the cut is one frame old on the first frame after it.
    for slow in [1].into_iter().chain(SLOW) {
        let drawn_on_nothing = |motion| {
            let ious = play(pan, slow, &[("motion-compensation", motion)]);
            let after = CUT + ious.len() - FRAMES as usize;
            ious[after..].iter().filter(|i| i.is_some()).count()
        };
        let (auto, still) = (drawn_on_nothing("auto"), drawn_on_nothing("false"));
        assert!(auto == 0, "{slow}: {auto} frames after the cut have an overlay from before the cut");
        assert!(still > 0, "{slow}: the test has no lag");
    }
}

#[test]
fn motion_compensation_accepts_booleans() {
    common::init();
    use gst::prelude::*;
    let element = gst::ElementFactory::make("autosam").build().unwrap();
    let value = |element: &gst::Element| {
        let value = element.property_value("motion-compensation");
        gst::glib::EnumValue::from_value(&value).map(|(_, v)| (v.value(), v.nick().to_owned())).unwrap()
    };
    assert_eq!(value(&element), (2, "auto".into()));
    for (text, want) in [("true", 1), ("false", 0), ("auto", 2), ("1", 1), ("0", 0)] {
        element.set_property_from_str("motion-compensation", text);
        assert_eq!(value(&element).0, want, "{text}");
    }
}
