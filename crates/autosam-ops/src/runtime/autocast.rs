//! Autocast as in PyTorch: matrix products and convolutions are computed in 16 bits, while everything else, including
//! weights and sums over many terms, stays in f32. Gradients pass back through the same casts.

use candle_core::{DType, Result, Tensor};
use std::cell::Cell;

thread_local! {
    static DTYPE: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `f` with its products and convolutions on this thread in `dtype`. Meant for a GPU. On a CPU candle's operations
/// replace this crate's kernels, and 16-bit products are emulated in f32 with rounded operands and results.
pub fn autocast<R>(dtype: Option<DType>, f: impl FnOnce() -> R) -> R {
    /// Restores the previous type, also after a panic.
    struct Before(Option<DType>);
    impl Drop for Before {
        fn drop(&mut self) {
            DTYPE.set(self.0);
        }
    }
    let _before = Before(DTYPE.replace(dtype));
    f()
}

/// Runs `f` in f16 if [`autocast`] requests bf16. For inference on normalised operands, which need precision rather
/// than range.
pub fn autocast_f16<R>(f: impl FnOnce() -> R) -> R {
    autocast(autocast_dtype().map(|_| DType::F16), f)
}

/// Whether [`autocast`] with a type is active.
pub(crate) fn active() -> bool {
    DTYPE.get().is_some()
}

/// The 16-bit type of products on this thread, if [`autocast`] is active.
pub fn autocast_dtype() -> Option<DType> {
    DTYPE.get()
}

/// Converts `x` to the type of [`autocast`], if active.
pub(crate) fn to_autocast_dtype(x: &Tensor) -> Result<Tensor> {
    match DTYPE.get() {
        Some(dtype) => x.to_dtype(dtype),
        None => Ok(x.clone()),
    }
}

/// Converts `x` to f32 if it is in 16 bits.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// `f(a, b)` in the type of [`autocast`], if active. The result stays in that type, as in PyTorch, unless it has a
/// gradient, because gradients are summed in f32.
pub(crate) fn in_autocast(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    match DTYPE.get() {
        Some(_) if a.device().is_cpu() => rounded(&in_autocast_f32_sums(a, b, f)?),
        Some(dtype) => {
            let y = f(&a.to_dtype(dtype)?, &b.to_dtype(dtype)?)?;
            if y.track_op() { y.to_dtype(DType::F32) } else { Ok(y) }
        }
        None => f(a, b),
    }
}

/// [`in_autocast`] for results that a GPU kernel keeps in f32 as part of a longer sum; on a CPU they stay in f32 as
/// well.
pub(crate) fn in_autocast_f32_sums(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if a.device().is_cpu() { f(&rounded(a)?, &rounded(b)?) } else { in_autocast(a, b, f) }
}

/// `x` in f32, rounded to the type of [`autocast`], if active.
fn rounded(x: &Tensor) -> Result<Tensor> {
    widened(&to_autocast_dtype(x)?)
}
