//! Copies between memory layouts: channels first and last, grids and windows.

use super::{count, elementwise, fusible, kernel, name, only_on_a_gpu, typed, view};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `[N, A, B]` → `[N, B, A]`.
pub(crate) fn transpose(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Transpose)
}

struct Transpose;

impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        "autosam-cuda-transpose"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let (n, a, b) = layout.shape().dims3()?;
        let function = kernel(device, &format!("transpose_{}", name(storage.dtype())?))?;
        let grid_dim = (b.div_ceil(32) as u32, a.div_ceil(32) as u32, n as u32);
        typed!(storage.dtype(), T => {
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<T>(n * a * b)? };
            let x = view::<T>(storage, layout)?;
            let (rows, columns) = (a as u32, b as u32);
            let mut builder = function.builder();
            builder.arg(&x).arg(&mut out).arg(&rows).arg(&columns);
            let config = LaunchConfig { grid_dim, block_dim: (32, 8, 1), shared_mem_bytes: 0 };
            // SAFETY: the kernel's parameters; `n` images of `a` rows of `b`.
            unsafe { builder.launch(config) }.w()?;
            Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((n, b, a))))
        })
    }
}

/// Partitions a grid `[n, h, w, c]` into windows `[n · rows · cols, side², c]`, padded with zeros, or reverses that.
struct Windows {
    grid: [usize; 4],
    side: usize,
    together: bool,
}

/// `[N, H, W, C]` → its windows, for rows that satisfy [`copies_windows`].
pub(crate) fn partition(x: &Tensor, side: usize) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.contiguous()?.apply_op1_no_bwd(&Windows { grid: [n, h, w, c], side, together: false })
}

/// The inverse of [`partition`].
pub(crate) fn unpartition(x: &Tensor, side: usize, grid: [usize; 4]) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Windows { grid, side, together: true })
}

/// Whether rows of `c` elements can be copied 16 bytes at a time.
pub(crate) fn copies_windows(x: &Tensor, c: usize) -> bool {
    fusible(&[x]) && (c * x.dtype().size_in_bytes()).is_multiple_of(16)
}

impl CustomOp1 for Windows {
    fn name(&self) -> &'static str {
        "autosam-cuda-windows"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let ([n, h, w, c], side) = (self.grid, self.side);
        let windows = Shape::from((n * h.div_ceil(side) * w.div_ceil(side), side * side, c));
        let grid = Shape::from((n, h, w, c));
        let (function, from, to) = match self.together {
            true => ("windows_together", windows, grid),
            false => ("windows_apart", grid, windows),
        };
        if layout.shape().elem_count() != from.elem_count() {
            candle_core::bail!("windows: {:?} is not {from:?}", layout.dims());
        }
        let function = kernel(device, function)?;
        typed!(storage.dtype(), T => {
            let units = c * size_of::<T>() / 16;
            count(from.elem_count().max(to.elem_count()) / c * units)?;
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<T>(to.elem_count())? };
            let x = view::<T>(storage, layout)?;
            let [n, h, w, units, side] = [n, h, w, units, side].map(|v| v as u32);
            let mut builder = function.builder();
            builder.arg(&x).arg(&mut out).arg(&n).arg(&h).arg(&w).arg(&units).arg(&side);
            // SAFETY: the kernel's parameters; rows of whole 16 bytes.
            unsafe { builder.launch(elementwise(to.elem_count() * size_of::<T>() / 16)) }.w()?;
            Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), to))
        })
    }
}
