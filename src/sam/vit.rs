//! `ImageEncoderViT` (segment_anything/modeling/image_encoder.py).

use super::config::{PATCH, VitConfig};
use super::layers::{Conv, LayerNorm, Linear, Neck, partition, unpartition};
use crate::ops::{self, Activation};
use candle_core::{D, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;

/// Query rows of attention computed at a time: bounds the scores to `heads × CHUNK × tokens` floats, where
/// ViT-B's 12 × 4096 × 4096 would take 805 MB.
const CHUNK: usize = 256;

#[derive(Debug, Clone)]
pub struct VitEncoder {
    patch_embed: Conv,
    /// `[1, g, g, C]`.
    pos_embed: Tensor,
    blocks: Vec<Block>,
    neck: Neck,
}

impl VitEncoder {
    pub fn load(cfg: &VitConfig, image_size: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let (dim, grid) = (cfg.embed_dim, image_size / PATCH);
        let stride = ops::Conv2d { stride: PATCH, ..Default::default() };
        let blocks = (0..cfg.depth)
            .map(|i| {
                let window = if cfg.global_blocks.contains(&i) { 0 } else { cfg.window };
                Block::load(cfg, window, grid, vb.pp("blocks").pp(i))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            patch_embed: Conv::load(vb.pp("patch_embed.proj"), 3, dim, PATCH, stride, true)?,
            pos_embed: vb.get((1, grid, grid, dim), "pos_embed")?,
            blocks,
            neck: Neck::load(vb.pp("neck"), dim, out_channels)?,
        })
    }

    /// `[N, 3, S, S]` → `[N, out, S/16, S/16]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = ops::channels_last(&self.patch_embed.forward(x)?)?;
        let mut x = x.broadcast_add(&self.pos_embed)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.neck.forward(&ops::channels_first(&x)?)
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    lin1: Linear,
    lin2: Linear,
    window: usize,
}

impl Block {
    fn load(cfg: &VitConfig, window: usize, grid: usize, vb: VarBuilder) -> Result<Self> {
        let (dim, hidden) = (cfg.embed_dim, cfg.embed_dim * cfg.mlp_ratio);
        let side = if window == 0 { grid } else { window };
        Ok(Self {
            norm1: LayerNorm::load(vb.pp("norm1"), dim, 1e-6)?,
            attn: Attention::load(cfg, side, vb.pp("attn"))?,
            norm2: LayerNorm::load(vb.pp("norm2"), dim, 1e-6)?,
            lin1: Linear::load(vb.pp("mlp.lin1"), dim, hidden)?,
            lin2: Linear::load(vb.pp("mlp.lin2"), hidden, dim)?,
            window,
        })
    }

    /// `[N, H, W, C]` → the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, h, w, _) = x.dims4()?;
        let y = self.norm1.forward(x)?;
        let y = if self.window == 0 {
            self.attn.forward(&y)?
        } else {
            // The windows' padding is zero after the norm, as in SAM: padded cells take part in attention.
            unpartition(&self.attn.forward(&partition(&y, self.window)?)?, self.window, h, w)?
        };
        let x = (x + y)?;
        let y = self.lin2.forward(&self.lin1.forward_then(&self.norm2.forward(&x)?, Activation::Gelu)?)?;
        x + y
    }
}

/// Multi-head attention with decomposed relative positions (arXiv 2112.01526).
#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    /// `[2·side - 1, head_dim]`.
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    heads: usize,
}

impl Attention {
    fn load(cfg: &VitConfig, side: usize, vb: VarBuilder) -> Result<Self> {
        let (dim, head_dim) = (cfg.embed_dim, cfg.embed_dim / cfg.heads);
        Ok(Self {
            qkv: Linear::load(vb.pp("qkv"), dim, 3 * dim)?,
            proj: Linear::load(vb.pp("proj"), dim, dim)?,
            rel_pos_h: vb.get((2 * side - 1, head_dim), "rel_pos_h")?,
            rel_pos_w: vb.get((2 * side - 1, head_dim), "rel_pos_w")?,
            heads: cfg.heads,
        })
    }

    /// `[B, h, w, C]` → the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let (tokens, head_dim) = (h * w, c / self.heads);
        let scale = (head_dim as f64).powf(-0.5);
        // [3, B·heads, tokens, head_dim]
        let qkv = self
            .qkv
            .forward(x)?
            .reshape((b, tokens, 3, self.heads, head_dim))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?
            .reshape((3, b * self.heads, tokens, head_dim))?;
        let (q, k, v) = (qkv.i(0)?.contiguous()?, qkv.i(1)?.contiguous()?, qkv.i(2)?.contiguous()?);
        let keys = k.t()?;
        // Bias of query (y, x) towards key rows and columns, [B·heads, tokens, h] and [.., w].
        let q4 = q.reshape((b * self.heads, h, w, head_dim))?;
        let rows = relative_bias(&q4, &relative_table(&self.rel_pos_h, h)?)?;
        let q4t = q4.transpose(1, 2)?.contiguous()?;
        let cols = relative_bias(&q4t, &relative_table(&self.rel_pos_w, w)?)?.transpose(1, 2)?;
        let rows = rows.reshape((b * self.heads, tokens, h, 1))?;
        let cols = cols.contiguous()?.reshape((b * self.heads, tokens, 1, w))?;
        let mut parts = Vec::with_capacity(tokens.div_ceil(CHUNK));
        for start in (0..tokens).step_by(CHUNK) {
            let n = CHUNK.min(tokens - start);
            let scores = (q.narrow(1, start, n)?.contiguous()?.matmul(&keys)? * scale)?;
            let bias = rows.narrow(1, start, n)?.broadcast_add(&cols.narrow(1, start, n)?)?;
            let scores = (scores + bias.reshape((b * self.heads, n, tokens))?)?;
            parts.push(ops::softmax(&scores)?.matmul(&v)?);
        }
        let y = Tensor::cat(&parts, 1)?
            .reshape((b, self.heads, tokens, head_dim))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((b, h, w, c))?;
        self.proj.forward(&y)
    }
}

/// `q [B, r, s, d]` against `table [r, r, d]` → `einsum("brsd,rkd->brsk")`.
fn relative_bias(q: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (b, r, s, d) = q.dims4()?;
    let q = q.transpose(0, 1)?.contiguous()?.reshape((r, b * s, d))?;
    let k = table.dim(1)?;
    q.matmul(&table.transpose(1, 2)?.contiguous()?)?.reshape((r, b, s, k))?.transpose(0, 1)?.contiguous()
}

/// `get_rel_pos`: for `size` queries and keys, row `i - j` of `rel_pos`, `[size, size, d]`; a table made for
/// another size is resized linearly first.
fn relative_table(rel_pos: &Tensor, size: usize) -> Result<Tensor> {
    let (len, d) = rel_pos.dims2()?;
    let wanted = 2 * size - 1;
    let table = if len == wanted {
        rel_pos.clone()
    } else {
        let column = rel_pos.t()?.contiguous()?.reshape((1, d, 1, len))?;
        ops::resize_bilinear(&column, 1, wanted, false)?.reshape((d, wanted))?.t()?.contiguous()?
    };
    let index: Vec<u32> = (0..size).flat_map(|i| (0..size).map(move |j| (i + size - 1 - j) as u32)).collect();
    let index = Tensor::from_vec(index, size * size, rel_pos.device())?;
    table.index_select(&index, 0)?.reshape((size, size, table.dim(D::Minus1)?))
}
