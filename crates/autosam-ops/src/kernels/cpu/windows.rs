//! Partition of a grid into windows, and the inverse.

use super::common::shaped_as;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::{Shared, filled};
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// A grid `[n, h, w, c]` and its windows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    pub window: usize,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
}

impl Windows {
    fn grid(&self) -> (usize, usize, usize, usize) {
        (self.n, self.h, self.w, self.c)
    }

    pub fn inside(&self) -> (usize, usize, usize) {
        let (rows, cols) = (self.h.div_ceil(self.window), self.w.div_ceil(self.window));
        (self.n * rows * cols, self.window * self.window, self.c)
    }

    /// Calls `f(first element in the grid, first element in the windows, elements)` for every line of every window, the
    /// grid's rows in parallel.
    fn lines(&self, f: impl Fn(usize, usize, usize) + Sync) {
        let Self { window, h, w, c, .. } = *self;
        let (rows, cols) = (h.div_ceil(window), w.div_ceil(window));
        (0..self.n * h).into_par_iter().with_min_len(8).for_each(|line| {
            let (image, y) = (line / h, line % h);
            for col in 0..cols {
                let cell = ((image * rows + y / window) * cols + col) * window + y % window;
                f((line * w + col * window) * c, cell * window * c, window.min(w - col * window) * c);
            }
        });
    }

    /// Writes the windows of a grid to all of `out`.
    fn partition(&self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let (b, t, c) = self.inside();
        assert_eq!(out.len(), b * t * c);
        if b * t != self.n * self.h * self.w {
            // Windows that reach beyond the grid are padded with zeros.
            out.fill(MaybeUninit::new(0.0));
        }
        let shared = Shared::uninit(out);
        // SAFETY: no line of the windows is written twice.
        self.lines(|from, to, len| unsafe { copy(&x[from..from + len], shared.at(to)) });
    }

    /// Writes the grid of windows to all of `out`.
    fn unpartition(&self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        assert_eq!(out.len(), self.n * self.h * self.w * self.c);
        let shared = Shared::uninit(out);
        // SAFETY: every line of the grid is written once, and the lines cover the grid.
        self.lines(|to, from, len| unsafe { copy(&x[from..from + len], shared.at(to)) });
    }
}

/// # Safety
/// `to` points to as many floats, which no other task accesses.
unsafe fn copy(from: &[f32], to: *mut f32) {
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
}

pub(crate) struct Partition(pub Windows);

// SAFETY: `partition` writes all.
unsafe impl Kernel for Partition {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (from, to) = (self.0.grid(), self.0.inside());
        if Shape::from(from).dims() != args.dims(0) {
            candle_core::bail!("windows: expected {from:?}, found {:?}", args.dims(0));
        }
        Ok(Shape::from(to))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        self.0.partition(&args.get(0)?, out);
        Ok(())
    }
}

impl Differentiable for Partition {
    fn name(&self) -> &'static str {
        "autosam-partition"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let x = args[0];
        let grad = Elements::of(grad)?;
        // SAFETY: `unpartition` writes all.
        let dx = unsafe { filled(x.elem_count(), |out| self.0.unpartition(&grad, out)) };
        Ok([Some(shaped_as(dx, x)?), None, None])
    }
}

pub(crate) struct Unpartition(pub Windows);

// SAFETY: `unpartition` writes all.
unsafe impl Kernel for Unpartition {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (from, to) = (self.0.inside(), self.0.grid());
        if Shape::from(from).dims() != args.dims(0) {
            candle_core::bail!("windows: expected {from:?}, found {:?}", args.dims(0));
        }
        Ok(Shape::from(to))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        self.0.unpartition(&args.get(0)?, out);
        Ok(())
    }
}

impl Differentiable for Unpartition {
    fn name(&self) -> &'static str {
        "autosam-unpartition"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let x = args[0];
        let grad = Elements::of(grad)?;
        // SAFETY: `partition` writes all.
        let dx = unsafe { filled(x.elem_count(), |out| self.0.partition(&grad, out)) };
        Ok([Some(shaped_as(dx, x)?), None, None])
    }
}
