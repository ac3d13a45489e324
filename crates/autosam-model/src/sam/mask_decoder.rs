//! `MaskDecoder` (segment_anything/modeling/mask_decoder.py), batched: one prompt per image.

use super::config::SamConfig;
use super::layers::{LayerNorm, Linear};
use super::transformer::TwoWayTransformer;
use autosam_ops::{self as ops, Activation};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

#[derive(Debug, Clone)]
pub struct MaskDecoder {
    transformer: TwoWayTransformer,
    iou_token: Tensor,
    mask_tokens: Tensor,
    upscale1: (Tensor, Tensor),
    upscale_norm: LayerNorm,
    upscale2: (Tensor, Tensor),
    hypernetworks: Vec<Mlp>,
    iou_head: Mlp,
}

impl MaskDecoder {
    pub fn load(cfg: &SamConfig, vb: VarBuilder) -> Result<Self> {
        let (c, d) = (cfg.embed_channels, &cfg.decoder);
        let masks = d.multimask_outputs + 1;
        let up = vb.pp("output_upscaling");
        let transposed = |vb: VarBuilder, i: usize, o: usize| -> Result<(Tensor, Tensor)> {
            Ok((vb.get((i, o, 2, 2), "weight")?, vb.get(o, "bias")?))
        };
        let hypernetworks = (0..masks)
            .map(|i| Mlp::load(c, c, c / 8, 3, vb.pp("output_hypernetworks_mlps").pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            transformer: TwoWayTransformer::load(d, c, vb.pp("transformer"))?,
            iou_token: vb.pp("iou_token").get((1, c), "weight")?,
            mask_tokens: vb.pp("mask_tokens").get((masks, c), "weight")?,
            upscale1: transposed(up.pp("0"), c, c / 4)?,
            upscale_norm: LayerNorm::load(up.pp("1"), c / 4, 1e-6)?,
            upscale2: transposed(up.pp("3"), c / 4, c / 8)?,
            hypernetworks,
            iou_head: Mlp::load(c, d.iou_hidden, masks, d.iou_depth, vb.pp("iou_prediction_head"))?,
        })
    }

    /// Prepares the weights for inference.
    pub fn prepare(&mut self) -> Result<()> {
        ops::autocast_f16(|| {
            self.transformer.prepare()?;
            self.hypernetworks
                .iter_mut()
                .chain([&mut self.iou_head])
                .flat_map(|mlp| &mut mlp.0)
                .try_for_each(Linear::prepare_fused)
        })
    }

    /// Low-resolution logits `[N, M, 4g, 4g]` and predicted overlaps `[N, M]`; M is the number of ambiguous masks with
    /// `multimask`, otherwise 1 (the first token's).
    ///
    /// `embeddings [N, C, g, g]`, `image_pe [1, C, g, g]`, `sparse [N, T, C]` (T may be 0), `dense [N, C, g, g]`.
    pub fn forward(
        &self,
        embeddings: &Tensor,
        image_pe: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
        multimask: bool,
    ) -> Result<(Tensor, Tensor)> {
        self.autocast_f16(embeddings, dense, || {
            let (tokens, upscaled) = self.attend(embeddings, image_pe, sparse, dense)?;
            let masks = self.hypernetworks.len();
            let chosen = if multimask { 1..masks } else { 0..1 };
            let logits = self.masks(&tokens, &upscaled, chosen.clone())?;
            let iou = self.iou_head.forward(&ops::token(&tokens, 0)?)?;
            Ok((logits, iou.narrow(1, chosen.start, chosen.len())?))
        })
    }

    /// [`Self::forward`]'s single mask, `[N, 1, 4g, 4g]`, and the predicted overlaps of all masks, `[N, M]`, its own first.
    pub fn mask_and_overlaps(
        &self,
        embeddings: &Tensor,
        image_pe: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        self.autocast_f16(embeddings, dense, || {
            let (tokens, upscaled) = self.attend(embeddings, image_pe, sparse, dense)?;
            Ok((self.masks(&tokens, &upscaled, 0..1)?, self.iou_head.forward(&ops::token(&tokens, 0)?)?))
        })
    }

    /// Only [`Self::forward`]'s single mask, `[N, 1, 4g, 4g]`, which AutoSAM uses.
    pub fn mask_logits(
        &self,
        embeddings: &Tensor,
        image_pe: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
    ) -> Result<Tensor> {
        self.autocast_f16(embeddings, dense, || {
            let (tokens, upscaled) = self.attend(embeddings, image_pe, sparse, dense)?;
            self.masks(&tokens, &upscaled, 0..1)
        })
    }

    /// Tokens after attention `[N, 1 + masks + T, C]` and image features at 4g × 4g, `[N, C/8, 4g, 4g]`.
    fn attend(
        &self,
        embeddings: &Tensor,
        image_pe: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (n, c, h, w) = embeddings.dims4()?;
        let count = 1 + self.mask_tokens.dim(0)?;
        let output = ops::concat(&[
            &self.iou_token.reshape((1, 1, 1, c))?,
            &self.mask_tokens.reshape((1, count - 1, 1, c))?,
        ])?;
        let output = ops::reshape(&ops::concat(&vec![&output; n])?, (n, count, c))?;
        let tokens = if sparse.dim(1)? == 0 { output } else { Tensor::cat(&[&output, sparse], 1)? };
        let flat = |t: &Tensor| ops::reshape(&ops::channels_last(t)?, (t.dim(0)?, h * w, c));
        let (tokens, image) =
            self.transformer.forward(&tokens, &flat(&ops::add(embeddings, dense)?)?, &flat(image_pe)?)?;
        let image = ops::channels_first(&ops::reshape(&image, (n, h, w, c))?)?;
        let x = ops::conv_transpose2d(&image, &self.upscale1.0, Some(&self.upscale1.1), 2)?;
        let x = ops::gelu(&self.upscale_norm.forward_2d(&x)?)?;
        let x = ops::conv_transpose2d_then(
            &x,
            &self.upscale2.0,
            Some(&self.upscale2.1),
            2,
            Some(Activation::Gelu),
        )?;
        Ok((tokens, x))
    }

    /// [`ops::autocast_f16`] for inference, because bf16 has too little precision for small masks (docs/gpu.md).
    /// Gradients need bf16's range.
    fn autocast_f16<R>(&self, embeddings: &Tensor, dense: &Tensor, f: impl FnOnce() -> R) -> R {
        let trained = [embeddings, dense, &self.iou_token].iter().any(|t| t.track_op());
        if trained { f() } else { ops::autocast_f16(f) }
    }

    fn masks(&self, tokens: &Tensor, upscaled: &Tensor, which: std::ops::Range<usize>) -> Result<Tensor> {
        let (n, c, h, w) = upscaled.dims4()?;
        let weights = which
            .clone()
            .map(|i| self.hypernetworks[i].forward(&ops::token(tokens, 1 + i)?)?.unsqueeze(1))
            .collect::<Result<Vec<_>>>()?;
        let masks = ops::matmul(&Tensor::cat(&weights, 1)?, &upscaled.reshape((n, c, h * w))?)?;
        masks.reshape((n, which.len(), h, w))
    }
}

/// Linear layers with ReLU between.
#[derive(Debug, Clone)]
struct Mlp(Vec<Linear>);

impl Mlp {
    fn load(inputs: usize, hidden: usize, outputs: usize, depth: usize, vb: VarBuilder) -> Result<Self> {
        let layers = (0..depth)
            .map(|i| {
                let from = if i == 0 { inputs } else { hidden };
                let to = if i + 1 == depth { outputs } else { hidden };
                Linear::load(vb.pp("layers").pp(i), from, to)
            })
            .collect::<Result<_>>()?;
        Ok(Self(layers))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.0.iter().enumerate() {
            x = if i + 1 == self.0.len() {
                layer.forward(&x)?
            } else {
                layer.forward_then(&x.contiguous()?, Activation::Relu)?
            };
        }
        Ok(x)
    }
}
