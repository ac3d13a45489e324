//! Pointing with the shipped model at polyps of the synthetic endoscopy: how well an object's mask fits, and for how long.

use autosam::engine::{Engine, Event, Prompt, PromptEvent, Settings};
use autosam::frame::Frame;
use autosam::model::{self, ModelOptions};
use autosam::synth::{Sequence, SequenceConfig};
use image::GrayImage;
use std::sync::mpsc;

/// Frames after the click: two seconds.
const FOLLOWED: usize = 50;
/// A polyp that takes less of the frame has left the view.
const IN_VIEW: f64 = 0.005;

fn is_set(value: u8) -> bool {
    value > 127
}

fn iou(mask: &[u8], truth: &GrayImage) -> f64 {
    let pairs = || mask.iter().zip(truth.as_raw()).map(|(m, t)| (is_set(*m), is_set(*t)));
    let (both, any) = (pairs().filter(|p| p.0 && p.1).count(), pairs().filter(|p| p.0 || p.1).count());
    both as f64 / any.max(1) as f64
}

fn part(truth: &GrayImage) -> f64 {
    truth.iter().filter(|v| is_set(**v)).count() as f64 / truth.len() as f64
}

/// A pixel in the middle of the polyp's longest row.
fn middle(truth: &GrayImage) -> (u32, u32) {
    let runs = truth.enumerate_rows().flat_map(|(y, row)| {
        let row: Vec<bool> = row.map(|(_, _, v)| is_set(v.0[0])).collect();
        let mut start = 0;
        let runs = row.chunk_by(|a, b| a == b).map(|run| {
            start += run.len();
            (if run[0] { run.len() } else { 0 }, start - run.len() / 2, y)
        });
        runs.collect::<Vec<_>>()
    });
    let (_, x, y) = runs.max_by_key(|(length, ..)| *length).unwrap();
    (x as u32, y)
}

/// Clicks on the polyp of the sequence as soon as one is well in view. Gives the IoU of the object's mask with the truth on each frame
/// from then on, and why the object ended.
fn follow(seed: u64) -> (Vec<f64>, Vec<&'static str>) {
    let sequence = Sequence::new(seed, SequenceConfig { frames: 120, ..SequenceConfig::default() }).unwrap();
    let start =
        (0..60).step_by(3).find(|i| (0.015..0.2).contains(&part(&sequence.frame(*i).1))).expect("a polyp");
    let (send, events) = mpsc::channel();
    let handler = move |event| {
        if let Event::Prompted(PromptEvent::Ended { reason, .. } | PromptEvent::Refused { reason }) = event {
            send.send(reason).unwrap();
        }
    };
    let open = || model::open(None, &ModelOptions::default());
    let mut engine = Engine::start(Box::new(open), Settings::default(), Box::new(handler)).unwrap();
    let frames = (start..=start + FOLLOWED).map(|i| (i, sequence.frame(i)));
    let ious = frames.take_while(|(_, (_, truth))| part(truth) >= IN_VIEW).map(|(i, (rgb, truth))| {
        let (width, height) = truth.dimensions();
        if i == start {
            let (x, y) = middle(&truth);
            let place = |v: u32, size: u32| (v as f32 + 0.5) / size as f32;
            let prompt = Prompt::Point { x: place(x, width), y: place(y, height), foreground: true };
            engine.control().prompt(prompt).unwrap();
        }
        let frame = Frame::rgb_image(&rgb);
        engine.segment(&frame, Some(i as u64 * 40_000_000)).unwrap();
        let object = engine.current_object(&frame);
        object.map_or(0.0, |o| iou(&o.detection.mask.enlarge(width as usize, height as usize), &truth))
    });
    let ious = ious.collect();
    drop(engine);
    (ious, events.try_iter().collect())
}

/// The bars of a click: IoU of 0.8 at once, and 0.6 on average while the polyp is in view.
#[test]
fn a_click_on_a_polyp_outlines_it_and_follows_it() {
    for seed in [207, 209] {
        let (ious, ended) = follow(seed);
        let (first, rest) = (ious[0], &ious[1..]);
        let mean = rest.iter().sum::<f64>() / rest.len() as f64;
        println!(
            "sequence {seed}: IoU {first:.3} on the frame of the click, {mean:.3} on the {} after it",
            rest.len()
        );
        assert!(first >= 0.8 && mean >= 0.6, "sequence {seed}: {first:.3}, then {mean:.3}");
        assert!(rest.len() >= 30 && ended.is_empty(), "sequence {seed}: {} frames, {ended:?}", rest.len());
    }
}
