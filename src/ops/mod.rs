//! The operations that the networks are built from, each differentiable and right where candle's own
//! is slow, wrong or has no backward (`docs/candle-notes.md` lists which and why).
//!
//! Images are `[N, C, H, W]`. On a CPU in f32 our kernels run; elsewhere candle's operations, composed, and in inference on a GPU
//! kernels of our own ([`cuda`]).

mod arrange;
mod attention;
mod autocast;
mod batch_norm;
mod bias;
mod channel_norm;
mod conv;
mod conv_norm;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod depthwise;
mod depthwise_last;
mod forward;
mod fused;
mod gemm;
mod grid;
mod layout;
mod linear;
mod norm;
mod plan;
mod pointwise;
mod pool;
mod prepared;
mod spatial;
mod spread;
mod tape;
#[cfg(test)]
pub(crate) mod tests;
mod update;
mod winograd;

pub use arrange::{concat, partition, token, unpartition};
pub use attention::Packing;
pub use autocast::{autocast, autocast_dtype, with_digits};
pub use batch_norm::BatchNorm;
pub use conv_norm::ConvNorm;
#[cfg(feature = "cuda")]
pub(crate) use cuda::WORKSPACE;
pub use layout::{channels_first, channels_last};
pub use plan::{Plan, join};
pub use pointwise::Activation;
pub(crate) use pool::on_each_thread;
pub use pool::{in_pool, in_pool_of};
pub use prepared::{Conv, Linear};
pub use spatial::{max_pool2d, resize_bilinear};
pub use tape::{reshape, taped};
pub use update::{AdamStep, blend, blend_square, sum_of_squares};

use autocast::{lowered, lowered_sums, widened};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{D, Result, Tensor};
use forward::apply;
use fused::Finish;

/// Pixels `[H, W, 3]`, bytes, as `[1, 3, size, size]`: channel c times `scale[c]` plus `shift[c]`, and zeros below and to the right.
pub fn normalised(rgb: &Tensor, size: usize, scale: [f32; 3], shift: [f32; 3]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if rgb.device().is_cuda() {
        return cuda::normalised(rgb, size, scale, shift);
    }
    let channel = |values: [f32; 3]| Tensor::new(&values, rgb.device())?.reshape((3, 1, 1));
    let (h, w, _) = rgb.dims3()?;
    let x = rgb.permute((2, 0, 1))?.to_dtype(candle_core::DType::F32)?;
    let x = x.broadcast_mul(&channel(scale)?)?.broadcast_add(&channel(shift)?)?;
    x.pad_with_zeros(1, 0, size - h)?.pad_with_zeros(2, 0, size - w)?.unsqueeze(0)
}

/// Stride, padding and groups of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    pub stride: usize,
    pub padding: usize,
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, groups: 1 }
    }
}

/// True where the kernels of inference apply: ours, and no gradient is asked for.
fn fusible(tensors: &[&Tensor]) -> bool {
    cpu::handles(tensors) && !tensors.iter().any(|t| t.track_op())
}

/// `x [N, C, H, W]` ∗ `w [O, C/groups, K, K]` + `bias [O]` → `[N, O, H', W']`.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, cfg: Conv2d) -> Result<Tensor> {
    conv2d_then(x, w, bias, cfg, None)
}

/// [`conv2d`] and an activation.
pub fn conv2d_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    cfg: Conv2d,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let Conv2d { stride, padding, groups } = cfg;
    let depth_wise = groups != 1 && groups == x.dim(1)? && groups == w.dim(0)?;
    let ours = cpu::handles(&[x, w]) && (groups == 1 || depth_wise);
    if ours && fusible(&[x, w]) && bias.is_none_or(|b| fusible(&[b])) {
        let (x, w, finish) = (x.contiguous()?, w.contiguous()?, Finish::new(bias, activation));
        return if depth_wise {
            apply(depthwise::DepthWise { stride, padding, finish }, &[&x, &w])
        } else {
            apply(conv::Conv { stride, padding, finish }, &[&x, &w])
        };
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && depth_wise {
        let fused = cuda::fusible(&[x, w]) && bias.is_none_or(|b| cuda::fusible(&[b]));
        return if fused {
            cuda::depthwise(x, w, bias, cfg, activation, false)
        } else {
            finished_planes(
                cuda::depthwise(&x.to_dtype(DType::F32)?, w, None, cfg, None, false)?,
                bias,
                activation,
            )
        };
    }
    let finish = Finish::default();
    let y = if !ours {
        lowered(x, w, |x, w| composed_conv2d(x, w, cfg))?
    } else if depth_wise {
        tape::apply2(&x.contiguous()?, &w.contiguous()?, depthwise::DepthWise { stride, padding, finish })?
    } else {
        tape::apply2(&x.contiguous()?, &w.contiguous()?, conv::Conv { stride, padding, finish })?
    };
    finished_planes(y, bias, activation)
}

/// A convolution where our kernels of a CPU do not apply.
fn composed_conv2d(x: &Tensor, w: &Tensor, cfg: Conv2d) -> Result<Tensor> {
    let Conv2d { stride, padding, groups } = cfg;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && groups == 1 {
        let ((n, _, h, width), (o, c, k, _)) = (x.dims4()?, w.dims4()?);
        let out = |size: usize| (size + 2 * padding - k) / stride + 1;
        let columns = if (k, stride, padding) == (1, 1, 0) {
            x.contiguous()?.reshape((n, c, h * width))?
        } else {
            cuda::unfold(x, k, cfg)?
        };
        let w = w.reshape((1, o, c * k * k))?;
        let w = if n == 1 { w } else { w.broadcast_as((n, o, c * k * k))?.contiguous()? };
        return w.matmul(&columns)?.reshape((n, o, out(h), out(width)));
    }
    x.conv2d(w, padding, stride, 1, groups)
}

/// Bias, a number a channel, and activation of the fresh `[N, C, H, W]` of a product.
fn finished_planes(y: Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
    match bias {
        Some(b) if cpu::handles(&[&y, b]) => {
            tape::apply2(&y.contiguous()?, &b.contiguous()?, bias::Biased { activation })
        }
        _ => finished(y, bias, 1, activation),
    }
}

/// Bias of the channels along `dim`, and activation, of the fresh result of a product.
fn finished(y: Tensor, bias: Option<&Tensor>, dim: usize, activation: Option<Activation>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::fusible(&[&y]) && bias.is_none_or(|b| cuda::fusible(&[b])) {
        cuda::finish(&y, bias, dim, activation)?;
        return Ok(y);
    }
    let y = match bias {
        Some(b) => {
            let mut shape = vec![1; y.rank()];
            shape[dim] = b.elem_count();
            y.broadcast_add(&b.to_dtype(y.dtype())?.reshape(shape)?)?
        }
        None => y,
    };
    match activation {
        Some(f) => activate(&y, f),
        None => Ok(y),
    }
}

/// Transposed convolution, `x [N, C, H, W]`, `w [C, O, K, K]`, `bias [O]` → `[N, O, (H-1)·stride + K, …]`.
pub fn conv_transpose2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize) -> Result<Tensor> {
    conv_transpose2d_then(x, w, bias, stride, None)
}

/// [`conv_transpose2d`] and an activation.
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
        let op = spread::Spread { finish: Finish::new(bias, activation) };
        return apply(op, &[&x.contiguous()?, &w.contiguous()?]);
    }
    let y =
        if k == stride && cpu::handles(&[x, w]) {
            tape::apply2(&x.contiguous()?, &w.contiguous()?, spread::Spread { finish: Finish::default() })?
        } else if k == stride {
            // No two kernels overlap: one matrix product, its rows spread over k × k pixels.
            let w = w.reshape((c, o * k * k))?.t()?.contiguous()?;
            let (w, x) = (w.broadcast_left(n)?.contiguous()?, x.reshape((n, c, height * width))?);
            let y = lowered(&w, &x, |w, x| w.matmul(x))?;
            y.reshape(&[n, o, k, k, height, width])?
                .permute(vec![0, 1, 4, 2, 5, 3])?
                .contiguous()?
                .reshape((n, o, height * k, width * k))?
        } else {
            lowered(x, w, |x, w| x.conv_transpose2d(w, 0, 0, stride, 1))?
        };
    finished_planes(y, bias, activation)
}

/// `a [N, M, K]` · `b [N, K, P]` → `[N, M, P]`.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((n, m, k), p) = (a.dims3()?, b.dim(2)?);
    // On a CPU candle's reads the list of processors at each call, which takes longer than a small product.
    if n == 1 && cpu::handles(&[a, b]) {
        let y = conv2d(&b.reshape((1, k, 1, p))?, &a.reshape((m, k, 1, 1))?, None, Conv2d::default())?;
        return y.reshape((1, m, p));
    }
    if fusible(&[a, b]) {
        return apply(conv::Matmul, &[&a.contiguous()?, &b.contiguous()?]);
    }
    a.matmul(b)
}

/// Weights for inference on a GPU inside [`autocast`]: in its type, which every product would otherwise bring them to.
pub fn prepared(w: &Tensor) -> Result<Tensor> {
    if w.device().is_cpu() { Ok(w.clone()) } else { autocast::in_its_type(w) }
}

/// `x [..., I]` · `w [O, I]`ᵀ + `bias [O]` → `[..., O]`.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_then(x, w, bias, None)
}

/// [`linear`] and an activation.
pub fn linear_then(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    if cpu::handles(&[x, w]) && bias.is_none_or(|b| cpu::handles(&[b])) {
        let train = x.track_op() || w.track_op() || bias.is_some_and(Tensor::track_op);
        let (x, w, op) = (x.contiguous()?, w.contiguous()?, linear::Linear::new(activation, train));
        return match bias {
            Some(bias) => tape::apply3(&x, &w, &bias.contiguous()?, op),
            None => tape::apply2(&x, &w, op),
        };
    }
    #[cfg(feature = "cuda")]
    if let Some(dtype) = autocast_dtype().filter(|dtype| w.dtype() == *dtype)
        && cuda::fusible(&[x, w])
        && bias.is_none_or(|b| cuda::fusible(&[b]))
        && let Some(y) = cuda::linear(&autocast::in_its_type(x)?, w, bias, activation, dtype)?
    {
        return Ok(y);
    }
    let (i, o) = (w.dim(1)?, w.dim(0)?);
    let mut shape = x.dims().to_vec();
    let rows = x.reshape((x.elem_count() / i, i))?;
    let y = finished(lowered(&rows, &w.t()?, |x, w| x.matmul(w))?, bias, 1, activation)?;
    *shape.last_mut().expect("linear needs a dimension") = o;
    y.reshape(shape)
}

/// `residual + linear(x)` in f32, of the residual's shape.
pub fn add_linear(residual: &Tensor, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::fusible(&[residual, x, w]) && bias.is_none_or(|b| cuda::fusible(&[b])) {
        if let Some(dtype) = autocast_dtype().filter(|dtype| w.dtype() == *dtype)
            && let Some(y) = cuda::add_linear(residual, &autocast::in_its_type(x)?, w, bias, dtype)?
        {
            return Ok(y);
        }
        let y = linear(x, w, None)?;
        if cuda::adds(residual, &y) {
            return cuda::add(residual, &y, bias, DType::F32);
        }
    }
    if x.device().is_cpu() && autocast::active() {
        let i = w.dim(1)?;
        let sums = lowered_sums(&x.reshape((x.elem_count() / i, i))?, &w.t()?, |x, w| x.matmul(w))?;
        return add(residual, &finished(sums, bias, 1, None)?.reshape(residual.shape())?);
    }
    add(residual, &linear(x, w, bias)?)
}

/// Attention of every head, `softmax(scale · q kᵀ) v`: `q [B, T, heads · d]`, `k` and `v [B, S, heads · d]` →
/// `[B, T, heads · d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    if cpu::handles(&[q, k, v]) {
        let op = attention::Apart { heads, scale: scale as f32 };
        return tape::apply3(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, op);
    }
    #[cfg(feature = "cuda")]
    if cuda::fusible(&[q, k, v]) && autocast::active() {
        let [q, k, v] = [autocast::in_its_type(q)?, autocast::in_its_type(k)?, autocast::in_its_type(v)?];
        if cuda::serves(q.dtype(), q.dim(2)? / heads) {
            return cuda::attention_apart(&q, &k, &v, heads, scale);
        }
    }
    let split = |x: &Tensor| -> Result<Tensor> {
        let (b, t, c) = x.dims3()?;
        x.reshape((b, t, heads, c / heads))?.transpose(1, 2)?.contiguous()
    };
    composed_attention(&split(q)?, &split(k)?, &split(v)?, scale, None)
}

/// Attention of every head to its own tokens, from `qkv [B, T, 3 · heads · d]`, with a bias `[heads, T, T]` on the scores.
pub fn self_attention(
    qkv: &Tensor,
    packing: Packing,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    if cpu::handles(&[qkv]) && bias.is_none_or(|b| cpu::handles(&[b])) {
        let op = attention::Packed { heads, packing, scale: scale as f32 };
        let qkv = qkv.contiguous()?;
        return match bias {
            Some(bias) => tape::apply2(&qkv, &bias.contiguous()?, op),
            None => tape::apply1(&qkv, op),
        };
    }
    #[cfg(feature = "cuda")]
    if cuda::fusible(&[qkv]) && bias.is_none_or(|b| cuda::fusible(&[b])) && autocast::active() {
        let qkv = autocast::in_its_type(qkv)?;
        if cuda::serves(qkv.dtype(), qkv.dim(2)? / (3 * heads)) {
            let bias = match bias {
                Some(bias) => cuda::Bias::Full(bias.to_dtype(DType::F32)?.contiguous()?),
                None => cuda::Bias::None,
            };
            return cuda::attention(&qkv, None, cuda::Heads { packing, heads, scale }, bias);
        }
    }
    let [q, k, v] = unpacked(qkv, packing, heads)?;
    composed_attention(&q, &k, &v, scale, bias)
}

/// Queries, keys and values, `[B, heads, T, d]` each.
fn unpacked(qkv: &Tensor, packing: Packing, heads: usize) -> Result<[Tensor; 3]> {
    let (b, t, c) = qkv.dims3()?;
    let d = c / (3 * heads);
    let (apart, dim) = match packing {
        Packing::Parts => (qkv.reshape((b, t, 3, heads, d))?, 2),
        Packing::Heads => (qkv.reshape((b, t, heads, 3, d))?, 3),
    };
    let part = |i: usize| apart.narrow(dim, i, 1)?.squeeze(dim)?.transpose(1, 2)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

fn composed_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let scores = (widened(&lowered_sums(q, &k.t()?, |q, k| q.matmul(k))?)? * scale)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(&bias.unsqueeze(0)?)?,
        None => scores,
    };
    lowered(&softmax(&scores)?, v, |p, v| p.matmul(v))?.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

/// True where [`windowed_attention`] of tokens `x`, `d` channels a head, has a kernel that finds windows of `h × w` where they lie: on a
/// GPU, inside [`autocast`].
pub fn finds_windows(x: &Tensor, d: usize, (h, w): (usize, usize)) -> bool {
    #[cfg(feature = "cuda")]
    if let Some(dtype) = autocast_dtype() {
        return cuda::fusible(&[x]) && cuda::serves(dtype, d) && h.max(w) <= cuda::MOST_SIDE;
    }
    let _ = (x, d, h, w);
    false
}

/// [`relative_attention`] in each window of `h × w` tokens of a grid `qkv [N, H, W, 3 · heads · d]` → `[N, H, W, heads · d]`. A window's
/// tokens beyond the grid are `padding [3 · heads · d]`; zeros without.
pub fn windowed_attention(
    qkv: &Tensor,
    padding: Option<&Tensor>,
    heads: usize,
    scale: f64,
    (h, w): (usize, usize),
    (rows, cols): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let (n, height, width, c) = qkv.dims4()?;
    #[cfg(feature = "cuda")]
    {
        let (flat, sides) = (qkv.reshape((n, height * width, c))?, ((h, w), (height, width)));
        if let Some(y) = fused_relative_attention(&flat, padding, heads, scale, sides, (rows, cols))? {
            return y.reshape((n, height, width, c / 3));
        }
    }
    if (h, w) == (height, width) {
        let y = relative_attention(&qkv.reshape((n, h * w, c))?, heads, scale, (h, w), (rows, cols))?;
        return y.reshape((n, h, w, c / 3));
    }
    if h != w {
        candle_core::bail!("attention: windows {h}x{w} of a grid {height}x{width}");
    }
    let windows = match padding {
        Some(padding) => {
            let padding = padding.to_dtype(qkv.dtype())?;
            partition(&qkv.broadcast_sub(&padding)?, h)?.broadcast_add(&padding)?
        }
        None => partition(qkv, h)?,
    };
    unpartition(&relative_attention(&windows, heads, scale, (h, w), (rows, cols))?, h, height, width)
}

/// The GPU's kernel of [`windowed_attention`], for windows and a grid of these sides; `None` where it does not apply.
#[cfg(feature = "cuda")]
fn fused_relative_attention(
    qkv: &Tensor,
    padding: Option<&Tensor>,
    heads: usize,
    scale: f64,
    (window, grid): ((usize, usize), (usize, usize)),
    (rows, cols): (&Tensor, &Tensor),
) -> Result<Option<Tensor>> {
    if !finds_windows(qkv, qkv.dim(2)? / (3 * heads), window) || !cuda::fusible(&[rows, cols]) {
        return Ok(None);
    }
    let qkv = autocast::in_its_type(qkv)?;
    let padding = padding.map(autocast::in_its_type).transpose()?;
    let table = |t: &Tensor| t.to_dtype(qkv.dtype())?.contiguous();
    let (h, w) = window;
    let relative = cuda::Bias::Relative { down: table(rows)?, across: table(cols)?, h, w, grid };
    let heads = cuda::Heads { packing: Packing::Parts, heads, scale };
    cuda::attention(&qkv, padding.as_ref(), heads, relative).map(Some)
}

/// [`self_attention`] of a grid of `h × w` tokens with SAM's decomposed relative positions (arXiv 2112.01526): tables
/// `[2h - 1, d]` and `[2w - 1, d]`, row `i - j + side - 1` for query i and key j.
pub fn relative_attention(
    qkv: &Tensor,
    heads: usize,
    scale: f64,
    (h, w): (usize, usize),
    (rows, cols): (&Tensor, &Tensor),
) -> Result<Tensor> {
    if fusible(&[qkv, rows, cols]) {
        let packed = attention::Packed { heads, packing: Packing::Parts, scale: scale as f32 };
        let op = attention::Relative { packed, h, w };
        return apply(op, &[&qkv.contiguous()?, &rows.contiguous()?, &cols.contiguous()?]);
    }
    #[cfg(feature = "cuda")]
    if let Some(y) = fused_relative_attention(qkv, None, heads, scale, ((h, w), (h, w)), (rows, cols))? {
        return Ok(y);
    }
    // Distances in f32, whatever the products are in.
    let qkv = widened(qkv)?;
    let [q, k, v] = unpacked(&qkv, Packing::Parts, heads)?;
    let (rows, cols) = (&widened(rows)?, &widened(cols)?);
    let (b, _, tokens, d) = q.dims4()?;
    let grid = q.reshape((b * heads, h, w, d))?;
    let turned = grid.transpose(1, 2)?.contiguous()?;
    let down = distances(&grid, rows)?.reshape((b * heads, tokens, h, 1))?;
    let across =
        distances(&turned, cols)?.transpose(1, 2)?.contiguous()?.reshape((b * heads, tokens, 1, w))?;
    let keys = k.t()?;
    let mut parts = Vec::with_capacity(tokens.div_ceil(CHUNK));
    for start in (0..tokens).step_by(CHUNK) {
        let n = CHUNK.min(tokens - start);
        let queries = q.narrow(2, start, n)?.contiguous()?;
        let scores = (widened(&lowered_sums(&queries, &keys, |q, k| q.matmul(k))?)? * scale)?;
        let bias = down.narrow(1, start, n)?.broadcast_add(&across.narrow(1, start, n)?)?;
        let scores = (scores + bias.reshape((b, heads, n, tokens))?)?;
        parts.push(lowered(&softmax(&scores)?, &v, |p, v| p.matmul(v))?);
    }
    Tensor::cat(&parts, 2)?.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

/// Query rows of attention computed at a time where it is composed: bounds the scores to `heads × CHUNK × tokens` floats,
/// where ViT-B's 12 × 4096 × 4096 would take 805 MB.
const CHUNK: usize = 256;

/// Inner products of `q [B, r, s, d]` with the table's rows for the distances from r to every key, `[B, r, s, keys]`.
fn distances(q: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (b, r, s, d) = q.dims4()?;
    let index: Vec<u32> = (0..r).flat_map(|i| (0..r).map(move |j| (i + r - 1 - j) as u32)).collect();
    let index = Tensor::from_vec(index, r * r, table.device())?;
    let table = table.index_select(&index, 0)?.reshape((r, r, d))?.transpose(1, 2)?.contiguous()?;
    let q = q.transpose(0, 1)?.contiguous()?.reshape((r, b * s, d))?;
    q.matmul(&table)?.reshape((r, b, s, r))?.transpose(0, 1)?.contiguous()
}

/// Layer norm over the last dimension.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if cpu::handles(&[x, w, b]) {
        return tape::apply3(&x.contiguous()?, w, b, norm::LayerNorm { eps: eps as f32 });
    }
    #[cfg(feature = "cuda")]
    if cuda::norms(x, w, b) {
        return cuda::layer_norm(x, w, b, eps, DType::F32);
    }
    let x = &widened(x)?;
    let mean = x.mean_keepdim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(w)?.broadcast_add(b)
}

/// [`layer_norm`] whose result only products read: in their type, where [`autocast`] gives one.
pub fn layer_norm_for_products(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Some(dtype), true) = (autocast_dtype(), cuda::norms(x, w, b)) {
        return cuda::layer_norm(x, w, b, eps, dtype);
    }
    layer_norm(x, w, b, eps)
}

/// SAM's `LayerNorm2d`: layer norm over the channels of `[N, C, H, W]`.
pub fn layer_norm_2d(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if cpu::handles(&[x, w, b]) {
        return tape::apply3(&x.contiguous()?, w, b, norm::LayerNorm2d { eps: eps as f32 });
    }
    #[cfg(feature = "cuda")]
    if cuda::fusible(&[x, w, b]) {
        return cuda::layer_norm_2d(x, w, b, eps);
    }
    let x = &widened(x)?;
    let mean = x.mean_keepdim(1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let per_channel = |t: &Tensor| t.reshape((1, (), 1, 1));
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(&per_channel(w)?)?
        .broadcast_add(&per_channel(b)?)
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if cpu::handles(&[x]) {
        return tape::apply1(&x.contiguous()?, pointwise::Softmax);
    }
    if x.device().is_cuda() && !x.track_op() {
        return candle_nn::ops::softmax_last_dim(&x.contiguous()?);
    }
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// `a + b` in f32, whatever their types; `b` may be broadcast along the batch.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let one_image = a.dims() != b.dims() && a.dims().get(1..) == b.dims().get(1..) && b.dim(0)? == 1;
    if cpu::handles(&[a, b]) && a.dims() == b.dims() || fusible(&[a, b]) && one_image {
        return tape::apply2(&a.contiguous()?, &b.contiguous()?, fused::Add);
    }
    #[cfg(feature = "cuda")]
    if cuda::adds(a, b) {
        return cuda::add(a, b, None, DType::F32);
    }
    widened(a)?.broadcast_add(&widened(b)?)
}

/// `x · scale + shift`.
pub fn affine(x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
    if fusible(&[x]) {
        let op = pointwise::Affine { scale: scale as f32, shift: shift as f32 };
        return apply(op, &[&x.contiguous()?]);
    }
    x.affine(scale, shift)
}

/// [`add`] whose result only products read: in their type, where [`autocast`] gives one.
pub fn add_for_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Some(dtype), true) = (autocast_dtype(), cuda::adds(a, b)) {
        return cuda::add(a, b, None, dtype);
    }
    add(a, b)
}

/// `sigmoid` of logits `[N, C, h, w]`, f32, enlarged bilinearly to `[N, C, size, size]`, as bytes: 255 for 1.
pub fn probability_bytes(logits: &Tensor, size: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::fusible(&[logits]) && logits.dtype() == DType::F32 {
        return cuda::probability_bytes(logits, size);
    }
    probability(logits, size)?.affine(255.0, 0.5)?.to_dtype(candle_core::DType::U8)
}

/// `sigmoid` of logits `[N, C, h, w]` enlarged bilinearly to `[N, C, size, size]`.
pub fn probability(logits: &Tensor, size: usize) -> Result<Tensor> {
    activate(&resize_bilinear(logits, size, size, false)?, Activation::Sigmoid)
}

/// Stretches each image of `[N, ...]` to [0, 1]: `(x - min) / (max - min + 1e-6)`.
pub fn min_max(x: &Tensor) -> Result<Tensor> {
    if fusible(&[x]) {
        return apply(pointwise::MinMax, &[&x.contiguous()?]);
    }
    let flat = x.reshape((x.dim(0)?, ()))?;
    let min = flat.min_keepdim(D::Minus1)?;
    let max = flat.max_keepdim(D::Minus1)?;
    let range = ((max - &min)? + 1e-6)?;
    flat.broadcast_sub(&min)?.broadcast_div(&range)?.reshape(x.shape())
}

/// An activation, element by element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if cpu::handles(&[x]) {
        return tape::apply1(&x.contiguous()?, activation);
    }
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::Relu => x.relu(),
        Activation::Relu6 => x.clamp(0f32, 6f32),
        Activation::LeakyRelu => (x.relu()? * 0.99)? + (x * 0.01)?,
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => candle_nn::ops::sigmoid(x),
    }
}

/// The exact GELU, `x · Φ(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Gelu)
}
