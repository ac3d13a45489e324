//! `torch.nn.BatchNorm2d`: batch statistics and their running averages in training, the averages in inference; and the
//! convolution before it, into which inference folds it.

use super::norm::{ChannelMoments, Normalise};
use super::{Activation, Conv2d, activate, conv2d, conv2d_then, cpu};
use candle_core::{Result, Tensor, Var};
use candle_nn::VarBuilder;

/// Batch norm over `[N, C, H, W]`. State-dict names: `weight`, `bias`, `running_mean`, `running_var`.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    eps: f64,
    momentum: f64,
}

impl BatchNorm {
    /// Loads `channels` features' parameters; PyTorch's defaults, eps 1e-5 and momentum 0.1.
    pub fn load(vb: VarBuilder, channels: usize) -> Result<Self> {
        Ok(Self {
            weight: vb.get(channels, "weight")?,
            bias: vb.get(channels, "bias")?,
            // Shares the storage where the tensor is a variable already, so that a checkpoint sees the updates.
            running_mean: Var::from_tensor(&vb.get(channels, "running_mean")?)?,
            running_var: Var::from_tensor(&vb.get(channels, "running_var")?)?,
            eps: 1e-5,
            momentum: 0.1,
        })
    }

    /// `x [N, C, H, W]` → the same shape. `train` uses the batch's statistics and updates the running ones
    /// (with the unbiased variance, as PyTorch).
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (mean, var) = if train {
            let (mean, var) = batch_moments(x)?;
            let n = x.elem_count() as f64 / x.dim(1)? as f64;
            self.update(&self.running_mean, &mean, 1.0)?;
            self.update(&self.running_var, &var, n / (n - 1.0).max(1.0))?;
            (mean, var)
        } else {
            // Detached: the statistics are variables, but no gradient is wanted of them.
            (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor())
        };
        if cpu::handles(&[x, &self.weight, &self.bias]) {
            let inverse = (var.detach() + self.eps)?.sqrt()?.recip()?.to_vec1::<f32>()?;
            let op = Normalise { mean: mean.detach().to_vec1::<f32>()?, inverse, train };
            return x.contiguous()?.apply_op3(&self.weight, &self.bias, op);
        }
        let per_channel = |t: &Tensor| t.reshape((1, (), 1, 1));
        x.broadcast_sub(&per_channel(&mean)?)?
            .broadcast_div(&(per_channel(&var)? + self.eps)?.sqrt()?)?
            .broadcast_mul(&per_channel(&self.weight)?)?
            .broadcast_add(&per_channel(&self.bias)?)
    }

    /// Weights and bias of the convolution that does what `weight [O, …]`, `bias` and this norm's running averages do.
    fn folded(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (mean, var) = (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor());
        let scale = (&self.weight / (var + self.eps)?.sqrt()?)?;
        let mean = match bias {
            Some(bias) => (mean - bias)?,
            None => mean,
        };
        let shift = (&self.bias - (mean * &scale)?)?;
        Ok((weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?.detach(), shift.detach()))
    }

    fn update(&self, running: &Var, batch: &Tensor, scale: f64) -> Result<()> {
        let batch = batch.detach();
        let kept = (running.as_detached_tensor() * (1.0 - self.momentum))?;
        running.set(&(kept + (batch * (self.momentum * scale))?)?)
    }
}

/// A convolution, its batch norm, and an activation.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: BatchNorm,
    cfg: Conv2d,
    folded: Option<(Tensor, Tensor)>,
}

impl ConvNorm {
    pub fn new(weight: Tensor, bias: Option<Tensor>, norm: BatchNorm, cfg: Conv2d) -> Self {
        Self { weight, bias, norm, cfg, folded: None }
    }

    /// Folds the norm into the convolution, for inference; training goes on with what was loaded, and would not change
    /// what is folded.
    pub fn fold(&mut self) -> Result<()> {
        self.folded = Some(self.norm.folded(&self.weight, self.bias.as_ref())?);
        Ok(())
    }

    /// `[N, C, H, W]` → `[N, O, H', W']`; `train` as in [`BatchNorm::forward`].
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>, train: bool) -> Result<Tensor> {
        if let (Some((weight, bias)), false) = (&self.folded, train) {
            return conv2d_then(x, weight, Some(bias), self.cfg, activation);
        }
        let y = self.norm.forward(&conv2d(x, &self.weight, self.bias.as_ref(), self.cfg)?, train)?;
        match activation {
            Some(f) => activate(&y, f),
            None => Ok(y),
        }
    }
}

/// Mean and biased variance of each channel, `[C]` each.
fn batch_moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    if cpu::handles(&[x]) {
        let both = x.contiguous()?.apply_op1_no_bwd(&ChannelMoments)?;
        return Ok((both.narrow(0, 0, 1)?.squeeze(0)?, both.narrow(0, 1, 1)?.squeeze(0)?));
    }
    let mean = x.mean_keepdim((0, 2, 3))?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean((0, 2, 3))?;
    Ok((mean.flatten_all()?, var))
}
