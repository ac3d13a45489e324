//! What one frame's answer is worth in the light of the ones before: probabilities are smoothed over time, and a region shows
//! once it has lasted and has been certain enough. It works on probability maps, before they are cut.

use super::mask::{components, level};
use crate::map::ProbMap;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemporalSettings {
    /// Weight of the past in each new map, 0 (none) to below 1: `p = s · past + (1 - s) · now`.
    pub smoothing: f32,
    /// How far above the threshold some pixel of a region must once have been for the region to show, 0 to 1. A region that
    /// shows stays while it reaches the threshold.
    pub hysteresis: f32,
    /// Frames that a region must last before it shows, the first one included; 0 and 1 are at once.
    pub hold_off: u32,
}

impl TemporalSettings {
    /// For live video: of what takes away nine tenths of the false alarms, adds less than 100 ms and loses no polyp, the one that adds
    /// least (docs/live.md).
    pub const LIVE: Self = Self { smoothing: 0.4, hysteresis: 0.45, hold_off: 1 };
}

impl Default for TemporalSettings {
    /// Off: each map as it is.
    fn default() -> Self {
        Self { smoothing: 0.0, hysteresis: 0.0, hold_off: 1 }
    }
}

/// How far a region may be from where it was, as a part of the map's longer side, to be the same one.
const NEAR: usize = 24;

/// One region's story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Track {
    /// The frame it was first seen in.
    born: u64,
    /// Highest probability so far.
    peak: u8,
    shows: bool,
}

/// Filters the maps of one stream, in order.
#[derive(Debug, Default)]
pub struct TemporalFilter {
    /// Smoothed probabilities times 256.
    past: Vec<u16>,
    size: (usize, usize),
    tracks: Vec<Track>,
    /// For each pixel its region's place in `tracks` plus 1, or 0.
    labels: Vec<u32>,
}

impl TemporalFilter {
    /// Forgets everything: another stream, a seek, another scene.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Smooths `map`, that of frame number `index` of the stream, and sets regions that must not show yet to 0. A map of
    /// another size begins anew.
    pub fn apply(&mut self, map: &mut ProbMap, index: u64, threshold: f32, settings: &TemporalSettings) {
        if self.size != (map.width, map.height) {
            self.reset();
            self.size = (map.width, map.height);
        }
        self.smooth(map, settings.smoothing);
        if settings.hold_off <= 1 && settings.hysteresis <= 0.0 {
            self.tracks.clear();
            self.labels.clear();
            return;
        }
        let low = level(threshold);
        let high = level(threshold + settings.hysteresis);
        let reach = map.width.max(map.height) / NEAR;
        let (mut tracks, mut labels) = (Vec::new(), vec![0; map.data.len()]);
        for members in components(map, low) {
            let peak = members.iter().map(|at| map.data[*at]).max().unwrap_or(0);
            let mut track = Track { born: index, peak, shows: false };
            for before in self.near(&members, map.width, reach) {
                track.born = track.born.min(before.born);
                track.peak = track.peak.max(before.peak);
                track.shows |= before.shows;
            }
            let lasted = index - track.born + 1;
            track.shows |= lasted >= u64::from(settings.hold_off) && track.peak >= high;
            tracks.push(track);
            for at in members {
                labels[at] = tracks.len() as u32;
                if !track.shows {
                    map.data[at] = 0;
                }
            }
        }
        (self.tracks, self.labels) = (tracks, labels);
    }

    fn smooth(&mut self, map: &mut ProbMap, smoothing: f32) {
        let keep = (smoothing.clamp(0.0, 0.99) * 256.0) as u32;
        if keep == 0 {
            self.past.clear();
            return;
        }
        if self.past.len() != map.data.len() {
            self.past = map.data.iter().map(|p| u16::from(*p) << 8).collect();
            return;
        }
        for (past, p) in self.past.iter_mut().zip(&mut map.data) {
            *past = ((u32::from(*past) * keep + (u32::from(*p) << 8) * (256 - keep) + 128) >> 8) as u16;
            *p = ((u32::from(*past) + 128) >> 8).min(255) as u8;
        }
    }

    /// The regions of the map before that are within `reach` of one with these `members`.
    fn near(&self, members: &[usize], width: usize, reach: usize) -> Vec<Track> {
        if self.labels.is_empty() {
            return Vec::new();
        }
        let height = self.labels.len() / width.max(1);
        let mut met = vec![false; self.tracks.len()];
        // A grid as wide as the reach is enough to meet whatever the region's surroundings hold.
        let step = reach.max(1);
        for at in members {
            let (x, y) = (at % width, at / width);
            for (nx, ny) in [
                (x, y),
                (x.saturating_sub(step), y),
                ((x + step).min(width - 1), y),
                (x, y.saturating_sub(step)),
                (x, (y + step).min(height - 1)),
            ] {
                if let Some(label) = (self.labels[ny * width + nx] as usize).checked_sub(1) {
                    met[label] = true;
                }
            }
        }
        self.tracks.iter().zip(met).filter(|(_, met)| *met).map(|(track, _)| *track).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with squares of side 4 at the given places, of the given probability.
    fn map(squares: &[(usize, usize, u8)]) -> ProbMap {
        let (width, height) = (48, 32);
        let mut data = vec![10; width * height];
        for &(x, y, p) in squares {
            for dy in 0..4 {
                data[(y + dy) * width + x..][..4].fill(p);
            }
        }
        ProbMap { width, height, data }
    }

    /// What shows of each map, as the places of squares.
    fn shown(
        maps: &[&[(usize, usize, u8)]],
        indices: &[u64],
        settings: &TemporalSettings,
    ) -> Vec<Vec<(usize, usize)>> {
        let mut filter = TemporalFilter::default();
        maps.iter()
            .zip(indices)
            .map(|(squares, index)| {
                let mut m = map(squares);
                filter.apply(&mut m, *index, 0.5, settings);
                squares
                    .iter()
                    .filter(|(x, y, _)| m.data[y * 48 + x] >= 128)
                    .map(|(x, y, _)| (*x, *y))
                    .collect()
            })
            .collect()
    }

    #[test]
    fn off_changes_nothing() {
        let mut filter = TemporalFilter::default();
        for p in [200, 0, 130] {
            let want = map(&[(5, 5, p)]);
            let mut got = want.clone();
            filter.apply(&mut got, 0, 0.5, &TemporalSettings::default());
            assert_eq!(got, want);
        }
    }

    #[test]
    fn a_region_shows_once_it_has_lasted() {
        let settings = TemporalSettings { hold_off: 3, ..Default::default() };
        let (a, b) = (&[(5, 5, 200)][..], &[(5, 5, 200), (30, 20, 200)][..]);
        // The lone one in frame 1 never shows; the lasting one does from the third frame on, and moving does not hide it.
        let moved = &[(6, 6, 200)][..];
        assert_eq!(
            shown(&[a, b, a, moved, &[], a], &[0, 1, 2, 3, 4, 5], &settings),
            [vec![], vec![], vec![(5, 5)], vec![(6, 6)], vec![], vec![]]
        );
        // The network saw every second frame only: frames count, not answers.
        assert_eq!(shown(&[a, a], &[0, 2], &settings), [vec![], vec![(5, 5)]]);
    }

    #[test]
    fn a_region_shows_once_it_was_certain_and_stays_until_it_is_not_even_likely() {
        let settings = TemporalSettings { hysteresis: 0.25, ..Default::default() };
        let at = |p| [(5, 5, p)];
        let (weak, strong, none) = (at(140), at(200), at(120));
        assert_eq!(
            shown(&[&weak, &strong, &weak, &none, &weak], &[0, 1, 2, 3, 4], &settings),
            [vec![], vec![(5, 5)], vec![(5, 5)], vec![], vec![]]
        );
    }

    #[test]
    fn smoothing_averages_over_time() {
        let mut filter = TemporalFilter::default();
        let settings = TemporalSettings { smoothing: 0.5, ..Default::default() };
        let mut values = Vec::new();
        for p in [200, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255] {
            let mut m = map(&[(5, 5, p)]);
            filter.apply(&mut m, 0, 0.5, &settings);
            values.push(m.data[5 * 48 + 5]);
        }
        assert_eq!(values[..4], [200, 100, 50, 153]);
        assert_eq!(values[12], 255, "it never reaches what it is shown");
    }

    #[test]
    fn another_size_begins_anew() {
        let mut filter = TemporalFilter::default();
        let settings = TemporalSettings { smoothing: 0.9, hold_off: 2, ..Default::default() };
        let mut first = map(&[(5, 5, 250)]);
        filter.apply(&mut first, 0, 0.5, &settings);
        let mut small = ProbMap { width: 1, height: 1, data: vec![250] };
        filter.apply(&mut small, 1, 0.5, &settings);
        assert_eq!(small.data, [0], "held off as a new region");
        filter.apply(&mut ProbMap::default(), 2, 0.5, &settings);
    }
}
