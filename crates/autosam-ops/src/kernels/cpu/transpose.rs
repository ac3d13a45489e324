//! Conversion between channels first, `[N, C, H, W]`, and channels last, `[N, H, W, C]`.

use super::common::simd;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel, eager};
use crate::runtime::memory::Shared;
use crate::runtime::operands::Args;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// `[N, A, B]` → `[N, B, A]`, in squares that stay in the first-level cache.
pub(crate) struct Transpose;

const SQUARE: usize = 8;

// SAFETY: the bands cover all rows.
unsafe impl Kernel for Transpose {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(0) {
            &[n, a, b] => Ok(Shape::from((n, b, a))),
            other => candle_core::bail!("transpose: expected [N, A, B], found {other:?}"),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let x = args.get(0)?;
        let x: &[f32] = &x;
        let &[n, a, b] = args.dims(0) else { return Ok(()) };
        let bands = b.div_ceil(SQUARE);
        let shared = Shared::uninit(out);
        (0..n * bands).into_par_iter().with_min_len((64 / a.div_ceil(SQUARE)).max(1)).for_each(|task| {
            let (image, first) = (task / bands, task % bands * SQUARE);
            let rows = SQUARE.min(b - first);
            let x = &x[image * a * b..][..a * b];
            // SAFETY: a task writes rows `first..first + rows` of its own image.
            let out =
                unsafe { std::slice::from_raw_parts_mut(shared.at(image * a * b + first * a), rows * a) };
            simd(
                #[inline(always)]
                || {
                    for from in (0..a).step_by(SQUARE) {
                        let columns = SQUARE.min(a - from);
                        if rows == SQUARE && columns == SQUARE {
                            let mut square = [[0f32; SQUARE]; SQUARE];
                            for (j, row) in square.iter_mut().enumerate() {
                                row.copy_from_slice(&x[(from + j) * b + first..][..SQUARE]);
                            }
                            for (i, line) in out.chunks_exact_mut(a).enumerate() {
                                for (o, row) in line[from..from + SQUARE].iter_mut().zip(&square) {
                                    *o = row[i];
                                }
                            }
                        } else {
                            for (i, line) in out.chunks_exact_mut(a).enumerate() {
                                let source = x[from * b + first + i..].iter().step_by(b);
                                line[from..from + columns].iter_mut().zip(source).for_each(|(o, v)| *o = *v);
                            }
                        }
                    }
                },
            );
        });
        Ok(())
    }
}

impl Differentiable for Transpose {
    fn name(&self) -> &'static str {
        "autosam-transpose"
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        Ok([Some(eager(self, &[grad])?), None, None])
    }
}
