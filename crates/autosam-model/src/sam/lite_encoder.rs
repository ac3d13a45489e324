//! EfficientNet-Lite as SAM's image encoder: a pyramid combines its features at the embedding's stride, followed by
//! SAM's neck.

use super::config::LiteEncoderConfig;
use super::layers::Neck;
use crate::backbone::{EfficientNetLite, Pyramid};
use autosam_ops as ops;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

#[derive(Debug, Clone)]
pub struct LiteEncoder {
    backbone: EfficientNetLite,
    pyramid: Pyramid,
    neck: Neck,
}

impl LiteEncoder {
    pub fn load(cfg: &LiteEncoderConfig, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            backbone: EfficientNetLite::load(&cfg.backbone, vb.pp("backbone"))?,
            pyramid: Pyramid::load(&cfg.pyramid, &cfg.backbone.feature_channels(), vb.pp("pyramid"))?,
            neck: Neck::load(vb.pp("neck"), cfg.pyramid.channels, out_channels)?,
        })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        ops::autocast(None, || {
            self.backbone.fold()?;
            self.pyramid.fold()?;
            self.neck.prepare()
        })
    }

    pub fn backbone(&mut self) -> &mut EfficientNetLite {
        &mut self.backbone
    }

    /// `[N, 3, S, S]` → `[N, out, g, g]`; `train` uses the batch's statistics in batch norms.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let embedding = || {
            let features = self.backbone.features(x, usize::MAX, train)?;
            self.neck.forward(&self.pyramid.forward(&features, train)?)
        };
        // Inference is in f32 whatever the type of products, as for TinyViT's convolutions, because masks change
        // otherwise.
        if train { embedding() } else { ops::autocast(None, embedding) }
    }
}
