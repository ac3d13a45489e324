//! From a pretrained backbone's features to a dense prompt.

use crate::backbone::{Pyramid, PyramidConfig};
use autosam_ops::{self as ops, Activation};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PyramidDecoderConfig {
    pub pyramid: PyramidConfig,
    /// Channels of the prompt, as in SAM.
    pub prompt_channels: usize,
}

/// A pyramid, a 3x3 convolution to the prompt's channels with the published tanh, and a 1x1 convolution to auxiliary
/// logits. Training supervises these too (deep supervision, arXiv 1409.5185), so that the backbone learns before the
/// prompt does.
#[derive(Debug, Clone)]
pub struct PyramidDecoder {
    pyramid: Pyramid,
    last: ops::Conv,
    own: ops::Conv,
}

impl PyramidDecoder {
    /// `features`: channels at strides 2, 4, 8, ….
    pub fn load(cfg: &PyramidDecoderConfig, features: &[usize], vb: VarBuilder) -> Result<Self> {
        let (c, o) = (cfg.pyramid.channels, cfg.prompt_channels);
        let conv = |o: usize, k: usize, vb: VarBuilder| -> Result<ops::Conv> {
            let shape = ops::Conv2d { padding: k / 2, ..Default::default() };
            Ok(ops::Conv::new(vb.get((o, c, k, k), "weight")?, Some(vb.get(o, "bias")?), shape))
        };
        Ok(Self {
            pyramid: Pyramid::load(&cfg.pyramid, features, vb.pp("pyramid"))?,
            last: conv(o, 3, vb.pp("final.conv2"))?,
            own: conv(1, 1, vb.pp("own"))?,
        })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        self.pyramid.fold()?;
        self.last.prepare()
    }

    /// The backbone's features → the pyramid's finest, `[N, channels, h, w]`.
    pub fn features(&self, features: &[Tensor], train: bool) -> Result<Tensor> {
        self.pyramid.forward(features, train)
    }

    /// [`Self::features`] → the prompt `[N, C, h, w]` in (-1, 1).
    pub fn prompt(&self, features: &Tensor) -> Result<Tensor> {
        self.last.forward(features, Some(Activation::Tanh))
    }

    /// [`Self::features`] → the pyramid's own logits, `[N, 1, h, w]`.
    pub fn own(&self, features: &Tensor) -> Result<Tensor> {
        self.own.forward(features, None)
    }
}
