//! Windows of a grid of tokens, one token of many, and channels side by side.

use crate::autograd::tape;
use crate::kernels::cpu::common::handles;
use crate::kernels::cpu::concat::{Concat, Token};
use crate::kernels::cpu::windows::{Partition, Unpartition, Windows};
use crate::kernels::cuda;
use crate::runtime::capture::apply;
use candle_core::{Result, Tensor};

/// `[N, H, W, C]` → windows `[N·wh·ww, w·w, C]`, padded with zeros below and to the right.
pub fn partition(x: &Tensor, window: usize) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let windows = Windows { window, n, h, w, c };
    if (h, w) == (window, window) {
        return tape::reshape(x, windows.inside());
    }
    if handles(&[x]) {
        return tape::apply(Partition(windows), &[&x.contiguous()?]);
    }
    if cuda::copies_windows(x, c) {
        return cuda::partition(x, window);
    }
    let (rows, cols) = (h.div_ceil(window), w.div_ceil(window));
    let x = x.pad_with_zeros(1, 0, rows * window - h)?.pad_with_zeros(2, 0, cols * window - w)?;
    x.reshape((n, rows, window, cols, window * c))?.transpose(2, 3)?.contiguous()?.reshape(windows.inside())
}

/// The inverse of [`partition`] for a grid of `h × w`.
pub fn unpartition(x: &Tensor, window: usize, h: usize, w: usize) -> Result<Tensor> {
    let (rows, cols) = (h.div_ceil(window), w.div_ceil(window));
    let (b, _, c) = x.dims3()?;
    let n = b / (rows * cols);
    if (h, w) == (window, window) {
        return tape::reshape(x, (n, h, w, c));
    }
    if handles(&[x]) {
        return tape::apply(Unpartition(Windows { window, n, h, w, c }), &[&x.contiguous()?]);
    }
    if cuda::copies_windows(x, c) {
        return cuda::unpartition(x, window, [n, h, w, c]);
    }
    x.reshape((n, rows, cols, window, window * c))?
        .transpose(2, 3)?
        .contiguous()?
        .reshape((n, rows * window, cols * window, c))?
        .narrow(1, 0, h)?
        .narrow(2, 0, w)?
        .contiguous()
}

/// Joins `[N, C, H, W]` along the channels.
pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
    if !handles(parts) {
        return Tensor::cat(parts, 1);
    }
    if !parts.is_empty() && !parts.iter().any(|t| t.track_op()) {
        let whole = parts.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
        return apply(Concat, &whole.iter().collect::<Vec<_>>());
    }
    let whole = |t: &Tensor| t.contiguous();
    match parts {
        [] => candle_core::bail!("nothing to concatenate"),
        [one] => Ok((*one).clone()),
        [a, b] => tape::apply(Concat, &[&whole(a)?, &whole(b)?]),
        [a, b, c] => tape::apply(Concat, &[&whole(a)?, &whole(b)?, &whole(c)?]),
        many => {
            let joined = many.chunks(3).map(concat).collect::<Result<Vec<_>>>()?;
            concat(&joined.iter().collect::<Vec<_>>())
        }
    }
}

/// Token `i` of each image: `[N, T, C]` → `[N, C]`.
pub fn token(x: &Tensor, i: usize) -> Result<Tensor> {
    if handles(&[x]) && !x.track_op() {
        return apply(Token(i), &[&x.contiguous()?]);
    }
    x.narrow(1, i, 1)?.squeeze(1)
}
