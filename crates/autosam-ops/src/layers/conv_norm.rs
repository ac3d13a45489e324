//! A linear map with batch norm and activation. In training it is one operation that keeps only the intermediate result
//! needed by its backward; in inference the norm is folded into the map's weights.

use super::batch_norm::BatchNorm;
use super::prepared::Conv;
use crate::autograd::tape;
use crate::functional::conv::conv2d;
use crate::functional::elementwise::activate;
use crate::functional::layout::{channels_first, channels_last};
use crate::functional::linear::linear_then;
use crate::kernels::cpu::channel_norm::{ChannelLayout, Channels};
use crate::kernels::cpu::common::{fusible, gradient_of, handles};
use crate::kernels::cpu::epilogue::Epilogue;
use crate::kernels::cpu::linear::Weights;
use crate::kernels::cpu::{conv, depthwise, depthwise_last, linear};
use crate::kernels::cuda;
use crate::runtime::capture::apply;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel};
use crate::runtime::memory::filled;
use crate::runtime::operands::{Args, Elements};
use crate::{Activation, Conv2d};
use candle_core::{Result, Shape, Tensor};
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

/// A convolution with batch norm and an activation.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: BatchNorm,
    cfg: Conv2d,
    /// The convolution with the norm folded in.
    folded: Option<Conv>,
}

impl ConvNorm {
    pub fn new(weight: Tensor, bias: Option<Tensor>, norm: BatchNorm, cfg: Conv2d) -> Self {
        Self { weight, bias, norm, cfg, folded: None }
    }

    /// Folds the norm into the convolution for inference. Training still uses the loaded weights and does not update
    /// the folded ones.
    pub fn fold(&mut self) -> Result<()> {
        let (weight, bias) = self.norm.folded(&self.weight, self.bias.as_ref())?;
        let mut folded = Conv::new(weight, Some(bias), self.cfg);
        folded.prepare()?;
        self.folded = Some(folded);
        Ok(())
    }

    /// Weights and bias with the norm folded in, and the convolution's parameters.
    pub(crate) fn weights_of_inference(&self) -> Result<(Vec<f32>, Vec<f32>, Conv2d)> {
        let Some(Conv { weight, bias: Some(bias), .. }) = &self.folded else {
            candle_core::bail!("a convolution whose norm is not folded");
        };
        Ok((weight.flatten_all()?.to_vec1()?, bias.to_vec1()?, self.cfg))
    }

    /// `[N, C, H, W]` → `[N, O, H', W']`; `train` as in [`BatchNorm::forward`].
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>, train: bool) -> Result<Tensor> {
        if let (Some(folded), false) = (&self.folded, train) {
            return folded.forward(x, activation);
        }
        let cfg = self.cfg;
        let map = match cfg.groups {
            1 => Some(Map::Conv(cfg)),
            g if g == x.dim(1)? && g == self.weight.dim(0)? => Some(Map::DepthWise(cfg)),
            _ => None,
        };
        match map {
            Some(map) if train && handles(&[x, &self.weight]) => self.fused(x, map, activation),
            _ => {
                let y = self.norm.forward(&conv2d(x, &self.weight, self.bias.as_ref(), self.cfg)?, train)?;
                match activation {
                    Some(f) => activate(&y, f),
                    None => Ok(y),
                }
            }
        }
    }

    /// [`Self::forward`] with channels last, `[N, H, W, C]` → `[N, H', W', O]`, for depth-wise and 1x1 convolutions.
    pub fn forward_last(&self, x: &Tensor, activation: Option<Activation>, train: bool) -> Result<Tensor> {
        let cfg = self.cfg;
        let (o, _, k, _) = self.weight.dims4()?;
        let map = match (cfg.groups, k) {
            (1, 1) if cfg == Conv2d::default() => Map::Rows,
            (groups, _) if groups == o => Map::DepthWiseLast(cfg),
            _ => candle_core::bail!("channels last: a depth-wise or 1x1 convolution, not {:?}", self.cfg),
        };
        if train && handles(&[x, &self.weight]) {
            return self.fused(x, map, activation);
        }
        match &self.folded {
            Some(folded) if !train && fusible(&[x, &folded.weight]) => {
                let (x, epilogue) = (x.contiguous()?, Epilogue::new(folded.bias.as_ref(), activation));
                match (map, folded.panels()?) {
                    (Map::Rows, Some(panels)) => {
                        apply(linear::Packed { epilogue, outputs: o }, &[&x, panels])
                    }
                    _ => {
                        let op = FoldedLast { map, epilogue, transposed: OnceLock::new() };
                        apply(op, &[&x, &folded.weight])
                    }
                }
            }
            Some(folded) if !train && cuda::fusible(&[x, &folded.weight]) => match map {
                Map::Rows => {
                    let w = folded.weight.reshape((o, ()))?;
                    linear_then(x, &w, folded.bias.as_ref(), activation)
                }
                _ => cuda::depthwise(x, &folded.weight, folded.bias.as_ref(), self.cfg, activation, true),
            },
            _ => channels_last(&self.forward(&channels_first(x)?, activation, train)?),
        }
    }

    /// The fused operation for training. A bias before the norm only shifts the mean, so it is left out, and its
    /// gradient is 0.
    fn fused(&self, x: &Tensor, map: Map, activation: Option<Activation>) -> Result<Tensor> {
        let kept = Arc::new(OnceLock::new());
        let op = ConvNormOp { map, activation, eps: self.norm.eps(), kept: kept.clone() };
        let y =
            tape::apply(op, &[&x.contiguous()?, &self.weight.contiguous()?, &self.norm.gain_and_bias()?])?;
        if let Some(Kept { channels, variance, count, .. }) = kept.get() {
            let tensor = |values: &[f32]| Tensor::new(values, x.device());
            self.norm.update(&tensor(&channels.mean)?, &tensor(variance)?, *count, self.bias.as_ref())?;
        }
        Ok(y)
    }
}

/// The linear map before the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Map {
    /// `[N, C, H, W]`, weights `[O, C, K, K]`.
    Conv(Conv2d),
    /// `[N, C, H, W]`, weights `[C, 1, K, K]`.
    DepthWise(Conv2d),
    /// `[N, H, W, C]`, weights `[C, 1, K, K]`.
    DepthWiseLast(Conv2d),
    /// `[N, H, W, C]`, weights `[O, C, 1, 1]`.
    Rows,
}

/// A map with the sizes of its operands.
enum Sized {
    Conv(conv::Geometry),
    DepthWise(depthwise::Geometry),
    DepthWiseLast(depthwise_last::Geometry),
    Rows { i: usize, o: usize, shape: [usize; 4] },
}

impl Map {
    fn sized(self, x: &[usize], w: &[usize]) -> Result<Sized> {
        Ok(match self {
            Self::Conv(cfg) => Sized::Conv(conv::Geometry::of(x, w, cfg)?),
            Self::DepthWise(cfg) => Sized::DepthWise(depthwise::Geometry::of(x, w, cfg)?),
            Self::DepthWiseLast(cfg) => Sized::DepthWiseLast(depthwise_last::Geometry::of(x, w, cfg)?),
            Self::Rows => {
                let (&[n, h, width, c], &[o, i, 1, 1]) = (x, w) else {
                    candle_core::bail!(
                        "1x1 convolution: expected [N, H, W, C] and [O, C, 1, 1], found {x:?} and {w:?}"
                    )
                };
                if c != i {
                    candle_core::bail!("1x1 convolution: {w:?} does not fit {x:?}");
                }
                Sized::Rows { i, o, shape: [n, h, width, o] }
            }
        })
    }
}

impl Sized {
    fn shape(&self) -> [usize; 4] {
        match self {
            Self::Conv(g) => g.shape(),
            Self::DepthWise(g) => [g.n, g.c, g.oh, g.ow],
            Self::DepthWiseLast(g) => [g.n, g.oh, g.ow, g.c],
            Self::Rows { shape, .. } => *shape,
        }
    }

    /// Memory layout of the result's channels.
    fn layout(&self) -> ChannelLayout {
        match self {
            Self::Conv(g) => ChannelLayout::Planes { n: g.n, c: g.o, pixels: g.oh * g.ow },
            Self::DepthWise(g) => ChannelLayout::Planes { n: g.n, c: g.c, pixels: g.oh * g.ow },
            Self::DepthWiseLast(g) => ChannelLayout::Rows { rows: g.n * g.oh * g.ow, c: g.c },
            Self::Rows { o, shape, .. } => ChannelLayout::Rows { rows: shape[..3].iter().product(), c: *o },
        }
    }

    fn forward(&self, x: &[f32], w: &[f32]) -> Vec<f32> {
        let write = |out: &mut [MaybeUninit<f32>]| match self {
            Self::Conv(g) => g.forward(x, w, None, out),
            Self::DepthWise(g) => g.forward(x, w, None, out),
            Self::DepthWiseLast(g) => g.forward(x, &g.transposed(w), |_| {}, out),
            Self::Rows { i, o, .. } => linear::product(x, Weights::Rows(w), *i, *o, |_| {}, out),
        };
        // SAFETY: each writes all of its result.
        unsafe { filled(self.shape().iter().product(), write) }
    }

    fn grad_input(&self, grad: &[f32], w: &[f32]) -> Vec<f32> {
        match self {
            Self::Conv(g) => g.grad_input(grad, w),
            Self::DepthWise(g) => g.grad_input(grad, w),
            Self::DepthWiseLast(g) => g.grad_input(grad, w),
            Self::Rows { i, o, .. } => linear::grad_input(grad, w, *i, *o),
        }
    }

    fn grad_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        match self {
            Self::Conv(g) => g.grad_weight(x, grad),
            Self::DepthWise(g) => g.grad_weight(x, grad),
            Self::DepthWiseLast(g) => g.grad_weight(x, grad),
            Self::Rows { i, o, .. } => linear::grad_weight(x, grad, *i, *o),
        }
    }
}

/// Values that forward keeps for backward.
#[derive(Debug)]
struct Kept {
    /// The map's result.
    before: Vec<f32>,
    channels: Channels,
    /// Biased variance of each channel.
    variance: Vec<f32>,
    /// Number of values per channel.
    count: usize,
}

/// The operation on x, weights, and the norm's gain and bias `[2, O]`.
struct ConvNormOp {
    map: Map,
    activation: Option<Activation>,
    eps: f64,
    kept: Arc<OnceLock<Kept>>,
}

// SAFETY: `normalise` writes all.
unsafe impl Kernel for ConvNormOp {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(&self.map.sized(args.dims(0), args.dims(1))?.shape()))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let map = self.map.sized(args.dims(0), args.dims(1))?;
        let before = map.forward(&args.get(0)?, &args.get(1)?);
        let layout = map.layout();
        let (mean, variance) = layout.moments(&before);
        let norm = args.get(2)?;
        let (gain, bias) = norm.split_at(mean.len());
        let inverse = variance.iter().map(|v| (1.0 / (f64::from(*v) + self.eps).sqrt()) as f32).collect();
        let channels = Channels { mean, inverse, gain: gain.to_vec(), bias: bias.to_vec() };
        layout.normalise(&before, &channels, self.activation, out);
        // Set once, because the forward pass runs once.
        let _ = self.kept.set(Kept { before, channels, variance, count: layout.count() });
        Ok(())
    }
}

impl Differentiable for ConvNormOp {
    fn name(&self) -> &'static str {
        "autosam-conv-norm"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (x, w, norm) = (args[0], args[1], args[2]);
        let map = self.map.sized(x.dims(), w.dims())?;
        let Some(kept) = self.kept.get() else { candle_core::bail!("backward before forward") };
        let (grad, mut gain, bias) =
            map.layout().grad(&kept.before, &Elements::of(grad)?, &kept.channels, self.activation);
        let dx = gradient_of(x, || Ok(map.grad_input(&grad, &Elements::of(w)?)))?;
        let dw = gradient_of(w, || Ok(map.grad_weight(&Elements::of(x)?, &grad)))?;
        gain.extend(bias);
        let dn = gradient_of(norm, || Ok(gain))?;
        Ok([dx, dw, dn])
    }
}

/// The operation on x and weights with channels last and the norm folded.
struct FoldedLast {
    map: Map,
    epilogue: Epilogue,
    /// Transposed weights of a depth-wise convolution.
    transposed: OnceLock<Vec<f32>>,
}

// SAFETY: each map writes all of its result.
unsafe impl Kernel for FoldedLast {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(&self.map.sized(args.dims(0), args.dims(1))?.shape()))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let map = self.map.sized(args.dims(0), args.dims(1))?;
        let (x, w) = (args.get(0)?, args.get(1)?);
        let epilogue = self.epilogue.per_channel(args.dims(1)[0])?;
        let epilogue = |block: &mut [f32]| {
            if let Some(epilogue) = &epilogue {
                epilogue.rows(block);
            }
        };
        match &map {
            Sized::DepthWiseLast(g) => {
                g.forward(&x, self.transposed.get_or_init(|| g.transposed(&w)), epilogue, out)
            }
            Sized::Rows { i, o, .. } => linear::product(&x, Weights::Rows(&w), *i, *o, epilogue, out),
            Sized::Conv(_) | Sized::DepthWise(_) => candle_core::bail!("{:?} is not channels last", self.map),
        }
        Ok(())
    }
}
