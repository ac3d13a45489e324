//! Attention in 16 bits that never stores all scores (attention.cu; hopper.cu for Hopper). Windows are read directly
//! from the grid.

use super::{fusible, kernel_of, name, only_on_a_gpu, ptx, push, view, with_optional, with_view};
use crate::Packing;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaView, DeviceRepr, LaunchConfig, PushKernelArg, sys::CUfunction_attribute_enum,
};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use half::{bf16, f16};

/// Keys per tile and queries per block; blocks of a grid have two or three times as many queries.
const TILE: usize = 64;

/// Up to this many queries with more keys than a tile use a separate kernel.
const FEW: usize = 6;
/// Threads per block of that kernel, and blocks that share a head's keys.
const FEW_THREADS: usize = 128;
const FEW_PARTS: usize = 16;

/// Largest side of a window, or of an unpartitioned grid, for which the kernel supports relative positions.
const MOST_SIDE: usize = 64;

/// Head sizes supported by attention.cu.
const SIZES: [usize; 4] = [16, 32, 64, 80];

/// Whether the kernel supports this type and number of channels per head.
pub(crate) fn serves(dtype: DType, d: usize) -> bool {
    matches!(dtype, DType::BF16 | DType::F16) && SIZES.contains(&d)
}

/// Bias added to the scores.
enum Bias {
    None,
    /// `[heads, T, T]`, f32.
    Full(Tensor),
    /// Tables `[2h - 1, d]` and `[2w - 1, d]` of [`crate::relative_attention`], in the type of the queries, for windows
    /// of `h × w` tokens into which `grid` is partitioned; `T` is the grid's.
    Relative {
        down: Tensor,
        across: Tensor,
        h: usize,
        w: usize,
        grid: (usize, usize),
    },
}

/// Layout of the parts of `qkv [B, T, 3 · heads · d]`.
#[derive(Clone, Copy)]
struct Heads {
    packing: Packing,
    heads: usize,
    scale: f64,
}

/// Whether [`windowed_attention`] supports tokens `x` with `d` channels per head, in `dtype`, in windows of `h × w`.
pub(crate) fn finds_windows(x: &Tensor, dtype: DType, d: usize, (h, w): (usize, usize)) -> bool {
    fusible(&[x]) && serves(dtype, d) && h.max(w) <= MOST_SIDE
}

/// Multi-head self-attention: `qkv [B, T, 3 · heads · d]` → `[B, T, heads · d]`, with a bias `[heads, T, T]` on the
/// scores.
pub(crate) fn self_attention(
    qkv: &Tensor,
    packing: Packing,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let bias = match bias {
        Some(bias) => Bias::Full(bias.to_dtype(DType::F32)?.contiguous()?),
        None => Bias::None,
    };
    attention(qkv, None, Heads { packing, heads, scale }, bias)
}

/// The same in each window of `h × w` tokens of a grid of `grid` tokens, with tables of relative positions in the type
/// of `qkv`. Tokens of a window beyond the grid are `padding [3 · heads · d]`, in the same type, or zeros if it is
/// `None`.
pub(crate) fn windowed_attention(
    qkv: &Tensor,
    padding: Option<&Tensor>,
    heads: usize,
    scale: f64,
    ((h, w), grid): ((usize, usize), (usize, usize)),
    (rows, cols): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let bias = Bias::Relative { down: rows.contiguous()?, across: cols.contiguous()?, h, w, grid };
    attention(qkv, padding, Heads { packing: Packing::Parts, heads, scale }, bias)
}

fn attention(qkv: &Tensor, padding: Option<&Tensor>, heads: Heads, bias: Bias) -> Result<Tensor> {
    let padding = padding.map(Tensor::contiguous).transpose()?;
    qkv.contiguous()?.apply_op1_no_bwd(&Attention { heads, bias, padding, separate: None })
}

/// Cross-attention of queries `q [B, T, heads · d]` to `k` and `v [B, S, heads · d]`, without a bias.
pub(crate) fn cross_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f64,
) -> Result<Tensor> {
    let heads = Heads { packing: Packing::Parts, heads, scale };
    let separate = Some((k.contiguous()?, v.contiguous()?));
    q.contiguous()?.apply_op1_no_bwd(&Attention { heads, bias: Bias::None, padding: None, separate })
}

struct Attention {
    heads: Heads,
    bias: Bias,
    padding: Option<Tensor>,
    /// Keys and values that are not packed with the queries.
    separate: Option<(Tensor, Tensor)>,
}

/// `Attention` of attention.cuh.
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
    down: u32,
    across: u32,
    columns: u32,
}

// SAFETY: plain numbers in the layout of attention.cuh.
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
        let parts = if self.separate.is_some() { 1 } else { 3 };
        let d = width / (parts * heads);
        let keys = self.separate.as_ref().map_or(Ok(tokens), |(k, _)| k.dim(1))?;
        let (part, head) = match packing {
            Packing::Parts => (heads * d, d),
            Packing::Heads => (d, 3 * d),
        };
        // Number of queries and keys that attend to each other, and number of such groups.
        let (bias, (h, w), grid) = match &self.bias {
            Bias::None => (0, (0, 0), (0, 0)),
            Bias::Full(bias) if bias.dims() != [heads, tokens, tokens] => {
                candle_core::bail!("attention: a bias {:?} for {heads} heads of {tokens} tokens", bias.dims())
            }
            Bias::Full(_) => (1, (0, 0), (0, 0)),
            &Bias::Relative { ref down, ref across, h, w, grid } => {
                let tables = (down.dims(), across.dims()) == (&[2 * h - 1, d], &[2 * w - 1, d]);
                if !tables || grid.0 * grid.1 != tokens || h.max(w) > MOST_SIDE {
                    candle_core::bail!(
                        "attention: tables {:?}, {:?} for windows {h}x{w} of a grid {grid:?} of {tokens}",
                        down.dims(),
                        across.dims()
                    );
                }
                (if h.max(w) <= 16 { 2 } else { 3 }, (h, w), grid)
            }
        };
        let relative = bias >= 2;
        let (columns, windows, seen) = match relative {
            true => {
                let columns = grid.1.div_ceil(w);
                (columns, columns * grid.0.div_ceil(h), h * w)
            }
            false => (0, 1, tokens),
        };
        // Hopper's kernels are for windows, or for an unpartitioned grid.
        let hopper = cfg!(hopper) && (bias == 2 || bias == 3 && (h, w) == grid) && matches!(d, 64 | 80);
        // Queries, threads and shared memory (in units of 16 bits) of a block. Shared memory holds two tiles of keys
        // and values, a window's queries and tables, and for each query its distances to 16 or 64 positions of a row,
        // plus 8. Hopper's kernel holds whole windows, or six tiles of a grid and the tables, and uses four warps for
        // loading.
        let beside = |rows: usize, places: usize| 2 * rows * (places + 8);
        let (rows, threads, shared) = match bias {
            2 if hopper => (2 * TILE, 256, 8 * TILE * d + beside(2 * TILE, 16)),
            3 if hopper => {
                (3 * TILE, 512, 6 * (2 * TILE * d + 8) + 4 * TILE * (d + 8) + beside(3 * TILE, 64))
            }
            2 => (2 * TILE, 128, 7 * TILE * (d + 8) + beside(2 * TILE, 16)),
            3 => {
                let rows = if d <= 64 { 3 * TILE } else { 2 * TILE };
                (rows, 128, 4 * TILE * (d + 8) + beside(rows, 64))
            }
            _ => (TILE, 128, 4 * TILE * (d + 8)),
        };
        let strides = [(tokens * width) as i64, head as i64, width as i64];
        let others = if self.separate.is_some() {
            [(keys * width) as i64, head as i64, width as i64]
        } else {
            strides
        };
        let keys = if relative { seen } else { keys };
        let [seen32, keys32, heads32] = [seen, keys, heads].map(|v| v as u32);
        let [h32, w32, down, across, columns] = [h, w, grid.0, grid.1, columns].map(|v| v as u32);
        let parameters = Parameters {
            q: strides,
            k: others,
            v: others,
            heads: heads32,
            tokens: seen32,
            keys: keys32,
            scale: scale as f32,
            h: h32,
            w: w32,
            down,
            across,
            columns,
        };
        let few = tokens <= FEW && keys > TILE && d == 16 && matches!(self.bias, Bias::None);
        let of = name(storage.dtype())?;
        let kernel = |name: String| match hopper {
            true => kernel_of(device, "autosam-hopper", ptx::HOPPER, &name),
            false => kernel_of(device, "autosam-attention", ptx::ATTENTION, &name),
        };
        let function = match bias {
            _ if few => kernel(format!("few_queries_{of}_{d}"))?,
            2 if hopper => kernel(format!("attention_windows_{of}_{d}"))?,
            3 if hopper => kernel(format!("attention_grid_{of}_{d}"))?,
            _ => kernel(format!("attention_{of}_{d}_{bias}"))?,
        };
        let shares = keys.div_ceil(FEW_THREADS).min(FEW_PARTS);
        let sums = shares * batch * heads * FEW * (d + 2);
        // SAFETY: the kernel writes what its second half reads.
        let mut sums = few.then(|| unsafe { device.alloc::<f32>(sums) }).transpose()?;
        let shared = if few { 0 } else { shared as u32 * 2 };
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
        let other = |p: &Tensor| p.elem_count() != width || p.dtype() != storage.dtype();
        if self.padding.as_ref().is_some_and(|p| other(p) || matches!(packing, Packing::Heads)) {
            candle_core::bail!("attention: the padding must have {width} channels");
        }
        let mut launch = |[q, k, v]: [&CudaView<T>; 3],
                          padding: Option<&CudaView<T>>,
                          bias: Option<&CudaView<f32>>,
                          tables: Option<(&CudaView<T>, &CudaView<T>)>| {
            let mut builder = function.builder();
            let nothing = 0u64;
            builder.arg(q).arg(k).arg(v);
            if let Some(sums) = &mut sums {
                let block = |parts| LaunchConfig {
                    grid_dim: ((batch * heads) as u32, parts, 1),
                    block_dim: (FEW_THREADS as u32, 1, 1),
                    shared_mem_bytes: 0,
                };
                builder.arg(&mut *sums).arg(&parameters);
                // SAFETY: the kernel's parameters; sizes were checked above.
                unsafe { builder.launch(block(shares as u32)) }.w()?;
                let joined = kernel(format!("few_queries_joined_{of}_{d}"))?;
                let (mut builder, shares) = (joined.builder(), shares as u32);
                builder.arg(&*sums).arg(&mut out).arg(&shares).arg(&parameters);
                // SAFETY: as above.
                unsafe { builder.launch(block(1)) }.w()?;
                return Ok(());
            }
            push(&mut builder, bias);
            match tables {
                Some((down, across)) => builder.arg(down).arg(across),
                None => builder.arg(&nothing).arg(&nothing),
            };
            push(&mut builder, padding);
            builder.arg(&mut out).arg(&parameters);
            let config = LaunchConfig {
                grid_dim: (seen.div_ceil(rows) as u32, (batch * windows * heads) as u32, 1),
                block_dim: (threads, 1, 1),
                shared_mem_bytes: shared,
            };
            // SAFETY: the kernel's parameters; sizes were checked above.
            unsafe { builder.launch(config) }.w()?;
            Ok(())
        };
        if let Some((k, v)) = &self.separate {
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
            with_optional(self.padding.as_ref(), |padding| match &self.bias {
                Bias::None => launch(parts, padding, None, None),
                Bias::Full(bias) => with_view(bias, |bias| launch(parts, padding, Some(bias), None)),
                Bias::Relative { down, across, .. } => with_view::<T, _>(down, |down| {
                    with_view::<T, _>(across, |across| launch(parts, padding, None, Some((down, across))))
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
