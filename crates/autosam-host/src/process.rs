//! Process-wide settings for programs that run networks; a library leaves them to the program.

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

static ALL_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Whether [`Allocator`] counts: in a build with the feature `count-allocations`, which tests and benchmarks ask for.
pub const COUNTS: bool = cfg!(feature = "count-allocations");

fn count() {
    if COUNTS {
        ALLOCATIONS.set(ALLOCATIONS.get().wrapping_add(1));
        ALL_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

/// A wrapper around mimalloc that can count, for use as `#[global_allocator]`. Each layer allocates and frees megabytes; glibc would
/// return that memory to the OS and fault it back in every time.
pub struct Allocator;

// SAFETY: forwards to mimalloc; the counters neither allocate nor panic.
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

/// Number of allocations of all threads through [`Allocator`]; 0 unless it [`COUNTS`].
pub fn all_allocations() -> u64 {
    ALL_ALLOCATIONS.load(Ordering::Relaxed)
}

/// Number of allocations of this thread through [`Allocator`]; 0 unless it [`COUNTS`].
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// `mi_option_purge_delay` of mimalloc.h, which the bindings do not expose: milliseconds until freed memory is returned.
const PURGE_DELAY: mi_option_t = 15;

/// Longer than a training step or a frame, so that nothing is returned in between; unused memory is returned within a minute.
const KEEP_MS: std::ffi::c_long = 60_000;

/// Lets [`Allocator`] keep freed memory for a minute instead of 10 ms. The environment variable `MIMALLOC_PURGE_DELAY` has
/// precedence.
pub fn keep_freed_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets an option of an allocator that is initialised before `main`.
        unsafe { mi_option_set(PURGE_DELAY, KEEP_MS) };
    }
}

/// Calls [`keep_freed_memory`] and disables candle's thread pool, whose threads would spin and compete with rayon's. The environment
/// variable `CANDLE_NUM_THREADS` has precedence.
///
/// # Safety
/// Must be the first action of `main`: no other thread may access the environment at the same time.
pub unsafe fn settle() {
    keep_freed_memory();
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: guaranteed by the caller.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}
