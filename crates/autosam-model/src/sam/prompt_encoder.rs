//! `PromptEncoder` (segment_anything/modeling/prompt_encoder.py).

use super::config::SamConfig;
use super::layers::{Conv, LayerNorm};
use autosam_ops as ops;
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

/// Channels inside the mask prompt's convolutions.
const MASK_CHANNELS: usize = 16;

/// Prompts for an object, one row per image. Coordinates are pixels of the network's input.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Coordinates `[N, P, 2]` (x, y) and labels `[N, P]`: 1 object, 0 background, -1 none.
    pub points: Option<(Tensor, Tensor)>,
    /// `[N, 4]`: x0, y0, x1, y1.
    pub boxes: Option<Tensor>,
    /// Logits `[N, 1, 4g, 4g]`.
    pub masks: Option<Tensor>,
}

#[derive(Debug, Clone)]
pub struct PromptEncoder {
    /// `[2, C/2]`, random and never trained.
    gaussian: Tensor,
    /// Background, object, and the two corners of a box, `[1, C]` each.
    point_embeddings: Vec<Tensor>,
    not_a_point: Tensor,
    no_mask: Tensor,
    mask_conv1: Conv,
    mask_norm1: LayerNorm,
    mask_conv2: Conv,
    mask_norm2: LayerNorm,
    mask_conv3: Conv,
    channels: usize,
    grid: usize,
    image_size: usize,
}

impl PromptEncoder {
    pub fn load(cfg: &SamConfig, vb: VarBuilder) -> Result<Self> {
        let c = cfg.embed_channels;
        let down = vb.pp("mask_downscaling");
        let half = ops::Conv2d { stride: 2, ..Default::default() };
        let point_embeddings =
            (0..4).map(|i| vb.pp("point_embeddings").pp(i).get((1, c), "weight")).collect::<Result<_>>()?;
        Ok(Self {
            gaussian: vb.pp("pe_layer").get((2, c / 2), "positional_encoding_gaussian_matrix")?,
            point_embeddings,
            not_a_point: vb.pp("not_a_point_embed").get((1, c), "weight")?,
            no_mask: vb.pp("no_mask_embed").get((1, c), "weight")?,
            mask_conv1: Conv::load(down.pp("0"), 1, MASK_CHANNELS / 4, 2, half, true)?,
            mask_norm1: LayerNorm::load(down.pp("1"), MASK_CHANNELS / 4, 1e-6)?,
            mask_conv2: Conv::load(down.pp("3"), MASK_CHANNELS / 4, MASK_CHANNELS, 2, half, true)?,
            mask_norm2: LayerNorm::load(down.pp("4"), MASK_CHANNELS, 1e-6)?,
            mask_conv3: Conv::load(down.pp("6"), MASK_CHANNELS, c, 1, Default::default(), true)?,
            channels: c,
            grid: cfg.grid(),
            image_size: cfg.image_size,
        })
    }

    /// Prompts of `n` images → sparse tokens `[N, T, C]` (T may be 0) and the dense prompt `[N, C, g, g]`.
    pub fn forward(&self, prompts: &Prompts, n: usize) -> Result<(Tensor, Tensor)> {
        let mut tokens = Vec::new();
        if let Some((coords, labels)) = &prompts.points {
            tokens.push(self.points(coords, labels, prompts.boxes.is_none())?);
        }
        if let Some(boxes) = &prompts.boxes {
            tokens.push(self.boxes(boxes)?);
        }
        let sparse = match tokens.as_slice() {
            // On the CPU, because a GPU's allocator does not support empty tensors.
            [] => Tensor::zeros((n, 0, self.channels), self.no_mask.dtype(), &Device::Cpu)?,
            all => Tensor::cat(all, 1)?,
        };
        let dense = match &prompts.masks {
            Some(masks) => self.masks(masks)?,
            None => {
                self.no_mask_dense()?.broadcast_as((n, self.channels, self.grid, self.grid))?.contiguous()?
            }
        };
        Ok((sparse, dense))
    }

    /// The dense prompt without a mask, `[1, C, 1, 1]`.
    pub fn no_mask_dense(&self) -> Result<Tensor> {
        self.no_mask.reshape((1, self.channels, 1, 1))
    }

    /// The encoding of every cell's centre, `[1, C, g, g]`.
    pub fn dense_pe(&self) -> Result<Tensor> {
        let g = self.grid;
        let centre = |i: usize| (i as f32 + 0.5) / g as f32;
        let coords: Vec<f32> = (0..g * g).flat_map(|i| [centre(i % g), centre(i / g)]).collect();
        let coords = Tensor::from_vec(coords, (g * g, 2), &Device::Cpu)?.to_device(self.gaussian.device())?;
        self.fourier(&coords)?.t()?.contiguous()?.reshape((1, self.channels, g, g))
    }

    /// Random Fourier features of coordinates in [0, 1], `[M, 2]` → `[M, C]`.
    fn fourier(&self, coords: &Tensor) -> Result<Tensor> {
        let angle = (coords.affine(2.0, -1.0)?.matmul(&self.gaussian)? * (2.0 * std::f64::consts::PI))?;
        Tensor::cat(&[angle.sin()?, angle.cos()?], 1)
    }

    /// Encodes `[N, P, 2]` pixel coordinates at pixel centres → `[N, P, C]`.
    fn position(&self, coords: &Tensor) -> Result<Tensor> {
        let (n, p, _) = coords.dims3()?;
        let coords = ((coords + 0.5)? / self.image_size as f64)?;
        self.fourier(&coords.reshape((n * p, 2))?)?.reshape((n, p, self.channels))
    }

    /// `pad`: appends a "no point" token if there is no box, as SAM does.
    fn points(&self, coords: &Tensor, labels: &Tensor, pad: bool) -> Result<Tensor> {
        let (coords, labels) = if pad {
            let labels = labels.pad_with_zeros(1, 0, 1)?;
            let last = (labels.zeros_like()? - 1.0)?.narrow(1, 0, 1)?;
            let p = labels.dim(1)? - 1;
            (coords.pad_with_zeros(1, 0, 1)?, Tensor::cat(&[labels.narrow(1, 0, p)?, last], 1)?)
        } else {
            (coords.clone(), labels.clone())
        };
        let is = |value: f64| -> Result<Tensor> { labels.eq(value)?.to_dtype(coords.dtype())?.unsqueeze(2) };
        let real = is(-1.0)?.affine(-1.0, 1.0)?;
        self.position(&coords)?
            .broadcast_mul(&real)?
            .broadcast_add(&is(-1.0)?.broadcast_mul(&self.not_a_point)?)?
            .broadcast_add(&is(0.0)?.broadcast_mul(&self.point_embeddings[0])?)?
            .broadcast_add(&is(1.0)?.broadcast_mul(&self.point_embeddings[1])?)
    }

    fn boxes(&self, boxes: &Tensor) -> Result<Tensor> {
        let corners = self.position(&boxes.reshape((boxes.dim(0)?, 2, 2))?)?;
        let kinds = Tensor::cat(&self.point_embeddings[2..4], 0)?;
        corners.broadcast_add(&kinds)
    }

    fn masks(&self, masks: &Tensor) -> Result<Tensor> {
        let x = ops::gelu(&self.mask_norm1.forward_2d(&self.mask_conv1.forward(masks)?)?)?;
        let x = ops::gelu(&self.mask_norm2.forward_2d(&self.mask_conv2.forward(&x)?)?)?;
        self.mask_conv3.forward(&x)
    }
}
