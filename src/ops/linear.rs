//! A linear layer: product, bias and activation in one pass, and the gradients of all three.

use super::cpu::{
    Elements, Shared, add_all, gradient_of, simd, slice, sum_over_rows, unwritten, written, written_part,
};
use super::gemm::{Matrix, gemm};
use super::pointwise::Activation;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Products below this many multiplications stay on one thread: handing over costs more.
pub(super) const SERIAL: usize = 1 << 20;

/// Rows of a product that a task takes: enough for the tile, few enough for the threads.
pub(super) fn rows_of_a_task(rows: usize, work: usize) -> usize {
    let parts = if work < SERIAL { 1 } else { 2 * rayon::current_num_threads() };
    rows.div_ceil(parts).max(8)
}

/// Weights `[O, I]` and how they lie.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub data: &'a [f32],
    /// Column by column: a product takes them as they are, and need not turn them each time.
    pub turned: bool,
}

impl<'a> Weights<'a> {
    /// Row by row.
    pub fn rows(data: &'a [f32]) -> Self {
        Self { data, turned: false }
    }

    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (o, i) = layout.shape().dims2()?;
        match layout.stride() {
            [1, step] if *step == o => {
                let from = layout.start_offset();
                Ok(Self { data: &storage.as_slice::<f32>()?[from..from + o * i], turned: true })
            }
            _ => Ok(Self::rows(slice(storage, layout)?)),
        }
    }
}

/// Whether `w [O, I]` lies column by column.
pub(super) fn is_turned(w: &Tensor) -> bool {
    matches!((w.stride(), w.dims()), ([1, step], [o, _]) if step == o)
}

/// `x [rows, I] · w [O, I]ᵀ`; `finish` gets the first row and each block of rows as it is done.
pub(super) fn product(
    x: &[f32],
    w: Weights,
    i: usize,
    o: usize,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    assert_eq!(w.data.len(), o * i, "weights of [{o}, {i}]");
    let rows = x.len() / i;
    let mut out = unwritten(rows * o);
    let block = rows_of_a_task(rows, rows * i * o);
    let (down, across) = if w.turned { (o, 1) } else { (1, i) };
    if block >= rows && rows * i * o >= SERIAL {
        // Few rows, many weights: each task reads weights of its own.
        let share = o.div_ceil(rayon::current_num_threads());
        let shared = Shared::unwritten(&mut out);
        (0..o.div_ceil(share)).into_par_iter().for_each(|part| {
            let first = part * share;
            let a = Matrix { data: x.as_ptr(), rows: i as isize, cols: 1 };
            let b = Matrix {
                data: w.data[first * across..].as_ptr(),
                rows: down as isize,
                cols: across as isize,
            };
            // SAFETY: a task writes its own columns of every row.
            unsafe { gemm(rows, share.min(o - first), i, shared.at(first), o as isize, false, 1.0, a, b) };
        });
        // SAFETY: every column of every row was written.
        let mut out = unsafe { written(out) };
        finish(0, &mut out);
        return out;
    }
    out.par_chunks_mut(block * o).zip(x.par_chunks(block * i)).enumerate().for_each(|(at, (out, x))| {
        let a = Matrix { data: x.as_ptr(), rows: i as isize, cols: 1 };
        let b = Matrix { data: w.data.as_ptr(), rows: down as isize, cols: across as isize };
        // SAFETY: the slices are as long as the product's operands and its result, of which it writes all.
        let out = unsafe {
            gemm(x.len() / i, o, i, out.as_mut_ptr().cast(), o as isize, false, 1.0, a, b);
            written_part(out)
        };
        finish(at * block, out);
    });
    // SAFETY: every chunk was written.
    unsafe { written(out) }
}

/// Gradient of [`product`]'s x: `grad [rows, O] · w [O, I]`.
pub(super) fn grad_input(grad: &[f32], w: &[f32], i: usize, o: usize) -> Vec<f32> {
    let rows = grad.len() / o;
    let mut dx = unwritten(rows * i);
    let block = rows_of_a_task(rows, rows * i * o);
    dx.par_chunks_mut(block * i).zip(grad.par_chunks(block * o)).for_each(|(dx, grad)| {
        let a = Matrix { data: grad.as_ptr(), rows: o as isize, cols: 1 };
        let b = Matrix { data: w.as_ptr(), rows: i as isize, cols: 1 };
        // SAFETY: as above.
        unsafe { gemm(grad.len() / o, i, o, dx.as_mut_ptr().cast(), i as isize, false, 1.0, a, b) };
    });
    // SAFETY: every chunk was written.
    unsafe { written(dx) }
}

/// Gradient of [`product`]'s w: `grad [rows, O]ᵀ · x [rows, I]`.
pub(super) fn grad_weight(x: &[f32], grad: &[f32], i: usize, o: usize) -> Vec<f32> {
    let rows = grad.len() / o;
    if rows >= 64 * PARTS {
        // Few weights, many rows: each task takes rows of its own, so that nobody lays out all of x.
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

/// Parts of the rows that a gradient of weights is summed over, in order, whatever the number of threads.
const PARTS: usize = 4;

/// [`grad_weight`], `block` columns of grad a task.
fn of_columns(x: &[f32], grad: &[f32], i: usize, o: usize, block: usize) -> Vec<f32> {
    let mut dw = unwritten(o * i);
    dw.par_chunks_mut(block * i).enumerate().for_each(|(at, dw)| {
        let a = Matrix { data: grad[at * block..].as_ptr(), rows: 1, cols: o as isize };
        let b = Matrix { data: x.as_ptr(), rows: i as isize, cols: 1 };
        // SAFETY: `at · block` is a column of grad, and dw holds as many rows as are left, of which the product writes all.
        unsafe {
            gemm(dw.len() / i, i, grad.len() / o, dw.as_mut_ptr().cast(), i as isize, false, 1.0, a, b)
        };
    });
    // SAFETY: every chunk was written.
    unsafe { written(dw) }
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
pub(super) struct Linear {
    pub activation: Option<Activation>,
    /// A gradient will be asked for: what the activation was applied to is kept.
    pub train: bool,
    before: OnceLock<Vec<f32>>,
}

impl Linear {
    pub fn new(activation: Option<Activation>, train: bool) -> Self {
        Self { activation, train, before: OnceLock::new() }
    }

    fn forward(
        &self,
        x: &[f32],
        w: Weights,
        bias: Option<&[f32]>,
        lx: &Layout,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (o, i) = lw.shape().dims2()?;
        let mut shape = lx.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == i => *last = o,
            _ => candle_core::bail!("linear: {:?} for weights of [{o}, {i}]", lx.dims()),
        }
        let keep = self.activation.filter(|_| self.train);
        let out = product(x, w, i, o, |_, block| {
            simd(
                #[inline(always)]
                || {
                    if let Some(bias) = bias {
                        for row in block.chunks_exact_mut(o) {
                            for (v, b) in row.iter_mut().zip(bias) {
                                *v += b;
                            }
                        }
                    }
                    if self.activation.is_some() && keep.is_none() {
                        Activation::apply_shifted(self.activation, block, 0.0);
                    }
                },
            );
        });
        let out = match keep {
            Some(activation) => {
                let after = activation.of(&out);
                // A forward pass happens once.
                let _ = self.before.set(out);
                after
            }
            None => out,
        };
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }

    /// Gradients of x, w and bias, each where it is asked for.
    fn backward(&self, x: &Tensor, w: &Tensor, bias: bool, grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (o, i) = w.dims2()?;
        let grad = grad.contiguous()?;
        let given = Elements::of(&grad)?;
        let sloped = match (self.activation, self.before.get()) {
            (Some(activation), Some(before)) => Some(activation.times_slope(before, &given)),
            _ => None,
        };
        let grad: &[f32] = sloped.as_deref().unwrap_or(&given);
        let dx = gradient_of(x, || Ok(grad_input(grad, &Elements::of(w)?, i, o)))?;
        let dw = gradient_of(w, || Ok(grad_weight(&Elements::of(x)?, grad, i, o)))?;
        let db = match bias {
            true => Some(Tensor::from_vec(column_sums(grad, o), o, x.device())?),
            false => None,
        };
        Ok([dx, dw, db])
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "autosam-linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(s1, l1)?, Weights::of(s2, l2)?, None, l1, l2)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.backward(x, w, false, grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "autosam-linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(s1, l1)?, Weights::of(s2, l2)?, Some(slice(s3, l3)?), l1, l2)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.backward(x, w, bias.track_op(), grad)?;
        Ok((dx, dw, db))
    }
}
