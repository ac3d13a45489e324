//! Matrix products and convolutions in 16 bits while everything else, weights and sums over many terms too, stays in
//! f32: what PyTorch calls autocast. Gradients pass the same casts back.

use candle_core::{DType, Result, Tensor};
use std::cell::Cell;

thread_local! {
    static DTYPE: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `f`, its products and convolutions on this thread in `dtype`. Meant for a GPU: on a CPU it takes the kernels of this folder out
/// of use, for candle's, and 16 bits are f32 with operands and results rounded.
pub fn autocast<R>(dtype: Option<DType>, f: impl FnOnce() -> R) -> R {
    /// Puts back what was, also after a panic.
    struct Before(Option<DType>);
    impl Drop for Before {
        fn drop(&mut self) {
            DTYPE.set(self.0);
        }
    }
    let _before = Before(DTYPE.replace(dtype));
    f()
}

/// Runs `f` in f16 where [`autocast`] asks for bf16: inference whose factors were normalised before, which need digits rather than range.
pub fn autocast_f16<R>(f: impl FnOnce() -> R) -> R {
    autocast(autocast_dtype().map(|_| DType::F16), f)
}

/// True inside [`autocast`] with a type.
pub(crate) fn active() -> bool {
    DTYPE.get().is_some()
}

/// The 16-bit type that products on this thread are computed in, inside [`autocast`] with one.
pub fn autocast_dtype() -> Option<DType> {
    DTYPE.get()
}

/// `x` in the type of [`autocast`], where there is one.
pub(crate) fn to_autocast_dtype(x: &Tensor) -> Result<Tensor> {
    match DTYPE.get() {
        Some(dtype) => x.to_dtype(dtype),
        None => Ok(x.clone()),
    }
}

/// `x`, in f32 where it is in 16 bits.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// `f(a, b)`, in the type of [`autocast`] where there is one. The result stays in it, as PyTorch's does, unless it has a gradient:
/// sums of these are f32.
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

/// [`in_autocast`] where a GPU's kernel goes on with the sums in f32, of which they are part: on a CPU they stay so.
pub(crate) fn in_autocast_f32_sums(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if a.device().is_cpu() { f(&rounded(a)?, &rounded(b)?) } else { in_autocast(a, b, f) }
}

/// `x` in f32, rounded to the type of [`autocast`] where there is one.
fn rounded(x: &Tensor) -> Result<Tensor> {
    widened(&to_autocast_dtype(x)?)
}
