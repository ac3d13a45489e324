//! A convolution whose weights inference finds ready.

use super::cpu::Elements;
use super::fused::Finish;
use super::{Activation, Conv2d, conv2d_then, cpu, fusible, winograd};
use candle_core::{Result, Tensor};

/// Weights `[O, C/groups, K, K]` and bias `[O]` of a convolution.
#[derive(Debug, Clone)]
pub struct Conv {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    cfg: Conv2d,
    /// The weights as [`winograd`] takes them.
    transformed: Option<Tensor>,
}

impl Conv {
    pub fn new(weight: Tensor, bias: Option<Tensor>, cfg: Conv2d) -> Self {
        Self { weight, bias, cfg, transformed: None }
    }

    /// Computes once what every inference needs. Weights that are trained are not affected: they are transformed anew each
    /// time.
    pub fn prepare(&mut self) -> Result<()> {
        if winograd::applies(self.weight.dims(), self.cfg) && cpu::handles(&[&self.weight]) {
            let (o, c, ..) = self.weight.dims4()?;
            let u = winograd::transformed(&Elements::of(&self.weight.contiguous()?)?, o, c);
            self.transformed = Some(Tensor::from_vec(u, (winograd::POINTS, o, c), self.weight.device())?);
        }
        if self.cfg.groups == 1 {
            self.weight = super::prepared(&self.weight)?;
        }
        Ok(())
    }

    /// `[N, C, H, W]` → `[N, O, H', W']`.
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        match &self.transformed {
            Some(u)
                if fusible(&[x, &self.weight])
                    && self.bias.as_ref().is_none_or(|b| fusible(&[b]))
                    && winograd::pays(x.dims()) =>
            {
                let op = winograd::Forward { finish: Finish::new(self.bias.as_ref(), activation) };
                x.contiguous()?.apply_op2_no_bwd(u, &op)
            }
            _ => conv2d_then(x, &self.weight, self.bias.as_ref(), self.cfg, activation),
        }
    }
}
