//! Pooling and resizing, with gradients.

use super::common::shaped_as;
use super::gemm::scratch;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::{Shared, assume_init_part};
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Bilinear resize of `[N, C, H, W]`, as [`crate::resize_bilinear`].
pub(crate) struct Resize {
    pub height: usize,
    pub width: usize,
    pub align_corners: bool,
    /// Taps of rows and columns.
    taps: OnceLock<[Vec<Tap>; 2]>,
}

/// See [`taps`].
type Tap = (usize, usize, f32);

/// The two samples interpolated for each output, and the weight of the second.
pub(crate) fn taps(from: usize, to: usize, align_corners: bool) -> impl Iterator<Item = Tap> {
    (0..to).map(move |j| {
        let at = if align_corners {
            if to == 1 { 0.0 } else { j as f64 * (from - 1) as f64 / (to - 1) as f64 }
        } else {
            ((j as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0)
        };
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), (at - low as f64) as f32)
    })
}

impl Resize {
    pub fn new(height: usize, width: usize, align_corners: bool) -> Self {
        Self { height, width, align_corners, taps: OnceLock::new() }
    }

    /// The taps for an input of `h × w`.
    fn taps(&self, h: usize, w: usize) -> &[Vec<Tap>; 2] {
        self.taps.get_or_init(|| {
            [(h, self.height), (w, self.width)].map(|(from, to)| taps(from, to, self.align_corners).collect())
        })
    }
}

// SAFETY: the halves cover all rows.
unsafe impl Kernel for Resize {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(0) {
            &[n, c, _, _] => Ok(Shape::from((n, c, self.height, self.width))),
            other => candle_core::bail!("resize: expected [N, C, H, W], found {other:?}"),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let x: &[f32] = &x;
        let &[n, c, h, w] = args.dims(0) else { return Ok(()) };
        let [down, across] = self.taps(h, w);
        // Half a plane per task, so that one plane still feeds two threads.
        let lines = self.height.div_ceil(2);
        let halves = self.height.div_ceil(lines);
        let shared = Shared::uninit(out);
        (0..n * c * halves).into_par_iter().with_min_len(2 / halves.max(1)).for_each(|task| {
            let (plane, half) = (task / halves, task % halves);
            let x = &x[plane * h * w..][..h * w];
            let rows = lines.min(self.height - half * lines);
            // SAFETY: a task writes its own rows of its own plane.
            let out = unsafe {
                let at = (plane * self.height + half * lines) * self.width;
                std::slice::from_raw_parts_mut(shared.at(at), rows * self.width)
            };
            scratch(w, |blend| {
                for (out, (low, high, t)) in out.chunks_exact_mut(self.width).zip(&down[half * lines..]) {
                    let (a, b) = (&x[low * w..][..w], &x[high * w..][..w]);
                    blend.iter_mut().zip(a).zip(b).for_each(|((v, a), b)| *v = a + t * (b - a));
                    for (o, (low, high, t)) in out.iter_mut().zip(across) {
                        *o = blend[*low] + t * (blend[*high] - blend[*low]);
                    }
                }
            });
        });
        Ok(())
    }
}

impl Differentiable for Resize {
    fn name(&self) -> &'static str {
        "autosam-resize"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let x = args[0];
        let (_, _, h, w) = x.dims4()?;
        let grad = Elements::of(grad)?;
        let [down, across] = self.taps(h, w);
        let mut dx = vec![0f32; x.elem_count()];
        dx.par_chunks_mut(h * w).zip(grad.par_chunks(self.height * self.width)).for_each(|(dx, grad)| {
            scratch(w, |line| {
                for (grad, (low, high, t)) in grad.chunks_exact(self.width).zip(down) {
                    line.fill(0.0);
                    for (g, (left, right, t)) in grad.iter().zip(across) {
                        line[*left] += (1.0 - t) * g;
                        line[*right] += t * g;
                    }
                    for (at, share) in [(low, 1.0 - t), (high, *t)] {
                        dx[at * w..][..w].iter_mut().zip(line.iter()).for_each(|(d, l)| *d += share * l);
                    }
                }
            });
        });
        Ok([Some(shaped_as(dx, x)?), None, None])
    }
}

/// Max pooling of `[N, C, H, W]`, as [`crate::max_pool2d`].
pub(crate) struct MaxPool {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl MaxPool {
    fn size(&self, side: usize) -> usize {
        (side + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Range of inputs (first, end) of output `at`.
    fn reach(&self, at: usize, side: usize) -> (usize, usize) {
        let from = at * self.stride;
        (from.saturating_sub(self.padding), (from + self.kernel - self.padding).min(side))
    }
}

// SAFETY: every plane is written.
unsafe impl Kernel for MaxPool {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(0) {
            &[n, c, h, w] => Ok(Shape::from((n, c, self.size(h), self.size(w)))),
            other => candle_core::bail!("max pooling: expected [N, C, H, W], found {other:?}"),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let &[_, _, h, w] = args.dims(0) else { return Ok(()) };
        let (oh, ow) = (self.size(h), self.size(w));
        out.par_chunks_mut(oh * ow).zip(x.par_chunks(h * w)).with_min_len(2).for_each(|(out, x)| {
            out.fill(MaybeUninit::new(0.0));
            // SAFETY: it was written just before.
            let out = unsafe { assume_init_part(out) };
            scratch(w, |tallest| {
                for (y, out) in out.chunks_exact_mut(ow).enumerate() {
                    let (top, bottom) = self.reach(y, h);
                    tallest.copy_from_slice(&x[top * w..][..w]);
                    for row in x[top * w..bottom * w].chunks_exact(w).skip(1) {
                        tallest.iter_mut().zip(row).for_each(|(t, v)| *t = t.max(*v));
                    }
                    for (i, o) in out.iter_mut().enumerate() {
                        let (left, right) = self.reach(i, w);
                        *o = tallest[left..right].iter().fold(f32::MIN, |m, v| m.max(*v));
                    }
                }
            });
        });
        Ok(())
    }
}

impl Differentiable for MaxPool {
    fn name(&self) -> &'static str {
        "autosam-max-pool"
    }

    /// The gradient goes to the first maximum, as in PyTorch.
    fn backward(&self, args: &[&Tensor], y: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let x = args[0];
        let ((_, _, h, w), (_, _, oh, ow)) = (x.dims4()?, y.dims4()?);
        let (values, grad) = (Elements::of(x)?, Elements::of(grad)?);
        let mut dx = vec![0f32; x.elem_count()];
        let planes = dx.par_chunks_mut(h * w).zip(values.par_chunks(h * w)).zip(grad.par_chunks(oh * ow));
        planes.for_each(|((dx, x), grad)| {
            for (i, g) in grad.iter().enumerate() {
                let ((top, bottom), (left, right)) = (self.reach(i / ow, h), self.reach(i % ow, w));
                let mut best = top * w + left;
                for y in top..bottom {
                    for at in y * w + left..y * w + right {
                        if x[at] > x[best] {
                            best = at;
                        }
                    }
                }
                dx[best] += g;
            }
        });
        Ok([Some(shaped_as(dx, x)?), None, None])
    }
}
