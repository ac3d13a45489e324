//! Determines which values of a set's masks are polyp. A single image may be ambiguous (is 1 a label, or nearly
//! black?), but a set rarely is. [`Seen`] collects the values of its files, and a [`Reading`] follows from it.

use super::mask::{Kind, Levels, varies};
use image::GrayImage;

/// All kinds, in the order of [`Kind`].
const KINDS: [Kind; 5] = [Kind::Bit, Kind::Grey, Kind::Wide, Kind::Colour, Kind::Index];

/// The label that annotation tools use for "undecided".
const IGNORED: u16 = 255;

/// Values up to this are assumed to be labels unless other values contradict that.
const SMALL: u16 = 20;

/// Values up to this may be a lossy compression's noise.
const NOISE: u16 = 31;

/// Names of [`Levels::hues`].
const HUES: [&str; 8] = ["black", "blue", "green", "cyan", "red", "magenta", "yellow", "white"];

/// Which values of a kind are polyp: those above `above`, except `except`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cut {
    pub above: u16,
    pub except: Option<u16>,
}

/// How a set's masks are interpreted: which of their pixels are polyp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reading {
    /// The rule for each [`Kind`].
    cuts: [Cut; 5],
    /// If set, the alpha channel is the mask in files that have one: pixels above this are polyp.
    alpha: Option<u8>,
}

const fn above(above: u16) -> Cut {
    Cut { above, except: None }
}

impl Default for Reading {
    /// Values above half of a format's range.
    fn default() -> Self {
        Self {
            cuts: [above(0), above(127), above(32767), above(127), Cut { above: 0, except: Some(IGNORED) }],
            alpha: None,
        }
    }
}

impl Cut {
    fn takes(self, value: u16) -> bool {
        value > self.above && Some(value) != self.except
    }
}

impl Reading {
    /// Everything except 0, for object numbers.
    pub fn objects() -> Self {
        Self { cuts: [above(0); 5], alpha: None }
    }

    /// Converts `levels` to a mask (255 polyp, 0 not).
    ///
    /// # Errors
    /// If `levels` contradicts the set's other masks: it is not empty, but no pixel would be polyp.
    pub fn mask(&self, levels: &Levels) -> Result<GrayImage, String> {
        let (width, height) = levels.dimensions();
        let gathered = |data: Vec<u8>| GrayImage::from_raw(width, height, data).unwrap_or_default();
        if let (Some(cut), Some(alpha)) = (self.alpha, &levels.alpha) {
            let largest = alpha.as_raw().iter().copied().max().unwrap_or(0);
            if varies(alpha) && largest <= cut {
                return Err(format!("its alpha channel ends at {largest}, but {}", other_masks(cut.into())));
            }
            return Ok(gathered(alpha.as_raw().iter().map(|v| if *v > cut { 255 } else { 0 }).collect()));
        }
        let cut = self.cuts[levels.kind as usize];
        let values = levels.values.as_raw();
        let data: Vec<u8> = values.iter().map(|v| if cut.takes(*v) { 255 } else { 0 }).collect();
        if data.iter().all(|v| *v == 0) {
            let left = values.iter().copied().filter(|v| Some(*v) != cut.except).max().unwrap_or(0);
            if left > if levels.lossy { NOISE } else { 0 } {
                return Err(format!("its largest value is {left}, but {}", other_masks(cut.above)));
            }
        }
        Ok(gathered(data))
    }

    /// The truth as published metrics use it: brightness unchanged, anything else as [`Self::mask`].
    ///
    /// # Errors
    /// As for [`Self::mask`].
    pub fn truth(&self, levels: &Levels) -> Result<GrayImage, String> {
        let mask = self.mask(levels)?;
        let cut = self.cuts[Kind::Grey as usize];
        if levels.kind != Kind::Grey || self.alpha.is_some() || cut != above(127) {
            return Ok(mask);
        }
        let (width, height) = levels.dimensions();
        let data = levels.values.as_raw().iter().map(|v| *v as u8).collect();
        Ok(GrayImage::from_raw(width, height, data).unwrap_or(mask))
    }
}

/// The reason why a mask does not fit the set.
fn other_masks(above: u16) -> String {
    format!("in the set's other masks only values above {above} are polyp; save all masks alike")
}

/// Values of a set's mask files, combined.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Number of files of each [`Kind`], and their largest value (without [`IGNORED`] for numbers).
    files: [usize; 5],
    largest: [u16; 5],
    /// For each kind, whether some files are lossy.
    lossy: [bool; 5],
    /// Pixels of each brightness.
    grey: [u64; 256],
    /// Number of lossless files with only small labels, with only 0 and high values, and with both.
    small: usize,
    high: usize,
    both: usize,
    /// Whether numbers include [`IGNORED`].
    ignored: bool,
    /// Number of files whose alpha channel varies.
    alpha: usize,
    /// The largest value of these channels.
    opaque: u8,
    hues: [u64; 8],
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            files: [0; 5],
            largest: [0; 5],
            lossy: [false; 5],
            grey: [0; 256],
            small: 0,
            high: 0,
            both: 0,
            ignored: false,
            alpha: 0,
            opaque: 0,
            hues: [0; 8],
        }
    }
}

impl Seen {
    /// Adds a file.
    pub fn add(&mut self, levels: &Levels) {
        if let Some(alpha) = levels.alpha.as_ref().filter(|alpha| varies(alpha)) {
            self.alpha += 1;
            self.opaque = alpha.as_raw().iter().copied().fold(self.opaque, u8::max);
        }
        let kind = levels.kind as usize;
        self.files[kind] += 1;
        self.lossy[kind] |= levels.lossy;
        let values = levels.values.as_raw();
        match levels.kind {
            Kind::Grey => {
                let mut pixels = [0u64; 256];
                values.iter().for_each(|v| pixels[usize::from(*v & 255)] += 1);
                let any =
                    |from: u16, to: u16| pixels[usize::from(from)..=usize::from(to)].iter().any(|n| *n > 0);
                if !levels.lossy && !any(SMALL + 1, IGNORED - 1) {
                    match (any(1, SMALL), any(IGNORED, IGNORED)) {
                        (true, true) => self.both += 1,
                        (true, false) => self.small += 1,
                        (false, true) => self.high += 1,
                        (false, false) => {}
                    }
                } else if any(128, 255) {
                    self.high += 1;
                }
                self.grey.iter_mut().zip(pixels).for_each(|(sum, n)| *sum += n);
            }
            Kind::Index => self.ignored |= values.contains(&IGNORED),
            Kind::Colour => self.hues.iter_mut().zip(levels.hues).for_each(|(sum, n)| *sum += n),
            Kind::Bit | Kind::Wide => {}
        }
        let numbers = levels.kind == Kind::Index;
        let largest = values.iter().copied().filter(|v| !numbers || *v != IGNORED).max().unwrap_or(0);
        self.largest[kind] = self.largest[kind].max(largest);
    }

    /// Merges the values of another one.
    pub fn merge(mut self, other: &Self) -> Self {
        for kind in 0..KINDS.len() {
            self.files[kind] += other.files[kind];
            self.largest[kind] = self.largest[kind].max(other.largest[kind]);
            self.lossy[kind] |= other.lossy[kind];
        }
        self.grey.iter_mut().zip(other.grey).for_each(|(sum, n)| *sum += n);
        self.hues.iter_mut().zip(other.hues).for_each(|(sum, n)| *sum += n);
        self.small += other.small;
        self.high += other.high;
        self.both += other.both;
        self.alpha += other.alpha;
        self.opaque = self.opaque.max(other.opaque);
        self.ignored |= other.ignored;
        self
    }

    /// Whether further files would hardly change the [`Reading`], because a polyp pixel with a conclusive value was
    /// found.
    pub fn is_settled(&self) -> bool {
        let telling = [1, 128, 32768, 128, 1];
        self.opaque > 127 || self.largest.iter().zip(telling).any(|(largest, from)| *largest >= from)
    }

    /// Whether these files contain only the byte values 0 and 1.
    pub fn is_zero_or_one(&self) -> bool {
        self.largest[Kind::Grey as usize] == 1 && self.largest.iter().sum::<u16>() == 1
    }

    /// The interpretation of these files.
    pub fn reading(&self) -> Reading {
        // Polyps drawn half transparent.
        let alpha = (self.alpha > 0).then_some(if self.opaque > 127 { 127 } else { 0 });
        let mut reading = Reading { alpha, ..Reading::default() };
        let small = |kind: Kind| {
            let (largest, lossy) = (self.largest[kind as usize], self.lossy[kind as usize]);
            (1..=127).contains(&largest).then_some(above(if lossy { largest / 2 } else { 0 }))
        };
        let mut set = |kind: Kind, cut| reading.cuts[kind as usize] = cut;
        if let Some(cut) = small(Kind::Grey) {
            set(Kind::Grey, cut);
        } else if self.both > self.high {
            set(Kind::Grey, Cut { above: 0, except: Some(IGNORED) });
        }
        if let Some(cut) = small(Kind::Colour) {
            set(Kind::Colour, cut);
        }
        match self.largest[Kind::Wide as usize] {
            // Byte values stored in 16 bits.
            128..=255 => set(Kind::Wide, above(127)),
            1..=127 | 256..=32767 => set(Kind::Wide, above(0)),
            _ => {}
        }
        reading
    }

    /// Whether any pixel of these files is polyp.
    pub fn any_polyp(&self, reading: &Reading) -> bool {
        let cut = reading.cuts[Kind::Grey as usize];
        self.alpha > 0
            || (0..).zip(self.grey).any(|(value, pixels)| pixels > 0 && cut.takes(value))
            || KINDS.iter().any(|kind| {
                *kind != Kind::Grey && self.largest[*kind as usize] > reading.cuts[*kind as usize].above
            })
    }

    /// Doubts about the interpretation of these files.
    pub fn doubts(&self, reading: &Reading) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.files.iter().sum::<usize>() == 0 {
            return doubts;
        }
        if !self.any_polyp(reading) {
            doubts.push("no mask has a polyp pixel".to_owned());
        }
        for kind in [Kind::Grey, Kind::Colour] {
            let (largest, lossy) = (self.largest[kind as usize], self.lossy[kind as usize]);
            if lossy && (1..=NOISE).contains(&largest) {
                doubts.push(format!(
                    "JPEG masks whose largest value is {largest}: labels do not survive lossy compression; save them as PNG"
                ));
            }
        }
        let grey = reading.cuts[Kind::Grey as usize];
        if grey == above(127) && !self.lossy[Kind::Grey as usize] {
            if self.small > 0 && self.high > 0 {
                doubts.push(format!(
                    "some masks contain labels up to {SMALL}, others values up to 255; the former cannot be used"
                ));
            }
            let (low, all) = (self.grey[1..=127].iter().sum::<u64>(), self.grey[1..].iter().sum::<u64>());
            if 10 * low > 3 * all && self.small == 0 {
                doubts.push(format!(
                    "{} % of the nonzero pixels are below 128 and are read as background; if they are object numbers, save everything above 0 as 255",
                    100 * low / all.max(1)
                ));
            }
        }
        doubts
    }

    /// Describes the interpretation of these files for display.
    pub fn describe(&self, reading: &Reading) -> String {
        let mut ways = Vec::new();
        if let Some(cut) = reading.alpha {
            let weak = format!("alpha, 0 to {}, above 0", self.opaque);
            ways.push(if cut > 0 { "alpha".to_owned() } else { weak });
        }
        for kind in KINDS.into_iter().filter(|k| self.files[*k as usize] > 0) {
            if reading.alpha.is_some()
                && matches!(kind, Kind::Grey | Kind::Colour)
                && self.alpha >= self.files[kind as usize]
            {
                continue;
            }
            let (cut, largest) = (reading.cuts[kind as usize], self.largest[kind as usize]);
            let ignoring = |text: String, ignored: bool| if ignored { text + ", 255 ignored" } else { text };
            ways.push(match kind {
                _ if largest == 0 && !self.ignored => "0 only".to_owned(),
                Kind::Bit => "1 bit".to_owned(),
                Kind::Grey => ignoring(self.describe_grey(cut), cut.except.is_some()),
                Kind::Wide if cut.above == 0 => format!("16 bit, labels 0 to {largest}"),
                Kind::Wide => format!("16 bit, 0 to {largest}, above {}", cut.above),
                Kind::Colour if cut.above == 127 => {
                    let all: u64 = self.hues[1..].iter().sum();
                    let mut hues: Vec<usize> = (1..8).filter(|i| 50 * self.hues[*i] > all).collect();
                    hues.sort_by_key(|i| std::cmp::Reverse(self.hues[*i]));
                    let names: Vec<&str> = hues.into_iter().map(|i| HUES[i]).collect();
                    format!("{} on black", names.join(" or "))
                }
                Kind::Colour => format!("dark colours up to {largest}, above {}", cut.above),
                Kind::Index => ignoring(format!("palette, index 1 to {largest}"), self.ignored),
            });
        }
        ways.dedup();
        ways.join("; ")
    }

    fn describe_grey(&self, cut: Cut) -> String {
        let values: Vec<usize> =
            (1..256).filter(|v| self.grey[*v] > 0 && Some(*v as u16) != cut.except).collect();
        match (cut.above, &values[..]) {
            (0, [1]) => "labels 0 and 1".to_owned(),
            (0, [.., last]) if *last <= usize::from(SMALL) || values.len() > 1 => {
                format!("labels 0 to {last}")
            }
            (127, [255]) | (0, [_]) => format!("0 and {}", values[0]),
            (above, [.., last]) => format!("0 to {last}, above {above}"),
            (_, []) => "0 only".to_owned(),
        }
    }
}
