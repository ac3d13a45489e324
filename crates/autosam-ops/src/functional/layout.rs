//! Conversion between channels first, `[N, C, H, W]`, and channels last, `[N, H, W, C]`.

use crate::autograd::tape;
use crate::kernels::cpu::common::handles;
use crate::kernels::cpu::transpose::Transpose;
use crate::kernels::cuda;
use candle_core::{Result, Tensor};

/// `[N, C, H, W]` → `[N, H, W, C]`, contiguous.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if cuda::fusible(&[x]) {
        return cuda::transpose(&x.contiguous()?.reshape((n, c, h * w))?)?.reshape((n, h, w, c));
    }
    if !handles(&[x]) {
        return x.permute((0, 2, 3, 1))?.contiguous();
    }
    transposed(x, (n, c, h * w), (n, h, w, c))
}

/// `[N, H, W, C]` → `[N, C, H, W]`, contiguous.
pub fn channels_first(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    if cuda::fusible(&[x]) {
        return cuda::transpose(&x.contiguous()?.reshape((n, h * w, c))?)?.reshape((n, c, h, w));
    }
    if !handles(&[x]) {
        return x.permute((0, 3, 1, 2))?.contiguous();
    }
    transposed(x, (n, h * w, c), (n, c, h, w))
}

/// Transposes `x`, viewed as `flat [N, A, B]`, to `[N, B, A]` and reshapes the result to `out`.
fn transposed(x: &Tensor, flat: (usize, usize, usize), out: (usize, usize, usize, usize)) -> Result<Tensor> {
    tape::reshape(&tape::apply(Transpose, &[&tape::reshape(&x.contiguous()?, flat)?])?, out)
}
