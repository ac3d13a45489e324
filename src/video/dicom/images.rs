//! Images in DICOM files, one or several frames (PS3.3 C.7.6.3): uncompressed, as run lengths (PS3.5 annex G), and JPEG of 8
//! bits.

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use image::{ImageFormat, Rgb, RgbImage};
use std::borrow::Cow;

/// Maximum number of pixels of a frame.
const MOST_PIXELS: u64 = 1 << 27;

/// How frames are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Native,
    RunLengths,
    Jpeg,
}

/// The meaning of a pixel's values.
#[derive(Debug)]
enum Colour {
    /// Inverted: 0 is white.
    Grey {
        inverted: bool,
    },
    Rgb,
    Ybr,
    /// Two pixels share their colour.
    Ybr422,
    /// Red, green and blue for the values from `first` on.
    Palette {
        first: i64,
        entries: Vec<[u8; 3]>,
    },
}

/// The pixel format of a file's frames, for their conversion to images.
#[derive(Debug)]
pub(super) struct Pixels {
    pub width: u32,
    pub height: u32,
    colour: Colour,
    samples: usize,
    /// Bytes per value.
    bytes: usize,
    /// Used bits per value.
    stored: u32,
    signed: bool,
    /// Whether the frame stores one colour after another instead of interleaving them.
    planar: bool,
    /// Whether a JPEG's three values are red, green and blue, although its decoder would read them as luma and chroma.
    plain: bool,
    /// Slope, intercept, centre and width of the window for greyscale values.
    window: Option<[f64; 4]>,
}

fn integer(header: &InMemDicomObject, tag: Tag) -> Option<i64> {
    header.get(tag)?.to_int().ok()
}

/// The first of a tag's numbers.
pub(super) fn number(header: &InMemDicomObject, tag: Tag) -> Option<f64> {
    header.get(tag)?.to_float64().ok()
}

impl Pixels {
    /// # Errors
    /// The reason why the file's images are not supported.
    pub fn of(header: &InMemDicomObject, coding: Coding) -> Result<Self, String> {
        let whole = |tag, name: &str| integer(header, tag).ok_or_else(|| format!("it has no {name}"));
        let side = |tag, name: &str| {
            let pixels = whole(tag, name)?;
            u32::try_from(pixels)
                .ok()
                .filter(|v| (1..=0xffff).contains(v))
                .ok_or(format!("its {name} is {pixels}"))
        };
        let text = |tag| header.get(tag).and_then(|e| Some(e.to_str().ok()?.trim().to_owned()));
        let (width, height) = (side(tags::COLUMNS, "columns")?, side(tags::ROWS, "rows")?);
        if u64::from(width) * u64::from(height) > MOST_PIXELS {
            return Err(format!("its frames of {width}x{height} pixels are too large"));
        }
        let allocated = whole(tags::BITS_ALLOCATED, "bits allocated")?;
        let samples = integer(header, tags::SAMPLES_PER_PIXEL).unwrap_or(1);
        let photometric = text(tags::PHOTOMETRIC_INTERPRETATION).unwrap_or_default();
        let colour = match (photometric.as_str(), samples) {
            ("MONOCHROME1", 1) => Colour::Grey { inverted: true },
            ("MONOCHROME2", 1) => Colour::Grey { inverted: false },
            ("PALETTE COLOR", 1) => palette(header).ok_or("its palette cannot be read")?,
            // The JPEG decoder converts any colour space to RGB.
            (_, 3) if coding == Coding::Jpeg => Colour::Rgb,
            ("RGB", 3) => Colour::Rgb,
            ("YBR_FULL", 3) => Colour::Ybr,
            ("YBR_FULL_422", 3) if coding == Coding::Native => Colour::Ybr422,
            _ => {
                return Err(format!(
                    "its colours ({photometric}, {samples} values per pixel) are not supported"
                ));
            }
        };
        let deep = matches!(colour, Colour::Grey { .. } | Colour::Palette { .. });
        let bytes = match allocated {
            8 => 1,
            16 if deep => 2,
            _ => return Err(format!("{allocated} bits per value ({photometric}) are not supported")),
        };
        let stored = integer(header, tags::BITS_STORED).unwrap_or(allocated);
        let stored = u32::try_from(stored).ok().filter(|s| (1..=8 * bytes as u32).contains(s));
        let or = |tag, otherwise| number(header, tag).unwrap_or(otherwise);
        let window = number(header, tags::WINDOW_CENTER).zip(number(header, tags::WINDOW_WIDTH));
        Ok(Self {
            width,
            height,
            colour,
            samples: samples as usize,
            bytes,
            stored: stored.ok_or("its stored bits do not fit into its allocated bits")?,
            signed: integer(header, tags::PIXEL_REPRESENTATION) == Some(1),
            planar: integer(header, tags::PLANAR_CONFIGURATION) == Some(1),
            plain: coding == Coding::Jpeg && photometric == "RGB",
            window: window.filter(|(_, width)| *width >= 1.0).map(|(centre, width)| {
                [or(tags::RESCALE_SLOPE, 1.0), or(tags::RESCALE_INTERCEPT, 0.0), centre, width]
            }),
        })
    }

    fn pixels(&self) -> usize {
        self.width as usize * self.height as usize
    }

    /// Bytes of an uncompressed frame.
    pub fn frame_bytes(&self) -> usize {
        match self.colour {
            Colour::Ybr422 => self.pixels() * 2,
            _ => self.pixels() * self.samples * self.bytes,
        }
    }

    /// Decodes a frame, or returns the reason why that is not possible.
    pub fn image(&self, coding: Coding, frame: &[u8]) -> Result<RgbImage, String> {
        match coding {
            Coding::Native => self.native(frame).ok_or_else(|| "it is cut short".to_owned()),
            Coding::RunLengths => {
                self.run_lengths(frame).ok_or_else(|| "its run lengths are damaged".to_owned())
            }
            Coding::Jpeg => self.jpeg(frame),
        }
    }

    fn native(&self, frame: &[u8]) -> Option<RgbImage> {
        let frame = frame.get(..self.frame_bytes())?;
        if let Colour::Ybr422 = self.colour {
            return Some(RgbImage::from_fn(self.width, self.height, |x, y| {
                let at = y as usize * self.width as usize + x as usize;
                let pair = frame.get(at / 2 * 4..at / 2 * 4 + 4).unwrap_or(&[0, 0, 128, 128]);
                ybr([pair[at % 2], pair[2], pair[3]])
            }));
        }
        let (pixels, samples) = (self.pixels(), self.samples);
        Some(self.composed(|pixel, sample| {
            let value = if self.planar { sample * pixels + pixel } else { pixel * samples + sample };
            let at = value * self.bytes;
            u16::from(frame[at]) | if self.bytes == 2 { u16::from(frame[at + 1]) << 8 } else { 0 }
        }))
    }

    fn run_lengths(&self, frame: &[u8]) -> Option<RgbImage> {
        let long = |at: usize| Some(u32::from_le_bytes(frame.get(at..at + 4)?.try_into().ok()?) as usize);
        let count = self.samples * self.bytes;
        if long(0)? != count {
            return None;
        }
        // The highest byte of each value comes first.
        let planes: Vec<Vec<u8>> = (0..count)
            .map(|i| {
                let from = long(4 + 4 * i)?;
                let to = if i + 1 < count { long(8 + 4 * i)? } else { frame.len() };
                unpacked(frame.get(from..to)?, self.pixels())
            })
            .collect::<Option<_>>()?;
        Some(self.composed(|pixel, sample| {
            let of_value = &planes[sample * self.bytes..][..self.bytes];
            of_value.iter().fold(0, |value, plane| value << 8 | u16::from(plane[pixel]))
        }))
    }

    fn jpeg(&self, frame: &[u8]) -> Result<RgbImage, String> {
        /// Adobe's segment, which states that colours are not transformed.
        const PLAIN: &[u8] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";
        let tagged = match frame.split_at_checked(2) {
            Some((begin, rest)) if self.plain => Cow::Owned([begin, PLAIN, rest].concat()),
            _ => Cow::Borrowed(frame),
        };
        let decoded = image::load_from_memory_with_format(&tagged, ImageFormat::Jpeg);
        let mut rgb = decoded.map_err(|e| e.to_string())?.into_rgb8();
        if rgb.dimensions() != (self.width, self.height) {
            let (w, h) = rgb.dimensions();
            return Err(format!("its JPEG has {w}x{h} pixels instead of {}x{}", self.width, self.height));
        }
        if let Colour::Grey { inverted: true } = self.colour {
            rgb.iter_mut().for_each(|v| *v = 255 - *v);
        }
        Ok(rgb)
    }

    /// An image from a function that returns the value of a pixel's sample.
    fn composed(&self, value: impl Fn(usize, usize) -> u16) -> RgbImage {
        RgbImage::from_fn(self.width, self.height, |x, y| {
            let pixel = y as usize * self.width as usize + x as usize;
            let byte = |sample| value(pixel, sample) as u8;
            match &self.colour {
                Colour::Grey { inverted } => {
                    let grey = self.grey(value(pixel, 0));
                    Rgb([if *inverted { 255 - grey } else { grey }; 3])
                }
                Colour::Palette { first, entries } => {
                    let last = entries.len().saturating_sub(1) as i64;
                    let at = (self.whole(value(pixel, 0)) - first).clamp(0, last);
                    Rgb(entries.get(at as usize).copied().unwrap_or_default())
                }
                Colour::Rgb => Rgb([byte(0), byte(1), byte(2)]),
                Colour::Ybr | Colour::Ybr422 => ybr([byte(0), byte(1), byte(2)]),
            }
        })
    }

    /// The used bits of a value, with its sign.
    fn whole(&self, value: u16) -> i64 {
        let unused = 16 - self.stored;
        match self.signed {
            true => i64::from((value << unused).cast_signed() >> unused),
            false => i64::from(value << unused >> unused),
        }
    }

    /// The brightness of a value, scaled by the window, or by the range of possible values if there is none.
    fn grey(&self, value: u16) -> u8 {
        let (value, steps) = (self.whole(value) as f64, f64::from((1u32 << self.stored) - 1));
        let part = match self.window {
            Some([slope, intercept, centre, width]) => {
                // PS3.3 C.11.2.1.2.
                (value * slope + intercept - (centre - 0.5)) / (width - 1.0).max(1e-9) + 0.5
            }
            None => (value + if self.signed { (steps + 1.0) / 2.0 } else { 0.0 }) / steps,
        };
        (part.clamp(0.0, 1.0) * 255.0).round() as u8
    }
}

/// Converts full-range luma, blue difference and red difference to RGB.
fn ybr([y, b, r]: [u8; 3]) -> Rgb<u8> {
    let (y, b, r) = (f32::from(y), f32::from(b) - 128.0, f32::from(r) - 128.0);
    Rgb([y + 1.402 * r, y - 0.344_136 * b - 0.714_136 * r, y + 1.772 * b]
        .map(|v| v.round().clamp(0.0, 255.0) as u8))
}

/// The file's palette; `None` if it has none, or a segmented one, which is not supported.
fn palette(header: &InMemDicomObject) -> Option<Colour> {
    let descriptor = |tag| -> Option<Vec<i64>> { header.get(tag)?.to_multi_int().ok() };
    let [count, first, bits] = descriptor(tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR)?[..] else {
        return None;
    };
    // 0 stands for 2 to the power of 16, which 16 bits cannot hold.
    let count = if count & 0xffff == 0 { 1 << 16 } else { (count & 0xffff) as usize };
    let part = |tag| -> Option<Vec<u8>> {
        let data = header.get(tag)?.to_bytes().ok()?;
        if bits == 8 && data.len() < 2 * count {
            return Some(data.get(..count)?.to_vec());
        }
        let words = data.as_chunks::<2>().0.get(..count)?;
        Some(words.iter().map(|word| if bits == 16 { word[1] } else { word[0] }).collect())
    };
    let red = part(tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA)?;
    let green = part(tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA)?;
    let blue = part(tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA)?;
    let entries = (0..count).map(|i| [red[i], green[i], blue[i]]).collect();
    Some(Colour::Palette { first, entries })
}

/// Unpacks `count` bytes of a segment of run lengths (PackBits).
fn unpacked(mut segment: &[u8], count: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(count);
    while out.len() < count {
        let (&head, rest) = segment.split_first()?;
        segment = rest;
        match head {
            0..=127 => {
                let (bytes, rest) = segment.split_at_checked(usize::from(head) + 1)?;
                out.extend_from_slice(bytes);
                segment = rest;
            }
            128 => {}
            129.. => {
                let (&byte, rest) = segment.split_first()?;
                out.resize(out.len() + 257 - usize::from(head), byte);
                segment = rest;
            }
        }
    }
    out.truncate(count);
    Some(out)
}
