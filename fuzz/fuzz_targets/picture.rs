//! Pictures and names of frames from disk may do no more than fail with an error.
#![no_main]

use std::io::Write;

libfuzzer_sys::fuzz_target!(|input: (&str, bool, &[u8])| {
    let (name, png, bytes) = input;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stem: String = name.chars().filter(|c| *c != '/' && *c != '\0').take(60).collect();
    let path = dir.path().join(format!("{stem}.{}", if png { "png" } else { "jpg" }));
    if let Ok(mut file) = std::fs::File::create(&path) {
        file.write_all(bytes).expect("written");
        for item in autosam::data::pictures_in(dir.path()).expect("the folder is there") {
            let _ = item.load();
        }
    }
});
