//! Matrix products on strided data, and the buffers that threads keep for them.

use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Gives `f` a buffer of `len` floats, whatever they are, that the thread keeps. Inside `f`, and in work that rayon steals
/// meanwhile, there are others.
pub(super) fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    SCRATCH.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}

/// A strided matrix: steps between its rows and between its columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub data: *const f32,
    pub rows: isize,
    pub cols: isize,
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
    unsafe {
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
    }
}
