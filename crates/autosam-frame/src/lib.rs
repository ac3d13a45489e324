//! Video frames in memory: planes with strides, in the formats that the element accepts.

#![deny(unsafe_code)]

pub mod error;
pub mod flow;
pub mod fs;
mod lines;
pub mod map;
pub mod mask;
pub mod motion;
pub mod parts;
#[cfg(test)]
mod reference;
pub mod region;
#[expect(unsafe_code, reason = "columns that a table made, see docs/unsafe.md")]
pub mod resize;
pub mod simd;
pub mod temporal;

pub use error::{Error, Result};
pub use fs::{write_atomically, write_png};
pub use region::Rect;

/// Pixel formats that can be resized and drawn on without conversion, with GStreamer's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    Nv12,
    I420,
    Yuy2,
    Uyvy,
    Y42b,
    P010,
    P012,
    V210,
    I420_10,
    I422_10,
    Gray8,
    Rgb,
    Bgr,
    Rgba,
    Bgra,
    Rgbx,
    Bgrx,
}

/// Conversion matrix between YUV and RGB. Decoders usually produce limited ("video") range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColorMatrix {
    Bt601,
    Bt709,
}

impl ColorMatrix {
    /// Kr and Kb, the weights of red and blue in luma.
    pub fn weights(self) -> (f32, f32) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
        }
    }
}

/// Format and geometry of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameInfo {
    pub format: PixelFormat,
    pub width: usize,
    pub height: usize,
    pub matrix: ColorMatrix,
    pub full_range: bool,
    /// Pixel aspect ratio (width, height) as displayed; (1, 1) for square pixels.
    pub pixel_aspect: (u32, u32),
    /// Whether this is one field of an interlaced frame, that is, every other line.
    pub field: bool,
}

/// One plane: its bytes, and the stride between rows in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    pub data: &'a [u8],
    pub stride: usize,
}

#[derive(Debug)]
pub struct PlaneMut<'a> {
    pub data: &'a mut [u8],
    pub stride: usize,
}

/// A read-only frame. `planes` has 1 (packed), 2 (NV12) or 3 (I420) used entries. Only [`Frame::new`] creates frames;
/// it checks that the planes are as large as `info` requires, and readers rely on that.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Frame<'a> {
    pub info: FrameInfo,
    pub planes: [Plane<'a>; 3],
}

/// A greyscale frame without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luma {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// A frame to draw on, checked like [`Frame`].
#[derive(Debug)]
#[non_exhaustive]
pub struct FrameMut<'a> {
    pub info: FrameInfo,
    pub planes: [PlaneMut<'a>; 3],
}

/// Location of one of Y', Cb and Cr: its nth value is value `offset + step · n` of a row of `plane`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    pub plane: usize,
    pub step: usize,
    pub offset: usize,
}

/// Location of the components of YUV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Yuv {
    pub luma: Component,
    /// `None` for greyscale frames.
    pub chroma: Option<Chroma>,
}

/// Cb and Cr, shared by two columns and `rows` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chroma {
    pub components: [Component; 2],
    pub rows: usize,
}

/// How the values of a row are stored in its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// One byte each.
    Bytes,
    /// Two bytes each, little-endian. The value takes `bits` bits from bit `shift` on; the other bits are unused.
    Words { bits: u32, shift: u32 },
    /// Three values of 10 bits in each little-endian word of four bytes, the first in the lowest bits. The two highest
    /// bits are unused.
    Triples,
}

impl Packing {
    /// Number of bits of a value.
    pub fn bits(self) -> u32 {
        match self {
            Self::Bytes => 8,
            Self::Words { bits, .. } => bits,
            Self::Triples => 10,
        }
    }

    /// Number of values in a row of `bytes` bytes.
    pub fn values(self, bytes: usize) -> usize {
        match self {
            Self::Bytes => bytes,
            Self::Words { .. } => bytes / 2,
            Self::Triples => bytes / 4 * 3,
        }
    }

    /// Number of bytes that hold the first `values` values of a row.
    pub fn bytes(self, values: usize) -> usize {
        match self {
            Self::Bytes => values,
            Self::Words { .. } => 2 * values,
            Self::Triples => values.div_ceil(3) * 4,
        }
    }
}

impl PixelFormat {
    /// All formats in the order of the caps. A source that supports several uses the first.
    pub const ALL: [Self; 17] = [
        Self::Nv12,
        Self::I420,
        Self::Uyvy,
        Self::Yuy2,
        Self::Y42b,
        Self::V210,
        Self::P010,
        Self::P012,
        Self::I420_10,
        Self::I422_10,
        Self::Bgra,
        Self::Rgba,
        Self::Bgrx,
        Self::Rgbx,
        Self::Rgb,
        Self::Bgr,
        Self::Gray8,
    ];

    /// GStreamer's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nv12 => "NV12",
            Self::I420 => "I420",
            Self::Yuy2 => "YUY2",
            Self::Uyvy => "UYVY",
            Self::Y42b => "Y42B",
            Self::P010 => "P010_10LE",
            Self::P012 => "P012_LE",
            Self::V210 => "v210",
            Self::I420_10 => "I420_10LE",
            Self::I422_10 => "I422_10LE",
            Self::Gray8 => "GRAY8",
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
            Self::Rgba => "RGBA",
            Self::Bgra => "BGRA",
            Self::Rgbx => "RGBx",
            Self::Bgrx => "BGRx",
        }
    }

    /// Bytes per pixel of packed RGB and the offsets of R, G and B in it; `None` for YUV.
    pub fn packed(self) -> Option<(usize, [usize; 3])> {
        match self {
            Self::Rgb => Some((3, [0, 1, 2])),
            Self::Bgr => Some((3, [2, 1, 0])),
            Self::Rgba | Self::Rgbx => Some((4, [0, 1, 2])),
            Self::Bgra | Self::Bgrx => Some((4, [2, 1, 0])),
            _ => None,
        }
    }

    /// Location of Y', Cb and Cr; `None` for packed RGB.
    pub fn yuv(self) -> Option<Yuv> {
        let at = |plane, step, offset| Component { plane, step, offset };
        let (luma, chroma, rows) = match self {
            Self::Nv12 | Self::P010 | Self::P012 => (at(0, 1, 0), [at(1, 2, 0), at(1, 2, 1)], 2),
            Self::I420 | Self::I420_10 => (at(0, 1, 0), [at(1, 1, 0), at(2, 1, 0)], 2),
            Self::Y42b | Self::I422_10 => (at(0, 1, 0), [at(1, 1, 0), at(2, 1, 0)], 1),
            Self::Yuy2 => (at(0, 2, 0), [at(0, 4, 1), at(0, 4, 3)], 1),
            // The values of v210 are in the order of UYVY.
            Self::Uyvy | Self::V210 => (at(0, 2, 1), [at(0, 4, 0), at(0, 4, 2)], 1),
            Self::Gray8 => return Some(Yuv { luma: at(0, 1, 0), chroma: None }),
            _ => return None,
        };
        Some(Yuv { luma, chroma: Some(Chroma { components: chroma, rows }) })
    }

    /// How the values of its rows are stored.
    pub fn packing(self) -> Packing {
        match self {
            Self::P010 => Packing::Words { bits: 10, shift: 6 },
            Self::P012 => Packing::Words { bits: 12, shift: 4 },
            Self::I420_10 | Self::I422_10 => Packing::Words { bits: 10, shift: 0 },
            Self::V210 => Packing::Triples,
            _ => Packing::Bytes,
        }
    }

    /// Crops must begin at a multiple of this many columns, so that shared chroma samples and words are not split.
    fn grid(self) -> usize {
        if self == Self::V210 { 6 } else { 2 }
    }

    /// Width in bytes and number of rows of each used plane of a `width × height` frame.
    pub fn planes(self, width: usize, height: usize) -> Vec<(usize, usize)> {
        let (half_w, half_h) = (width.div_ceil(2), height.div_ceil(2));
        match self {
            Self::Nv12 => vec![(width, height), (2 * half_w, half_h)],
            Self::P010 | Self::P012 => vec![(2 * width, height), (4 * half_w, half_h)],
            Self::I420 => vec![(width, height), (half_w, half_h), (half_w, half_h)],
            Self::I420_10 => vec![(2 * width, height), (2 * half_w, half_h), (2 * half_w, half_h)],
            Self::Y42b => vec![(width, height), (half_w, height), (half_w, height)],
            Self::I422_10 => vec![(2 * width, height), (2 * half_w, height), (2 * half_w, height)],
            Self::Yuy2 | Self::Uyvy => vec![(4 * half_w, height)],
            Self::V210 => vec![(16 * width.div_ceil(6), height)],
            Self::Gray8 => vec![(width, height)],
            packed => vec![(width * packed.packed().map_or(0, |(bytes, _)| bytes), height)],
        }
    }
}

impl FrameInfo {
    /// Describes a frame of full-range RGB.
    pub fn rgb(width: usize, height: usize) -> Self {
        Self { full_range: true, ..Self::new(PixelFormat::Rgb, width, height) }
    }

    /// Width and height in the proportion in which a monitor displays them; multiples of the frame's own numbers if
    /// pixels are not square.
    pub fn display_aspect(&self) -> (usize, usize) {
        let (wide, high) = self.pixel_aspect;
        (self.width * wide.max(1) as usize, self.height * high.max(1) as usize)
    }

    /// Describes a progressive frame of square pixels, limited range, BT.601.
    pub fn new(format: PixelFormat, width: usize, height: usize) -> Self {
        let matrix = ColorMatrix::Bt601;
        Self { format, width, height, matrix, full_range: false, pixel_aspect: (1, 1), field: false }
    }

    /// Describes the upper field of an interlaced frame: half the lines, each twice as high.
    pub fn top_field(&self) -> Self {
        let (across, down) = self.pixel_aspect;
        let pixel_aspect = (across, down.saturating_mul(2));
        Self { height: self.height.div_ceil(2), pixel_aspect, field: true, ..*self }
    }

    /// Converts `rgb` to Y', Cb, Cr with this frame's matrix and range.
    pub fn yuv(&self, rgb: [u8; 3]) -> [u8; 3] {
        let (kr, kb) = self.matrix.weights();
        let [r, g, b] = rgb.map(f32::from);
        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
        let (cb, cr) = ((b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr)));
        let (black, luma, chroma) =
            if self.full_range { (0.0, 1.0, 1.0) } else { (16.0, 219.0 / 255.0, 224.0 / 255.0) };
        [black + y * luma, 128.0 + cb * chroma, 128.0 + cr * chroma].map(|v| v.round() as u8)
    }

    /// Fails if a plane is too short for the frame, so that rows can be indexed safely afterwards.
    fn check(&self, planes: [(usize, usize); 3]) -> Result<()> {
        if self.width == 0 || self.height == 0 {
            return Err(Error::invalid(format!("a {}x{} frame has no pixels", self.width, self.height)));
        }
        for ((bytes, rows), (len, stride)) in
            self.format.planes(self.width, self.height).into_iter().zip(planes)
        {
            if stride < bytes || len < stride * (rows - 1) + bytes {
                return Err(Error::invalid(format!(
                    "a {}x{} {} frame needs {rows} rows of {bytes} bytes; it has {len} bytes with a stride of {stride}",
                    self.width,
                    self.height,
                    self.format.name()
                )));
            }
        }
        Ok(())
    }
}

impl<'a> Frame<'a> {
    /// A frame of checked planes; those that the format does not use are empty.
    pub fn new(info: FrameInfo, planes: [Plane<'a>; 3]) -> Result<Self> {
        info.check(planes.map(|p| (p.data.len(), p.stride)))?;
        Ok(Self { info, planes })
    }

    /// `area`, extended to the left to a column at which [`Self::crop`] can begin.
    pub fn aligned(&self, area: Rect) -> Rect {
        let left = area.left - area.left % self.info.format.grid();
        Rect { left, width: area.width + area.left - left, ..area }
    }

    /// Crops the frame to `area`, which must lie within it and begin at even pixels ([`Rect::within`],
    /// [`Self::aligned`]).
    pub fn crop(&self, area: Rect) -> Self {
        let mut part = self.clone();
        (part.info.width, part.info.height) = (area.width, area.height);
        let format = self.info.format;
        for (i, p) in part.planes.iter_mut().enumerate().filter(|(i, p)| *i == 0 || !p.data.is_empty()) {
            let (rows, values) = match (format.packed(), format.yuv()) {
                (Some((bytes, _)), _) => (area.top, area.left * bytes),
                (None, Some(Yuv { chroma: Some(chroma), .. })) if i > 0 => {
                    (area.top / chroma.rows, area.left / 2 * chroma.components[i - 1].step)
                }
                (None, Some(yuv)) => (area.top, area.left * yuv.luma.step),
                (None, None) => (0, 0),
            };
            p.data = p.data.get(rows * p.stride + format.packing().bytes(values)..).unwrap_or_default();
        }
        part
    }

    /// The upper field of an interlaced frame.
    pub fn top_field(&self) -> Self {
        let planes = self.planes.map(|p| Plane { data: p.data, stride: 2 * p.stride });
        Self { info: self.info.top_field(), planes }
    }

    /// A view of a frame in memory.
    pub fn rgb_image(image: &'a image::RgbImage) -> Self {
        let info = FrameInfo::rgb(image.width() as usize, image.height() as usize);
        let none = Plane { data: &[], stride: 0 };
        Self { info, planes: [Plane { data: image.as_raw(), stride: 3 * info.width }, none, none] }
    }

    /// The same frame with this pixel aspect ratio ([`FrameInfo::pixel_aspect`]).
    pub fn with_pixel_aspect(mut self, pixel_aspect: (u32, u32)) -> Self {
        self.info.pixel_aspect = pixel_aspect;
        self
    }
}

impl<'a> FrameMut<'a> {
    /// A frame of checked planes; those that the format does not use are empty.
    pub fn new(info: FrameInfo, planes: [PlaneMut<'a>; 3]) -> Result<Self> {
        info.check([0, 1, 2].map(|i| (planes[i].data.len(), planes[i].stride)))?;
        Ok(Self { info, planes })
    }

    /// A view of a frame in memory.
    pub fn rgb_image(image: &'a mut image::RgbImage) -> Self {
        let info = FrameInfo::rgb(image.width() as usize, image.height() as usize);
        let none = || PlaneMut { data: &mut [], stride: 0 };
        Self { info, planes: [PlaneMut { data: image.as_mut(), stride: 3 * info.width }, none(), none()] }
    }

    /// A read-only view of the same frame.
    pub fn as_frame(&self) -> Frame<'_> {
        let plane = |i: usize| Plane { data: &*self.planes[i].data, stride: self.planes[i].stride };
        Frame { info: self.info, planes: [plane(0), plane(1), plane(2)] }
    }
}
