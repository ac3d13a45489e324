//! Real-world data sets, read by the program; `docs/real-inputs.md` lists them.

mod images;
mod odd;

use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use images::*;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn program(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_autosam-video")).args(args).output().unwrap()
}

/// Whether a call succeeded, and its output on both streams.
fn said(args: &[&str]) -> (bool, String) {
    let output = program(args);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("panicked"), "{text}");
    (output.status.success(), text)
}

/// The output of `data check` for `dir`.
fn check(dir: &Path) -> String {
    let (good, text) = said(&["data", "check", path(dir)]);
    assert!(good, "{text}");
    text
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// The share of the disc, as `data check` prints it: 10th, 50th and 90th percentile.
const AREA: &str = "| 16.2 / 16.2 / 16.2 |";

#[test]
fn masks_of_labels_are_read_by_the_set_s_largest_value() {
    let dir = tempfile::tempdir().unwrap();
    let text = check(&set(dir.path(), "png", grey(1)));
    assert!(text.contains(AREA) && text.contains("| labels 0 and 1 | 0 |"), "{text}");
    // In a set with 0 and 255, a mask with labels cannot be used and is reported.
    let dir = tempfile::tempdir().unwrap();
    let text = check(&set(dir.path(), "png", |i, path| grey(if i == 1 { 1 } else { 255 })(i, path)));
    assert!(
        text.contains("masks/1.png: its largest value is 1") && text.contains("| 0 and 255 | 1 |"),
        "{text}"
    );
    // Labels with an ignored rim of 255.
    let dir = tempfile::tempdir().unwrap();
    let rim = |_: u32, path: &Path| {
        let value = |x, y| {
            if disc(x, y) {
                1
            } else if disc(x + 2, y) {
                255
            } else {
                0
            }
        };
        GrayImage::from_fn(SIZE.0, SIZE.1, |x, y| Luma([value(x, y)])).save(path).unwrap();
    };
    let text = check(&set(dir.path(), "png", rim));
    assert!(text.contains(AREA) && text.contains("labels 0 and 1, 255 ignored"), "{text}");
}

#[test]
fn a_set_without_a_positive_pixel_is_a_warning_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let data = set(&dir.path().join("data"), "png", grey(0));
    let warning = "no mask has a polyp pixel";
    assert!(check(&data).contains(warning));
    let (good, text) = said(&["eval", "--data", path(&data)]);
    assert!(good && text.contains(warning), "{text}");
    let (good, text) = train(&data, &dir.path().join("run"), &[]);
    assert!(good && text.contains(warning), "{text}");
    // In the folder for polyp-free frames this is right.
    let free = dir.path().join("SUN-Negative/case1");
    std::fs::create_dir_all(&free).unwrap();
    photo(40, 30).save(free.join("a.jpg")).unwrap();
    let text = check(&dir.path().join("SUN-Negative"));
    assert!(!text.contains("warning") && text.contains("polyp-free | 0 |"), "{text}");
}

/// Trains one step on `data`.
fn train(data: &Path, out: &Path, more: &[&str]) -> (bool, String) {
    let mut args = vec!["train", "--data", path(data), "--out", path(out)];
    for set in ["steps=1", "batch=1", "warmup=0", "generator_input=64"] {
        args.extend(["--set", set]);
    }
    args.extend(more);
    said(&args)
}

#[test]
fn masks_of_every_kind_are_read_and_reported() {
    let red_or_green = |i: u32, path: &Path| {
        let colour = if i < 2 { [250, 0, 0] } else { [0, 250, 0] };
        let image = RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgb(if disc(x, y) { colour } else { [0; 3] }));
        image.save(path).unwrap();
    };
    let palette = |_: u32, path: &Path| {
        palette_png(path, &[0, 0, 0, 128, 0, 0], |x, y| u8::from(disc(x, y)));
    };
    let reordered = |_: u32, path: &Path| {
        palette_png(path, &[255, 255, 255, 0, 0, 0], |x, y| u8::from(!disc(x, y)));
    };
    let undecided = |_: u32, path: &Path| {
        let colours: Vec<u8> =
            (0..256).flat_map(|i| if i == 0 { [0; 3] } else { [i as u8, 90, 30] }).collect();
        palette_png(path, &colours, |x, y| {
            if disc(x, y) {
                1
            } else if disc(x + 3, y) {
                255
            } else {
                0
            }
        });
    };
    let alpha = |_: u32, path: &Path| {
        let a = |x, y| if disc(x, y) { 255 } else { 0 };
        RgbaImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgba([255, 255, 255, a(x, y)])).save(path).unwrap();
    };
    let wide = |value: u16| {
        move |_: u32, path: &Path| {
            let pixel = |x, y| Luma([if disc(x, y) { value } else { 0u16 }]);
            image::ImageBuffer::from_fn(SIZE.0, SIZE.1, pixel).save(path).unwrap();
        }
    };
    let tiff = |colour: [u16; 3]| move |_: u32, path: &Path| palette_tiff(path, colour);
    let kinds: [(&str, &str, DrawMask, &str); 12] = [
        ("colours", "jpg", Box::new(red_or_green), "red or green on black"),
        ("palette", "png", Box::new(palette), "palette, index 1 to 1"),
        ("palette of black and white, reordered", "png", Box::new(reordered), "0 and 255"),
        ("palette with 255", "png", Box::new(undecided), "palette, index 1 to 1, 255 ignored"),
        ("alpha", "png", Box::new(alpha), "alpha"),
        ("16 bit", "png", Box::new(wide(65535)), "16 bit, 0 to 65535"),
        ("16 bit that holds bytes", "png", Box::new(wide(255)), "16 bit, 0 to 255"),
        ("16 bit that holds labels", "tif", Box::new(wide(1)), "16 bit, labels 0 to 1"),
        ("palette TIFF", "tif", Box::new(tiff([65535; 3])), "0 and 255"),
        ("palette TIFF of colours", "tif", Box::new(tiff([65535, 0, 0])), "palette, index 1 to 1"),
        ("half bright", "png", Box::new(grey(100)), "0 and 100"),
        ("bitmap", "bmp", Box::new(grey(255)), "0 and 255"),
    ];
    for (what, ending, mask, reading) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let text = check(&set(dir.path(), ending, mask));
        let line = text.lines().find(|l| l.contains("| 96x80 |")).unwrap_or_else(|| panic!("{what}: {text}"));
        assert!(line.contains(reading) && line.ends_with("| 0 |"), "{what}: {text}");
        // JPEG moves the outline by a pixel in places.
        let area: f64 = line.split('|').nth(5).unwrap().split('/').next().unwrap().trim().parse().unwrap();
        assert!((area - 16.2).abs() < if ending == "jpg" { 0.5 } else { 0.05 }, "{what}: {line}");
    }
    // Labels do not survive JPEG, because they cannot be distinguished from noise; a warning says so.
    let dir = tempfile::tempdir().unwrap();
    let text = check(&set(dir.path(), "jpg", grey(3)));
    assert!(text.contains("warning") && text.contains("labels do not survive"), "{text}");
}

/// Three large images; the second is truncated to `tenths` of its length.
fn one_cut(dir: &Path, ending: &str, tenths: usize) -> PathBuf {
    for kind in ["images", "masks"] {
        std::fs::create_dir_all(dir.join(kind)).unwrap();
    }
    for i in 0..3 {
        photo(384, 288).save(dir.join(format!("images/{i}.{ending}"))).unwrap();
        let mask = GrayImage::from_fn(384, 288, |x, y| Luma([if disc(x / 4, y / 4) { 255 } else { 0 }]));
        mask.save(dir.join(format!("masks/{i}.png"))).unwrap();
    }
    let file = dir.join(format!("images/1.{ending}"));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() * tenths / 10]).unwrap();
    dir.to_owned()
}

#[test]
fn truncated_images_are_reported_by_check_train_eval_and_run() {
    for ending in ["jpg", "png", "tif"] {
        for tenths in [3, 9] {
            let dir = tempfile::tempdir().unwrap();
            let data = one_cut(dir.path(), ending, tenths);
            let name = format!("images/1.{ending}: ");
            let text = check(&data);
            assert!(text.contains(&name) && text.contains("| 2 | 0 |"), "{text}");
            let (good, text) = said(&["data", "check", "--strict", path(&data)]);
            assert!(!good && text.contains("1 images cannot be used"), "{text}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let data = one_cut(&dir.path().join("data"), "jpg", 6);
    let named =
        |text: &str| text.contains("left out: ") && text.contains("images/1.jpg: cannot read the image");
    let (good, text) = said(&["eval", "--data", path(&data)]);
    assert!(good && named(&text) && text.contains(": 2 frames"), "{text}");
    let (good, text) = train(&data, &dir.path().join("run"), &[]);
    assert!(good && named(&text) && text.contains("2 images"), "{text}");
    let (good, text) = train(&data, &dir.path().join("strict"), &["--strict"]);
    assert!(!good && named(&text), "{text}");
    let (good, text) = said(&["run", "--input", path(&data.join("images"))]);
    assert!(!good && named(&text) && text.contains("2 frames in"), "{text}");
}

#[test]
fn an_unreadable_set_among_others_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    set(&dir.path().join("good"), "png", grey(255));
    let bad = dir.path().join("stills only");
    std::fs::create_dir_all(&bad).unwrap();
    photo(40, 30).save(bad.join("a.jpg")).unwrap();
    let text = check(dir.path());
    assert!(text.contains("not read: ") && text.contains("stills only"), "{text}");
    let (good, text) = said(&["data", "check", "--strict", path(dir.path())]);
    assert!(!good && text.contains("1 folders cannot be read as a data set"), "{text}");
    let (good, text) = said(&["eval", "--data", path(dir.path())]);
    assert!(good && text.contains("left out: ") && text.contains("stills only"), "{text}");
    let (good, text) = said(&["eval", "--strict", "--data", path(dir.path())]);
    assert!(!good && text.contains("cannot be read as a data set"), "{text}");
}

#[test]
fn images_that_differ_only_in_their_extension_get_separate_results() {
    let dir = tempfile::tempdir().unwrap();
    let (frames, masks) = (dir.path().join("frames"), dir.path().join("masks"));
    std::fs::create_dir_all(&frames).unwrap();
    for name in ["x.png", "x.jpg", "y.png"] {
        photo(40, 30).save(frames.join(name)).unwrap();
    }
    let (good, text) = said(&["run", "--input", path(&frames), "--masks", path(&masks)]);
    assert!(good, "{text}");
    for name in ["x.png.png", "x.jpg.png", "y.png"] {
        assert!(masks.join(name).exists(), "{name}");
    }
}

/// An image that is bright on the left, with a polyp in the shade on the right.
fn shaded(dir: &Path) -> PathBuf {
    for kind in ["images", "masks"] {
        std::fs::create_dir_all(dir.join(kind)).unwrap();
    }
    let polyp = |x: u32, y: u32| x.abs_diff(290).pow(2) + y.abs_diff(150).pow(2) < 1225;
    let image = RgbImage::from_fn(384, 288, |x, y| {
        let light = ((170.0 - x as f32) / 40.0).clamp(0.0, 1.0);
        let more = if polyp(x, y) { [8.0, 4.0, 3.0] } else { [0.0; 3] };
        let mixed =
            |i: usize| light * [190.0, 110.0, 95.0][i] + (1.0 - light) * [34.0, 18.0, 16.0][i] + more[i];
        Rgb([0, 1, 2].map(|i| mixed(i) as u8))
    });
    image.save(dir.join("images/0.png")).unwrap();
    GrayImage::from_fn(384, 288, |x, y| Luma([if polyp(x, y) { 255 } else { 0 }]))
        .save(dir.join("masks/0.png"))
        .unwrap();
    dir.to_owned()
}

#[test]
fn a_polyp_in_the_shade_is_not_cropped_in_training() {
    use autosam::frame::{Frame, region::CropMode};
    let dir = tempfile::tempdir().unwrap();
    let data = shaded(&dir.path().join("data"));
    let item = autosam::data::Dataset::open(&data).unwrap().items.remove(0);
    let pair = item.load().unwrap();
    // Dark red does not count as border.
    let shown = CropMode::Auto.of(&Frame::rgb_image(&pair.rgb)).unwrap();
    assert!(shown.width > 370, "{shown:?}");
    assert!(!check(&data).contains("roi=auto"));

    // Half of the polyp is on black.
    let mut image = pair.rgb.clone();
    image.enumerate_pixels_mut().filter(|(x, ..)| *x > 290).for_each(|(.., p)| *p = Rgb([0; 3]));
    image.save(&item.image).unwrap();
    let pair = item.load().unwrap();
    let lit = |mask: &GrayImage| mask.iter().filter(|v| **v > 0).count();
    assert_eq!(lit(&pair.trained(CropMode::Auto).unwrap().mask), lit(&pair.mask));
    let text = check(&data);
    assert!(text.contains("roi=auto would crop labelled pixels of 1 images away"), "{text}");
}

#[test]
fn all_maps_of_stills_are_scored() {
    let dir = tempfile::tempdir().unwrap();
    let truth = dir.path().join("TestDataset/Kvasir");
    let data = set(&truth, "png", grey(255));
    let maps = dir.path().join("res/Kvasir");
    std::fs::create_dir_all(&maps).unwrap();
    for i in 0..3 {
        std::fs::copy(data.join(format!("masks/{i}.png")), maps.join(format!("{i}.png"))).unwrap();
    }
    let json = dir.path().join("metrics.json");
    for gt in [data.join("masks"), data.clone()] {
        let (good, text) = said(&["eval", "--pred", path(&maps), "--gt", path(&gt), "--json", path(&json)]);
        assert!(good && text.contains("3 frames"), "{text}");
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&report["frames"], &report["metrics"]["dice@0.5"]), (&3.into(), &1.0.into()));
    std::fs::remove_file(maps.join("2.png")).unwrap();
    let (good, text) = said(&["eval", "--pred", path(&maps), "--gt", path(&data.join("masks"))]);
    assert!(!good && text.contains("no map with the name 2"), "{text}");
}

#[test]
fn both_parts_of_the_sun_database_are_joined_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        photo(16, 12).save(path).unwrap();
    };
    let frame = |case: u32| format!("case_M_1_0U_1_005_{case:03}-1_a13_image0001");
    for (part, case) in [(1, 1), (2, 60)] {
        save(&format!("sun/sundatabase_positive_part{part}/case{case}/{}.jpg", frame(case)));
        save(&format!("SUN-SEG/TrainDataset/GT/case{case}_1/{}.png", frame(case)));
    }
    // Polyp-free cases are numbered separately.
    save(&format!("sun/sundatabase_negative_part1/case1/{}.jpg", frame(99)));
    let (sun, annotations) = (dir.path().join("sun"), dir.path().join("SUN-SEG"));
    let parts = [1, 2].map(|n| sun.join(format!("sundatabase_positive_part{n}")));
    let command = ["data", "sunseg-reorganize", "--annotations", path(&annotations), "--positive"];
    for given in [vec![path(&sun)], parts.iter().map(|p| path(p)).collect()] {
        let (good, text) = said(&[&command[..], &given].concat());
        assert!(good && text.contains("2 clips, 2 frames; 2 cases"), "{text}");
    }
    let (good, text) = said(&[&command[..], &[path(&parts[0])]].concat());
    assert!(!good && text.contains("case60, which is not in any") && text.contains("needs both"), "{text}");
    // A folder of frames with polyps must not be read as a polyp-free set.
    let (good, text) = said(&["data", "check", path(&parts[0])]);
    assert!(!good && text.contains("sunseg-reorganize"), "{text}");
}

/// Creates the files `names` in a new folder; files named as masks are masks.
fn files(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let file = dir.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let lower = name.to_lowercase();
        let is_mask = ["mask", "gt/", "_gt", "ground truth"].iter().any(|m| lower.contains(m));
        let mask = GrayImage::from_fn(40, 30, |x, _| Luma([if x < 20 { 255 } else { 0 }]));
        if is_mask { mask.save(file).unwrap() } else { photo(40, 30).save(file).unwrap() }
    }
    dir
}

#[test]
fn data_sets_as_downloaded_are_recognised() {
    for (frames, names) in [
        (
            2,
            &[
                "CVC-ColonDB-300/Train/1/Frame/0.jpg",
                "CVC-ColonDB-300/Train/1/GT/0.png",
                "CVC-ColonDB-300/Train/2/Frame/0.jpg",
                "CVC-ColonDB-300/Train/2/GT/0.png",
            ][..],
        ),
        (1, &["Frame/0.jpg", "GT/0.png"]),
        (1, &["image/0.png", "masks/0.png"]),
        (1, &["Original/0.tif", "Ground Truth/0.tif"]),
        (1, &["PNG/Original/0.png", "PNG/Ground Truth/0.png"]),
        (1, &["images/0.jpg", "masks/0_mask.jpg"]),
        (1, &["Images/0.JPG", "Masks/0.PNG"]),
        (
            2,
            &[
                "TestDataset/TestDataset/Kvasir/images/0.png",
                "TestDataset/TestDataset/Kvasir/masks/0.png",
                "TestDataset/TestDataset/CVC-300/images/1.png",
                "TestDataset/TestDataset/CVC-300/masks/1.png",
            ],
        ),
        (
            1,
            &[
                "data_C1/images_C1/100H0050.jpg",
                "data_C1/masks_C1/100H0050_mask.jpg",
                "data_C1/bbox_image_C1/100H0050.jpg",
            ],
        ),
        (
            2,
            &[
                "sequenceData/positive/seq1/images_seq1/a.jpg",
                "sequenceData/positive/seq1/masks_seq1/a_mask.jpg",
                "sequenceData/negativeOnly/seq2_neg/b.jpg",
            ],
        ),
        (1, &["train/train/a.jpeg", "train_gt/train_gt/a.jpeg"]),
        (1, &["ETIS-LaribPolypDB/1.tif", "Ground Truth/p1.tif"]),
        (2, &["case1/0.jpg", "case2/0.jpg", "__MACOSX/0.jpg"]),
        (1, &["images/a.jpg", "masks/a.jpg.png"]),
    ] {
        let dir = files(names);
        let text = check(dir.path());
        let cell = |line: &str| line.split('|').nth(3).and_then(|c| c.trim().parse::<usize>().ok());
        let sum: usize = text.lines().filter_map(cell).sum();
        assert_eq!(sum, frames, "{names:?}: {text}");
        assert!(!text.contains("not read"), "{names:?}: {text}");
    }
}

#[test]
fn unrecognised_layouts_are_reported_with_the_command_that_fixes_them() {
    let refused = |names: &[&str]| {
        let dir = files(names);
        let (good, text) = said(&["data", "check", path(dir.path())]);
        assert!(!good && text.contains("no known layout"), "{names:?}: {text}");
        (dir, text)
    };
    let (dir, text) = refused(&["colour/a.jpg", "colour/b.jpg", "truth mask/a.png", "truth mask/b.png"]);
    let mend =
        format!("mv '{0}/colour' '{0}/images' && mv '{0}/truth mask' '{0}/masks'", dir.path().display());
    assert!(text.contains(&mend), "{text}");
    // The suggested command works.
    assert!(Command::new("sh").args(["-c", &mend]).status().unwrap().success());
    assert!(check(dir.path()).contains("| 2 | 0 |"));

    let (dir, text) = refused(&["a.jpg", "a-outline.png", "b.jpg", "b-outline.png"]);
    let mend = text.split('`').find(|part| part.starts_with("cd ")).unwrap_or_else(|| panic!("{text}"));
    assert!(Command::new("bash").args(["-c", mend]).status().unwrap().success());
    assert!(check(dir.path()).contains("| 2 | 0 |"), "{mend}");

    let (_dir, text) = refused(&["a.jpg", "b.jpg"]);
    assert!(text.contains("2 images without masks") && text.contains("SUN-Negative/case1"), "{text}");
    // One half of a set could be mistaken for polyp-free cases.
    let dir = files(&["Frame/case1_1/a.jpg", "GT/case1_1/a.png"]);
    for half in ["Frame", "GT"] {
        let (good, text) = said(&["data", "check", path(&dir.path().join(half))]);
        assert!(!good && text.contains("one half of a data set; use"), "{text}");
    }
}

#[test]
fn two_files_with_the_same_name_are_reported() {
    let dir =
        files(&["images/x.jpg", "masks/x_mask.png", "masks/x_mask.jpg", "images/y.jpg", "masks/y_mask.png"]);
    let text = check(dir.path());
    assert!(
        text.contains("2 masks with the same name, x_mask.jpg and x_mask.png") && text.contains("| 1 | 0 |"),
        "{text}"
    );
    let dir = files(&["images/x.jpg", "images/x.png", "masks/x.png", "images/y.jpg", "masks/y.png"]);
    let text = check(dir.path());
    assert!(text.contains("2 images with the same name, x.jpg and x.png"), "{text}");
}

/// Writes a JPEG whose EXIF orientation is a clockwise turn by 90 degrees.
fn turned_jpeg(path: &Path, stored: &RgbImage) {
    stored.save(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let exif = b"\xFF\xE1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    std::fs::write(path, [&bytes[..2], exif, &bytes[2..]].concat()).unwrap();
}

#[test]
fn exif_orientation_is_applied_to_images_and_masks() {
    // As stored, the image lies on its side and has a bright square at the upper left. Upright the square is at the upper right.
    let stored = RgbImage::from_fn(96, 64, |x, y| Rgb(if x < 32 && y < 32 { [220; 3] } else { [60; 3] }));
    let at_left = GrayImage::from_fn(96, 64, |x, y| Luma([if x < 32 && y < 32 { 255 } else { 0 }]));
    let at_right = GrayImage::from_fn(64, 96, |x, y| Luma([if x >= 32 && y < 32 { 255 } else { 0 }]));
    // Masks may match the image as displayed or as stored.
    for mask in [at_right, at_left] {
        let dir = tempfile::tempdir().unwrap();
        for kind in ["images", "masks"] {
            std::fs::create_dir_all(dir.path().join(kind)).unwrap();
        }
        turned_jpeg(&dir.path().join("images/a.jpg"), &stored);
        mask.save(dir.path().join("masks/a.png")).unwrap();
        let text = check(dir.path());
        assert!(text.contains("| 64x96 |") && text.contains("| 0 and 255 | 0 |"), "{text}");
        let pair = autosam::data::Dataset::open(dir.path()).unwrap().items[0].load().unwrap();
        for (rgb, lit) in pair.rgb.pixels().zip(pair.mask.pixels()) {
            assert!(lit.0[0] == 0 || rgb.0[0] > 120, "the mask is not on the square");
        }
        let (good, text) = train(dir.path(), &dir.path().join("run"), &["--strict"]);
        assert!(good, "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let masks = dir.path().join("out");
    std::fs::create_dir(dir.path().join("in")).unwrap();
    turned_jpeg(&dir.path().join("in/a.jpg"), &stored);
    let (good, text) = said(&["run", "--input", path(&dir.path().join("in")), "--masks", path(&masks)]);
    assert!(good, "{text}");
    assert_eq!(image::image_dimensions(masks.join("a.png")).unwrap(), (64, 96));
}

/// All folders of the shared data, if they exist, are read as the right kind of set.
#[test]
fn the_shared_data_are_read_as_they_are() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !data.is_dir() {
        println!("SKIPPED: {} does not exist", data.display());
        return;
    }
    let text = check(&data.join("cvc-clinicdb-sunseg"));
    assert!(text.contains("TrainDataset | 16 | 308 | 0 |") && text.contains("Unseen | 6 | 109 |"), "{text}");
    assert_eq!(text.lines().filter(|l| l.ends_with("| 1 bit | 0 |")).count(), 2, "{text}");
}
