//! Layer norm over the last dimension, and over the channels of an image.

use super::{fusible, kernel, name, only_on_a_gpu, typed, view};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

/// Whether [`layer_norm`] applies: a row must fit a warp's registers.
pub(crate) fn norms(x: &Tensor, w: &Tensor, b: &Tensor) -> bool {
    fusible(&[x, w, b]) && x.dims().last().is_some_and(|c| c.is_multiple_of(4) && *c <= 1280)
}

/// Layer norm over the last dimension, with a result of type `out`.
pub(crate) fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64, out: DType) -> Result<Tensor> {
    x.contiguous()?.apply_op3_no_bwd(
        &w.contiguous()?,
        &b.contiguous()?,
        &LayerNorm { eps: eps as f32, out, planes: false },
    )
}

/// Layer norm over the channels of `[N, C, H, W]`, in f32.
pub(crate) fn layer_norm_2d(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let norm = LayerNorm { eps: eps as f32, out: DType::F32, planes: true };
    x.contiguous()?.apply_op3_no_bwd(&w.contiguous()?, &b.contiguous()?, &norm)
}

struct LayerNorm {
    eps: f32,
    out: DType,
    planes: bool,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "autosam-cuda-layer-norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = s1.device();
        let (w, b) = (view::<f32>(s2, l2)?, view::<f32>(s3, l3)?);
        let (n, width) = (l1.shape().elem_count(), l2.shape().elem_count());
        let dims = l1.dims();
        let channels = if self.planes { dims.get(1) } else { dims.last() };
        if channels != Some(&width) || l3.shape().elem_count() != width || width == 0 {
            candle_core::bail!("layer norm: {dims:?}, {width} gains");
        }
        let output = if self.planes {
            let pixels: usize = dims[2..].iter().product();
            let (c, p) = (width as u32, pixels as u32);
            let function = kernel(device, &format!("layer_norm_planes_{}", name(s1.dtype())?))?;
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<f32>(n)? };
            typed!(s1.dtype(), I => {
                let x = view::<I>(s1, l1)?;
                let mut builder = function.builder();
                builder.arg(&x).arg(&w).arg(&b).arg(&mut out).arg(&c).arg(&p).arg(&self.eps);
                let grid = (pixels.div_ceil(32) as u32, dims[0] as u32, 1);
                let config = LaunchConfig { grid_dim: grid, block_dim: (32, 8, 1), shared_mem_bytes: 0 };
                // SAFETY: the kernel's parameters; images of `c` channels of `p` pixels.
                unsafe { builder.launch(config) }.w()?;
            });
            CudaStorage::wrap_cuda_slice(out, device.clone())
        } else {
            let (rows, c) = ((n / width) as u32, width as u32);
            let function = kernel(device, &format!("layer_norm_{}_{}", name(s1.dtype())?, name(self.out)?))?;
            typed!(s1.dtype(), I => typed!(self.out, O => {
                // SAFETY: the kernel writes all of it.
                let mut out = unsafe { device.alloc::<O>(n)? };
                let x = view::<I>(s1, l1)?;
                let mut builder = function.builder();
                builder.arg(&x).arg(&w).arg(&b).arg(&mut out).arg(&rows).arg(&c).arg(&self.eps);
                let config = LaunchConfig {
                    grid_dim: (rows.div_ceil(4), 1, 1),
                    block_dim: (32, 4, 1),
                    shared_mem_bytes: 0,
                };
                // SAFETY: the kernel's parameters; `rows` of `c` elements.
                unsafe { builder.launch(config) }.w()?;
                CudaStorage::wrap_cuda_slice(out, device.clone())
            }))
        };
        Ok((output, l1.shape().clone()))
    }
}
