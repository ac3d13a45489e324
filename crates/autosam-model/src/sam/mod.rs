//! Segment Anything (arXiv 2304.02643), batched and differentiable throughout, with segment-anything's and
//! MobileSAM's tensor names.

pub mod config;
mod layers;
mod lite_encoder;
pub mod mask_decoder;
pub mod prompt_encoder;
pub mod tiny_vit;
pub mod transformer;
pub mod vit;

pub use config::{DecoderConfig, EncoderConfig, LiteEncoderConfig, SamConfig, TinyVitConfig, VitConfig};
pub use mask_decoder::MaskDecoder;
pub use prompt_encoder::{PromptEncoder, Prompts};

use crate::backbone::EfficientNetLite;
use autosam_ops as ops;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

#[derive(Debug, Clone)]
enum ImageEncoder {
    Vit(Box<vit::VitEncoder>),
    TinyVit(Box<tiny_vit::TinyVitEncoder>),
    Lite(Box<lite_encoder::LiteEncoder>),
}

/// Image encoder, prompt encoder and mask decoder.
#[derive(Debug, Clone)]
pub struct Sam {
    image_encoder: ImageEncoder,
    pub prompt_encoder: PromptEncoder,
    pub mask_decoder: MaskDecoder,
    image_size: usize,
}

impl Sam {
    pub fn load(cfg: &SamConfig, vb: VarBuilder) -> Result<Self> {
        let (size, out, encoder) = (cfg.image_size, cfg.embed_channels, vb.pp("image_encoder"));
        let image_encoder = match &cfg.encoder {
            EncoderConfig::Vit(c) => {
                ImageEncoder::Vit(Box::new(vit::VitEncoder::load(c, size, out, encoder)?))
            }
            EncoderConfig::TinyVit(c) => {
                ImageEncoder::TinyVit(Box::new(tiny_vit::TinyVitEncoder::load(c, out, encoder)?))
            }
            EncoderConfig::EfficientNetLite(c) => {
                ImageEncoder::Lite(Box::new(lite_encoder::LiteEncoder::load(c, out, encoder)?))
            }
        };
        Ok(Self {
            image_encoder,
            prompt_encoder: PromptEncoder::load(cfg, vb.pp("prompt_encoder"))?,
            mask_decoder: MaskDecoder::load(cfg, vb.pp("mask_decoder"))?,
            image_size: size,
        })
    }

    /// Folds batch norms into convolutions and prepares weights for inference.
    pub fn fold(&mut self) -> Result<()> {
        self.fold_encoder()?;
        self.mask_decoder.prepare()
    }

    /// [`Self::fold`] of the image encoder only, for a frozen SAM with gradients through its decoder.
    pub fn fold_encoder(&mut self) -> Result<()> {
        match &mut self.image_encoder {
            ImageEncoder::Vit(encoder) => encoder.prepare(),
            ImageEncoder::TinyVit(encoder) => encoder.fold(),
            ImageEncoder::Lite(encoder) => encoder.fold(),
        }
    }

    /// The image encoder's EfficientNet-Lite, if it is one.
    pub fn lite_backbone(&mut self) -> Option<&mut EfficientNetLite> {
        match &mut self.image_encoder {
            ImageEncoder::Lite(encoder) => Some(encoder.backbone()),
            ImageEncoder::Vit(_) | ImageEncoder::TinyVit(_) => None,
        }
    }

    /// Normalised, padded images `[N, 3, S, S]` → embeddings `[N, C, g, g]`. `train` matters only to encoders
    /// with batch norms.
    pub fn encode_image(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        match &self.image_encoder {
            ImageEncoder::Vit(encoder) => encoder.forward(x),
            ImageEncoder::TinyVit(encoder) => encoder.forward(x, train),
            ImageEncoder::Lite(encoder) => encoder.forward(x, train),
        }
    }

    /// Logits at the frame's size: `low [N, M, 4g, 4g]` enlarged to S × S, cropped to the `input` (height,
    /// width) that was not padding, resized to `original` (height, width); bilinear, as SAM.
    pub fn postprocess_masks(
        &self,
        low: &Tensor,
        input: (usize, usize),
        original: (usize, usize),
    ) -> Result<Tensor> {
        let full = ops::resize_bilinear(low, self.image_size, self.image_size, false)?;
        let cropped = full.narrow(2, 0, input.0)?.narrow(3, 0, input.1)?.contiguous()?;
        ops::resize_bilinear(&cropped, original.0, original.1, false)
    }
}
