//! Reads mask files of any kind. Which of their values are polyp is determined from all of a set's files together
//! ([`super::reading`]).

use super::decode::{self, Plane, check_fits, unpacked};
use crate::{Error, Result};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb};
use std::io::Cursor;
use std::path::Path;

/// Kind of values of a mask file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 0 and 1.
    Bit,
    /// Brightness, 0 to 255.
    Grey,
    /// 16 bits.
    Wide,
    /// The brightest channel, 0 to 255.
    Colour,
    /// Numbers: indices into a palette (background is 0), or grey of 2 or 4 bits.
    Index,
}

/// Largest 16-bit label; larger values are brightness.
const LARGEST_LABEL: u16 = 32767;

/// A decoded mask file with its orientation applied, before its values are interpreted.
#[derive(Debug, Clone)]
pub struct Levels {
    pub kind: Kind,
    /// Whether the compression is lossy, so that similar values are equivalent.
    pub lossy: bool,
    /// The file's orientation, which is already applied.
    pub orientation: Orientation,
    pub(super) values: Plane,
    pub(super) alpha: Option<GrayImage>,
    /// Pixel counts by colour: the channels above half as bits (red 4, green 2, blue 1).
    pub(super) hues: [u64; 8],
}

impl Levels {
    /// Opens the mask at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not an image, is truncated or damaged; the message has the path.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = decode::read(path)?;
        match decode::format(path, &bytes) {
            Some(ImageFormat::Png) => Self::png(path, &bytes),
            Some(ImageFormat::Bmp) => Self::bitmap(path, &bytes),
            Some(ImageFormat::Tiff) => Self::tiff(path, &bytes),
            format => {
                let (image, head) = decode::upright(path, &bytes)?;
                Ok(Self::of_image(&image, format == Some(ImageFormat::Jpeg), head.orientation))
            }
        }
    }

    pub fn dimensions(&self) -> (u32, u32) {
        self.values.dimensions()
    }

    fn of_values(kind: Kind, values: Plane) -> Self {
        Self { kind, lossy: false, orientation: Orientation::NoTransforms, values, alpha: None, hues: [0; 8] }
    }

    /// Levels of an image whose orientation is already applied.
    fn of_image(image: &DynamicImage, lossy: bool, orientation: Orientation) -> Self {
        let (w, h) = (image.width(), image.height());
        if let DynamicImage::ImageLuma8(grey) = image {
            let values = grey.as_raw().iter().map(|v| u16::from(*v)).collect();
            let values = Plane::from_raw(w, h, values).unwrap_or_default();
            return Self { lossy, orientation, ..Self::of_values(Kind::Grey, values) };
        }
        let grey = matches!(image, DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_));
        let labels = match image {
            DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => wide_labels(&image.to_rgb16()),
            _ => None,
        };
        let plane = |value: &dyn Fn(usize) -> u16| {
            Plane::from_fn(w, h, |x, y| Luma([value(y as usize * w as usize + x as usize)]))
        };
        let mut levels = if let Some(labels) = labels {
            Self::of_values(Kind::Wide, labels)
        } else if grey {
            Self::of_values(Kind::Wide, image.to_luma16())
        } else {
            let rgb = image.to_rgb8();
            let pixel = |i: usize| &rgb.as_raw()[3 * i..][..3];
            let brightest = |i: usize| pixel(i).iter().copied().max().unwrap_or(0);
            // Chroma that JPEG smears along edges does not count as colour.
            let spread = if lossy { 48 } else { 0 };
            let pixels = w as usize * h as usize;
            let is_grey =
                (0..pixels).all(|i| brightest(i) - pixel(i).iter().copied().min().unwrap_or(0) <= spread);
            let kind = if is_grey { Kind::Grey } else { Kind::Colour };
            let mut levels = Self::of_values(kind, plane(&|i| u16::from(brightest(i))));
            for pixel in rgb.as_raw().chunks_exact(3) {
                let hue = pixel.iter().fold(0, |bits, v| bits << 1 | usize::from(*v > 127));
                levels.hues[hue] += 1;
            }
            levels
        };
        if image.color().has_alpha() {
            let alpha: Vec<u8> = image.to_rgba8().as_raw().chunks_exact(4).map(|p| p[3]).collect();
            levels.alpha = GrayImage::from_raw(w, h, alpha);
        }
        Self { lossy, orientation, ..levels }
    }

    /// Levels of indices into `palette` (red, green, blue, alpha).
    fn of_palette(indices: Plane, palette: &[[u8; 4]]) -> Self {
        let mut used = [false; 256];
        indices.pixels().for_each(|v| used[usize::from(v.0[0].min(255))] = true);
        let entry = |i: usize| palette.get(i).copied().unwrap_or([0, 0, 0, 255]);
        let entries: Vec<[u8; 4]> = (0..256).filter(|i| used[*i]).map(entry).collect();
        let is_grey = entries.iter().all(|e| e[0] == e[1] && e[1] == e[2]);
        let same = entries.len() > 1 && entries.iter().all(|e| e[..3] == entries[0][..3]);
        let alpha = palette.iter().any(|e| e[3] < 255).then(|| {
            GrayImage::from_fn(indices.width(), indices.height(), |x, y| {
                Luma([entry(usize::from(indices.get_pixel(x, y).0[0]))[3]])
            })
        });
        let map = |value: &dyn Fn(u16) -> u16| {
            let mut plane = indices.clone();
            plane.pixels_mut().for_each(|v| v.0[0] = value(v.0[0]));
            plane
        };
        let levels = if is_grey && (!same || alpha.is_some()) {
            Self::of_values(Kind::Grey, map(&|i| u16::from(entry(usize::from(i))[0])))
        } else {
            // Programs that reorder palettes may move black from index 0.
            let black = (0..palette.len().min(256)).find(|i| palette[*i][..3] == [0, 0, 0] && used[*i]);
            let background = if same { 0 } else { black.unwrap_or(0) as u16 };
            Self::of_values(Kind::Index, map(&|i| if i == background { 0 } else { i.max(1) }))
        };
        Self { alpha, ..levels }
    }

    /// Applies `orientation`.
    fn turned(mut self, orientation: Orientation) -> Self {
        if orientation != Orientation::NoTransforms {
            let mut values = DynamicImage::ImageLuma16(self.values);
            values.apply_orientation(orientation);
            self.values = values.into_luma16();
            self.alpha = self.alpha.map(|alpha| {
                let mut alpha = DynamicImage::ImageLuma8(alpha);
                alpha.apply_orientation(orientation);
                alpha.into_luma8()
            });
        }
        self.orientation = orientation;
        self
    }

    /// [`Self::turned`], for a mask that was drawn on its image as stored.
    pub fn turned_with(self, image: Orientation) -> Self {
        let own = self.orientation;
        Self { orientation: own, ..self.turned(image) }
    }

    fn png(path: &Path, bytes: &[u8]) -> Result<Self> {
        let failed = |e: png::DecodingError| {
            Error::data(path, format!("cannot read the image: {e}; copy or download it again"))
        };
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().map_err(failed)?;
        let info = reader.info();
        let (kind, depth) = (info.color_type, info.bit_depth as u8);
        if kind != png::ColorType::Indexed && (kind != png::ColorType::Grayscale || depth >= 8) {
            let (image, head) = decode::upright(path, bytes)?;
            return Ok(Self::of_image(&image, false, head.orientation));
        }
        let (width, height) = (info.width, info.height);
        let orientation = decode::orientation(path, bytes)?;
        let colours = info.palette.clone().unwrap_or_default();
        let alphas = info.trns.clone().unwrap_or_default();
        let palette: Vec<[u8; 4]> = colours
            .chunks_exact(3)
            .enumerate()
            .map(|(i, c)| [c[0], c[1], c[2], alphas.get(i).copied().unwrap_or(255)])
            .collect();
        check_fits(path, (width, height))?;
        let mut packed = vec![0; reader.output_buffer_size().unwrap_or(0)];
        let line = reader.next_frame(&mut packed).map_err(failed)?.line_size;
        let values = unpacked(&packed, line, (width, height), depth);
        Ok(match kind {
            png::ColorType::Indexed => Self::of_palette(values, &palette),
            _ if depth == 1 => Self::of_values(Kind::Bit, values),
            _ => Self::of_values(Kind::Index, values),
        }
        .turned(orientation))
    }

    fn bitmap(path: &Path, bytes: &[u8]) -> Result<Self> {
        let failed = |e| Error::image(path, e);
        let decoder = image::codecs::bmp::BmpDecoder::new(Cursor::new(bytes)).map_err(failed)?;
        let palette: Option<Vec<[u8; 4]>> =
            decoder.get_palette().map(|p| p.iter().map(|c| [c[0], c[1], c[2], 255]).collect());
        // Compressed indices are read as their colours.
        match (palette, super::bmp::indices(path, bytes)?) {
            (Some(palette), Some(indices)) => Ok(Self::of_palette(indices, &palette)),
            _ => {
                let (image, head) = decode::upright(path, bytes)?;
                Ok(Self::of_image(&image, false, head.orientation))
            }
        }
    }

    fn tiff(path: &Path, bytes: &[u8]) -> Result<Self> {
        let failed = |e: tiff::TiffError| decode::tiff_error(path, &e);
        decode::check_strips(path, bytes)?;
        let indices = indices_as_grey(bytes);
        let mut decoder = decode::tiff_decoder(path, indices.as_deref().unwrap_or(bytes))?;
        let (width, height) = decoder.dimensions().map_err(failed)?;
        let tiff::ColorType::Gray(depth) = decoder.colortype().map_err(failed)? else {
            let (image, head) = decode::upright(path, bytes)?;
            return Ok(Self::of_image(&image, false, head.orientation));
        };
        check_fits(path, (width, height))?;
        let orientation = decode::tiff_orientation(&mut decoder);
        let map = decoder.find_tag_unsigned_vec::<u16>(tiff::tags::Tag::ColorMap).map_err(failed)?;
        let levels = match decoder.read_image().map_err(failed)? {
            tiff::decoder::DecodingResult::U8(packed) if depth <= 8 => {
                let line = (width as usize * usize::from(depth)).div_ceil(8);
                let values = unpacked(&packed, line, (width, height), depth);
                match depth {
                    _ if indices.is_some() => {
                        Self::of_palette(values, &tiff_palette(&map.unwrap_or_default()))
                    }
                    1 => Self::of_values(Kind::Bit, values),
                    8 => Self::of_values(Kind::Grey, values),
                    _ => Self::of_values(Kind::Index, values),
                }
            }
            other => Self::of_numbers(path, &numbers(other), (width, height))?,
        };
        Ok(levels.turned(orientation))
    }

    /// Levels of a TIFF's numbers of any type: fractions become brightness, whole numbers are used directly.
    fn of_numbers(path: &Path, numbers: &[f64], (width, height): (u32, u32)) -> Result<Self> {
        let largest = numbers.iter().copied().fold(0.0, f64::max);
        let parts = largest <= 1.0 && numbers.iter().any(|v| v.fract() != 0.0);
        let scale = if parts { 255.0 } else { 1.0 };
        let values = numbers.iter().map(|v| (v * scale).round().clamp(0.0, 65535.0) as u16).collect();
        let values = Plane::from_raw(width, height, values).ok_or_else(|| {
            Error::data(
                path,
                "cannot read the image: it has more than one channel of its kind; save it as PNG",
            )
        })?;
        Ok(Self::of_values(if parts { Kind::Grey } else { Kind::Wide }, values))
    }
}

/// The brightest channel of 16-bit colours that are too dark to be colours: with 8 bits they would all be black.
fn wide_labels(image: &ImageBuffer<Rgb<u16>, Vec<u16>>) -> Option<Plane> {
    let brightest: Vec<u16> = image.pixels().map(|p| p.0.into_iter().max().unwrap_or(0)).collect();
    let largest = brightest.iter().max().copied().unwrap_or(0);
    let labels = (1..=LARGEST_LABEL).contains(&largest);
    Plane::from_raw(image.width(), image.height(), brightest).filter(|_| labels)
}

/// Whether pixels differ.
pub(super) fn varies(plane: &GrayImage) -> bool {
    plane.as_raw().first().is_some_and(|first| plane.as_raw().iter().any(|v| v != first))
}

/// The TIFF with its palette indices declared as grey, which the `tiff` crate can read; `None` without a palette.
fn indices_as_grey(bytes: &[u8]) -> Option<Vec<u8>> {
    const PHOTOMETRIC: u16 = 262;
    let little = bytes.starts_with(b"II*\0");
    if !little && !bytes.starts_with(b"MM\0*") {
        return None;
    }
    let pair = |at: usize| Some([*bytes.get(at)?, *bytes.get(at + 1)?]);
    let short = |at| pair(at).map(|b| if little { u16::from_le_bytes(b) } else { u16::from_be_bytes(b) });
    let (first, second) = (short(4)?, short(6)?);
    let (low, high) = if little { (first, second) } else { (second, first) };
    let directory = usize::from(high) << 16 | usize::from(low);
    let entry = (0..usize::from(short(directory)?))
        .map(|i| directory + 2 + 12 * i)
        .find(|at| short(*at) == Some(PHOTOMETRIC))?;
    // 3: palette, 1: black is zero.
    (short(entry + 8)? == 3).then(|| {
        let mut grey = bytes.to_vec();
        grey[entry + 8..entry + 10].copy_from_slice(&if little {
            1u16.to_le_bytes()
        } else {
            1u16.to_be_bytes()
        });
        grey
    })
}

/// Converts a TIFF's colour map: all reds, all greens, all blues, of 16 bits.
fn tiff_palette(map: &[u16]) -> Vec<[u8; 4]> {
    let count = map.len() / 3;
    let part = |i: usize| (map[i] >> 8) as u8;
    (0..count).map(|i| [part(i), part(count + i), part(2 * count + i), 255]).collect()
}

fn numbers(result: tiff::decoder::DecodingResult) -> Vec<f64> {
    use tiff::decoder::DecodingResult as R;
    match result {
        R::U8(v) => v.into_iter().map(f64::from).collect(),
        R::U16(v) => v.into_iter().map(f64::from).collect(),
        R::U32(v) => v.into_iter().map(f64::from).collect(),
        R::U64(v) => v.into_iter().map(|v| v as f64).collect(),
        R::I8(v) => v.into_iter().map(f64::from).collect(),
        R::I16(v) => v.into_iter().map(f64::from).collect(),
        R::I32(v) => v.into_iter().map(f64::from).collect(),
        R::I64(v) => v.into_iter().map(|v| v as f64).collect(),
        R::F16(v) => v.into_iter().map(f64::from).collect(),
        R::F32(v) => v.into_iter().map(f64::from).collect(),
        R::F64(v) => v,
    }
}
