//! HarDNet (arXiv 1909.00948; github.com/PingoLH/Pytorch-HarDNet), the generator's backbone.

use autosam_ops::{self as ops, Activation, BatchNorm, ConvNorm};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// Widths and depths. Block `i` has `channels[i]` outputs; the grid is halved after it if `downsample[i]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HarDNetConfig {
    /// Depth-wise separable layers (the "ds" variants); they downsample by convolution, not by pooling.
    pub depth_wise: bool,
    /// Channels of the two stem convolutions, at strides 2 and 2.
    pub stem: [usize; 2],
    /// Factor by which a layer widens for each additional link.
    pub multiplier: f64,
    pub growth: Vec<usize>,
    pub layers: Vec<usize>,
    pub channels: Vec<usize>,
    pub downsample: Vec<bool>,
    /// Whether a dropout layer takes an index (without weights) before the last 1x1 convolution.
    pub dropout_slot: bool,
}

impl HarDNetConfig {
    pub fn hardnet68() -> Self {
        Self {
            depth_wise: false,
            stem: [32, 64],
            multiplier: 1.7,
            growth: vec![14, 16, 20, 40, 160],
            layers: vec![8, 16, 16, 16, 4],
            channels: vec![128, 256, 320, 640, 1024],
            downsample: vec![true, false, true, true, false],
            dropout_slot: false,
        }
    }

    pub fn hardnet85() -> Self {
        Self {
            depth_wise: false,
            stem: [48, 96],
            multiplier: 1.7,
            growth: vec![24, 24, 28, 36, 48, 256],
            layers: vec![8, 16, 16, 16, 16, 4],
            channels: vec![192, 256, 320, 480, 720, 1280],
            downsample: vec![true, false, true, false, true, false],
            dropout_slot: true,
        }
    }

    /// As AutoSAM truncates it: no block at stride 32.
    pub fn hardnet39ds() -> Self {
        Self {
            depth_wise: true,
            stem: [24, 48],
            multiplier: 1.6,
            growth: vec![16, 20, 64],
            layers: vec![4, 16, 8],
            channels: vec![96, 320, 640],
            downsample: vec![true, true, false],
            dropout_slot: false,
        }
    }

    /// Channels of the features at strides 2, 4, 8, …, which are taken just before each halving and at the end.
    pub fn feature_channels(&self) -> Vec<usize> {
        let last = self.channels.len() - 1;
        let blocks = self.channels.iter().zip(&self.downsample).enumerate();
        let mut out = vec![self.stem[1]];
        out.extend(blocks.filter(|(i, (_, down))| **down || *i == last).map(|(_, (c, _))| *c));
        out
    }
}

/// One entry of `base`, in its order.
#[derive(Debug, Clone)]
enum Step {
    Conv(ConvLayer),
    Block(Block),
    /// Halves the grid; its input is a feature.
    Down(Down),
}

#[derive(Debug, Clone)]
pub struct HarDNet {
    steps: Vec<Step>,
}

impl HarDNet {
    pub fn load(cfg: &HarDNetConfig, vb: VarBuilder) -> Result<Self> {
        let base = vb.pp("base");
        let [first, second] = cfg.stem;
        let second_kernel = if cfg.depth_wise { 1 } else { 3 };
        let down = |at: usize, channels: usize, pool: Down| -> Result<Step> {
            Ok(Step::Down(if cfg.depth_wise {
                Down::Conv(DepthWise::load(channels, 2, base.pp(at))?)
            } else {
                pool
            }))
        };
        let mut steps = vec![
            Step::Conv(ConvLayer::load(3, first, 3, 2, base.pp(0))?),
            Step::Conv(ConvLayer::load(first, second, second_kernel, 1, base.pp(1))?),
            down(2, second, Down::Pool { kernel: 3, padding: 1 })?,
        ];
        // The dropout layer shifts the index in `base` against that in `steps`.
        let mut at = steps.len();
        let mut channels = second;
        for i in 0..cfg.layers.len() {
            let block = Block::load(cfg, i, channels, base.pp(at))?;
            let out = block.out_channels;
            steps.push(Step::Block(block));
            at += 1;
            if cfg.dropout_slot && i + 1 == cfg.layers.len() {
                at += 1;
            }
            steps.push(Step::Conv(ConvLayer::load(out, cfg.channels[i], 1, 1, base.pp(at))?));
            at += 1;
            channels = cfg.channels[i];
            if cfg.downsample[i] {
                steps.push(down(at, channels, Down::Pool { kernel: 2, padding: 0 })?);
                at += 1;
            }
        }
        Ok(Self { steps })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        for step in &mut self.steps {
            match step {
                Step::Conv(ConvLayer(conv)) | Step::Down(Down::Conv(DepthWise(conv))) => conv.fold()?,
                Step::Down(Down::Pool { .. }) => {}
                Step::Block(block) => {
                    for (layer, _) in &mut block.layers {
                        match layer {
                            Layer::Plain(ConvLayer(conv)) => conv.fold()?,
                            Layer::Separable(ConvLayer(point), DepthWise(depth)) => {
                                point.fold()?;
                                depth.fold()?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The first `count` features at strides 2, 4, 8, …. Later layers are not computed.
    pub fn features(&self, x: &Tensor, count: usize, train: bool) -> Result<Vec<Tensor>> {
        let mut features = Vec::new();
        let mut x = x.clone();
        for step in &self.steps {
            match step {
                Step::Conv(conv) => x = conv.forward(&x, train)?,
                Step::Block(block) => x = block.forward(&x, train)?,
                Step::Down(down) => {
                    features.push(x.clone());
                    if features.len() == count {
                        return Ok(features);
                    }
                    x = down.forward(&x, train)?;
                }
            }
        }
        features.push(x);
        Ok(features)
    }
}

#[derive(Debug, Clone)]
enum Down {
    Pool { kernel: usize, padding: usize },
    Conv(DepthWise),
}

impl Down {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Pool { kernel, padding } => ops::max_pool2d(x, *kernel, 2, *padding),
            Self::Conv(conv) => conv.forward(x, train),
        }
    }
}

/// `ConvLayer`: convolution, batch norm, ReLU6.
#[derive(Debug, Clone)]
struct ConvLayer(ConvNorm);

impl ConvLayer {
    fn load(i: usize, o: usize, kernel: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.pp("conv").get((o, i, kernel, kernel), "weight")?;
        let cfg = ops::Conv2d { stride, padding: kernel / 2, ..Default::default() };
        Ok(Self(ConvNorm::new(weight, None, BatchNorm::load(vb.pp("norm"), o)?, cfg)))
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.0.forward(x, Some(Activation::Relu6), train)
    }
}

/// `DWConvLayer`: depth-wise 3x3 and batch norm, no activation.
#[derive(Debug, Clone)]
struct DepthWise(ConvNorm);

impl DepthWise {
    fn load(channels: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.pp("dwconv").get((channels, 1, 3, 3), "weight")?;
        let cfg = ops::Conv2d { stride, padding: 1, groups: channels, ..Default::default() };
        Ok(Self(ConvNorm::new(weight, None, BatchNorm::load(vb.pp("norm"), channels)?, cfg)))
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.0.forward(x, None, train)
    }
}

/// A layer of a block: a plain convolution, or 1x1 and depth-wise (`CombConvLayer`).
#[derive(Debug, Clone)]
enum Layer {
    Plain(ConvLayer),
    Separable(ConvLayer, DepthWise),
}

/// `HarDBlock`: the inputs of layer k are the outputs of layers k - 2^n for all 2^n that divide k.
#[derive(Debug, Clone)]
struct Block {
    layers: Vec<(Layer, Vec<usize>)>,
    out_channels: usize,
}

impl Block {
    fn load(cfg: &HarDNetConfig, index: usize, in_channels: usize, vb: VarBuilder) -> Result<Self> {
        let (growth, count) = (cfg.growth[index], cfg.layers[index]);
        let mut layers = Vec::with_capacity(count);
        let mut out_channels = 0;
        for i in 0..count {
            let (out, links) = link(i + 1, in_channels, growth, cfg.multiplier);
            let inputs: usize = links.iter().map(|l| link(*l, in_channels, growth, cfg.multiplier).0).sum();
            let vb = vb.pp("layers").pp(i);
            let layer = if cfg.depth_wise {
                Layer::Separable(
                    ConvLayer::load(inputs, out, 1, 1, vb.pp("layer1"))?,
                    DepthWise::load(out, 1, vb.pp("layer2"))?,
                )
            } else {
                Layer::Plain(ConvLayer::load(inputs, out, 3, 1, vb)?)
            };
            layers.push((layer, links));
            if i % 2 == 0 || i + 1 == count {
                out_channels += out;
            }
        }
        Ok(Self { layers, out_channels })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut outputs = vec![x.clone()];
        for (layer, links) in &self.layers {
            let input = match links.as_slice() {
                [one] => outputs[*one].clone(),
                many => ops::concat(&many.iter().map(|l| &outputs[*l]).collect::<Vec<_>>())?,
            };
            outputs.push(match layer {
                Layer::Plain(conv) => conv.forward(&input, train)?,
                Layer::Separable(point, depth) => depth.forward(&point.forward(&input, train)?, train)?,
            });
        }
        let last = outputs.len() - 1;
        let kept: Vec<&Tensor> =
            outputs.iter().enumerate().filter(|(i, _)| *i == last || i % 2 == 1).map(|(_, t)| t).collect();
        ops::concat(&kept)
    }
}

/// Output channels and inputs (by layer number, 0 the block's input) of layer `layer`.
fn link(layer: usize, base: usize, growth: usize, multiplier: f64) -> (usize, Vec<usize>) {
    if layer == 0 {
        return (base, Vec::new());
    }
    let mut out = growth as f64;
    let mut links = Vec::new();
    for i in 0..10 {
        let step = 1 << i;
        if layer.is_multiple_of(step) {
            links.push(layer - step);
            if i > 0 {
                out *= multiplier;
            }
        }
    }
    // Rounding to an even number, as in the published code.
    ((out + 1.0) as usize / 2 * 2, links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_the_harmonic_rule() {
        assert_eq!(link(8, 64, 14, 1.7), (68, vec![7, 6, 4, 0]));
        assert_eq!(link(3, 64, 14, 1.7), (14, vec![2]));
    }

    #[test]
    fn features_have_the_published_channels() {
        assert_eq!(HarDNetConfig::hardnet85().feature_channels(), [96, 192, 320, 720, 1280]);
        assert_eq!(HarDNetConfig::hardnet68().feature_channels(), [64, 128, 320, 640, 1024]);
        assert_eq!(HarDNetConfig::hardnet39ds().feature_channels(), [48, 96, 320, 640]);
    }
}
