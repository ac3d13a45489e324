//! What the CPU kernels share.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};

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

/// Elements that a thread takes at a time: long enough to pay for the hand-over.
pub(super) const GRAIN: usize = 16 * 1024;

/// Runs `f` compiled for the widest vector instructions that this machine has.
#[inline(always)]
pub(super) fn simd<R>(f: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Op<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) -> R {
            simd.vectorize(Inner(self.0))
        }
    }
    struct Inner<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Inner<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Op(f))
}

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

    /// The pointer to element `at`.
    ///
    /// # Safety
    /// `at` lies inside the slice it was made of, which outlives the use, and no other task touches what is
    /// reached through the pointer.
    pub unsafe fn at(self, at: usize) -> *mut f32 {
        unsafe { self.0.add(at) }
    }
}
