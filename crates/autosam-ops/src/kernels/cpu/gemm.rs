//! Matrix products on strided data by the microkernels of the crate `gemm`, and the buffers that threads keep for them.
//!
//! The crate packs its operands into memory that it allocates for every product. This module computes the same products
//! with the same order of sums, but reuses its buffers and accepts weights packed in advance ([`pack_rhs`]).

use candle_core::{Device, Result, Tensor};
use gemm_common::cache::{KernelParams, kernel_params};
use gemm_common::microkernel::MicroKernelFn;
use std::cell::RefCell;
use std::sync::LazyLock;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Alignment in floats: two cache lines. Loads from operands aligned to it do not cross lines.
const ALIGNMENT: usize = 32;

/// Calls `f` with a buffer of `len` floats of unspecified content, which the thread keeps for reuse. Nested calls,
/// including those in work that rayon steals, get other buffers.
pub(crate) fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len + ALIGNMENT {
        buffer.resize(len + ALIGNMENT, 0.0);
    }
    let from = aligned(&buffer);
    let result = f(&mut buffer[from..from + len]);
    SCRATCH.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}

/// Index of the first aligned float of `buffer`.
fn aligned(buffer: &[f32]) -> usize {
    buffer.as_ptr().align_offset(ALIGNMENT * size_of::<f32>()).min(ALIGNMENT)
}

/// A strided matrix.
#[derive(Clone, Copy)]
pub(crate) struct MatRef {
    pub data: *const f32,
    pub row_stride: isize,
    pub col_stride: isize,
}

impl MatRef {
    fn at(self, row: usize, col: usize) -> *const f32 {
        self.data.wrapping_offset(row as isize * self.row_stride + col as isize * self.col_stride)
    }
}

/// The microkernels of this machine. Each computes up to `height` rows and `width` columns from a panel `[k, width]` of
/// the right operand.
struct Kernels {
    /// Floats per vector.
    lanes: usize,
    width: usize,
    height: usize,
    /// Microkernel by number of vectors and rows, each from 1.
    table: fn(usize, usize) -> MicroKernelFn<f32>,
}

/// `None` if this machine is not an x86 with FMA; the crate's own product is used then.
static KERNELS: LazyLock<Option<Kernels>> = LazyLock::new(|| avx512().or_else(fma));

#[cfg(target_arch = "x86_64")]
fn avx512() -> Option<Kernels> {
    use gemm_f32::microkernel::avx512f::f32::{MR_DIV_N, NR, UKR};
    let there = autosam_frame::simd::limit().avx512() && is_x86_feature_detected!("avx512f");
    there.then_some(Kernels {
        lanes: 16,
        width: 16 * MR_DIV_N,
        height: NR,
        table: |vectors, rows| UKR[vectors - 1][rows - 1],
    })
}

#[cfg(target_arch = "x86_64")]
fn fma() -> Option<Kernels> {
    use gemm_f32::microkernel::fma::f32::{MR_DIV_N, NR, UKR};
    is_x86_feature_detected!("fma").then_some(Kernels {
        lanes: 8,
        width: 8 * MR_DIV_N,
        height: NR,
        table: |vectors, rows| UKR[vectors - 1][rows - 1],
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512() -> Option<Kernels> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn fma() -> Option<Kernels> {
    None
}

/// `dst [m, n] = scale · a [m, k] · b [k, n]`, added to `dst` with `add`. Runs on the calling thread only.
///
/// # Safety
/// The pointers reach the whole matrices, `dst` is not shared.
#[allow(clippy::too_many_arguments)] // the shape of every BLAS
pub(crate) unsafe fn gemm(
    m: usize,
    n: usize,
    k: usize,
    dst: *mut f32,
    dst_rows: isize,
    add: bool,
    scale: f32,
    a: MatRef,
    b: MatRef,
) {
    match &*KERNELS {
        Some(kernels) if !special(m, n, k, dst_rows, a, b) => {
            let product = Product { kernels, m, n, k, dst, dst_rows, add, scale, a, b: Right::Strided(b) };
            // SAFETY: guaranteed by the caller.
            unsafe { product.run() }
        }
        // SAFETY: as above.
        _ => unsafe {
            ::gemm::gemm(
                m,
                n,
                k,
                dst,
                1,
                dst_rows,
                add,
                a.data,
                a.col_stride,
                a.row_stride,
                b.data,
                b.col_stride,
                b.row_stride,
                if add { 1.0 } else { 0.0 },
                scale,
                false,
                false,
                false,
                ::gemm::Parallelism::None,
            );
        },
    }
}

/// Packs `b [k, n]` for the microkernels into a tensor `[panels, k, width]` aligned to a cache line. `None` if this
/// machine has no such kernels.
pub(crate) fn pack_rhs(b: MatRef, k: usize, n: usize) -> Result<Option<Tensor>> {
    let Some(&Kernels { width, .. }) = KERNELS.as_ref() else { return Ok(None) };
    let panels = n.div_ceil(width);
    let mut data = vec![0f32; panels * k * width + ALIGNMENT];
    let from = aligned(&data);
    for (panel, to) in data[from..].chunks_exact_mut(k * width).enumerate().take(panels) {
        let first = panel * width;
        // SAFETY: a panel is as large as what is packed into it.
        unsafe {
            pack(MatRef { data: b.at(0, first), ..b }, k, width.min(n - first), width, to.as_mut_ptr())
        };
    }
    // The alignment persists because the tensor takes over the vector's memory.
    let len = data.len();
    let all = Tensor::from_vec(data, len, &Device::Cpu)?;
    all.narrow(0, from, panels * k * width)?.reshape((panels, k, width)).map(Some)
}

/// Restores the weights `[n, k]` packed by [`pack_rhs`].
pub(crate) fn unpack_rhs(packed: &Tensor, n: usize) -> Result<Tensor> {
    let (panels, k, width) = packed.dims3()?;
    packed.transpose(1, 2)?.contiguous()?.reshape((panels * width, k))?.narrow(0, 0, n)?.contiguous()
}

/// [`gemm`] of `a [m, k]` and panels of [`pack_rhs`], `[.., k, width]`, the first of which has column 0.
///
/// # Safety
/// As [`gemm`]. The panels hold `n` columns.
pub(crate) unsafe fn gemm_packed(
    (m, n, k): (usize, usize, usize),
    dst: *mut f32,
    dst_rows: isize,
    a: MatRef,
    panels: *const f32,
) {
    if let Some(kernels) = KERNELS.as_ref().filter(|_| m > 0 && n > 0 && k > 0) {
        let b = Right::Packed(panels);
        let product = Product { kernels, m, n, k, dst, dst_rows, add: false, scale: 1.0, a, b };
        // SAFETY: guaranteed by the caller.
        unsafe { product.run() }
    }
}

/// Whether the crate computes the product with other kernels that pack nothing (matrix-vector products, few results).
fn special(m: usize, n: usize, k: usize, dst_rows: isize, a: MatRef, b: MatRef) -> bool {
    let inner = a.col_stride == 1 && b.row_stride == 1;
    m == 0
        || n == 0
        || k <= 2
        || (inner && (m * n <= 16 * 16 || m == 1 || n == 1))
        || (m == 1 && b.col_stride == 1)
        || (n == 1 && a.row_stride == 1 && dst_rows == 1)
}

/// The right operand of a product.
#[derive(Clone, Copy)]
enum Right {
    Strided(MatRef),
    /// The first panel of [`pack_rhs`].
    Packed(*const f32),
}

/// A product with its operands.
struct Product<'a> {
    kernels: &'a Kernels,
    m: usize,
    n: usize,
    k: usize,
    dst: *mut f32,
    dst_rows: isize,
    add: bool,
    scale: f32,
    a: MatRef,
    b: Right,
}

/// Start of the panels and distance between them.
#[derive(Clone, Copy)]
struct Panels {
    data: *mut f32,
    panel: usize,
}

impl Panels {
    fn at(self, panel: usize) -> *mut f32 {
        self.data.wrapping_add(panel * self.panel)
    }
}

impl Product<'_> {
    /// # Safety
    /// As [`gemm`].
    unsafe fn run(&self) {
        let &Self { kernels, m, n, k, a, b, .. } = self;
        let &Kernels { lanes, width, height, .. } = kernels;
        let KernelParams { kc, mc, nc } = if m <= 64 && n <= 64 {
            KernelParams { kc: k.min(512), mc: n.next_multiple_of(width), nc: m }
        } else {
            kernel_params(n, m, k, width, height, size_of::<f32>())
        };
        let nc = if nc > 0 { nc } else { 128 * height };
        let pack_a = n > if a.col_stride == 1 { 128 * width } else { 2 * width };
        // Packs all of b at once, a part at a time, or nothing if its rows can be read directly.
        let whole = match b {
            Right::Strided(b) => n <= 2 * mc && (n % lanes != 0 || b.col_stride != 1),
            Right::Packed(_) => false,
        };
        let of_a = if pack_a { kc * nc.min(m).next_multiple_of(height) } else { 0 };
        let of_b = match b {
            Right::Strided(_) => kc * if whole { n.next_multiple_of(width) } else { mc },
            Right::Packed(_) => 0,
        };
        let padded = of_a.next_multiple_of(ALIGNMENT);
        scratch(padded + of_b, |buffer| {
            let packed_a = Panels { data: buffer.as_mut_ptr(), panel: kc * height };
            let packed_b = Panels { data: buffer.as_mut_ptr().wrapping_add(padded), panel: kc * width };
            for first in (0..m).step_by(nc) {
                let rows = nc.min(m - first);
                for depth in (0..k).step_by(kc) {
                    let deep = kc.min(k - depth);
                    // SAFETY: the buffer has room for the packed data, and the caller guarantees the matrices' sizes.
                    unsafe {
                        if pack_a {
                            for row in (0..rows).step_by(height) {
                                let wide = height.min(rows - row);
                                let from = MatRef {
                                    data: a.at(first + row, depth),
                                    row_stride: a.col_stride,
                                    col_stride: a.row_stride,
                                };
                                pack(from, deep, wide, height, packed_a.at(row / height));
                            }
                        }
                        if let (Right::Strided(b), true) = (b, whole) {
                            for col in (0..n).step_by(width) {
                                let from = MatRef { data: b.at(depth, col), ..b };
                                pack(from, deep, width.min(n - col), width, packed_b.at(col / width));
                            }
                        }
                        let mut col = 0;
                        while col < n {
                            let mut cols = mc.min(n - col);
                            if cols > lanes && !whole && matches!(b, Right::Strided(_)) {
                                cols = cols / lanes * lanes;
                            }
                            let part = Part { first, rows, depth, deep, col, cols };
                            self.part(part, whole, pack_a.then_some(packed_a), packed_b);
                            col += cols;
                        }
                    }
                }
            }
        });
    }

    /// # Safety
    /// As [`gemm`]; operands passed as packed are packed, and the buffers have room for the others.
    unsafe fn part(&self, part: Part, whole: bool, packed_a: Option<Panels>, packed_b: Panels) {
        let &Self { kernels, k, dst, dst_rows, a, b, .. } = self;
        let &Kernels { lanes, width, height, table } = kernels;
        let Part { first, rows, depth, deep, col, cols } = part;
        let adds = self.add || depth > 0;
        let pack_b = match b {
            Right::Strided(b) => !whole && (cols % lanes != 0 || b.col_stride != 1 || rows > 8 * height),
            Right::Packed(_) => false,
        };
        for row in (0..rows).step_by(height) {
            let tall = height.min(rows - row);
            let (left, left_rows, left_cols) = match packed_a {
                Some(packed) => (packed.at(row / height).cast_const(), 1, height as isize),
                None => (a.at(first + row, depth), a.row_stride, a.col_stride),
            };
            for at in (0..cols).step_by(width) {
                let wide = width.min(cols - at);
                let (right, right_rows) = match b {
                    Right::Packed(panels) => {
                        (panels.wrapping_add((col + at) / width * k * width + depth * width), width as isize)
                    }
                    Right::Strided(_) if whole => {
                        (packed_b.at((col + at) / width).cast_const(), width as isize)
                    }
                    Right::Strided(b) if pack_b => {
                        let panel = packed_b.at(at / width);
                        if row == 0 {
                            let from = MatRef { data: b.at(depth, col + at), ..b };
                            // SAFETY: guaranteed by the caller.
                            unsafe { pack(from, deep, wide, width, panel) };
                        }
                        (panel.cast_const(), width as isize)
                    }
                    Right::Strided(b) => (b.at(depth, col + at), b.row_stride),
                };
                let kernel = table(wide.div_ceil(lanes), tall);
                // SAFETY: guaranteed by the caller. The kernels are column-major, so rows and columns are swapped.
                unsafe {
                    kernel(
                        wide,
                        tall,
                        deep,
                        dst.wrapping_offset((first + row) as isize * dst_rows).wrapping_add(col + at),
                        right,
                        left,
                        dst_rows,
                        1,
                        right_rows,
                        left_cols,
                        left_rows,
                        f32::from(u8::from(adds)),
                        self.scale,
                        u8::from(adds),
                        false,
                        false,
                        false,
                        std::ptr::null(),
                    );
                }
            }
        }
    }
}

/// Rows `first..first + rows`, columns `col..col + cols`, terms `depth..depth + deep` of the sums.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    rows: usize,
    depth: usize,
    deep: usize,
    col: usize,
    cols: usize,
}

/// Packs `deep` rows of `wide` columns one after the other, padded with zeros to `width` floats each.
///
/// # Safety
/// `from` reaches them, `to` has room for them.
unsafe fn pack(from: MatRef, deep: usize, wide: usize, width: usize, to: *mut f32) {
    const SQUARE: usize = 8;
    super::common::simd(
        #[inline(always)]
        || unsafe {
            if wide < width {
                std::slice::from_raw_parts_mut(to, deep * width).fill(0.0);
            }
            if from.col_stride == 1 && wide == 64 {
                // Specialised for a size known at compile time.
                for row in 0..deep {
                    to.add(row * width).cast::<[f32; 64]>().write(from.at(row, 0).cast::<[f32; 64]>().read());
                }
            } else if from.col_stride == 1 {
                for row in 0..deep {
                    std::ptr::copy_nonoverlapping(from.at(row, 0), to.add(row * width), wide);
                }
            } else if from.row_stride == 1 {
                let (deep_squares, wide_squares) = (deep / SQUARE * SQUARE, wide / SQUARE * SQUARE);
                for col in (0..wide_squares).step_by(SQUARE) {
                    for row in (0..deep_squares).step_by(SQUARE) {
                        let mut square = [[0f32; SQUARE]; SQUARE];
                        for (j, line) in square.iter_mut().enumerate() {
                            *line = from.at(row, col + j).cast::<[f32; SQUARE]>().read();
                        }
                        let lines: [[f32; SQUARE]; SQUARE] =
                            std::array::from_fn(|i| std::array::from_fn(|j| square[j][i]));
                        for (i, line) in lines.into_iter().enumerate() {
                            to.add((row + i) * width + col).cast::<[f32; SQUARE]>().write(line);
                        }
                    }
                }
                for row in 0..deep {
                    let begin = if row < deep_squares { wide_squares } else { 0 };
                    for col in begin..wide {
                        *to.add(row * width + col) = *from.at(row, col);
                    }
                }
            } else {
                for row in 0..deep {
                    for col in 0..wide {
                        *to.add(row * width + col) = *from.at(row, col);
                    }
                }
            }
        },
    );
}

#[cfg(test)]
mod tests;
