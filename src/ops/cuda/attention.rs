//! Attention that never holds all scores (`attention` in kernels.cu), in 16 bits.

use super::{kernel, name, only_on_a_gpu, push, view, with_optional, with_view};
use crate::ops::Packing;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaView, DeviceRepr, LaunchConfig, PushKernelArg, sys::CUfunction_attribute_enum,
};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use half::{bf16, f16};

/// Queries and keys of a tile.
const TILE: usize = 64;

/// Head sizes that kernels.cu has.
const SIZES: [usize; 4] = [16, 32, 64, 80];

/// True where the kernel has this many channels a head and its type.
pub(in crate::ops) fn serves(dtype: DType, d: usize) -> bool {
    matches!(dtype, DType::BF16 | DType::F16) && SIZES.contains(&d)
}

/// What is added to the scores.
pub(in crate::ops) enum Bias {
    None,
    /// `[heads, T, T]`, f32.
    Full(Tensor),
    /// Tables `[2h - 1, d]` and `[2w - 1, d]` of [`crate::ops::relative_attention`], in the type of the queries.
    Relative {
        down: Tensor,
        across: Tensor,
        h: usize,
        w: usize,
    },
}

/// How `qkv [B, T, 3 · heads · d]` holds its parts.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Heads {
    pub packing: Packing,
    pub heads: usize,
    pub scale: f64,
}

/// Attention of every head to its own tokens: `qkv [B, T, 3 · heads · d]` → `[B, T, heads · d]`. `qkv_bias [3 · heads · d]`, of
/// [`Packing::Parts`], is added on the way.
pub(in crate::ops) fn attention(
    qkv: &Tensor,
    qkv_bias: Option<&Tensor>,
    heads: Heads,
    bias: Bias,
) -> Result<Tensor> {
    let qkv_bias = qkv_bias.map(|b| b.to_dtype(DType::F32)?.contiguous()).transpose()?;
    qkv.contiguous()?.apply_op1_no_bwd(&Attention { heads, bias, qkv_bias, apart: None })
}

/// The same of queries `q [B, T, heads · d]` to `k` and `v [B, S, heads · d]`, without a bias.
pub(in crate::ops) fn attention_apart(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f64,
) -> Result<Tensor> {
    let heads = Heads { packing: Packing::Parts, heads, scale };
    let apart = Some((k.contiguous()?, v.contiguous()?));
    q.contiguous()?.apply_op1_no_bwd(&Attention { heads, bias: Bias::None, qkv_bias: None, apart })
}

struct Attention {
    heads: Heads,
    bias: Bias,
    qkv_bias: Option<Tensor>,
    /// Keys and values that do not lie with the queries.
    apart: Option<(Tensor, Tensor)>,
}

/// `Attention` of kernels.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Parameters {
    q: [i64; 3],
    k: [i64; 3],
    v: [i64; 3],
    heads: u32,
    tokens: u32,
    keys: u32,
    scale: f32,
    h: u32,
    w: u32,
}

// SAFETY: plain numbers, laid out as in kernels.cu.
unsafe impl DeviceRepr for Parameters {}

impl Attention {
    fn run<T: candle_core::cuda_backend::CudaDType + DeviceRepr>(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let Heads { packing, heads, scale } = self.heads;
        let (batch, tokens, width) = layout.shape().dims3()?;
        let parts = if self.apart.is_some() { 1 } else { 3 };
        let d = width / (parts * heads);
        let keys = self.apart.as_ref().map_or(Ok(tokens), |(k, _)| k.dim(1))?;
        let (part, head) = match packing {
            Packing::Parts => (heads * d, d),
            Packing::Heads => (d, 3 * d),
        };
        let (bias, h, w) = match &self.bias {
            Bias::None => (0, 0, 0),
            Bias::Full(bias) if bias.dims() != [heads, tokens, tokens] => {
                candle_core::bail!("attention: a bias {:?} for {heads} heads of {tokens} tokens", bias.dims())
            }
            Bias::Full(_) => (1, 0, 0),
            Bias::Relative { down, across, h, w } => {
                if (down.dims(), across.dims()) != (&[2 * h - 1, d], &[2 * w - 1, d]) || h * w != tokens {
                    candle_core::bail!(
                        "attention: tables {:?}, {:?} for {h}x{w}",
                        down.dims(),
                        across.dims()
                    );
                }
                (if *w == TILE { 3 } else { 2 }, *h, *w)
            }
        };
        let strides = [(tokens * width) as i64, head as i64, width as i64];
        let others =
            if self.apart.is_some() { [(keys * width) as i64, head as i64, width as i64] } else { strides };
        let [tokens32, keys32, h32, w32, heads32] = [tokens, keys, h, w, heads].map(|v| v as u32);
        let parameters = Parameters {
            q: strides,
            k: others,
            v: others,
            heads: heads32,
            tokens: tokens32,
            keys: keys32,
            scale: scale as f32,
            h: h32,
            w: w32,
        };
        let function = kernel(device, &format!("attention_{}_{d}_{bias}", name(storage.dtype())?))?;
        let distances = if bias >= 2 { 2 * TILE * ((h.max(w) + 9) & !1) * 2 } else { 0 };
        let shared = (4 * TILE * (d + 8) * 2 + distances) as u32;
        function
            .function
            .set_attribute(
                CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared as i32,
            )
            .w()?;
        let all = view::<T>(storage, layout)?;
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<T>(batch * tokens * heads * d)? };
        if self
            .qkv_bias
            .as_ref()
            .is_some_and(|b| b.elem_count() != width || matches!(packing, Packing::Heads))
        {
            candle_core::bail!("attention: a bias of other parts than {width} in a row");
        }
        let mut launch = |[q, k, v]: [&CudaView<T>; 3],
                          qkv_bias: Option<&CudaView<f32>>,
                          bias: Option<&CudaView<f32>>,
                          tables: Option<(&CudaView<T>, &CudaView<T>)>| {
            let mut builder = function.builder();
            let nothing = 0u64;
            builder.arg(q).arg(k).arg(v);
            push(&mut builder, bias);
            match tables {
                Some((down, across)) => builder.arg(down).arg(across),
                None => builder.arg(&nothing).arg(&nothing),
            };
            push(&mut builder, qkv_bias);
            builder.arg(&mut out).arg(&parameters);
            let config = LaunchConfig {
                grid_dim: (tokens.div_ceil(TILE) as u32, (batch * heads) as u32, 1),
                block_dim: (128, 1, 1),
                shared_mem_bytes: shared,
            };
            // SAFETY: the kernel's parameters; sizes were checked above.
            unsafe { builder.launch(config) }.w()?;
            Ok(())
        };
        if let Some((k, v)) = &self.apart {
            if k.dims() != [batch, keys, width] || v.dims() != k.dims() {
                candle_core::bail!(
                    "attention: k {:?}, v {:?} for queries {:?}",
                    k.dims(),
                    v.dims(),
                    layout.dims()
                );
            }
            with_view::<T, _>(k, |k| with_view::<T, _>(v, |v| launch([&all, k, v], None, None, None)))?;
        } else {
            let [q, k, v] = [0, 1, 2].map(|i| all.slice(i * part..));
            let parts = [&q, &k, &v];
            with_optional(self.qkv_bias.as_ref(), |qkv_bias| match &self.bias {
                Bias::None => launch(parts, qkv_bias, None, None),
                Bias::Full(bias) => with_view(bias, |bias| launch(parts, qkv_bias, Some(bias), None)),
                Bias::Relative { down, across, .. } => with_view::<T, _>(down, |down| {
                    with_view::<T, _>(across, |across| launch(parts, qkv_bias, None, Some((down, across))))
                }),
            })?;
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((batch, tokens, heads * d))))
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "autosam-cuda-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match storage.dtype() {
            DType::BF16 => self.run::<bf16>(storage, layout),
            DType::F16 => self.run::<f16>(storage, layout),
            other => candle_core::bail!("attention: no kernel for {other:?}"),
        }
    }
}
