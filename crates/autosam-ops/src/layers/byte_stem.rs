//! The first convolution of an int8 network.

use super::conv_norm::ConvNorm;
use super::inverted_residual::Bytes;
use crate::ByteScale;
use crate::kernels::cpu::byte_stem::{self as kernel, COLOURS, LANES, Stem};
use crate::kernels::cpu::common::fusible;
use crate::runtime::capture::apply;
use candle_core::{Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// A convolution of images with ReLU6, computed in f32, with a result in bytes. Channels `x` enter as `scale · x +
/// shift`; padding is 0 after that scaling.
#[derive(Clone)]
pub struct ByteStem {
    stem: Arc<Stem>,
    to: ByteScale,
}

impl fmt::Debug for ByteStem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStem").field("to", &self.to).finish_non_exhaustive()
    }
}

impl ByteStem {
    /// # Errors
    /// If the convolution is not folded or does not have three channels, or if the number of outputs is not a
    /// multiple of 32.
    pub fn new(conv: &ConvNorm, scale: [f32; COLOURS], shift: [f32; COLOURS], to: ByteScale) -> Result<Self> {
        let (weights, bias, cfg) = conv.weights_of_inference()?;
        let (o, k) = (bias.len(), (weights.len() / bias.len() / COLOURS).isqrt());
        if cfg.groups != 1 || weights.len() != o * COLOURS * k * k || !o.is_multiple_of(LANES) {
            candle_core::bail!(
                "the first convolution must have three channels and a multiple of {LANES} outputs"
            );
        }
        let area = k * k;
        let weight = |at: usize, out: usize| weights[out * COLOURS * area + at];
        let mut reordered = Vec::with_capacity(weights.len());
        let mut bias: Vec<f32> = bias.iter().map(|b| b / to.step + to.zero).collect();
        for at in 0..COLOURS * area {
            let channel = at / area;
            for (out, bias) in bias.iter_mut().enumerate() {
                reordered.push(weight(at, out) * scale[channel] / to.step);
                *bias += weight(at, out) * shift[channel] / to.step;
            }
        }
        let padding = [0, 1, 2].map(|c| -shift[c] / scale[c]);
        Ok(Self { stem: Arc::new(Stem { cfg, k, weights: reordered, bias, padding }), to })
    }

    /// `[N, 3, H, W]` → `[N, H', W', O]`.
    ///
    /// # Errors
    /// If the shape, device or type is not supported.
    pub fn forward(&self, x: &Tensor) -> Result<Bytes> {
        if !fusible(&[x]) {
            candle_core::bail!("int8 layers are for inference in f32 on the CPU");
        }
        let words = apply(kernel::ByteStem(self.stem.clone()), &[&x.contiguous()?])?;
        Ok(Bytes::of_words(words, self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::inverted_residual::tests::conv_norm;
    use crate::runtime::capture::{CapturedGraph, noise};
    use crate::{Activation::Relu6, Conv2d, channels_last, conv2d};
    use candle_core::Device;

    /// At strides 1 and 2, with padding on one and on both sides, at widths that are not a multiple of the register
    /// block.
    #[test]
    fn a_byte_stem_equals_the_quantised_f32_convolution() {
        let (scale, shift) = ([0.5f32, 0.4, 0.3], [0.1f32, -0.2, 0.3]);
        let mut diagonal = [0f32; 9];
        (0..3).for_each(|c| diagonal[4 * c] = scale[c]);
        let diagonal = Tensor::from_slice(&diagonal, (3, 3, 1, 1), &Device::Cpu).unwrap();
        let shifts = Tensor::from_slice(&shift, 3, &Device::Cpu).unwrap();
        for (k, stride, outputs, h, w) in
            [(3, 2, 32, 12, 10), (3, 1, 64, 5, 7), (5, 2, 32, 6, 22), (1, 1, 32, 3, 3)]
        {
            let zeros = k - stride;
            let cfg = Conv2d { stride, padding: zeros / 2, trailing: zeros % 2, groups: 1 };
            let conv = conv_norm([outputs, 3, k, k], cfg, 5);
            let to = ByteScale::of([0.0, 1.0]);
            let stem = ByteStem::new(&conv, scale, shift, to).unwrap();
            let x = Tensor::from_vec(noise(2 * 3 * h * w, 6), (2, 3, h, w), &Device::Cpu).unwrap();
            let expected = conv2d(&x, &diagonal, Some(&shifts), Conv2d::default()).unwrap();
            let expected = channels_last(&conv.forward(&expected, Some(Relu6), false).unwrap()).unwrap();
            let found = stem.forward(&x).unwrap().to_floats().unwrap();
            assert_eq!(found.dims(), expected.dims());
            let of = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (found, expected) in of(&found).into_iter().zip(of(&expected)) {
                let expected = expected.min(1.0);
                assert!((found - expected).abs() <= 0.51 * to.step, "{k}, {stride}: {found} for {expected}");
            }
            CapturedGraph::capture((2, 3, h, w), |x| stem.forward(x)?.to_floats()).unwrap();
        }
    }
}
