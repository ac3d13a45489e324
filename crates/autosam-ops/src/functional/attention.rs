//! Multi-head attention: cross-attention, self-attention, and attention in the windows of a grid.

use super::norm::softmax;
use super::windows::{partition, unpartition};
use crate::Packing;
use crate::autograd::tape;
use crate::kernels::cpu::attention;
use crate::kernels::cpu::common::{fusible, handles};
use crate::kernels::cuda;
use crate::runtime::autocast::{self, autocast_dtype, in_autocast, in_autocast_f32_sums, widened};
use crate::runtime::capture::apply;
use candle_core::{Result, Tensor};

/// Multi-head attention, `softmax(scale · q kᵀ) v`: `q [B, T, heads · d]`, `k` and `v [B, S, heads · d]` → `[B, T,
/// heads · d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    if handles(&[q, k, v]) {
        let op = attention::Separate { heads, scale: scale as f32 };
        return tape::apply(op, &[&q.contiguous()?, &k.contiguous()?, &v.contiguous()?]);
    }
    if cuda::fusible(&[q, k, v]) && autocast::active() {
        let [q, k, v] = [
            autocast::to_autocast_dtype(q)?,
            autocast::to_autocast_dtype(k)?,
            autocast::to_autocast_dtype(v)?,
        ];
        if cuda::serves(q.dtype(), q.dim(2)? / heads) {
            return cuda::cross_attention(&q, &k, &v, heads, scale);
        }
    }
    let split = |x: &Tensor| -> Result<Tensor> {
        let (b, t, c) = x.dims3()?;
        x.reshape((b, t, heads, c / heads))?.transpose(1, 2)?.contiguous()
    };
    composed_attention(&split(q)?, &split(k)?, &split(v)?, scale, None)
}

/// Multi-head self-attention of `qkv [B, T, 3 · heads · d]`, with a bias `[heads, T, T]` on the scores.
pub fn self_attention(
    qkv: &Tensor,
    packing: Packing,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    if handles(&[qkv]) && bias.is_none_or(|b| handles(&[b])) {
        let op = attention::Packed { heads, packing, scale: scale as f32 };
        let qkv = qkv.contiguous()?;
        return match bias {
            Some(bias) => tape::apply(op, &[&qkv, &bias.contiguous()?]),
            None => tape::apply(op, &[&qkv]),
        };
    }
    if cuda::fusible(&[qkv]) && bias.is_none_or(|b| cuda::fusible(&[b])) && autocast::active() {
        let qkv = autocast::to_autocast_dtype(qkv)?;
        if cuda::serves(qkv.dtype(), qkv.dim(2)? / (3 * heads)) {
            return cuda::self_attention(&qkv, packing, heads, scale, bias);
        }
    }
    let [q, k, v] = unpacked(qkv, packing, heads)?;
    composed_attention(&q, &k, &v, scale, bias)
}

/// Queries, keys and values, `[B, heads, T, d]` each.
fn unpacked(qkv: &Tensor, packing: Packing, heads: usize) -> Result<[Tensor; 3]> {
    let (b, t, c) = qkv.dims3()?;
    let d = c / (3 * heads);
    let (separate, dim) = match packing {
        Packing::Parts => (qkv.reshape((b, t, 3, heads, d))?, 2),
        Packing::Heads => (qkv.reshape((b, t, heads, 3, d))?, 3),
    };
    let part = |i: usize| separate.narrow(dim, i, 1)?.squeeze(dim)?.transpose(1, 2)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

fn composed_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let scores = (widened(&in_autocast_f32_sums(q, &k.t()?, |q, k| q.matmul(k))?)? * scale)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(&bias.unsqueeze(0)?)?,
        None => scores,
    };
    in_autocast(&softmax(&scores)?, v, |p, v| p.matmul(v))?.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

/// Whether [`windowed_attention`] of tokens `x` with `d` channels per head has a kernel that reads windows of `h × w`
/// directly from the grid: on a GPU, inside [`autocast`].
pub fn finds_windows(x: &Tensor, d: usize, (h, w): (usize, usize)) -> bool {
    autocast_dtype().is_some_and(|dtype| cuda::finds_windows(x, dtype, d, (h, w)))
}

/// [`relative_attention`] in each window of `h × w` tokens of a grid `qkv [N, H, W, 3 · heads · d]` → `[N, H, W, heads
/// · d]`. A window's tokens beyond the grid are `padding [3 · heads · d]`, or zeros if it is `None`.
pub fn windowed_attention(
    qkv: &Tensor,
    padding: Option<&Tensor>,
    heads: usize,
    scale: f64,
    (h, w): (usize, usize),
    (rows, cols): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let (n, height, width, c) = qkv.dims4()?;
    let (flat, sides) = (qkv.reshape((n, height * width, c))?, ((h, w), (height, width)));
    if let Some(y) = fused_relative_attention(&flat, padding, heads, scale, sides, (rows, cols))? {
        return y.reshape((n, height, width, c / 3));
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

/// Runs the GPU kernel of [`windowed_attention`] for windows and a grid of these sizes; `None` if it does not apply.
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
    let qkv = autocast::to_autocast_dtype(qkv)?;
    let padding = padding.map(autocast::to_autocast_dtype).transpose()?;
    let (rows, cols) = (rows.to_dtype(qkv.dtype())?, cols.to_dtype(qkv.dtype())?);
    cuda::windowed_attention(&qkv, padding.as_ref(), heads, scale, (window, grid), (&rows, &cols)).map(Some)
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
    if let Some(y) = fused_relative_attention(qkv, None, heads, scale, ((h, w), (h, w)), (rows, cols))? {
        return Ok(y);
    }
    // Relative positions are computed in f32 whatever the type of the products.
    let qkv = widened(qkv)?;
    let [q, k, v] = unpacked(&qkv, Packing::Parts, heads)?;
    let (rows, cols) = (&widened(rows)?, &widened(cols)?);
    let (b, _, tokens, d) = q.dims4()?;
    let grid = q.reshape((b * heads, h, w, d))?;
    let transposed = grid.transpose(1, 2)?.contiguous()?;
    let down = distances(&grid, rows)?.reshape((b * heads, tokens, h, 1))?;
    let across =
        distances(&transposed, cols)?.transpose(1, 2)?.contiguous()?.reshape((b * heads, tokens, 1, w))?;
    let keys = k.t()?;
    let mut parts = Vec::with_capacity(tokens.div_ceil(CHUNK));
    for start in (0..tokens).step_by(CHUNK) {
        let n = CHUNK.min(tokens - start);
        let queries = q.narrow(2, start, n)?.contiguous()?;
        let scores = (widened(&in_autocast_f32_sums(&queries, &keys, |q, k| q.matmul(k))?)? * scale)?;
        let bias = down.narrow(1, start, n)?.broadcast_add(&across.narrow(1, start, n)?)?;
        let scores = (scores + bias.reshape((b, heads, n, tokens))?)?;
        parts.push(in_autocast(&softmax(&scores)?, &v, |p, v| p.matmul(v))?);
    }
    Tensor::cat(&parts, 2)?.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

/// Query rows computed at a time by the composed attention. This bounds the scores to `heads × CHUNK × tokens` floats,
/// while ViT-B's 12 × 4096 × 4096 would take 805 MB.
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
