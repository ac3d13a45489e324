//! Matrix products on strided data by the microkernels of the crate `gemm`, and the buffers that threads keep for them.
//!
//! `gemm` lays its operands out in memory that it takes anew for every product. This does what it does, its order of sums too, in
//! buffers that stay; and takes weights that were laid out once, [`laid`].

use candle_core::{Device, Result, Tensor};
use gemm_common::cache::{KernelParams, kernel_params};
use gemm_common::microkernel::MicroKernelFn;
use std::cell::RefCell;
use std::sync::LazyLock;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Floats between two lines of a cache, of two sectors: operands that begin there take no load across lines.
const ALIGNMENT: usize = 32;

/// Gives `f` a buffer of `len` floats, whatever they are, that the thread keeps. Inside `f`, and in work that rayon steals
/// meanwhile, there are others.
pub(super) fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len + ALIGNMENT {
        buffer.resize(len + ALIGNMENT, 0.0);
    }
    let from = aligned(&buffer);
    let result = f(&mut buffer[from..from + len]);
    SCRATCH.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}

/// The first float of `buffer` at a boundary.
fn aligned(buffer: &[f32]) -> usize {
    buffer.as_ptr().align_offset(ALIGNMENT * size_of::<f32>()).min(ALIGNMENT)
}

/// A strided matrix: steps between its rows and between its columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub data: *const f32,
    pub rows: isize,
    pub cols: isize,
}

impl Matrix {
    fn at(self, row: usize, col: usize) -> *const f32 {
        self.data.wrapping_offset(row as isize * self.rows + col as isize * self.cols)
    }
}

/// The microkernels of this machine. One makes up to `height` rows of up to `width` columns, of a panel of the right operand:
/// `[k, width]`.
struct Kernels {
    /// Floats of a vector.
    lanes: usize,
    width: usize,
    height: usize,
    /// By vectors and rows, from 1.
    table: fn(usize, usize) -> MicroKernelFn<f32>,
}

/// `None` where this is no x86 with FMA: the crate's own product serves.
static KERNELS: LazyLock<Option<Kernels>> = LazyLock::new(|| avx512().or_else(fma));

#[cfg(target_arch = "x86_64")]
fn avx512() -> Option<Kernels> {
    use gemm_f32::microkernel::avx512f::f32::{MR_DIV_N, NR, UKR};
    is_x86_feature_detected!("avx512f").then_some(Kernels {
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

/// `dst [m, n] = scale · a [m, k] · b [k, n]`, added to `dst` with `add`; on this thread alone.
///
/// # Safety
/// The pointers reach the whole matrices, `dst` is not shared.
#[allow(clippy::too_many_arguments)] // the shape of every BLAS
pub(super) unsafe fn gemm(
    m: usize,
    n: usize,
    k: usize,
    dst: *mut f32,
    dst_rows: isize,
    add: bool,
    scale: f32,
    a: Matrix,
    b: Matrix,
) {
    match &*KERNELS {
        Some(kernels) if !special(m, n, k, dst_rows, a, b) => {
            let product = Product { kernels, m, n, k, dst, dst_rows, add, scale, a, b: Right::Strided(b) };
            // SAFETY: by the function's own condition.
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
                a.cols,
                a.rows,
                b.data,
                b.cols,
                b.rows,
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

/// `b [k, n]` as the kernels take it, in a tensor `[panels, k, width]` that begins at a line of the cache. `None` where there are no
/// such kernels.
pub(super) fn laid(b: Matrix, k: usize, n: usize) -> Result<Option<Tensor>> {
    let Some(&Kernels { width, .. }) = KERNELS.as_ref() else { return Ok(None) };
    let panels = n.div_ceil(width);
    let mut data = vec![0f32; panels * k * width + ALIGNMENT];
    let from = aligned(&data);
    for (panel, to) in data[from..].chunks_exact_mut(k * width).enumerate().take(panels) {
        let first = panel * width;
        // SAFETY: a panel is as large as what is laid out there.
        unsafe { lay(Matrix { data: b.at(0, first), ..b }, k, width.min(n - first), width, to.as_mut_ptr()) };
    }
    // Where it lies stays: a tensor takes over the memory of its values.
    let len = data.len();
    let all = Tensor::from_vec(data, len, &Device::Cpu)?;
    all.narrow(0, from, panels * k * width)?.reshape((panels, k, width)).map(Some)
}

/// What [`laid`] laid out of weights `[n, k]`, as that.
pub(super) fn taken_up(laid: &Tensor, n: usize) -> Result<Tensor> {
    let (panels, k, width) = laid.dims3()?;
    laid.transpose(1, 2)?.contiguous()?.reshape((panels * width, k))?.narrow(0, 0, n)?.contiguous()
}

/// [`gemm`] of `a [m, k]` and panels of [`laid`], `[.., k, width]`, the first of which has column 0.
///
/// # Safety
/// As [`gemm`]. The panels hold `n` columns.
pub(super) unsafe fn gemm_laid(
    (m, n, k): (usize, usize, usize),
    dst: *mut f32,
    dst_rows: isize,
    a: Matrix,
    panels: *const f32,
) {
    if let Some(kernels) = KERNELS.as_ref().filter(|_| m > 0 && n > 0 && k > 0) {
        let b = Right::Laid(panels);
        let product = Product { kernels, m, n, k, dst, dst_rows, add: false, scale: 1.0, a, b };
        // SAFETY: by the function's own condition.
        unsafe { product.run() }
    }
}

/// Products that the crate does by other kernels (of matrices with vectors, of few results), which lay nothing out.
fn special(m: usize, n: usize, k: usize, dst_rows: isize, a: Matrix, b: Matrix) -> bool {
    let inner = a.cols == 1 && b.rows == 1;
    m == 0
        || n == 0
        || k <= 2
        || (inner && (m * n <= 16 * 16 || m == 1 || n == 1))
        || (m == 1 && b.cols == 1)
        || (n == 1 && a.rows == 1 && dst_rows == 1)
}

/// The right operand of a product.
#[derive(Clone, Copy)]
enum Right {
    Strided(Matrix),
    /// The first panel of [`laid`].
    Laid(*const f32),
}

/// A product and where its operands lie.
struct Product<'a> {
    kernels: &'a Kernels,
    m: usize,
    n: usize,
    k: usize,
    dst: *mut f32,
    dst_rows: isize,
    add: bool,
    scale: f32,
    a: Matrix,
    b: Right,
}

/// Where panels begin and how far it is to the next.
#[derive(Clone, Copy)]
struct Laid {
    data: *mut f32,
    panel: usize,
}

impl Laid {
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
        let lay_a = n > if a.cols == 1 { 128 * width } else { 2 * width };
        // All of b at once, a part of it, or nothing where its rows can be read as they are.
        let whole = match b {
            Right::Strided(b) => n <= 2 * mc && (n % lanes != 0 || b.cols != 1),
            Right::Laid(_) => false,
        };
        let of_a = if lay_a { kc * nc.min(m).next_multiple_of(height) } else { 0 };
        let of_b = match b {
            Right::Strided(_) => kc * if whole { n.next_multiple_of(width) } else { mc },
            Right::Laid(_) => 0,
        };
        let padded = of_a.next_multiple_of(ALIGNMENT);
        scratch(padded + of_b, |buffer| {
            let laid_a = Laid { data: buffer.as_mut_ptr(), panel: kc * height };
            let laid_b = Laid { data: buffer.as_mut_ptr().wrapping_add(padded), panel: kc * width };
            for first in (0..m).step_by(nc) {
                let rows = nc.min(m - first);
                for depth in (0..k).step_by(kc) {
                    let deep = kc.min(k - depth);
                    // SAFETY: the buffer has room for what is laid out, and the matrices are as large as they are said to be.
                    unsafe {
                        if lay_a {
                            for row in (0..rows).step_by(height) {
                                let wide = height.min(rows - row);
                                let from =
                                    Matrix { data: a.at(first + row, depth), rows: a.cols, cols: a.rows };
                                lay(from, deep, wide, height, laid_a.at(row / height));
                            }
                        }
                        if let (Right::Strided(b), true) = (b, whole) {
                            for col in (0..n).step_by(width) {
                                let from = Matrix { data: b.at(depth, col), ..b };
                                lay(from, deep, width.min(n - col), width, laid_b.at(col / width));
                            }
                        }
                        let mut col = 0;
                        while col < n {
                            let mut cols = mc.min(n - col);
                            if cols > lanes && !whole && matches!(b, Right::Strided(_)) {
                                cols = cols / lanes * lanes;
                            }
                            let part = Part { first, rows, depth, deep, col, cols };
                            self.part(part, whole, lay_a.then_some(laid_a), laid_b);
                            col += cols;
                        }
                    }
                }
            }
        });
    }

    /// # Safety
    /// As [`gemm`]; what is said to be laid out is, and for the rest there is room.
    unsafe fn part(&self, part: Part, whole: bool, laid_a: Option<Laid>, laid_b: Laid) {
        let &Self { kernels, k, dst, dst_rows, a, b, .. } = self;
        let &Kernels { lanes, width, height, table } = kernels;
        let Part { first, rows, depth, deep, col, cols } = part;
        let adds = self.add || depth > 0;
        let lay_b = match b {
            Right::Strided(b) => !whole && (cols % lanes != 0 || b.cols != 1 || rows > 8 * height),
            Right::Laid(_) => false,
        };
        for row in (0..rows).step_by(height) {
            let tall = height.min(rows - row);
            let (left, left_rows, left_cols) = match laid_a {
                Some(laid) => (laid.at(row / height).cast_const(), 1, height as isize),
                None => (a.at(first + row, depth), a.rows, a.cols),
            };
            for at in (0..cols).step_by(width) {
                let wide = width.min(cols - at);
                let (right, right_rows) = match b {
                    Right::Laid(panels) => {
                        (panels.wrapping_add((col + at) / width * k * width + depth * width), width as isize)
                    }
                    Right::Strided(_) if whole => {
                        (laid_b.at((col + at) / width).cast_const(), width as isize)
                    }
                    Right::Strided(b) if lay_b => {
                        let panel = laid_b.at(at / width);
                        if row == 0 {
                            let from = Matrix { data: b.at(depth, col + at), ..b };
                            // SAFETY: by the function's own condition.
                            unsafe { lay(from, deep, wide, width, panel) };
                        }
                        (panel.cast_const(), width as isize)
                    }
                    Right::Strided(b) => (b.at(depth, col + at), b.rows),
                };
                let kernel = table(wide.div_ceil(lanes), tall);
                // SAFETY: by the function's own condition. The kernels have columns where we have rows.
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

/// Lays `deep` rows of `wide` columns out one after the other, `width` floats each, zeros behind the columns.
///
/// # Safety
/// `from` reaches them, `to` has room for them.
unsafe fn lay(from: Matrix, deep: usize, wide: usize, width: usize, to: *mut f32) {
    const SQUARE: usize = 8;
    super::cpu::simd(
        #[inline(always)]
        || unsafe {
            if wide < width {
                std::slice::from_raw_parts_mut(to, deep * width).fill(0.0);
            }
            if from.cols == 1 && wide == 64 {
                // Of a size that the compiler knows.
                for row in 0..deep {
                    to.add(row * width).cast::<[f32; 64]>().write(from.at(row, 0).cast::<[f32; 64]>().read());
                }
            } else if from.cols == 1 {
                for row in 0..deep {
                    std::ptr::copy_nonoverlapping(from.at(row, 0), to.add(row * width), wide);
                }
            } else if from.rows == 1 {
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
mod tests {
    use super::super::plan::noise;
    use super::*;
    use proptest::prelude::*;

    /// `[rows, cols]`, row by row with `gap` floats between rows, or column by column.
    fn strided(data: &[f32], rows: usize, cols: usize, turned: bool, gap: usize) -> Matrix {
        assert!(data.len() >= (rows + gap) * (cols + gap));
        let data = data.as_ptr();
        match turned {
            false => Matrix { data, rows: (cols + gap) as isize, cols: 1 },
            true => Matrix { data, rows: 1, cols: (rows + gap) as isize },
        }
    }

    /// The crate's own product.
    #[allow(clippy::too_many_arguments)] // the shape of every BLAS
    fn theirs(
        m: usize,
        n: usize,
        k: usize,
        dst: &mut [f32],
        rows: usize,
        add: bool,
        scale: f32,
        a: Matrix,
        b: Matrix,
    ) {
        let (dst, rows, old) = (dst.as_mut_ptr(), rows as isize, f32::from(u8::from(add)));
        let alone = ::gemm::Parallelism::None;
        // SAFETY: the callers' matrices are as large as they say.
        unsafe {
            ::gemm::gemm(
                m, n, k, dst, 1, rows, add, a.data, a.cols, a.rows, b.data, b.cols, b.rows, old, scale,
                false, false, false, alone,
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn products_are_the_crates_to_the_bit(
            (m, n, k) in prop_oneof![(1..40usize, 1..200usize, 1..70usize), (1..300usize, 1..900usize, 500..1100usize)],
            turned_a: bool,
            turned_b: bool,
            gap in 0..3usize,
            add: bool,
        ) {
            let (a, b) = (noise((m + gap) * (k + gap), 1), noise((k + gap) * (n + gap), 2));
            let (a, b) = (strided(&a, m, k, turned_a, gap), strided(&b, k, n, turned_b, gap));
            let mut ours = noise(m * (n + gap), 3);
            let mut expected = ours.clone();
            theirs(m, n, k, &mut expected, n + gap, add, 0.75, a, b);
            // SAFETY: the buffers are as large as the matrices.
            unsafe { gemm(m, n, k, ours.as_mut_ptr(), (n + gap) as isize, add, 0.75, a, b) };
            prop_assert!(ours.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
        }

        /// Of each kind of kernels, whatever this machine's own are.
        #[test]
        fn kernels_of_every_kind_make_the_product(
            (m, n, k) in (1..60usize, 1..200usize, 1..700usize),
            turned_a: bool,
            turned_b: bool,
            add: bool,
        ) {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let (a, b) = (strided(&a, m, k, turned_a, 0), strided(&b, k, n, turned_b, 0));
            let mut expected = noise(m * n, 3);
            theirs(m, n, k, &mut expected, n, add, 0.75, a, b);
            for kernels in [avx512(), fma()].iter().flatten() {
                let mut ours = noise(m * n, 3);
                let (dst, dst_rows) = (ours.as_mut_ptr(), n as isize);
                let product =
                    Product { kernels, m, n, k, dst, dst_rows, add, scale: 0.75, a, b: Right::Strided(b) };
                // SAFETY: the buffers are as large as the matrices.
                unsafe { product.run() };
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * (k as f32).sqrt() * b.abs().max(1.0);
                prop_assert!(ours.iter().zip(&expected).all(close), "{} lanes", kernels.lanes);
            }
        }

        #[test]
        fn weights_are_laid_out_and_taken_up((m, n, k) in (1..60usize, 1..300usize, 3..90usize)) {
            let (x, w) = (noise(m * k, 1), noise(n * k, 2));
            let a = strided(&x, m, k, false, 0);
            let b = Matrix { data: w.as_ptr(), rows: 1, cols: k as isize };
            if let Some(panels) = laid(b, k, n).unwrap() {
                let taken = taken_up(&panels, n).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                prop_assert_eq!(&taken, &w);
                let mut expected = vec![0f32; m * n];
                theirs(m, n, k, &mut expected, n, false, 1.0, a, b);
                let mut ours = vec![0f32; m * n];
                let held = super::super::forward::Elements::of(&panels).unwrap();
                // SAFETY: the buffers are as large as the matrices.
                unsafe { gemm_laid((m, n, k), ours.as_mut_ptr(), n as isize, a, held.as_ptr()) };
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
                prop_assert!(ours.iter().zip(&expected).all(close));
            }
        }
    }
}
