//! Attention in 16 bits that never stores all scores (attention.cu; hopper.cu for Hopper). Windows are read directly
//! from the grid.

use super::{Kernel, fusible, kernel_of, name, only_on_a_gpu, ptx, push, view, with_optional, with_view};
use crate::Packing;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg, sys::CUfunction_attribute_enum,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
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

impl Heads {
    /// Channels from a head's queries to its keys and from its keys to its values, and from one head to the next.
    fn steps(self, d: usize) -> (usize, usize) {
        match self.packing {
            Packing::Parts => (self.heads * d, d),
            Packing::Heads => (d, 3 * d),
        }
    }
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

/// Sizes of one attention.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    tokens: usize,
    /// Tokens of the keys' tensor; `tokens` if they are packed.
    keys: usize,
    /// Channels of a token of the queries' tensor.
    width: usize,
    heads: usize,
    /// Channels per head.
    d: usize,
}

/// Groups of tokens that attend to each other: windows of a grid, or all tokens.
#[derive(Clone, Copy)]
struct Windows {
    /// The bias by its number in attention.cu: 0 none, 1 full, 2 relative positions in windows with sides of at most 16,
    /// 3 in larger ones.
    bias: u32,
    /// Sides of a window and of the grid; 0 without relative positions.
    h: usize,
    w: usize,
    grid: (usize, usize),
    /// Windows in a row of the grid (0 without relative positions), and in the whole grid.
    columns: usize,
    count: usize,
    /// Queries and keys of a window.
    tokens: usize,
    keys: usize,
}

/// What a block of threads gets.
struct Block {
    /// Queries.
    rows: usize,
    threads: u32,
    /// Bytes of shared memory.
    shared: u32,
}

impl Windows {
    /// Whether Hopper's kernels are used, which are for windows, or for an unpartitioned grid.
    fn on_hopper(&self, d: usize) -> bool {
        let fits = self.bias == 2 || self.bias == 3 && (self.h, self.w) == self.grid;
        cfg!(hopper) && fits && matches!(d, 64 | 80)
    }

    /// The blocks of the kernel for heads of `d` channels.
    fn block(&self, d: usize) -> Block {
        let hopper = self.on_hopper(d);
        // Queries, threads and shared memory (in units of 16 bits) of a block. Shared memory holds two tiles of keys
        // and values, a window's queries and tables, and for each query its distances to 16 or 64 positions of a row,
        // plus 8. Hopper's kernel holds whole windows, or six tiles of a grid and the tables, and uses four warps for
        // loading.
        let beside = |rows: usize, places: usize| 2 * rows * (places + 8);
        let (rows, threads, shared) = match self.bias {
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
        Block { rows, threads, shared: shared as u32 * 2 }
    }
}

/// Operands of a kernel on the GPU.
struct Operands<'a, T> {
    q: &'a CudaView<'a, T>,
    k: &'a CudaView<'a, T>,
    v: &'a CudaView<'a, T>,
    padding: Option<&'a CudaView<'a, T>>,
    /// See [`Bias::Full`].
    bias: Option<&'a CudaView<'a, f32>>,
    /// Tables of [`Bias::Relative`], down and across.
    tables: Option<(&'a CudaView<'a, T>, &'a CudaView<'a, T>)>,
}

/// What every launch of one attention shares.
struct Launch<'a> {
    device: &'a CudaDevice,
    /// The operands' type in the kernels' names.
    of: &'a str,
    sizes: Sizes,
    windows: Windows,
    parameters: Parameters,
}

impl Launch<'_> {
    /// Writes the attention to all of `out`.
    fn run<T: DeviceRepr>(&self, operands: Operands<T>, out: &mut CudaSlice<T>) -> Result<()> {
        let Sizes { tokens, keys, d, .. } = self.sizes;
        match tokens <= FEW && keys > TILE && d == 16 && self.windows.bias == 0 {
            true => self.few_queries(operands, out),
            false => self.tiles(operands, out),
        }
    }

    /// Few queries with many keys: several blocks share a head's keys, and a second kernel joins their sums.
    fn few_queries<T: DeviceRepr>(&self, operands: Operands<T>, out: &mut CudaSlice<T>) -> Result<()> {
        let Sizes { batch, keys, heads, d, .. } = self.sizes;
        let of = self.of;
        let shares = keys.div_ceil(FEW_THREADS).min(FEW_PARTS);
        // SAFETY: the first kernel writes what the second reads.
        let mut sums = unsafe { self.device.alloc::<f32>(shares * batch * heads * FEW * (d + 2))? };
        let shares = shares as u32;
        let blocks = |parts: u32| LaunchConfig {
            grid_dim: ((batch * heads) as u32, parts, 1),
            block_dim: (FEW_THREADS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        let partial = self.kernel(&format!("few_queries_{of}_{d}"))?;
        let mut builder = partial.builder();
        builder.arg(operands.q).arg(operands.k).arg(operands.v).arg(&mut sums).arg(&self.parameters);
        // SAFETY: the kernel's parameters; sizes were checked by `Attention`.
        unsafe { builder.launch(blocks(shares)) }.w()?;
        let joined = self.kernel(&format!("few_queries_joined_{of}_{d}"))?;
        let mut builder = joined.builder();
        builder.arg(&sums).arg(out).arg(&shares).arg(&self.parameters);
        // SAFETY: as above.
        unsafe { builder.launch(blocks(1)) }.w()?;
        Ok(())
    }

    /// One block of threads for each tile of a window's queries.
    fn tiles<T: DeviceRepr>(&self, operands: Operands<T>, out: &mut CudaSlice<T>) -> Result<()> {
        let Sizes { batch, heads, d, .. } = self.sizes;
        let (of, windows) = (self.of, &self.windows);
        let function = match windows.bias {
            2 if windows.on_hopper(d) => self.kernel(&format!("attention_windows_{of}_{d}"))?,
            3 if windows.on_hopper(d) => self.kernel(&format!("attention_grid_{of}_{d}"))?,
            bias => self.kernel(&format!("attention_{of}_{d}_{bias}"))?,
        };
        let Block { rows, threads, shared } = windows.block(d);
        let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.function.set_attribute(most, shared as i32).w()?;
        let nothing = 0u64;
        let mut builder = function.builder();
        builder.arg(operands.q).arg(operands.k).arg(operands.v);
        push(&mut builder, operands.bias);
        match operands.tables {
            Some((down, across)) => builder.arg(down).arg(across),
            None => builder.arg(&nothing).arg(&nothing),
        };
        push(&mut builder, operands.padding);
        builder.arg(out).arg(&self.parameters);
        let config = LaunchConfig {
            grid_dim: (windows.tokens.div_ceil(rows) as u32, (batch * windows.count * heads) as u32, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: shared,
        };
        // SAFETY: the kernel's parameters; sizes were checked by `Attention`.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    /// A kernel of attention.cu, or of hopper.cu if that is used.
    fn kernel(&self, name: &str) -> Result<Kernel> {
        match self.windows.on_hopper(self.sizes.d) {
            true => kernel_of(self.device, "autosam-hopper", ptx::HOPPER, name),
            false => kernel_of(self.device, "autosam-attention", ptx::ATTENTION, name),
        }
    }
}

impl Attention {
    fn run<T: CudaDType + DeviceRepr>(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let sizes = self.sizes(layout)?;
        let windows = self.windows(sizes)?;
        self.check_others(sizes, storage.dtype(), layout)?;
        let parameters = self.parameters(sizes, windows);
        let launch = Launch { device, of: name(storage.dtype())?, sizes, windows, parameters };
        let all = view::<T>(storage, layout)?;
        let Sizes { batch, tokens, heads, d, .. } = sizes;
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<T>(batch * tokens * heads * d)? };
        self.with_operands(&all, self.heads.steps(d).0, |operands| launch.run(operands, &mut out))?;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((batch, tokens, heads * d))))
    }

    /// The sizes for a tensor of queries, with or without keys and values, of this layout.
    fn sizes(&self, layout: &Layout) -> Result<Sizes> {
        let heads = self.heads.heads;
        let (batch, tokens, width) = layout.shape().dims3()?;
        let parts = if self.separate.is_some() { 1 } else { 3 };
        let keys = self.separate.as_ref().map_or(Ok(tokens), |(k, _)| k.dim(1))?;
        Ok(Sizes { batch, tokens, keys, width, heads, d: width / (parts * heads) })
    }

    /// The windows in which tokens attend to each other.
    ///
    /// # Errors
    /// If the bias does not match the sizes.
    fn windows(&self, sizes: Sizes) -> Result<Windows> {
        let Sizes { tokens, keys, heads, d, .. } = sizes;
        let whole = Windows { bias: 0, h: 0, w: 0, grid: (0, 0), columns: 0, count: 1, tokens, keys };
        match &self.bias {
            Bias::None => Ok(whole),
            Bias::Full(bias) if bias.dims() != [heads, tokens, tokens] => {
                candle_core::bail!("attention: a bias {:?} for {heads} heads of {tokens} tokens", bias.dims())
            }
            Bias::Full(_) => Ok(Windows { bias: 1, ..whole }),
            &Bias::Relative { ref down, ref across, h, w, grid } => {
                let tables = (down.dims(), across.dims()) == (&[2 * h - 1, d], &[2 * w - 1, d]);
                if !tables || grid.0 * grid.1 != tokens || h.max(w) > MOST_SIDE {
                    candle_core::bail!(
                        "attention: tables {:?}, {:?} for windows {h}x{w} of a grid {grid:?} of {tokens}",
                        down.dims(),
                        across.dims()
                    );
                }
                let bias = if h.max(w) <= 16 { 2 } else { 3 };
                let columns = grid.1.div_ceil(w);
                let count = columns * grid.0.div_ceil(h);
                Ok(Windows { bias, h, w, grid, columns, count, tokens: h * w, keys: h * w })
            }
        }
    }

    /// Checks the padding, and keys and values that are not packed with the queries, of type `dtype`.
    fn check_others(&self, sizes: Sizes, dtype: DType, queries: &Layout) -> Result<()> {
        let Sizes { batch, keys, width, .. } = sizes;
        let other = |p: &Tensor| p.elem_count() != width || p.dtype() != dtype;
        if self.padding.as_ref().is_some_and(|p| other(p) || matches!(self.heads.packing, Packing::Heads)) {
            candle_core::bail!("attention: the padding must have {width} channels");
        }
        if let Some((k, v)) = &self.separate
            && (k.dims() != [batch, keys, width] || v.dims() != k.dims())
        {
            candle_core::bail!(
                "attention: k {:?}, v {:?} for queries {:?}",
                k.dims(),
                v.dims(),
                queries.dims()
            );
        }
        Ok(())
    }

    fn parameters(&self, sizes: Sizes, windows: Windows) -> Parameters {
        let Sizes { width, heads, d, .. } = sizes;
        let (_, head) = self.heads.steps(d);
        // Steps to the next element of the batch, head and token.
        let strides = |tokens: usize| [(tokens * width) as i64, head as i64, width as i64];
        let (q, others) = (strides(sizes.tokens), strides(sizes.keys));
        let Windows { h, w, grid, columns, tokens, keys, .. } = windows;
        let [heads, tokens, keys] = [heads, tokens, keys].map(|v| v as u32);
        let [h, w, down, across, columns] = [h, w, grid.0, grid.1, columns].map(|v| v as u32);
        let scale = self.heads.scale as f32;
        Parameters { q, k: others, v: others, heads, tokens, keys, scale, h, w, down, across, columns }
    }

    /// Calls `f` with the operands; `all` are the queries, with or without keys and values, and `part` is the offset of
    /// packed keys from the queries.
    fn with_operands<T: CudaDType + DeviceRepr>(
        &self,
        all: &CudaView<T>,
        part: usize,
        f: impl FnOnce(Operands<T>) -> Result<()>,
    ) -> Result<()> {
        if let Some((k, v)) = &self.separate {
            return with_view::<T, _>(k, |k| {
                with_view::<T, _>(v, |v| {
                    f(Operands { q: all, k, v, padding: None, bias: None, tables: None })
                })
            });
        }
        let [q, k, v] = [0, 1, 2].map(|i| all.slice(i * part..));
        with_optional::<T, _>(self.padding.as_ref(), |padding| {
            let packed = Operands { q: &q, k: &k, v: &v, padding, bias: None, tables: None };
            match &self.bias {
                Bias::None => f(packed),
                Bias::Full(bias) => {
                    with_view::<f32, _>(bias, |bias| f(Operands { bias: Some(bias), ..packed }))
                }
                Bias::Relative { down, across, .. } => with_view::<T, _>(down, |down| {
                    with_view::<T, _>(across, |across| f(Operands { tables: Some((down, across)), ..packed }))
                }),
            }
        })
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
