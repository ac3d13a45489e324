//! Layer norm over the last dimension or over channels.

use super::common::{GRAIN, add_all, gradient_of, shaped_as, simd, sum_over_images};
use super::pointwise::sum;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::{Shared, assume_init, uninit};
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Layer norm over the last dimension.
pub(crate) struct LayerNorm {
    pub eps: f32,
}

/// Mean and 1 / sqrt(variance + eps) of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    let mut lanes = [0f32; 16];
    let blocks = x.chunks_exact(16);
    let mut rest = 0f32;
    for v in blocks.remainder() {
        rest += (v - mean) * (v - mean);
    }
    for block in blocks {
        for i in 0..16 {
            let d = block[i] - mean;
            lanes[i] += d * d;
        }
    }
    let variance = (lanes.iter().sum::<f32>() + rest) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

// SAFETY: rows are as wide as the gains and biases, and the blocks cover all rows.
unsafe impl Kernel for LayerNorm {
    fn shape(&self, args: Args) -> Result<Shape> {
        let width = args.dims(1).iter().product();
        if args.dims(2) != args.dims(1) || width == 0 || args.dims(0).last() != Some(&width) {
            candle_core::bail!("layer norm: {:?}, {width} gains, biases {:?}", args.dims(0), args.dims(2));
        }
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (x, w, b) = (args.get(0)?, args.get(1)?, args.get(2)?);
        let (w, b): (&[f32], &[f32]) = (&w, &b);
        let width = w.len();
        let block = (GRAIN / width).max(1) * width;
        out.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(o, x)| {
            simd(
                #[inline(always)]
                || {
                    for (o, x) in o.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let (mean, inv) = moments(x, self.eps);
                        for (((o, x), w), b) in o.iter_mut().zip(x).zip(w).zip(b) {
                            o.write((x - mean) * inv * w + b);
                        }
                    }
                },
            )
        });
        Ok(())
    }
}

impl Differentiable for LayerNorm {
    fn name(&self) -> &'static str {
        "autosam-layer-norm"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, w, b) = (args[0], args[1], args[2]);
        let (data, given) = (Elements::of(x)?, Elements::of(grad)?);
        let dx = gradient_of(x, || Ok(grad_input(&data, &Elements::of(w)?, &given, self.eps)))?;
        if !w.track_op() && !b.track_op() {
            return Ok([dx, None, None]);
        }
        let sums = grad_affine(&data, &given, w.elem_count(), self.eps);
        let (gain, bias) = sums.split_at(w.elem_count());
        Ok([dx, Some(shaped_as(gain.to_vec(), w)?), Some(shaped_as(bias.to_vec(), b)?)])
    }
}

/// Gradient of x from the gradient of the result.
fn grad_input(x: &[f32], w: &[f32], grad: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len();
    let block = (GRAIN / width).max(1) * width;
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(block).zip(x.par_chunks(block)).zip(grad.par_chunks(block)).for_each(|((o, x), g)| {
        let mut normal = vec![0f32; width];
        simd(
            #[inline(always)]
            || {
                let rows = o.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width));
                for ((o, x), g) in rows {
                    let (mean, inv) = moments(x, eps);
                    for ((o, g), w) in o.iter_mut().zip(g).zip(w) {
                        *o = g * w;
                    }
                    let mean_g = sum(o) / width as f32;
                    for ((n, o), x) in normal.iter_mut().zip(o.iter()).zip(x) {
                        *n = o * (x - mean) * inv;
                    }
                    let mean_gx = sum(&normal) / width as f32;
                    for (o, x) in o.iter_mut().zip(x) {
                        *o = inv * (*o - mean_g - (x - mean) * inv * mean_gx);
                    }
                }
            },
        )
    });
    out
}

/// Gradients of gain and bias, concatenated.
fn grad_affine(x: &[f32], grad: &[f32], width: usize, eps: f32) -> Vec<f32> {
    // A fixed split, added in order, so that results are bit-identical every time.
    let block = x.len().div_ceil(16).div_ceil(width).max(1) * width;
    let parts: Vec<Vec<f32>> = x
        .par_chunks(block)
        .zip(grad.par_chunks(block))
        .map(|(x, g)| {
            let mut out = vec![0f32; 2 * width];
            simd(
                #[inline(always)]
                || {
                    let (dw, db) = out.split_at_mut(width);
                    for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
                        let (mean, inv) = moments(x, eps);
                        for (((dw, db), x), g) in dw.iter_mut().zip(db.iter_mut()).zip(x).zip(g) {
                            *dw += g * (x - mean) * inv;
                            *db += g;
                        }
                    }
                },
            );
            out
        })
        .collect();
    add_all(parts, 2 * width)
}

/// Pixels that channel-wise layer norm processes at a time.
const PIXELS: usize = 64;

/// Layer norm over the channels of `[N, C, H, W]`.
pub(crate) struct LayerNorm2d {
    pub eps: f32,
}

/// Calls `f(image, first pixel, pixels)` for tiles of pixels, in parallel.
fn tiles(n: usize, pixels: usize, f: impl Fn(usize, usize, usize) + Sync + Send) {
    let per_image = pixels.div_ceil(PIXELS);
    (0..n * per_image).into_par_iter().with_min_len(8).for_each(|task| {
        let (image, tile) = (task / per_image, task % per_image);
        f(image, tile * PIXELS, PIXELS.min(pixels - tile * PIXELS));
    });
}

/// Means and reciprocal deviations over channels of `width` pixels from `at`.
#[inline(always)]
fn moments_2d(
    x: &[f32],
    c: usize,
    pixels: usize,
    at: usize,
    width: usize,
    eps: f32,
) -> ([f32; PIXELS], [f32; PIXELS]) {
    let (mut mean, mut square) = ([0f32; PIXELS], [0f32; PIXELS]);
    for channel in 0..c {
        let row = &x[channel * pixels + at..][..width];
        for (m, x) in mean.iter_mut().zip(row) {
            *m += x;
        }
    }
    mean.iter_mut().for_each(|m| *m /= c as f32);
    for channel in 0..c {
        let row = &x[channel * pixels + at..][..width];
        for ((s, m), x) in square.iter_mut().zip(&mean).zip(row) {
            *s += (x - m) * (x - m);
        }
    }
    square.iter_mut().for_each(|s| *s = 1.0 / (*s / c as f32 + eps).sqrt());
    (mean, square)
}

// SAFETY: the tiles are all pixels there are.
unsafe impl Kernel for LayerNorm2d {
    fn shape(&self, args: Args) -> Result<Shape> {
        let &[_, c, _, _] = args.dims(0) else {
            candle_core::bail!("layer norm: expected [N, C, H, W], found {:?}", args.dims(0))
        };
        if args.dims(1) != [c] || args.dims(2) != [c] {
            candle_core::bail!("layer norm: gains {:?}, biases {:?} of {c}", args.dims(1), args.dims(2));
        }
        Ok(Shape::from(args.dims(0)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (x, w, b) = (args.get(0)?, args.get(1)?, args.get(2)?);
        let (x, w, b): (&[f32], &[f32], &[f32]) = (&x, &w, &b);
        let &[n, c, h, width] = args.dims(0) else { return Ok(()) };
        let pixels = h * width;
        let shared = Shared::uninit(out);
        tiles(n, pixels, |image, at, count| {
            let x = &x[image * c * pixels..][..c * pixels];
            simd(
                #[inline(always)]
                || {
                    let (mean, inv) = moments_2d(x, c, pixels, at, count, self.eps);
                    for channel in 0..c {
                        let row = &x[channel * pixels + at..][..count];
                        // SAFETY: a task writes its own pixels of its own image.
                        let o = unsafe {
                            std::slice::from_raw_parts_mut(
                                shared.at((image * c + channel) * pixels + at),
                                count,
                            )
                        };
                        for (((o, x), m), i) in o.iter_mut().zip(row).zip(&mean).zip(&inv) {
                            *o = (x - m) * i * w[channel] + b[channel];
                        }
                    }
                },
            )
        });
        Ok(())
    }
}

impl Differentiable for LayerNorm2d {
    fn name(&self) -> &'static str {
        "autosam-layer-norm-2d"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, w, b) = (args[0], args[1], args[2]);
        let (n, c, h, width) = x.dims4()?;
        let pixels = h * width;
        let (data, given) = (Elements::of(x)?, Elements::of(grad)?);
        let size = (n, c, pixels);
        let dx = gradient_of(x, || Ok(grad_input_2d(&data, &Elements::of(w)?, &given, size, self.eps)))?;
        if !w.track_op() && !b.track_op() {
            return Ok([dx, None, None]);
        }
        let sums = sum_over_images(n, 2 * c, |image, sums| {
            let (x, grad) = (&data[image * c * pixels..], &given[image * c * pixels..]);
            let (dw, db) = sums.split_at_mut(c);
            simd(
                #[inline(always)]
                || {
                    for at in (0..pixels).step_by(PIXELS) {
                        let count = PIXELS.min(pixels - at);
                        let (mean, inv) = moments_2d(x, c, pixels, at, count, self.eps);
                        for channel in 0..c {
                            let (row, g) = (
                                &x[channel * pixels + at..][..count],
                                &grad[channel * pixels + at..][..count],
                            );
                            let mut normal = [0f32; PIXELS];
                            for i in 0..count {
                                normal[i] = g[i] * (row[i] - mean[i]) * inv[i];
                            }
                            dw[channel] += sum(&normal);
                            db[channel] += sum(g);
                        }
                    }
                },
            )
        });
        let of = |part: &[f32]| Tensor::from_slice(part, c, x.device());
        Ok([dx, Some(of(&sums[..c])?), Some(of(&sums[c..])?)])
    }
}

/// Gradient of x from the gradient of the result, for `n` images of `c` channels.
fn grad_input_2d(
    x: &[f32],
    w: &[f32],
    grad: &[f32],
    (n, c, pixels): (usize, usize, usize),
    eps: f32,
) -> Vec<f32> {
    let mut out = uninit(x.len());
    let shared = Shared::uninit(&mut out);
    tiles(n, pixels, |image, at, count| {
        let (x, grad) = (&x[image * c * pixels..][..c * pixels], &grad[image * c * pixels..][..c * pixels]);
        simd(
            #[inline(always)]
            || {
                let (mean, inv) = moments_2d(x, c, pixels, at, count, eps);
                let (mut mean_g, mut mean_gx) = ([0f32; PIXELS], [0f32; PIXELS]);
                for channel in 0..c {
                    let (row, g) =
                        (&x[channel * pixels + at..][..count], &grad[channel * pixels + at..][..count]);
                    for i in 0..count {
                        let v = g[i] * w[channel];
                        mean_g[i] += v;
                        mean_gx[i] += v * (row[i] - mean[i]) * inv[i];
                    }
                }
                for channel in 0..c {
                    let (row, g) =
                        (&x[channel * pixels + at..][..count], &grad[channel * pixels + at..][..count]);
                    // SAFETY: a task writes its own pixels of its own image.
                    let o = unsafe {
                        std::slice::from_raw_parts_mut(shared.at((image * c + channel) * pixels + at), count)
                    };
                    for i in 0..count {
                        let normal = (row[i] - mean[i]) * inv[i];
                        let (g, scale) = (g[i] * w[channel], 1.0 / c as f32);
                        o[i] = inv[i] * (g - mean_g[i] * scale - normal * mean_gx[i] * scale);
                    }
                }
            },
        )
    });
    // SAFETY: the tiles are all pixels there are.
    unsafe { assume_init(out) }
}
