//! Multi-head attention on strided views of queries, keys and values. Scores exist only for a block of queries at a
//! time.

use super::common::{shaped_as as shaped, simd};
use super::gemm::{MatRef, gemm, scratch};
use super::linear::SERIAL;
use super::pointwise::{softmax_grad_row, softmax_row};
use crate::Packing;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::Shared;
use crate::runtime::operands::{Args, Elements};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Query rows whose scores exist at a time. They fit the second-level cache; keys are packed again for each block.
fn queries(keys: usize) -> usize {
    (32 * 1024 / keys.max(1)).clamp(64, 128)
}

/// Parts of the batch in the backward pass. Independent of the number of threads, so that sums keep their order.
const PARTS: usize = 8;

/// Memory layout of the rows of one operand.
#[derive(Debug, Clone, Copy)]
struct Rows {
    /// Offset of the first row.
    at: usize,
    image: usize,
    head: usize,
    token: usize,
}

impl Rows {
    /// Rows of part `part` (0 queries, 1 keys, 2 values) of a packed tensor.
    fn packed(packing: Packing, part: usize, tokens: usize, heads: usize, d: usize) -> Self {
        let token = 3 * heads * d;
        let (at, head) = match packing {
            Packing::Parts => (part * heads * d, d),
            Packing::Heads => (part * d, 3 * d),
        };
        Self { at, image: tokens * token, head, token }
    }

    /// Rows of a separate tensor `[B, T, heads · d]`.
    fn unpacked(tokens: usize, heads: usize, d: usize) -> Self {
        Self { at: 0, image: tokens * heads * d, head: d, token: heads * d }
    }

    fn first(&self, image: usize, head: usize, token: usize) -> usize {
        self.at + image * self.image + head * self.head + token * self.token
    }

    /// Rows from `token` on of one head, `[.., d]`.
    fn matrix(&self, data: &[f32], image: usize, head: usize, token: usize) -> MatRef {
        MatRef {
            data: data[self.first(image, head, token)..].as_ptr(),
            row_stride: self.token as isize,
            col_stride: 1,
        }
    }
}

fn transposed(m: MatRef) -> MatRef {
    MatRef { data: m.data, row_stride: m.col_stride, col_stride: m.row_stride }
}

/// Bias added to the scores.
#[derive(Clone, Copy)]
pub(crate) enum Bias<'a> {
    None,
    /// `[heads, T, S]`.
    Full(&'a [f32]),
    Relative(Positions<'a>),
}

/// SAM's relative positions in a grid of `h × w` tokens: a query's inner product with the row of a table that its
/// distance to the key chooses, for the distance down, `[2h - 1, d]`, and the distance across, `[2w - 1, d]`.
#[derive(Clone, Copy)]
pub(crate) struct Positions<'a> {
    rows: &'a [f32],
    cols: &'a [f32],
    h: usize,
    w: usize,
}

/// A block of queries of one head: `first..first + rows`.
#[derive(Clone, Copy)]
struct Block {
    image: usize,
    head: usize,
    first: usize,
    rows: usize,
}

/// Sizes and operand layouts of one attention.
struct Problem {
    batch: usize,
    heads: usize,
    d: usize,
    tokens: usize,
    keys: usize,
    scale: f32,
    q: Rows,
    k: Rows,
    v: Rows,
}

/// The operands' data; the same slice three times if they are packed.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Problem {
    fn packed(dims: &[usize], heads: usize, packing: Packing, scale: f32) -> Result<Self> {
        let &[batch, tokens, width] = dims else {
            candle_core::bail!("attention: expected [B, T, 3 · heads · d], found {dims:?}")
        };
        if width % (3 * heads) != 0 {
            candle_core::bail!(
                "attention: {width} channels cannot be divided into q, k and v of {heads} heads"
            );
        }
        let d = width / (3 * heads);
        let [q, k, v] = [0, 1, 2].map(|part| Rows::packed(packing, part, tokens, heads, d));
        Ok(Self { batch, heads, d, tokens, keys: tokens, scale, q, k, v })
    }

    fn separate(q: &[usize], k: &[usize], v: &[usize], heads: usize, scale: f32) -> Result<Self> {
        let (&[batch, tokens, width], &[b, keys, c]) = (q, k) else {
            candle_core::bail!("attention: expected [B, T, heads · d], found {q:?} and {k:?}")
        };
        if b != batch || c != width || k != v || width % heads != 0 {
            candle_core::bail!("attention: q {q:?}, k {k:?}, v {v:?} in {heads} heads");
        }
        let d = width / heads;
        let (q, k) = (Rows::unpacked(tokens, heads, d), Rows::unpacked(keys, heads, d));
        Ok(Self { batch, heads, d, tokens, keys, scale, q, k, v: k })
    }

    /// Writes the probabilities of a block of queries to `scores [rows, keys]`.
    ///
    /// # Safety
    /// The operands are as large as the problem says.
    unsafe fn probabilities(&self, x: Operands, bias: Bias, block: Block, scores: &mut [f32]) {
        let Block { image, head, first, rows } = block;
        let (keys, d) = (self.keys, self.d);
        let (q, k) = (self.q.matrix(x.q, image, head, first), self.k.matrix(x.k, image, head, 0));
        let dst = scores.as_mut_ptr();
        unsafe { gemm(rows, keys, d, dst, keys as isize, false, self.scale, q, transposed(k)) };
        match bias {
            Bias::None => softmax_rows(scores, keys),
            Bias::Full(bias) => {
                let bias = &bias[(head * self.tokens + first) * keys..][..scores.len()];
                biased_softmax_rows(scores, bias, keys);
            }
            Bias::Relative(positions) => {
                // SAFETY: guaranteed by the caller.
                unsafe { self.add_positions(positions, q, block, scores) };
                softmax_rows(scores, keys);
            }
        }
    }

    /// Adds the relative positions to the scores of a block of queries `q [rows, d]`.
    ///
    /// # Safety
    /// As for [`Self::probabilities`].
    unsafe fn add_positions(&self, positions: Positions, q: MatRef, block: Block, scores: &mut [f32]) {
        let (Positions { rows: down, cols: across, h, w }, Block { first, rows, .. }) = (positions, block);
        let (down_width, across_width) = (2 * h - 1, 2 * w - 1);
        scratch(rows * (down_width + across_width), |distances| {
            let (by_row, by_col) = distances.split_at_mut(rows * down_width);
            for (table, width, out) in
                [(down, down_width, &mut *by_row), (across, across_width, &mut *by_col)]
            {
                let table = MatRef { data: table.as_ptr(), row_stride: 1, col_stride: self.d as isize };
                unsafe { gemm(rows, width, self.d, out.as_mut_ptr(), width as isize, false, 1.0, q, table) };
            }
            simd(
                #[inline(always)]
                || {
                    for (i, scores) in scores.chunks_exact_mut(self.keys).enumerate() {
                        let (y, x) = ((first + i) / w, (first + i) % w);
                        // A key at (ky, kx) is y - ky + h - 1 down and x - kx + w - 1 across in the tables.
                        let down = &by_row[i * down_width + y..][..h];
                        let across = &by_col[i * across_width + x..][..w];
                        for (line, down) in scores.chunks_exact_mut(w).zip(down.iter().rev()) {
                            for (s, across) in line.iter_mut().zip(across.iter().rev()) {
                                *s += down + across;
                            }
                        }
                    }
                },
            );
        });
    }

    /// Shape of the result.
    fn shape(&self) -> Shape {
        Shape::from((self.batch, self.tokens, self.heads * self.d))
    }

    /// Writes all of `out [B, T, heads · d]`.
    fn forward(&self, x: Operands, bias: Bias, out: &mut [MaybeUninit<f32>]) {
        let out_rows = Rows::unpacked(self.tokens, self.heads, self.d);
        assert_eq!(out.len(), self.batch * out_rows.image);
        let shared = Shared::uninit(out);
        let chunks = self.tokens.div_ceil(queries(self.keys));
        let block = self.tokens.div_ceil(chunks.max(1));
        let run = |task: usize| {
            let (chunk, head, image) =
                (task % chunks, task / chunks % self.heads, task / chunks / self.heads);
            let first = chunk * block;
            let rows = block.min(self.tokens.saturating_sub(first));
            scratch(rows * self.keys, |scores| {
                // SAFETY: a task writes its own rows of its own head.
                unsafe {
                    self.probabilities(x, bias, Block { image, head, first, rows }, scores);
                    let p = MatRef { data: scores.as_ptr(), row_stride: self.keys as isize, col_stride: 1 };
                    let (dst, v) =
                        (shared.at(out_rows.first(image, head, first)), self.v.matrix(x.v, image, head, 0));
                    gemm(rows, self.d, self.keys, dst, out_rows.token as isize, false, 1.0, p, v);
                }
            });
        };
        let tasks = self.batch * self.heads * chunks;
        if tasks * block * self.keys * self.d < SERIAL {
            (0..tasks).for_each(run);
        } else {
            (0..tasks).into_par_iter().for_each(run);
        }
    }

    /// Writes the gradients of q, k and v to `into`, buffers with the operands' layout, and returns the gradient of a
    /// full bias if the attention has one.
    fn backward(
        &self,
        x: Operands,
        bias: Option<&[f32]>,
        grad: &[f32],
        into: [Shared; 3],
    ) -> Option<Vec<f32>> {
        let Self { heads, tokens, keys, .. } = *self;
        let parts = PARTS.min(self.batch);
        let share = self.batch.div_ceil(parts);
        let square = if bias.is_some() { tokens * keys } else { 0 };
        let size = queries(keys);
        let sums: Vec<Vec<f32>> = (0..parts * heads)
            .into_par_iter()
            .map(|task| {
                let (part, head) = (task / heads, task % heads);
                let mut bias_grad = vec![0f32; square];
                for image in part * share..((part + 1) * share).min(self.batch) {
                    for first in (0..tokens).step_by(size) {
                        let block = Block { image, head, first, rows: size.min(tokens - first) };
                        // SAFETY: a task writes the rows of its own head of its own images.
                        unsafe { self.backward_block(x, bias, grad, into, block, &mut bias_grad) };
                    }
                }
                bias_grad
            })
            .collect();
        bias.map(|_| {
            let mut total = vec![0f32; heads * square];
            for (task, sum) in sums.into_iter().enumerate() {
                let head = &mut total[task % heads * square..][..square];
                head.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
            }
            total
        })
    }

    /// Writes a block's gradient of q, adds to its head's gradients of k and v, which the first block writes, and adds to
    /// `bias_grad [T, S]`, which is empty without a bias.
    ///
    /// # Safety
    /// The operands are as large as the problem says, and no other task accesses the gradients of this image and head.
    unsafe fn backward_block(
        &self,
        x: Operands,
        bias: Option<&[f32]>,
        grad: &[f32],
        into: [Shared; 3],
        block: Block,
        bias_grad: &mut [f32],
    ) {
        let Self { d, keys, scale, .. } = *self;
        let Block { image, head, first, rows } = block;
        let bias = bias.map_or(Bias::None, Bias::Full);
        let g = Rows::unpacked(self.tokens, self.heads, d).matrix(grad, image, head, first);
        let (q, k) = (self.q.matrix(x.q, image, head, first), self.k.matrix(x.k, image, head, 0));
        let v = self.v.matrix(x.v, image, head, 0);
        scratch(2 * rows * keys, |buffer| {
            let (p, ds) = buffer.split_at_mut(rows * keys);
            // SAFETY: guaranteed by the caller.
            unsafe {
                self.probabilities(x, bias, block, p);
                gemm(rows, keys, d, ds.as_mut_ptr(), keys as isize, false, 1.0, g, transposed(v));
            }
            score_gradients(p, ds, keys, bias_grad.get_mut(first * keys..(first + rows) * keys));
            let of = |data: &[f32]| MatRef { data: data.as_ptr(), row_stride: keys as isize, col_stride: 1 };
            let (p, ds) = (of(p), of(ds));
            let [q_step, k_step, v_step] = [self.q, self.k, self.v].map(|rows| rows.token as isize);
            let add = first > 0;
            // SAFETY: as above.
            unsafe {
                let dq = into[0].at(self.q.first(image, head, first));
                gemm(rows, d, keys, dq, q_step, false, scale, ds, k);
                let dk = into[1].at(self.k.first(image, head, 0));
                gemm(keys, d, rows, dk, k_step, add, scale, transposed(ds), q);
                let dv = into[2].at(self.v.first(image, head, 0));
                gemm(keys, d, rows, dv, v_step, add, 1.0, transposed(p), g);
            }
        });
    }
}

/// Softmax of rows of `keys` scores, in place.
fn softmax_rows(scores: &mut [f32], keys: usize) {
    simd(
        #[inline(always)]
        || {
            for row in scores.chunks_exact_mut(keys) {
                softmax_row(row);
            }
        },
    );
}

/// Softmax of the sums of scores and bias, row by row, so that it finds the sums in the first-level cache.
fn biased_softmax_rows(scores: &mut [f32], bias: &[f32], keys: usize) {
    simd(
        #[inline(always)]
        || {
            for (row, bias) in scores.chunks_exact_mut(keys).zip(bias.chunks_exact(keys)) {
                for (s, b) in row.iter_mut().zip(bias) {
                    *s += b;
                }
                softmax_row(row);
            }
        },
    );
}

/// Replaces the gradients `ds` of the probabilities `p` by those of the scores, and adds them to `sum`, if given.
fn score_gradients(p: &[f32], ds: &mut [f32], keys: usize, sum: Option<&mut [f32]>) {
    simd(
        #[inline(always)]
        || {
            for (ds, p) in ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
                softmax_grad_row(p, ds);
            }
            if let Some(sum) = sum {
                for (a, b) in sum.iter_mut().zip(ds.iter()) {
                    *a += b;
                }
            }
        },
    );
}

/// Attention of packed `[B, T, 3 · heads · d]`, with or without a bias `[heads, T, T]`.
pub(crate) struct Packed {
    pub heads: usize,
    pub packing: Packing,
    pub scale: f32,
}

impl Packed {
    fn problem(&self, dims: &[usize]) -> Result<Problem> {
        Problem::packed(dims, self.heads, self.packing, self.scale)
    }
}

// SAFETY: the tasks of an attention cover its result.
unsafe impl Kernel for Packed {
    fn shape(&self, args: Args) -> Result<Shape> {
        let problem = self.problem(args.dims(0))?;
        if args.len() > 1 && args.dims(1) != [self.heads, problem.tokens, problem.tokens] {
            let (heads, tokens) = (self.heads, problem.tokens);
            candle_core::bail!("attention: a bias of {:?} for {heads} heads, {tokens} tokens", args.dims(1));
        }
        Ok(problem.shape())
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let bias = if args.len() > 1 { Some(args.get(1)?) } else { None };
        let bias = bias.as_deref().map_or(Bias::None, Bias::Full);
        self.problem(args.dims(0))?.forward(Operands { q: &x, k: &x, v: &x }, bias, out);
        Ok(())
    }
}

impl Differentiable for Packed {
    fn name(&self) -> &'static str {
        "autosam-attention-packed"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, bias) = (args[0], args.get(1).copied());
        let problem = self.problem(x.dims())?;
        let (data, grad) = (Elements::of(x)?, Elements::of(grad)?);
        let held = bias.map(Elements::of).transpose()?;
        let mut dx = vec![0f32; data.len()];
        let operands = Operands { q: &data, k: &data, v: &data };
        let db = problem.backward(operands, held.as_deref(), &grad, [Shared::new(&mut dx); 3]);
        let db = match (db, bias) {
            (Some(db), Some(bias)) if bias.track_op() => Some(shaped(db, bias)?),
            _ => None,
        };
        Ok([Some(shaped(dx, x)?), db, None])
    }
}

/// Attention of packed `[B, h · w, 3 · heads · d]` with relative positions, tables `[2h - 1, d]` and `[2w - 1, d]`; for
/// inference.
pub(crate) struct Relative {
    pub packed: Packed,
    pub h: usize,
    pub w: usize,
}

// SAFETY: as for `Packed`.
unsafe impl Kernel for Relative {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (h, w) = (self.h, self.w);
        let problem = self.packed.problem(args.dims(0))?;
        if args.dims(1)[0] != 2 * h - 1 || args.dims(2)[0] != 2 * w - 1 || problem.tokens != h * w {
            let tables = (args.dims(1), args.dims(2));
            candle_core::bail!("attention: tables {tables:?} for {h} x {w} of {} tokens", problem.tokens);
        }
        Ok(problem.shape())
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (x, rows, cols) = (args.get(0)?, args.get(1)?, args.get(2)?);
        let bias = Bias::Relative(Positions { rows: &rows, cols: &cols, h: self.h, w: self.w });
        self.packed.problem(args.dims(0))?.forward(Operands { q: &x, k: &x, v: &x }, bias, out);
        Ok(())
    }
}

/// Attention of separate q `[B, T, heads · d]`, k and v `[B, S, heads · d]`.
pub(crate) struct Separate {
    pub heads: usize,
    pub scale: f32,
}

// SAFETY: as for `Packed`.
unsafe impl Kernel for Separate {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Problem::separate(args.dims(0), args.dims(1), args.dims(2), self.heads, self.scale)?.shape())
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (q, k, v) = (args.get(0)?, args.get(1)?, args.get(2)?);
        let problem = Problem::separate(args.dims(0), args.dims(1), args.dims(2), self.heads, self.scale)?;
        problem.forward(Operands { q: &q, k: &k, v: &v }, Bias::None, out);
        Ok(())
    }
}

impl Differentiable for Separate {
    fn name(&self) -> &'static str {
        "autosam-attention"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (q, k, v) = (args[0], args[1], args[2]);
        let problem = Problem::separate(q.dims(), k.dims(), v.dims(), self.heads, self.scale)?;
        let (eq, ek, ev, grad) = (Elements::of(q)?, Elements::of(k)?, Elements::of(v)?, Elements::of(grad)?);
        let mut grads = [vec![0f32; eq.len()], vec![0f32; ek.len()], vec![0f32; ev.len()]];
        let into = grads.each_mut().map(|g| Shared::new(g));
        problem.backward(Operands { q: &eq, k: &ek, v: &ev }, None, &grad, into);
        let [dq, dk, dv] = grads;
        Ok([Some(shaped(dq, q)?), Some(shaped(dk, k)?), Some(shaped(dv, v)?)])
    }
}
