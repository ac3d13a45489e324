//! A second stream of a GPU: what is small and independent is computed there beside what is large.

use crate::Result;
use autosam_ops::device;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use std::sync::Arc;

/// A GPU's main stream and one beside it. To candle they are two devices: tensors of one are of no use to the other.
#[derive(Debug)]
pub(super) struct Side {
    main: CudaDevice,
    side: Device,
}

/// What is being computed beside the main stream.
pub(super) struct Pending {
    result: Tensor,
    done: CudaEvent,
    main: Arc<CudaStream>,
}

impl Side {
    /// `None` where `device` is no GPU.
    ///
    /// # Errors
    /// The driver's.
    pub fn of(device: &Device) -> Result<Option<Self>> {
        let Device::Cuda(main) = device else { return Ok(None) };
        let side = device::cuda(main.cuda_stream().context().ordinal(), device::Stream::Side)?;
        Ok(Some(Self { main: main.clone(), side }))
    }

    /// Where the weights lie that [`Self::begin`] needs.
    pub fn device(&self) -> &Device {
        &self.side
    }

    /// `compute` of `x`, which is f32 on the main stream, there and back in f32; in a recording it becomes a branch of its own.
    pub fn begin(&self, x: &Tensor, compute: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Pending> {
        let (main, side) = (self.main.cuda_stream(), self.side.as_cuda_device()?.cuda_stream());
        side.join(&main).w()?;
        let y = compute(&x.to_device(&self.side)?)?.to_dtype(DType::F32)?.contiguous()?;
        // Memory of the main stream: `y`'s own is free for the side's next use as soon as it is dropped here.
        let result = Tensor::zeros(y.shape(), DType::F32, &Device::Cuda(self.main.clone()))?;
        side.join(&main).w()?;
        result.inplace_op1(&Fill { from: &y, side: &side })?;
        drop(y);
        Ok(Pending { result, done: side.record_event(None).w()?, main })
    }
}

impl Pending {
    /// The result, which the main stream waits for from here on.
    pub fn join(self) -> Result<Tensor> {
        self.main.wait(&self.done).w()?;
        Ok(self.result)
    }
}

/// Copies a tensor of the side into one of the main stream, as the side's work.
struct Fill<'a> {
    from: &'a Tensor,
    side: &'a Arc<CudaStream>,
}

impl InplaceOp1 for Fill<'_> {
    fn name(&self) -> &'static str {
        "autosam-fill"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("two streams of a CPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        let (from, _) = self.from.storage_and_layout();
        match &*from {
            Storage::Cuda(from) => {
                let to = storage.as_cuda_slice_mut::<f32>()?;
                self.side.memcpy_dtod(from.as_cuda_slice::<f32>()?, to).w()
            }
            _ => candle_core::bail!("what the side computed is on the GPU"),
        }
    }
}
