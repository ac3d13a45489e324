//! Uninitialised memory for a kernel's result, shared by the threads that write it.

use std::mem::{ManuallyDrop, MaybeUninit};

/// `len` uninitialised floats for a kernel's result. The kernel writes all of them, and zeroing them first would take a
/// twentieth of an inference.
pub(crate) fn uninit(len: usize) -> Vec<MaybeUninit<f32>> {
    let mut memory = Vec::with_capacity(len);
    // SAFETY: this capacity was reserved, and `MaybeUninit` needs no initialisation.
    unsafe { memory.set_len(len) };
    memory
}

/// Converts memory of [`uninit`] after it was written.
///
/// # Safety
/// Every element was written.
pub(crate) unsafe fn assume_init(memory: Vec<MaybeUninit<f32>>) -> Vec<f32> {
    let mut memory = ManuallyDrop::new(memory);
    // SAFETY: the same allocation; `MaybeUninit<f32>` has the layout of `f32`.
    unsafe { Vec::from_raw_parts(memory.as_mut_ptr().cast(), memory.len(), memory.capacity()) }
}

/// Converts a part of memory of [`uninit`] after it was written.
///
/// # Safety
/// Every element of the part was written.
pub(crate) unsafe fn assume_init_part(part: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    unsafe { std::slice::from_raw_parts_mut(part.as_mut_ptr().cast(), part.len()) }
}

/// Fills a part of memory of [`uninit`] with a copy of `from`, which has the same length.
pub(crate) fn copied<'a>(from: &[f32], to: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
    assert_eq!(from.len(), to.len());
    // SAFETY: both have the same length and do not overlap, because one is borrowed mutably.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), from.len());
        assume_init_part(to)
    }
}

/// `len` floats, filled by `write`.
///
/// # Safety
/// `write` must write all of them.
pub(crate) unsafe fn filled(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut out = uninit(len);
    write(&mut out);
    // SAFETY: guaranteed by the caller.
    unsafe { assume_init(out) }
}

/// The bytes stored in floats, four channels per float.
pub(crate) fn bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: the same memory; every pattern of bits is a byte.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
}

/// Mutable [`bytes`].
pub(crate) fn bytes_mut(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and every pattern of bits is a float.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
}

/// [`bytes`] of memory of [`uninit`].
pub(crate) fn uninit_bytes(floats: &mut [MaybeUninit<f32>]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the same memory, which needs no initialisation.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
}

/// Bytes as memory for a kernel's result.
pub(crate) fn to_write(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the same memory, and kernels only write bytes to it.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
}

/// A pointer shared by threads, each of which must write a separate part.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: kernels give every task its own range of elements, and each use says why.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// A pointer to memory of [`uninit`].
    pub fn uninit(memory: &mut [MaybeUninit<f32>]) -> Self {
        Self(memory.as_mut_ptr().cast())
    }

    /// The pointer to element `at`.
    ///
    /// # Safety
    /// `at` is inside the slice from which the pointer was created. The slice outlives the use, and no other task
    /// accesses the memory reached through the pointer.
    pub unsafe fn at(self, at: usize) -> *mut f32 {
        unsafe { self.0.add(at) }
    }
}
