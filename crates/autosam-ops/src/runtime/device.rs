//! Where a model computes, and in what.

use autosam_frame::{Error, Result};
use candle_core::{DType, Device};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Where a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU where the build and the machine have one, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl DeviceChoice {
    /// The device itself. An error where a GPU is asked for by number and there is none.
    pub fn resolve(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(id) if cfg!(feature = "cuda") => cuda(id, Stream::Main),
            Self::Cuda(id) => Err(Error::device(format!(
                "cuda device {id}: this build has no CUDA; build with --features cuda, or use the CPU"
            ))),
            Self::Auto if cfg!(feature = "cuda") => Ok(cuda(0, Stream::Main).unwrap_or_else(|reason| {
                tracing::warn!("using the CPU instead of a GPU: {reason}");
                Device::Cpu
            })),
            Self::Auto => Ok(Device::Cpu),
        }
    }
}

/// A GPU's streams: each a device to candle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Main,
    /// A second one beside it, for what is small and independent.
    Side,
}

/// A stream of GPU `id`; an error that says why where there is none. Where the driver's library is missing or too old the binding panics:
/// that is caught here, and a missing one seen before.
pub fn cuda(id: usize, stream: Stream) -> Result<Device> {
    /// One of each in the process.
    static OPEN: Mutex<BTreeMap<(usize, Stream), Device>> = Mutex::new(BTreeMap::new());
    let mut opened = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&(id, stream)) {
        return Ok(device.clone());
    }
    driver::find().map_err(|e| {
        Error::device(format!("cuda device {id}: no driver ({e}); install NVIDIA's, or use the CPU"))
    })?;
    let open = || -> candle_core::Result<Device> {
        // A stream of its own: the driver's default stream cannot be recorded.
        let device = Device::new_cuda_with_stream(id)?;
        driver::configure(&device)?;
        Ok(device)
    };
    match std::panic::catch_unwind(open) {
        Ok(Ok(device)) => {
            opened.insert((id, stream), device.clone());
            Ok(device)
        }
        Ok(Err(e)) => {
            // The first line: with RUST_BACKTRACE candle's errors carry a backtrace.
            let text = e.to_string();
            let text = text.lines().next().unwrap_or("unknown error");
            Err(Error::device(format!("cuda device {id}: {text}")))
        }
        Err(_) => Err(Error::device(format!(
            "cuda device {id}: the driver is too old or broken; install a newer one, or use the CPU"
        ))),
    }
}

#[cfg(feature = "cuda")]
pub(crate) use driver::WORKSPACE;

#[cfg(feature = "cuda")]
mod driver {
    use candle_core::Device;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::cublas::sys as cublas;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    /// Memory that products may use, in bytes: what cuBLAS asks for on Hopper.
    pub(crate) const WORKSPACE: usize = 32 << 20;

    /// An error if the driver's library is missing.
    pub(super) fn find() -> Result<(), libloading::Error> {
        // SAFETY: what the driver's library does as it loads asks nothing of us; the binding loads the same one.
        unsafe { libloading::Library::new("libcuda.so.1") }.map(drop)
    }

    /// Readies a device for inference after inference.
    pub(super) fn configure(device: &Device) -> candle_core::Result<()> {
        let device = device.as_cuda_device()?;
        // SAFETY: all tensors of this device are made, used and freed on its one stream: none has to wait for another. What passes to
        // another stream waits for events of its own (`side`).
        unsafe { device.disable_event_tracking() };
        let context = device.cuda_stream().context().clone();
        let mut everything = u64::MAX;
        // SAFETY: the device's own pool, and a number of the type that the attribute has.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
            // What is free stays with the process: by default it goes back to the driver whenever the CPU waits.
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut everything).cast()).result().w()?;
            // Memory that matrix products may use, there before anything is recorded; as long as the process.
            let workspace = device.alloc::<u8>(WORKSPACE)?.leak();
            let handle = *device.cublas_handle().handle();
            cublas::cublasSetWorkspace_v2(handle, workspace as *mut _, WORKSPACE).result().w()
        }
    }
}

/// A build without CUDA: candle's own error says so.
#[cfg(not(feature = "cuda"))]
mod driver {
    pub(super) fn find() -> Result<(), std::convert::Infallible> {
        Ok(())
    }

    pub(super) fn configure(_: &candle_core::Device) -> candle_core::Result<()> {
        Ok(())
    }
}

/// What matrix products, convolutions and attention compute in. On a GPU in f32 or 16 bits; long sums stay in f32, and TinyViT has
/// exceptions of its own. On a CPU in f32, or EfficientNet-Lites in bytes if the model was quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    F32,
    F16,
    Bf16,
    /// Bytes, on a CPU.
    Int8,
    /// The fastest that a CPU and the model have of f32 and int8; f32 on a GPU.
    Auto,
}

impl Precision {
    /// The type for [`crate::autocast`]; `None` where products are as everything else.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 | Self::Int8 | Self::Auto => None,
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
        }
    }

    /// [`Self::dtype`] on `device`. A CPU has no 16 bits, a GPU no bytes: both compute in f32, and a warning says so.
    pub fn on(self, device: &Device) -> Option<DType> {
        if self == Self::Int8 && !device.is_cpu() {
            tracing::warn!("precision int8 is for a CPU; the GPU computes in f32");
        }
        let dtype = self.dtype()?;
        if device.is_cpu() {
            tracing::warn!("16-bit products need a GPU; the CPU computes in f32");
            return None;
        }
        Some(dtype)
    }
}
