//! `ImageEncoderViT` (segment_anything/modeling/image_encoder.py).

use super::config::{PATCH, VitConfig};
use super::layers::{Conv, LayerNorm, Linear, Neck};
use autosam_ops::{self as ops, Activation};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

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

    /// Prepares the weights for inference.
    pub fn prepare(&mut self) -> Result<()> {
        self.patch_embed.prepare()?;
        for block in &mut self.blocks {
            for linear in [&mut block.attn.qkv, &mut block.lin1] {
                linear.prepare_fused()?;
            }
            for linear in [&mut block.attn.proj, &mut block.lin2] {
                linear.prepare()?;
            }
            for table in [&mut block.attn.rel_pos_h, &mut block.attn.rel_pos_w] {
                *table = ops::prepared(table)?;
            }
        }
        self.neck.prepare()
    }

    /// `[N, 3, S, S]` → `[N, out, S/16, S/16]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = ops::channels_last(&self.patch_embed.forward(x)?)?;
        let mut x = ops::add(&x, &self.pos_embed)?;
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
        let y = self.attn.forward(&self.norm1.forward_for_products(x)?, self.window)?;
        // The projection works per token, so it is cheaper after the windows' padding is removed.
        let x = self.attn.proj.add_to(x, &y)?;
        let y = self.lin1.forward_then(&self.norm2.forward_for_products(&x)?, Activation::Gelu)?;
        self.lin2.add_to(&x, &y)
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

    /// `[N, H, W, C]` → the same shape, before the projection; in windows of `window` × `window` tokens, or the whole
    /// grid for 0.
    fn forward(&self, x: &Tensor, window: usize) -> Result<Tensor> {
        let (n, height, width, c) = x.dims4()?;
        let (h, w) = if window == 0 { (height, width) } else { (window, window) };
        let scale = ((c / self.heads) as f64).powf(-0.5);
        let (rows, cols) = (relative_table(&self.rel_pos_h, h)?, relative_table(&self.rel_pos_w, w)?);
        // The windows' padding is zero after the norm, as in SAM, so padded cells take part in attention.
        if ops::finds_windows(x, c / self.heads, (h, w)) {
            let (qkv, padding) = (self.qkv.forward(x)?, self.qkv.bias());
            return ops::windowed_attention(&qkv, padding, self.heads, scale, (h, w), (&rows, &cols));
        }
        let x = if window == 0 { ops::reshape(x, (n, h * w, c))? } else { ops::partition(x, window)? };
        let qkv = self.qkv.forward(&x)?;
        let y = ops::relative_attention(&qkv, self.heads, scale, (h, w), (&rows, &cols))?;
        if window == 0 { ops::reshape(&y, (n, h, w, c)) } else { ops::unpartition(&y, window, height, width) }
    }
}

/// `get_rel_pos`: the table for a side of `size`, `[2 · size - 1, d]`; a table for another size is resized linearly.
fn relative_table(rel_pos: &Tensor, size: usize) -> Result<Tensor> {
    let (len, d) = rel_pos.dims2()?;
    let wanted = 2 * size - 1;
    if len == wanted {
        return Ok(rel_pos.clone());
    }
    let column = rel_pos.t()?.contiguous()?.reshape((1, d, 1, len))?;
    ops::resize_bilinear(&column, 1, wanted, false)?.reshape((d, wanted))?.t()?.contiguous()
}
