//! Pictures in memory as video has them: planes with strides, in the formats that the element accepts.

/// Pixel layouts that can be sampled and drawn on without conversion (names as GStreamer's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    Nv12,
    I420,
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

/// A picture to read. `planes` has 1 (packed), 2 (NV12) or 3 (I420) used entries.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    pub info: FrameInfo,
    pub planes: [Plane<'a>; 3],
}

/// A picture to draw on.
#[derive(Debug)]
pub struct FrameMut<'a> {
    pub info: FrameInfo,
    pub planes: [PlaneMut<'a>; 3],
}
