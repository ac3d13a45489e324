//! GPU inference: kernels (`*.cu` in this folder) that replace compositions of candle's operations, which pass through
//! memory many times. Activations are f32 or, inside [`crate::autocast`], 16 bits.

mod attention;
mod layout;
mod norm;
mod product;
mod spatial;
#[cfg(test)]
mod tests;

pub(crate) use attention::{cross_attention, finds_windows, self_attention, serves, windowed_attention};
pub(crate) use layout::{copies_windows, partition, transpose, unpartition};
pub(crate) use norm::{layer_norm, layer_norm_2d, norms};
pub(crate) use product::{add_linear, linear};
pub(crate) use spatial::{depthwise, max_pool, unfold};

use crate::Activation;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaStream, CudaView, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor,
};
use std::sync::Arc;

mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// Whether these kernels apply: on a GPU, f32 or 16 bits, and no gradient requested.
pub(crate) fn fusible(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| {
        t.device().is_cuda() && matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16) && !t.track_op()
    })
}

/// The part of a kernel's name that stands for the type it reads or writes.
fn name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        other => candle_core::bail!("no kernel for {other:?}"),
    }
}

/// `$body` with `$T` the type of `$dtype`.
macro_rules! typed {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            other => candle_core::bail!("no kernel for {other:?}"),
        }
    };
}
use typed;

/// A kernel function and the device on which it runs.
struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// A function of kernels.cu.
fn kernel(device: &CudaDevice, name: &str) -> Result<Kernel> {
    kernel_of(device, "autosam", ptx::KERNELS, name)
}

/// A function of another file, compiled to `ptx`; `module` is candle's name for it.
fn kernel_of(device: &CudaDevice, module: &str, ptx: &str, name: &str) -> Result<Kernel> {
    let function = device.get_or_load_custom_func(name, module, ptx)?.into_cuda_function();
    Ok(Kernel { function, stream: device.cuda_stream() })
}

/// The elements of a contiguous tensor.
fn view<'a, T: CudaDType + DeviceRepr>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => candle_core::bail!("a kernel needs a contiguous tensor, not {layout:?}"),
    }
}

/// Calls `f` with the elements of a contiguous tensor on a GPU.
fn with_view<T: CudaDType + DeviceRepr, R>(
    tensor: &Tensor,
    f: impl FnOnce(&CudaView<T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => f(&view(storage, layout)?),
        _ => candle_core::bail!("a kernel needs a tensor on the GPU, not {tensor:?}"),
    }
}

/// [`with_view`] for an optional tensor.
fn with_optional<T: CudaDType + DeviceRepr, R>(
    tensor: Option<&Tensor>,
    f: impl FnOnce(Option<&CudaView<T>>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => with_view(tensor, |view| f(Some(view))),
        None => f(None),
    }
}

/// Pushes a pointer, null for `None`.
fn push<'a, T: DeviceRepr>(builder: &mut LaunchArgs<'a>, view: Option<&'a CudaView<'a, T>>) {
    match view {
        Some(view) => builder.arg(view),
        None => builder.arg(&0u64),
    };
}

/// Converts `n` to the kernels' index type.
fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("{n} elements are too many for a kernel")))
}

/// Launch configuration for `n` elements; each thread processes several if there are many.
fn elementwise(n: usize) -> LaunchConfig {
    let blocks = n.div_ceil(256).clamp(1, 4096) as u32;
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 }
}

/// Launch configuration for `n` rows of `width` elements; `blockIdx.y` is the row.
fn rows(n: u32, width: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (width.div_ceil(256).clamp(1, 1024), n.clamp(1, 65_535), 1),
        block_dim: (width.next_multiple_of(32).clamp(32, 256), 1, 1),
        shared_mem_bytes: 0,
    }
}

/// The number of an activation in kernels.cu.
fn number(activation: Option<Activation>) -> i32 {
    match activation {
        None => 0,
        Some(Activation::Gelu) => 1,
        Some(Activation::Relu) => 2,
        Some(Activation::Relu6) => 3,
        Some(Activation::LeakyRelu) => 4,
        Some(Activation::Tanh) => 5,
        Some(Activation::Sigmoid) => 6,
    }
}

fn only_on_a_gpu<T>() -> Result<T> {
    candle_core::bail!("a GPU kernel was called with a CPU tensor")
}

/// Adds a bias to the channels of `y`, which lie along `dim`, and applies an activation, in place: `y` is a fresh
/// result without other references.
pub(crate) fn epilogue(
    y: &Tensor,
    bias: Option<&Tensor>,
    dim: usize,
    activation: Option<Activation>,
) -> Result<()> {
    if bias.is_none() && activation.is_none() {
        return Ok(());
    }
    let (channels, inner) = (y.dim(dim)?, y.dims()[dim + 1..].iter().product());
    let bias = bias.map(|b| b.to_dtype(DType::F32)?.contiguous()).transpose()?;
    y.inplace_op1(&Epilogue { bias, inner, channels, activation })
}

struct Epilogue {
    bias: Option<Tensor>,
    inner: usize,
    channels: usize,
    activation: Option<Activation>,
}

impl InplaceOp1 for Epilogue {
    fn name(&self) -> &'static str {
        "autosam-cuda-epilogue"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let device = storage.device().clone();
        let Some((from, to)) = layout.contiguous_offsets() else {
            candle_core::bail!("a kernel needs a contiguous tensor, not {layout:?}")
        };
        let (n, inner, channels) = (count(to - from)?, self.inner as u32, self.channels as u32);
        if self.bias.as_ref().is_some_and(|b| b.elem_count() != self.channels) {
            candle_core::bail!("the bias does not have {} channels", self.channels);
        }
        let f = number(self.activation);
        let of = name(storage.dtype())?;
        typed!(storage.dtype(), T => {
            // Rows in whole units of 16 bytes, or planes.
            let unit = 16 / size_of::<T>() as u32;
            let rows = self.inner == 1 && channels % unit == 0;
            let function = kernel(&device, &format!("finish_{}_{of}", if rows { "rows" } else { "planes" }))?;
            let planes = n / inner;
            let mut x = storage.as_cuda_slice_mut::<T>()?.slice_mut(from..to);
            with_optional::<f32, _>(self.bias.as_ref(), |bias| {
                let mut builder = function.builder();
                builder.arg(&mut x);
                push(&mut builder, bias);
                let units = n / unit;
                let config = if rows {
                    builder.arg(&units).arg(&channels).arg(&f);
                    elementwise(units as usize)
                } else {
                    builder.arg(&planes).arg(&inner).arg(&channels).arg(&f);
                    self::rows(planes, inner)
                };
                // SAFETY: the kernel's parameters; `n` elements, and a bias of `channels`.
                unsafe { builder.launch(config) }.w()?;
                Ok(())
            })
        })
    }
}

/// Whether [`add`] applies: rows of `channels` numbers must be multiples of four.
pub(crate) fn adds(a: &Tensor, b: &Tensor) -> bool {
    fusible(&[a, b]) && a.dims()[1..] == b.dims()[1..] && a.dims().last().is_some_and(|c| c.is_multiple_of(4))
}

/// `a + b` plus a bias along the last dimension. The operands may have any types; the sum is computed in f32 and
/// returned in `out`. `b` may be broadcast along the batch.
pub(crate) fn add(a: &Tensor, b: &Tensor, bias: Option<&Tensor>, out: DType) -> Result<Tensor> {
    let bias = bias.map(|b| b.to_dtype(DType::F32)?.contiguous()).transpose()?;
    a.contiguous()?.apply_op2_no_bwd(&b.contiguous()?, &Add { bias, out })
}

struct Add {
    bias: Option<Tensor>,
    out: DType,
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "autosam-cuda-add"
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
        let (n, m) = (l1.shape().elem_count(), l2.shape().elem_count());
        let channels = l1.dims().last().copied().unwrap_or(0);
        let fits = self.bias.as_ref().is_none_or(|b| b.elem_count() == channels);
        if m == 0 || n % m != 0 || channels % 4 != 0 || !fits {
            candle_core::bail!("add: {:?} and {:?}", l1.dims(), l2.dims());
        }
        let device = s1.device();
        let (fours, repeated, channels) = (count(n)? / 4, count(m)? / 4, channels as u32);
        let [of, and, to] = [name(s1.dtype())?, name(s2.dtype())?, name(self.out)?];
        let function = kernel(device, &format!("add_{of}_{and}_{to}"))?;
        let sum = typed!(self.out, O => typed!(s1.dtype(), A => typed!(s2.dtype(), B => {
            // SAFETY: the kernel writes all of it.
            let mut out = unsafe { device.alloc::<O>(n)? };
            let (a, b) = (view::<A>(s1, l1)?, view::<B>(s2, l2)?);
            with_optional::<f32, _>(self.bias.as_ref(), |bias| {
                let mut builder = function.builder();
                builder.arg(&a).arg(&b);
                push(&mut builder, bias);
                builder.arg(&mut out).arg(&fours).arg(&repeated).arg(&channels);
                // SAFETY: the kernel's parameters; `n` and `m` elements, and a bias of `channels`.
                unsafe { builder.launch(elementwise(n / 4)) }.w()?;
                Ok(())
            })?;
            CudaStorage::wrap_cuda_slice(out, device.clone())
        })));
        Ok((sum, l1.shape().clone()))
    }
}

/// See [`crate::normalised`].
pub(crate) fn normalised(rgb: &Tensor, size: usize, scale: [f32; 3], shift: [f32; 3]) -> Result<Tensor> {
    rgb.contiguous()?.apply_op1_no_bwd(&Normalise { size, scale, shift })
}

struct Normalise {
    size: usize,
    scale: [f32; 3],
    shift: [f32; 3],
}

impl CustomOp1 for Normalise {
    fn name(&self) -> &'static str {
        "autosam-cuda-normalise"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let ((h, w, channels), size) = (layout.shape().dims3()?, self.size);
        if channels != 3 || h > size || w > size {
            candle_core::bail!("normalise: {:?} to {size} pixels a side", layout.dims());
        }
        let n = count(3 * size * size)? as usize;
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<f32>(n)? };
        let rgb = view::<u8>(storage, layout)?;
        let [h, w, size] = [h, w, size].map(|v| v as u32);
        let function = kernel(device, "normalise")?;
        let mut builder = function.builder();
        builder.arg(&rgb).arg(&mut out).arg(&h).arg(&w).arg(&size);
        for number in self.scale.iter().chain(&self.shift) {
            builder.arg(number);
        }
        // SAFETY: the kernel's parameters; `h · w` pixels and planes of `size²`.
        unsafe { builder.launch(elementwise(n / 3)) }.w()?;
        let size = self.size;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((1, 3, size, size))))
    }
}

/// See [`crate::probability_bytes`].
pub(crate) fn probability_bytes(logits: &Tensor, size: usize) -> Result<Tensor> {
    logits.contiguous()?.apply_op1_no_bwd(&ProbabilityBytes(size))
}

struct ProbabilityBytes(usize);

impl CustomOp1 for ProbabilityBytes {
    fn name(&self) -> &'static str {
        "autosam-cuda-probability-bytes"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let ((n, c, h, w), size) = (layout.shape().dims4()?, self.0);
        let pixels = count(n * c * size * size)? as usize;
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<u8>(pixels)? };
        let logits = view::<f32>(storage, layout)?;
        let [planes, h, w, side] = [n * c, h, w, size].map(|v| v as u32);
        let function = kernel(device, "probability_bytes")?;
        let mut builder = function.builder();
        builder.arg(&logits).arg(&mut out).arg(&planes).arg(&h).arg(&w).arg(&side).arg(&side);
        // SAFETY: the kernel's parameters; `planes` of `h · w` and of `side²`.
        unsafe { builder.launch(elementwise(pixels)) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((n, c, size, size))))
    }
}
