//! `torch.nn.BatchNorm2d`: uses batch statistics in training and their running averages in inference. On a CPU
//! [`crate::ConvNorm`] does the computation.

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
    /// Loads the parameters of `channels` features, with PyTorch's defaults eps 1e-5 and momentum 0.1.
    pub fn load(vb: VarBuilder, channels: usize) -> Result<Self> {
        Ok(Self {
            weight: vb.get(channels, "weight")?,
            bias: vb.get(channels, "bias")?,
            // Shares the storage if the tensor is already a variable, so that checkpoints contain the updates.
            running_mean: Var::from_tensor(&vb.get(channels, "running_mean")?)?,
            running_var: Var::from_tensor(&vb.get(channels, "running_var")?)?,
            eps: 1e-5,
            momentum: 0.1,
        })
    }

    /// Changes `eps`.
    #[must_use]
    pub fn with_eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// `x [N, C, H, W]` → the same shape. `train` uses the batch's statistics and updates the running ones
    /// (with the unbiased variance, as PyTorch).
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        // `x` may be the result of a 16-bit product.
        let x = &x.to_dtype(self.weight.dtype())?;
        let (mean, var) = if train {
            let mean = x.mean_keepdim((0, 2, 3))?;
            let var = x.broadcast_sub(&mean)?.sqr()?.mean((0, 2, 3))?;
            let mean = mean.flatten_all()?;
            self.update(&mean.detach(), &var.detach(), x.elem_count() / x.dim(1)?, None)?;
            (mean, var)
        } else {
            // Detached, because the statistics are variables but need no gradient.
            (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor())
        };
        let per_channel = |t: &Tensor| t.reshape((1, (), 1, 1));
        x.broadcast_sub(&per_channel(&mean)?)?
            .broadcast_div(&(per_channel(&var)? + self.eps)?.sqrt()?)?
            .broadcast_mul(&per_channel(&self.weight)?)?
            .broadcast_add(&per_channel(&self.bias)?)
    }

    /// Folds this norm's running averages into a convolution's `weight [O, …]` and `bias`, and returns the new weights
    /// and bias.
    pub(crate) fn folded(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (mean, var) = (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor());
        let scale = (&self.weight / (var + self.eps)?.sqrt()?)?;
        let mean = match bias {
            Some(bias) => (mean - bias)?,
            None => mean,
        };
        let shift = (&self.bias - (mean * &scale)?)?;
        Ok((weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?.detach(), shift.detach()))
    }

    /// Gain and bias, `[2, C]`.
    pub(crate) fn gain_and_bias(&self) -> Result<Tensor> {
        Tensor::stack(&[&self.weight, &self.bias], 0)
    }

    pub(crate) fn eps(&self) -> f64 {
        self.eps
    }

    /// Updates the running statistics with a batch's mean and biased variance of `count` values per channel. `bias` is
    /// a bias of the layer before that the mean does not include.
    pub(crate) fn update(
        &self,
        mean: &Tensor,
        variance: &Tensor,
        count: usize,
        bias: Option<&Tensor>,
    ) -> Result<()> {
        let n = count as f64;
        let take = |running: &Var, batch: &Tensor, scale: f64, shift: Option<&Tensor>| -> Result<()> {
            let batch = (batch.to_device(running.device())?.to_dtype(running.dtype())? * scale)?;
            let batch = match shift {
                Some(shift) => (batch + shift.detach())?,
                None => batch,
            };
            running
                .set(&((running.as_detached_tensor() * (1.0 - self.momentum))? + (batch * self.momentum)?)?)
        };
        take(&self.running_mean, mean, 1.0, bias)?;
        take(&self.running_var, variance, n / (n - 1.0).max(1.0), None)
    }
}
