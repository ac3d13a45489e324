//! Convolutions and linear layers whose weights inference finds ready.

use super::forward::{Elements, apply};
use super::fused::Finish;
use super::gemm::{self, Matrix};
use super::{Activation, Conv2d, add, add_linear, conv2d_then, cpu, fusible, linear, linear_then, winograd};
use candle_core::{Result, Tensor};
use std::borrow::Cow;
use std::sync::OnceLock;

/// Weights `[O, C/groups, K, K]` and bias `[O]` of a convolution.
#[derive(Debug, Clone)]
pub struct Conv {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    cfg: Conv2d,
    /// The weights as [`winograd`] takes them.
    transformed: Option<Tensor>,
    /// Those of a 1x1 convolution as [`gemm`] takes them, once somebody has asked.
    panels: OnceLock<Option<Tensor>>,
}

impl Conv {
    pub fn new(weight: Tensor, bias: Option<Tensor>, cfg: Conv2d) -> Self {
        Self { weight, bias, cfg, transformed: None, panels: OnceLock::new() }
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

    /// The weights of a 1x1 convolution as [`gemm::laid`] gives them.
    pub(super) fn panels(&self) -> Result<Option<&Tensor>> {
        if let Some(panels) = self.panels.get() {
            return Ok(panels.as_ref());
        }
        let panels = match self.weight.dims() {
            &[o, i, 1, 1] if cpu::handles(&[&self.weight]) => laid(&self.weight.reshape((o, i))?)?,
            _ => None,
        };
        Ok(self.panels.get_or_init(|| panels).as_ref())
    }

    /// `[N, C, H, W]` → `[N, O, H', W']`.
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        match &self.transformed {
            Some(u)
                if fusible(&[x, &self.weight])
                    && self.bias.as_ref().is_none_or(|b| fusible(&[b]))
                    && winograd::pays(x.dims()) =>
            {
                let op = winograd::Transformed { finish: Finish::new(self.bias.as_ref(), activation) };
                apply(op, &[&x.contiguous()?, u])
            }
            _ => conv2d_then(x, &self.weight, self.bias.as_ref(), self.cfg, activation),
        }
    }
}

/// Weights `[O, I]` and bias `[O]` of a linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[O, I]`.
    Plain(Tensor),
    /// As [`gemm::laid`] gives them, of so many outputs.
    Laid(Tensor, usize),
}

impl Weight {
    fn plain(&self) -> Result<Cow<'_, Tensor>> {
        match self {
            Self::Plain(weight) => Ok(Cow::Borrowed(weight)),
            Self::Laid(panels, outputs) => gemm::taken_up(panels, *outputs).map(Cow::Owned),
        }
    }
}

/// See [`gemm::laid`]; of weights `[O, I]` on the CPU.
fn laid(weight: &Tensor) -> Result<Option<Tensor>> {
    let (o, i) = weight.dims2()?;
    let weight = weight.contiguous()?;
    let data = Elements::of(&weight)?;
    gemm::laid(Matrix { data: data.as_ptr(), rows: 1, cols: i as isize }, i, o)
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Plain(weight), bias }
    }

    /// Lays the weights out, for inference, as products take them, in place of what was loaded: a layer that is trained is not to be
    /// prepared. On a GPU see [`super::prepared`].
    pub fn prepare(&mut self) -> Result<()> {
        let Weight::Plain(weight) = &self.weight else { return Ok(()) };
        self.weight = match weight {
            weight if !fusible(&[weight]) => Weight::Plain(super::prepared(weight)?),
            weight => match laid(weight)? {
                Some(panels) => Weight::Laid(panels, weight.dim(0)?),
                None => return Ok(()),
            },
        };
        Ok(())
    }

    /// [`Self::prepare`] of one whose result is its bare product's, bias and activation included: the bias is in its type too.
    pub fn prepare_fused(&mut self) -> Result<()> {
        self.bias = self.bias.as_ref().map(super::prepared).transpose()?;
        self.prepare()
    }

    /// What it makes of zeros.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `[..., I]` → `[..., O]`.
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        match &self.weight {
            Weight::Laid(panels, outputs)
                if fusible(&[x, panels]) && self.bias.as_ref().is_none_or(|b| fusible(&[b])) =>
            {
                let finish = Finish::new(self.bias.as_ref(), activation);
                apply(linear::Laid { finish, outputs: *outputs }, &[&x.contiguous()?, panels])
            }
            weight => linear_then(x, &*weight.plain()?, self.bias.as_ref(), activation),
        }
    }

    /// `residual` and what [`Self::forward`] gives.
    pub fn add_to(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Laid(panels, _) if fusible(&[residual, x, panels]) => {
                add(residual, &self.forward(x, None)?)
            }
            weight => add_linear(residual, x, &*weight.plain()?, self.bias.as_ref()),
        }
    }
}
