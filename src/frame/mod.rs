//! Pictures in memory as video has them: planes with strides, in the formats that the element accepts.

pub mod region;
pub mod sample;

pub use region::Rect;

use crate::{Error, Result};

/// Pixel layouts that can be sampled and drawn on without conversion (names as GStreamer's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    Nv12,
    I420,
    Uyvy,
    Rgb,
    Bgr,
    Rgba,
    Bgra,
    Rgbx,
    Bgrx,
}

/// How luma and chroma make RGB. Limited range ("video") is what decoders give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColorMatrix {
    Bt601,
    Bt709,
}

impl ColorMatrix {
    /// Kr and Kb: how much red and blue weigh in luma.
    pub fn weights(self) -> (f32, f32) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
        }
    }
}

/// What the bytes of a frame mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameInfo {
    pub format: PixelFormat,
    pub width: usize,
    pub height: usize,
    pub matrix: ColorMatrix,
    pub full_range: bool,
}

/// One plane: bytes and the distance between the starts of rows, in bytes.
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

/// A picture to read. `planes` has 1 (packed, UYVY), 2 (NV12) or 3 (I420) used entries. Made by [`Frame::new`] alone, which
/// checks that the planes hold what `info` says: who reads a frame relies on it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Frame<'a> {
    pub info: FrameInfo,
    pub planes: [Plane<'a>; 3],
}

/// A grey picture, packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luma {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// A picture to draw on, as checked as [`Frame`].
#[derive(Debug)]
#[non_exhaustive]
pub struct FrameMut<'a> {
    pub info: FrameInfo,
    pub planes: [PlaneMut<'a>; 3],
}

/// Where one of Y', Cb, Cr is: byte `offset + step · n` of a row of `plane` is its nth value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    pub plane: usize,
    pub step: usize,
    pub offset: usize,
}

/// How YUV lies in memory. Two columns share their chroma, and so do `rows` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Yuv {
    pub components: [Component; 3],
    pub rows: usize,
}

impl PixelFormat {
    /// Every format, in the order that caps list them.
    pub const ALL: [Self; 9] = [
        Self::Nv12,
        Self::I420,
        Self::Uyvy,
        Self::Bgra,
        Self::Rgba,
        Self::Bgrx,
        Self::Rgbx,
        Self::Rgb,
        Self::Bgr,
    ];

    /// GStreamer's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nv12 => "NV12",
            Self::I420 => "I420",
            Self::Uyvy => "UYVY",
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
            Self::Rgba => "RGBA",
            Self::Bgra => "BGRA",
            Self::Rgbx => "RGBx",
            Self::Bgrx => "BGRx",
        }
    }

    /// Packed RGB's bytes a pixel and the offsets of R, G and B in it; `None` for YUV.
    pub fn packed(self) -> Option<(usize, [usize; 3])> {
        match self {
            Self::Nv12 | Self::I420 | Self::Uyvy => None,
            Self::Rgb => Some((3, [0, 1, 2])),
            Self::Bgr => Some((3, [2, 1, 0])),
            Self::Rgba | Self::Rgbx => Some((4, [0, 1, 2])),
            Self::Bgra | Self::Bgrx => Some((4, [2, 1, 0])),
        }
    }

    /// Where Y', Cb and Cr of YUV are; `None` for packed RGB.
    pub fn yuv(self) -> Option<Yuv> {
        let at = |plane, step, offset| Component { plane, step, offset };
        match self {
            Self::Nv12 => Some(Yuv { components: [at(0, 1, 0), at(1, 2, 0), at(1, 2, 1)], rows: 2 }),
            Self::I420 => Some(Yuv { components: [at(0, 1, 0), at(1, 1, 0), at(2, 1, 0)], rows: 2 }),
            Self::Uyvy => Some(Yuv { components: [at(0, 2, 1), at(0, 4, 0), at(0, 4, 2)], rows: 1 }),
            _ => None,
        }
    }

    /// Width in bytes and number of rows of each used plane of a `width × height` picture.
    pub fn planes(self, width: usize, height: usize) -> Vec<(usize, usize)> {
        let (half_w, half_h) = (width.div_ceil(2), height.div_ceil(2));
        match self {
            Self::Nv12 => vec![(width, height), (2 * half_w, half_h)],
            Self::I420 => vec![(width, height), (half_w, half_h), (half_w, half_h)],
            Self::Uyvy => vec![(4 * half_w, height)],
            packed => vec![(width * packed.packed().map_or(0, |(bytes, _)| bytes), height)],
        }
    }
}

impl FrameInfo {
    /// Full-range RGB.
    pub fn rgb(width: usize, height: usize) -> Self {
        Self { format: PixelFormat::Rgb, width, height, matrix: ColorMatrix::Bt601, full_range: true }
    }

    /// `rgb` as Y', Cb, Cr of this frame's matrix and range.
    pub fn yuv(&self, rgb: [u8; 3]) -> [u8; 3] {
        let (kr, kb) = self.matrix.weights();
        let [r, g, b] = rgb.map(f32::from);
        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
        let (cb, cr) = ((b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr)));
        let (black, luma, chroma) =
            if self.full_range { (0.0, 1.0, 1.0) } else { (16.0, 219.0 / 255.0, 224.0 / 255.0) };
        [black + y * luma, 128.0 + cb * chroma, 128.0 + cr * chroma].map(|v| v.round() as u8)
    }

    /// Fails where a plane is too short for the picture, so that rows can be indexed without fear after it.
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

    /// The part of it in `area`, which lies within the picture and begins at even pixels ([`Rect::within`]).
    pub fn crop(&self, area: Rect) -> Self {
        let mut part = self.clone();
        (part.info.width, part.info.height) = (area.width, area.height);
        let format = self.info.format;
        for (i, p) in part.planes.iter_mut().enumerate().filter(|(i, p)| *i == 0 || !p.data.is_empty()) {
            let start = match (format.packed(), format.yuv()) {
                (Some((bytes, _)), _) => area.top * p.stride + area.left * bytes,
                (None, Some(yuv)) if i == 0 => area.top * p.stride + area.left * yuv.components[0].step,
                (None, Some(yuv)) => area.top / yuv.rows * p.stride + area.left / 2 * yuv.components[i].step,
                (None, None) => 0,
            };
            p.data = p.data.get(start..).unwrap_or_default();
        }
        part
    }

    /// A view of a picture in memory.
    pub fn rgb_image(image: &'a image::RgbImage) -> Self {
        let info = FrameInfo::rgb(image.width() as usize, image.height() as usize);
        let none = Plane { data: &[], stride: 0 };
        Self { info, planes: [Plane { data: image.as_raw(), stride: 3 * info.width }, none, none] }
    }
}

impl<'a> FrameMut<'a> {
    /// A frame of checked planes; those that the format does not use are empty.
    pub fn new(info: FrameInfo, planes: [PlaneMut<'a>; 3]) -> Result<Self> {
        info.check([0, 1, 2].map(|i| (planes[i].data.len(), planes[i].stride)))?;
        Ok(Self { info, planes })
    }

    /// A view of a picture in memory.
    pub fn rgb_image(image: &'a mut image::RgbImage) -> Self {
        let info = FrameInfo::rgb(image.width() as usize, image.height() as usize);
        let none = || PlaneMut { data: &mut [], stride: 0 };
        Self { info, planes: [PlaneMut { data: image.as_mut(), stride: 3 * info.width }, none(), none()] }
    }

    /// The same picture, to read.
    pub fn as_frame(&self) -> Frame<'_> {
        let plane = |i: usize| Plane { data: &*self.planes[i].data, stride: self.planes[i].stride };
        Frame { info: self.info, planes: [plane(0), plane(1), plane(2)] }
    }
}
