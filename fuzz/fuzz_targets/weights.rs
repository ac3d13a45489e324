//! No weight file, however damaged, may do more than fail with an error: as bytes and, for PyTorch's archives, from disk.
#![no_main]

use std::io::Write;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("written");
    let _ = autosam::weights::load(file.path());
});
