//! Transposed convolution with non-overlapping kernels (kernel = stride): one matrix product, each row of which fills k
//! × k pixels.

use super::common::{shaped_as, simd};
use super::epilogue::{ChannelEpilogue, Epilogue};
use super::gemm::{MatRef, gemm, scratch};
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::Shared;
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Sizes for `x [N, C, H, W]` and weights `[C, O, K, K]`.
struct Geometry {
    n: usize,
    c: usize,
    h: usize,
    w: usize,
    o: usize,
    k: usize,
}

impl Geometry {
    fn of(x: &[usize], w: &[usize]) -> Result<Self> {
        match (x, w) {
            (&[n, c, h, width], &[wc, o, k, k2]) if c == wc && k == k2 => {
                Ok(Self { n, c, h, w: width, o, k })
            }
            _ => candle_core::bail!("conv_transpose2d: weights {w:?} do not fit {x:?}"),
        }
    }

    fn cells(&self) -> usize {
        self.h * self.w
    }

    fn square(&self) -> usize {
        self.k * self.k
    }

    /// Calls `f(taps, plane)` for every line of a plane `[H·K, W·K]` and the row of `[K·K, H·W]` that supplies every
    /// K-th of its pixels: the index of the first tap and of the first pixel.
    #[inline(always)]
    fn lines(&self, mut f: impl FnMut(usize, usize)) {
        for row in 0..self.k * self.h {
            let (y, dy) = (row / self.k, row % self.k);
            for dx in 0..self.k {
                f((dy * self.k + dx) * self.cells() + y * self.w, row * self.k * self.w + dx);
            }
        }
    }

    fn forward(
        &self,
        x: &[f32],
        w: &[f32],
        epilogue: Option<&ChannelEpilogue>,
        out: &mut [MaybeUninit<f32>],
    ) {
        let (cells, square, o) = (self.cells(), self.square(), self.o);
        assert_eq!(out.len(), self.n * o * cells * square);
        // Four channels per task: enough rows for the product, and enough tasks for the threads.
        let group = 4.min(o);
        let groups = o.div_ceil(group);
        let shared = Shared::uninit(out);
        (0..self.n * groups).into_par_iter().for_each(|task| {
            let (image, first) = (task / groups, task % groups * group);
            let channels = group.min(o - first);
            scratch(channels * square * cells, |product| {
                let a = MatRef {
                    data: w[first * square..].as_ptr(),
                    row_stride: 1,
                    col_stride: (o * square) as isize,
                };
                let b = MatRef {
                    data: x[image * self.c * cells..].as_ptr(),
                    row_stride: cells as isize,
                    col_stride: 1,
                };
                // SAFETY: the buffer holds the product.
                unsafe {
                    let dst = product.as_mut_ptr();
                    gemm(channels * square, cells, self.c, dst, cells as isize, false, 1.0, a, b);
                }
                for (i, taps) in product.chunks_exact(square * cells).enumerate() {
                    let size = square * cells;
                    // SAFETY: every task writes the planes of its own channels.
                    let plane = unsafe {
                        std::slice::from_raw_parts_mut(shared.at((image * o + first + i) * size), size)
                    };
                    self.lines(|from, to| {
                        let line = plane[to..].iter_mut().step_by(self.k).zip(&taps[from..from + self.w]);
                        line.for_each(|(v, s)| *v = *s);
                    });
                    if let Some(epilogue) = epilogue {
                        simd(
                            #[inline(always)]
                            || epilogue.channel(first + i, plane),
                        );
                    }
                }
            });
        });
    }

    /// Gradients of x and of the weights, each if requested.
    fn backward(
        &self,
        x: &[f32],
        w: &[f32],
        grad: &[f32],
        dx: bool,
        dw: bool,
    ) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        let (cells, c, rows) = (self.cells(), self.c, self.o * self.square());
        let mut input = vec![0f32; if dx { x.len() } else { 0 }];
        let shared = Shared::new(&mut input);
        // One part per image, added in order, so that results are bit-identical every time.
        let shares: Vec<Vec<f32>> = (0..self.n)
            .into_par_iter()
            .map(|image| {
                let mut share = vec![0f32; if dw { w.len() } else { 0 }];
                scratch(rows * cells, |taps| {
                    let planes =
                        grad[image * rows * cells..][..rows * cells].chunks_exact(self.square() * cells);
                    for (taps, plane) in taps.chunks_exact_mut(self.square() * cells).zip(planes) {
                        self.lines(|to, from| {
                            let line = plane[from..].iter().step_by(self.k);
                            taps[to..to + self.w].iter_mut().zip(line).for_each(|(t, v)| *t = *v);
                        });
                    }
                    let (taps, own) = (taps.as_ptr(), x[image * c * cells..].as_ptr());
                    // SAFETY: a task writes the gradient of its own image.
                    unsafe {
                        if dx {
                            let a = MatRef { data: w.as_ptr(), row_stride: rows as isize, col_stride: 1 };
                            let b = MatRef { data: taps, row_stride: cells as isize, col_stride: 1 };
                            gemm(
                                c,
                                cells,
                                rows,
                                shared.at(image * c * cells),
                                cells as isize,
                                false,
                                1.0,
                                a,
                                b,
                            );
                        }
                        if dw {
                            let a = MatRef { data: own, row_stride: cells as isize, col_stride: 1 };
                            let b = MatRef { data: taps, row_stride: 1, col_stride: cells as isize };
                            gemm(c, rows, cells, share.as_mut_ptr(), rows as isize, false, 1.0, a, b);
                        }
                    }
                });
                share
            })
            .collect();
        let weights = dw.then(|| {
            let mut total = vec![0f32; w.len()];
            for share in shares {
                total.iter_mut().zip(share).for_each(|(a, b)| *a += b);
            }
            total
        });
        (dx.then_some(input), weights)
    }
}

/// The operation, with gradients if it has no epilogue.
pub(crate) struct ConvTranspose2d {
    pub epilogue: Epilogue,
}

// SAFETY: every plane is written.
unsafe impl Kernel for ConvTranspose2d {
    fn shape(&self, args: Args) -> Result<Shape> {
        let g = Geometry::of(args.dims(0), args.dims(1))?;
        Ok(Shape::from((g.n, g.o, g.h * g.k, g.w * g.k)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let g = Geometry::of(args.dims(0), args.dims(1))?;
        g.forward(&args.get(0)?, &args.get(1)?, self.epilogue.per_channel(g.o)?.as_ref(), out);
        Ok(())
    }
}

impl Differentiable for ConvTranspose2d {
    fn name(&self) -> &'static str {
        "autosam-conv-transpose2d"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, w) = (args[0], args[1]);
        let g = Geometry::of(x.dims(), w.dims())?;
        let (dx, dw) = g.backward(
            &Elements::of(x)?,
            &Elements::of(w)?,
            &Elements::of(grad)?,
            x.track_op(),
            w.track_op(),
        );
        let shaped = |values: Option<Vec<f32>>, like: &Tensor| values.map(|v| shaped_as(v, like)).transpose();
        Ok([shaped(dx, x)?, shaped(dw, w)?, None])
    }
}
