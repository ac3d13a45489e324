//! Configurations of any content must not do more than fail with an error.
#![no_main]

use std::io::Write;

use autosam::train::TrainConfig;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    let _ = TrainConfig::load(Some(file.path()), &[]);
    let _ = TrainConfig::load(None, &[text.to_owned()]);
});
