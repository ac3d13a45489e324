//! A linear layer: product, bias and activation in one pass, and the gradients of all three.

use super::common::{add_all, gradient_of, simd, sum_over_rows};
use super::epilogue::{Epilogue, epilogue_rows};
use super::gemm::{MatRef, gemm, gemm_packed};
use crate::Activation;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::{Shared, assume_init, assume_init_part, filled, uninit};
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Products with fewer multiplications stay on one thread, because scheduling would cost more.
pub(crate) const SERIAL: usize = 1 << 20;

/// Rows of a product per task: enough for a tile, few enough to feed all threads.
pub(crate) fn rows_of_a_task(rows: usize, work: usize) -> usize {
    let parts = if work < SERIAL { 1 } else { 2 * rayon::current_num_threads() };
    rows.div_ceil(parts).max(8)
}

/// Weights `[O, I]`.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// Row by row.
    Rows(&'a [f32]),
    /// Packed by [`super::gemm::pack_rhs`] into panels of this many outputs.
    Packed(&'a [f32], usize),
}

impl Weights<'_> {
    /// Computes outputs `first..first + count` of rows `x [.., I]` into columns of `dst [.., O]`.
    ///
    /// # Safety
    /// `dst` has these columns for as many rows, and no other task accesses them. `first` begins a panel.
    unsafe fn multiply(self, x: &[f32], i: usize, (first, count): (usize, usize), dst: *mut f32, o: usize) {
        let rows = x.len() / i;
        let a = MatRef { data: x.as_ptr(), row_stride: i as isize, col_stride: 1 };
        match self {
            Self::Rows(w) => {
                let b = MatRef { data: w[first * i..].as_ptr(), row_stride: 1, col_stride: i as isize };
                // SAFETY: guaranteed by the caller.
                unsafe { gemm(rows, count, i, dst, o as isize, false, 1.0, a, b) }
            }
            // SAFETY: as above; a panel is I · width floats.
            Self::Packed(w, _) => unsafe {
                gemm_packed((rows, count, i), dst, o as isize, a, w[first * i..].as_ptr())
            },
        }
    }

    /// A task's first output must be a multiple of this.
    fn step(self) -> usize {
        match self {
            Self::Rows(_) => 1,
            Self::Packed(_, width) => width,
        }
    }
}

/// Writes `x [rows, I] · w [O, I]ᵀ` to all of `out [rows, O]`; `epilogue` receives each completed block of rows.
pub(crate) fn product(
    x: &[f32],
    w: Weights,
    i: usize,
    o: usize,
    epilogue: impl Fn(&mut [f32]) + Sync,
    out: &mut [MaybeUninit<f32>],
) {
    let (Weights::Rows(data) | Weights::Packed(data, _)) = w;
    assert!(data.len() == o.next_multiple_of(w.step()) * i, "weights of [{o}, {i}]");
    let rows = x.len() / i;
    assert_eq!(out.len(), rows * o);
    let block = rows_of_a_task(rows, rows * i * o);
    if block >= rows && rows * i * o >= SERIAL {
        // Few rows and many weights: each task reads its own part of the weights.
        let share = o.div_ceil(rayon::current_num_threads()).next_multiple_of(w.step());
        let shared = Shared::uninit(out);
        (0..o.div_ceil(share)).into_par_iter().for_each(|part| {
            let first = part * share;
            // SAFETY: a task writes its own columns of every row.
            unsafe { w.multiply(x, i, (first, share.min(o - first)), shared.at(first), o) };
        });
        // SAFETY: every column of every row was written.
        epilogue(unsafe { assume_init_part(out) });
        return;
    }
    out.par_chunks_mut(block * o).zip(x.par_chunks(block * i)).for_each(|(out, x)| {
        // SAFETY: the slices are as long as the product's operands and its result, of which it writes all.
        let out = unsafe {
            w.multiply(x, i, (0, o), out.as_mut_ptr().cast(), o);
            assume_init_part(out)
        };
        epilogue(out);
    });
}

/// A linear layer without gradient, for `x [.., I]` and weights packed by [`super::gemm::pack_rhs`], `[panels, I,
/// width]`.
pub(crate) struct Packed {
    pub epilogue: Epilogue,
    pub outputs: usize,
}

// SAFETY: a product writes all of its result.
unsafe impl Kernel for Packed {
    fn shape(&self, args: Args) -> Result<Shape> {
        with_last(args.dims(0), args.dims(1)[1], self.outputs)
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let epilogue = self.epilogue.per_channel(self.outputs)?;
        let &[_, i, width] = args.dims(1) else {
            candle_core::bail!("linear: expected [panels, I, width], found {:?}", args.dims(1))
        };
        let (x, w) = (args.get(0)?, args.get(1)?);
        let rows = |block: &mut [f32]| {
            if let Some(epilogue) = &epilogue {
                epilogue.rows(block);
            }
        };
        product(&x, Weights::Packed(&w, width), i, self.outputs, rows, out);
        Ok(())
    }
}

/// Replaces the last of `dims`, which must be `i`, by `o`.
fn with_last(dims: &[usize], i: usize, o: usize) -> Result<Shape> {
    let mut shape = dims.to_vec();
    match shape.last_mut() {
        Some(last) if *last == i => *last = o,
        _ => candle_core::bail!("linear: {dims:?} for weights of [{o}, {i}]"),
    }
    Ok(Shape::from(shape))
}

/// Gradient of [`product`]'s x: `grad [rows, O] · w [O, I]`.
pub(crate) fn grad_input(grad: &[f32], w: &[f32], i: usize, o: usize) -> Vec<f32> {
    let rows = grad.len() / o;
    let mut dx = uninit(rows * i);
    let block = rows_of_a_task(rows, rows * i * o);
    dx.par_chunks_mut(block * i).zip(grad.par_chunks(block * o)).for_each(|(dx, grad)| {
        let a = MatRef { data: grad.as_ptr(), row_stride: o as isize, col_stride: 1 };
        let b = MatRef { data: w.as_ptr(), row_stride: i as isize, col_stride: 1 };
        // SAFETY: as above.
        unsafe { gemm(grad.len() / o, i, o, dx.as_mut_ptr().cast(), i as isize, false, 1.0, a, b) };
    });
    // SAFETY: every chunk was written.
    unsafe { assume_init(dx) }
}

/// Gradient of [`product`]'s w: `grad [rows, O]ᵀ · x [rows, I]`.
pub(crate) fn grad_weight(x: &[f32], grad: &[f32], i: usize, o: usize) -> Vec<f32> {
    let rows = grad.len() / o;
    if rows >= 64 * PARTS {
        // Few weights and many rows: each task processes its own rows, so that none has to pack all of x.
        let share = rows.div_ceil(PARTS);
        let parts: Vec<Vec<f32>> = x
            .par_chunks(share * i)
            .zip(grad.par_chunks(share * o))
            .map(|(x, grad)| of_columns(x, grad, i, o, o))
            .collect();
        return add_all(parts, o * i);
    }
    of_columns(x, grad, i, o, rows_of_a_task(o, rows * i * o))
}

/// Number of row parts of a weight gradient. They are added in order, independent of the number of threads.
const PARTS: usize = 4;

/// [`grad_weight`] with `block` columns of grad per task.
fn of_columns(x: &[f32], grad: &[f32], i: usize, o: usize, block: usize) -> Vec<f32> {
    let mut dw = uninit(o * i);
    dw.par_chunks_mut(block * i).enumerate().for_each(|(at, dw)| {
        let a = MatRef { data: grad[at * block..].as_ptr(), row_stride: 1, col_stride: o as isize };
        let b = MatRef { data: x.as_ptr(), row_stride: i as isize, col_stride: 1 };
        // SAFETY: `at · block` is a column of grad, and dw holds as many rows as are left, of which the product writes all.
        unsafe {
            gemm(dw.len() / i, i, grad.len() / o, dw.as_mut_ptr().cast(), i as isize, false, 1.0, a, b)
        };
    });
    // SAFETY: every chunk was written.
    unsafe { assume_init(dw) }
}

/// Sums of the columns of `x [rows, O]`.
fn column_sums(x: &[f32], o: usize) -> Vec<f32> {
    let sums = sum_over_rows(x.len() / o, o, |rows, sums| {
        simd(
            #[inline(always)]
            || {
                for row in x[rows.start * o..rows.end * o].chunks_exact(o) {
                    for (s, v) in sums.iter_mut().zip(row) {
                        *s += f64::from(*v);
                    }
                }
            },
        );
    });
    sums.into_iter().map(|v| v as f32).collect()
}

/// `activation(x [..., I] · w [O, I]ᵀ + bias [O])`.
pub(crate) struct Linear {
    pub activation: Option<Activation>,
    /// Whether a gradient will be requested, so that the activation's input must be kept.
    pub train: bool,
    before: OnceLock<Vec<f32>>,
}

impl Linear {
    pub fn new(activation: Option<Activation>, train: bool) -> Self {
        Self { activation, train, before: OnceLock::new() }
    }
}

// SAFETY: a product writes all of its result, and so does an activation.
unsafe impl Kernel for Linear {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(1) {
            &[o, i] => with_last(args.dims(0), i, o),
            other => candle_core::bail!("linear: weights of {other:?}"),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let &[o, i] = args.dims(1) else { candle_core::bail!("linear: weights of {:?}", args.dims(1)) };
        let (x, w) = (args.get(0)?, args.get(1)?);
        let bias = if args.len() > 2 { Some(args.get(2)?) } else { None };
        let bias = bias.as_deref().unwrap_or_default();
        if !bias.is_empty() && bias.len() != o {
            candle_core::bail!("a bias of {} values for {o} channels", bias.len());
        }
        match self.activation.filter(|_| self.train) {
            Some(activation) => {
                let len = out.len();
                let biased = |block: &mut [f32]| epilogue_rows(block, bias, None);
                // SAFETY: as above.
                let before = unsafe { filled(len, |out| product(&x, Weights::Rows(&w), i, o, biased, out)) };
                activation.of(&before, out);
                // Set once, because the forward pass runs once.
                let _ = self.before.set(before);
            }
            None => {
                let epilogue = |block: &mut [f32]| epilogue_rows(block, bias, self.activation);
                product(&x, Weights::Rows(&w), i, o, epilogue, out);
            }
        }
        Ok(())
    }
}

impl Differentiable for Linear {
    fn name(&self) -> &'static str {
        "autosam-linear"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, w, bias) = (args[0], args[1], args.get(2));
        let (o, i) = w.dims2()?;
        let given = Elements::of(grad)?;
        let sloped = match (self.activation, self.before.get()) {
            (Some(activation), Some(before)) => Some(activation.mul_grad(before, &given)),
            _ => None,
        };
        let grad: &[f32] = sloped.as_deref().unwrap_or(&given);
        let dx = gradient_of(x, || Ok(grad_input(grad, &Elements::of(w)?, i, o)))?;
        let dw = gradient_of(w, || Ok(grad_weight(&Elements::of(x)?, grad, i, o)))?;
        let db = match bias {
            Some(bias) => gradient_of(bias, || Ok(column_sums(grad, o)))?,
            None => None,
        };
        Ok([dx, dw, db])
    }
}
