//! A linear map, its batch norm and an activation: in training one operation with one result, which keeps what its
//! backward needs; in inference the norm is folded into the map's weights.

use super::batch_norm::BatchNorm;
use super::channel_norm::{Arrangement, Channels};
use super::cpu::gradient_of;
use super::forward::{Args, Elements, Forward, apply, filled, in_storage};
use super::fused::Finish;
use super::linear::Weights;
use super::pointwise::Activation;
use super::{
    Conv, Conv2d, activate, channels_first, channels_last, conv, conv2d, cpu, depthwise, depthwise_last,
    fusible, linear, tape,
};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

/// A convolution, its batch norm, and an activation.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: BatchNorm,
    cfg: Conv2d,
    /// With the norm in its weights and bias.
    folded: Option<Conv>,
}

impl ConvNorm {
    pub fn new(weight: Tensor, bias: Option<Tensor>, norm: BatchNorm, cfg: Conv2d) -> Self {
        Self { weight, bias, norm, cfg, folded: None }
    }

    /// Folds the norm into the convolution, for inference; training goes on with what was loaded, and would not change
    /// what is folded.
    pub fn fold(&mut self) -> Result<()> {
        let (weight, bias) = self.norm.folded(&self.weight, self.bias.as_ref())?;
        let mut folded = Conv::new(weight, Some(bias), self.cfg);
        folded.prepare()?;
        self.folded = Some(folded);
        Ok(())
    }

    /// `[N, C, H, W]` → `[N, O, H', W']`; `train` as in [`BatchNorm::forward`].
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>, train: bool) -> Result<Tensor> {
        if let (Some(folded), false) = (&self.folded, train) {
            return folded.forward(x, activation);
        }
        let Conv2d { stride, padding, groups } = self.cfg;
        let map = match groups {
            1 => Some(Map::Conv { stride, padding }),
            g if g == x.dim(1)? && g == self.weight.dim(0)? => Some(Map::DepthWise { stride, padding }),
            _ => None,
        };
        match map {
            Some(map) if train && cpu::handles(&[x, &self.weight]) => self.fused(x, map, activation),
            _ => {
                let y = self.norm.forward(&conv2d(x, &self.weight, self.bias.as_ref(), self.cfg)?, train)?;
                match activation {
                    Some(f) => activate(&y, f),
                    None => Ok(y),
                }
            }
        }
    }

    /// [`Self::forward`] of `[N, H, W, C]` → `[N, H', W', O]`, for depth-wise and 1x1 convolutions.
    pub fn forward_last(&self, x: &Tensor, activation: Option<Activation>, train: bool) -> Result<Tensor> {
        let Conv2d { stride, padding, groups } = self.cfg;
        let (o, _, k, _) = self.weight.dims4()?;
        let map = match (groups, k, stride, padding) {
            (1, 1, 1, 0) => Map::Rows,
            (groups, ..) if groups == o => Map::DepthWiseLast { stride, padding },
            _ => candle_core::bail!("channels last: a depth-wise or 1x1 convolution, not {:?}", self.cfg),
        };
        if train && cpu::handles(&[x, &self.weight]) {
            return self.fused(x, map, activation);
        }
        match &self.folded {
            Some(folded) if !train && fusible(&[x, &folded.weight]) => {
                let (x, finish) = (x.contiguous()?, Finish::new(folded.bias.as_ref(), activation));
                match (map, folded.panels()?) {
                    (Map::Rows, Some(panels)) => apply(linear::Laid { finish, outputs: o }, &[&x, panels]),
                    _ => {
                        let op = FoldedLast { map, finish, turned: OnceLock::new() };
                        apply(op, &[&x, &folded.weight])
                    }
                }
            }
            #[cfg(feature = "cuda")]
            Some(folded) if !train && super::cuda::fusible(&[x, &folded.weight]) => match map {
                Map::Rows => {
                    let w = folded.weight.reshape((o, ()))?;
                    super::linear_then(x, &w, folded.bias.as_ref(), activation)
                }
                _ => super::cuda::depthwise(
                    x,
                    &folded.weight,
                    folded.bias.as_ref(),
                    self.cfg,
                    activation,
                    true,
                ),
            },
            _ => channels_last(&self.forward(&channels_first(x)?, activation, train)?),
        }
    }

    /// The training step's operation. A bias before the norm only shifts the mean: it is left out, and its gradient is 0.
    fn fused(&self, x: &Tensor, map: Map, activation: Option<Activation>) -> Result<Tensor> {
        let kept = Arc::new(OnceLock::new());
        let op = ConvNormOp { map, activation, eps: self.norm.eps(), kept: kept.clone() };
        let y = tape::apply3(&x.contiguous()?, &self.weight.contiguous()?, &self.norm.gain_and_bias()?, op)?;
        if let Some(Kept { channels, variance, count, .. }) = kept.get() {
            let tensor = |values: &[f32]| Tensor::new(values, x.device());
            self.norm.update(&tensor(&channels.mean)?, &tensor(variance)?, *count, self.bias.as_ref())?;
        }
        Ok(y)
    }
}

/// What is computed before the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Map {
    /// `[N, C, H, W]`, weights `[O, C, K, K]`.
    Conv { stride: usize, padding: usize },
    /// `[N, C, H, W]`, weights `[C, 1, K, K]`.
    DepthWise { stride: usize, padding: usize },
    /// `[N, H, W, C]`, weights `[C, 1, K, K]`.
    DepthWiseLast { stride: usize, padding: usize },
    /// `[N, H, W, C]`, weights `[O, C, 1, 1]`.
    Rows,
}

/// A map on operands of known shapes.
enum Sized {
    Conv(conv::Geometry),
    DepthWise(depthwise::Geometry),
    DepthWiseLast(depthwise_last::Geometry),
    Rows { i: usize, o: usize, shape: [usize; 4] },
}

impl Map {
    fn sized(self, x: &[usize], w: &[usize]) -> Result<Sized> {
        Ok(match self {
            Self::Conv { stride, padding } => Sized::Conv(conv::Geometry::of(x, w, stride, padding)?),
            Self::DepthWise { stride, padding } => {
                Sized::DepthWise(depthwise::Geometry::of(x, w, stride, padding)?)
            }
            Self::DepthWiseLast { stride, padding } => {
                Sized::DepthWiseLast(depthwise_last::Geometry::of(x, w, stride, padding)?)
            }
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

    /// How the result's channels lie.
    fn arrangement(&self) -> Arrangement {
        match self {
            Self::Conv(g) => Arrangement::Planes { n: g.n, c: g.o, pixels: g.oh * g.ow },
            Self::DepthWise(g) => Arrangement::Planes { n: g.n, c: g.c, pixels: g.oh * g.ow },
            Self::DepthWiseLast(g) => Arrangement::Rows { rows: g.n * g.oh * g.ow, c: g.c },
            Self::Rows { o, shape, .. } => Arrangement::Rows { rows: shape[..3].iter().product(), c: *o },
        }
    }

    fn forward(&self, x: &[f32], w: &[f32]) -> Vec<f32> {
        let write = |out: &mut [MaybeUninit<f32>]| match self {
            Self::Conv(g) => g.forward(x, w, None, out),
            Self::DepthWise(g) => g.forward(x, w, None, out),
            Self::DepthWiseLast(g) => g.forward(x, &g.turned(w), |_| {}, out),
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

/// What backward needs of forward.
#[derive(Debug)]
struct Kept {
    /// The map's result.
    before: Vec<f32>,
    channels: Channels,
    /// Biased, of each channel.
    variance: Vec<f32>,
    /// Values a channel.
    count: usize,
}

/// Of x, weights, and the norm's gain and bias `[2, O]`.
struct ConvNormOp {
    map: Map,
    activation: Option<Activation>,
    eps: f64,
    kept: Arc<OnceLock<Kept>>,
}

// SAFETY: `normalise` writes all.
unsafe impl Forward for ConvNormOp {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(&self.map.sized(args.dims(0), args.dims(1))?.shape()))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let map = self.map.sized(args.dims(0), args.dims(1))?;
        let before = map.forward(&args.get(0)?, &args.get(1)?);
        let arrangement = map.arrangement();
        let (mean, variance) = arrangement.moments(&before);
        let norm = args.get(2)?;
        let (gain, bias) = norm.split_at(mean.len());
        let inverse = variance.iter().map(|v| (1.0 / (f64::from(*v) + self.eps).sqrt()) as f32).collect();
        let channels = Channels { mean, inverse, gain: gain.to_vec(), bias: bias.to_vec() };
        arrangement.normalise(&before, &channels, self.activation, out);
        // A forward pass happens once.
        let _ = self.kept.set(Kept { before, channels, variance, count: arrangement.count() });
        Ok(())
    }
}

impl CustomOp3 for ConvNormOp {
    fn name(&self) -> &'static str {
        "autosam-conv-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        in_storage(self, &[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        norm: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let map = self.map.sized(x.dims(), w.dims())?;
        let Some(kept) = self.kept.get() else { candle_core::bail!("backward before forward") };
        let grad = grad.contiguous()?;
        let (grad, mut gain, bias) =
            map.arrangement().grad(&kept.before, &Elements::of(&grad)?, &kept.channels, self.activation);
        let dx = gradient_of(x, || Ok(map.grad_input(&grad, &Elements::of(w)?)))?;
        let dw = gradient_of(w, || Ok(map.grad_weight(&Elements::of(x)?, &grad)))?;
        gain.extend(bias);
        let dn = gradient_of(norm, || Ok(gain))?;
        Ok((dx, dw, dn))
    }
}

/// Channels last, the norm folded: of x and weights.
struct FoldedLast {
    map: Map,
    finish: Finish,
    /// Weights of a depth-wise convolution as it takes them.
    turned: OnceLock<Vec<f32>>,
}

// SAFETY: each map writes all of its result.
unsafe impl Forward for FoldedLast {
    fn shape(&self, args: Args) -> Result<Shape> {
        Ok(Shape::from(&self.map.sized(args.dims(0), args.dims(1))?.shape()))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let map = self.map.sized(args.dims(0), args.dims(1))?;
        let (x, w) = (args.get(0)?, args.get(1)?);
        let finish = self.finish.per_channel(args.dims(1)[0])?;
        let finish = |block: &mut [f32]| {
            if let Some(finish) = &finish {
                finish.rows(block);
            }
        };
        match &map {
            Sized::DepthWiseLast(g) => g.forward(&x, self.turned.get_or_init(|| g.turned(&w)), finish, out),
            Sized::Rows { i, o, .. } => linear::product(&x, Weights::Rows(&w), *i, *o, finish, out),
            Sized::Conv(_) | Sized::DepthWise(_) => candle_core::bail!("{:?} is not channels last", self.map),
        }
        Ok(())
    }
}
