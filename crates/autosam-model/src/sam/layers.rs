//! Layers shared by several parts, loaded by PyTorch's names.

use autosam_ops::{self as ops, Activation};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// `nn.Linear`.
#[derive(Debug, Clone)]
pub(crate) struct Linear(ops::Linear);

impl Linear {
    pub fn load(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self(ops::Linear::new(vb.get((outputs, inputs), "weight")?, Some(vb.get(outputs, "bias")?))))
    }

    /// See [`ops::Linear::prepare`].
    pub fn prepare(&mut self) -> Result<()> {
        self.0.prepare()
    }

    /// See [`ops::Linear::prepare_fused`].
    pub fn prepare_fused(&mut self) -> Result<()> {
        self.0.prepare_fused()
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x, None)
    }

    /// The bias, which is the output for an input of zeros.
    pub fn bias(&self) -> Option<&Tensor> {
        self.0.bias()
    }

    /// `residual` plus the result of [`Self::forward`].
    pub fn add_to(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.0.add_to(residual, x)
    }

    pub fn forward_then(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.0.forward(x, Some(activation))
    }
}

/// `nn.LayerNorm`, over the last dimension.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn load(vb: VarBuilder, size: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: vb.get(size, "weight")?, bias: vb.get(size, "bias")?, eps })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }

    /// See [`ops::layer_norm_for_products`].
    pub fn forward_for_products(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_for_products(x, &self.weight, &self.bias, self.eps)
    }

    /// Over the channels of `[N, C, H, W]` (SAM's `LayerNorm2d`).
    pub fn forward_2d(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_2d(x, &self.weight, &self.bias, self.eps)
    }
}

/// `nn.Conv2d` with or without bias.
#[derive(Debug, Clone)]
pub(crate) struct Conv(ops::Conv);

impl Conv {
    pub fn load(
        vb: VarBuilder,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        cfg: ops::Conv2d,
        bias: bool,
    ) -> Result<Self> {
        let weight = vb.get((outputs, inputs / cfg.groups, kernel, kernel), "weight")?;
        let bias = if bias { Some(vb.get(outputs, "bias")?) } else { None };
        Ok(Self(ops::Conv::new(weight, bias, cfg)))
    }

    /// See [`ops::Conv::prepare`].
    pub fn prepare(&mut self) -> Result<()> {
        self.0.prepare()
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x, None)
    }
}

/// SAM's `neck`: 1x1, norm, 3x3, norm; no biases. `[N, C, g, g]` → `[N, out, g, g]`.
#[derive(Debug, Clone)]
pub(crate) struct Neck {
    conv1: Conv,
    norm1: LayerNorm,
    conv2: Conv,
    norm2: LayerNorm,
}

impl Neck {
    pub fn load(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        let padded = ops::Conv2d { padding: 1, ..Default::default() };
        Ok(Self {
            conv1: Conv::load(vb.pp("0"), inputs, outputs, 1, Default::default(), false)?,
            norm1: LayerNorm::load(vb.pp("1"), outputs, 1e-6)?,
            conv2: Conv::load(vb.pp("2"), outputs, outputs, 3, padded, false)?,
            norm2: LayerNorm::load(vb.pp("3"), outputs, 1e-6)?,
        })
    }

    /// See [`ops::Conv::prepare`].
    pub fn prepare(&mut self) -> Result<()> {
        self.conv1.prepare()?;
        self.conv2.prepare()
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.norm1.forward_2d(&self.conv1.forward(x)?)?;
        self.norm2.forward_2d(&self.conv2.forward(&x)?)
    }
}
