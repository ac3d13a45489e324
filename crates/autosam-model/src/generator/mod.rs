//! The prompt generator g of AutoSAM: frame in, dense prompt for SAM out (arXiv 2306.06370, §3.1).

mod decoder;
mod hardnet;
mod lightweight;
mod pyramid_decoder;

pub use decoder::{SmallDecoder, SmallDecoderConfig};
pub use hardnet::{HarDNet, HarDNetConfig};
pub use lightweight::LightweightDecoder;
pub use pyramid_decoder::{PyramidDecoder, PyramidDecoderConfig};

use crate::backbone::{EfficientNetLite, EfficientNetLiteConfig, PyramidConfig};
use autosam_ops as ops;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// Number of features that the decoder uses: strides 2, 4, 8, 16. Later ones are computed only on request.
const USED_FEATURES: usize = 4;

/// Configuration of g. The published generators are a HarDNet with the small decoder; pretrained backbones use a
/// pyramid instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Side of the square input in pixels, the paper's Idim.
    pub input_size: usize,
    pub backbone: BackboneConfig,
    pub decoder: PromptDecoderConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BackboneConfig {
    HarDNet(HarDNetConfig),
    EfficientNetLite(EfficientNetLiteConfig),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptDecoderConfig {
    Small(SmallDecoderConfig),
    Pyramid(PyramidDecoderConfig),
}

impl GeneratorConfig {
    fn published(input_size: usize, backbone: HarDNetConfig) -> Self {
        Self::hardnet(input_size, backbone, SmallDecoderConfig::default())
    }

    fn hardnet(input_size: usize, backbone: HarDNetConfig, decoder: SmallDecoderConfig) -> Self {
        let (backbone, decoder) = (BackboneConfig::HarDNet(backbone), PromptDecoderConfig::Small(decoder));
        Self { input_size, backbone, decoder }
    }

    pub fn hardnet85(input_size: usize) -> Self {
        Self::published(input_size, HarDNetConfig::hardnet85())
    }

    pub fn hardnet68(input_size: usize) -> Self {
        Self::published(input_size, HarDNetConfig::hardnet68())
    }

    pub fn hardnet39ds(input_size: usize) -> Self {
        Self::published(input_size, HarDNetConfig::hardnet39ds())
    }

    /// A HarDNet of a quarter of the width with a single upsampling (a prompt of 16 × 16 needs no stride 4).
    pub fn tiny(input_size: usize, channels: usize) -> Self {
        let backbone = HarDNetConfig {
            depth_wise: false,
            stem: [16, 24],
            multiplier: 1.6,
            growth: vec![8, 10, 14, 20],
            layers: vec![4, 8, 8, 8],
            channels: vec![40, 64, 96, 160],
            downsample: vec![true, false, true, false],
            dropout_slot: false,
        };
        Self::hardnet(input_size, backbone, SmallDecoderConfig { ups: 1, hidden: 96, channels })
    }

    /// EfficientNet-Lite `number` and a pyramid down to stride 8, for prompts of `channels`.
    pub fn efficientnet_lite(number: usize, input_size: usize, channels: usize) -> Self {
        let pyramid = PyramidConfig { channels: 96, stride: 8 };
        Self {
            input_size,
            backbone: BackboneConfig::EfficientNetLite(EfficientNetLiteConfig::lite(number)),
            decoder: PromptDecoderConfig::Pyramid(PyramidDecoderConfig {
                pyramid,
                prompt_channels: channels,
            }),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Generator {
    network: Network,
    input_size: usize,
}

#[derive(Debug, Clone)]
enum Network {
    HarDNet(HarDNet, SmallDecoder),
    EfficientNetLite(Box<EfficientNetLite>, PyramidDecoder),
}

/// A dense prompt and the auxiliary output that training uses.
#[derive(Debug, Clone)]
pub struct Generated {
    /// `[N, C, grid, grid]` in (-1, 1).
    pub prompt: Tensor,
    /// The pyramid's own logits `[N, 1, h, w]` for deep supervision; only with a [`PyramidDecoder`].
    pub own: Option<Tensor>,
}

impl Generator {
    /// # Errors
    /// If tensors are missing or misshapen, or the decoder does not fit the backbone.
    pub fn load(cfg: &GeneratorConfig, vb: VarBuilder) -> Result<Self> {
        let (backbone, decoder) = (vb.pp("backbone"), vb.pp("decoder"));
        let network = match (&cfg.backbone, &cfg.decoder) {
            (BackboneConfig::HarDNet(b), PromptDecoderConfig::Small(d)) => Network::HarDNet(
                HarDNet::load(b, backbone)?,
                SmallDecoder::load(d, &b.feature_channels(), decoder)?,
            ),
            (BackboneConfig::EfficientNetLite(b), PromptDecoderConfig::Pyramid(d)) => {
                Network::EfficientNetLite(
                    Box::new(EfficientNetLite::load(b, backbone)?),
                    PyramidDecoder::load(d, &b.feature_channels(), decoder)?,
                )
            }
            _ => candle_core::bail!("a HarDNet needs the small decoder, an EfficientNet-Lite a pyramid"),
        };
        Ok(Self { network, input_size: cfg.input_size })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        match &mut self.network {
            Network::HarDNet(backbone, decoder) => {
                backbone.fold()?;
                decoder.fold()
            }
            Network::EfficientNetLite(backbone, decoder) => ops::autocast(None, || {
                backbone.fold()?;
                decoder.fold()
            }),
        }
    }

    /// The backbone, if it is an EfficientNet-Lite.
    pub fn lite_backbone(&mut self) -> Option<&mut EfficientNetLite> {
        match &mut self.network {
            Network::EfficientNetLite(backbone, _) => Some(backbone),
            Network::HarDNet(..) => None,
        }
    }

    /// Side of the square input in pixels.
    pub fn input_size(&self) -> usize {
        self.input_size
    }

    /// The backbone's features at strides 2, 4, 8, 16 and, with `all`, 32 if it exists: `[N, C, H, W]` for a HarDNet,
    /// `[N, H, W, C]` for an EfficientNet-Lite.
    pub fn features(&self, x: &Tensor, all: bool, train: bool) -> Result<Vec<Tensor>> {
        let count = if all { usize::MAX } else { USED_FEATURES };
        match &self.network {
            Network::HarDNet(backbone, _) => backbone.features(x, count, train),
            Network::EfficientNetLite(backbone, _) => backbone.features(x, count, train),
        }
    }

    /// Normalised, padded and resized frames `[N, 3, Idim, Idim]` → dense prompts `[N, C, grid, grid]` in
    /// (-1, 1).
    pub fn forward(&self, x: &Tensor, grid: usize, train: bool) -> Result<Tensor> {
        let prompt = match &self.network {
            Network::HarDNet(backbone, decoder) => {
                decoder.forward(&backbone.features(x, USED_FEATURES, train)?, train)?
            }
            Network::EfficientNetLite(backbone, decoder) => {
                let prompt =
                    || decoder.prompt(&decoder.features(&backbone.features(x, usize::MAX, train)?, train)?);
                // Inference is in f32 whatever the type of products, as in SAM's encoder on the same backbone.
                if train { prompt()? } else { ops::autocast(None, prompt)? }
            }
        };
        on_grid(&prompt, grid)
    }

    /// [`Self::forward`] for training, with batch statistics and the output for deep supervision.
    pub fn generate(&self, x: &Tensor, grid: usize) -> Result<Generated> {
        match &self.network {
            Network::HarDNet(..) => Ok(Generated { prompt: self.forward(x, grid, true)?, own: None }),
            Network::EfficientNetLite(backbone, decoder) => {
                let features = decoder.features(&backbone.features(x, usize::MAX, true)?, true)?;
                let prompt = on_grid(&decoder.prompt(&features)?, grid)?;
                Ok(Generated { prompt, own: Some(decoder.own(&features)?) })
            }
        }
    }
}

/// `[N, C, h, w]` → `[N, C, grid, grid]`, as published: bilinear, corners aligned.
fn on_grid(prompt: &Tensor, grid: usize) -> Result<Tensor> {
    if prompt.dims()[2..] == [grid, grid] {
        return Ok(prompt.clone());
    }
    ops::resize_bilinear(prompt, grid, grid, true)
}
