//! The lightweight decoder h of the paper's ablation: a mask from the generator's prompt without SAM.

use autosam_ops as ops;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Two transposed convolutions with layer norm and GELU, then 1x1 to one channel.
#[derive(Debug, Clone)]
pub struct LightweightDecoder {
    up1: (Tensor, Tensor),
    norm1: (Tensor, Tensor),
    up2: (Tensor, Tensor),
    norm2: (Tensor, Tensor),
    last: (Tensor, Tensor),
}

impl LightweightDecoder {
    /// State-dict names as an `nn.Sequential`: `0` and `3` the transposed convolutions, `1` and `4` the
    /// norms, `6` the 1x1 convolution.
    pub fn load(channels: usize, vb: VarBuilder) -> Result<Self> {
        let pair = |at: usize, shape: Vec<usize>, out: usize| -> Result<(Tensor, Tensor)> {
            let vb = vb.pp(at);
            Ok((vb.get(shape, "weight")?, vb.get(out, "bias")?))
        };
        Ok(Self {
            up1: pair(0, vec![channels, 64, 3, 3], 64)?,
            norm1: pair(1, vec![64], 64)?,
            up2: pair(3, vec![64, 16, 2, 2], 16)?,
            norm2: pair(4, vec![16], 16)?,
            last: pair(6, vec![1, 16, 1, 1], 1)?,
        })
    }

    /// Dense prompt `[N, C, g, g]` → logits `[N, 1, 4g + 2, 4g + 2]`.
    pub fn forward(&self, prompt: &Tensor) -> Result<Tensor> {
        let x = ops::conv_transpose2d(prompt, &self.up1.0, Some(&self.up1.1), 2)?;
        let x = ops::gelu(&ops::layer_norm_2d(&x, &self.norm1.0, &self.norm1.1, 1e-6)?)?;
        let x = ops::conv_transpose2d(&x, &self.up2.0, Some(&self.up2.1), 2)?;
        let x = ops::gelu(&ops::layer_norm_2d(&x, &self.norm2.0, &self.norm2.1, 1e-6)?)?;
        ops::conv2d(&x, &self.last.0, Some(&self.last.1), ops::Conv2d::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::recorder::shapes_of;
    use candle_core::{DType, Device};

    #[test]
    fn the_lightweight_decoder_upsamples_the_prompt_to_one_channel() {
        let shapes = shapes_of(|vb| LightweightDecoder::load(256, vb)).unwrap();
        assert_eq!(shapes.len(), 10);
        let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
        let decoder = LightweightDecoder::load(256, vb).unwrap();
        let x = Tensor::ones((2, 256, 16, 16), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(decoder.forward(&x).unwrap().dims(), [2, 1, 66, 66]);
    }
}
