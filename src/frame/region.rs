//! Where the endoscope's picture is in the frame: processors show it as an octagon, circle or square on black, with text and
//! small pictures beside it.

use super::sample::Sampler;
use super::{Frame, Luma};
use crate::engine::motion;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A part of a picture in pixels.
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

    /// The part of it that lies in a `width × height` picture, widened to begin at even pixels (shared chroma); the whole
    /// picture where there is no such part.
    pub fn within(self, width: usize, height: usize) -> Self {
        let (left, top) = (self.left & !1, self.top & !1);
        let right = self.left.saturating_add(self.width).min(width);
        let bottom = self.top.saturating_add(self.height).min(height);
        if left >= right || top >= bottom {
            return Self::whole(width, height);
        }
        Self { left, top, width: right - left, height: bottom - top }
    }
}

/// Which part of the frame the network sees. Nothing is marked outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Region {
    Full,
    /// [`find`] says.
    #[default]
    Auto,
    /// In pixels of the frame.
    Rect(Rect),
}

impl Region {
    /// Of a picture that stands alone. In video [`Finder`] remembers.
    ///
    /// # Errors
    /// For a picture too large to be sampled.
    pub fn of(self, frame: &Frame) -> Result<Rect> {
        let (width, height) = (frame.info.width, frame.info.height);
        Ok(match self {
            Self::Full => Rect::whole(width, height),
            Self::Rect(part) => part.within(width, height),
            Self::Auto => {
                let mut luma = Luma::default();
                Sampler::new(motion::SIDE).luma(frame, &mut luma)?;
                let mut finder = Finder::default();
                finder.look(&luma, width, height);
                finder.current().unwrap_or(Rect::whole(width, height))
            }
        })
    }
}

impl TryFrom<String> for Region {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Region> for String {
    fn from(region: Region) -> Self {
        region.to_string()
    }
}

impl FromStr for Region {
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
                "roi {text:?} is none of full, auto, X,Y,WIDTH,HEIGHT (in pixels)"
            ))),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Auto => f.write_str("auto"),
            Self::Rect(r) => write!(f, "{},{},{},{}", r.left, r.top, r.width, r.height),
        }
    }
}

/// Brightness (0 to 255) up to which a pixel is border. Video's black is 16; mucosa in a dark corner is above this.
const DARK: u8 = 28;
/// Part of a row's or column's pixels that must be bright to be picture: a circle's edge fills less than its middle.
const FILLED: f32 = 0.08;
/// A picture smaller than this part of the frame's area is not trusted: the scene may just be dark.
const SMALLEST: f32 = 0.15;

/// The bounding rectangle of the endoscope's picture in a small grey copy of the frame: of the bright pixels' connected parts
/// the largest, so that text and small pictures beside it are left out. `None` where none stands out.
pub fn find(luma: &Luma) -> Option<Rect> {
    let (w, h) = (luma.width, luma.height);
    let mut part = vec![0u32; w * h];
    let (mut largest, mut label, mut stack) = ((0, 0), 0, Vec::new());
    for start in 0..w * h {
        if part[start] != 0 || luma.data[start] <= DARK {
            continue;
        }
        label += 1;
        let mut count = 0;
        part[start] = label;
        stack.push(start);
        while let Some(at) = stack.pop() {
            count += 1;
            let (x, y) = (at % w, at / w);
            for (nx, ny) in [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)] {
                if nx < w && ny < h && part[ny * w + nx] == 0 && luma.data[ny * w + nx] > DARK {
                    part[ny * w + nx] = label;
                    stack.push(ny * w + nx);
                }
            }
        }
        largest = largest.max((count, label));
    }
    // Nothing is bright where no part has a number.
    let inside = |i: usize| largest.1 > 0 && part[i] == largest.1;
    let row = |y: &usize| (0..w).filter(|x| inside(y * w + x)).count() as f32 > FILLED * w as f32;
    let column = |x: &usize| (0..h).filter(|y| inside(y * w + x)).count() as f32 > FILLED * h as f32;
    let (top, bottom) = ((0..h).find(row)?, (0..h).rev().find(row)? + 1);
    let (left, right) = ((0..w).find(column)?, (0..w).rev().find(column)? + 1);
    let found = Rect { left, top, width: right - left, height: bottom - top };
    ((found.width * found.height) as f32 >= SMALLEST * (w * h) as f32).then_some(found)
}

/// Frames between two looks for the picture, and looks whose largest extent counts: a dark moment must not cut it.
const EVERY: u32 = 25;
const LOOKS: usize = 8;
/// Steps of the rectangle's edges are this part of the frame, so that it does not tremble.
const GRID: usize = 64;

/// Finds the picture again every second or so.
#[derive(Debug, Default)]
pub struct Finder {
    seen: std::collections::VecDeque<Rect>,
    countdown: u32,
    current: Option<Rect>,
}

impl Finder {
    /// True where the next [`Self::look`] is due.
    pub fn due(&mut self) -> bool {
        let due = self.countdown == 0;
        self.countdown = self.countdown.checked_sub(1).unwrap_or(EVERY - 1);
        due
    }

    /// Looks at a small copy of a `width × height` frame. A frame without a picture in it changes nothing.
    pub fn look(&mut self, luma: &Luma, width: usize, height: usize) {
        let Some(found) = find(luma) else { return };
        if self.seen.len() == LOOKS {
            self.seen.pop_front();
        }
        self.seen.push_back(found);
        let all = |pick: fn(&Rect) -> usize| self.seen.iter().map(pick);
        let (left, top) = (all(|r| r.left).min().unwrap_or(0), all(|r| r.top).min().unwrap_or(0));
        let right = all(|r| r.left + r.width).max().unwrap_or(luma.width);
        let bottom = all(|r| r.top + r.height).max().unwrap_or(luma.height);
        // Outwards to the grid, from the copy's pixels to the frame's.
        let from = |v: usize, of: usize, side: usize| v * GRID / of * side / GRID;
        let to = |v: usize, of: usize, side: usize| (v * GRID).div_ceil(of) * side / GRID;
        let (x, y) = (from(left, luma.width, width), from(top, luma.height, height));
        let (right, bottom) = (to(right, luma.width, width), to(bottom, luma.height, height));
        let area = Rect { left: x, top: y, width: right - x, height: bottom - y };
        self.current = Some(area.within(width, height));
    }

    /// What was found so far.
    pub fn current(&self) -> Option<Rect> {
        self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bright disc on black, with text at the left and a small picture in a corner.
    fn screen(w: usize, h: usize, cx: f32, cy: f32, r: f32) -> Luma {
        let value = |x: usize, y: usize| {
            let disc = (x as f32 - cx).hypot(y as f32 - cy) < r;
            let text = x < w / 8 && y % 6 == 3 && !x.is_multiple_of(3);
            let picture = x > w - w / 8 && y > h - h / 6;
            if disc || text || picture { 120 } else { 16 }
        };
        Luma { width: w, height: h, data: (0..w * h).map(|i| value(i % w, i / w)).collect() }
    }

    #[test]
    fn the_largest_bright_part_is_the_picture() {
        let found = find(&screen(128, 72, 64.0, 36.0, 34.0)).unwrap();
        assert!((28..=38).contains(&found.left) && found.top <= 6, "{found:?}");
        assert!((52..=70).contains(&found.width) && found.height >= 60, "{found:?}");
        assert_eq!(find(&Luma { width: 20, height: 20, data: vec![200; 400] }), Some(Rect::whole(20, 20)));
        assert_eq!(find(&Luma { width: 20, height: 20, data: vec![16; 400] }), None);
        assert_eq!(find(&screen(128, 72, 64.0, 36.0, 3.0)), None);
    }

    #[test]
    fn a_dark_moment_does_not_cut_the_picture() {
        let mut finder = Finder::default();
        assert!(finder.due() && !finder.due());
        assert_eq!(finder.current(), None);
        finder.look(&screen(128, 72, 64.0, 36.0, 34.0), 1920, 1080);
        let first = finder.current().unwrap();
        assert!(first.left % 2 == 0 && first.left > 400 && first.width < 1100, "{first:?}");
        finder.look(&screen(128, 72, 64.0, 36.0, 20.0), 1920, 1080);
        finder.look(&Luma { width: 128, height: 72, data: vec![0; 128 * 72] }, 1920, 1080);
        assert_eq!(finder.current(), Some(first));
    }

    #[test]
    fn a_still_is_looked_at_by_itself() {
        let screen = screen(256, 144, 128.0, 72.0, 68.0);
        let rgb = image::RgbImage::from_fn(256, 144, |x, y| {
            image::Rgb([screen.data[y as usize * 256 + x as usize]; 3])
        });
        let frame = Frame::rgb_image(&rgb);
        let area = Region::Auto.of(&frame).unwrap();
        assert!((56..=76).contains(&area.left) && (110..=140).contains(&area.width), "{area:?}");
        assert_eq!(Region::Full.of(&frame).unwrap(), Rect::whole(256, 144));
        let part = Rect { left: 8, top: 4, width: 16, height: 8 };
        assert_eq!(Region::Rect(part).of(&frame).unwrap(), part);
    }

    #[test]
    fn regions_are_read_as_they_are_written() {
        for text in ["full", "auto", "10,20,300,400"] {
            assert_eq!(text.parse::<Region>().unwrap().to_string(), text);
        }
        assert_eq!(" 1, 2,3 ,4".parse::<Region>().unwrap().to_string(), "1,2,3,4");
        for wrong in ["", "all", "1,2,3", "1,2,3,4,5", "-1,0,5,5", "0,0,0,5", "0,0,5,99999999999999999999"] {
            assert!(wrong.parse::<Region>().unwrap_err().to_string().contains("roi"), "{wrong:?}");
        }
    }

    #[test]
    fn parts_lie_within_the_picture() {
        let part = |left, top, width, height| Rect { left, top, width, height };
        assert_eq!(part(5, 7, 10, 10).within(100, 100), part(4, 6, 11, 11));
        assert_eq!(part(90, 90, usize::MAX, 50).within(100, 95), part(90, 90, 10, 5));
        for outside in [part(100, 0, 5, 5), part(0, 200, 5, 5), part(3, 3, 0, 0)] {
            // An empty part at an odd place is widened to one pixel at most, never to nothing.
            let got = outside.within(100, 100);
            assert!(got.width > 0 && got.height > 0, "{got:?}");
        }
        assert_eq!(part(0, 0, 9, 9).within(1, 1), part(0, 0, 1, 1));
    }
}
