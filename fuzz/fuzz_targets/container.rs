//! Headers and tables of video containers, of any bytes.
#![no_main]

// The library has it with GStreamer only, which it does not need.
#[path = "../../src/video/container/mod.rs"]
#[allow(dead_code)]
mod container;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Files that end early are an error of the reader's.
    let _ = container::read(&mut std::io::Cursor::new(bytes));
});
