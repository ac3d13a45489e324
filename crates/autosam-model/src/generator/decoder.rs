//! AutoSAM's small decoder: backbone features to a dense prompt.

use autosam_ops::{self as ops, Activation, BatchNorm, ConvNorm};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// Published: `ups` 2 (stride 16 → 8 → 4), `hidden` 256, `channels` 256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmallDecoderConfig {
    /// Number of upsamplings by two from the stride-16 feature.
    pub ups: usize,
    /// Channels between the last two convolutions.
    pub hidden: usize,
    /// Channels of the prompt, as in SAM.
    pub channels: usize,
}

impl Default for SmallDecoderConfig {
    fn default() -> Self {
        Self { ups: 2, hidden: 256, channels: 256 }
    }
}

#[derive(Debug, Clone)]
pub struct SmallDecoder {
    ups: Vec<Up>,
    last: CnnBlock,
}

impl SmallDecoder {
    /// `features`: channels at strides 2, 4, 8, 16.
    pub fn load(cfg: &SmallDecoderConfig, features: &[usize], vb: VarBuilder) -> Result<Self> {
        if cfg.ups > 2 || features.len() < 4 {
            candle_core::bail!("the small decoder upsamples the fourth feature at most twice");
        }
        let mut ups = Vec::new();
        let mut channels = features[3];
        for i in 0..cfg.ups {
            let skip = features[2 - i];
            ups.push(Up::load(channels, skip, vb.pp(format!("up{}", i + 1)))?);
            channels = skip;
        }
        Ok(Self { ups, last: CnnBlock::load(channels, cfg.hidden, cfg.channels, vb.pp("final"))? })
    }

    /// Features at strides 2, 4, 8, 16 → the prompt in (-1, 1) at the last feature's stride.
    pub fn forward(&self, features: &[Tensor], train: bool) -> Result<Tensor> {
        let mut x = features[3].clone();
        for (i, up) in self.ups.iter().enumerate() {
            x = up.forward(&x, &features[2 - i], train)?;
        }
        self.last.forward(&x, train)
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        for up in &mut self.ups {
            up.conv1.prepare()?;
            up.conv2.fold()?;
        }
        self.last.conv1.fold()?;
        self.last.conv2.prepare()
    }
}

fn padded() -> ops::Conv2d {
    ops::Conv2d { padding: 1, ..Default::default() }
}

/// Weights and bias of a 3x3 convolution that keeps the grid.
fn conv3(i: usize, o: usize, vb: VarBuilder) -> Result<(Tensor, Tensor)> {
    Ok((vb.get((o, i, 3, 3), "weight")?, vb.get(o, "bias")?))
}

fn plain((weight, bias): (Tensor, Tensor)) -> ops::Conv {
    ops::Conv::new(weight, Some(bias), padded())
}

fn normed((weight, bias): (Tensor, Tensor), norm: BatchNorm) -> ConvNorm {
    ConvNorm::new(weight, Some(bias), norm, padded())
}

/// `UpBlockSkip`: upsample by two, concatenate the skip connection, two convolutions, batch norm, LeakyReLU.
#[derive(Debug, Clone)]
struct Up {
    conv1: ops::Conv,
    conv2: ConvNorm,
}

impl Up {
    fn load(from: usize, skip: usize, vb: VarBuilder) -> Result<Self> {
        let norm = BatchNorm::load(vb.pp("BN"), skip)?;
        Ok(Self {
            conv1: plain(conv3(from + skip, skip, vb.pp("conv1"))?),
            conv2: normed(conv3(skip, skip, vb.pp("conv2"))?, norm),
        })
    }

    fn forward(&self, x: &Tensor, skip: &Tensor, train: bool) -> Result<Tensor> {
        let (_, _, h, w) = skip.dims4()?;
        let x = ops::concat(&[&ops::resize_bilinear(x, h, w, false)?, skip])?;
        self.conv2.forward(&self.conv1.forward(&x, None)?, Some(Activation::LeakyRelu), train)
    }
}

/// `CNNBlock`: convolution, batch norm, ReLU, convolution; then the prompt's tanh. Its second batch norm is stored but
/// unused.
#[derive(Debug, Clone)]
struct CnnBlock {
    conv1: ConvNorm,
    conv2: ops::Conv,
}

impl CnnBlock {
    fn load(i: usize, hidden: usize, o: usize, vb: VarBuilder) -> Result<Self> {
        BatchNorm::load(vb.pp("BN2"), o)?;
        let norm = BatchNorm::load(vb.pp("BN1"), hidden)?;
        Ok(Self {
            conv1: normed(conv3(i, hidden, vb.pp("conv1"))?, norm),
            conv2: plain(conv3(hidden, o, vb.pp("conv2"))?),
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.conv2.forward(&self.conv1.forward(x, Some(Activation::Relu), train)?, Some(Activation::Tanh))
    }
}
