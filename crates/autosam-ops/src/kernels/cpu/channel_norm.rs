//! Batch norm followed by an activation, over channels stored as planes or interleaved.

use super::common::{simd, sum_over_rows};
use super::pointwise::plane_sum;
use crate::Activation;
use crate::runtime::memory::{Shared, assume_init, assume_init_part, uninit};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Memory layout of the channels of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelLayout {
    /// `[N, C, pixels]`.
    Planes { n: usize, c: usize, pixels: usize },
    /// `[rows, C]`.
    Rows { rows: usize, c: usize },
}

/// Parameters and statistics, one entry per channel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Channels {
    pub mean: Vec<f32>,
    /// 1 / sqrt(variance + eps).
    pub inverse: Vec<f32>,
    /// Gain and bias of the norm.
    pub gain: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Channels {
    /// The norm as `x · scale + shift`.
    fn affine(&self) -> (Vec<f32>, Vec<f32>) {
        let scale: Vec<f32> = self.gain.iter().zip(&self.inverse).map(|(g, i)| g * i).collect();
        let shift = self.bias.iter().zip(&self.mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        (scale, shift)
    }
}

/// Rows of `[rows, C]` processed together while they are in the first-level cache.
const ROWS: usize = 16;

impl ChannelLayout {
    fn channels(self) -> usize {
        match self {
            Self::Planes { c, .. } | Self::Rows { c, .. } => c,
        }
    }

    /// Number of values per channel.
    pub fn count(self) -> usize {
        match self {
            Self::Planes { n, pixels, .. } => n * pixels,
            Self::Rows { rows, .. } => rows,
        }
    }

    /// Mean and biased variance of each channel.
    pub fn moments(self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let count = self.count() as f64;
        match self {
            Self::Planes { n, c, pixels } => {
                let plane = |image: usize, channel: usize| &x[(image * c + channel) * pixels..][..pixels];
                (0..c)
                    .into_par_iter()
                    .map(|channel| {
                        simd(
                            #[inline(always)]
                            || {
                                let (mut total, mut squares) = (0f64, 0f64);
                                for image in 0..n {
                                    let p = plane(image, channel);
                                    total += plane_sum(
                                        p.len(),
                                        #[inline(always)]
                                        |i| p[i],
                                    );
                                }
                                let mean = (total / count) as f32;
                                for image in 0..n {
                                    let p = plane(image, channel);
                                    squares += plane_sum(
                                        p.len(),
                                        #[inline(always)]
                                        |i| (p[i] - mean) * (p[i] - mean),
                                    );
                                }
                                (mean, (squares / count) as f32)
                            },
                        )
                    })
                    .unzip()
            }
            Self::Rows { c, .. } => {
                let over = |sums: Vec<f64>| -> Vec<f32> { sums.iter().map(|s| (s / count) as f32).collect() };
                let mean = over(self.column_sums(x, c, |x, sums| {
                    for (s, x) in sums.iter_mut().zip(x) {
                        *s += x;
                    }
                }));
                let variance = over(self.column_sums(x, c, |x, sums| {
                    for ((s, x), m) in sums.iter_mut().zip(x).zip(&mean) {
                        *s += (x - m) * (x - m);
                    }
                }));
                (mean, variance)
            }
        }
    }

    /// `len` sums over rows of `[rows, C]`. `f` adds a row's contribution; a few rows are summed in f32, their sums in
    /// f64.
    #[inline(always)]
    fn column_sums(self, x: &[f32], len: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f64> {
        let c = self.channels();
        sum_over_rows(x.len() / c, len, |rows, sums| {
            let mut few = vec![0f32; len];
            simd(
                #[inline(always)]
                || {
                    for block in x[rows.start * c..rows.end * c].chunks(ROWS * c) {
                        few.fill(0.0);
                        for row in block.chunks_exact(c) {
                            f(row, &mut few);
                        }
                        for (s, v) in sums.iter_mut().zip(&few) {
                            *s += f64::from(*v);
                        }
                    }
                },
            );
        })
    }

    /// Writes `activation(norm(x))` to all of `out`.
    pub fn normalise(
        self,
        x: &[f32],
        channels: &Channels,
        activation: Option<Activation>,
        out: &mut [MaybeUninit<f32>],
    ) {
        let (scale, shift) = channels.affine();
        assert_eq!(x.len(), out.len());
        match self {
            Self::Planes { c, pixels, .. } => {
                out.par_chunks_mut(pixels).zip(x.par_chunks(pixels)).enumerate().with_min_len(4).for_each(
                    |(i, (o, x))| {
                        let (scale, shift) = (scale[i % c], shift[i % c]);
                        simd(
                            #[inline(always)]
                            || {
                                for (o, x) in o.iter_mut().zip(x) {
                                    o.write(x * scale);
                                }
                                // SAFETY: as long as x, hence written.
                                Activation::apply_shifted(activation, unsafe { assume_init_part(o) }, shift);
                            },
                        );
                    },
                );
            }
            Self::Rows { c, .. } => {
                out.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).with_min_len(8).for_each(
                    |(o, x)| {
                        simd(
                            #[inline(always)]
                            || {
                                for (o, x) in o.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                                    for (((o, x), scale), shift) in
                                        o.iter_mut().zip(x).zip(&scale).zip(&shift)
                                    {
                                        o.write(x * scale + shift);
                                    }
                                }
                                if activation.is_some() {
                                    // SAFETY: as long as x, rows of c both, hence written.
                                    Activation::apply_shifted(
                                        activation,
                                        unsafe { assume_init_part(o) },
                                        0.0,
                                    );
                                }
                            },
                        );
                    },
                );
            }
        }
    }

    /// Gradients of x (through the batch's own statistics), gain and bias, from the gradient of [`Self::normalise`]'s
    /// result.
    pub fn grad(
        self,
        x: &[f32],
        grad: &[f32],
        channels: &Channels,
        activation: Option<Activation>,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (scale, shift) = channels.affine();
        let pass = Backward { x, grad, channels, scale, shift, activation };
        let mut h = uninit(x.len());
        let shared = Shared::uninit(&mut h);
        let (bias_grad, gain_grad) = match self {
            Self::Planes { n, c, pixels } => pass.before_activation_in_planes((n, c, pixels), shared),
            Self::Rows { rows, c } => pass.before_activation_in_rows((rows, c), shared),
        };
        // SAFETY: every plane or row was written.
        let mut h = unsafe { assume_init(h) };
        pass.through_statistics(self, &bias_grad, &gain_grad, &mut h);
        (h, gain_grad, bias_grad)
    }
}

/// The backward pass of a norm followed by an activation. It computes `h = grad · activation'(norm(x))`, then
/// `dx = scale · (h - mean(h) - x̂ · mean(h · x̂))` in place.
struct Backward<'a> {
    x: &'a [f32],
    /// Gradient of the activation's result.
    grad: &'a [f32],
    channels: &'a Channels,
    /// The norm as `x · scale + shift`, by [`Channels::affine`].
    scale: Vec<f32>,
    shift: Vec<f32>,
    activation: Option<Activation>,
}

impl Backward<'_> {
    /// Writes all of `h [n, c, pixels]` and returns its sums per channel, the gradients of bias (Σ h) and gain (Σ h · x̂).
    fn before_activation_in_planes(
        &self,
        (n, c, pixels): (usize, usize, usize),
        shared: Shared,
    ) -> (Vec<f32>, Vec<f32>) {
        let plane = |channel: usize| {
            let (mut total, mut product) = (0f64, 0f64);
            let (scale, shift) = (self.scale[channel], self.shift[channel]);
            let (mean, inverse) = (self.channels.mean[channel], self.channels.inverse[channel]);
            for image in 0..n {
                let at = (image * c + channel) * pixels;
                let (x, g) = (&self.x[at..][..pixels], &self.grad[at..][..pixels]);
                // SAFETY: every plane belongs to one task.
                let h = unsafe { std::slice::from_raw_parts_mut(shared.at(at), pixels) };
                simd(
                    #[inline(always)]
                    || {
                        Activation::mul_grad_of_affine(self.activation, x, g, scale, shift, h);
                        total += plane_sum(
                            pixels,
                            #[inline(always)]
                            |i| h[i],
                        );
                        product += plane_sum(
                            pixels,
                            #[inline(always)]
                            |i| h[i] * (x[i] - mean),
                        );
                    },
                );
            }
            (total as f32, (product * f64::from(inverse)) as f32)
        };
        (0..c).into_par_iter().map(plane).unzip()
    }

    /// The same for `h [rows, c]`.
    fn before_activation_in_rows(&self, (rows, c): (usize, usize), shared: Shared) -> (Vec<f32>, Vec<f32>) {
        let sums = sum_over_rows(rows, 2 * c, |range, sums| {
            let mut few = vec![0f32; 2 * c];
            for first in range.clone().step_by(ROWS) {
                let at = first * c;
                let len = ROWS.min(range.end - first) * c;
                // SAFETY: every row belongs to one part.
                let h = unsafe { std::slice::from_raw_parts_mut(shared.at(at), len) };
                let (x, g) = (&self.x[at..][..len], &self.grad[at..][..len]);
                simd(
                    #[inline(always)]
                    || {
                        match self.activation {
                            None => h.copy_from_slice(g),
                            Some(activation) => self.mul_slopes(activation, x, g, h),
                        }
                        few.fill(0.0);
                        self.add_rows(h, x, &mut few);
                        for (s, v) in sums.iter_mut().zip(&few) {
                            *s += f64::from(*v);
                        }
                    },
                );
            }
        });
        let inverse = &self.channels.inverse;
        let product = sums[c..].iter().zip(inverse).map(|(s, i)| (s * f64::from(*i)) as f32);
        (sums[..c].iter().map(|s| *s as f32).collect(), product.collect())
    }

    /// `h ← grad · activation'(norm(x))` of a few rows; part of a [`simd`] loop.
    #[inline(always)]
    fn mul_slopes(&self, activation: Activation, x: &[f32], grad: &[f32], h: &mut [f32]) {
        let (scale, shift) = (&self.scale[..], &self.shift[..]);
        let c = self.channels.mean.len();
        let mut before = [0f32; 1024];
        for ((h, x), g) in h.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(grad.chunks_exact(c)) {
            for from in (0..c).step_by(before.len()) {
                let to = c.min(from + before.len());
                let before = &mut before[..to - from];
                let lines = before.iter_mut().zip(&x[from..to]);
                for (((b, x), s), t) in lines.zip(&scale[from..to]).zip(&shift[from..to]) {
                    *b = x * s + t;
                }
                activation.apply_slope(before, &g[from..to], &mut h[from..to]);
            }
        }
    }

    /// Adds Σ h and Σ h · (x - mean) of a few rows to the two halves of `few [2 · C]`; part of a [`simd`] loop.
    #[inline(always)]
    fn add_rows(&self, h: &[f32], x: &[f32], few: &mut [f32]) {
        let mean = &self.channels.mean;
        let c = few.len() / 2;
        let (total, product) = few.split_at_mut(c);
        for (h, x) in h.chunks_exact(c).zip(x.chunks_exact(c)) {
            let lines = total.iter_mut().zip(product.iter_mut()).zip(h).zip(x).zip(mean);
            for ((((t, p), h), x), m) in lines {
                *t += h;
                *p += h * (x - m);
            }
        }
    }

    /// Turns `h` into the gradient of x, through the batch's own statistics, in place.
    fn through_statistics(&self, layout: ChannelLayout, bias_grad: &[f32], gain_grad: &[f32], h: &mut [f32]) {
        let (x, scale, mean) = (self.x, &self.scale, &self.channels.mean);
        let count = layout.count() as f32;
        let flat: Vec<f32> = bias_grad.iter().map(|s| s / count).collect();
        let slope: Vec<f32> =
            gain_grad.iter().zip(&self.channels.inverse).map(|(s, i)| s / count * i).collect();
        match layout {
            ChannelLayout::Planes { c, pixels, .. } => {
                h.par_chunks_mut(pixels).zip(x.par_chunks(pixels)).enumerate().with_min_len(4).for_each(
                    |(i, (h, x))| {
                        let i = i % c;
                        let (scale, flat, slope, mean) = (scale[i], flat[i], slope[i], mean[i]);
                        simd(
                            #[inline(always)]
                            || {
                                for (h, x) in h.iter_mut().zip(x) {
                                    *h = scale * (*h - flat - (x - mean) * slope);
                                }
                            },
                        );
                    },
                );
            }
            ChannelLayout::Rows { c, .. } => {
                h.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).with_min_len(8).for_each(|(h, x)| {
                    simd(
                        #[inline(always)]
                        || {
                            for (h, x) in h.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                                let (x, scale, flat, slope, mean) =
                                    (&x[..c], &scale[..c], &flat[..c], &slope[..c], &mean[..c]);
                                for (i, h) in h.iter_mut().enumerate() {
                                    *h = scale[i] * (*h - flat[i] - (x[i] - mean[i]) * slope[i]);
                                }
                            }
                        },
                    );
                });
            }
        }
    }
}
