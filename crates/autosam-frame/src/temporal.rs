//! Temporal filter: probabilities are smoothed over time, and a region is shown only after it has lasted long enough
//! and reached a sufficient probability. It works on probability maps before thresholding.

use super::mask::{components, level};
use crate::map::ProbMap;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemporalSettings {
    /// Weight of the past in each new map, 0 (none) to below 1: `p = s · past + (1 - s) · now`.
    pub smoothing: f32,
    /// Margin above the threshold that some pixel of a region must once have reached for the region to be shown, 0 to
    /// 1. A shown region stays as long as it reaches the threshold.
    pub hysteresis: f32,
    /// Number of frames, including the first, that a region must last before it is shown; 0 and 1 show it at once.
    pub hold_off: u32,
}

impl TemporalSettings {
    /// Defaults for live video. Of the settings that remove nine tenths of the false alarms, add less than 100 ms and
    /// lose no polyp, this one adds the least delay (docs/live.md).
    pub const LIVE: Self = Self { smoothing: 0.4, hysteresis: 0.45, hold_off: 1 };
}

impl Default for TemporalSettings {
    /// Off: maps are unchanged.
    fn default() -> Self {
        Self { smoothing: 0.0, hysteresis: 0.0, hold_off: 1 }
    }
}

/// Maximum distance between a region and its previous position to count as the same region: the map's longer side
/// divided by `NEAR`.
const NEAR: usize = 24;

/// History of one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Track {
    /// The frame in which it was first seen.
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
    /// For each pixel the index of its region in `tracks` plus 1, or 0.
    labels: Vec<u32>,
}

impl TemporalFilter {
    /// Resets the filter, for example after a seek, a scene change or for another stream.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Smooths `map`, which belongs to frame `index` of the stream, and sets regions that must not be shown yet to 0. A
    /// map of another size resets the filter.
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

    /// Regions of the previous map within `reach` of the region with these `members`.
    fn near(&self, members: &[usize], width: usize, reach: usize) -> Vec<Track> {
        if self.labels.is_empty() {
            return Vec::new();
        }
        let height = self.labels.len() / width.max(1);
        let mut met = vec![false; self.tracks.len()];
        // Probing a grid as wide as the reach is enough to find every region nearby.
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

    /// A map with squares of side 4 at the given positions and probabilities.
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

    /// The squares shown of each map, as positions.
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
    fn an_off_filter_changes_nothing() {
        let mut filter = TemporalFilter::default();
        for p in [200, 0, 130] {
            let want = map(&[(5, 5, p)]);
            let mut got = want.clone();
            filter.apply(&mut got, 0, 0.5, &TemporalSettings::default());
            assert_eq!(got, want);
        }
    }

    #[test]
    fn a_region_is_shown_after_the_hold_off() {
        let settings = TemporalSettings { hold_off: 3, ..Default::default() };
        let (a, b) = (&[(5, 5, 200)][..], &[(5, 5, 200), (30, 20, 200)][..]);
        // The region seen only in frame 1 is never shown. The lasting one is shown from the third frame on, even while
        // it moves.
        let moved = &[(6, 6, 200)][..];
        assert_eq!(
            shown(&[a, b, a, moved, &[], a], &[0, 1, 2, 3, 4, 5], &settings),
            [vec![], vec![], vec![(5, 5)], vec![(6, 6)], vec![], vec![]]
        );
        // The network saw only every second frame: the hold-off counts frames, not inferences.
        assert_eq!(shown(&[a, a], &[0, 2], &settings), [vec![], vec![(5, 5)]]);
    }

    #[test]
    fn a_region_is_shown_once_certain_and_stays_while_above_the_threshold() {
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
    fn another_map_size_resets_the_filter() {
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
