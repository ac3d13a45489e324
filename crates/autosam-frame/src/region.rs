//! Locates the endoscope's image in the frame. Processors show it as an octagon, circle or square on black, with text
//! and small images next to it.

use super::resize::Resizer;
use super::{Frame, Luma};
use crate::map::ModelInput;
use crate::motion;
use crate::parts::{Neighbours, connected};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A rectangle in pixels of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rect {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

impl Rect {
    pub fn whole(width: usize, height: usize) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// The smallest rectangle around the values above `level` of a mask of `width` columns; `None` without any.
    pub fn around(mask: &[u8], width: usize, level: u8) -> Option<Self> {
        let mut found: Option<Self> = None;
        for (top, row) in mask.chunks_exact(width.max(1)).enumerate() {
            let Some(left) = row.iter().position(|v| *v > level) else { continue };
            let last = row.iter().rposition(|v| *v > level).unwrap_or(left);
            let line = Self { left, top, width: last + 1 - left, height: 1 };
            found = Some(found.map_or(line, |found| found.union(line)));
        }
        found
    }

    /// The smallest rectangle that contains both.
    pub fn union(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// Clips the rectangle to a `width × height` frame and extends it to begin at even pixels (shared chroma). Returns
    /// the whole frame if nothing is left.
    pub fn within(self, width: usize, height: usize) -> Self {
        let (left, top) = (self.left & !1, self.top & !1);
        let right = self.left.saturating_add(self.width).min(width);
        let bottom = self.top.saturating_add(self.height).min(height);
        if left >= right || top >= bottom {
            return Self::whole(width, height);
        }
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// Grows the rectangle by one pixel on each side, within a `width × height` image.
    fn grown(self, width: usize, height: usize) -> Self {
        let (left, top) = (self.left.saturating_sub(1), self.top.saturating_sub(1));
        let (right, bottom) =
            ((self.left + self.width + 1).min(width), (self.top + self.height + 1).min(height));
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// The same rectangle in the lines of one field.
    pub fn in_field(self) -> Self {
        let bottom = self.top.saturating_add(self.height).div_ceil(2);
        Self { top: self.top / 2, height: bottom - self.top / 2, ..self }
    }
}

/// Which part of the frame the network sees. No overlay is drawn outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CropMode {
    Full,
    /// The endoscope's image, found automatically.
    #[default]
    Auto,
    /// A fixed rectangle in pixels of the frame.
    Rect(Rect),
}

impl CropMode {
    /// The rectangle for a still image. For video use [`Finder`], which keeps state between frames.
    ///
    /// # Errors
    /// If the frame is too large to be resized.
    pub fn of(self, frame: &Frame) -> Result<Rect> {
        self.area(frame, || {
            let mut small = ModelInput::default();
            Resizer::new(motion::SIDE).resize(frame, &mut small)?;
            let mut finder = Finder::default();
            finder.look(&small, frame.info.width, frame.info.height);
            Ok(finder.current())
        })
    }

    /// The rectangle of `frame`, aligned to its chroma. `auto` finds that of [`Self::Auto`]; without one it is the whole
    /// frame.
    ///
    /// # Errors
    /// Those of `auto`.
    pub fn area(self, frame: &Frame, auto: impl FnOnce() -> Result<Option<Rect>>) -> Result<Rect> {
        let (width, height) = (frame.info.width, frame.info.height);
        let part = match self {
            Self::Full => None,
            Self::Rect(part) if frame.info.field => Some(part.in_field()),
            Self::Rect(part) => Some(part),
            Self::Auto => auto()?,
        };
        Ok(frame.aligned(part.map_or(Rect::whole(width, height), |part| part.within(width, height))))
    }
}

impl TryFrom<String> for CropMode {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<CropMode> for String {
    fn from(roi: CropMode) -> Self {
        roi.to_string()
    }
}

impl FromStr for CropMode {
    type Err = Error;

    /// `full`, `auto`, or `X,Y,WIDTH,HEIGHT` in pixels.
    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "full" => return Ok(Self::Full),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        let numbers: std::result::Result<Vec<usize>, _> = text.split(',').map(|n| n.trim().parse()).collect();
        match numbers.as_deref() {
            Ok(&[left, top, width, height]) if width > 0 && height > 0 => {
                Ok(Self::Rect(Rect { left, top, width, height }))
            }
            _ => Err(Error::invalid(format!(
                "invalid roi {text:?}: expected full, auto or X,Y,WIDTH,HEIGHT in pixels"
            ))),
        }
    }
}

impl fmt::Display for CropMode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Auto => f.write_str("auto"),
            Self::Rect(r) => write!(f, "{},{},{},{}", r.left, r.top, r.width, r.height),
        }
    }
}

/// Maximum brightness (0 to 255) of a border pixel. Black in video is 16; mucosa in a dark corner is brighter than
/// this.
const DARK: u8 = 28;
/// Fraction of a row's or column's pixels that must be bright for it to be part of the image. It is small because a
/// circle fills less at its edge.
const FILLED: f32 = 0.08;
/// Minimum size of the image as a fraction of the frame's area. A smaller one is ignored, because the scene may just be
/// dark.
const SMALLEST: f32 = 0.15;

/// Minimum difference between green or blue and red in a processor's panel. Tissue is red, yellow or white.
const COLD: u8 = 60;
/// Maximum difference between neighbouring pixels of a panel, and maximum mean deviation of its pixels from their mean.
const STEP: u8 = 24;
const SPREAD: u32 = 10;
/// Minimum fraction of the frame that a panel covers, and of its bounding rectangle that has its colour.
const LEAST_PANEL: f32 = 0.01;
const FLAT: f32 = 0.7;

/// The brightest channel, which [`find`] works on: mucosa in the shade is dark red, a border is dark grey. Panels next
/// to the endoscope's image, such as those that show the shape of the endoscope, are set to black.
fn brightness(copy: &ModelInput) -> Luma {
    let brightest = |p: &[u8]| p.iter().copied().max().unwrap_or(0);
    let data = copy.rgb.chunks_exact(3).map(brightest).collect();
    let mut luma = Luma { width: copy.width, height: copy.height, data };
    for panel in panels(copy) {
        for row in luma.data.chunks_exact_mut(copy.width).skip(panel.top).take(panel.height) {
            row[panel.left..panel.left + panel.width].fill(0);
        }
    }
    luma
}

/// Finds rectangles of a single cold colour at the frame's edge.
fn panels(copy: &ModelInput) -> Vec<Rect> {
    let (w, h) = (copy.width, copy.height);
    let (pixels, _) = copy.rgb.as_chunks::<3>();
    let cold = |i: usize| {
        let [r, g, b] = pixels[i];
        g.max(b).saturating_sub(r) >= COLD
    };
    let alike = |a: usize, b: usize| pixels[a].iter().zip(pixels[b]).all(|(a, b)| a.abs_diff(b) <= STEP);
    let drawn = |part: &Vec<usize>| {
        let count = part.len() as u32;
        let mean: [u32; 3] =
            std::array::from_fn(|c| part.iter().map(|i| u32::from(pixels[*i][c])).sum::<u32>() / count);
        let spread =
            |c: usize| part.iter().map(|i| u32::from(pixels[*i][c]).abs_diff(mean[c])).sum::<u32>() / count;
        (0..3).all(|c| spread(c) <= SPREAD)
    };
    let large = |part: &Vec<usize>| part.len() as f32 >= LEAST_PANEL * (w * h) as f32;
    let (near_x, near_y) = (w / 16, h / 16);
    let beside = |r: &Rect| {
        r.left <= near_x
            || r.top <= near_y
            || r.left + r.width + near_x >= w
            || r.top + r.height + near_y >= h
    };
    connected((w, h), Neighbours::Four, 0..w * h, cold, alike)
        .into_iter()
        .filter(large)
        .filter(drawn)
        .filter_map(|part| {
            bounds(&part, w).filter(|r| part.len() as f32 >= FLAT * (r.width * r.height) as f32)
        })
        .filter(beside)
        .map(|r| r.grown(w, h))
        .collect()
}

/// The smallest rectangle around pixels of an image of width `w`; `None` if the list is empty.
fn bounds(part: &[usize], w: usize) -> Option<Rect> {
    let (xs, ys) = (part.iter().map(|i| i % w), part.iter().map(|i| i / w));
    let (left, right, top, bottom) = (xs.clone().min()?, xs.max()?, ys.clone().min()?, ys.max()?);
    Some(Rect { left, top, width: right + 1 - left, height: bottom + 1 - top })
}

/// The bounding rectangle of the endoscope's image in the brightness of a small copy of the frame. It is the largest
/// connected component of bright pixels, which excludes text and small images next to it. `None` if no component stands
/// out.
fn find(luma: &Luma) -> Option<Rect> {
    let (w, h) = (luma.width, luma.height);
    let bright = |i: usize| luma.data[i] > DARK;
    let all = connected((w, h), Neighbours::Four, 0..w * h, bright, |_, _| true);
    let largest = all.into_iter().max_by_key(Vec::len)?;
    // A few bright pixels in a row or column come from a line that touches the image, not from the image.
    let (mut rows, mut columns) = (vec![0u32; h], vec![0u32; w]);
    for at in largest {
        rows[at / w] += 1;
        columns[at % w] += 1;
    }
    let row = |y: &usize| rows[*y] as f32 > FILLED * w as f32;
    let column = |x: &usize| columns[*x] as f32 > FILLED * h as f32;
    let (top, bottom) = ((0..h).find(row)?, (0..h).rev().find(row)? + 1);
    let (left, right) = ((0..w).find(column)?, (0..w).rev().find(column)? + 1);
    let found = Rect { left, top, width: right - left, height: bottom - top };
    ((found.width * found.height) as f32 >= SMALLEST * (w * h) as f32).then_some(found)
}

/// Frames between two searches for the image, and number of recent searches whose union counts, so that a dark moment
/// does not shrink the crop.
const EVERY: u32 = 25;
const LOOKS: usize = 8;
/// The rectangle's edges are multiples of the frame's sides divided by this, so that it does not jitter.
const GRID: usize = 64;

/// Locates the endoscope's image in video, about once a second.
#[derive(Debug, Default)]
pub struct Finder {
    seen: std::collections::VecDeque<Rect>,
    countdown: u32,
    current: Option<Rect>,
}

impl Finder {
    /// Whether the next [`Self::look`] is due.
    pub fn due(&mut self) -> bool {
        let due = self.countdown == 0;
        self.countdown = self.countdown.checked_sub(1).unwrap_or(EVERY - 1);
        due
    }

    /// Searches a small copy of a `width × height` frame. If no image is found, nothing changes.
    pub fn look(&mut self, copy: &ModelInput, width: usize, height: usize) {
        let Some(found) = find(&brightness(copy)) else { return };
        if self.seen.len() == LOOKS {
            self.seen.pop_front();
        }
        self.seen.push_back(found);
        let all = |pick: fn(&Rect) -> usize| self.seen.iter().map(pick);
        let (left, top) = (all(|r| r.left).min().unwrap_or(0), all(|r| r.top).min().unwrap_or(0));
        let right = all(|r| r.left + r.width).max().unwrap_or(copy.width);
        let bottom = all(|r| r.top + r.height).max().unwrap_or(copy.height);
        // Rounds outwards to the grid and converts from the copy's pixels to the frame's.
        let from = |v: usize, of: usize, side: usize| v * GRID / of * side / GRID;
        let to = |v: usize, of: usize, side: usize| (v * GRID).div_ceil(of) * side / GRID;
        let (x, y) = (from(left, copy.width, width), from(top, copy.height, height));
        let (right, bottom) = (to(right, copy.width, width), to(bottom, copy.height, height));
        let area = Rect { left: x, top: y, width: right - x, height: bottom - y };
        self.current = Some(area.within(width, height));
    }

    /// The current rectangle, if one was found.
    pub fn current(&self) -> Option<Rect> {
        self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bright disc on black, with text at the left and a small image in a corner.
    fn screen(w: usize, h: usize, cx: f32, cy: f32, r: f32) -> Luma {
        let value = |x: usize, y: usize| {
            let disc = (x as f32 - cx).hypot(y as f32 - cy) < r;
            let text = x < w / 8 && y % 6 == 3 && !x.is_multiple_of(3);
            let inset = x > w - w / 8 && y > h - h / 6;
            if disc || text || inset { 120 } else { 16 }
        };
        Luma { width: w, height: h, data: (0..w * h).map(|i| value(i % w, i / w)).collect() }
    }

    /// The same brightness as a grey model input.
    fn copy(luma: &Luma) -> ModelInput {
        let rgb = luma.data.iter().flat_map(|v| [*v; 3]).collect();
        ModelInput { width: luma.width, height: luma.height, rgb }
    }

    /// Pink tissue in the right three quarters, painted over by `paint`.
    fn tissue(paint: impl Fn(u32, u32) -> Option<[u8; 3]>) -> image::RgbImage {
        image::RgbImage::from_fn(384, 288, |x, y| {
            let pink = [190 + (x % 7) as u8, 110 + (y % 5) as u8, 100];
            let ground = if x > 80 && y > 20 && y < 270 { pink } else { [4, 4, 4] };
            image::Rgb(paint(x, y).unwrap_or(ground))
        })
    }

    #[test]
    fn a_coloured_panel_that_touches_the_image_is_left_out() {
        let area = |image: &image::RgbImage| CropMode::Auto.of(&Frame::rgb_image(image)).unwrap();
        let without = area(&tissue(|_, _| None));
        assert!(without.left >= 60 && without.width <= 324, "{without:?}");
        // The endoscope's shape from two sides, with text, as processors show it.
        let panels = tissue(|x, y| match (x, y) {
            (0..120, 190..) if x % 40 == 20 && y % 9 < 4 => Some([30, 40, 40]),
            (0..60, 190..) => Some([27, 190, 160]),
            (60..120, 190..) => Some([85, 115, 205]),
            _ => None,
        });
        assert_eq!(area(&panels), without);
    }

    #[test]
    fn dye_is_not_mistaken_for_a_panel() {
        let area = |image: &image::RgbImage| CropMode::Auto.of(&Frame::rgb_image(image)).unwrap();
        let whole = area(&tissue(|_, _| None));
        // Indigo carmine over the lower half: blue, shaded by the light as tissue is.
        let shaded = |x: u32, y: u32| {
            let light = 1.0 - ((x as f32 - 230.0).hypot(y as f32 - 150.0) / 260.0);
            [20.0, 60.0, 140.0].map(|v| (v * (0.6 + 0.8 * light)) as u8)
        };
        let dyed = tissue(|x, y| (x > 80 && (150..270).contains(&y)).then(|| shaded(x, y)));
        assert_eq!(area(&dyed), whole);
        // A flat pool in the middle of the tissue.
        let pool =
            tissue(|x, y| ((180..260).contains(&x) && (100..180).contains(&y)).then_some([30, 60, 150]));
        assert_eq!(area(&pool), whole);
    }

    #[test]
    fn the_largest_bright_component_is_the_image() {
        let found = find(&screen(128, 72, 64.0, 36.0, 34.0)).unwrap();
        assert!((28..=38).contains(&found.left) && found.top <= 6, "{found:?}");
        assert!((52..=70).contains(&found.width) && found.height >= 60, "{found:?}");
        assert_eq!(find(&Luma { width: 20, height: 20, data: vec![200; 400] }), Some(Rect::whole(20, 20)));
        assert_eq!(find(&Luma { width: 20, height: 20, data: vec![16; 400] }), None);
        assert_eq!(find(&screen(128, 72, 64.0, 36.0, 3.0)), None);
    }

    #[test]
    fn a_dark_moment_does_not_crop_the_frame() {
        let mut finder = Finder::default();
        assert!(finder.due() && !finder.due());
        assert_eq!(finder.current(), None);
        finder.look(&copy(&screen(128, 72, 64.0, 36.0, 34.0)), 1920, 1080);
        let first = finder.current().unwrap();
        assert!(first.left % 2 == 0 && first.left > 400 && first.width < 1100, "{first:?}");
        finder.look(&copy(&screen(128, 72, 64.0, 36.0, 20.0)), 1920, 1080);
        finder.look(&copy(&Luma { width: 128, height: 72, data: vec![0; 128 * 72] }), 1920, 1080);
        assert_eq!(finder.current(), Some(first));
    }

    #[test]
    fn a_still_image_needs_no_earlier_frames() {
        let screen = screen(256, 144, 128.0, 72.0, 68.0);
        let rgb = image::RgbImage::from_fn(256, 144, |x, y| {
            image::Rgb([screen.data[y as usize * 256 + x as usize]; 3])
        });
        let frame = Frame::rgb_image(&rgb);
        let area = CropMode::Auto.of(&frame).unwrap();
        assert!((56..=76).contains(&area.left) && (110..=140).contains(&area.width), "{area:?}");
        assert_eq!(CropMode::Full.of(&frame).unwrap(), Rect::whole(256, 144));
        let part = Rect { left: 8, top: 4, width: 16, height: 8 };
        assert_eq!(CropMode::Rect(part).of(&frame).unwrap(), part);
    }

    #[test]
    fn a_mask_is_bounded_by_its_values_above_the_level() {
        let mask = [0, 0, 0, 0, 0, 255, 255, 0, 9, 255, 255, 0];
        let area = |level| Rect::around(&mask, 4, level);
        assert_eq!(area(9), Some(Rect { left: 1, top: 1, width: 2, height: 2 }));
        assert_eq!(area(0), Some(Rect { left: 0, top: 1, width: 3, height: 2 }));
        assert_eq!(area(255), None);
        assert_eq!(Rect::around(&[], 0, 0), None);
    }

    #[test]
    fn crop_modes_survive_writing_and_parsing() {
        for text in ["full", "auto", "10,20,300,400"] {
            assert_eq!(text.parse::<CropMode>().unwrap().to_string(), text);
        }
        assert_eq!(" 1, 2,3 ,4".parse::<CropMode>().unwrap().to_string(), "1,2,3,4");
        for wrong in ["", "all", "1,2,3", "1,2,3,4,5", "-1,0,5,5", "0,0,0,5", "0,0,5,99999999999999999999"] {
            assert!(wrong.parse::<CropMode>().unwrap_err().to_string().contains("roi"), "{wrong:?}");
        }
    }

    #[test]
    fn rectangles_are_clipped_to_the_frame() {
        let part = |left, top, width, height| Rect { left, top, width, height };
        assert_eq!(part(5, 7, 10, 10).within(100, 100), part(4, 6, 11, 11));
        assert_eq!(part(90, 90, usize::MAX, 50).within(100, 95), part(90, 90, 10, 5));
        for outside in [part(100, 0, 5, 5), part(0, 200, 5, 5), part(3, 3, 0, 0)] {
            // An empty rectangle at an odd position is extended by one pixel at most, and never stays empty.
            let got = outside.within(100, 100);
            assert!(got.width > 0 && got.height > 0, "{got:?}");
        }
        assert_eq!(part(0, 0, 9, 9).within(1, 1), part(0, 0, 1, 1));
    }
}
