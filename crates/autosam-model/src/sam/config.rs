//! Configuration of a SAM.

use crate::backbone::{EfficientNetLiteConfig, PyramidConfig};
use crate::{Error, Result};
use autosam_frame::resize::InputSize;
use autosam_ops as ops;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Patch side of SAM's image encoders: one embedding cell covers 16 × 16 pixels.
pub const PATCH: usize = 16;

/// `ImageEncoderViT` of segment-anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    pub embed_dim: usize,
    pub depth: usize,
    pub heads: usize,
    /// Blocks with global attention; the others use windows.
    pub global_blocks: Vec<usize>,
    /// Window side in cells; 0 makes every block global.
    pub window: usize,
    pub mlp_ratio: usize,
}

/// `TinyViT` of MobileSAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyVitConfig {
    pub dims: [usize; 4],
    pub depths: [usize; 4],
    pub heads: [usize; 4],
    pub windows: [usize; 4],
    pub mlp_ratio: usize,
    pub mbconv_expand: usize,
    pub local_conv: usize,
}

/// EfficientNet-Lite with a pyramid, whose stride is the embedding's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiteEncoderConfig {
    pub backbone: EfficientNetLiteConfig,
    pub pyramid: PyramidConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderConfig {
    Vit(VitConfig),
    TinyVit(TinyVitConfig),
    EfficientNetLite(LiteEncoderConfig),
}

/// The two-way transformer and the heads of `MaskDecoder`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    pub depth: usize,
    pub mlp_dim: usize,
    pub heads: usize,
    pub multimask_outputs: usize,
    pub iou_depth: usize,
    pub iou_hidden: usize,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self { depth: 2, mlp_dim: 2048, heads: 8, multimask_outputs: 3, iou_depth: 3, iou_hidden: 256 }
    }
}

/// Configuration of a complete SAM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamConfig {
    /// Side of the square input in pixels, a multiple of 16.
    pub image_size: usize,
    /// Whether frames are stretched to the input. Otherwise they keep their aspect ratio and are padded, as in Meta's
    /// SAM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stretch: bool,
    pub encoder: EncoderConfig,
    /// Channels of embedding and prompts.
    pub embed_channels: usize,
    pub decoder: DecoderConfig,
}

impl SamConfig {
    fn vit(embed_dim: usize, depth: usize, heads: usize, global_blocks: [usize; 4]) -> Self {
        let encoder = EncoderConfig::Vit(VitConfig {
            embed_dim,
            depth,
            heads,
            global_blocks: global_blocks.to_vec(),
            window: 14,
            mlp_ratio: 4,
        });
        Self::published(encoder)
    }

    /// A SAM with the input size, embedding and decoder of Meta's SAM and MobileSAM.
    fn published(encoder: EncoderConfig) -> Self {
        Self {
            image_size: 1024,
            stretch: false,
            encoder,
            embed_channels: 256,
            decoder: DecoderConfig::default(),
        }
    }

    pub fn vit_b() -> Self {
        Self::vit(768, 12, 12, [2, 5, 8, 11])
    }

    pub fn vit_l() -> Self {
        Self::vit(1024, 24, 16, [5, 11, 17, 23])
    }

    pub fn vit_h() -> Self {
        Self::vit(1280, 32, 16, [7, 15, 23, 31])
    }

    /// MobileSAM: TinyViT-5M at 1024 px.
    pub fn mobile_sam() -> Self {
        let encoder = EncoderConfig::TinyVit(TinyVitConfig {
            dims: [64, 128, 160, 320],
            depths: [2, 2, 6, 2],
            heads: [2, 4, 5, 10],
            windows: [7, 7, 14, 7],
            mlp_ratio: 4,
            mbconv_expand: 4,
            local_conv: 3,
        });
        Self::published(encoder)
    }

    /// A small SAM with MobileSAM's design, sized for 25 frames/s on two CPU cores. It was trained at 256 px and is
    /// used at 288 ([`Self::at`]). Windows divide the grids (64, 32, 16, 16), so none is padded.
    pub fn tiny() -> Self {
        let encoder = EncoderConfig::TinyVit(TinyVitConfig {
            dims: [32, 64, 128, 160],
            depths: [1, 2, 4, 1],
            heads: [1, 2, 4, 5],
            windows: [8, 8, 16, 16],
            mlp_ratio: 4,
            mbconv_expand: 4,
            local_conv: 3,
        });
        let decoder = DecoderConfig { mlp_dim: 1024, ..DecoderConfig::default() };
        Self { image_size: 256, stretch: false, encoder, embed_channels: 256, decoder }
    }

    /// A small SAM on EfficientNet-Lite 0 to 2: half the channels of SAM's embedding, at stride 8 instead of 16,
    /// because polyps and the input are small.
    pub fn lite(number: usize) -> Self {
        let encoder = EncoderConfig::EfficientNetLite(LiteEncoderConfig {
            backbone: EfficientNetLiteConfig::lite(number).to_stride_16(),
            pyramid: PyramidConfig { channels: 64, stride: 8 },
        });
        let decoder = DecoderConfig { mlp_dim: 512, heads: 4, iou_hidden: 128, ..DecoderConfig::default() };
        Self { image_size: 256, stretch: false, encoder, embed_channels: 128, decoder }
    }

    /// Size of its input, and how frames are fitted into it.
    pub fn input_size(&self) -> InputSize {
        InputSize { side: self.image_size, stretch: self.stretch }
    }

    /// Side of an embedding cell in pixels.
    pub fn stride(&self) -> usize {
        match &self.encoder {
            EncoderConfig::EfficientNetLite(lite) => lite.pyramid.stride,
            EncoderConfig::Vit(_) | EncoderConfig::TinyVit(_) => PATCH,
        }
    }

    /// Side of the embedding in cells.
    pub fn grid(&self) -> usize {
        self.image_size / self.stride()
    }

    /// The same network for an input of `image_size` × `image_size` pixels. A window that covers its stage's whole grid
    /// still covers it; one that divides its grid may change slightly so that it still does. [`Self::fit_biases`]
    /// adapts the weights.
    ///
    /// # Errors
    /// If the size is not a multiple of [`PATCH`], or if the encoder is a ViT, whose position tables have a fixed size.
    pub fn at(&self, image_size: usize) -> Result<Self> {
        if image_size == self.image_size {
            return Ok(self.clone());
        }
        // The stride 32 of a convolutional encoder must divide the input.
        let step = if matches!(self.encoder, EncoderConfig::EfficientNetLite(_)) { 2 * PATCH } else { PATCH };
        if image_size < 2 * PATCH || !image_size.is_multiple_of(step) {
            return Err(Error::invalid(format!(
                "image_size is {image_size}; it must be a multiple of {step}, at least {}",
                2 * PATCH
            )));
        }
        let tiny = match &self.encoder {
            EncoderConfig::TinyVit(tiny) => tiny,
            EncoderConfig::EfficientNetLite(_) => return Ok(Self { image_size, ..self.clone() }),
            EncoderConfig::Vit(_) => {
                return Err(Error::invalid(format!(
                    "image_size {image_size}: the input size of a ViT cannot be changed; this SAM's is {}",
                    self.image_size
                )));
            }
        };
        // Strides of the four stages' grids.
        let strides = [4, 8, 16, 16];
        let windows = std::array::from_fn(|i| {
            let (window, before, grid) =
                (tiny.windows[i], self.image_size / strides[i], image_size / strides[i]);
            if window == before {
                return grid;
            }
            if !before.is_multiple_of(window) {
                return window;
            }
            // A window that does not divide the grid needs padding; one of a similar size may divide it.
            let near = window - window / 4..=window + window / 4;
            near.filter(|w| grid.is_multiple_of(*w)).min_by_key(|w| w.abs_diff(window)).unwrap_or(window)
        });
        let encoder = EncoderConfig::TinyVit(TinyVitConfig { windows, ..tiny.clone() });
        Ok(Self { image_size, encoder, ..self.clone() })
    }

    /// Resizes the attention biases among `tensors` (Meta's names with any prefix), one for every distance in a window,
    /// to this network's windows, bilinearly as timm does.
    pub fn fit_biases(&self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        let EncoderConfig::TinyVit(tiny) = &self.encoder else { return Ok(()) };
        for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with("attention_biases")) {
            let stage =
                name.split_once("image_encoder.layers.").and_then(|(_, n)| n.split('.').next()?.parse().ok());
            let Some(&to) = stage.and_then(|s: usize| tiny.windows.get(s)) else { continue };
            let (heads, distances) = tensor.dims2()?;
            let from = distances.isqrt();
            if from != to {
                let grid = tensor.to_dtype(DType::F32)?.reshape((1, heads, from, from))?;
                let fitted = ops::resize_bilinear(&grid, to, to, false)?.reshape((heads, to * to))?;
                *tensor = fitted.to_dtype(tensor.dtype())?;
            }
        }
        Ok(())
    }

    /// Recognises a published checkpoint by the shapes of its tensors below `prefix`.
    pub fn infer(shapes: &HashMap<String, Vec<usize>>, prefix: &str) -> Result<Self> {
        let dim = |name: &str, axis: usize| {
            shapes.get(&format!("{prefix}image_encoder.{name}")).and_then(|s| s.get(axis)).copied()
        };
        match (dim("patch_embed.proj.weight", 0), dim("patch_embed.seq.0.c.weight", 0)) {
            (Some(768), _) => Ok(Self::vit_b()),
            (Some(1024), _) => Ok(Self::vit_l()),
            (Some(1280), _) => Ok(Self::vit_h()),
            (None, Some(32)) => Ok(Self::mobile_sam()),
            _ => Err(Error::invalid(
                "not a supported SAM: expected the tensors of ViT-B, ViT-L, ViT-H (image_encoder.patch_embed.proj.weight) or MobileSAM (image_encoder.patch_embed.seq.0.c.weight)",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn windows(config: &SamConfig) -> [usize; 4] {
        match &config.encoder {
            EncoderConfig::TinyVit(tiny) => tiny.windows,
            _ => [0; 4],
        }
    }

    #[test]
    fn windows_over_the_whole_grid_still_cover_it_at_another_size() {
        let small = SamConfig::tiny().at(128).unwrap();
        assert_eq!((small.grid(), windows(&small)), (8, [8, 8, 8, 8]));
        assert_eq!(windows(&SamConfig::tiny().at(192).unwrap()), [8, 8, 12, 12]);
        assert_eq!(windows(&SamConfig::tiny().at(288).unwrap()), [8, 9, 18, 18], "36 / 9");
        assert_eq!(windows(&SamConfig::tiny().at(208).unwrap()), [8, 8, 13, 13], "26 has no divisor near 8");
        assert_eq!(windows(&SamConfig::mobile_sam().at(512).unwrap()), [7, 7, 14, 7]);
        for (config, size) in [(SamConfig::tiny(), 100), (SamConfig::tiny(), 16), (SamConfig::vit_b(), 512)] {
            let text = config.at(size).unwrap_err().to_string();
            assert!(text.contains("image_size"), "{text}");
        }
        assert_eq!(SamConfig::vit_b().at(1024).unwrap(), SamConfig::vit_b());
    }

    #[test]
    fn attention_biases_are_resized_with_the_windows() {
        let small = SamConfig::tiny().at(128).unwrap();
        let name = |stage: usize| format!("image_encoder.layers.{stage}.blocks.0.attn.attention_biases");
        // Biases that decrease with the distance along x, equal at both sizes for the same part of the image.
        let ramp = |window: usize| -> Vec<f32> {
            (0..window * window).map(|i| ((i % window) as f32 + 0.5) / window as f32).collect()
        };
        let at = |stage, heads, window| {
            let values: Vec<f32> = (0..heads).flat_map(|_| ramp(window)).collect();
            (name(stage), Tensor::from_vec(values, (heads, window * window), &Device::Cpu).unwrap())
        };
        let mut tensors = HashMap::from([at(1, 2, 8), at(2, 4, 16)]);
        let kept = tensors[&name(1)].clone();
        small.fit_biases(&mut tensors).unwrap();
        assert_eq!(tensors[&name(1)].to_vec2::<f32>().unwrap(), kept.to_vec2::<f32>().unwrap());
        let fitted = tensors[&name(2)].to_vec2::<f32>().unwrap();
        for row in &fitted {
            assert!(row.iter().zip(ramp(8)).all(|(a, b)| (a - b).abs() < 1e-5), "{row:?}");
        }
        // Weights of one size can be loaded at the other.
        let shapes = crate::weights::recorder::shapes_of(|vb| crate::sam::Sam::load(&small, vb)).unwrap();
        assert!(shapes.iter().any(|(n, s)| *n == name(2) && s == tensors[n].dims()));
    }
}
