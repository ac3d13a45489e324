//! One inference captured as a CUDA graph: one launch instead of hundreds, so the CPU has little to do. Inputs and probability maps
//! are copied through pinned memory.

use super::Inference;
use super::warm_up::WarmUp;
use crate::pixels::{map_of, normalise_bytes, probability_bytes};
use autosam_frame::map::{ModelInput, ProbMap};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, PinnedHostSlice, sys};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor,
};
use std::thread::{self, ThreadId};

/// Runs inferences on a GPU and, after a few of the same size on the same thread, replays them.
#[derive(Default)]
pub(crate) struct CudaGraphExecutor {
    /// Width and height of the input.
    size: (usize, usize),
    recorded: WarmUp<Recorded>,
}

struct Recorded {
    graph: CudaGraph,
    /// `[H, W, 3]`, bytes.
    input: Tensor,
    /// Bytes.
    output: Tensor,
    up: PinnedHostSlice<u8>,
    down: PinnedHostSlice<u8>,
    /// Memory that the graph reads lives as long as this thread (candle's cache of small uploads).
    thread: ThreadId,
}

// SAFETY: the graph is launched only by its owner's thread (`CudaGraphExecutor::run` takes `&mut self`).
unsafe impl Send for Recorded {}

impl CudaGraphExecutor {
    pub fn replays(&self) -> bool {
        self.recorded.graph().is_some()
    }

    /// Writes the probability map of `sample` to `out`. Bytes `[H, W, 3]` are copied to the GPU, and bytes are copied
    /// back.
    pub fn run(
        &mut self,
        inference: &Inference,
        sample: &ModelInput,
        out: &mut ProbMap,
    ) -> crate::Result<()> {
        let device = inference.network.device().as_cuda_device()?;
        let (size, mode, mirrors) = (inference.size(), inference.mode, inference.mirrors());
        let compute = |rgb: &Tensor| -> crate::Result<Tensor> {
            let x = normalise_bytes(rgb, size)?;
            Ok(probability_bytes(&inference.logits(&x)?, size, mode)?)
        };
        let mut read = |p: &[u8]| map_of(p, |p| p, size, sample, mirrors, out);
        let (rgb, shape) = (&sample.rgb, (sample.width, sample.height));
        let here = thread::current().id();
        let known = self.recorded.graph().is_none_or(|r| r.thread == here);
        if self.size != shape || !known {
            self.size = shape;
            self.recorded.restart();
        }
        let failed = "cannot capture a CUDA graph; inference will be slower";
        match self.recorded.next(|| record(device, shape, compute), failed) {
            Some(recorded) => read(recorded.replay(device, rgb)?),
            None => {
                let _cache = device.enable_cuda_graph_htod_cache();
                let input =
                    Tensor::from_slice(rgb, (sample.height, sample.width, 3), &Device::Cuda(device.clone()))?;
                read(&compute(&input)?.flatten_all()?.to_vec1::<u8>()?);
            }
        }
        Ok(())
    }
}

fn record(
    device: &CudaDevice,
    (width, height): (usize, usize),
    compute: impl Fn(&Tensor) -> crate::Result<Tensor>,
) -> crate::Result<Recorded> {
    let gpu = Device::Cuda(device.clone());
    let _cache = device.enable_cuda_graph_htod_cache();
    let input = Tensor::zeros((height, width, 3), DType::U8, &gpu)?;
    let output = compute(&input)?.flatten_all()?;
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    // All allocations are freed before the capture ends, so the graph owns no memory.
    let computed = compute(&input).and_then(|y| Ok(output.slice_set(&y.flatten_all()?, 0, 0)?));
    // The capture must end in any case, because the stream cannot be used for anything else before.
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    computed?;
    let Some(graph) = graph? else {
        return Err(crate::Error::device("nothing was captured"));
    };
    let context = stream.context();
    // SAFETY: any bit pattern is a valid byte, and both are written before they are read.
    let (up, down) = unsafe {
        (
            context.alloc_pinned_with_flags(width * height * 3, 0).w()?,
            context.alloc_pinned_with_flags(output.elem_count(), 0).w()?,
        )
    };
    Ok(Recorded { graph, input, output, up, down, thread: thread::current().id() })
}

impl Recorded {
    fn replay(&mut self, device: &CudaDevice, rgb: &[u8]) -> Result<&[u8]> {
        let up = self.up.as_mut_slice().w()?;
        if up.len() != rgb.len() {
            candle_core::bail!("{} bytes for a graph with an input of {}", rgb.len(), up.len());
        }
        up.copy_from_slice(rgb);
        self.input.inplace_op1(&Upload(&self.up))?;
        self.graph.launch().w()?;
        let (storage, _) = self.output.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => device.memcpy_dtoh(storage.as_cuda_slice::<u8>()?, &mut self.down)?,
            _ => candle_core::bail!("the graph's result is not on the GPU"),
        }
        device.cuda_stream().synchronize().w()?;
        self.down.as_slice().w()
    }
}

/// Operation that fills a tensor from pinned memory.
struct Upload<'a>(&'a PinnedHostSlice<u8>);

impl InplaceOp1 for Upload<'_> {
    fn name(&self) -> &'static str {
        "autosam-upload"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("the target of an upload is on the CPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device().clone();
        device.memcpy_htod(self.0, storage.as_cuda_slice_mut::<u8>()?)
    }
}
