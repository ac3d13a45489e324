//! Location of each value of a frame, taken directly from the formats' definitions. The tests compare with it.

use super::PixelFormat;

/// Location of a value: `bits` bits from bit `shift` on in the little-endian word of `bytes` bytes at byte `byte` of a
/// row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub plane: usize,
    pub row: usize,
    pub byte: usize,
    pub bytes: usize,
    pub shift: u32,
    pub bits: u32,
}

impl Place {
    /// Location of component `c` (R, G, B or Y', Cb, Cr) of pixel `x`, `y`; `None` for the chroma of a greyscale frame.
    pub fn of(format: PixelFormat, c: usize, x: usize, y: usize) -> Option<Self> {
        use PixelFormat as F;
        let pair = x / 2;
        let at = |plane, row, byte| Self { plane, row, byte, bytes: 1, shift: 0, bits: 8 };
        let wide = |plane, row, byte, shift, bits| Self { plane, row, byte, bytes: 2, shift, bits };
        Some(match (format, c) {
            (F::Rgb, _) => at(0, y, 3 * x + c),
            (F::Bgr, _) => at(0, y, 3 * x + 2 - c),
            (F::Rgba | F::Rgbx, _) => at(0, y, 4 * x + c),
            (F::Bgra | F::Bgrx, _) => at(0, y, 4 * x + 2 - c),
            (F::Nv12 | F::I420 | F::Y42b | F::Gray8, 0) => at(0, y, x),
            (F::Nv12, _) => at(1, y / 2, 2 * pair + c - 1),
            (F::I420, _) => at(c, y / 2, pair),
            (F::Y42b, _) => at(c, y, pair),
            (F::Gray8, _) => return None,
            (F::Yuy2, _) => at(0, y, [2 * x, 4 * pair + 1, 4 * pair + 3][c]),
            (F::Uyvy, _) => at(0, y, [2 * x + 1, 4 * pair, 4 * pair + 2][c]),
            (F::P010, 0) => wide(0, y, 2 * x, 6, 10),
            (F::P012, 0) => wide(0, y, 2 * x, 4, 12),
            (F::I420_10 | F::I422_10, 0) => wide(0, y, 2 * x, 0, 10),
            (F::P010, _) => wide(1, y / 2, 4 * pair + 2 * (c - 1), 6, 10),
            (F::P012, _) => wide(1, y / 2, 4 * pair + 2 * (c - 1), 4, 12),
            (F::I420_10, _) => wide(c, y / 2, 2 * pair, 0, 10),
            (F::I422_10, _) => wide(c, y, 2 * pair, 0, 10),
            (F::V210, _) => {
                // Six pixels in four words: Cb0 Y0 Cr0, Y1 Cb2 Y2, Cr2 Y3 Cb4, Y4 Cr4 Y5.
                let (word, shift) = match c {
                    0 => [(0, 10), (1, 0), (1, 20), (2, 10), (3, 0), (3, 20)][x % 6],
                    1 => [(0, 0), (1, 10), (2, 20)][x % 6 / 2],
                    _ => [(0, 20), (2, 0), (3, 10)][x % 6 / 2],
                };
                let byte = 16 * (x / 6) + 4 * word;
                Self { plane: 0, row: y, byte, bytes: 4, shift, bits: 10 }
            }
        })
    }

    fn mask(self) -> u32 {
        ((1 << self.bits) - 1) << self.shift
    }

    /// Reads the word from planes with these strides.
    fn word(self, planes: &[Vec<u8>], strides: &[usize]) -> u32 {
        let at = self.row * strides[self.plane] + self.byte;
        planes[self.plane][at..at + self.bytes].iter().rev().fold(0, |word, b| word << 8 | u32::from(*b))
    }

    pub fn get(self, planes: &[Vec<u8>], strides: &[usize]) -> u32 {
        (self.word(planes, strides) & self.mask()) >> self.shift
    }

    pub fn put(self, planes: &mut [Vec<u8>], strides: &[usize], value: u32) {
        let word = self.word(planes, strides) & !self.mask() | value << self.shift;
        let at = self.row * strides[self.plane] + self.byte;
        planes[self.plane][at..at + self.bytes].copy_from_slice(&word.to_le_bytes()[..self.bytes]);
    }
}

/// Planes of noise and their strides. Rows are `padding` bytes longer than the frame's.
pub(crate) fn noise(format: PixelFormat, w: usize, h: usize, padding: usize) -> (Vec<Vec<u8>>, Vec<usize>) {
    let sizes = format.planes(w, h);
    let plane = |rows: usize, stride: usize| {
        let mixed = |i: usize| ((i as u32).wrapping_mul(0x9E37_79B1) >> 11) as u8;
        (0..stride * rows).map(mixed).collect()
    };
    let strides: Vec<usize> = sizes.iter().map(|(bytes, _)| bytes + padding).collect();
    (sizes.iter().zip(&strides).map(|((_, rows), stride)| plane(*rows, *stride)).collect(), strides)
}
