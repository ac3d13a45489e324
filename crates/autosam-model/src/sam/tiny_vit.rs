//! `TinyViT` as MobileSAM has it (mobile_sam/modeling/tiny_vit_sam.py): a convolutional stage, then three of windowed
//! attention with a depth-wise convolution between attention and MLP. Between stem and neck the layout is channels
//! last, `[N, H, W, C]`, which avoids transpositions.
//!
//! For inference with 16-bit products there are two exceptions, because masks change otherwise (docs/gpu.md).
//! Convolutions stay in f32, since each replaces the residual stream, while SAM's ViT adds to it. The other products
//! use f16 instead of bf16, since their operands are normalised and need precision rather than range.

use super::config::TinyVitConfig;
use super::layers::{LayerNorm, Linear, Neck};
use autosam_ops::{self as ops, Activation::Gelu, BatchNorm, ConvNorm, Packing};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

#[derive(Debug, Clone)]
pub struct TinyVitEncoder {
    stem1: ConvNorm,
    stem2: ConvNorm,
    convolutional: Vec<MbConv>,
    merges: Vec<Merge>,
    stages: Vec<Vec<Block>>,
    neck: Neck,
}

impl TinyVitEncoder {
    pub fn load(cfg: &TinyVitConfig, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let d = cfg.dims;
        let stem = vb.pp("patch_embed.seq");
        let layers = vb.pp("layers");
        let convolutional = (0..cfg.depths[0])
            .map(|i| MbConv::load(d[0], cfg.mbconv_expand, layers.pp(0).pp("blocks").pp(i)))
            .collect::<Result<_>>()?;
        let merges = (0..3)
            .map(|i| {
                // The last merge keeps the grid, because the embedding's stride is 16, not 32.
                let stride = if i == 2 { 1 } else { 2 };
                Merge::load(d[i], d[i + 1], stride, layers.pp(i).pp("downsample"))
            })
            .collect::<Result<_>>()?;
        let stages = (1..4)
            .map(|s| {
                (0..cfg.depths[s])
                    .map(|i| Block::load(cfg, s, layers.pp(s).pp("blocks").pp(i)))
                    .collect::<Result<_>>()
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            stem1: conv_norm(3, d[0] / 2, 3, 2, 1, stem.pp(0))?,
            stem2: conv_norm(d[0] / 2, d[0], 3, 2, 1, stem.pp(2))?,
            convolutional,
            merges,
            stages,
            neck: Neck::load(vb.pp("neck"), d[3], out_channels)?,
        })
    }

    /// Folds every batch norm into its convolution and expands the attention biases, for inference.
    pub fn fold(&mut self) -> Result<()> {
        let merges = self.merges.iter_mut().flat_map(|m| [&mut m.conv1, &mut m.conv2, &mut m.conv3]);
        let convolutional =
            self.convolutional.iter_mut().flat_map(|m| [&mut m.conv1, &mut m.conv2, &mut m.conv3]);
        let blocks = self.stages.iter_mut().flatten();
        let convs = [&mut self.stem1, &mut self.stem2].into_iter().chain(merges).chain(convolutional);
        ops::autocast(None, || convs.chain(blocks.map(|b| &mut b.local_conv)).try_for_each(ConvNorm::fold))?;
        run_products(false, || self.stages.iter_mut().flatten().try_for_each(Block::prepare))?;
        ops::autocast(None, || self.neck.prepare())
    }

    /// `[N, 3, S, S]` → `[N, out, S/16, S/16]`; `train` uses the batch's statistics in batch norm.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = run_convolutions(train, || {
            let x = self.stem1.forward(x, Some(Gelu), train)?;
            let x = ops::channels_last(&self.stem2.forward(&x, None, train)?)?;
            self.convolutional.iter().try_fold(x, |x, block| block.forward(&x, train))
        })?;
        for (merge, stage) in self.merges.iter().zip(&self.stages) {
            x = run_convolutions(train, || merge.forward(&x, train))?;
            for block in stage {
                x = run_products(train, || block.forward(&x, train))?;
            }
        }
        run_convolutions(train, || self.neck.forward(&ops::channels_first(&x)?))
    }
}

/// Runs matrix products; in inference in f16 if 16 bits are requested.
fn run_products<R>(train: bool, f: impl FnOnce() -> R) -> R {
    if train { f() } else { ops::autocast_f16(f) }
}

/// Runs convolutions, in inference in f32.
fn run_convolutions<R>(train: bool, f: impl FnOnce() -> R) -> R {
    if train { f() } else { ops::autocast(None, f) }
}

/// `Conv2d_BN`: convolution without bias, batch norm.
fn conv_norm(
    i: usize,
    o: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
    vb: VarBuilder,
) -> Result<ConvNorm> {
    let weight = vb.pp("c").get((o, i / groups, kernel, kernel), "weight")?;
    let cfg = ops::Conv2d { stride, padding: kernel / 2, groups, ..Default::default() };
    Ok(ConvNorm::new(weight, None, BatchNorm::load(vb.pp("bn"), o)?, cfg))
}

/// `MBConv`: expand, depth-wise, project, residual.
#[derive(Debug, Clone)]
struct MbConv {
    conv1: ConvNorm,
    conv2: ConvNorm,
    conv3: ConvNorm,
}

impl MbConv {
    fn load(dim: usize, expand: usize, vb: VarBuilder) -> Result<Self> {
        let hidden = dim * expand;
        Ok(Self {
            conv1: conv_norm(dim, hidden, 1, 1, 1, vb.pp("conv1"))?,
            conv2: conv_norm(hidden, hidden, 3, 1, hidden, vb.pp("conv2"))?,
            conv3: conv_norm(hidden, dim, 1, 1, 1, vb.pp("conv3"))?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = self.conv1.forward_last(x, Some(Gelu), train)?;
        let y = self.conv2.forward_last(&y, Some(Gelu), train)?;
        ops::gelu(&ops::add(&self.conv3.forward_last(&y, None, train)?, x)?)
    }
}

/// `PatchMerging`: 1x1, depth-wise 3x3 with the stride, 1x1.
#[derive(Debug, Clone)]
struct Merge {
    conv1: ConvNorm,
    conv2: ConvNorm,
    conv3: ConvNorm,
}

impl Merge {
    fn load(i: usize, o: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: conv_norm(i, o, 1, 1, 1, vb.pp("conv1"))?,
            conv2: conv_norm(o, o, 3, stride, o, vb.pp("conv2"))?,
            conv3: conv_norm(o, o, 1, 1, 1, vb.pp("conv3"))?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let x = self.conv1.forward_last(x, Some(Gelu), train)?;
        let x = self.conv2.forward_last(&x, Some(Gelu), train)?;
        self.conv3.forward_last(&x, None, train)
    }
}

/// `TinyViTBlock`: windowed attention, depth-wise convolution, MLP.
#[derive(Debug, Clone)]
struct Block {
    attn: Attention,
    local_conv: ConvNorm,
    mlp_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    window: usize,
}

impl Block {
    fn load(cfg: &TinyVitConfig, stage: usize, vb: VarBuilder) -> Result<Self> {
        let (dim, window) = (cfg.dims[stage], cfg.windows[stage]);
        let hidden = dim * cfg.mlp_ratio;
        Ok(Self {
            attn: Attention::load(dim, cfg.heads[stage], window, vb.pp("attn"))?,
            local_conv: conv_norm(dim, dim, cfg.local_conv, 1, dim, vb.pp("local_conv"))?,
            mlp_norm: LayerNorm::load(vb.pp("mlp.norm"), dim, 1e-5)?,
            fc1: Linear::load(vb.pp("mlp.fc1"), dim, hidden)?,
            fc2: Linear::load(vb.pp("mlp.fc2"), hidden, dim)?,
            window,
        })
    }

    fn prepare(&mut self) -> Result<()> {
        self.attn.bias = Some(self.attn.expand_biases()?.detach());
        self.attn.qkv.prepare_fused()?;
        // Not fc1: cuBLASLt's GELU is tanh's, which changed small networks' masks more than 16 bits do (docs/gpu.md).
        [&mut self.attn.proj, &mut self.fc1, &mut self.fc2].into_iter().try_for_each(Linear::prepare)
    }

    /// `[N, H, W, C]` → the same.
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (_, h, w, _) = x.dims4()?;
        let y = self.attn.forward(&ops::partition(x, self.window)?)?;
        // The projection works per token, so it is cheaper after the windows' padding is removed.
        let x = self.attn.proj.add_to(x, &ops::unpartition(&y, self.window, h, w)?)?;
        let x = run_convolutions(train, || self.local_conv.forward_last(&x, None, train))?;
        let y = self.fc1.forward_then(&self.mlp_norm.forward_for_products(&x)?, Gelu)?;
        self.fc2.add_to(&x, &y)
    }
}

/// Attention inside a window, with a learned bias for every distance, as in LeViT.
#[derive(Debug, Clone)]
struct Attention {
    norm: LayerNorm,
    qkv: Linear,
    proj: Linear,
    /// `[heads, distances]`.
    biases: Tensor,
    /// The column of `biases` for query i and key j, `[tokens · tokens]`.
    index: Tensor,
    /// Result of [`Self::expand_biases`] once the biases are fixed.
    bias: Option<Tensor>,
    heads: usize,
}

impl Attention {
    fn load(dim: usize, heads: usize, window: usize, vb: VarBuilder) -> Result<Self> {
        // The reference numbers distances (|dy|, |dx|) in order of appearance, row by row from the first cell, which
        // gives dy·window + dx.
        let tokens = window * window;
        let index: Vec<u32> = (0..tokens * tokens)
            .map(|i| {
                let (a, b) = (i / tokens, i % tokens);
                let dy = (a / window).abs_diff(b / window);
                let dx = (a % window).abs_diff(b % window);
                (dy * window + dx) as u32
            })
            .collect();
        Ok(Self {
            norm: LayerNorm::load(vb.pp("norm"), dim, 1e-5)?,
            qkv: Linear::load(vb.pp("qkv"), dim, 3 * dim)?,
            proj: Linear::load(vb.pp("proj"), dim, dim)?,
            biases: vb.get((heads, tokens), "attention_biases")?,
            index: Tensor::from_vec(index, tokens * tokens, vb.device())?,
            bias: None,
            heads,
        })
    }

    /// Windows `[B, w · w, C]` → the same shape, before the projection.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scale = ((x.dim(2)? / self.heads) as f64).powf(-0.5);
        let bias = match &self.bias {
            Some(bias) => bias.clone(),
            None => self.expand_biases()?,
        };
        let qkv = self.qkv.forward(&self.norm.forward_for_products(x)?)?;
        ops::self_attention(&qkv, Packing::Heads, self.heads, scale, Some(&bias))
    }

    /// A bias for every pair of tokens, `[heads, tokens, tokens]`.
    fn expand_biases(&self) -> Result<Tensor> {
        let (heads, tokens) = self.biases.dims2()?;
        self.biases.index_select(&self.index, 1)?.reshape((heads, tokens, tokens))
    }
}
