//! Linear layers in 16 bits with cuBLASLt, which fuses bias, residual and activation into the product.

use super::{only_on_a_gpu, view, with_optional};
use crate::Activation;
use crate::runtime::device::WORKSPACE;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublaslt::{result as lt, sys};
use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use half::{bf16, f16};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

/// Number of algorithms timed at a product's first run.
const CANDIDATES: usize = 8;
/// Timed runs of each, after one untimed run.
const RUNS: usize = 8;

/// Epilogue of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    /// Optional bias, in the operands' type.
    Plain { bias: bool },
    /// Bias and GELU in its tanh approximation, which differs from the exact one by at most 5e-4, less than the
    /// rounding of 16 bits.
    Gelu,
    /// Bias and ReLU.
    Relu,
    /// Optional bias and a residual, all f32.
    Residual { bias: bool },
}

/// Key for the algorithm of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    /// The stream that it runs on, because concurrent products must not share a workspace.
    stream: usize,
    rows: usize,
    inputs: usize,
    outputs: usize,
    half: bool,
    end: End,
}

/// Whether [`linear`] supports `x [.., I]` and `w [O, I]`: 16-bit types in whole units of 16 bytes.
fn serves(x: &Tensor, w: &Tensor, dtype: DType) -> bool {
    let whole = |t: &Tensor| t.dims().last().is_some_and(|d| d.is_multiple_of(8));
    let of_a_type = x.dtype() == dtype && w.dtype() == dtype;
    matches!(dtype, DType::BF16 | DType::F16)
        && of_a_type
        && whole(x)
        && whole(w)
        && w.dim(0).is_ok_and(|o| o.is_multiple_of(8))
}

/// `activation(x [.., I] · w [O, I]ᵀ + bias [O])` with operands and result in `dtype`; `None` if cuBLASLt does not
/// support it.
pub(crate) fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
    dtype: DType,
) -> Result<Option<Tensor>> {
    let end = match (activation, bias) {
        (None, bias) => End::Plain { bias: bias.is_some() },
        (Some(Activation::Gelu), Some(_)) => End::Gelu,
        (Some(Activation::Relu), Some(_)) => End::Relu,
        _ => return Ok(None),
    };
    if !serves(x, w, dtype) || bias.is_some_and(|b| b.dtype() != dtype) {
        return Ok(None);
    }
    run(x, w, bias, None, end)
}

/// `residual + x · wᵀ + bias` in f32, as [`linear`].
pub(crate) fn add_linear(
    residual: &Tensor,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    dtype: DType,
) -> Result<Option<Tensor>> {
    let f32s = residual.dtype() == DType::F32 && bias.is_none_or(|b| b.dtype() == DType::F32);
    if !serves(x, w, dtype) || !f32s {
        return Ok(None);
    }
    let shaped = run(x, w, bias, Some(residual), End::Residual { bias: bias.is_some() })?;
    shaped.map(|y| y.reshape(residual.shape())).transpose()
}

fn run(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    end: End,
) -> Result<Option<Tensor>> {
    let Device::Cuda(device) = x.device() else { return only_on_a_gpu() };
    let (outputs, inputs) = w.dims2()?;
    let rows = x.elem_count() / inputs;
    let others = bias.is_none_or(|b| b.elem_count() == outputs)
        && residual.is_none_or(|r| r.elem_count() == rows * outputs);
    if x.dims().last() != Some(&inputs) || !others {
        candle_core::bail!("linear: {:?} for weights of [{outputs}, {inputs}]", x.dims());
    }
    let stream = device.cuda_stream().cu_stream() as usize;
    let kind = Kind { stream, rows, inputs, outputs, half: x.dtype() == DType::F16, end };
    if !Plans::with(|plans| plans.knows(kind, device))? {
        return Ok(None);
    }
    let contiguous = |t: Option<&Tensor>| t.map(Tensor::contiguous).transpose();
    let op = Product { kind, bias: contiguous(bias)?, residual: contiguous(residual)? };
    x.contiguous()?.apply_op2_no_bwd(&w.contiguous()?, &op).map(Some)
}

struct Product {
    kind: Kind,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
}

/// GPU addresses of a product's operands and result.
#[derive(Clone, Copy)]
struct Places {
    x: u64,
    w: u64,
    bias: Option<u64>,
    residual: Option<u64>,
    out: u64,
}

impl Product {
    fn of<T: CudaDType + DeviceRepr>(
        &self,
        x: &CudaView<T>,
        w: &CudaView<T>,
        device: &CudaDevice,
    ) -> Result<CudaStorage> {
        let stream = device.cuda_stream();
        let place = |view: &CudaView<T>| view.device_ptr(&stream).0;
        let (x, w) = (place(x), place(w));
        if let End::Residual { .. } = self.kind.end {
            let place =
                |t| with_optional::<f32, _>(t, |view| Ok(view.map(|view| view.device_ptr(&stream).0)));
            let (bias, residual) = (place(self.bias.as_ref())?, place(self.residual.as_ref())?);
            self.result::<f32>(Places { x, w, bias, residual, out: 0 }, device)
        } else {
            let bias = with_optional::<T, _>(self.bias.as_ref(), |b| Ok(b.map(place)))?;
            self.result::<T>(Places { x, w, bias, residual: None, out: 0 }, device)
        }
    }

    /// Computes the product into newly allocated memory.
    fn result<O: CudaDType + DeviceRepr>(&self, places: Places, device: &CudaDevice) -> Result<CudaStorage> {
        let stream = device.cuda_stream();
        // SAFETY: the product writes all of it.
        let mut out = unsafe { device.alloc::<O>(self.kind.rows * self.kind.outputs)? };
        let places = Places { out: out.device_ptr_mut(&stream).0, ..places };
        Plans::with(|plans| plans.launch(self.kind, places, &stream))?;
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "autosam-cuda-product"
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
        let device = s1.device();
        let out = match s1.dtype() {
            DType::BF16 => self.of::<bf16>(&view(s1, l1)?, &view(s2, l2)?, device)?,
            DType::F16 => self.of::<f16>(&view(s1, l1)?, &view(s2, l2)?, device)?,
            other => candle_core::bail!("linear: no kernel for {other:?}"),
        };
        let mut shape = l1.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.kind.outputs;
        }
        Ok((out, Shape::from(shape)))
    }
}

/// The algorithm of each kind of product, kept for the life of the process.
#[derive(Default)]
struct Plans {
    library: Option<Library>,
    /// `None` if cuBLASLt has no algorithm.
    known: HashMap<Kind, Option<Plan>>,
    /// Addresses of each stream's workspace.
    workspaces: HashMap<usize, u64>,
}

struct Library(sys::cublasLtHandle_t);

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    /// Candidates; only the fastest remains after timing.
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: cuBLASLt's handle and descriptions may be used by any thread, one at a time: all are behind `Plans::with`'s lock.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Send for Plan {}

impl Plans {
    fn with<R>(f: impl FnOnce(&mut Self) -> R) -> R {
        static PLANS: Mutex<Option<Plans>> = Mutex::new(None);
        let mut plans = PLANS.lock();
        f(plans.get_or_insert_default())
    }

    /// Finds algorithms for `kind`; false if none exist.
    fn knows(&mut self, kind: Kind, device: &CudaDevice) -> Result<bool> {
        if let Some(plan) = self.known.get(&kind) {
            return Ok(plan.is_some());
        }
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let handle = match &self.library {
            Some(Library(handle)) => *handle,
            None => self.library.insert(Library(lt::create_handle().map_err(failed)?)).0,
        };
        if let Entry::Vacant(place) = self.workspaces.entry(kind.stream) {
            // Never freed, because captured graphs refer to it.
            // SAFETY: a product writes there before it reads.
            place.insert(unsafe { device.alloc::<u8>(WORKSPACE)?.leak() });
        }
        let plan = Plan::new(handle, kind)
            .inspect_err(|e| tracing::debug!("no fused product for {kind:?}: {e}"))
            .ok();
        let known = plan.is_some();
        self.known.insert(kind, plan);
        Ok(known)
    }

    fn launch(&mut self, kind: Kind, places: Places, stream: &CudaStream) -> Result<()> {
        let (Some(Library(handle)), Some(Some(plan)), Some(&workspace)) =
            (&self.library, self.known.get_mut(&kind), self.workspaces.get(&kind.stream))
        else {
            candle_core::bail!("linear: {kind:?} was not prepared")
        };
        if let Some(bias) = places.bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            set(plan.description, attribute, &bias).map_err(failed)?;
        }
        let recording = stream.capture_status().w()? != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        if plan.algorithms.len() > 1 && !recording {
            plan.time(*handle, places, workspace, stream)?;
        }
        plan.launch(*handle, &plan.algorithms[0], places, workspace, stream)
    }
}

fn failed(e: lt::CublasError) -> candle_core::Error {
    candle_core::Error::Msg(format!("cuBLASLt: {e}"))
}

fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> std::result::Result<(), lt::CublasError> {
    // SAFETY: the description lives as long as the process, and `T` is the attribute's type.
    unsafe {
        lt::set_matmul_desc_attribute(
            description,
            attribute,
            std::ptr::from_ref(value).cast(),
            size_of::<T>(),
        )
    }
}

impl Plan {
    /// cuBLASLt is column-major: it computes the result's transpose `[O, rows]` as `w [O, I] · xᵀ [I, rows]`, which
    /// matches the row-major layout of the tensors here.
    fn new(handle: sys::cublasLtHandle_t, kind: Kind) -> std::result::Result<Self, lt::CublasError> {
        use sys::cublasLtEpilogue_t as epilogue;
        use sys::cublasLtMatmulDescAttributes_t as attribute;
        let f32s = sys::cudaDataType::CUDA_R_32F;
        let operands = if kind.half { sys::cudaDataType::CUDA_R_16F } else { sys::cudaDataType::CUDA_R_16BF };
        let (end, result) = match kind.end {
            End::Plain { bias: false } => (epilogue::CUBLASLT_EPILOGUE_DEFAULT, operands),
            End::Plain { bias: true } => (epilogue::CUBLASLT_EPILOGUE_BIAS, operands),
            End::Gelu => (epilogue::CUBLASLT_EPILOGUE_GELU_BIAS, operands),
            End::Relu => (epilogue::CUBLASLT_EPILOGUE_RELU_BIAS, operands),
            End::Residual { bias: false } => (epilogue::CUBLASLT_EPILOGUE_DEFAULT, f32s),
            End::Residual { bias: true } => (epilogue::CUBLASLT_EPILOGUE_BIAS, f32s),
        };
        let description = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32s)?;
        let transposed = 1i32;
        set(description, attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        set(description, attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &end)?;
        let (rows, inputs, outputs) = (kind.rows as u64, kind.inputs as u64, kind.outputs as u64);
        let w = lt::create_matrix_layout(operands, inputs, outputs, kind.inputs as i64)?;
        let x = lt::create_matrix_layout(operands, inputs, rows, kind.inputs as i64)?;
        let out = lt::create_matrix_layout(result, outputs, rows, kind.outputs as i64)?;
        let preference = lt::create_matmul_pref()?;
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(CANDIDATES);
        let mut count = 0;
        // SAFETY: the descriptions were created above, and there is room for the requested number of results.
        unsafe {
            lt::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&WORKSPACE).cast(),
                size_of::<usize>(),
            )?;
            let asked = sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                description,
                w,
                x,
                out,
                out,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &raw mut count,
            );
            lt::destroy_matmul_pref(preference)?;
            asked.result()?;
            found.set_len(usize::try_from(count).unwrap_or(0).min(CANDIDATES));
        }
        let usable =
            |f: &sys::cublasLtMatmulHeuristicResult_t| f.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        let algorithms: Vec<_> = found.into_iter().filter(usable).map(|f| f.algo).collect();
        if algorithms.is_empty() {
            return Err(lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        Ok(Self { description, w, x, out, algorithms })
    }

    fn launch(
        &self,
        handle: sys::cublasLtHandle_t,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        places: Places,
        workspace: u64,
        stream: &CudaStream,
    ) -> Result<()> {
        let (one, residual) = (1f32, if places.residual.is_some() { 1f32 } else { 0f32 });
        // SAFETY: operands and result as large as the layouts say; the result overlaps none of the others.
        unsafe {
            lt::matmul(
                handle,
                self.description,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&residual).cast(),
                places.w as *const c_void,
                self.w,
                places.x as *const c_void,
                self.x,
                places.residual.unwrap_or(places.out) as *const c_void,
                self.out,
                places.out as *mut c_void,
                self.out,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }

    /// Times the algorithms and keeps the fastest.
    fn time(
        &mut self,
        handle: sys::cublasLtHandle_t,
        places: Places,
        workspace: u64,
        stream: &CudaStream,
    ) -> Result<()> {
        let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w();
        let mut best = (f32::INFINITY, 0);
        for (i, algorithm) in self.algorithms.iter().enumerate() {
            let (begin, end) = (event()?, event()?);
            if self.launch(handle, algorithm, places, workspace, stream).is_err() {
                continue;
            }
            begin.record(stream).w()?;
            for _ in 0..RUNS {
                self.launch(handle, algorithm, places, workspace, stream)?;
            }
            end.record(stream).w()?;
            let took = begin.elapsed_ms(&end).w()?;
            if took < best.0 {
                best = (took, i);
            }
        }
        self.algorithms = vec![self.algorithms[best.1]];
        Ok(())
    }
}
