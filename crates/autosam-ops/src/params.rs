//! Parameters of operations that kernels of CPU and GPU share.

/// Stride, padding and groups of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
    /// Further zeros at the bottom and at the right, where TensorFlow's `SAME` puts the odd one.
    pub trailing: usize,
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, trailing: 0, groups: 1 }
    }
}

impl Conv2d {
    /// Outputs along a side of `size` cells with a kernel of `k`. `None` if the padded side is smaller than the kernel.
    pub(crate) fn outputs(&self, size: usize, k: usize) -> Option<usize> {
        Some((size + 2 * self.padding + self.trailing).checked_sub(k)? / self.stride + 1)
    }
}

/// What is applied to each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)`, exact.
    Gelu,
    Relu,
    Relu6,
    /// Slope 0.01 below zero.
    LeakyRelu,
    Tanh,
    Sigmoid,
}

/// How a tensor `[B, T, 3 · heads · d]` holds queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// All queries, all keys, all values: `[3, heads, d]`.
    Parts,
    /// Each head's side by side: `[heads, 3, d]`.
    Heads,
}

/// The numbers that bytes stand for: `step · (byte - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByteScale {
    pub step: f32,
    /// The byte of 0, a whole number between 0 and 255.
    pub zero: f32,
}

impl ByteScale {
    /// The scale of numbers between `low` and `high`; 0 is one of its numbers whatever they are.
    pub fn of([low, high]: [f32; 2]) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let step = ((high - low) / 255.0).max(f32::MIN_POSITIVE * 1e6);
        Self { step, zero: (-low / step).round_ties_even().clamp(0.0, 255.0) }
    }
}
