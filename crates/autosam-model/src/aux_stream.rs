//! A second stream of a GPU: the small generator is computed there in parallel with the large encoder.

use crate::Result;
use autosam_ops::device;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use std::sync::Arc;

/// A GPU's main stream and an auxiliary one. To candle they are two devices, which cannot use each other's tensors.
#[derive(Debug)]
pub(super) struct AuxStream {
    main: CudaDevice,
    side: Device,
}

/// A computation in progress on the auxiliary stream.
pub(super) struct Pending {
    result: Tensor,
    done: CudaEvent,
    main: Arc<CudaStream>,
}

impl AuxStream {
    /// `None` if `device` is not a GPU.
    ///
    /// # Errors
    /// If the driver cannot create a stream.
    pub fn of(device: &Device) -> Result<Option<Self>> {
        let Device::Cuda(main) = device else { return Ok(None) };
        let side = device::cuda(main.cuda_stream().context().ordinal(), device::Stream::Side)?;
        Ok(Some(Self { main: main.clone(), side }))
    }

    /// The device on which [`Self::begin`] needs the weights.
    pub fn device(&self) -> &Device {
        &self.side
    }

    /// Starts `compute` of `x` on the auxiliary stream; `x` and the result are f32 on the main stream. In a captured graph this becomes
    /// a parallel branch.
    pub fn begin(&self, x: &Tensor, compute: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Pending> {
        let (main, side) = (self.main.cuda_stream(), self.side.as_cuda_device()?.cuda_stream());
        side.join(&main).w()?;
        let y = compute(&x.to_device(&self.side)?)?.to_dtype(DType::F32)?.contiguous()?;
        // The result needs memory of the main stream, because the auxiliary stream may reuse `y`'s memory as soon as
        // `y` is dropped here.
        let result = Tensor::zeros(y.shape(), DType::F32, &Device::Cuda(self.main.clone()))?;
        side.join(&main).w()?;
        result.inplace_op1(&Fill { from: &y, side: &side })?;
        drop(y);
        Ok(Pending { result, done: side.record_event(None).w()?, main })
    }
}

impl Pending {
    /// The result. The main stream waits for it from here on.
    pub fn join(self) -> Result<Tensor> {
        self.main.wait(&self.done).w()?;
        Ok(self.result)
    }
}

/// Copies a tensor of the auxiliary stream into one of the main stream, on the auxiliary stream.
struct Fill<'a> {
    from: &'a Tensor,
    side: &'a Arc<CudaStream>,
}

impl InplaceOp1 for Fill<'_> {
    fn name(&self) -> &'static str {
        "autosam-fill"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("a CPU has no auxiliary stream")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        let (from, _) = self.from.storage_and_layout();
        match &*from {
            Storage::Cuda(from) => {
                let to = storage.as_cuda_slice_mut::<f32>()?;
                self.side.memcpy_dtod(from.as_cuda_slice::<f32>()?, to).w()
            }
            _ => candle_core::bail!("the auxiliary stream's result is not on the GPU"),
        }
    }
}
