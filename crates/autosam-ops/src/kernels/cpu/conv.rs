//! Convolution as matrix products over tiles of unfolded columns that stay in cache. 3x3 convolutions of stride 1 use
//! [`winograd`].

use super::common::{gradient_of, simd, sum_over_images};
use super::epilogue::{ChannelEpilogue, Epilogue};
use super::gemm::{MatRef, gemm, scratch};
use super::winograd::{self, Winograd};
use crate::Conv2d;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::Shared;
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Floats in a tile of unfolded columns: a share of the second-level cache.
const TILE: usize = 96 * 1024;

/// Sizes of one convolution without groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Geometry {
    pub n: usize,
    c: usize,
    h: usize,
    w: usize,
    pub o: usize,
    k: usize,
    stride: usize,
    padding: usize,
    pub oh: usize,
    pub ow: usize,
}

impl Geometry {
    pub fn of(x: &[usize], w: &[usize], cfg: Conv2d) -> Result<Self> {
        let (&[n, c, h, width], &[o, ci, k, k2]) = (x, w) else {
            candle_core::bail!("conv2d: expected [N, C, H, W] and [O, C, K, K], found {x:?} and {w:?}")
        };
        let (Some(oh), Some(ow), true) = (cfg.outputs(h, k), cfg.outputs(width, k), ci == c && k == k2)
        else {
            candle_core::bail!("conv2d: {w:?} does not fit {x:?} with {cfg:?}");
        };
        let Conv2d { stride, padding, .. } = cfg;
        Ok(Self { n, c, h, w: width, o, k, stride, padding, oh, ow })
    }

    fn pixels(&self) -> usize {
        self.oh * self.ow
    }

    /// Rows of the unfolded matrix.
    fn depth(&self) -> usize {
        self.c * self.k * self.k
    }

    /// Whether the input already is the unfolded matrix.
    fn pointwise(&self) -> bool {
        self.k == 1 && self.stride == 1 && (self.oh, self.ow) == (self.h, self.w)
    }

    /// Output rows per tile; few enough that a batch of one still feeds two threads.
    fn tile_rows(&self) -> usize {
        let fits = (TILE / (self.depth() * self.ow)).max(1);
        fits.min(self.oh.div_ceil(2)).max(1)
    }

    fn tiles(&self) -> usize {
        self.oh.div_ceil(self.tile_rows())
    }

    /// First row and number of rows of tile `t`.
    fn tile(&self, t: usize) -> (usize, usize) {
        let rows = self.tile_rows();
        (t * rows, rows.min(self.oh - t * rows))
    }

    /// The same convolution with Winograd's filtering, if it applies and pays off.
    fn winograd(&self) -> Option<Winograd> {
        let cfg = Conv2d { stride: self.stride, padding: self.padding, ..Conv2d::default() };
        let &Self { n, c, o, h, w, k, .. } = self;
        ((self.oh, self.ow) == (h, w)
            && winograd::applies(&[o, c, k, k], cfg)
            && winograd::pays(&[n, c, h, w]))
        .then_some(Winograd { n, c, o, h, w })
    }

    /// Columns of output rows `y0..y0 + rows` of one image: `[depth, rows · ow]`.
    fn unfold(&self, image: &[f32], y0: usize, rows: usize, out: &mut [f32]) {
        let width = rows * self.ow;
        simd(
            #[inline(always)]
            || {
                for (r, line) in out.chunks_exact_mut(width).enumerate() {
                    let (ch, ky, kx) = (r / (self.k * self.k), r / self.k % self.k, r % self.k);
                    let plane = &image[ch * self.h * self.w..][..self.h * self.w];
                    for (dy, cells) in line.chunks_exact_mut(self.ow).enumerate() {
                        let iy = ((y0 + dy) * self.stride + ky).wrapping_sub(self.padding);
                        if iy >= self.h {
                            cells.fill(0.0);
                            continue;
                        }
                        let row = &plane[iy * self.w..][..self.w];
                        let (from, to) = self.span(kx);
                        cells[..from].fill(0.0);
                        cells[to..].fill(0.0);
                        if from < to {
                            let row = &row[from * self.stride + kx - self.padding..];
                            stepped(row, self.stride, &mut cells[from..to]);
                        }
                    }
                }
            },
        );
    }

    /// Adds columns back to the positions from which [`Self::unfold`] copied them.
    fn fold(&self, columns: &[f32], y0: usize, rows: usize, image: &mut [f32]) {
        let width = rows * self.ow;
        for (r, line) in columns.chunks_exact(width).enumerate() {
            let (ch, ky, kx) = (r / (self.k * self.k), r / self.k % self.k, r % self.k);
            let plane = &mut image[ch * self.h * self.w..][..self.h * self.w];
            for (dy, cells) in line.chunks_exact(self.ow).enumerate() {
                let iy = ((y0 + dy) * self.stride + ky).wrapping_sub(self.padding);
                if iy >= self.h {
                    continue;
                }
                let (from, to) = self.span(kx);
                if from >= to {
                    continue;
                }
                let start = from * self.stride + kx - self.padding;
                let row = &mut plane[iy * self.w..][..self.w];
                for (v, cell) in row[start..].iter_mut().step_by(self.stride).zip(&cells[from..to]) {
                    *v += cell;
                }
            }
        }
    }

    /// Range of output columns whose input at kernel column `kx` lies inside the image.
    fn span(&self, kx: usize) -> (usize, usize) {
        let from = self.padding.saturating_sub(kx).div_ceil(self.stride);
        let to = (self.w + self.padding).saturating_sub(kx).div_ceil(self.stride);
        (from.min(self.ow), to.min(self.ow))
    }

    /// Shape of the result.
    pub fn shape(&self) -> [usize; 4] {
        [self.n, self.o, self.oh, self.ow]
    }

    /// `x [N, C, H, W]` and `w [O, C, K, K]` → all of `out [N, O, OH, OW]`, with the epilogue.
    pub fn forward(
        &self,
        x: &[f32],
        w: &[f32],
        epilogue: Option<&ChannelEpilogue>,
        out: &mut [MaybeUninit<f32>],
    ) {
        match self.winograd() {
            Some(g) => g.forward(x, &winograd::transformed(w, g.o, g.c), epilogue, out),
            None => self.forward_unfolded(x, w, epilogue, out),
        }
    }

    /// Gradient of the input, from the output's gradient and the weights.
    pub fn grad_input(&self, grad: &[f32], w: &[f32]) -> Vec<f32> {
        match self.winograd() {
            Some(g) => g.grad_input(grad, w),
            None => self.grad_input_unfolded(grad, w),
        }
    }

    /// Gradient of the weights, from the input and the output's gradient.
    pub fn grad_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        match self.winograd() {
            Some(g) => g.grad_weight(x, grad),
            None => self.grad_weight_unfolded(x, grad),
        }
    }

    /// [`Self::forward`] by unfolding.
    pub fn forward_unfolded(
        &self,
        x: &[f32],
        w: &[f32],
        epilogue: Option<&ChannelEpilogue>,
        out: &mut [MaybeUninit<f32>],
    ) {
        let g = self;
        assert_eq!(out.len(), g.n * g.o * g.pixels());
        let shared = Shared::uninit(out);
        (0..g.n * g.tiles()).into_par_iter().for_each(|task| {
            let (image, tile) = (task / g.tiles(), task % g.tiles());
            let (y0, rows) = g.tile(tile);
            let columns = rows * g.ow;
            let planes = &x[image * g.c * g.h * g.w..][..g.c * g.h * g.w];
            let weights = MatRef { data: w.as_ptr(), row_stride: g.depth() as isize, col_stride: 1 };
            // SAFETY: a task writes the pixels of its own rows of its own image.
            let dst = unsafe { shared.at(image * g.o * g.pixels() + y0 * g.ow) };
            let product = |data: *const f32, stride: usize| unsafe {
                let b = MatRef { data, row_stride: stride as isize, col_stride: 1 };
                gemm(g.o, columns, g.depth(), dst, g.pixels() as isize, false, 1.0, weights, b);
            };
            if g.pointwise() {
                product(planes[y0 * g.ow..].as_ptr(), g.pixels());
            } else {
                scratch(g.depth() * columns, |buffer| {
                    g.unfold(planes, y0, rows, buffer);
                    product(buffer.as_ptr(), columns);
                });
            }
            if let Some(epilogue) = epilogue {
                for channel in 0..g.o {
                    // SAFETY: as above; the product is done.
                    let row =
                        unsafe { std::slice::from_raw_parts_mut(dst.add(channel * g.pixels()), columns) };
                    simd(
                        #[inline(always)]
                        || epilogue.channel(channel, row),
                    );
                }
            }
        });
    }

    pub(crate) fn grad_input_unfolded(&self, grad: &[f32], w: &[f32]) -> Vec<f32> {
        let g = self;
        let mut dx = vec![0f32; g.n * g.c * g.h * g.w];
        let transposed = || MatRef { data: w.as_ptr(), row_stride: 1, col_stride: g.depth() as isize };
        dx.par_chunks_mut(g.c * g.h * g.w).zip(grad.par_chunks(g.o * g.pixels())).for_each(|(dx, grad)| {
            for tile in 0..g.tiles() {
                let (y0, rows) = g.tile(tile);
                let columns = rows * g.ow;
                let b = MatRef {
                    data: grad[y0 * g.ow..].as_ptr(),
                    row_stride: g.pixels() as isize,
                    col_stride: 1,
                };
                if g.pointwise() {
                    let dst = dx[y0 * g.ow..].as_mut_ptr();
                    // SAFETY: rows y0.. of every channel of this image.
                    unsafe {
                        gemm(g.depth(), columns, g.o, dst, g.pixels() as isize, false, 1.0, transposed(), b)
                    };
                } else {
                    scratch(g.depth() * columns, |buffer| {
                        // SAFETY: the buffer holds depth × columns floats.
                        unsafe {
                            let dst = buffer.as_mut_ptr();
                            gemm(g.depth(), columns, g.o, dst, columns as isize, false, 1.0, transposed(), b);
                        }
                        g.fold(buffer, y0, rows, dx);
                    });
                }
            }
        });
        dx
    }

    pub(crate) fn grad_weight_unfolded(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let g = self;
        sum_over_images(g.n, g.o * g.depth(), |image, dw| {
            let planes = &x[image * g.c * g.h * g.w..][..g.c * g.h * g.w];
            let grad = &grad[image * g.o * g.pixels()..][..g.o * g.pixels()];
            for tile in 0..g.tiles() {
                let (y0, rows) = g.tile(tile);
                let columns = rows * g.ow;
                let a = MatRef {
                    data: grad[y0 * g.ow..].as_ptr(),
                    row_stride: g.pixels() as isize,
                    col_stride: 1,
                };
                let mut add = |data: *const f32, stride: usize| {
                    let b = MatRef { data, row_stride: 1, col_stride: stride as isize };
                    // SAFETY: dw holds o × depth floats of this part.
                    unsafe {
                        let depth = g.depth() as isize;
                        gemm(g.o, g.depth(), columns, dw.as_mut_ptr(), depth, true, 1.0, a, b);
                    }
                };
                if g.pointwise() {
                    add(planes[y0 * g.ow..].as_ptr(), g.pixels());
                } else {
                    scratch(g.depth() * columns, |buffer| {
                        g.unfold(planes, y0, rows, buffer);
                        add(buffer.as_ptr(), columns);
                    });
                }
            }
        })
    }
}

/// `to` ← every `step`-th of `from`.
#[inline(always)]
fn stepped(from: &[f32], step: usize, to: &mut [f32]) {
    match step {
        1 => to.copy_from_slice(&from[..to.len()]),
        // Pairs, so that it vectorises.
        2 => {
            let (pairs, rest) = from[..(2 * to.len()).min(from.len())].as_chunks::<2>();
            for (to, pair) in to.iter_mut().zip(pairs) {
                *to = pair[0];
            }
            if let ([last], Some(to)) = (rest, to.last_mut()) {
                *to = *last;
            }
        }
        _ => to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, v)| *to = *v),
    }
}

/// The operation with its gradients.
pub(crate) struct Conv {
    pub cfg: Conv2d,
    pub epilogue: Epilogue,
}

// SAFETY: the tiles of a convolution cover its result.
unsafe impl Kernel for Conv {
    fn shape(&self, args: Args) -> Result<Shape> {
        let g = Geometry::of(args.dims(0), args.dims(1), self.cfg)?;
        Ok(Shape::from(&g.shape()))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let g = Geometry::of(args.dims(0), args.dims(1), self.cfg)?;
        g.forward(&args.get(0)?, &args.get(1)?, self.epilogue.per_channel(g.o)?.as_ref(), out);
        Ok(())
    }
}

impl Differentiable for Conv {
    fn name(&self) -> &'static str {
        "autosam-conv2d"
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

/// `a [N, M, K]` · `b [N, K, P]` → `[N, M, P]`, without a gradient.
pub(crate) struct Matmul;

impl Matmul {
    /// N, M, K, P.
    fn sizes(args: Args) -> Result<[usize; 4]> {
        match (args.dims(0), args.dims(1)) {
            (&[n, m, k], &[images, depth, p]) if (n, k) == (images, depth) => Ok([n, m, k, p]),
            (a, b) => candle_core::bail!("a product of {a:?} and {b:?}"),
        }
    }
}

// SAFETY: the products of all images cover the result.
unsafe impl Kernel for Matmul {
    fn shape(&self, args: Args) -> Result<Shape> {
        let [n, m, _, p] = Self::sizes(args)?;
        Ok(Shape::from((n, m, p)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let [n, m, k, p] = Self::sizes(args)?;
        let image = Geometry::of(&[1, k, 1, p], &[m, k, 1, 1], Conv2d::default())?;
        let (a, b) = (args.get(0)?, args.get(1)?);
        for i in 0..n {
            let (a, b) = (&a[i * m * k..][..m * k], &b[i * k * p..][..k * p]);
            image.forward(b, a, None, &mut out[i * m * p..][..m * p]);
        }
        Ok(())
    }
}
