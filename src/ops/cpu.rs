//! What the CPU kernels share.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};
use rayon::prelude::*;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;

pub(super) use crate::simd::simd;

/// True where the kernels here apply; elsewhere candle's own operations, composed, serve.
pub(super) fn handles(tensors: &[&Tensor]) -> bool {
    !super::autocast::active() && tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// The elements of a contiguous f32 tensor.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("a kernel needs a contiguous tensor, not {layout:?}"),
    }
}

/// A tensor of `like`'s shape that takes over `values`.
pub(super) fn shaped_as(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// The gradient of `input`, which `values` computes; `None`, and nothing computed, where no gradient of it is asked for.
pub(super) fn gradient_of(
    input: &Tensor,
    values: impl FnOnce() -> Result<Vec<f32>>,
) -> Result<Option<Tensor>> {
    match input.track_op() {
        true => Ok(Some(shaped_as(values()?, input)?)),
        false => Ok(None),
    }
}

/// The sum of `parts`, each of `len` numbers, in their order.
pub(super) fn add_all(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut out = vec![0f32; len];
    for part in parts {
        out.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    out
}

/// Parts that a sum over rows is split into, whatever the number of threads: added in order, they give the same bits every time.
const PARTS: usize = 16;

/// Sums `f(rows, sums)` over parts of `0..rows`, each with its own `len` sums.
pub(super) fn sum_over_rows(
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
pub(super) fn sum_over_images(images: usize, len: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
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

/// `len` floats for a kernel's result. It writes all of them, so that zeroing them first would be for nothing: a twentieth of an
/// inference.
pub(super) fn unwritten(len: usize) -> Vec<MaybeUninit<f32>> {
    let mut memory = Vec::with_capacity(len);
    // SAFETY: as much was reserved, and of `MaybeUninit` nothing need be written.
    unsafe { memory.set_len(len) };
    memory
}

/// What [`unwritten`] gave, filled.
///
/// # Safety
/// Every element was written.
pub(super) unsafe fn written(memory: Vec<MaybeUninit<f32>>) -> Vec<f32> {
    let mut memory = ManuallyDrop::new(memory);
    // SAFETY: the same allocation; `MaybeUninit<f32>` has the layout of `f32`.
    unsafe { Vec::from_raw_parts(memory.as_mut_ptr().cast(), memory.len(), memory.capacity()) }
}

/// A part of what [`unwritten`] gave, filled.
///
/// # Safety
/// Every element of the part was written.
pub(super) unsafe fn written_part(part: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    unsafe { std::slice::from_raw_parts_mut(part.as_mut_ptr().cast(), part.len()) }
}

/// A part of what [`unwritten`] gave, filled from as many elements.
pub(super) fn copied<'a>(from: &[f32], to: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
    assert_eq!(from.len(), to.len());
    // SAFETY: as long as each other, and apart, one being borrowed alone.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), from.len());
        written_part(to)
    }
}

/// Elements that a thread takes at a time: long enough to pay for the hand-over.
pub(super) const GRAIN: usize = 16 * 1024;

/// A pointer that threads may share; each must write a part of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);

// SAFETY: the kernels give every task its own range of elements, which they state where they take it.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// Of what [`unwritten`] gave.
    pub fn unwritten(memory: &mut [MaybeUninit<f32>]) -> Self {
        Self(memory.as_mut_ptr().cast())
    }

    /// The pointer to element `at`.
    ///
    /// # Safety
    /// `at` lies inside the slice it was made of, which outlives the use, and no other task touches what is
    /// reached through the pointer.
    pub unsafe fn at(self, at: usize) -> *mut f32 {
        unsafe { self.0.add(at) }
    }
}
