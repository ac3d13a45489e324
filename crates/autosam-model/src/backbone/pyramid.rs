//! A feature pyramid (arXiv 1612.03144) from coarse to fine. The finest level is the result.

use autosam_ops::{self as ops, Activation::Relu, BatchNorm, ConvNorm};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PyramidConfig {
    /// Channels of every level.
    pub channels: usize,
    /// Stride of the result: 4, 8 or 16.
    pub stride: usize,
}

impl PyramidConfig {
    /// Index of the finest level's feature among those at strides 2, 4, 8, ….
    fn finest(&self) -> usize {
        self.stride.ilog2() as usize - 1
    }
}

/// Lateral 1x1 convolutions. From level to level the result is upsampled by two, added, and passed through a 3x3
/// convolution with batch norm and ReLU.
#[derive(Debug, Clone)]
pub struct Pyramid {
    /// From the finest level to the coarsest.
    lateral: Vec<ConvNorm>,
    smooth: Vec<ConvNorm>,
    finest: usize,
}

impl Pyramid {
    /// `features`: channels at strides 2, 4, 8, ….
    pub fn load(cfg: &PyramidConfig, features: &[usize], vb: VarBuilder) -> Result<Self> {
        if ![4, 8, 16].contains(&cfg.stride) || cfg.finest() + 1 > features.len() {
            candle_core::bail!("a pyramid must end at stride 4, 8 or 16, not {}", cfg.stride);
        }
        let used = &features[cfg.finest()..];
        let conv = |i: usize, kernel: usize, vb: VarBuilder| -> Result<ConvNorm> {
            let weight = vb.get((cfg.channels, i, kernel, kernel), "weight")?;
            let norm = BatchNorm::load(vb.pp("norm"), cfg.channels)?;
            let shape = ops::Conv2d { padding: kernel / 2, ..Default::default() };
            Ok(ConvNorm::new(weight, None, norm, shape))
        };
        let lateral = used
            .iter()
            .enumerate()
            .map(|(i, c)| conv(*c, 1, vb.pp("lateral").pp(i)))
            .collect::<Result<_>>()?;
        let smooth = (1..used.len())
            .map(|i| conv(cfg.channels, 3, vb.pp("smooth").pp(i - 1)))
            .collect::<Result<_>>()?;
        Ok(Self { lateral, smooth, finest: cfg.finest() })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        self.lateral.iter_mut().chain(&mut self.smooth).try_for_each(ConvNorm::fold)
    }

    /// Features at strides 2, 4, 8, …, `[N, H, W, C]` → the finest level, `[N, channels, H, W]`.
    pub fn forward(&self, features: &[Tensor], train: bool) -> Result<Tensor> {
        let level = |i: usize| {
            ops::channels_first(&self.lateral[i].forward_last(&features[self.finest + i], None, train)?)
        };
        let mut x = level(self.lateral.len() - 1)?;
        for i in (0..self.smooth.len()).rev() {
            let fine = level(i)?;
            let (_, _, h, w) = fine.dims4()?;
            let sum = ops::add(&ops::resize_bilinear(&x, h, w, false)?, &fine)?;
            x = self.smooth[i].forward(&sum, Some(Relu), train)?;
        }
        Ok(x)
    }
}
