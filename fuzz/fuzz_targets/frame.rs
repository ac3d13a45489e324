//! Resizing and masks with arbitrary caps and planes: a frame that does not fit its caps must be an error.
#![no_main]

use autosam::engine::mask::{Mask, MaskSettings};
use autosam::engine::segmenter::{ProbMap, ModelInput};
use autosam::frame::resize::Resizer;
use autosam::frame::{ColorMatrix, Frame, FrameInfo, PixelFormat, Plane};

libfuzzer_sys::fuzz_target!(|input: (u8, u16, u16, bool, [u16; 3], Vec<u8>)| {
    let (format, width, height, full_range, strides, bytes) = input;
    let info = FrameInfo {
        format: PixelFormat::ALL[usize::from(format) % PixelFormat::ALL.len()],
        width: usize::from(width % 512),
        height: usize::from(height % 512),
        matrix: if full_range { ColorMatrix::Bt709 } else { ColorMatrix::Bt601 },
        full_range,
        pixel_aspect: (u32::from(format) + 1, 1 + u32::from(strides[0] % 64)),
        field: false,
    };
    let third = bytes.len() / 3;
    let plane = |i: usize| Plane { data: &bytes[i * third..], stride: usize::from(strides[i]) };
    if let Ok(frame) = Frame::new(info, [plane(0), plane(1), plane(2)]) {
        let mut sample = ModelInput::default();
        Resizer::new(32).resize(&frame, &mut sample).expect("a frame that passed its checks");
        assert_eq!(sample.rgb.len(), 3 * sample.width * sample.height);
        Resizer::new(32).resize(&frame.top_field(), &mut sample).expect("a field of such a frame");
    }
    let side = (bytes.len() as f64).sqrt() as usize;
    let map = ProbMap { width: side, height: side, data: bytes[..side * side].to_vec() };
    if side > 0 {
        Mask::new(map, &MaskSettings::default()).enlarge(info.width.min(64), info.height.min(64));
    }
});
