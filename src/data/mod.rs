//! Labelled pictures on disk: SUN-SEG's sequences, stills, polyp-free frames; augmentation; batches.

pub mod augment;
pub mod loader;
mod order;

use crate::{Error, Result};
use image::{GrayImage, RgbImage};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One picture with its mask; a picture known to show no polyp may have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The sequence it belongs to (`case1_1`), empty for stills.
    pub sequence: String,
    /// The file's name without its ending.
    pub name: String,
    pub image: PathBuf,
    pub mask: Option<PathBuf>,
}

/// A decoded picture and its mask (255 polyp, 0 not) of the same size.
#[derive(Debug, Clone)]
pub struct Pair {
    pub rgb: RgbImage,
    pub mask: GrayImage,
}

/// A data set's pictures in order, and what is wrong with it.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The last parts of its path, for people.
    pub name: String,
    pub root: PathBuf,
    pub items: Vec<Item>,
    /// Pictures left out and why, one line each, with the path.
    pub problems: Vec<String>,
}

/// Splits of SUN-SEG, as its folders are named.
pub const SPLITS: [&str; 5] = [
    "TrainDataset",
    "TestEasyDataset/Seen",
    "TestEasyDataset/Unseen",
    "TestHardDataset/Seen",
    "TestHardDataset/Unseen",
];

impl Item {
    /// Decodes picture and mask. Masks are binary at half; a missing one is empty.
    ///
    /// # Errors
    /// With the path: unreadable files, a mask of another size.
    pub fn load(&self) -> Result<Pair> {
        let rgb = open(&self.image)?.into_rgb8();
        let mask = match &self.mask {
            None => GrayImage::new(rgb.width(), rgb.height()),
            Some(path) => {
                let mut mask = open(path)?.into_luma8();
                if mask.dimensions() != rgb.dimensions() {
                    return Err(Error::data(
                        path,
                        format!(
                            "is {}x{}, but its picture {} is {}x{}",
                            mask.width(),
                            mask.height(),
                            self.image.display(),
                            rgb.width(),
                            rgb.height()
                        ),
                    ));
                }
                for v in mask.iter_mut() {
                    *v = if *v > 127 { 255 } else { 0 };
                }
                mask
            }
        };
        Ok(Pair { rgb, mask })
    }
}

/// Opens a picture, whatever its name says it is.
pub fn open(path: &Path) -> Result<image::DynamicImage> {
    let reader = image::ImageReader::open(path)
        .and_then(|r| r.with_guessed_format())
        .map_err(|e| Error::io(path, e))?;
    reader.decode().map_err(|e| Error::image(path, e))
}

impl Dataset {
    /// The split `split` (one of [`SPLITS`]) of the SUN-SEG folder `root`.
    pub fn sunseg(root: &Path, split: &str) -> Result<Self> {
        let dir = root.join(split);
        if !dir.join("Frame").is_dir() || !dir.join("GT").is_dir() {
            let there: Vec<_> =
                SPLITS.iter().filter(|s| root.join(s).join("Frame").is_dir()).copied().collect();
            return Err(Error::data(
                &dir,
                format!(
                    "expected Frame/ and GT/ here (SUN-SEG after reorganisation); splits under {}: {}",
                    root.display(),
                    if there.is_empty() { "none".to_owned() } else { there.join(", ") }
                ),
            ));
        }
        Self::sequences(&dir)
    }

    /// Any known layout: `Frame/` and `GT/` with a folder a sequence; `images/` and `masks/`; or polyp-free
    /// frames, `SUN-Negative/` or its like, which holds nothing but folders `case*` of pictures.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.join("Frame").is_dir() && dir.join("GT").is_dir() {
            return Self::sequences(dir);
        }
        if dir.join("images").is_dir() && dir.join("masks").is_dir() {
            return Self::stills(dir);
        }
        let cases = folders(dir)?;
        if !cases.is_empty() && cases.iter().all(|c| file_name(c).starts_with("case")) {
            return Self::negatives(dir, &cases);
        }
        Err(Error::data(
            dir,
            "no known layout: expected Frame/ and GT/, images/ and masks/, or folders case* of polyp-free frames",
        ))
    }

    /// A folder with `images/` and `masks/` whose files agree in name but for the ending.
    fn stills(dir: &Path) -> Result<Self> {
        let mut set = Self::empty(dir);
        set.pair("", &dir.join("images"), &dir.join("masks"))?;
        set.finish()
    }

    fn sequences(dir: &Path) -> Result<Self> {
        let mut set = Self::empty(dir);
        for frames in folders(&dir.join("Frame"))? {
            let sequence = file_name(&frames);
            let masks = dir.join("GT").join(&sequence);
            if masks.is_dir() {
                set.pair(&sequence, &frames, &masks)?;
            } else {
                set.problems.push(format!(
                    "{}: no masks for the sequence in {}",
                    frames.display(),
                    masks.display()
                ));
            }
        }
        set.finish()
    }

    fn negatives(dir: &Path, cases: &[PathBuf]) -> Result<Self> {
        let mut set = Self::empty(dir);
        for case in cases {
            for (name, image) in pictures(case)? {
                set.items.push(Item { sequence: file_name(case), name, image, mask: None });
            }
        }
        set.finish()
    }

    fn empty(dir: &Path) -> Self {
        let parts: Vec<String> =
            dir.components().rev().take(3).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        let name = parts.into_iter().rev().collect::<Vec<_>>().join("/");
        Self { name, root: dir.to_owned(), items: Vec::new(), problems: Vec::new() }
    }

    fn pair(&mut self, sequence: &str, images: &Path, masks: &Path) -> Result<()> {
        let mut by_name: HashMap<String, PathBuf> = pictures(masks)?.into_iter().collect();
        let pictures = pictures(images)?;
        if pictures.is_empty() {
            self.problems.push(format!("{}: no pictures", images.display()));
        }
        for (name, image) in pictures {
            match by_name.remove(&name) {
                Some(mask) => {
                    self.items.push(Item { sequence: sequence.to_owned(), name, image, mask: Some(mask) });
                }
                None => self.problems.push(format!(
                    "{}: no mask of that name in {}",
                    image.display(),
                    masks.display()
                )),
            }
        }
        let mut left: Vec<_> = by_name.into_values().collect();
        left.sort();
        self.problems.extend(left.iter().map(|m| format!("{}: a mask without a picture", m.display())));
        Ok(())
    }

    fn finish(self) -> Result<Self> {
        match self.items.is_empty() {
            true => Err(Error::data(
                &self.root,
                format!(
                    "no picture with a mask{}",
                    self.problems.first().map(|p| format!("; {p}")).unwrap_or_default()
                ),
            )),
            false => Ok(self),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folders in `dir`, in natural order (`case2` before `case10`); hidden ones left out.
pub fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    list(dir, |p| p.is_dir())
}

/// The pictures in `dir` itself, in order, without masks.
pub fn pictures_in(dir: &Path) -> Result<Vec<Item>> {
    let item = |(name, image)| Item { sequence: String::new(), name, image, mask: None };
    Ok(pictures(dir)?.into_iter().map(item).collect())
}

/// The pictures in `dir` by name without ending, in SUN-SEG's frame order.
pub(crate) fn pictures(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let known = |p: &Path| {
        let ending = p.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        ["png", "jpg", "jpeg", "bmp", "tif", "tiff"].contains(&ending.as_str())
    };
    let files = list(dir, |p| known(p) && p.is_file())?;
    Ok(files
        .into_iter()
        .map(|p| (p.file_stem().unwrap_or_default().to_string_lossy().into_owned(), p))
        .collect())
}

fn list(dir: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if !file_name(&path).starts_with('.') && keep(&path) {
            found.push(path);
        }
    }
    found.sort_by_cached_key(|p| order::key(&file_name(p)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            GrayImage::from_pixel(4, 3, image::Luma([200])).save(&path).unwrap();
        }
        dir
    }

    #[test]
    fn sequences_come_in_frame_order() {
        let dir = folder(&[
            "Frame/case10_1/a.png",
            "GT/case10_1/a.png",
            "Frame/case2_1/frame10.png",
            "GT/case2_1/frame10.png",
            "Frame/case2_1/frame9.jpg",
            "GT/case2_1/frame9.png",
        ]);
        let set = Dataset::open(dir.path()).unwrap();
        let names: Vec<_> = set.items.iter().map(|i| format!("{}/{}", i.sequence, i.name)).collect();
        assert_eq!(names, ["case2_1/frame9", "case2_1/frame10", "case10_1/a"]);
        assert!(set.problems.is_empty());
        let pair = set.items[0].load().unwrap();
        assert!(pair.rgb.dimensions() == (4, 3) && pair.mask.iter().all(|v| *v == 255));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = folder(&["images/a.png", "images/b.png", "masks/b.png", "masks/c.png"]);
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!(set.items.len(), 1);
        assert_eq!(set.problems.len(), 2);
        assert!(
            set.problems[0].contains("a.png: no mask") && set.problems[1].contains("c.png: a mask without")
        );
    }

    #[test]
    fn negatives_have_empty_masks() {
        let dir = folder(&["case1/x.png", "case2/y.png"]);
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!(set.items.len(), 2);
        assert!(set.items[0].load().unwrap().mask.iter().all(|v| *v == 0));
    }

    #[test]
    fn errors_name_the_path_and_the_layout() {
        let dir = folder(&["Frame/x/a.png"]);
        let text = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("images/ and masks/"), "{text}");
        let text = Dataset::sunseg(dir.path(), "TrainDataset").unwrap_err().to_string();
        assert!(text.contains("TrainDataset") && text.contains("Frame/ and GT/"), "{text}");
        let dir = folder(&["images/a.png", "masks/a.png"]);
        GrayImage::new(5, 5).save(dir.path().join("masks/a.png")).unwrap();
        let text = Dataset::open(dir.path()).unwrap().items[0].load().unwrap_err().to_string();
        assert!(text.contains("is 5x5, but its picture"), "{text}");
        fs::write(dir.path().join("images/a.png"), b"not a picture").unwrap();
        let text = Dataset::open(dir.path()).unwrap().items[0].load().unwrap_err().to_string();
        assert!(text.contains("a.png: cannot read the picture"), "{text}");
    }
}
