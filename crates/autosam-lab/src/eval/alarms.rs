//! False alarms in polyp-free video: how many per minute, how long they last and what they look like, for single frames
//! and with the temporal filter of live video.

use autosam_frame::Luma;
use autosam_frame::map::ProbMap;
use autosam_frame::motion::{self, Extent};
use autosam_frame::temporal::{TemporalFilter, TemporalSettings};
use serde::Serialize;
use std::fmt;

/// Minimum durations of an alarm in seconds; 0 is one frame.
pub const DURATIONS: [f64; 3] = [0.0, 0.5, 1.0];

/// Threshold above which a pixel is drawn.
const THRESHOLD: f32 = 0.5;

/// The temporal filter of live video, with the element's settings and its reset at a scene change.
#[derive(Debug, Default)]
pub struct LiveFilter {
    filter: TemporalFilter,
    index: u64,
    before: Option<Luma>,
}

impl LiveFilter {
    /// Filters the map of the next frame. `luma` is the frame's small copy ([`motion::SIDE`]).
    pub fn apply(&mut self, map: &mut ProbMap, luma: Luma) {
        if self.before.as_ref().is_some_and(|b| motion::shift(b, &luma, Extent::WHOLE).is_none()) {
            self.filter.reset();
        }
        self.before = Some(luma);
        self.filter.apply(map, self.index, THRESHOLD, &TemporalSettings::LIVE);
        self.index += 1;
    }
}

/// An alarm: a maximal run of consecutive frames with an overlay in one sequence.
#[derive(Debug, Clone)]
pub struct Alarm {
    /// Index of its first frame in the sequence.
    pub first: usize,
    /// Its duration in frames.
    pub frames: usize,
    /// The frame with its largest overlay: name and index in the data set.
    pub name: String,
    pub item: usize,
    /// That frame's map.
    pub map: ProbMap,
}

/// Collects the alarms of one sequence, frame after frame.
#[derive(Debug, Default)]
pub struct Collector {
    frames: usize,
    alarms: Vec<Alarm>,
    /// Size in pixels of the current alarm's largest overlay.
    largest: Option<usize>,
}

impl Collector {
    /// Adds the next frame, item `item` of the data set, with or without an `overlay`.
    pub fn observe(&mut self, overlay: bool, name: &str, item: usize, map: &ProbMap) {
        let place = self.frames;
        self.frames += 1;
        if !overlay {
            self.largest = None;
            return;
        }
        let area = map.data.iter().filter(|p| **p > 127).count();
        let shown = |first, frames| Alarm { first, frames, name: name.to_owned(), item, map: map.clone() };
        match (self.largest, self.alarms.last_mut()) {
            (Some(largest), Some(alarm)) => {
                alarm.frames += 1;
                if area > largest {
                    *alarm = shown(alarm.first, alarm.frames);
                }
                self.largest = Some(largest.max(area));
            }
            _ => {
                self.alarms.push(shown(place, 1));
                self.largest = Some(area);
            }
        }
    }

    /// Returns the alarms in order.
    pub fn finish(self) -> Vec<Alarm> {
        self.alarms
    }
}

/// What is drawn on one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Whether the truth has a polyp.
    pub positive: bool,
    /// Whether the single frame has an overlay.
    pub overlay: bool,
    /// Whether it has an overlay with the live filter; `None` if that was not applied.
    pub live: Option<bool>,
}

/// False alarms of sequences without a polyp in any frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolypFree {
    pub frames_per_second: f64,
    pub sequences: usize,
    pub frames: usize,
    pub minutes: f64,
    /// For single frames.
    pub each_frame: Alarms,
    /// With the filter of live video; `None` (JSON `null`) for maps from disk.
    pub live_filter: Option<Alarms>,
}

/// Alarms of polyp-free video.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alarms {
    /// Fraction of frames with an overlay, 0 to 1.
    pub frames_with_overlay: f64,
    pub by_duration: Vec<Lasting>,
}

/// Alarms of a minimum duration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lasting {
    /// Minimum duration in seconds; that of one frame for the shortest.
    pub seconds: f64,
    pub alarms: usize,
    pub per_minute: f64,
}

impl PolypFree {
    /// Evaluates `sequences` at `rate` frames per second; `None` if every sequence has a polyp.
    pub fn new(sequences: &[Vec<Drawn>], rate: f64) -> Option<Self> {
        let free: Vec<&[Drawn]> = sequences
            .iter()
            .map(Vec::as_slice)
            .filter(|s| !s.is_empty() && s.iter().all(|frame| !frame.positive))
            .collect();
        let frames = free.iter().map(|s| s.len()).sum::<usize>();
        if frames == 0 {
            return None;
        }
        let minutes = frames as f64 / rate / 60.0;
        let alarms = |overlay: fn(&Drawn) -> bool| Alarms {
            frames_with_overlay: free.iter().copied().flatten().filter(|f| overlay(f)).count() as f64
                / frames as f64,
            by_duration: DURATIONS
                .iter()
                .map(|least| {
                    // The tolerance makes a run that lasts exactly the minimum count despite rounding.
                    let lasts = |run: &[Drawn]| run.len() as f64 / rate >= least - 1e-9;
                    let runs = free.iter().flat_map(|s| s.chunk_by(|a, b| overlay(a) == overlay(b)));
                    let alarms = runs.filter(|run| overlay(&run[0]) && lasts(run)).count();
                    Lasting { seconds: least.max(1.0 / rate), alarms, per_minute: alarms as f64 / minutes }
                })
                .collect(),
        };
        let filtered = free.iter().copied().flatten().all(|f| f.live.is_some());
        Some(Self {
            frames_per_second: rate,
            sequences: free.len(),
            frames,
            minutes,
            each_frame: alarms(|f| f.overlay),
            live_filter: filtered.then(|| alarms(|f| f.live == Some(true))),
        })
    }

    /// Names and alarms of the two variants, for tables.
    pub fn ways(&self) -> impl Iterator<Item = (&'static str, &Alarms)> {
        let live = self.live_filter.iter().map(|alarms| ("through the live filter", alarms));
        std::iter::once(("each frame by itself", &self.each_frame)).chain(live)
    }
}

impl fmt::Display for PolypFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequences, frames, minutes, frames_per_second: rate, .. } = self;
        write!(
            f,
            "  polyp-free video: {sequences} sequences, {frames} frames, {minutes:.2} min at {rate} frames/s"
        )?;
        for (way, alarms) in self.ways() {
            let share = 100.0 * alarms.frames_with_overlay;
            write!(f, "\n    {way}: {share:.1} % of frames have an overlay; alarms per minute:")?;
            for (i, lasting) in alarms.by_duration.iter().enumerate() {
                let Lasting { seconds, alarms, per_minute } = lasting;
                let comma = if i == 0 { "" } else { "," };
                write!(f, "{comma} {per_minute:.1} of {seconds:.2} s or more ({alarms})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.` no overlay, `#` an overlay, `P` a frame with a polyp.
    fn seen(overlays: &str, live: Option<&str>) -> Vec<Drawn> {
        let mut live = live.map(str::chars);
        overlays
            .chars()
            .map(|c| Drawn {
                positive: c == 'P',
                overlay: c == '#',
                live: live.as_mut().and_then(Iterator::next).map(|c| c == '#'),
            })
            .collect()
    }

    #[test]
    fn alarms_of_polyp_free_sequences_are_counted_by_their_duration() {
        // At 10 frames/s: runs of 1, 4, 5 and 10 frames. An alarm ends with its sequence. Sequences with a polyp do not
        // count.
        let sequences = [
            seen("#.####.#####", Some("....##......")),
            seen("##########..", Some("..########..")),
            seen("##########P#", Some("##########.#")),
        ];
        let found = PolypFree::new(&sequences, 10.0).unwrap();
        assert_eq!((found.sequences, found.frames), (2, 24));
        assert!((found.minutes - 0.04).abs() < 1e-12);
        let counts = |a: &Alarms| a.by_duration.iter().map(|l| l.alarms).collect::<Vec<_>>();
        assert_eq!(counts(&found.each_frame), [4, 2, 1]);
        assert!((found.each_frame.frames_with_overlay - 20.0 / 24.0).abs() < 1e-12);
        let rates: Vec<f64> = found.each_frame.by_duration.iter().map(|l| l.per_minute).collect();
        assert!(rates.iter().zip([100.0, 50.0, 25.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{rates:?}");
        let live = found.live_filter.as_ref().unwrap();
        assert_eq!(counts(live), [2, 1, 0]);
        assert!((live.frames_with_overlay - 10.0 / 24.0).abs() < 1e-12);
        let seconds: Vec<f64> = live.by_duration.iter().map(|l| l.seconds).collect();
        assert_eq!(seconds, [0.1, 0.5, 1.0]);
        // At 25 frames/s twelve frames last 0.48 s, thirteen 0.52 s.
        let at_25 = PolypFree::new(&[seen("############.#############", None)], 25.0).unwrap();
        assert_eq!((counts(&at_25.each_frame), at_25.live_filter), (vec![2, 1, 0], None));
        assert_eq!(PolypFree::new(&[seen("#P#", None), Vec::new()], 25.0), None);
    }

    fn map(lit: usize, p: u8) -> ProbMap {
        let (width, height) = (48, 32);
        let data =
            (0..width * height).map(|i| if i % width < lit && i / width < 8 { p } else { 0 }).collect();
        ProbMap { width, height, data }
    }

    #[test]
    fn an_alarm_is_represented_by_its_largest_overlay() {
        let mut collector = Collector::default();
        for (i, lit) in [0, 2, 6, 4, 0, 0, 5, 5].into_iter().enumerate() {
            collector.observe(lit > 0, &format!("f{i}"), 10 + i, &map(lit, 200));
        }
        let alarms = collector.finish();
        let told: Vec<_> = alarms.iter().map(|a| (a.first, a.frames, a.name.as_str(), a.item)).collect();
        assert_eq!(told, [(1, 3, "f2", 12), (6, 2, "f6", 16)]);
        assert_eq!(alarms[0].map, map(6, 200));
    }

    /// A frame has weight 0.6: 255 is smoothed to 153, 214, 239 and 249, of which only the last is above 0.95 · 255.
    /// One frame without a detection leaves 0.4 of it, which is below the threshold.
    #[test]
    fn the_live_filter_delays_the_start_of_an_alarm_but_not_its_end() {
        let luma = || Luma { width: 16, height: 16, data: vec![90; 256] };
        let mut filter = LiveFilter::default();
        let shown: String = [0, 255, 255, 255, 255, 255, 0, 255]
            .into_iter()
            .map(|p| {
                let mut map = map(6, p);
                filter.apply(&mut map, luma());
                if map.data.iter().any(|p| *p > 127) { '#' } else { '.' }
            })
            .collect();
        assert_eq!(shown, "....##..");
    }
}
