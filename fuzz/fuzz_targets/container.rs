//! Headers and tables of video containers, from arbitrary bytes.
#![no_main]

// Included by path, because the library contains the module only with GStreamer, which it does not need.
#[path = "../../src/video/container/mod.rs"]
#[allow(dead_code)]
mod container;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // For files that end early the reader returns an error.
    let _ = container::read(&mut std::io::Cursor::new(bytes));
});
