//! Rare kinds of files, and damage that only decoding detects.

use super::*;
use image::{ImageBuffer, Rgb};

/// A bitmap of `depth` bits with the palette of two `colours`, the first row at the bottom.
fn bitmap(path: &Path, depth: usize, colours: [u8; 2], index: impl Fn(u32, u32) -> u8) {
    let (w, h) = SIZE;
    let line = (w as usize * depth).div_ceil(32) * 4;
    let data = 54 + 8;
    let mut file = b"BM".to_vec();
    file.extend([(data + line * h as usize) as u32, 0, data as u32, 40, w, h].map(u32::to_le_bytes).concat());
    file.extend([1u16.to_le_bytes(), (depth as u16).to_le_bytes()].concat());
    file.extend([0, 0, 0, 0, 2, 0].map(u32::to_le_bytes).concat());
    file.extend(colours.map(|c| [c, c, c, 0]).concat());
    for y in (0..h).rev() {
        let mut row = vec![0; line];
        for x in 0..w {
            let bit = x as usize * depth;
            row[bit / 8] |= index(x, y) << (8 - depth - bit % 8);
        }
        file.extend(row);
    }
    std::fs::write(path, file).unwrap();
}

/// A TIFF with `pages` pages of 8 bits; those after the first are `copies` of it or other pages.
fn tiff(path: &Path, pages: u32, copies: bool) {
    let (w, h) = SIZE;
    let pixels: Vec<u8> =
        (0..h).flat_map(|y| (0..w).map(move |x| if disc(x, y) { 255 } else { 0 })).collect();
    let directory = 2 + 9 * 12 + 4;
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    for page in 0..pages {
        let pixels_at = 8 + pages * directory;
        file.extend(9u16.to_le_bytes());
        for (tag, value) in [
            (254u16, u32::from(copies && page > 0)),
            (256, w),
            (257, h),
            (258, 8),
            (259, 1),
            (262, 1),
            (273, pixels_at),
            (278, h),
            (279, w * h),
        ] {
            file.extend([tag.to_le_bytes(), 4u16.to_le_bytes()].concat());
            file.extend([1u32.to_le_bytes(), value.to_le_bytes()].concat());
        }
        let next = if page + 1 < pages { 8 + (page + 1) * directory } else { 0 };
        file.extend(next.to_le_bytes());
    }
    file.extend(pixels);
    std::fs::write(path, file).unwrap();
}

/// The data set's row in the table of `data check`, and its polyp area in per cent.
fn line_of(text: &str) -> (&str, f64) {
    let line = text.lines().find(|l| l.contains("| 96x80 |")).unwrap_or_else(|| panic!("{text}"));
    let area = line.split('|').nth(5).unwrap().split('/').next().unwrap().trim();
    (line, area.parse().unwrap_or(f64::NAN))
}

#[test]
fn masks_of_rarer_kinds_are_read() {
    let in_colour = |value: u16| {
        move |_: u32, path: &Path| {
            let pixel = |x, y| Rgb([if disc(x, y) { value } else { 0 }; 3]);
            ImageBuffer::<Rgb<u16>, _>::from_fn(SIZE.0, SIZE.1, pixel).save(path).unwrap();
        }
    };
    let faint = |_: u32, path: &Path| {
        let pixel = |x, y| Rgba(if disc(x, y) { [255, 0, 0, 100] } else { [0; 4] });
        RgbaImage::from_fn(SIZE.0, SIZE.1, pixel).save(path).unwrap();
    };
    let bits = |depth: usize, colours: [u8; 2], inverted: bool| {
        move |_: u32, path: &Path| bitmap(path, depth, colours, |x, y| u8::from(disc(x, y) != inverted))
    };
    let kinds: [(&str, &str, DrawMask, &str); 7] = [
        ("1 bit", "bmp", Box::new(bits(1, [0, 255], false)), "0 and 255"),
        ("1 bit, white first", "bmp", Box::new(bits(1, [255, 0], true)), "0 and 255"),
        ("4 bits", "bmp", Box::new(bits(4, [0, 255], false)), "0 and 255"),
        ("labels in colours of 16 bits", "png", Box::new(in_colour(1)), "16 bit, labels 0 to 1"),
        ("colours of 16 bits", "png", Box::new(in_colour(65535)), "0 and 255"),
        ("half transparent", "png", Box::new(faint), "alpha, 0 to 100"),
        ("a TIFF with a smaller copy", "tif", Box::new(|_, path| tiff(path, 2, true)), "0 and 255"),
    ];
    for (what, ending, mask, reading) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let text = check(&set(dir.path(), ending, mask));
        let (line, area) = line_of(&text);
        assert!(line.contains(reading) && line.ends_with("| 0 |"), "{what}: {text}");
        assert!((area - 16.2).abs() < 0.05, "{what}: {text}");
    }
}

#[test]
fn masks_that_would_be_read_as_empty_or_in_part_are_reported() {
    let alpha = |i: u32, path: &Path| {
        let a = if i == 1 { 90 } else { 255 };
        let pixel = |x, y| Rgba(if disc(x, y) { [255, 0, 0, a] } else { [0; 4] });
        RgbaImage::from_fn(SIZE.0, SIZE.1, pixel).save(path).unwrap();
    };
    let pages = |i: u32, path: &Path| tiff(path, if i == 1 { 2 } else { 1 }, false);
    let short = |i: u32, path: &Path| {
        bitmap(path, 1, [0, 255], |x, y| u8::from(disc(x, y)));
        if i == 1 {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() * 6 / 10]).unwrap();
        }
    };
    let kinds: [(&str, DrawMask, &str); 3] = [
        ("png", Box::new(alpha), "its alpha channel ends at 90, but"),
        ("tif", Box::new(pages), "it holds 2 pages, of which one would be read; save each page as a file"),
        ("bmp", Box::new(short), "cut short"),
    ];
    for (ending, mask, reason) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let text = check(&set(dir.path(), ending, mask));
        assert!(text.contains(&format!("masks/1.{ending}: ")) && text.contains(reason), "{text}");
        assert!(line_of(&text).0.contains("| 2 | 0 |"), "{text}");
    }
}

#[test]
fn unsupported_files_are_reported_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let data = set(dir.path(), "png", grey(255));
    for i in 0..3 {
        let mask = data.join(format!("masks/{i}.png"));
        std::fs::rename(&mask, mask.with_extension("webp")).unwrap();
    }
    let (good, text) = said(&["data", "check", path(&data)]);
    assert!(!good && text.contains("3 .webp; convert images to PNG"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let data = set(dir.path(), "png", grey(255));
    std::fs::write(data.join("masks/1.png"), [0; 500]).unwrap();
    GrayImage::new(9, 9).save(data.join("masks/2.png")).unwrap();
    let text = check(&data);
    assert!(text.contains("masks/1.png: ") && text.contains("copy or download it again"), "{text}");
    assert!(
        text.contains("2.png: is 9x9, but") && text.contains("scale the mask without smoothing"),
        "{text}"
    );
}

/// A set of large images; the second one's pixels are damaged, but not its header or end.
fn damaged_inside(dir: &Path) -> PathBuf {
    let data = one_cut(dir, "png", 10);
    let file = data.join("images/1.png");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 40].fill(0x55);
    std::fs::write(&file, bytes).unwrap();
    data
}

#[test]
fn eval_skips_images_that_turn_out_to_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let data = damaged_inside(dir.path());
    let (good, text) = said(&["eval", "--data", path(&data)]);
    assert!(good && text.contains("left out: ") && text.contains("images/1.png: cannot read"), "{text}");
    assert!(text.contains(": 2 frames"), "{text}");
    let (good, text) = said(&["eval", "--strict", "--data", path(&data)]);
    assert!(!good && text.contains("1 images cannot be used (--strict)"), "{text}");
}

#[test]
fn run_prints_the_warnings_of_a_labelled_set() {
    let dir = tempfile::tempdir().unwrap();
    let data = set(dir.path(), "png", |i, path| grey(if i == 0 { 255 } else { 0 })(i, path));
    grey(1)(1, &data.join("masks/1.png"));
    std::fs::write(data.join("images/notes.heic"), "?").unwrap();
    let (good, text) = said(&["run", "--input", path(&data)]);
    assert!(!good && text.contains("left out: ") && text.contains("masks/1.png"), "{text}");
    assert!(text.contains("warning: ") && text.contains("some masks contain labels up to 20"), "{text}");
    assert!(text.contains("1 .heic; convert"), "{text}");
}

#[test]
fn an_output_folder_may_have_a_dot_in_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let data = set(dir.path(), "png", grey(255));
    let images = data.join("images");
    let output = dir.path().join("run.2024-11-28");
    let (good, text) = said(&["run", "--input", path(&images), "--output", path(&output)]);
    assert!(good && output.join("2.png").is_file(), "{text}");
    // An unsupported output format is reported before any work.
    let (good, text) = said(&["run", "--input", path(&images), "--output", path(&dir.path().join("o.avi"))]);
    assert!(
        !good && text.contains("o.avi: expected a file ending in .mp4") && !text.contains("is kept"),
        "{text}"
    );
}

/// Damage must not appear only at the end of a run.
#[test]
fn run_verifies_all_images_before_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (frames, masks) = (dir.path().join("frames"), dir.path().join("masks"));
    std::fs::create_dir_all(&frames).unwrap();
    for i in 0..4 {
        photo(40, 30).save(frames.join(format!("{i}.png"))).unwrap();
    }
    let last = frames.join("3.png");
    let bytes = std::fs::read(&last).unwrap();
    std::fs::write(&last, &bytes[..bytes.len() / 2]).unwrap();
    let of =
        |more: &[&str]| said(&[&["run", "--input", path(&frames), "--masks", path(&masks)], more].concat());
    // If the model cannot be opened, the run ends before the first image.
    let (good, text) = of(&["--model", "nothing.safetensors"]);
    assert!(!good && text.contains("left out: ") && text.contains("3.png: cannot read"), "{text}");
    assert!(
        text.contains("4 images verified") && text.contains("1 cannot be read") && !masks.exists(),
        "{text}"
    );
    let (good, text) = of(&[]);
    assert!(!good && text.contains("3 frames in") && text.contains("1 of"), "{text}");
    assert_eq!(std::fs::read_dir(&masks).unwrap().count(), 3);
}

#[test]
fn images_of_12_bits_are_reported_by_check_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = set(dir.path(), "png", grey(255));
    for i in 0..3 {
        std::fs::remove_file(data.join(format!("images/{i}.jpg"))).unwrap();
        let pixel = |x: u32, y: u32| Rgb([(x * 40 + 255) as u16, (y * 20) as u16, 100]);
        let image = ImageBuffer::<Rgb<u16>, _>::from_fn(SIZE.0, SIZE.1, pixel);
        image.save(data.join(format!("images/{i}.png"))).unwrap();
    }
    let note = "end at 4055: assumed that they use 12 bits";
    let text = check(&data);
    assert!(text.contains(note), "{text}");
    let (good, text) = said(&["run", "--input", path(&data.join("images"))]);
    assert!(good && text.contains(note), "{text}");
    let (good, text) = said(&["run", "--input", path(&data)]);
    assert!(good && text.contains(note), "{text}");
}
