//! Convolutions and their transposes.

use super::epilogue::with_epilogue_in_planes;
use crate::autograd::tape;
use crate::kernels::cpu::common::{fusible, handles};
use crate::kernels::cpu::epilogue::Epilogue;
use crate::kernels::cpu::{conv, conv_transpose, depthwise};
use crate::kernels::cuda;
use crate::runtime::autocast::in_autocast;
use crate::runtime::capture::apply;
use crate::{Activation, Conv2d};
use candle_core::{DType, Result, Tensor};

/// `x [N, C, H, W]` ∗ `w [O, C/groups, K, K]` + `bias [O]` → `[N, O, H', W']`.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, cfg: Conv2d) -> Result<Tensor> {
    conv2d_then(x, w, bias, cfg, None)
}

/// [`conv2d`] followed by an activation.
pub fn conv2d_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    cfg: Conv2d,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let groups = cfg.groups;
    let depth_wise = groups != 1 && groups == x.dim(1)? && groups == w.dim(0)?;
    let ours = handles(&[x, w]) && (groups == 1 || depth_wise);
    if ours && fusible(&[x, w]) && bias.is_none_or(|b| fusible(&[b])) {
        let (x, w, epilogue) = (x.contiguous()?, w.contiguous()?, Epilogue::new(bias, activation));
        return if depth_wise {
            apply(depthwise::DepthWise { cfg, epilogue }, &[&x, &w])
        } else {
            apply(conv::Conv { cfg, epilogue }, &[&x, &w])
        };
    }
    if x.device().is_cuda() && depth_wise {
        let fused = cuda::fusible(&[x, w]) && bias.is_none_or(|b| cuda::fusible(&[b]));
        return if fused {
            cuda::depthwise(x, w, bias, cfg, activation, false)
        } else {
            with_epilogue_in_planes(
                cuda::depthwise(&x.to_dtype(DType::F32)?, w, None, cfg, None, false)?,
                bias,
                activation,
            )
        };
    }
    let epilogue = Epilogue::default();
    let y = if !ours {
        in_autocast(x, w, |x, w| composed_conv2d(x, w, cfg))?
    } else if depth_wise {
        tape::apply(depthwise::DepthWise { cfg, epilogue }, &[&x.contiguous()?, &w.contiguous()?])?
    } else {
        tape::apply(conv::Conv { cfg, epilogue }, &[&x.contiguous()?, &w.contiguous()?])?
    };
    with_epilogue_in_planes(y, bias, activation)
}

/// A convolution composed of candle's operations, used if this crate's CPU kernels do not apply.
fn composed_conv2d(x: &Tensor, w: &Tensor, cfg: Conv2d) -> Result<Tensor> {
    if x.device().is_cuda() && cfg.groups == 1 {
        let ((n, _, h, width), (o, c, k, _)) = (x.dims4()?, w.dims4()?);
        let out = |size: usize| cfg.outputs(size, k).unwrap_or(0);
        let columns = if k == 1 && cfg == Conv2d::default() {
            x.contiguous()?.reshape((n, c, h * width))?
        } else {
            cuda::unfold(x, k, cfg)?
        };
        let w = w.reshape((1, o, c * k * k))?;
        let w = if n == 1 { w } else { w.broadcast_as((n, o, c * k * k))?.contiguous()? };
        return w.matmul(&columns)?.reshape((n, o, out(h), out(width)));
    }
    let Conv2d { stride, padding, trailing, groups } = cfg;
    if trailing == 0 {
        return x.conv2d(w, padding, stride, 1, groups);
    }
    let x =
        x.pad_with_zeros(2, padding, padding + trailing)?.pad_with_zeros(3, padding, padding + trailing)?;
    x.conv2d(w, 0, stride, 1, groups)
}

/// Transposed convolution, `x [N, C, H, W]`, `w [C, O, K, K]`, `bias [O]` → `[N, O, (H-1)·stride + K, …]`.
pub fn conv_transpose2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize) -> Result<Tensor> {
    conv_transpose2d_then(x, w, bias, stride, None)
}

/// [`conv_transpose2d`] followed by an activation.
pub fn conv_transpose2d_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let (c, o, k, _) = w.dims4()?;
    let (n, _, height, width) = x.dims4()?;
    if k == stride && fusible(&[x, w]) && bias.is_none_or(|b| fusible(&[b])) {
        let op = conv_transpose::ConvTranspose2d { epilogue: Epilogue::new(bias, activation) };
        return apply(op, &[&x.contiguous()?, &w.contiguous()?]);
    }
    let y =
        if k == stride && handles(&[x, w]) {
            tape::apply(
                conv_transpose::ConvTranspose2d { epilogue: Epilogue::default() },
                &[&x.contiguous()?, &w.contiguous()?],
            )?
        } else if k == stride {
            // Kernels do not overlap, so one matrix product suffices; each of its rows fills k × k pixels.
            let w = w.reshape((c, o * k * k))?.t()?.contiguous()?;
            let (w, x) = (w.broadcast_left(n)?.contiguous()?, x.reshape((n, c, height * width))?);
            let y = in_autocast(&w, &x, |w, x| w.matmul(x))?;
            y.reshape(&[n, o, k, k, height, width])?
                .permute(vec![0, 1, 4, 2, 5, 3])?
                .contiguous()?
                .reshape((n, o, height * k, width * k))?
        } else {
            in_autocast(x, w, |x, w| x.conv_transpose2d(w, 0, 0, stride, 1))?
        };
    with_epilogue_in_planes(y, bias, activation)
}
