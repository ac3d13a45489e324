//! The prompt generator g of AutoSAM: frame in, dense prompt for SAM out (arXiv 2306.06370, §3.1).

mod decoder;
mod hardnet;
mod lightweight;

pub use decoder::{SmallDecoder, SmallDecoderConfig};
pub use hardnet::{HarDNet, HarDNetConfig};
pub use lightweight::LightweightDecoder;

use crate::ops;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// Features that the decoder uses: strides 2, 4, 8, 16. What lies beyond is computed only on request.
const USED_FEATURES: usize = 4;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Side of the square input in pixels, the paper's Idim.
    pub input_size: usize,
    pub backbone: HarDNetConfig,
    pub decoder: SmallDecoderConfig,
}

impl GeneratorConfig {
    fn published(input_size: usize, backbone: HarDNetConfig) -> Self {
        Self { input_size, backbone, decoder: SmallDecoderConfig::default() }
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

    /// The shipped model's: a HarDNet a quarter as wide, one doubling (a prompt of 16 × 16 needs no stride 4).
    pub fn tiny(input_size: usize, channels: usize) -> Self {
        Self {
            input_size,
            backbone: HarDNetConfig {
                depth_wise: false,
                stem: [16, 24],
                multiplier: 1.6,
                growth: vec![8, 10, 14, 20],
                layers: vec![4, 8, 8, 8],
                channels: vec![40, 64, 96, 160],
                downsample: vec![true, false, true, false],
                dropout_slot: false,
            },
            decoder: SmallDecoderConfig { ups: 1, hidden: 96, channels },
        }
    }
}

#[derive(Debug, Clone)]
pub struct Generator {
    backbone: HarDNet,
    decoder: SmallDecoder,
    input_size: usize,
}

impl Generator {
    pub fn load(cfg: &GeneratorConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            backbone: HarDNet::load(&cfg.backbone, vb.pp("backbone"))?,
            decoder: SmallDecoder::load(&cfg.decoder, &cfg.backbone.feature_channels(), vb.pp("decoder"))?,
            input_size: cfg.input_size,
        })
    }

    /// Folds every batch norm into its convolution, for inference.
    pub fn fold(&mut self) -> Result<()> {
        self.backbone.fold()?;
        self.decoder.fold()
    }

    /// Side of the square input in pixels.
    pub fn input_size(&self) -> usize {
        self.input_size
    }

    /// The backbone's features at strides 2, 4, 8, 16 and, with `all`, 32 where there is one.
    pub fn features(&self, x: &Tensor, all: bool, train: bool) -> Result<Vec<Tensor>> {
        self.backbone.features(x, if all { usize::MAX } else { USED_FEATURES }, train)
    }

    /// Normalised, padded and resized frames `[N, 3, Idim, Idim]` → dense prompts `[N, C, grid, grid]` in
    /// (-1, 1).
    pub fn forward(&self, x: &Tensor, grid: usize, train: bool) -> Result<Tensor> {
        let prompt = self.decoder.forward(&self.features(x, false, train)?, train)?;
        ops::resize_bilinear(&prompt, grid, grid, true)
    }
}
