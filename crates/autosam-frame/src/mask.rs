//! From probabilities to masks: thresholding and connected regions, without small ones.

use crate::Rect;
use crate::map::ProbMap;
use crate::parts::{Neighbours, connected};

/// Settings for turning a probability map into a mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskSettings {
    /// Minimum probability of a polyp pixel, 0 to 1.
    pub threshold: f32,
    /// Minimum size of a region as a fraction of the frame (0 to 1); smaller ones are left out.
    pub min_area: f32,
    /// Hysteresis thresholding as in Canny's edge detector: regions without a pixel this far above the threshold (0 to
    /// 1) are left out.
    pub hysteresis: f32,
}

impl Default for MaskSettings {
    fn default() -> Self {
        Self { threshold: 0.5, min_area: 0.0, hysteresis: 0.27 }
    }
}

/// One connected region. Coordinates are fractions (0 to 1) of the frame's width and height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
    /// Fraction of the frame, 0 to 1.
    pub area: f32,
    /// Mean probability inside, 0 to 1.
    pub confidence: f32,
}

/// The smallest value of a [`ProbMap`] at or above `threshold` (0 to 1); at least 1.
pub(super) fn level(threshold: f32) -> u8 {
    (threshold.clamp(0.0, 1.0) * 255.0).round().clamp(1.0, 255.0) as u8
}

impl MaskSettings {
    /// The smallest value of a [`ProbMap`] that counts as polyp.
    pub fn level(&self) -> u8 {
        level(self.threshold)
    }
}

/// The connected components (8 neighbours) of the pixels at or above `level`, as indices into `map.data`.
pub(super) fn components(map: &ProbMap, level: u8) -> Vec<Vec<usize>> {
    const LINE: usize = 64;
    let (w, h) = (map.width, map.height);
    // Most lines of a map are below the level entirely; skip them many pixels at a time.
    let lines = map.data[..w * h].chunks(LINE).enumerate();
    let reaching = lines.filter(|(_, line)| line.iter().fold(0, |most, p| most.max(*p)) >= level);
    let starts = reaching.flat_map(|(i, line)| i * LINE..i * LINE + line.len());
    connected((w, h), Neighbours::Eight, starts, |i| map.data[i] >= level, |_, _| true)
}

/// A thresholded map with its regions. The probabilities of omitted regions are reduced to just below the threshold.
#[derive(Debug, Clone, Default)]
pub struct Mask {
    pub map: ProbMap,
    /// The smallest value of `map.data` that counts as polyp; at least 1.
    pub level: u8,
    /// Largest first.
    pub regions: Vec<Region>,
}

impl Mask {
    /// Finds the regions (8-connected) of `map`.
    pub fn new(mut map: ProbMap, settings: &MaskSettings) -> Self {
        let (level, certain) = (level(settings.threshold), level(settings.threshold + settings.hysteresis));
        let (w, h) = (map.width, map.height);
        let total = (w * h).max(1) as f32;
        let mut regions = Vec::new();
        for members in components(&map, level) {
            let area = members.len() as f32 / total;
            if area < settings.min_area || members.iter().all(|at| map.data[*at] < certain) {
                for at in &members {
                    map.data[*at] = level - 1;
                }
                continue;
            }
            let (mut x0, mut y0, mut x1, mut y1, mut sum) = (w, h, 0, 0, 0u64);
            for at in &members {
                let (x, y) = (at % w, at / w);
                (x0, y0, x1, y1) = (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1));
                sum += u64::from(map.data[*at]);
            }
            regions.push(Region {
                left: x0 as f32 / w as f32,
                top: y0 as f32 / h as f32,
                right: x1 as f32 / w as f32,
                bottom: y1 as f32 / h as f32,
                area,
                confidence: sum as f32 / (255 * members.len()) as f32,
            });
        }
        regions.sort_by(|a, b| b.area.total_cmp(&a.area));
        Self { map, level, regions }
    }

    /// The mask at `width × height`, 255 for polyp: probabilities are enlarged bilinearly, then thresholded.
    pub fn enlarge(&self, width: usize, height: usize) -> Vec<u8> {
        let mut out = vec![0; width * height];
        let rows = Enlarged::new(&self.map, width, height);
        let mut line = vec![0; width];
        for (y, row) in out.chunks_exact_mut(width.max(1)).enumerate() {
            rows.row(y, 0, &mut line);
            for (o, p) in row.iter_mut().zip(&line) {
                *o = if *p >= u32::from(self.level) * Enlarged::UNIT { 255 } else { 0 };
            }
        }
        out
    }
}

impl ProbMap {
    /// Extends a map of the part `area` of a `width × height` frame to a map of the whole frame, padded with 0 at the
    /// same pixel size.
    pub fn embedded(self, area: Rect, width: usize, height: usize) -> Self {
        if area == Rect::whole(width, height) || area.width == 0 || area.height == 0 {
            return self;
        }
        let scaled = |v: usize, of: usize, to: usize| (2 * v * to + of) / (2 * of);
        let (left, top) =
            (scaled(area.left, area.width, self.width), scaled(area.top, area.height, self.height));
        let w = scaled(width, area.width, self.width).max(left + self.width);
        let h = scaled(height, area.height, self.height).max(top + self.height);
        let mut data = vec![0; w * h];
        for (y, row) in self.data.chunks_exact(self.width.max(1)).enumerate() {
            data[(top + y) * w + left..][..self.width].copy_from_slice(row);
        }
        Self { width: w, height: h, data }
    }

    /// Sets to 0 the connected components of pixels at or above `level` that contain no `wanted` pixel (an index into
    /// `data`).
    pub fn keep(&mut self, level: u8, wanted: impl Fn(usize) -> bool) {
        for members in components(self, level) {
            if !members.iter().any(|at| wanted(*at)) {
                members.iter().for_each(|at| self.data[*at] = 0);
            }
        }
    }

    /// The pixel (x, y) at or above `level` that is furthest from pixels below it and from the border; `None` if no
    /// pixel is. Distances are in steps right, left, up and down, because the engine needs a pixel well inside for
    /// every frame at little cost.
    pub fn deepest(&self, level: u8) -> Option<(usize, usize)> {
        let (w, h) = (self.width, self.height);
        let mut depth = vec![0u32; w * h];
        for at in 0..w * h {
            if self.data[at] >= level {
                let left = if at % w > 0 { depth[at - 1] } else { 0 };
                let above = if at >= w { depth[at - w] } else { 0 };
                depth[at] = left.min(above) + 1;
            }
        }
        for at in (0..w * h).rev() {
            let right = if at % w + 1 < w { depth[at + 1] } else { 0 };
            let below = if at + w < w * h { depth[at + w] } else { 0 };
            depth[at] = depth[at].min(right.min(below) + 1);
        }
        let best = (0..w * h).max_by_key(|at| depth[*at]).filter(|at| depth[*at] > 0)?;
        Some((best % w, best / w))
    }

    /// Resizes the map to `width × height` bilinearly; at its own size the values are unchanged.
    pub fn resized(&self, width: usize, height: usize) -> Vec<u8> {
        let rows = Enlarged::new(self, width, height);
        let (mut out, mut line) = (Vec::with_capacity(width * height), vec![0; width]);
        for y in 0..height {
            rows.row(y, 0, &mut line);
            out.extend(line.iter().map(|p| ((p + Enlarged::UNIT / 2) / Enlarged::UNIT) as u8));
        }
        out
    }
}

/// Reads a probability map at another size, bilinearly (half-pixel centres).
pub struct Enlarged<'a> {
    map: &'a ProbMap,
    x: Vec<(u32, u32, u32)>,
    y: Vec<(u32, u32, u32)>,
}

impl<'a> Enlarged<'a> {
    const SIDE: u32 = 256;
    /// The value that stands for a probability of 1/255.
    pub const UNIT: u32 = Self::SIDE * Self::SIDE;

    pub fn new(map: &'a ProbMap, width: usize, height: usize) -> Self {
        let axis = |from: usize, to: usize| -> Vec<(u32, u32, u32)> {
            (0..to)
                .map(|i| {
                    let last = from.saturating_sub(1);
                    let v = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, last as f64);
                    let low = v as usize;
                    let share = ((v - low as f64) * f64::from(Self::SIDE)).round() as u32;
                    (low as u32, (low + 1).min(last) as u32, share)
                })
                .collect()
        };
        Self { map, x: axis(map.width, width), y: axis(map.height, height) }
    }

    /// Writes the values of row `y` from column `first` on, in units of 1/([`Self::UNIT`] · 255).
    pub fn row(&self, y: usize, first: usize, out: &mut [u32]) {
        let (top, bottom, share) = self.y[y];
        let line = |n: u32| &self.map.data[n as usize * self.map.width..][..self.map.width];
        let (top, bottom) = (line(top), line(bottom));
        for (o, &(left, right, part)) in out.iter_mut().zip(&self.x[first..]) {
            let across = |l: &[u8]| {
                u32::from(l[left as usize]) * (Self::SIDE - part) + u32::from(l[right as usize]) * part
            };
            *o = across(top) * (Self::SIDE - share) + across(bottom) * share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rows: &[&str]) -> ProbMap {
        let data = rows.iter().flat_map(|r| r.bytes().map(|b| if b == b'#' { 240 } else { 40 })).collect();
        ProbMap { width: rows[0].len(), height: rows.len(), data }
    }

    #[test]
    fn regions_are_found_and_small_ones_left_out() {
        let m = map(&["##......", "##....#.", "........", "#......."]);
        let all = Mask::new(m.clone(), &MaskSettings::default());
        assert_eq!(all.regions.iter().map(|r| (r.area * 32.0).round()).collect::<Vec<_>>(), [4.0, 1.0, 1.0]);
        let largest = all.regions[0];
        assert_eq!((largest.left, largest.top, largest.right, largest.bottom), (0.0, 0.0, 0.25, 0.5));
        assert!((largest.confidence - 240.0 / 255.0).abs() < 1e-6);
        let few = Mask::new(m, &MaskSettings { min_area: 0.1, ..Default::default() });
        assert_eq!(few.regions.len(), 1);
        assert_eq!((few.map.data[0], few.map.data[8 + 6]), (240, few.level - 1));
    }

    #[test]
    fn regions_without_a_certain_pixel_are_left_out() {
        let mut m = map(&["##......", "##....##"]);
        let (sure, unsure) = (9, 8 + 6);
        (m.data[0], m.data[sure], m.data[unsure], m.data[unsure + 1]) = (130, 204, 203, 130);
        let mask = Mask::new(m.clone(), &MaskSettings { hysteresis: 0.3, ..Default::default() });
        assert_eq!(mask.regions.len(), 1);
        assert_eq!((mask.map.data[0], mask.map.data[sure]), (130, 204));
        assert!([unsure, unsure + 1].iter().all(|at| mask.map.data[*at] == mask.level - 1));
        assert_eq!(Mask::new(m, &MaskSettings { hysteresis: 0.0, ..Default::default() }).regions.len(), 2);
    }

    #[test]
    fn a_map_of_a_crop_is_embedded_at_its_position() {
        let m = map(&["#.", ".#"]);
        let area = Rect { left: 40, top: 20, width: 20, height: 20 };
        let whole = m.clone().embedded(area, 100, 60);
        assert_eq!((whole.width, whole.height), (10, 6));
        let lit: Vec<usize> = (0..60).filter(|i| whole.data[*i] == 240).collect();
        assert_eq!(lit, [2 * 10 + 4, 3 * 10 + 5]);
        assert_eq!(m.clone().embedded(Rect::whole(7, 5), 7, 5), m);
        let thin = Rect { left: 0, top: 0, width: 9999, height: 1 };
        assert_eq!(m.embedded(thin, 10_000, 3).height, 6);
    }

    #[test]
    fn the_deepest_pixel_is_in_the_middle_of_the_thickest_part() {
        let m = map(&["#....####", ".....####", "..#..####", ".....####", "........."]);
        assert!([(6, 1), (7, 1), (6, 2), (7, 2)].contains(&m.deepest(128).unwrap()));
        assert_eq!(map(&["###", "###", "###"]).deepest(128), Some((1, 1)), "the border is outside");
        assert_eq!(map(&["..", ".."]).deepest(128), None);
        assert_eq!(ProbMap::default().deepest(128), None);
    }

    #[test]
    fn components_without_a_wanted_pixel_are_removed() {
        let mut m = map(&["##..#", "##..#", "....."]);
        m.keep(128, |at| at == 6);
        assert_eq!(
            m.data,
            map(&["##...", "##...", "....."])
                .data
                .iter()
                .enumerate()
                .map(|(i, p)| { if i == 4 || i == 9 { 0 } else { *p } })
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn diagonal_neighbours_are_connected() {
        assert_eq!(Mask::new(map(&["#.", ".#"]), &MaskSettings::default()).regions.len(), 1);
    }

    #[test]
    fn a_threshold_of_zero_still_needs_some_probability() {
        let empty = ProbMap { width: 2, height: 1, data: vec![0, 1] };
        let mask = Mask::new(empty, &MaskSettings { threshold: 0.0, min_area: 0.0, hysteresis: 0.0 });
        assert!((mask.regions[0].area - 0.5).abs() < 1e-6);
    }

    #[test]
    fn enlarging_to_the_same_size_is_thresholding() {
        let m = map(&["#..#", ".##.", "...."]);
        let mask = Mask::new(m.clone(), &MaskSettings::default());
        let want: Vec<u8> = m.data.iter().map(|p| if *p >= 128 { 255 } else { 0 }).collect();
        assert_eq!(mask.enlarge(4, 3), want);
        assert_eq!(mask.enlarge(8, 6).iter().filter(|v| **v > 0).count() % 2, 0);
        assert_eq!(mask.enlarge(1, 1).len(), 1);
    }
}
