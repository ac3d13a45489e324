//! The allocator that programs declare.

use autosam::process::{Allocator, keep_freed_memory};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Pages that this process received from the OS so far (minflt of proc(5)).
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    stat[stat.rfind(')').unwrap()..].split(' ').nth(8).unwrap().parse().unwrap()
}

/// Pages received while a block of a tensor's size is allocated, written and freed.
fn use_memory() -> u64 {
    let before = faults();
    let mut block = vec![1u8; 64 << 20];
    std::hint::black_box(&mut block);
    faults() - before
}

#[test]
fn freed_memory_is_kept_for_the_next_step() {
    keep_freed_memory();
    let first = use_memory();
    // This is longer than mimalloc's purge delay of 10 ms.
    std::thread::sleep(Duration::from_millis(100));
    // mimalloc purges when it is asked for more memory.
    std::hint::black_box(vec![1u8; 1 << 20]);
    let second = use_memory();
    assert!(second * 4 < first, "{first} pages for the first block, {second} for the next");
}
