//! What the CPU kernels share.

use crate::runtime::autocast;
use candle_core::{CpuStorage, DType, Layout, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

pub(crate) use autosam_frame::simd::simd;

/// True where the kernels here apply; elsewhere candle's own operations, composed, serve.
pub(crate) fn handles(tensors: &[&Tensor]) -> bool {
    !autocast::active() && tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// True where the kernels of inference apply: ours, and no gradient is asked for.
pub(crate) fn fusible(tensors: &[&Tensor]) -> bool {
    handles(tensors) && !tensors.iter().any(|t| t.track_op())
}

/// The elements of a contiguous f32 tensor.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("a kernel needs a contiguous tensor, not {layout:?}"),
    }
}

/// A tensor of `like`'s shape that takes over `values`.
pub(crate) fn shaped_as(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// The gradient of `input`, which `values` computes; `None`, and nothing computed, where no gradient of it is asked for.
pub(crate) fn gradient_of(
    input: &Tensor,
    values: impl FnOnce() -> Result<Vec<f32>>,
) -> Result<Option<Tensor>> {
    match input.track_op() {
        true => Ok(Some(shaped_as(values()?, input)?)),
        false => Ok(None),
    }
}

/// The sum of `parts`, each of `len` numbers, in their order.
pub(crate) fn add_all(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut out = vec![0f32; len];
    for part in parts {
        out.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    out
}

/// Parts that a sum over rows is split into, whatever the number of threads: added in order, they give the same bits every time.
const PARTS: usize = 16;

/// Sums `f(rows, sums)` over parts of `0..rows`, each with its own `len` sums.
pub(crate) fn sum_over_rows(
    rows: usize,
    len: usize,
    f: impl Fn(Range<usize>, &mut [f64]) + Sync,
) -> Vec<f64> {
    let share = rows.div_ceil(PARTS).max(1);
    let parts: Vec<Vec<f64>> = (0..rows.div_ceil(share))
        .into_par_iter()
        .map(|part| {
            let mut sums = vec![0f64; len];
            f(part * share..((part + 1) * share).min(rows), &mut sums);
            sums
        })
        .collect();
    let mut total = vec![0f64; len];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    total
}

/// Sums over `0..images` what `add(image, sums)` adds to `len` sums. Each thread's part sums its own images in order and the parts
/// are summed in order, so that the same machine gives the same bits every time.
pub(crate) fn sum_over_images(images: usize, len: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let share = images.div_ceil(rayon::current_num_threads()).max(1);
    let parts: Vec<Vec<f32>> = (0..images.div_ceil(share))
        .into_par_iter()
        .map(|part| {
            let mut sums = vec![0f32; len];
            for image in part * share..((part + 1) * share).min(images) {
                add(image, &mut sums);
            }
            sums
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_else(|| vec![0f32; len]);
    for part in parts {
        total.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    total
}

/// Elements that a thread takes at a time: long enough to pay for the hand-over.
pub(crate) const GRAIN: usize = 16 * 1024;
