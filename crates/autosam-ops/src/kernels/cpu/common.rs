//! Helpers shared by the CPU kernels.

use crate::runtime::autocast;
use candle_core::{CpuStorage, DType, Layout, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

pub(crate) use autosam_frame::simd::simd;

/// Whether these kernels apply. Otherwise a composition of candle's operations is used.
pub(crate) fn handles(tensors: &[&Tensor]) -> bool {
    !autocast::active() && tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// Whether the inference kernels apply: [`handles`] is true and no gradient is requested.
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

/// A tensor of `like`'s shape that owns `values`.
pub(crate) fn shaped_as(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// The gradient of `input`, computed by `values`; `None`, without calling `values`, if no gradient is requested.
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

/// Number of parts of a sum over rows. It does not depend on the number of threads, and parts are added in order, so
/// that results are bit-identical every time.
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

/// Accumulates `add(image, sums)` over `0..images` in `len` sums. Each thread sums its own images in order, and the
/// parts are added in order, so that the same machine gives bit-identical results every time.
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

/// Elements that a thread processes at a time; enough to outweigh the cost of scheduling.
pub(crate) const GRAIN: usize = 16 * 1024;
