//! Convolutions and linear layers with weights prepared for inference.

use crate::functional::conv::conv2d_then;
use crate::functional::elementwise::add;
use crate::functional::linear::{add_linear, linear_then};
use crate::kernels::cpu::common::{fusible, handles};
use crate::kernels::cpu::epilogue::Epilogue;
use crate::kernels::cpu::gemm::{self, MatRef};
use crate::kernels::cpu::{linear, winograd};
use crate::runtime::capture::apply;
use crate::runtime::operands::Elements;
use crate::{Activation, Conv2d};
use candle_core::{Result, Tensor};
use std::borrow::Cow;
use std::sync::OnceLock;

/// Weights `[O, C/groups, K, K]` and bias `[O]` of a convolution.
#[derive(Debug, Clone)]
pub struct Conv {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    cfg: Conv2d,
    /// The weights transformed for [`winograd`].
    transformed: Option<Tensor>,
    /// The weights of a 1x1 convolution packed for [`gemm`], computed at first use.
    panels: OnceLock<Option<Tensor>>,
}

impl Conv {
    pub fn new(weight: Tensor, bias: Option<Tensor>, cfg: Conv2d) -> Self {
        Self { weight, bias, cfg, transformed: None, panels: OnceLock::new() }
    }

    /// Transforms the weights once for inference. Trained weights are not affected; they are transformed again each
    /// time.
    pub fn prepare(&mut self) -> Result<()> {
        if winograd::applies(self.weight.dims(), self.cfg) && handles(&[&self.weight]) {
            let (o, c, ..) = self.weight.dims4()?;
            let u = winograd::transformed(&Elements::of(&self.weight.contiguous()?)?, o, c);
            self.transformed = Some(Tensor::from_vec(u, (winograd::POINTS, o, c), self.weight.device())?);
        }
        if self.cfg.groups == 1 {
            self.weight = crate::functional::linear::prepared(&self.weight)?;
        }
        Ok(())
    }

    /// The weights of a 1x1 convolution, packed by [`gemm::pack_rhs`].
    pub(crate) fn panels(&self) -> Result<Option<&Tensor>> {
        if let Some(panels) = self.panels.get() {
            return Ok(panels.as_ref());
        }
        let panels = match self.weight.dims() {
            &[o, i, 1, 1] if handles(&[&self.weight]) => packed(&self.weight.reshape((o, i))?)?,
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
                let op = winograd::Transformed { epilogue: Epilogue::new(self.bias.as_ref(), activation) };
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
    /// Packed by [`gemm::pack_rhs`], with the number of outputs.
    Packed(Tensor, usize),
}

impl Weight {
    fn plain(&self) -> Result<Cow<'_, Tensor>> {
        match self {
            Self::Plain(weight) => Ok(Cow::Borrowed(weight)),
            Self::Packed(panels, outputs) => gemm::unpack_rhs(panels, *outputs).map(Cow::Owned),
        }
    }
}

/// Packs weights `[O, I]` on the CPU; see [`gemm::pack_rhs`].
fn packed(weight: &Tensor) -> Result<Option<Tensor>> {
    let (o, i) = weight.dims2()?;
    let weight = weight.contiguous()?;
    let data = Elements::of(&weight)?;
    gemm::pack_rhs(MatRef { data: data.as_ptr(), row_stride: 1, col_stride: i as isize }, i, o)
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Plain(weight), bias }
    }

    /// Packs the weights into GEMM panels for inference, in place of the loaded tensor. Do not call this on a layer that will be
    /// trained. On a GPU see [`crate::functional::linear::prepared`].
    pub fn prepare(&mut self) -> Result<()> {
        let Weight::Plain(weight) = &self.weight else { return Ok(()) };
        self.weight = match weight {
            weight if !fusible(&[weight]) => Weight::Plain(crate::functional::linear::prepared(weight)?),
            weight => match packed(weight)? {
                Some(panels) => Weight::Packed(panels, weight.dim(0)?),
                None => return Ok(()),
            },
        };
        Ok(())
    }

    /// [`Self::prepare`] for a layer whose bias and activation are fused into the product: the bias is converted to its
    /// type as well.
    pub fn prepare_fused(&mut self) -> Result<()> {
        self.bias = self.bias.as_ref().map(crate::functional::linear::prepared).transpose()?;
        self.prepare()
    }

    /// The bias, which is the output for an input of zeros.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `[..., I]` → `[..., O]`.
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(panels, outputs)
                if fusible(&[x, panels]) && self.bias.as_ref().is_none_or(|b| fusible(&[b])) =>
            {
                let epilogue = Epilogue::new(self.bias.as_ref(), activation);
                apply(linear::Packed { epilogue, outputs: *outputs }, &[&x.contiguous()?, panels])
            }
            weight => linear_then(x, &*weight.plain()?, self.bias.as_ref(), activation),
        }
    }

    /// `residual` plus the result of [`Self::forward`].
    pub fn add_to(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(panels, _) if fusible(&[residual, x, panels]) => {
                add(residual, &self.forward(x, None)?)
            }
            weight => add_linear(residual, x, &*weight.plain()?, self.bias.as_ref()),
        }
    }
}
