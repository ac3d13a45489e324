//! Decodes image files: applies the orientation, and fails for incomplete files.

use super::jpeg;
use crate::{Error, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Luma};
use std::io::Cursor;
use std::path::Path;
use tiff::tags::Tag;

/// Maximum size of an image's pixels in bytes, as the `image` crate's own limit.
pub(super) const MOST_BYTES: usize = 512 << 20;

/// Maximum number of TIFF pages that are counted.
const MOST_PAGES: usize = 1000;

/// Information from an image file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Size as stored, before [`Self::orientation`] is applied.
    pub size: (u32, u32),
    /// Orientation for display (EXIF, or TIFF's own tag).
    pub orientation: Orientation,
}

impl Head {
    /// Width and height as displayed.
    pub fn upright(&self) -> (u32, u32) {
        let (w, h) = self.size;
        if swaps_sides(self.orientation) { (h, w) } else { (w, h) }
    }
}

/// Whether width and height are swapped.
fn swaps_sides(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// Opens an image, recognised by content rather than by name, and applies its EXIF orientation.
///
/// # Errors
/// If the file cannot be read, is not an image, is truncated or damaged; the message has the path.
pub fn open(path: &Path) -> Result<DynamicImage> {
    upright(path, &read(path)?).map(|(image, _)| image)
}

/// The file's bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// Decodes `bytes`, the file at `path`, and applies the orientation; also returns the header.
pub(super) fn upright(path: &Path, bytes: &[u8]) -> Result<(DynamicImage, Head)> {
    check_whole(path, bytes, true)?;
    let decode = || {
        let mut decoder = reader(path, bytes).into_decoder()?;
        if decoder.total_bytes() > MOST_BYTES as u64 {
            let kind = image::error::LimitErrorKind::InsufficientMemory;
            return Err(ImageError::Limits(image::error::LimitError::from_kind(kind)));
        }
        let head = Head { size: decoder.dimensions(), orientation: decoder.orientation()? };
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(head.orientation);
        Ok((image, head))
    };
    decode().map_err(|e| Error::image(path, e))
}

/// Size and orientation of the file at `path`. Pixels are decoded only if its end looks cut off.
///
/// # Errors
/// As for [`open`].
pub(super) fn head(path: &Path) -> Result<Head> {
    let bytes = read(path)?;
    check_whole(path, &bytes, false)?;
    let failed = |e| Error::image(path, e);
    if format(path, &bytes) == Some(ImageFormat::Tiff) {
        // The `image` crate does not support palettes, which masks may have.
        let mut decoder = tiff_decoder(path, &bytes)?;
        let size = decoder.dimensions().map_err(|e| tiff_error(path, &e))?;
        return Ok(Head { size, orientation: tiff_orientation(&mut decoder) });
    }
    if format(path, &bytes) == Some(ImageFormat::Png) && !has_iend(&bytes) {
        return upright(path, &bytes).map(|(_, head)| head);
    }
    let mut decoder = reader(path, &bytes).into_decoder().map_err(failed)?;
    let orientation = decoder.orientation().map_err(failed)?;
    Ok(Head { size: decoder.dimensions(), orientation })
}

/// The orientation in the file's metadata (not for TIFF, see [`tiff_orientation`]).
pub(super) fn orientation(path: &Path, bytes: &[u8]) -> Result<Orientation> {
    let decoder = reader(path, bytes).into_decoder();
    decoder.and_then(|mut d| d.orientation()).map_err(|e| Error::image(path, e))
}

/// Whether PNG's last chunk is at the end of `bytes`.
fn has_iend(bytes: &[u8]) -> bool {
    bytes[bytes.len().saturating_sub(64)..].windows(4).any(|w| w == b"IEND")
}

/// The format by content or, failing that, by name.
pub(super) fn format(path: &Path, bytes: &[u8]) -> Option<ImageFormat> {
    image::guess_format(bytes).or_else(|_| ImageFormat::from_path(path)).ok()
}

fn reader<'a>(path: &Path, bytes: &'a [u8]) -> ImageReader<Cursor<&'a [u8]>> {
    let mut reader = ImageReader::new(Cursor::new(bytes));
    if let Some(format) = format(path, bytes) {
        reader.set_format(format);
    }
    reader
}

/// Fails for damage that decoders would silently fill: JPEG data that ends early or is damaged, TIFF strips beyond the
/// file's end. Without `thorough`, a JPEG with its end marker in place is accepted.
fn check_whole(path: &Path, bytes: &[u8], thorough: bool) -> Result<()> {
    match format(path, bytes) {
        Some(ImageFormat::Jpeg) if thorough || !bytes.ends_with(&[0xFF, 0xD9]) => {
            jpeg::check(bytes).map_err(|reason| damaged(path, &reason))
        }
        Some(ImageFormat::Tiff) => check_strips(path, bytes),
        _ => Ok(()),
    }
}

pub(super) fn damaged(path: &Path, reason: &str) -> Error {
    Error::data(path, format!("cannot read the image: {reason}; copy or download it again"))
}

pub(super) fn tiff_decoder<'a>(
    path: &Path,
    bytes: &'a [u8],
) -> Result<tiff::decoder::Decoder<Cursor<&'a [u8]>>> {
    let mut limits = tiff::decoder::Limits::default();
    limits.decoding_buffer_size = MOST_BYTES;
    let decoder = tiff::decoder::Decoder::new(Cursor::new(bytes)).map_err(|e| tiff_error(path, &e))?;
    Ok(decoder.with_limits(limits))
}

pub(super) fn tiff_error(path: &Path, e: &tiff::TiffError) -> Error {
    let way_out = match e {
        tiff::TiffError::UnsupportedError(_) => "save it as PNG",
        _ => "copy or download it again",
    };
    Error::data(path, format!("cannot read the image: {e}; {way_out}"))
}

pub(super) fn tiff_orientation(decoder: &mut tiff::decoder::Decoder<Cursor<&[u8]>>) -> Orientation {
    let tag = decoder.find_tag_unsigned::<u16>(Tag::Orientation).ok().flatten();
    tag.and_then(|v| Orientation::from_exif(u8::try_from(v).ok()?)).unwrap_or(Orientation::NoTransforms)
}

/// Fails for strips beyond the file's end, because some decompressors stop there without an error, and for several
/// pages, because only the first would be read.
pub(super) fn check_strips(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut decoder = tiff_decoder(path, bytes)?;
    for (offsets, counts) in
        [(Tag::StripOffsets, Tag::StripByteCounts), (Tag::TileOffsets, Tag::TileByteCounts)]
    {
        let mut values = |tag| decoder.find_tag_unsigned_vec::<u64>(tag).ok().flatten().unwrap_or_default();
        let (offsets, counts) = (values(offsets), values(counts));
        let beyond =
            offsets.iter().zip(&counts).filter(|(o, c)| o.saturating_add(**c) > bytes.len() as u64).count();
        if beyond > 0 {
            return Err(damaged(
                path,
                &format!("it is cut short: {beyond} of {} strips are beyond its end", offsets.len()),
            ));
        }
    }
    let pages = 1 + further_pages(&mut decoder);
    if pages > 1 {
        let reason = format!("it holds {pages} pages, of which one would be read");
        return Err(Error::data(path, format!("cannot read the image: {reason}; save each page as a file")));
    }
    Ok(())
}

/// Number of TIFF images after the first, without reduced copies.
fn further_pages(decoder: &mut tiff::decoder::Decoder<Cursor<&[u8]>>) -> usize {
    /// Bits of `NewSubfileType`: reduced copy, transparency mask.
    const NO_PAGE: u32 = 1 | 4;
    let mut pages = 0;
    for _ in 0..MOST_PAGES {
        if !decoder.more_images() || decoder.next_image().is_err() {
            break;
        }
        let kind = decoder.find_tag_unsigned::<u32>(Tag::NewSubfileType).ok().flatten().unwrap_or(0);
        pages += usize::from(kind & NO_PAGE == 0);
    }
    pages
}

pub(super) type Plane = ImageBuffer<Luma<u16>, Vec<u16>>;

/// Fails for a mask whose values need too much memory.
pub(super) fn check_fits(path: &Path, (width, height): (u32, u32)) -> Result<()> {
    match (width as usize).saturating_mul(height as usize) <= MOST_BYTES / 2 {
        true => Ok(()),
        false => Err(Error::data(path, "cannot read the image: it is too large; save it smaller")),
    }
}

/// Unpacks values of `depth` bits (at most 8) from rows of `line` bytes.
pub(super) fn unpacked(packed: &[u8], line: usize, (width, height): (u32, u32), depth: u8) -> Plane {
    let depth = usize::from(depth.clamp(1, 8));
    let mask = ((1u16 << depth) - 1) as u8;
    Plane::from_fn(width, height, |x, y| {
        let bit = x as usize * depth;
        let byte = packed.get(y as usize * line + bit / 8).copied().unwrap_or(0);
        Luma([u16::from(byte >> (8 - depth - bit % 8) & mask)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, RgbImage};

    fn photo() -> RgbImage {
        RgbImage::from_fn(160, 120, |x, y| {
            image::Rgb([(x * 7 + y * y) as u8, (x * y) as u8, (3 * x) as u8 ^ y as u8])
        })
    }

    /// Results for the file `name`, complete and truncated by every tenth.
    fn cut(image: &DynamicImage, name: &str) -> Vec<(Result<DynamicImage>, Result<Head>)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        image.save(&path).unwrap();
        open(&path).unwrap();
        assert_eq!(head(&path).unwrap().size, (image.width(), image.height()));
        let bytes = std::fs::read(&path).unwrap();
        (1..10)
            .map(|tenth| {
                std::fs::write(&path, &bytes[..bytes.len() * tenth / 10]).unwrap();
                (open(&path), head(&path))
            })
            .collect()
    }

    #[test]
    fn truncated_files_are_errors_that_name_the_file() {
        let rgb = DynamicImage::ImageRgb8(photo());
        let grey = DynamicImage::ImageLuma8(GrayImage::from_fn(90, 70, |x, y| Luma([(x * y) as u8])));
        for image in [rgb, grey] {
            for name in ["a.jpg", "a.png", "a.tif", "a.bmp"] {
                for (tenth, (opened, head)) in cut(&image, name).into_iter().enumerate() {
                    let text = opened.expect_err(&format!("{name}, {} tenths", tenth + 1)).to_string();
                    assert!(text.contains(name) && text.contains("cannot read the image"), "{text}");
                    // A bitmap's header does not contain its length.
                    assert!(head.is_err() || name == "a.bmp", "{name}: the head of {} tenths", tenth + 1);
                }
            }
        }
    }

    #[test]
    fn a_jpeg_whose_end_marker_was_put_back_is_still_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jpg");
        photo().save(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() / 2);
        bytes.extend([0xFF, 0xD9]);
        std::fs::write(&path, bytes).unwrap();
        let text = open(&path).unwrap_err().to_string();
        assert!(text.contains("cut short") && text.contains('%'), "{text}");
    }

    #[test]
    fn exif_orientation_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jpg");
        RgbImage::from_fn(32, 16, |x, _| image::Rgb([if x < 16 { 250 } else { 5 }; 3])).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // Little-endian TIFF with one entry, orientation 6: rotate by 90 degrees clockwise.
        let exif = b"\xFF\xE1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        std::fs::write(&path, [&bytes[..2], exif, &bytes[2..]].concat()).unwrap();
        let image = open(&path).unwrap().into_luma8();
        assert_eq!(image.dimensions(), (16, 32));
        assert!(image.get_pixel(8, 4).0[0] > 200 && image.get_pixel(8, 28).0[0] < 50);
        assert_eq!(head(&path).unwrap().upright(), (16, 32));
    }
}
