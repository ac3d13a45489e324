//! `TwoWayTransformer` (segment_anything/modeling/transformer.py): prompt tokens and image attend to each other.

use super::config::DecoderConfig;
use super::layers::{LayerNorm, Linear};
use autosam_ops::{self as ops, Activation};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Cross-attention uses half the channels.
const DOWNSAMPLE: usize = 2;

#[derive(Debug, Clone)]
pub struct TwoWayTransformer {
    layers: Vec<Layer>,
    final_attn: Attention,
    final_norm: LayerNorm,
}

impl TwoWayTransformer {
    pub fn load(cfg: &DecoderConfig, channels: usize, vb: VarBuilder) -> Result<Self> {
        let layers = (0..cfg.depth)
            .map(|i| Layer::load(cfg, channels, i == 0, vb.pp("layers").pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            final_attn: Attention::load(channels, cfg.heads, DOWNSAMPLE, vb.pp("final_attn_token_to_image"))?,
            final_norm: LayerNorm::load(vb.pp("norm_final_attn"), channels, 1e-5)?,
        })
    }

    /// Prepares the weights for inference.
    pub fn prepare(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            for attn in [&mut layer.self_attn, &mut layer.cross_to_image, &mut layer.cross_to_token] {
                attn.prepare()?;
            }
            layer.lin1.prepare_fused()?;
            layer.lin2.prepare_fused()?;
        }
        self.final_attn.prepare()
    }

    /// `tokens [N, T, C]`, `image [N, g·g, C]` and its positions `[1, g·g, C]` → both, updated.
    pub fn forward(&self, tokens: &Tensor, image: &Tensor, image_pe: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut queries, mut keys) = (tokens.clone(), image.clone());
        for layer in &self.layers {
            (queries, keys) = layer.forward(&queries, &keys, tokens, image_pe)?;
        }
        let q = ops::add_for_products(&queries, tokens)?;
        let k = ops::add_for_products(&keys, image_pe)?;
        let queries = ops::add(&queries, &self.final_attn.forward(&q, &k, &keys)?)?;
        Ok((self.final_norm.forward(&queries)?, keys))
    }
}

#[derive(Debug, Clone)]
struct Layer {
    self_attn: Attention,
    norm1: LayerNorm,
    cross_to_image: Attention,
    norm2: LayerNorm,
    lin1: Linear,
    lin2: Linear,
    norm3: LayerNorm,
    cross_to_token: Attention,
    norm4: LayerNorm,
    /// The first layer's self-attention adds no positions and replaces its input.
    first: bool,
}

impl Layer {
    fn load(cfg: &DecoderConfig, c: usize, first: bool, vb: VarBuilder) -> Result<Self> {
        let norm = |i: usize| LayerNorm::load(vb.pp(format!("norm{i}")), c, 1e-5);
        let cross = |name: &str| Attention::load(c, cfg.heads, DOWNSAMPLE, vb.pp(name));
        Ok(Self {
            self_attn: Attention::load(c, cfg.heads, 1, vb.pp("self_attn"))?,
            norm1: norm(1)?,
            cross_to_image: cross("cross_attn_token_to_image")?,
            norm2: norm(2)?,
            lin1: Linear::load(vb.pp("mlp.lin1"), c, cfg.mlp_dim)?,
            lin2: Linear::load(vb.pp("mlp.lin2"), cfg.mlp_dim, c)?,
            norm3: norm(3)?,
            cross_to_token: cross("cross_attn_image_to_token")?,
            norm4: norm(4)?,
            first,
        })
    }

    fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        token_pe: &Tensor,
        image_pe: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let queries = if self.first {
            self.self_attn.forward(queries, queries, queries)?
        } else {
            let q = ops::add_for_products(queries, token_pe)?;
            ops::add(queries, &self.self_attn.forward(&q, &q, queries)?)?
        };
        let queries = self.norm1.forward(&queries)?;

        let k = ops::add_for_products(keys, image_pe)?;
        let q = ops::add_for_products(&queries, token_pe)?;
        let queries =
            self.norm2.forward(&ops::add(&queries, &self.cross_to_image.forward(&q, &k, keys)?)?)?;

        let mlp = self.lin2.forward(&self.lin1.forward_then(&queries, Activation::Relu)?)?;
        let queries = self.norm3.forward(&ops::add(&queries, &mlp)?)?;

        let q = ops::add_for_products(&queries, token_pe)?;
        let keys = self.norm4.forward(&ops::add(keys, &self.cross_to_token.forward(&k, &q, &queries)?)?)?;
        Ok((queries, keys))
    }
}

/// Multi-head attention with separate projections, at `channels / downsample` inside.
#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn load(c: usize, heads: usize, downsample: usize, vb: VarBuilder) -> Result<Self> {
        let inner = c / downsample;
        Ok(Self {
            q_proj: Linear::load(vb.pp("q_proj"), c, inner)?,
            k_proj: Linear::load(vb.pp("k_proj"), c, inner)?,
            v_proj: Linear::load(vb.pp("v_proj"), c, inner)?,
            out_proj: Linear::load(vb.pp("out_proj"), inner, c)?,
            heads,
        })
    }

    fn prepare(&mut self) -> Result<()> {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.out_proj]
            .into_iter()
            .try_for_each(Linear::prepare_fused)
    }

    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(q)?, self.k_proj.forward(k)?, self.v_proj.forward(v)?);
        let scale = ((q.dim(2)? / self.heads) as f64).powf(-0.5);
        self.out_proj.forward(&ops::attention(&q, &k, &v, self.heads, scale)?)
    }
}
