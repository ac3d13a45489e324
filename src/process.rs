//! What a program that runs networks settles for itself; a library leaves it to the program.

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

static ALL_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get().wrapping_add(1));
    ALL_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
}

/// mimalloc, to be declared as `#[global_allocator]`; it counts. Tensors of megabytes come and go with every layer; glibc gives
/// each back to the system and takes it again, page by page.
pub struct Allocator;

// SAFETY: mimalloc's own, but for two numbers, which neither allocate nor panic.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { MiMalloc.realloc(at, layout, size) }
    }
}

/// How often the threads of this process have asked [`Allocator`] for memory.
pub fn all_allocations() -> u64 {
    ALL_ALLOCATIONS.load(Ordering::Relaxed)
}

/// How often this thread has asked [`Allocator`] for memory.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// `mi_option_purge_delay` of mimalloc.h, which the bindings do not name: milliseconds until freed memory goes back.
const PURGE_DELAY: mi_option_t = 15;

/// Between two training steps or two frames nothing goes back; what a program needed once goes back within a minute.
const KEEP_MS: std::ffi::c_long = 60_000;

/// Lets [`Allocator`] keep freed memory for a minute instead of 10 ms. A wish in the environment (`MIMALLOC_PURGE_DELAY`)
/// stands.
pub fn keep_freed_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: an option of an allocator that is ready when the first line of a program runs.
        unsafe { mi_option_set(PURGE_DELAY, KEEP_MS) };
    }
}

/// [`keep_freed_memory`], and no thread pool of candle's: its threads spin while they wait, beside rayon's, on which our own
/// kernels run. A wish in the environment (`CANDLE_NUM_THREADS`) stands.
///
/// # Safety
/// The first thing that `main` does: no other thread may read or write the environment meanwhile.
pub unsafe fn settle() {
    keep_freed_memory();
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: by the function's own condition.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}
