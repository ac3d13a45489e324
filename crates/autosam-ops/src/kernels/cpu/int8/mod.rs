//! Matrix products and depth-wise convolutions of bytes. Activations are `u8` with a step and a zero point, weights are
//! `i8` with a scale per output channel. Every instruction set gives the same bytes, because sums are exact in `i32`
//! and are followed by the same two f32 operations.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod depthwise;
mod portable;
mod product;
#[cfg(test)]
mod tests;

pub(crate) use depthwise::DepthWise;
pub(crate) use product::Product;

use crate::ByteScale;
use std::mem::MaybeUninit;

/// Largest magnitude of a quantised weight.
const LARGEST: f32 = 127.0;

/// Instruction set that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain loops, on any processor.
    Portable,
    /// `vpdpbusd` on 512 bits.
    Avx512Vnni,
}

impl Isa {
    /// The fastest that this processor supports and [`autosam_frame::simd::limit`] allows.
    pub fn best() -> Self {
        Self::available().into_iter().next_back().unwrap_or(Self::Portable)
    }

    /// All that this processor supports, the fastest last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        if autosam_frame::simd::limit().vnni() && avx512::available() {
            all.push(Self::Avx512Vnni);
        }
        all
    }
}

/// Converts a sum to a byte: `sum · scale + shift`, rounded to even, clamped to 0 to 255.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Requantise {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
}

impl Requantise {
    /// Converts the `sum` of output channel `o`, plus `more`, to a byte.
    #[inline(always)]
    fn byte(&self, o: usize, sum: i32, more: f32) -> u8 {
        let value = (sum as f32).mul_add(self.scale[o], self.shift[o]) + more;
        // Clamped first, so that the cast is exact.
        value.clamp(0.0, 255.0).round_ties_even() as u8
    }
}

/// Weights of some output channels as bytes, `[outputs, taps]`, and the requantisation of their sums.
pub(crate) struct Quantised {
    pub weights: Vec<i8>,
    pub requantise: Requantise,
}

impl Quantised {
    /// Quantises weights `[outputs, taps]` and bias `[outputs]` for inputs of scale `from` and outputs of scale `to`.
    pub fn of(weights: &[f32], bias: &[f32], from: ByteScale, to: ByteScale) -> Self {
        let taps = weights.len() / bias.len();
        let mut bytes = Vec::with_capacity(weights.len());
        let mut requantise = Requantise { scale: Vec::new(), shift: Vec::new() };
        for (row, bias) in weights.chunks_exact(taps).zip(bias) {
            let most = row.iter().fold(0f32, |most, w| most.max(w.abs()));
            let step = if most > 0.0 { most / LARGEST } else { 1.0 };
            let first = bytes.len();
            bytes.extend(row.iter().map(|w| (w / step).round_ties_even() as i8));
            let sum: i32 = bytes[first..].iter().map(|w| i32::from(*w)).sum();
            let scale = step * from.step / to.step;
            requantise.scale.push(scale);
            requantise.shift.push(bias / to.step + to.zero - scale * from.zero * sum as f32);
        }
        Self { weights: bytes, requantise }
    }
}

impl Product {
    /// Computes all of `out [M, N]` from rows `x [M, K]`, adding `residual [M, N]` if [`Self::with_residual`] was
    /// called.
    pub fn run(&self, x: &[u8], residual: Option<&[u8]>, out: &mut [MaybeUninit<u8>]) {
        let rows = x.len() / self.k;
        assert!(
            x.len() == rows * self.k && out.len() == rows * self.n,
            "sizes of a product of bytes do not match"
        );
        assert!(residual.is_none_or(|r| r.len() == out.len()), "the residual must be as large as the result");
        match self.isa {
            Isa::Portable => portable::product(self, x, residual, out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this `Isa` exists only on processors with these instructions; sizes are checked above.
            Isa::Avx512Vnni => unsafe { avx512::product(self, x, residual, out) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512Vnni => portable::product(self, x, residual, out),
        }
    }
}

impl DepthWise {
    /// Computes a row `out [OW, C]` from K lines `[K, width, C]`, which include padding. `buffer` has the length given
    /// by [`Self::buffer`].
    pub fn row(&self, lines: &[u8], width: usize, buffer: &mut [u8], out: &mut [MaybeUninit<u8>]) {
        let outputs = out.len() / self.c;
        let read = (outputs.max(1) - 1) * self.stride + self.k;
        assert!(
            lines.len() >= self.k * width * self.c && read <= width,
            "lines of a depth-wise convolution are too short"
        );
        assert!(
            buffer.len() >= self.buffer(width) && out.len() == outputs * self.c,
            "its buffer or result has the wrong length"
        );
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this `Isa` exists only on processors with these instructions; sizes are checked above.
            Isa::Avx512Vnni if [3, 5].contains(&self.k) => unsafe {
                avx512::depthwise(self, lines, width, buffer, out);
            },
            _ => portable::depthwise(self, lines, width, out),
        }
    }
}
