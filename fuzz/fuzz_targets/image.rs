//! Image files of any content and name must not do more than fail with an error.
#![no_main]

use std::io::Write;

libfuzzer_sys::fuzz_target!(|input: (&str, u8, &[u8])| {
    let (name, kind, bytes) = input;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stem: String = name.chars().filter(|c| *c != '/' && *c != '\0').take(60).collect();
    let path = dir.path().join(format!("{stem}.{}", ["png", "jpg", "tif", "bmp"][usize::from(kind % 4)]));
    if let Ok(mut file) = std::fs::File::create(&path) {
        file.write_all(bytes).expect("written");
        let mut items = autosam::data::images_in(dir.path()).expect("the folder is there");
        autosam::data::settle_depth(&mut items);
        for item in items {
            let _ = item.load();
            if let Ok(levels) = autosam::data::Levels::open(&item.image) {
                let mut seen = autosam::data::Seen::default();
                seen.add(&levels);
                let _ = seen.reading().mask(&levels);
            }
        }
    }
});
