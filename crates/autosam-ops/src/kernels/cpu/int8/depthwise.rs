//! Depth-wise convolution of bytes, one output row at a time, from padded lines.

use super::{Isa, Quantised, Requantise};
use crate::ByteScale;

/// Channels that the widest instructions process at once.
pub(super) const BLOCK: usize = 64;
/// Kernel rows that an instruction sums.
pub(super) const ROWS: usize = 4;

/// Weights `[C, K, K]` for inputs with zero point 0, so that padding is 0.
pub(crate) struct DepthWise {
    pub isa: Isa,
    pub c: usize,
    /// Side of the kernel, 3 or 5.
    pub k: usize,
    pub stride: usize,
    /// `[K, K, C]`.
    pub taps: Vec<i8>,
    pub requantise: Requantise,
    /// The same in the order of the widest instructions: `[blocks, K columns, groups of 4 rows, 4 quarters, 16
    /// channels, 4 rows]`.
    pub blocks: Vec<i8>,
    /// `[blocks, 4 quarters, 16 channels]`.
    pub block_requantise: Requantise,
}

impl DepthWise {
    /// Quantises weights `[C, K, K]` and bias `[C]`.
    pub fn new(
        isa: Isa,
        weights: &[f32],
        bias: &[f32],
        stride: usize,
        from: ByteScale,
        to: ByteScale,
    ) -> Self {
        assert_eq!(from.zero, 0.0, "padding is 0");
        let c = bias.len();
        let k = (weights.len() / c).isqrt();
        assert_eq!(weights.len(), c * k * k, "square kernels");
        let Quantised { weights, requantise } = Quantised::of(weights, bias, from, to);
        let taps = (0..k * k * c).map(|i| weights[i % c * k * k + i / c]).collect();
        let groups = k.div_ceil(ROWS);
        let places = c.next_multiple_of(BLOCK);
        let mut blocks = vec![0i8; places * k * groups * ROWS];
        let mut block_requantise = Requantise { scale: vec![0.0; places], shift: vec![0.0; places] };
        for channel in 0..c {
            let (block, place) = (channel / BLOCK, place(channel % BLOCK));
            block_requantise.scale[block * BLOCK + place] = requantise.scale[channel];
            block_requantise.shift[block * BLOCK + place] = requantise.shift[channel];
            for (tap, w) in weights[channel * k * k..][..k * k].iter().enumerate() {
                let (ky, kx) = (tap / k, tap % k);
                let group = (block * k + kx) * groups + ky / ROWS;
                blocks[(group * BLOCK + place) * ROWS + ky % ROWS] = *w;
            }
        }
        Self { isa, c, k, stride, taps, requantise, blocks, block_requantise }
    }

    /// Size in bytes of the buffer that [`super::DepthWise::row`] needs for lines of `width` pixels.
    pub fn buffer(&self, width: usize) -> usize {
        width * self.k.div_ceil(ROWS) * BLOCK * ROWS
    }
}

/// Position of channel `channel` of a block in interleaved rows: `unpack` works in lanes of 16 bytes and produces four
/// quarters.
fn place(channel: usize) -> usize {
    let (lane, quarter, at) = (channel / 16, channel / 4 % 4, channel % 4);
    16 * quarter + 4 * lane + at
}
