//! Activations, forward and backward in one pass each.

use super::common::{GRAIN, shaped_as, simd};
use crate::Activation;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::copied;
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Magnitude that is negligible in a sum. Below 1.2e-38 numbers are denormal and many times slower. Products of the
/// tails of softmax and GELU with small gradients reach that range; this took a third of the generator's training step.
const NOTHING: f32 = 1e-30;

/// `x`, or 0 if it is below [`NOTHING`].
#[inline(always)]
fn or_nothing(x: f32) -> f32 {
    if x.abs() < NOTHING { 0.0 } else { x }
}

/// e^x to 2 units in the last place for -69 ≤ x ≤ 88, in operations that vectorise; 0 below, which is [`NOTHING`].
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let nothing = x < -69.0;
    let x = x.clamp(-69.0, 88.0);
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let k = shifted - 12_582_912.0;
    // ln 2 in two parts, of which the first is exact in few bits.
    let r = k.mul_add(2.121_944_4e-4, k.mul_add(-0.693_359_4, x));
    let p = polynomial(r, [0.001_398_2, 0.008_333_452, 0.041_665_796, 0.166_666_66, 0.5, 1.0, 1.0]);
    let value = p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if nothing { 0.0 } else { value }
}

/// Evaluates a polynomial by Horner's rule from the highest power down, with fused steps that are one instruction under
/// [`simd`].
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut value = coefficients[0];
    for c in &coefficients[1..] {
        value = value.mul_add(x, *c);
    }
    value
}

/// Φ(x), the normal distribution, with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let poly = polynomial(t, [1.061_405_4, -1.453_152_1, 1.421_413_7, -0.284_496_74, 0.254_829_6]);
    let tail = 0.5 * t * poly * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

impl Activation {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::Gelu => x * normal_cdf(x),
            Self::Relu => x.max(0.0),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::LeakyRelu => x.max(0.01 * x),
            Self::Tanh => 1.0 - 2.0 / (exp(2.0 * x) + 1.0),
            Self::Sigmoid => or_nothing(1.0 / (exp(-x) + 1.0)),
        }
    }

    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        match self {
            Self::Gelu => {
                // 1 / sqrt(2π)
                let density = 0.398_942_3 * exp(-0.5 * x * x);
                normal_cdf(x) + x * density
            }
            Self::Relu => f32::from(u8::from(x > 0.0)),
            Self::Relu6 => f32::from(u8::from(x > 0.0 && x < 6.0)),
            Self::LeakyRelu => {
                if x > 0.0 {
                    1.0
                } else {
                    0.01
                }
            }
            Self::Tanh => {
                let y = self.value(x);
                1.0 - y * y
            }
            Self::Sigmoid => {
                let y = self.value(x);
                y * (1.0 - y)
            }
        }
    }

    /// `out ← f(x)`, all of it.
    #[inline(always)]
    fn apply(self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        match self {
            Self::Gelu => map(x, out, |x| Self::Gelu.value(x)),
            Self::Relu => map(x, out, |x| Self::Relu.value(x)),
            Self::Relu6 => map(x, out, |x| Self::Relu6.value(x)),
            Self::LeakyRelu => map(x, out, |x| Self::LeakyRelu.value(x)),
            Self::Tanh => map(x, out, |x| Self::Tanh.value(x)),
            Self::Sigmoid => map(x, out, |x| Self::Sigmoid.value(x)),
        }
    }

    /// `x ← f(x + shift)`.
    #[inline(always)]
    pub(crate) fn apply_shifted(this: Option<Self>, x: &mut [f32], shift: f32) {
        match this {
            None => change(x, |v| v + shift),
            Some(Self::Gelu) => change(x, |v| Self::Gelu.value(v + shift)),
            Some(Self::Relu) => change(x, |v| Self::Relu.value(v + shift)),
            Some(Self::Relu6) => change(x, |v| Self::Relu6.value(v + shift)),
            Some(Self::LeakyRelu) => change(x, |v| Self::LeakyRelu.value(v + shift)),
            Some(Self::Tanh) => change(x, |v| Self::Tanh.value(v + shift)),
            Some(Self::Sigmoid) => change(x, |v| Self::Sigmoid.value(v + shift)),
        }
    }

    /// Writes `f(x)` to all of `out`.
    pub(crate) fn of(self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        assert_eq!(x.len(), out.len());
        out.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(o, x)| {
            simd(
                #[inline(always)]
                || self.apply(x, o),
            )
        });
    }

    /// `grad · f'(x)`.
    pub(crate) fn mul_grad(self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).zip(grad.par_chunks(GRAIN)).for_each(
            |((o, x), g)| {
                simd(
                    #[inline(always)]
                    || self.apply_slope(x, g, o),
                )
            },
        );
        out
    }

    /// `out ← grad · f'(x · scale + shift)`; without an activation `out ← grad`.
    #[inline(always)]
    pub(crate) fn mul_grad_of_affine(
        this: Option<Self>,
        x: &[f32],
        grad: &[f32],
        scale: f32,
        shift: f32,
        out: &mut [f32],
    ) {
        match this {
            None => out.copy_from_slice(grad),
            Some(Self::Gelu) => map_with(x, grad, out, |x, g| g * Self::Gelu.slope(x * scale + shift)),
            Some(Self::Relu) => map_with(x, grad, out, |x, g| g * Self::Relu.slope(x * scale + shift)),
            Some(Self::Relu6) => map_with(x, grad, out, |x, g| g * Self::Relu6.slope(x * scale + shift)),
            Some(Self::LeakyRelu) => {
                map_with(x, grad, out, |x, g| g * Self::LeakyRelu.slope(x * scale + shift))
            }
            Some(Self::Tanh) => map_with(x, grad, out, |x, g| g * Self::Tanh.slope(x * scale + shift)),
            Some(Self::Sigmoid) => map_with(x, grad, out, |x, g| g * Self::Sigmoid.slope(x * scale + shift)),
        }
    }

    /// `out ← grad · f'(x)`.
    #[inline(always)]
    pub(crate) fn apply_slope(self, x: &[f32], grad: &[f32], out: &mut [f32]) {
        Self::mul_grad_of_affine(Some(self), x, grad, 1.0, 0.0, out);
    }
}

// One loop per activation, because a branch inside would prevent vectorisation. A loop instead of `for_each`, because
// the compiler may leave that function outside `simd` and compile it for the baseline CPU.

#[inline(always)]
fn map(x: &[f32], out: &mut [MaybeUninit<f32>], f: impl Fn(f32) -> f32) {
    for (o, x) in out.iter_mut().zip(x) {
        o.write(f(*x));
    }
}

#[inline(always)]
fn change(x: &mut [f32], f: impl Fn(f32) -> f32) {
    for v in x {
        *v = f(*v);
    }
}

/// Negligible results become 0.
#[inline(always)]
fn map_with(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
        *o = or_nothing(f(*x, *y));
    }
}

// SAFETY: element by element.
unsafe impl Kernel for Activation {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        self.of(&args.get(0)?, out);
        Ok(())
    }
}

impl Differentiable for Activation {
    fn name(&self) -> &'static str {
        "autosam-activation"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let x = args[0];
        Ok([Some(shaped_as(self.mul_grad(&Elements::of(x)?, &Elements::of(grad)?), x)?), None, None])
    }
}

/// `x · scale + shift`, without a gradient.
pub(crate) struct Affine {
    pub scale: f32,
    pub shift: f32,
}

// SAFETY: element by element.
unsafe impl Kernel for Affine {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        out.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(out, x)| {
            simd(
                #[inline(always)]
                || map(x, out, |x| x * self.scale + self.shift),
            )
        });
        Ok(())
    }
}

/// As [`crate::gate`] of logits `[N, ...]` and scores `[N, M]`, without a gradient.
pub(crate) struct Gate {
    pub least: f32,
    pub slope: f32,
}

// SAFETY: image by image.
unsafe impl Kernel for Gate {
    fn shape(&self, args: Args) -> Result<Shape> {
        match (args.dims(0), args.dims(1)) {
            (x, &[n, m]) if m > 0 && x.first() == Some(&n) => Ok(Shape::from(x)),
            (x, s) => candle_core::bail!("gate: scores {s:?} do not fit {x:?}"),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (x, scores) = (args.get(0)?, args.get(1)?);
        let size = args.dims(0).iter().skip(1).product::<usize>().max(1);
        let row = args.dims(1)[1];
        for ((out, x), score) in
            out.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(scores.chunks_exact(row))
        {
            let less = (self.slope * (self.least - score[0])).max(0.0);
            map(x, out, |x| x - less);
        }
        Ok(())
    }
}

/// As [`crate::min_max`], without a gradient.
pub(crate) struct MinMax;

// SAFETY: image by image.
unsafe impl Kernel for MinMax {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let size = args.dims(0).iter().skip(1).product::<usize>().max(1);
        for (out, x) in out.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
            let min = x.iter().copied().fold(f32::INFINITY, f32::min);
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let range = max - min + 1e-6;
            map(x, out, |x| (x - min) / range);
        }
        Ok(())
    }
}

/// Softmax of a row, in place.
#[inline(always)]
pub(crate) fn softmax_row(x: &mut [f32]) {
    let max = highest(x);
    change(x, |v| exp(v - max));
    let scale = 1.0 / sum(x);
    change(x, |v| v * scale);
}

/// `grad ← y · (grad - Σ y · grad)`: backward of the softmax with result `y`.
#[inline(always)]
pub(crate) fn softmax_grad_row(y: &[f32], grad: &mut [f32]) {
    for (g, y) in grad.iter_mut().zip(y) {
        *g *= y;
    }
    let dot = sum(grad);
    for (g, y) in grad.iter_mut().zip(y) {
        *g = or_nothing(*g - y * dot);
    }
}

/// Softmax over the last dimension.
pub(crate) struct Softmax;

// SAFETY: the blocks are all rows.
unsafe impl Kernel for Softmax {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let width = args.dims(0).last().copied().unwrap_or(1).max(1);
        let block = (GRAIN / width).max(1) * width;
        out.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(o, x)| {
            simd(
                #[inline(always)]
                || copied(x, o).chunks_exact_mut(width).for_each(softmax_row),
            )
        });
        Ok(())
    }
}

impl Differentiable for Softmax {
    fn name(&self) -> &'static str {
        "autosam-softmax"
    }

    fn backward(&self, _: &[&Tensor], y: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let width = y.dims().last().copied().unwrap_or(1).max(1);
        let dx = softmax_grad(&Elements::of(y)?, &Elements::of(grad)?, width);
        Ok([Some(shaped_as(dx, y)?), None, None])
    }
}

/// Gradient of x from its softmax `y` in rows of `width` and the gradient of `y`.
fn softmax_grad(y: &[f32], grad: &[f32], width: usize) -> Vec<f32> {
    let block = (GRAIN / width).max(1) * width;
    let mut out = vec![0f32; y.len()];
    out.par_chunks_mut(block).zip(y.par_chunks(block)).zip(grad.par_chunks(block)).for_each(|((o, y), g)| {
        simd(
            #[inline(always)]
            || {
                let rows = o.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(g.chunks_exact(width));
                for ((o, y), g) in rows {
                    o.copy_from_slice(g);
                    softmax_grad_row(y, o);
                }
            },
        )
    });
    out
}

/// The maximum of `x`, in sixteen lanes.
#[inline(always)]
fn highest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let blocks = x.chunks_exact(16);
    let mut highest = f32::NEG_INFINITY;
    for v in blocks.remainder() {
        highest = if *v > highest { *v } else { highest };
    }
    for block in blocks {
        for i in 0..16 {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    for v in lanes {
        highest = if v > highest { v } else { highest };
    }
    highest
}

/// Σ x, in sixteen lanes so that it vectorises.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let blocks = x.chunks_exact(16);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        for i in 0..16 {
            lanes[i] += block[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Σ f(i) over a plane: lanes in f32 within a block, blocks in f64, so that large planes lose no precision.
#[inline(always)]
pub(crate) fn plane_sum(len: usize, f: impl Fn(usize) -> f32) -> f64 {
    let mut total = 0f64;
    let mut at = 0;
    while at < len {
        let end = (at + 1024).min(len);
        let mut lanes = [0f32; 16];
        let whole = at + (end - at) / 16 * 16;
        let mut i = at;
        while i < whole {
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value += f(i + lane);
            }
            i += 16;
        }
        total += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
        for i in whole..end {
            total += f64::from(f(i));
        }
        at = end;
    }
    total
}
