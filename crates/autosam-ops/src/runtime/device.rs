//! Device and precision of a model.

use autosam_frame::{Error, Result};
use candle_core::{DType, Device};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Device on which a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if the build and the machine support one, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device. Fails if a GPU is requested by number and is not available.
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

/// Streams of a GPU; each is a separate device for candle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Main,
    /// A second one for small independent work.
    Side,
}

/// Opens a stream of GPU `id`. The error says why if it is not available. The binding panics if the driver's library is
/// too old; that panic is caught here. A missing library is detected before.
pub fn cuda(id: usize, stream: Stream) -> Result<Device> {
    /// One of each per process.
    static OPEN: Mutex<BTreeMap<(usize, Stream), Device>> = Mutex::new(BTreeMap::new());
    let mut opened = OPEN.lock();
    if let Some(device) = opened.get(&(id, stream)) {
        return Ok(device.clone());
    }
    driver::find().map_err(|e| {
        Error::device(format!("cuda device {id}: no driver ({e}); install NVIDIA's, or use the CPU"))
    })?;
    let open = || -> candle_core::Result<Device> {
        // A separate stream, because the driver's default stream cannot be captured.
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
            // Only the first line, because with RUST_BACKTRACE candle's errors contain a backtrace.
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

    /// Workspace for products in bytes, as cuBLAS requires it on Hopper.
    pub(crate) const WORKSPACE: usize = 32 << 20;

    /// An error if the driver's library is missing.
    pub(super) fn find() -> Result<(), libloading::Error> {
        // SAFETY: the initialisers of the driver's library have no preconditions, and the binding loads the same library.
        unsafe { libloading::Library::new("libcuda.so.1") }.map(drop)
    }

    /// Configures a device for repeated inference.
    pub(super) fn configure(device: &Device) -> candle_core::Result<()> {
        let device = device.as_cuda_device()?;
        // SAFETY: all tensors of this device are created, used and freed on its one stream, so none has to wait for another. Transfers to
        // another stream use their own events (`aux_stream`).
        unsafe { device.disable_event_tracking() };
        let context = device.cuda_stream().context().clone();
        let mut everything = u64::MAX;
        // SAFETY: the pool belongs to the device, and the value has the attribute's type.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
            // Keep freed memory in the process. By default it returns to the driver whenever the CPU waits.
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut everything).cast()).result().w()?;
            // Workspace for matrix products, allocated before any capture and never freed.
            let workspace = device.alloc::<u8>(WORKSPACE)?.leak();
            let handle = *device.cublas_handle().handle();
            cublas::cublasSetWorkspace_v2(handle, workspace as *mut _, WORKSPACE).result().w()
        }
    }
}

/// In a build without CUDA candle's own error says so.
#[cfg(not(feature = "cuda"))]
mod driver {
    pub(super) fn find() -> Result<(), std::convert::Infallible> {
        Ok(())
    }

    pub(super) fn configure(_: &candle_core::Device) -> candle_core::Result<()> {
        Ok(())
    }
}

/// Number format of matrix products, convolutions and attention. A GPU computes in f32 or 16 bits; long sums stay in
/// f32, and TinyViT has further exceptions. A CPU computes in f32, or EfficientNet-Lite in int8 if the model was
/// quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    F32,
    F16,
    Bf16,
    /// Int8, on a CPU.
    Int8,
    /// The faster of f32 and int8 that the CPU and the model support; f32 on a GPU.
    Auto,
}

impl Precision {
    /// The type for [`crate::autocast`]; `None` if products are in f32.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 | Self::Int8 | Self::Auto => None,
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
        }
    }

    /// [`Self::dtype`] on `device`. A CPU does not support 16 bits and a GPU does not support int8. Both then compute
    /// in f32, with a warning.
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
