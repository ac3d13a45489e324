//! Depth-wise convolution: one kernel per channel, row by row.

use super::common::{gradient_of, simd};
use super::epilogue::{ChannelEpilogue, Epilogue};
use crate::Conv2d;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::assume_init_part;
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub n: usize,
    pub c: usize,
    h: usize,
    w: usize,
    k: usize,
    stride: usize,
    padding: usize,
    pub oh: usize,
    pub ow: usize,
}

impl Geometry {
    pub fn of(x: &[usize], w: &[usize], cfg: Conv2d) -> Result<Self> {
        let (&[n, c, h, width], &[o, 1, k, k2]) = (x, w) else {
            candle_core::bail!(
                "depth-wise conv2d: expected [N, C, H, W] and [C, 1, K, K], found {x:?} and {w:?}"
            )
        };
        let (Some(oh), Some(ow), true) = (cfg.outputs(h, k), cfg.outputs(width, k), o == c && k == k2) else {
            candle_core::bail!("depth-wise conv2d: {w:?} does not fit {x:?} with {cfg:?}");
        };
        let Conv2d { stride, padding, .. } = cfg;
        Ok(Self { n, c, h, w: width, k, stride, padding, oh, ow })
    }

    /// Calls `f(input row, output row, kernel row)` for every combination that contributes.
    #[inline(always)]
    fn rows(&self, mut f: impl FnMut(usize, usize, usize)) {
        for oy in 0..self.oh {
            for ky in 0..self.k {
                let iy = (oy * self.stride + ky).wrapping_sub(self.padding);
                if iy < self.h {
                    f(iy, oy, ky);
                }
            }
        }
    }

    /// For kernel column `kx`: range of output columns (first, end) whose input lies inside the image, and the first
    /// input column.
    #[inline(always)]
    fn span(&self, kx: usize) -> (usize, usize, usize) {
        let from = self.padding.saturating_sub(kx).div_ceil(self.stride);
        let to = (self.w + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        (from.min(to), to, (from * self.stride + kx).saturating_sub(self.padding))
    }

    /// `x [N, C, H, W]` and `w [C, 1, K, K]` → all of `out [N, C, OH, OW]`, with the epilogue.
    pub fn forward(
        &self,
        x: &[f32],
        w: &[f32],
        epilogue: Option<&ChannelEpilogue>,
        out: &mut [MaybeUninit<f32>],
    ) {
        let g = self;
        assert_eq!(out.len(), g.n * g.c * g.oh * g.ow);
        out.par_chunks_mut(g.oh * g.ow).zip(x.par_chunks(g.h * g.w)).enumerate().for_each(|(i, (out, x))| {
            let kernel = &w[i % g.c * g.k * g.k..][..g.k * g.k];
            simd(
                #[inline(always)]
                || {
                    out.fill(MaybeUninit::new(0.0));
                    // SAFETY: it was written just before.
                    let out = unsafe { assume_init_part(out) };
                    g.rows(
                        #[inline(always)]
                        |iy, oy, ky| {
                            let row = &x[iy * g.w..][..g.w];
                            let cells = &mut out[oy * g.ow..][..g.ow];
                            for kx in 0..g.k {
                                let (from, to, start) = g.span(kx);
                                let weight = kernel[ky * g.k + kx];
                                let cells = &mut cells[from..to];
                                if g.stride == 1 {
                                    for (cell, v) in cells.iter_mut().zip(&row[start.min(g.w)..]) {
                                        *cell += weight * v;
                                    }
                                } else {
                                    for (cell, v) in
                                        cells.iter_mut().zip(row[start.min(g.w)..].iter().step_by(g.stride))
                                    {
                                        *cell += weight * v;
                                    }
                                }
                            }
                        },
                    );
                    if let Some(epilogue) = epilogue {
                        epilogue.channel(i % g.c, out);
                    }
                },
            );
        });
    }

    /// Gradient of the input.
    pub fn grad_input(&self, grad: &[f32], w: &[f32]) -> Vec<f32> {
        let g = self;
        let mut dx = vec![0f32; g.n * g.c * g.h * g.w];
        dx.par_chunks_mut(g.h * g.w).zip(grad.par_chunks(g.oh * g.ow)).enumerate().for_each(
            |(i, (dx, grad))| {
                let kernel = &w[i % g.c * g.k * g.k..][..g.k * g.k];
                simd(
                    #[inline(always)]
                    || {
                        g.rows(
                            #[inline(always)]
                            |iy, oy, ky| {
                                let row = &mut dx[iy * g.w..][..g.w];
                                let cells = &grad[oy * g.ow..][..g.ow];
                                for kx in 0..g.k {
                                    let (from, to, start) = g.span(kx);
                                    let weight = kernel[ky * g.k + kx];
                                    let row = &mut row[start.min(g.w)..];
                                    if g.stride == 1 {
                                        for (v, cell) in row.iter_mut().zip(&cells[from..to]) {
                                            *v += weight * cell;
                                        }
                                    } else {
                                        for (v, cell) in
                                            row.iter_mut().step_by(g.stride).zip(&cells[from..to])
                                        {
                                            *v += weight * cell;
                                        }
                                    }
                                }
                            },
                        );
                    },
                );
            },
        );
        dx
    }

    /// Gradient of the weights.
    pub fn grad_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let g = self;
        let mut dw = vec![0f32; g.c * g.k * g.k];
        dw.par_chunks_mut(g.k * g.k).enumerate().for_each(|(channel, dw)| {
            for image in 0..g.n {
                let plane = image * g.c + channel;
                let x = &x[plane * g.h * g.w..][..g.h * g.w];
                let grad = &grad[plane * g.oh * g.ow..][..g.oh * g.ow];
                simd(
                    #[inline(always)]
                    || {
                        g.rows(
                            #[inline(always)]
                            |iy, oy, ky| {
                                let row = &x[iy * g.w..][..g.w];
                                let cells = &grad[oy * g.ow..][..g.ow];
                                for kx in 0..g.k {
                                    let (from, to, start) = g.span(kx);
                                    dw[ky * g.k + kx] +=
                                        dot(&cells[from..to], &row[start.min(g.w)..], g.stride);
                                }
                            },
                        );
                    },
                );
            }
        });
        dw
    }
}

/// The operation with its gradients.
pub(crate) struct DepthWise {
    pub cfg: Conv2d,
    pub epilogue: Epilogue,
}

// SAFETY: every plane is written.
unsafe impl Kernel for DepthWise {
    fn shape(&self, args: Args) -> Result<Shape> {
        let g = Geometry::of(args.dims(0), args.dims(1), self.cfg)?;
        Ok(Shape::from((g.n, g.c, g.oh, g.ow)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let g = Geometry::of(args.dims(0), args.dims(1), self.cfg)?;
        g.forward(&args.get(0)?, &args.get(1)?, self.epilogue.per_channel(g.c)?.as_ref(), out);
        Ok(())
    }
}

impl Differentiable for DepthWise {
    fn name(&self) -> &'static str {
        "autosam-depthwise"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, w) = (args[0], args[1]);
        let g = Geometry::of(x.dims(), w.dims(), self.cfg)?;
        let grad = Elements::of(grad)?;
        let dx = gradient_of(x, || Ok(g.grad_input(&grad, &Elements::of(w)?)))?;
        let dw = gradient_of(w, || Ok(g.grad_weight(&Elements::of(x)?, &grad)))?;
        Ok([dx, dw, None])
    }
}

/// Σ a[i] · b[i · stride], in eight lanes so that it vectorises.
#[inline(always)]
fn dot(a: &[f32], b: &[f32], stride: usize) -> f32 {
    if stride != 1 {
        return a.iter().zip(b.iter().step_by(stride)).map(|(a, b)| a * b).sum();
    }
    let b = &b[..a.len()];
    let mut lanes = [0f32; 8];
    let (blocks, rest) = (a.chunks_exact(8), a.chunks_exact(8).remainder());
    for (a, b) in blocks.zip(b.chunks_exact(8)) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let tail: f32 = rest.iter().zip(&b[a.len() - rest.len()..]).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + tail
}
