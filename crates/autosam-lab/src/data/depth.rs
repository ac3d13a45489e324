//! Determines how many bits images of 16 bits per channel really use. Microscopes, industrial cameras and DICOM exports
//! store 10, 12 or 14 bits in them; read as 16 bits, such images are nearly black.

use super::{Dataset, Item, decode};
use crate::{Error, Result};
use image::{DynamicImage, ImageFormat, RgbImage};
use rayon::prelude::*;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use tiff::tags::Tag;

/// Number of images that are decoded to determine it; all if these are inconclusive.
const SAMPLED: usize = 24;

/// Bit depth according to a file's tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tagged {
    bits: u32,
    /// Whether values may be scaled to 16 bits: PNG's standard requires it, but not all programs do it.
    perhaps_scaled: bool,
    /// TIFF with 0 as white, which the decoder has inverted as if all 16 bits were used.
    inverted: bool,
}

/// Bit depth according to the values of 16-bit images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Values {
    largest: u16,
    /// Bitwise OR of all values.
    bits: u16,
    /// Whether both bytes of each value are equal, as in 8 bits scaled to 16.
    doubled: bool,
}

impl Values {
    const NONE: Self = Self { largest: 0, bits: 0, doubled: true };

    fn of(samples: impl Iterator<Item = u16>) -> Self {
        samples.fold(Self::NONE, |all, v| Self {
            largest: all.largest.max(v),
            bits: all.bits | v,
            doubled: all.doubled && v >> 8 == v & 0xff,
        })
    }

    fn merge(self, other: Self) -> Self {
        Self {
            largest: self.largest.max(other.largest),
            bits: self.bits | other.bits,
            doubled: self.doubled && other.doubled,
        }
    }

    /// Whether values of `bits` bits look scaled to 16, because their lowest bits are unused.
    fn scaled(self, bits: u32) -> bool {
        self.doubled || self.bits.trailing_zeros() >= 16 - bits
    }

    /// The assumed bit depth of the sensor.
    fn assumed(self) -> u32 {
        match 16 - self.largest.leading_zeros() {
            _ if self.largest == 0 => 16,
            used @ 1..=14 => {
                let bits = used.next_multiple_of(2).max(8);
                if self.scaled(bits) { 16 } else { bits }
            }
            _ => 16,
        }
    }
}

/// The samples of a 16-bit image, the number of channels, and how many of these are colours.
fn samples(image: &mut DynamicImage) -> Option<(&mut [u16], usize, usize)> {
    Some(match image {
        DynamicImage::ImageLuma16(image) => (&mut **image, 1, 1),
        DynamicImage::ImageLumaA16(image) => (&mut **image, 2, 1),
        DynamicImage::ImageRgb16(image) => (&mut **image, 3, 3),
        DynamicImage::ImageRgba16(image) => (&mut **image, 4, 3),
        _ => return None,
    })
}

/// Calls `change` with each colour value of a 16-bit image.
fn each(image: &mut DynamicImage, mut change: impl FnMut(&mut u16)) {
    if let Some((values, channels, colours)) = samples(image) {
        values.chunks_exact_mut(channels).for_each(|pixel| pixel[..colours].iter_mut().for_each(&mut change));
    }
}

fn values(image: &mut DynamicImage) -> Values {
    let mut all = Values::NONE;
    each(image, |v| all = all.merge(Values::of(std::iter::once(*v))));
    all
}

/// Converts an image to 8 bits per channel. For 16-bit images the depth comes from the tags, otherwise from `assumed`;
/// without either all bits are used.
///
/// # Errors
/// If floating-point values are not within 0 and 1; the message has `path`.
pub(super) fn rgb8(
    path: &Path,
    bytes: &[u8],
    mut image: DynamicImage,
    assumed: Option<u8>,
) -> Result<RgbImage> {
    if let DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) = image {
        let largest = image.to_rgb32f().iter().copied().fold(0.0, f32::max);
        if largest > 1.0 {
            let reason = format!(
                "cannot read the image: its numbers go up to {largest}, but 1 is white; divide them, or save it with 8 bits"
            );
            return Err(Error::data(path, reason));
        }
    }
    if samples(&mut image).is_none() {
        return Ok(image.into_rgb8());
    }
    let tagged = tagged(path, bytes);
    let inverted = tagged.is_some_and(|t| t.inverted);
    if inverted {
        each(&mut image, |v| *v = !*v);
    }
    let bits = used(&mut image, tagged).or(assumed.map(u32::from)).unwrap_or(16);
    if bits < 16 {
        let white = (1u32 << bits) - 1;
        each(&mut image, |v| *v = ((u32::from(*v) * 0xffff + white / 2) / white).min(0xffff) as u16);
    }
    if inverted {
        each(&mut image, |v| *v = !*v);
    }
    Ok(image.into_rgb8())
}

/// Bit depth according to the file's tags, unless its values contradict them.
fn used(image: &mut DynamicImage, tagged: Option<Tagged>) -> Option<u32> {
    let Tagged { bits, perhaps_scaled, .. } = tagged.filter(|t| t.bits > 0)?;
    if bits >= 16 {
        return Some(16);
    }
    let values = values(image);
    if u32::from(values.largest) >> bits > 0 {
        // For PNG the standard applies; the tag of a TIFF with larger values is ignored.
        return perhaps_scaled.then_some(16);
    }
    Some(if perhaps_scaled && values.scaled(bits) { 16 } else { bits })
}

/// Reads the file's tags; `bits` is 0 if they do not state it.
fn tagged(path: &Path, bytes: &[u8]) -> Option<Tagged> {
    match decode::format(path, bytes)? {
        ImageFormat::Png => {
            let reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
            let bits = u32::from(reader.info().sbit.as_deref()?.iter().copied().max()?);
            Some(Tagged { bits, perhaps_scaled: true, inverted: false })
        }
        ImageFormat::Tiff => {
            let mut decoder = decode::tiff_decoder(path, bytes).ok()?;
            let mut largest = |tag| {
                let value = decoder.find_tag(tag).ok()??;
                let whole = value.clone().into_u64_vec().ok().and_then(|v| v.into_iter().max());
                whole.or_else(|| Some(value.into_f64_vec().ok()?.into_iter().fold(0.0, f64::max) as u64))
            };
            let largest = largest(Tag::SMaxSampleValue).or_else(|| largest(Tag::MaxSampleValue));
            // For OME-TIFF, in its XML description.
            let mut described = || {
                let text = decoder.find_tag(Tag::ImageDescription).ok()??.into_string().ok()?;
                let (_, rest) = text.split_once("SignificantBits=\"")?;
                rest.split_once('"')?.0.parse().ok()
            };
            let bits = match largest {
                Some(largest) => 64 - largest.leading_zeros(),
                None => described().unwrap_or(0),
            };
            let white_is_zero = decoder.find_tag_unsigned(Tag::PhotometricInterpretation).ok()?;
            Some(Tagged { bits, perhaps_scaled: false, inverted: white_is_zero == Some(0u16) })
        }
        _ => None,
    }
}

/// Whether the file may have 16 bits per channel, by its first bytes.
fn may_be_deep(path: &Path) -> bool {
    /// Offset of the bit depth in a PNG.
    const DEPTH: usize = 24;
    let mut head = [0; DEPTH + 1];
    if File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_err() {
        return false;
    }
    match image::guess_format(&head) {
        Ok(ImageFormat::Png) => head[DEPTH] == 16,
        Ok(ImageFormat::Tiff) => true,
        _ => false,
    }
}

/// Combined findings about 16-bit images.
#[derive(Clone, Copy)]
struct Seen {
    /// Number of images without such tags.
    untagged: usize,
    values: Values,
    /// The smallest depth stated by tags.
    tagged: u32,
}

impl Seen {
    const NONE: Self = Self { untagged: 0, values: Values::NONE, tagged: 16 };

    fn merge(self, other: Self) -> Self {
        Self {
            untagged: self.untagged + other.untagged,
            values: self.values.merge(other.values),
            tagged: self.tagged.min(other.tagged),
        }
    }

    /// Findings about the image at `path`; none for 8-bit images and for damaged ones, which are reported when they are
    /// used.
    fn at(path: &Path) -> Self {
        let Ok(bytes) = decode::read(path) else { return Self::NONE };
        let Ok((mut image, _)) = decode::upright(path, &bytes) else { return Self::NONE };
        if samples(&mut image).is_none() {
            return Self::NONE;
        }
        let tagged = tagged(path, &bytes);
        if tagged.is_some_and(|t| t.inverted) {
            each(&mut image, |v| *v = !*v);
        }
        match used(&mut image, tagged) {
            Some(tagged) => Self { tagged, ..Self::NONE },
            None => Self { untagged: 1, values: values(&mut image), ..Self::NONE },
        }
    }

    fn of(paths: &[&Path]) -> Self {
        paths.par_iter().map(|path| Self::at(path)).reduce(|| Self::NONE, Self::merge)
    }
}

/// Determines the depth of 16-bit images without tags from all `items` together. Returns a note if some use fewer than
/// 16 bits.
pub fn settle_depth(items: &mut [Item]) -> Option<String> {
    let deep: Vec<bool> = items.par_iter().map(|item| may_be_deep(&item.image)).collect();
    let paths: Vec<&Path> =
        items.iter().zip(&deep).filter(|(_, deep)| **deep).map(|(i, _)| i.image.as_path()).collect();
    let step = paths.len().div_ceil(SAMPLED).max(1);
    let sample: Vec<&Path> = paths.iter().copied().step_by(step).collect();
    let mut seen = Seen::of(&sample);
    if step > 1 && seen.untagged > 0 && seen.values.assumed() < 16 {
        seen = Seen::of(&paths);
    }
    let bits = seen.values.assumed();
    if seen.untagged > 0 && bits < 16 {
        let settled = items.iter_mut().zip(&deep).filter(|(_, deep)| **deep);
        settled.for_each(|(item, _)| item.bits = Some(bits as u8));
        return Some(format!(
            "the values of images of 16 bits end at {}: assumed that they use {bits} bits, of which {} is white; if they are \
             really that dark, save them with 8 bits",
            seen.values.largest,
            (1u32 << bits) - 1
        ));
    }
    (seen.tagged < 16).then(|| format!("images of 16 bits use {} of them, by their own tags", seen.tagged))
}

impl Dataset {
    /// [`settle_depth`] for all images of the set.
    pub(super) fn settle_depth(&mut self) {
        let note = settle_depth(&mut self.items);
        self.notes.extend(note.map(|note| format!("{}: {note}", self.name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma};

    /// Brightness from black to `white`, 64 pixels wide.
    fn ramp(white: u16) -> Vec<u16> {
        (0..64 * 4u32).map(|i| (u32::from(white) * (i % 64) / 63) as u16).collect()
    }

    fn png(path: &Path, values: &[u16], sbit: Option<u8>) {
        let mut info = png::Info::with_size(64, 4);
        (info.color_type, info.bit_depth) = (png::ColorType::Grayscale, png::BitDepth::Sixteen);
        info.sbit = sbit.map(|bits| vec![bits].into());
        let encoder = png::Encoder::with_info(File::create(path).unwrap(), info).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
        encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
    }

    /// A TIFF of one strip with further `tags` of 16 bits.
    fn tif(path: &Path, values: &[u16], white_is_zero: bool, tags: &[(u16, u16)]) {
        let mut entries: Vec<(u16, u32)> = vec![(256, 64), (257, 4), (258, 16), (259, 1)];
        entries.push((262, u32::from(!white_is_zero)));
        entries.extend([(273, 8), (278, 4), (279, 512)]);
        entries.extend(tags.iter().map(|(tag, value)| (*tag, u32::from(*value))));
        entries.sort();
        let mut file = [b"II*\0".as_slice(), &(8 + 512u32).to_le_bytes()].concat();
        file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        file.extend((entries.len() as u16).to_le_bytes());
        for (tag, value) in entries {
            file.extend([tag.to_le_bytes(), 4u16.to_le_bytes()].concat());
            file.extend([1u32.to_le_bytes(), value.to_le_bytes()].concat());
        }
        file.extend([0; 4]);
        std::fs::write(path, file).unwrap();
    }

    /// The decoded first and last pixel of each row, and the note.
    fn seen(draw: impl Fn(&Path)) -> ([u8; 2], Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        draw(dir.path());
        let mut items = super::super::images_in(dir.path()).unwrap();
        let note = settle_depth(&mut items);
        let rgb = items[0].load().unwrap().rgb;
        ([rgb.get_pixel(0, 0).0[0], rgb.get_pixel(63, 0).0[0]], note)
    }

    #[test]
    fn the_bit_depth_is_read_from_tags() {
        for (bits, white) in [(10, 1023), (12, 4095), (14, 16383)] {
            let (ends, note) = seen(|dir| tif(&dir.join("a.tif"), &ramp(white), false, &[(281, white)]));
            assert_eq!(ends, [0, 255]);
            assert!(note.unwrap().contains(&format!("use {bits} of them, by their own tags")));
            let (ends, _) = seen(|dir| tif(&dir.join("a.tif"), &ramp(white), false, &[(341, white)]));
            assert_eq!(ends, [0, 255]);
            let (ends, _) = seen(|dir| png(&dir.join("a.png"), &ramp(white), Some(bits)));
            assert_eq!(ends, [0, 255]);
        }
        // A dark image of a 12-bit camera, at half the possible brightness.
        let (ends, _) = seen(|dir| tif(&dir.join("a.tif"), &ramp(2047), false, &[(281, 4095)]));
        assert_eq!(ends, [0, 127]);
        // 0 is white.
        let (ends, _) = seen(|dir| tif(&dir.join("a.tif"), &ramp(4095), true, &[(281, 4095)]));
        assert_eq!(ends, [255, 0]);
    }

    #[test]
    fn dark_images_that_use_16_bits_stay_dark() {
        let dark = |tags: &[(u16, u16)]| {
            let (ends, note) = seen(|dir| tif(&dir.join("a.tif"), &ramp(4095), false, tags));
            assert!(note.is_none(), "{note:?}");
            ends
        };
        assert_eq!(dark(&[(281, 65535)]), [0, 16]);
        // PNG's standard requires 12 bits to be scaled to 16, so these are dark.
        let scaled: Vec<u16> = ramp(250).iter().map(|v| v << 4).collect();
        assert_eq!(seen(|dir| png(&dir.join("a.png"), &scaled, Some(12))), ([0, 16], None));
        // 8 bits, doubled.
        let doubled: Vec<u16> = ramp(15).iter().map(|v| v * 257).collect();
        assert_eq!(seen(|dir| png(&dir.join("a.png"), &doubled, None)), ([0, 15], None));
        // The set contains a brighter image.
        let (ends, note) = seen(|dir| {
            png(&dir.join("a.png"), &ramp(4095), None);
            png(&dir.join("b.png"), &ramp(50000), None);
        });
        assert_eq!((ends, note), ([0, 16], None));
    }

    #[test]
    fn without_tags_the_set_s_largest_value_determines_the_bit_depth() {
        for (bits, white) in [(10, 1023), (12, 4095), (14, 16383)] {
            let (ends, note) = seen(|dir| {
                png(&dir.join("a.png"), &ramp(white / 2), None);
                png(&dir.join("b.png"), &ramp(white), None);
            });
            assert_eq!(ends, [0, 127]);
            let note = note.unwrap();
            assert!(note.contains(&format!("assumed that they use {bits} bits")), "{note}");
        }
        let (ends, note) = seen(|dir| {
            let rgb =
                ImageBuffer::<image::Rgb<u16>, _>::from_fn(64, 4, |x, _| image::Rgb([x as u16 * 65; 3]));
            rgb.save(dir.join("a.tif")).unwrap();
        });
        assert!(ends == [0, 255] && note.is_some(), "{ends:?} {note:?}");
        let black = |dir: &Path| ImageBuffer::<Luma<u16>, _>::new(64, 4).save(dir.join("a.png")).unwrap();
        assert_eq!(seen(black), ([0, 0], None));
    }
}
