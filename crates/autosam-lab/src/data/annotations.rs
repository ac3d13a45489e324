//! Detects annotations that are not images: COCO, CVAT, LabelMe, VIA, Pascal VOC and YOLO. They are not read, but
//! images with such annotations must not be taken for polyp-free.

use super::{file_name, list};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a file that are inspected.
const HEAD: u64 = 1 << 16;

/// Number of files of a folder that are inspected; the annotations of a set are of one kind.
const LOOKED_AT: usize = 4;

/// The kind of annotations in the file, by its extension and first bytes.
fn kind(path: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    // A file that cannot be read does not count as annotations.
    File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    let text = String::from_utf8_lossy(&head);
    let has = |word: &str| text.contains(word);
    match path.extension()?.to_string_lossy().to_lowercase().as_str() {
        "json" if has("\"shapes\"") => Some("LabelMe"),
        "json" if has("\"segmentation\"") || has("\"annotations\"") => Some("COCO"),
        "json" if has("\"regions\"") => Some("VIA"),
        "xml" if has("<annotations>") => Some("CVAT"),
        "xml" if has("<annotation>") || has("<annotation ") => Some("Pascal VOC"),
        "txt" if text.lines().next().is_some_and(is_yolo) => Some("YOLO"),
        _ => None,
    }
}

/// Whether the line is a class and a box or a polygon in fractions of the image's size.
fn is_yolo(line: &str) -> bool {
    let mut numbers = line.split_whitespace();
    let class = numbers.next().is_some_and(|class| class.parse::<u16>().is_ok());
    let places: Vec<_> = numbers.map(str::parse::<f32>).collect();
    let inside = |place: &Result<f32, _>| place.as_ref().is_ok_and(|v| (0.0..=1.0).contains(v));
    class && places.len() >= 4 && places.iter().all(inside)
}

/// Describes the annotations in the folder `dir` and two levels below it, and in its parent if `beside`; `None` without
/// any.
pub(super) fn found(dir: &Path, beside: bool) -> Option<String> {
    let is_one = |p: &Path| {
        let ending = p.extension().unwrap_or_default().to_ascii_lowercase();
        ["json", "xml", "txt"].iter().any(|known| ending == *known) && p.is_file()
    };
    let within = |folder: &Path| super::folders(folder).unwrap_or_default();
    let mut inside = within(dir);
    inside.extend(inside.clone().iter().flat_map(|folder| within(folder)));
    let places =
        std::iter::once(dir).chain(dir.parent().filter(|_| beside)).chain(inside.iter().map(AsRef::as_ref));
    places
        .flat_map(|place| list(place, is_one).unwrap_or_default().into_iter().take(LOOKED_AT))
        .find_map(|path| {
            let kind = kind(&path)?;
            let place = path.parent().map(file_name).unwrap_or_default();
            Some(format!(
                "{place}/{} has annotations of {kind}, which are not read: write them as masks first (docs/layouts.md has \
                 the script)",
                file_name(&path)
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use image::RgbImage;

    /// Writes an image to `images` and `text` to the file `annotations`, and returns the message of `data check`.
    fn opened(image: &str, annotations: &str, text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        for (path, is_image) in [(image, true), (annotations, false)] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if is_image {
                RgbImage::new(8, 6).save(path).unwrap()
            } else {
                std::fs::write(path, text).unwrap()
            }
        }
        match Dataset::open_all(dir.path()) {
            Ok(found) => format!("{} sets", found.sets.len()),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn images_next_to_annotations_are_not_taken_for_polyp_free() {
        let polygon = r#"{"annotations": [{"segmentation": [[1, 2, 3, 4, 5, 6], [7, 8, 9, 9, 8, 7]]}]}"#;
        for (image, file, text, kind) in [
            ("images/a.png", "annotations/instances.json", polygon, "COCO"),
            ("images/a.png", "instances.json", r#"{"annotations": [], "images": []}"#, "COCO"),
            ("a.png", "x.json", r#"[{"segmentation": {"size": [2, 2], "counts": "04"}}]"#, "COCO"),
            ("case1/a.png", "case1/a.json", r#"{"version": "5", "shapes": []}"#, "LabelMe"),
            ("case1/a.png", "annotations.xml", "<?xml?><annotations><version>1.1</version>", "CVAT"),
            ("case1/a.png", "case1_xml/a.xml", "<annotation><object>", "Pascal VOC"),
            ("images/train/a.png", "labels/train/a.txt", "0 0.5 0.5 0.25 0.2\n", "YOLO"),
            ("case1/a.png", "case1/a.txt", "1 0.1 0.1 0.2 0.1 0.2 0.2\n", "YOLO"),
        ] {
            let said = opened(image, file, text);
            assert!(said.contains(&format!("annotations of {kind}")), "{image}, {file}: {said}");
            assert!(!said.contains("polyp-free"), "{said}");
        }
        assert_eq!(opened("case1/a.png", "case1/info.json", r#"{"patient": 7}"#), "1 sets");
        assert_eq!(opened("case1/a.png", "case1/notes.txt", "1 2 3 4 5\n"), "1 sets");
    }
}
