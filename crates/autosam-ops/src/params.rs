//! Parameters of operations, shared by CPU and GPU kernels.

/// Stride, padding and groups of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
    /// Additional zeros at the bottom and at the right, for TensorFlow's `SAME` padding of odd sizes.
    pub trailing: usize,
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, trailing: 0, groups: 1 }
    }
}

impl Conv2d {
    /// Number of outputs along a side of `size` cells with a kernel of `k`. `None` if the padded side is smaller than
    /// the kernel.
    pub(crate) fn outputs(&self, size: usize, k: usize) -> Option<usize> {
        Some((size + 2 * self.padding + self.trailing).checked_sub(k)? / self.stride + 1)
    }
}

/// Element-wise activation function.
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

/// Order of queries, keys and values in a tensor `[B, T, 3 · heads · d]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// All queries, all keys, all values: `[3, heads, d]`.
    Parts,
    /// Queries, keys and values of each head together: `[heads, 3, d]`.
    Heads,
}

/// Quantisation scale: a byte stands for `step · (byte - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByteScale {
    pub step: f32,
    /// The zero point, a whole number between 0 and 255.
    pub zero: f32,
}

impl ByteScale {
    /// The scale for numbers between `low` and `high`. It always represents 0 exactly.
    pub fn of([low, high]: [f32; 2]) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let step = ((high - low) / 255.0).max(f32::MIN_POSITIVE * 1e6);
        Self { step, zero: (-low / step).round_ties_even().clamp(0.0, 255.0) }
    }
}
