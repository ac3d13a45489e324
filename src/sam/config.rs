//! Sizes of a SAM.

use crate::{Error, Result};
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
    /// Blocks that attend over the whole grid; the others over windows.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderConfig {
    Vit(VitConfig),
    TinyVit(TinyVitConfig),
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

/// A whole SAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamConfig {
    /// Side of the square input in pixels, a multiple of 16.
    pub image_size: usize,
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
        Self { image_size: 1024, encoder, embed_channels: 256, decoder: DecoderConfig::default() }
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
        Self { image_size: 1024, encoder, embed_channels: 256, decoder: DecoderConfig::default() }
    }

    /// The SAM below the shipped model: MobileSAM's design at 256 px, sized for 25 frames/s on two CPU cores.
    /// Windows divide the grids (64, 32, 16, 16), so none is padded.
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
        Self { image_size: 256, encoder, embed_channels: 256, decoder }
    }

    /// Cells along a side of the embedding.
    pub fn grid(&self) -> usize {
        self.image_size / PATCH
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
                "not a SAM that is known: expected the tensors of ViT-B, ViT-L, ViT-H (image_encoder.patch_embed.proj.weight) or MobileSAM (image_encoder.patch_embed.seq.0.c.weight)",
            )),
        }
    }
}
