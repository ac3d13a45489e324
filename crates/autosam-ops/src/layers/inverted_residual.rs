//! An inverted residual whose weights and activations are bytes, for inference on a CPU.

use super::conv_norm::ConvNorm;
use crate::ByteScale;
use crate::kernels::cpu::int8::{DepthWise, Isa, Product};
use crate::kernels::cpu::inverted_residual::{self as kernel, Block, Dequantise};
use crate::runtime::capture::apply;
use candle_core::{Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// Whether this processor multiplies bytes faster than floats.
pub fn has_fast_bytes() -> bool {
    Isa::best() != Isa::Portable
}

/// Activations `[N, H, W, C]` as bytes.
#[derive(Debug, Clone)]
pub struct Bytes {
    /// `[N, H, W, C / 4]`: four bytes per float.
    words: Tensor,
    scale: ByteScale,
}

impl Bytes {
    /// Wraps a kernel's result.
    pub(crate) fn of_words(words: Tensor, scale: ByteScale) -> Self {
        Self { words, scale }
    }

    /// Converts to floats, `[N, H, W, C]`.
    ///
    /// # Errors
    /// If the conversion fails.
    pub fn to_floats(&self) -> Result<Tensor> {
        apply(Dequantise(self.scale), &[&self.words])
    }
}

/// MobileNetV2's block with ReLU6: expand, depth-wise, project, and optionally the input added.
#[derive(Clone)]
pub struct InvertedResidual {
    block: Arc<Block>,
    to: ByteScale,
}

impl fmt::Debug for InvertedResidual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvertedResidual").field("to", &self.to).finish_non_exhaustive()
    }
}

/// The three convolutions of a block, folded.
#[derive(Debug, Clone, Copy)]
pub struct Convolutions<'a> {
    pub expand: Option<&'a ConvNorm>,
    pub depthwise: &'a ConvNorm,
    pub project: &'a ConvNorm,
    /// Whether the input is added to the result.
    pub residual: bool,
}

/// The scales of a block's input, of the results of its first two convolutions, and of its output. The intermediate
/// ones begin at 0.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    pub from: ByteScale,
    pub expanded: Option<ByteScale>,
    pub convolved: ByteScale,
    pub to: ByteScale,
}

impl InvertedResidual {
    /// # Errors
    /// If a convolution is not folded, channels are not a multiple of 4, or the zero point of a padded
    /// activation is not 0.
    pub fn new(convolutions: Convolutions, scales: Scales) -> Result<Self> {
        Self::on(Isa::best(), convolutions, scales)
    }

    pub(crate) fn on(isa: Isa, convolutions: Convolutions, scales: Scales) -> Result<Self> {
        let Convolutions { expand, depthwise, project, residual } = convolutions;
        let before = match (expand, scales.expanded) {
            (Some(_), Some(scale)) => scale,
            (None, None) => scales.from,
            _ => candle_core::bail!("a block needs a scale for its expansion exactly if it expands"),
        };
        if before.zero != 0.0 {
            candle_core::bail!(
                "the input of a depth-wise convolution must have zero point 0, because padding is 0"
            );
        }
        let expand = match expand {
            Some(conv) => {
                let (w, bias, _) = conv.weights_of_inference()?;
                by_fours(w.len() / bias.len())?;
                Some(Product::new(isa, &w, &bias, scales.from, before))
            }
            None => None,
        };
        let (w, bias, cfg) = depthwise.weights_of_inference()?;
        let depthwise = DepthWise::new(isa, &w, &bias, cfg.stride, before, scales.convolved);
        let (w, bias, _) = project.weights_of_inference()?;
        by_fours(bias.len())?;
        by_fours(w.len() / bias.len())?;
        let mut project = Product::new(isa, &w, &bias, scales.convolved, scales.to);
        if residual {
            project = project.with_residual(scales.from, scales.to);
        }
        let block = Arc::new(Block { expand, depthwise, cfg, project, residual });
        Ok(Self { block, to: scales.to })
    }

    /// `[N, H, W, C]` → `[N, H', W', O]`.
    ///
    /// # Errors
    /// If the input does not fit the block.
    pub fn forward(&self, x: &Bytes) -> Result<Bytes> {
        let words = apply(kernel::InvertedResidual(self.block.clone()), &[&x.words])?;
        Ok(Bytes { words, scale: self.to })
    }
}

fn by_fours(channels: usize) -> Result<()> {
    match channels.is_multiple_of(4) {
        true => Ok(()),
        false => candle_core::bail!("{channels} channels are not a multiple of 4"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::runtime::capture::noise;
    use crate::{Activation::Relu6, BatchNorm, Conv2d, channels_last};
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    pub(crate) fn conv_norm(shape: [usize; 4], cfg: Conv2d, seed: u32) -> ConvNorm {
        let n = shape.iter().product();
        let scale = (3.0 / (shape[1] * shape[2] * shape[3]) as f64).sqrt();
        let weight = (Tensor::from_vec(noise(n, seed), &shape, &Device::Cpu).unwrap() * scale).unwrap();
        let of = |value: f32| Tensor::full(value, shape[0], &Device::Cpu).unwrap();
        let parameters = [("weight", 1.2), ("bias", 0.1), ("running_mean", 0.05), ("running_var", 0.9)];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), of(value)));
        let vb = VarBuilder::from_tensors(parameters.into(), DType::F32, &Device::Cpu);
        let mut conv = ConvNorm::new(weight, None, BatchNorm::load(vb, shape[0]).unwrap(), cfg);
        conv.fold().unwrap();
        conv
    }

    /// `[N, C, H, W]` as bytes.
    fn of_planes(x: &Tensor, scale: ByteScale) -> Bytes {
        let (n, c, h, w) = x.dims4().unwrap();
        let x = channels_last(x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let byte = |v: &f32| (v / scale.step + scale.zero).clamp(0.0, 255.0).round_ties_even() as u8;
        let (words, _) = x.as_chunks::<4>();
        let words = words.iter().map(|four| f32::from_le_bytes(four.each_ref().map(byte))).collect();
        Bytes::of_words(Tensor::from_vec(words, (n, h, w, c / 4), &Device::Cpu).unwrap(), scale)
    }

    /// TensorFlow's padding at strides 1 and 2, with and without a residual, two images.
    #[test]
    fn int8_blocks_approximate_f32_and_are_equal_on_every_instruction_set() {
        for (kernel, stride, from, to, wide) in
            [(3, 1, 8, 8, 6), (5, 1, 24, 24, 6), (3, 2, 16, 24, 6), (5, 2, 8, 40, 3), (3, 1, 32, 16, 1)]
        {
            let hidden = from * wide;
            let zeros = kernel - stride;
            let cfg = Conv2d { stride, padding: zeros / 2, trailing: zeros % 2, groups: hidden };
            let expand = (wide > 1).then(|| conv_norm([hidden, from, 1, 1], Conv2d::default(), 1));
            let depthwise = conv_norm([hidden, 1, kernel, kernel], cfg, 2);
            let project = conv_norm([to, hidden, 1, 1], Conv2d::default(), 3);
            let residual = stride == 1 && from == to;
            let low = if wide > 1 { -1.0 } else { 0.0 };
            let x = noise(2 * from * 14 * 10, 4).into_iter().map(|v| v.max(low)).collect();
            let x = Tensor::from_vec(x, (2, from, 14, 10), &Device::Cpu).unwrap();
            let floats = |x: &Tensor| -> Result<Tensor> {
                let x = channels_last(x)?;
                let y = match &expand {
                    Some(expand) => expand.forward_last(&x, Some(Relu6), false)?,
                    None => x.clone(),
                };
                let y = depthwise.forward_last(&y, Some(Relu6), false)?;
                let y = project.forward_last(&y, None, false)?;
                if residual { crate::add(&x, &y) } else { Ok(y) }
            };
            let expected = floats(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (low_to, high_to) =
                expected.iter().fold((0f32, 0f32), |(low, high), v| (low.min(*v), high.max(*v)));
            let scales = Scales {
                from: ByteScale::of([low, 1.0]),
                expanded: expand.as_ref().map(|_| ByteScale::of([0.0, 3.0])),
                convolved: ByteScale::of([0.0, 3.0]),
                to: ByteScale::of([low_to, high_to]),
            };
            let mut all: Vec<Vec<f32>> = Vec::new();
            for isa in Isa::available() {
                let convolutions = Convolutions {
                    expand: expand.as_ref(),
                    depthwise: &depthwise,
                    project: &project,
                    residual,
                };
                let block = InvertedResidual::on(isa, convolutions, scales).unwrap();
                let bytes = of_planes(&x, scales.from);
                let found = block.forward(&bytes).unwrap().to_floats().unwrap();
                assert_eq!(found.dims(), floats(&x).unwrap().dims());
                let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let error = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
                let all_of_it = expected.iter().map(|v| v * v).sum::<f32>();
                assert!((error / all_of_it).sqrt() < 0.03, "{isa:?}: {}", (error / all_of_it).sqrt());
                all.push(found);
            }
            assert!(all.windows(2).all(|two| two[0] == two[1]));
        }
    }

    #[test]
    fn unsuitable_scales_are_refused() {
        let depthwise = conv_norm([8, 1, 3, 3], Conv2d { padding: 1, groups: 8, ..Conv2d::default() }, 2);
        let project = conv_norm([8, 8, 1, 1], Conv2d::default(), 3);
        let convolutions =
            Convolutions { expand: None, depthwise: &depthwise, project: &project, residual: false };
        let from = ByteScale::of([-1.0, 1.0]);
        let scales = Scales { from, expanded: None, convolved: from, to: from };
        let text = InvertedResidual::new(convolutions, scales).unwrap_err().to_string();
        assert!(text.contains("padding"), "{text}");
    }
}
