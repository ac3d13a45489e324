//! Pooling and resizing: one kernel each, or composed of operations whose backward is right.

use crate::autograd::tape;
use crate::kernels::cpu::common::handles;
use crate::kernels::cpu::spatial::{MaxPool, Resize, taps};
use crate::kernels::cuda;
use candle_core::{Result, Tensor};

/// Max pooling with padding (`-inf` outside), `[N, C, H, W]` → `[N, C, H', W']`: the maximum over shifted
/// strided views.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    if handles(&[x]) {
        return tape::apply(MaxPool { kernel, stride, padding }, &[&x.contiguous()?]);
    }
    if cuda::fusible(&[x]) {
        return cuda::max_pool(x, kernel, stride, padding);
    }
    let (n, c, h, w) = x.dims4()?;
    let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
    let (oh, ow) = (out(h), out(w));
    // Every view spans stride · out cells from its offset; what lies beyond the padding is never the maximum.
    let reach = |o: usize| (kernel - 1) + stride * o;
    let x = pad_lowest(x, 2, padding, reach(oh) - h - padding)?;
    let x = pad_lowest(&x, 3, padding, reach(ow) - w - padding)?;
    let mut best: Option<Tensor> = None;
    for dy in 0..kernel {
        for dx in 0..kernel {
            let view = x
                .narrow(2, dy, stride * oh)?
                .narrow(3, dx, stride * ow)?
                .contiguous()?
                .reshape((n, c, oh, stride, ow, stride))?
                .narrow(3, 0, 1)?
                .narrow(5, 0, 1)?
                .contiguous()?
                .reshape((n, c, oh, ow))?;
            best = Some(match best {
                Some(best) => best.maximum(&view)?,
                None => view,
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::Msg("max_pool2d: kernel 0".into()))
}

fn pad_lowest(x: &Tensor, dim: usize, before: usize, after: usize) -> Result<Tensor> {
    let side = |size: usize| -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        shape[dim] = size;
        Tensor::full(f32::MIN, shape, x.device())?.to_dtype(x.dtype())
    };
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(side(before)?);
    }
    parts.push(x.clone());
    if after > 0 {
        parts.push(side(after)?);
    }
    Tensor::cat(&parts, dim)
}

/// Bilinear resize of `[N, C, H, W]` to `[N, C, height, width]`, as `torch.nn.functional.interpolate`
/// (no antialiasing).
pub fn resize_bilinear(x: &Tensor, height: usize, width: usize, align_corners: bool) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    if handles(&[x]) {
        return tape::apply(Resize::new(height, width, align_corners), &[&x.contiguous()?]);
    }
    if x.device().is_cuda() && !x.track_op() {
        return x.contiguous()?.upsample_bilinear2d(height, width, align_corners);
    }
    let across = bilinear_matrix(w, width, align_corners, x)?;
    let down = bilinear_matrix(h, height, align_corners, x)?;
    let y = x.reshape((n * c * h, w))?.matmul(&across)?.reshape((n * c, h, width))?;
    let y = y.transpose(1, 2)?.contiguous()?.reshape((n * c * width, h))?.matmul(&down)?;
    y.reshape((n * c, width, height))?.transpose(1, 2)?.contiguous()?.reshape((n, c, height, width))
}

/// `[from, to]`: column j holds the weights of the samples that make output j.
fn bilinear_matrix(from: usize, to: usize, align_corners: bool, like: &Tensor) -> Result<Tensor> {
    let mut m = vec![0f32; from * to];
    for (j, (low, high, t)) in taps(from, to, align_corners).enumerate() {
        m[low * to + j] += 1.0 - t;
        m[high * to + j] += t;
    }
    Tensor::from_vec(m, (from, to), like.device())?.to_dtype(like.dtype())
}
