//! Convolutions and pooling. Convolutions are matrix products over unfolded pixels; depth-wise ones are computed
//! directly.

use super::{
    count, elementwise, kernel, name, number, only_on_a_gpu, push, rows, typed, view, with_optional,
};
use crate::{Activation, Conv2d};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};

/// `Spatial` of kernels.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Spatial {
    n: u32,
    c: u32,
    h: u32,
    w: u32,
    k: u32,
    stride: u32,
    padding: u32,
    oh: u32,
    ow: u32,
    last: u32,
}

// SAFETY: plain numbers in the layout of kernels.cu.
unsafe impl DeviceRepr for Spatial {}

impl Spatial {
    /// Sizes for `[N, C, H, W]`, or `[N, H, W, C]` with `last`.
    fn of(dims: &[usize], k: usize, cfg: Conv2d, last: bool) -> Result<Self> {
        let &[n, a, b, c] = dims else { candle_core::bail!("expected 4 dimensions, found {dims:?}") };
        let (c, h, w) = if last { (c, a, b) } else { (a, b, c) };
        let (Some(oh), Some(ow)) = (cfg.outputs(h, k), cfg.outputs(w, k)) else {
            candle_core::bail!("a kernel of {k} does not fit {dims:?} with {cfg:?}");
        };
        let Conv2d { stride, padding, .. } = cfg;
        let [n, c, oh, ow] = [n, c, oh, ow].map(|v| v as u32);
        let [h, w, k, stride, padding] = [h, w, k, stride, padding].map(|v| v as u32);
        Ok(Self { n, c, h, w, k, stride, padding, oh, ow, last: last.into() })
    }

    /// The shape of [`Self::output`]; fails if it has too many elements for a kernel.
    fn shape(&self) -> Result<Shape> {
        let shape = Shape::from(&self.output()[..]);
        count([self.n, self.c, self.h, self.w].into_iter().map(|v| v as usize).product())?;
        count(shape.elem_count())?;
        Ok(shape)
    }

    fn output(&self) -> [usize; 4] {
        let [n, c, oh, ow] = [self.n, self.c, self.oh, self.ow].map(|v| v as usize);
        if self.last != 0 { [n, oh, ow, c] } else { [n, c, oh, ow] }
    }
}

/// Depth-wise convolution of `[N, C, H, W]`, or `[N, H, W, C]` with `last`, weights `[C, 1, K, K]` in f32; with bias
/// and activation if no gradient is requested.
pub(crate) fn depthwise(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    cfg: Conv2d,
    activation: Option<Activation>,
    last: bool,
) -> Result<Tensor> {
    let w = w.to_dtype(DType::F32)?.contiguous()?;
    let spatial = Spatial::of(x.dims(), w.dim(2)?, cfg, last)?;
    let bias = bias.map(|b| b.to_dtype(DType::F32)?.contiguous()).transpose()?;
    let op = DepthWise { spatial, bias, activation };
    if x.track_op() || w.track_op() {
        x.contiguous()?.apply_op2(&w, op)
    } else {
        x.contiguous()?.apply_op2_no_bwd(&w, &op)
    }
}

struct DepthWise {
    spatial: Spatial,
    bias: Option<Tensor>,
    activation: Option<Activation>,
}

impl CustomOp2 for DepthWise {
    fn name(&self) -> &'static str {
        "autosam-cuda-depthwise"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, s) = (s1.device(), self.spatial);
        if l2.dims() != [s.c as usize, 1, s.k as usize, s.k as usize] {
            candle_core::bail!("depth-wise conv2d: {:?} and {:?}", l1.dims(), l2.dims());
        }
        let shape = s.shape()?;
        let (n, f, w) = (shape.elem_count(), number(self.activation), view::<f32>(s2, l2)?);
        let function = kernel(device, &format!("depthwise_{}", name(s1.dtype())?))?;
        typed!(s1.dtype(), T => {
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<T>(n)? };
            let x = view::<T>(s1, l1)?;
            with_optional::<f32, _>(self.bias.as_ref(), |bias| {
                let mut builder = function.builder();
                builder.arg(&x).arg(&w);
                push(&mut builder, bias);
                builder.arg(&mut out).arg(&s).arg(&f);
                // SAFETY: the kernel's parameters, with the sizes in `s`.
                unsafe { builder.launch(elementwise(n)) }.w()?;
                Ok(())
            })?;
            Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = match x.track_op() {
            true => Some(grad.apply_op2_no_bwd(
                &w.contiguous()?,
                &DepthWiseGrad { spatial: self.spatial, weight: false },
            )?),
            false => None,
        };
        let dw = match w.track_op() {
            true => Some(
                x.contiguous()?
                    .apply_op2_no_bwd(&grad, &DepthWiseGrad { spatial: self.spatial, weight: true })?,
            ),
            false => None,
        };
        Ok((dx, dw))
    }
}

/// Gradient of the weights from input and gradient, or of the input from gradient and weights.
struct DepthWiseGrad {
    spatial: Spatial,
    weight: bool,
}

impl CustomOp2 for DepthWiseGrad {
    fn name(&self) -> &'static str {
        "autosam-cuda-depthwise-grad"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, s) = (s1.device(), self.spatial);
        let [n, c, h, w, k] = [s.n, s.c, s.h, s.w, s.k].map(|v| v as usize);
        let (shape, function, config) = if self.weight {
            let config = LaunchConfig { grid_dim: ((c * k * k) as u32, 1, 1), ..elementwise(1) };
            (Shape::from((c, 1, k, k)), "depthwise_weight_f32", config)
        } else {
            (Shape::from((n, c, h, w)), "depthwise_input_f32", elementwise(n * c * h * w))
        };
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<f32>(shape.elem_count())? };
        let (a, b, function) = (view::<f32>(s1, l1)?, view::<f32>(s2, l2)?, kernel(device, function)?);
        let mut builder = function.builder();
        builder.arg(&a).arg(&b).arg(&mut out).arg(&s);
        // SAFETY: the kernel's parameters, with the sizes in `s`.
        unsafe { builder.launch(config) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}

/// `[N, C, H, W]` → `[N, C · K · K, H' · W']`: the input of a convolution's matrix product.
pub(crate) fn unfold(x: &Tensor, k: usize, cfg: Conv2d) -> Result<Tensor> {
    let op = Unfold { spatial: Spatial::of(x.dims(), k, cfg, false)?, back: false };
    x.contiguous()?.apply_op1(op)
}

struct Unfold {
    spatial: Spatial,
    /// Whether to compute the gradient, which sums unfolded values.
    back: bool,
}

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "autosam-cuda-unfold"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, s) = (storage.device(), self.spatial);
        let [n, c, h, w, k, oh, ow] = [s.n, s.c, s.h, s.w, s.k, s.oh, s.ow].map(|v| v as usize);
        let (what, shape) = match self.back {
            false => ("unfold", Shape::from((n, c * k * k, oh * ow))),
            true => ("fold", Shape::from((n, c, h, w))),
        };
        let function = kernel(device, &format!("{what}_{}", name(storage.dtype())?))?;
        let (lines, pixels) = (count(n * c * k * k)?, count(oh * ow)?);
        typed!(storage.dtype(), T => {
            let elements = shape.elem_count();
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<T>(elements)? };
            let x = view::<T>(storage, layout)?;
            let mut builder = function.builder();
            builder.arg(&x).arg(&mut out).arg(&s);
            let config = if self.back { elementwise(elements) } else { rows(lines, pixels) };
            // SAFETY: the kernel's parameters, with the sizes in `s`.
            unsafe { builder.launch(config) }.w()?;
            Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let fold = Self { spatial: self.spatial, back: true };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&fold)?))
    }
}

/// Max pooling of `[N, C, H, W]`.
pub(crate) fn max_pool(x: &Tensor, k: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let cfg = Conv2d { stride, padding, ..Default::default() };
    x.contiguous()?.apply_op1_no_bwd(&MaxPool(Spatial::of(x.dims(), k, cfg, false)?))
}

struct MaxPool(Spatial);

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "autosam-cuda-max-pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, shape) = (storage.device(), self.0.shape()?);
        let function = kernel(device, &format!("max_pool_{}", name(storage.dtype())?))?;
        typed!(storage.dtype(), T => {
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
            let x = view::<T>(storage, layout)?;
            let mut builder = function.builder();
            builder.arg(&x).arg(&mut out).arg(&self.0);
            // SAFETY: the kernel's parameters, with the sizes in `Spatial`.
            unsafe { builder.launch(elementwise(shape.elem_count())) }.w()?;
            Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
        })
    }
}
