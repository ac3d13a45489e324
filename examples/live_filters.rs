//! Measures the engine's functions around the network: temporal filter, motion compensation, region of interest. The results in
//! docs/live.md come from it.
//!
//!     cargo run --release --example live_filters -- temporal [--model FILE] [--sunseg DIR] [--count N] [--sweep]
//!     cargo run --release --example live_filters -- motion [--model FILE] [--sunseg DIR] [--count N]
//!     cargo run --release --example live_filters -- roi --data DIR
//!
//! Without --sunseg it uses only synthetic sequences. Each sequence of a SUN-SEG folder is used with polyps, and again as a
//! polyp-free sequence: a moving window of the same frames that avoids the polyp.

use autosam::data::{Dataset, Pair};
use autosam::engine::flow::Flow;
use autosam::engine::mask::{Mask, MaskSettings};
use autosam::engine::motion::{self, Extent};
use autosam::engine::segmenter::{ModelInput, ProbMap, Segmenter};
use autosam::engine::temporal::{TemporalFilter, TemporalSettings};
use autosam::engine::{Engine, Settings};
use autosam::eval::dice;
use autosam::eval::live::{Live, Observed};
use autosam::frame::region::CropMode;
use autosam::frame::resize::Resizer;
use autosam::frame::{Frame, Luma};
use autosam::model::{self, ModelOptions};
use autosam::synth::{Sequence, SequenceConfig};
use image::GrayImage;
use image::imageops::{self, FilterType};
use std::path::Path;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Frame rate of all sequences.
const RATE: f64 = 25.0;
/// Number of frames of a synthetic sequence.
const FRAMES: usize = 75;
/// For masks of filtered maps: the temporal filter already applies hysteresis.
const FILTERED: MaskSettings = MaskSettings { threshold: 0.5, min_area: 0.0, hysteresis: 0.0 };

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    match args.first().map(String::as_str) {
        Some(what @ ("temporal" | "motion")) => {
            let file = value("--model");
            let mut model = model::open(file.as_deref().map(Path::new), &ModelOptions::default())?;
            let count = value("--count").map_or(Ok(6), |n| n.parse())?;
            let mut sets = vec![Set {
                name: "synthetic",
                with: synthetic(&mut *model, count, true)?,
                without: synthetic(&mut *model, count, false)?,
            }];
            if let Some(dir) = value("--sunseg") {
                sets.push(real(&mut *model, &dir)?);
            }
            match what {
                "motion" => motions(&sets),
                _ => temporal(&sets, args.iter().any(|a| a == "--sweep")),
            }
            Ok(())
        }
        Some("roi") => roi(&value("--data").ok_or("roi needs --data DIR")?),
        _ => Err("usage: live_filters temporal|motion [--model FILE] [--sunseg DIR] [--count N] [--sweep] | roi --data DIR".into()),
    }
}

/// Sequences with polyps, and without.
struct Set {
    name: &'static str,
    with: Vec<Clip>,
    without: Vec<Clip>,
}

/// A sequence as the network sees it.
struct Clip {
    samples: Vec<ModelInput>,
    truth: Vec<Vec<u8>>,
    small: Vec<Luma>,
    maps: Vec<ProbMap>,
}

fn clip(model: &mut dyn Segmenter, frames: impl Iterator<Item = Pair>) -> Result<Clip> {
    let (mut resizer, mut small) = (Resizer::new(model.input_size()), Resizer::new(motion::SIDE));
    let mut clip = Clip { samples: vec![], truth: vec![], small: vec![], maps: vec![] };
    for Pair { rgb, mask } in frames {
        let frame = Frame::rgb_image(&rgb);
        let (mut sample, mut luma, mut map) = (ModelInput::default(), Luma::default(), ProbMap::default());
        resizer.resize(&frame, &mut sample)?;
        small.luma(&frame, &mut luma)?;
        model.segment(&sample, &mut map)?;
        let (w, h) = (sample.width as u32, sample.height as u32);
        clip.truth.push(imageops::resize(&mask, w, h, FilterType::Nearest).into_raw());
        clip.samples.push(sample);
        clip.small.push(luma);
        clip.maps.push(map);
    }
    Ok(clip)
}

fn synthetic(model: &mut dyn Segmenter, count: u64, polyps: bool) -> Result<Vec<Clip>> {
    (0..count)
        .map(|n| {
            let config = SequenceConfig { width: 256, height: 208, frames: FRAMES, polyps };
            let sequence = Sequence::new(5000 + 2 * n + u64::from(polyps), config)?;
            let pair = |i| {
                let (rgb, mask) = sequence.frame(i);
                Pair { rgb, mask }
            };
            clip(model, (0..FRAMES).map(pair))
        })
        .collect()
}

/// The sequences of a SUN-SEG split, and the same frames' polyp-free windows.
fn real(model: &mut dyn Segmenter, dir: &str) -> Result<Set> {
    let data = Dataset::open(dir.as_ref())?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for items in data.items.chunk_by(|a, b| a.sequence == b.sequence) {
        let pairs = items.iter().map(|i| i.load()).collect::<autosam::Result<Vec<Pair>>>()?;
        let mut at = None;
        let windows: Vec<Pair> = pairs.iter().filter_map(|p| clear_window(p, &mut at)).collect();
        with.push(clip(model, pairs.into_iter())?);
        if !windows.is_empty() {
            without.push(clip(model, windows.into_iter())?);
        }
    }
    Ok(Set { name: "real", with, without })
}

/// The polyp-free window, 0.6 times the frame's width and height, that is closest to the previous window at `at`.
fn clear_window(pair: &Pair, at: &mut Option<(u32, u32)>) -> Option<Pair> {
    let (w, h) = pair.rgb.dimensions();
    let (ww, wh) = (w * 6 / 10, h * 6 / 10);
    let clear =
        |x: u32, y: u32| (y..y + wh).all(|y| (x..x + ww).all(|x| pair.mask.get_pixel(x, y).0[0] <= 127));
    let (lx, ly) = at.unwrap_or(((w - ww) / 2, (h - wh) / 2));
    let mut places: Vec<(u32, u32)> =
        (0..=8).flat_map(|i| (0..=8).map(move |j| ((w - ww) * i / 8, (h - wh) * j / 8))).collect();
    places.sort_by_key(|(x, y)| x.abs_diff(lx).pow(2) + y.abs_diff(ly).pow(2));
    let (x, y) = places.into_iter().find(|(x, y)| clear(*x, *y))?;
    *at = Some((x, y));
    Some(Pair { rgb: imageops::crop_imm(&pair.rgb, x, y, ww, wh).to_image(), mask: GrayImage::new(ww, wh) })
}

struct Outcome {
    live: Live,
    /// Number of frames from each appearance of a polyp to the first hit.
    first: Vec<Option<usize>>,
    dice: f64,
}

/// The outcome for a viewer if every `step`th frame is inferred.
fn watch(clips: &[&Clip], settings: &TemporalSettings, step: usize) -> Outcome {
    let (mut sequences, mut dices) = (Vec::new(), Vec::new());
    for clip in clips {
        let mut filter = TemporalFilter::default();
        let mut shown = Vec::new();
        let mut seen: Vec<Observed> = Vec::new();
        for (i, map) in clip.maps.iter().enumerate() {
            let (w, h) = (map.width, map.height);
            if i % step == 0 {
                let mut map = map.clone();
                filter.apply(&mut map, i as u64, 0.5, settings);
                shown = Mask::new(map, &FILTERED).enlarge(w, h);
            }
            let truth = &clip.truth[i];
            if truth.iter().any(|t| *t > 127) {
                dices.push(dice(&shown, truth));
            }
            seen.push(observed(&shown, truth, w));
        }
        sequences.push(seen);
    }
    let first = sequences
        .iter()
        .flat_map(|s| s.chunk_by(|a, b| a.positive == b.positive))
        .filter(|s| s[0].positive)
        .map(|s| s.iter().position(|o| o.hit))
        .collect();
    let dice = dices.iter().sum::<f64>() / dices.len().max(1) as f64;
    Outcome { live: Live::new(&sequences, RATE), first, dice }
}

/// Like `Watcher`, but without outlines and motion, which would take most of the time.
fn observed(mask: &[u8], truth: &[u8], width: usize) -> Observed {
    let lit = || (0..mask.len()).filter(|i| mask[*i] > 127);
    let n = lit().count();
    let centre = (n > 0).then(|| {
        let (x, y) = lit().fold((0, 0), |(x, y), i| (x + i % width, y + i / width));
        y / n * width + x / n
    });
    let positive = truth.iter().any(|t| *t > 127);
    let hit = centre.is_some_and(|at| truth[at] > 127);
    Observed { positive, marked: n > 0, hit, consistency: None, boundary: None }
}

fn temporal(sets: &[Set], sweep: bool) {
    let mut all = vec![TemporalSettings::default(), TemporalSettings::LIVE];
    if sweep {
        for smoothing in [0.3, 0.33, 0.36, 0.4, 0.45, 0.5] {
            for hysteresis in [0.44, 0.45, 0.46, 0.47] {
                all.extend([1, 2].map(|hold_off| TemporalSettings { smoothing, hysteresis, hold_off }));
            }
        }
    }
    println!(
        "| set | inferences/s | smoothing | hysteresis | hold-off | false alarms | a minute | fewer | recall | first hit, mean ms | added, median ms | added, mean ms | lost | Dice |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for Set { name, with, without } in sets {
        let clips: Vec<&Clip> = with.iter().chain(without).collect();
        for step in [1, 2] {
            let plain = watch(&clips, &TemporalSettings::default(), step);
            let before = plain.live.false_alarms[0].events;
            for settings in &all {
                let o = watch(&clips, settings, step);
                let alarms = o.live.false_alarms[0];
                let ms = |frames: f64| 1000.0 * frames / RATE;
                let mut added: Vec<f64> = plain
                    .first
                    .iter()
                    .zip(&o.first)
                    .filter_map(|(a, b)| Some(ms((*b)? as f64 - (*a)? as f64)))
                    .collect();
                added.sort_by(f64::total_cmp);
                let lost =
                    plain.first.iter().zip(&o.first).filter(|(a, b)| a.is_some() && b.is_none()).count();
                println!(
                    "| {name} | {:.1} | {} | {} | {} | {} | {:.1} | {:.0} % | {:.3} | {:.0} | {:.0} | {:.0} | {lost} | {:.3} |",
                    RATE / step as f64,
                    settings.smoothing,
                    settings.hysteresis,
                    settings.hold_off,
                    alarms.events,
                    alarms.per_minute.unwrap_or(f64::NAN),
                    100.0 * (1.0 - alarms.events as f64 / before.max(1) as f64),
                    o.live.recall.unwrap_or(f64::NAN),
                    1000.0 * o.live.first_detection_mean.unwrap_or(f64::NAN),
                    added.get(added.len() / 2).copied().unwrap_or(f64::NAN),
                    added.iter().sum::<f64>() / added.len().max(1) as f64,
                    o.dice,
                );
            }
        }
        println!(
            "{name}: {} frames, {:.2} polyp-free minutes",
            clips.iter().map(|c| c.maps.len()).sum::<usize>(),
            watch(&clips, &TemporalSettings::default(), 1).live.polyp_free_minutes
        );
    }
}

/// How a mask is moved from its own frame to a later one.
#[derive(Clone, Copy, PartialEq)]
enum Compensation {
    Still,
    Surroundings,
    WholeFrame,
    Flow,
}

fn moved(
    compensation: Compensation,
    mask: &[u8],
    size: (usize, usize),
    before: &Luma,
    now: &Luma,
) -> Option<Vec<u8>> {
    let (w, h) = size;
    let shifted = |dx: f32, dy: f32| {
        let (dx, dy) = ((dx * w as f32).round() as isize, (dy * h as f32).round() as isize);
        let at = |x: usize, y: usize| {
            let (x, y) = (x.checked_add_signed(-dx)?, y.checked_add_signed(-dy)?);
            (x < w && y < h).then(|| mask[y * w + x])
        };
        (0..w * h).map(|i| at(i % w, i / w).unwrap_or(0)).collect()
    };
    match compensation {
        Compensation::Still => Some(mask.to_vec()),
        Compensation::WholeFrame => motion::shift(before, now, Extent::WHOLE).map(|(x, y)| shifted(x, y)),
        Compensation::Surroundings => {
            let lit = || (0..mask.len()).filter(|i| mask[*i] > 127).map(|i| (i % w, i / w));
            let part = |v: Option<usize>, side: usize| v.unwrap_or(0) as f32 / side as f32;
            let extent = Extent {
                left: part(lit().map(|p| p.0).min(), w),
                top: part(lit().map(|p| p.1).min(), h),
                right: part(lit().map(|p| p.0 + 1).max(), w),
                bottom: part(lit().map(|p| p.1 + 1).max(), h),
            };
            motion::shift(before, now, extent).map(|(x, y)| shifted(x, y))
        }
        Compensation::Flow => {
            let (sw, sh) = (now.width, now.height);
            let small: Vec<bool> =
                (0..sw * sh).map(|i| mask[(i / sw) * h / sh * w + (i % sw) * w / sw] > 127).collect();
            let warped = Flow::between(before, now).warp(&small);
            Some(
                (0..w * h)
                    .map(|i| if warped[(i / w) * sh / h * sw + (i % w) * sw / w] { 255 } else { 0 })
                    .collect(),
            )
        }
    }
}

fn motions(sets: &[Set]) {
    println!(
        "| set | inferences/s | motion compensation | Dice with the frame's own mask | Dice of truth moved with truth | Dice with truth | dropped | µs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for Set { name, with: clips, .. } in sets {
        for rate in [5.0, 10.0, 15.0] {
            for (compensation, label) in [
                (Compensation::Still, "still"),
                (Compensation::WholeFrame, "shift of the whole frame"),
                (Compensation::Surroundings, "shift of the mask's surroundings"),
                (Compensation::Flow, "local flow"),
            ] {
                let (mut own, mut perfect, mut real) = (Vec::new(), Vec::new(), Vec::new());
                let (mut dropped, mut time, mut calls) = (0, 0.0, 0);
                for clip in clips {
                    let masks: Vec<Vec<u8>> = clip
                        .maps
                        .iter()
                        .map(|m| Mask::new(m.clone(), &FILTERED).enlarge(m.width, m.height))
                        .collect();
                    let lit = |m: &[u8]| m.iter().any(|v| *v > 127);
                    for now in 0..masks.len() {
                        // The last inferred frame whose mask is ready by now. Each inference takes one period of the rate.
                        let inferred = ((now as f64 * rate / RATE).floor() - 1.0).max(0.0);
                        let from = (inferred * RATE / rate).ceil() as usize;
                        if from >= now {
                            continue;
                        }
                        let size = (clip.maps[now].width, clip.maps[now].height);
                        let mut bring = |mask: &[u8]| {
                            let begin = Instant::now();
                            let m = moved(compensation, mask, size, &clip.small[from], &clip.small[now]);
                            time += begin.elapsed().as_secs_f64();
                            calls += 1;
                            m
                        };
                        if lit(&masks[from]) && lit(&masks[now]) {
                            match bring(&masks[from]) {
                                Some(m) => {
                                    own.push(dice(&m, &masks[now]));
                                    if lit(&clip.truth[now]) {
                                        real.push(dice(&m, &clip.truth[now]));
                                    }
                                }
                                None => dropped += 1,
                            }
                        }
                        if lit(&clip.truth[from])
                            && lit(&clip.truth[now])
                            && let Some(m) = bring(&clip.truth[from])
                        {
                            perfect.push(dice(&m, &clip.truth[now]));
                        }
                    }
                }
                let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
                println!(
                    "| {name} | {rate} | {label} | {:.3} | {:.3} | {:.3} | {dropped} of {} | {:.0} |",
                    mean(&own),
                    mean(&perfect),
                    mean(&real),
                    own.len() + dropped,
                    1e6 * time / f64::from(calls.max(1)),
                );
            }
        }
        cuts(name, clips);
    }
}

/// Prints the dissimilarity of nearby frames and of frames of different sequences.
fn cuts(name: &str, clips: &[Clip]) {
    let print = |what: &str, mut values: Vec<f32>| {
        if values.is_empty() {
            return;
        }
        values.sort_by(f32::total_cmp);
        let at = |part: f64| values[((values.len() - 1) as f64 * part) as usize];
        let quantiles: Vec<String> =
            [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0].map(|p| format!("{:.2}", at(p))).to_vec();
        println!(
            "{name}, {what}: dissimilarity at 0, 0.1, 1, 10, 50, 90, 99, 99.9, 100 %: {}",
            quantiles.join(" ")
        );
    };
    for apart in [1, 3, 5] {
        let pairs = clips.iter().flat_map(|c| c.small.iter().zip(c.small.iter().skip(apart)));
        print(&format!("{apart} frames apart"), pairs.map(|(a, b)| motion::change(a, b)).collect());
    }
    let pairs = clips.windows(2).flat_map(|w| w[0].small.iter().step_by(3).zip(w[1].small.iter().step_by(3)));
    print("different sequences", pairs.map(|(a, b)| motion::change(a, b)).collect());
}

fn roi(dir: &str) -> Result<()> {
    let data = Dataset::open(dir.as_ref())?;
    let settings = |roi| Settings { roi, ..Settings::default() };
    let open = || {
        Engine::start(
            Box::new(|| model::open(None, &ModelOptions::default())),
            Settings::default(),
            Box::new(|_| ()),
        )
    };
    let mut engine = open()?;
    println!("| region | frames | mean Dice | polyp-free frames with an overlay |");
    println!("|---|---|---|---|");
    for roi in [CropMode::Full, CropMode::Auto] {
        let (mut dices, mut free, mut alarms) = (Vec::new(), 0, 0);
        for item in &data.items {
            let Pair { rgb, mask } = item.load()?;
            engine.control().set(settings(roi));
            engine.control().flush();
            let detection = engine.segment(&Frame::rgb_image(&rgb), None)?;
            let shown = detection.mask.enlarge(rgb.width() as usize, rgb.height() as usize);
            if mask.pixels().any(|p| p.0[0] > 127) {
                dices.push(dice(&shown, mask.as_raw()));
            } else {
                free += 1;
                alarms += usize::from(!detection.mask.regions.is_empty());
            }
        }
        let mean = dices.iter().sum::<f64>() / dices.len().max(1) as f64;
        println!("| {roi} | {} | {mean:.3} | {alarms} of {free} |", dices.len() + free);
    }
    Ok(())
}
