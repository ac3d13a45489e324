//! Labelled images on disk: SUN-SEG's sequences, stills, polyp-free frames; augmentation; batches.

mod annotations;
pub mod augment;
mod bmp;
pub mod check;
mod corruption;
mod decode;
mod depth;
mod fingerprint;
pub mod folder;
mod free;
mod jpeg;
pub mod layout;
pub mod loader;
mod mask;
mod mix;
mod nearest;
mod order;
mod pairing;
mod reading;
pub mod reorganize;
mod settle;
pub mod split;

pub use decode::open;
pub use depth::settle_depth;
pub use fingerprint::Fingerprint;
pub use layout::{Found, SPLITS};
pub use mask::{Kind, Levels};
pub use reading::{Reading, Seen};

use crate::{Error, Result};
use autosam_frame::map::ModelInput;
use autosam_frame::parts::{Neighbours, connected};
use autosam_frame::region::CropMode;
use autosam_frame::resize::Resizer;
use autosam_frame::{Frame, Rect};
use image::metadata::Orientation;
use image::{GrayImage, RgbImage, imageops};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One image with its mask; an image known to show no polyp may have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The sequence it belongs to (`case1_1`), empty for stills.
    pub sequence: String,
    /// The file's name without its ending.
    pub name: String,
    pub image: PathBuf,
    pub mask: Option<PathBuf>,
    /// Which values of the mask are foreground; the same for a whole set.
    pub reading: Reading,
    /// The part of the image that is used, if the item is a tile of a larger image.
    pub tile: Option<Tile>,
    /// Number of bits used by an image of 16 bits per channel, if its tags do not state it ([`settle_depth`]); `None`:
    /// all.
    pub bits: Option<u8>,
}

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// A decoded image and its mask (255 polyp, 0 not) of the same size.
#[derive(Debug, Clone)]
pub struct Pair {
    pub rgb: RgbImage,
    pub mask: GrayImage,
}

/// A data set's images in order, and its problems.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Name for display: the last parts of its path.
    pub name: String,
    pub root: PathBuf,
    pub items: Vec<Item>,
    /// Images left out, one line each with path and reason.
    pub problems: Vec<String>,
    /// Doubts about the set as a whole, one line each.
    pub warnings: Vec<String>,
    /// How its images are interpreted if that is not obvious, one line each.
    pub notes: Vec<String>,
    /// How its masks are interpreted, for display.
    pub masks: String,
}

impl Pair {
    /// Crops both to `area`.
    pub fn part(&self, area: Rect) -> Self {
        let [x, y, w, h] = [area.left, area.top, area.width, area.height].map(|v| v as u32);
        Self {
            rgb: imageops::crop_imm(&self.rgb, x, y, w, h).to_image(),
            mask: imageops::crop_imm(&self.mask, x, y, w, h).to_image(),
        }
    }

    /// Crops the pair to the part that a network is trained on, given by `roi`. An automatic crop is extended if it
    /// would remove labelled pixels, because an image with a polyp would become a polyp-free example.
    ///
    /// # Errors
    /// If the image is too large to be resized.
    pub fn trained(&self, roi: CropMode) -> Result<Self> {
        let area = roi.of(&Frame::rgb_image(&self.rgb))?;
        Ok(match (roi, self.labelled()) {
            (CropMode::Auto, Some(labelled)) => {
                let joined = area.union(labelled);
                self.part(joined.within(self.rgb.width() as usize, self.rgb.height() as usize))
            }
            _ => self.part(area),
        })
    }

    /// Fraction of the image, 0 to 1, that each connected polyp covers.
    pub fn polyps(&self) -> Vec<f64> {
        let (size, mask) = ((self.mask.width() as usize, self.mask.height() as usize), self.mask.as_raw());
        let polyps = connected(size, Neighbours::Eight, 0..mask.len(), |i| mask[i] > 0, |_, _| true);
        polyps.iter().map(|polyp| polyp.len() as f64 / mask.len() as f64).collect()
    }

    /// The bounding box of all labelled pixels; `None` without any.
    pub fn labelled(&self) -> Option<Rect> {
        Rect::around(self.mask.as_raw(), self.mask.width() as usize, 0)
    }
}

impl Item {
    /// An item for a whole image with a mask of 0 and 255.
    fn new(sequence: &str, name: String, image: PathBuf, mask: Option<PathBuf>) -> Self {
        let sequence = sequence.to_owned();
        Self { sequence, name, image, mask, reading: Reading::default(), tile: None, bits: None }
    }

    /// The case of its sequence: `case12` for `case12_3`, or the sequence's own name if it has no such number.
    pub fn case(&self) -> &str {
        case_of(&self.sequence)
    }

    /// The model input that a network is trained on ([`Pair::trained`]), at the resizer's size, and its mask (0 and
    /// 255, row by row).
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn model_input(&self, roi: CropMode, resizer: &mut Resizer) -> Result<(ModelInput, Vec<u8>)> {
        let pair = self.load()?.trained(roi)?;
        let mut sample = ModelInput::default();
        resizer.resize(&Frame::rgb_image(&pair.rgb), &mut sample)?;
        let (width, height) = (sample.width as u32, sample.height as u32);
        let mask = imageops::resize(&pair.mask, width, height, imageops::FilterType::Nearest);
        Ok((sample, mask.into_raw()))
    }

    /// Decodes image and mask. Masks are converted to 0 and 255; a missing one is empty.
    ///
    /// # Errors
    /// If a file is unreadable or damaged, or the mask has another size or other values than the set's masks; the
    /// message has the path.
    pub fn load(&self) -> Result<Pair> {
        self.decode().map(|(pair, _)| pair)
    }

    /// [`Self::load`], and the levels of the mask file.
    fn decode(&self) -> Result<(Pair, Option<Levels>)> {
        let bytes = decode::read(&self.image)?;
        let (image, head) = decode::upright(&self.image, &bytes)?;
        let mut rgb = depth::rgb8(&self.image, &bytes, image, self.bits)?;
        let mut levels = self.mask.as_deref().map(Levels::open).transpose()?;
        if let Some(found) = levels.take() {
            // Programs that ignore EXIF draw on the image as stored.
            let as_stored = found.orientation == Orientation::NoTransforms
                && found.dimensions() == head.size
                && head.size != head.upright();
            levels = Some(if as_stored { found.turned_with(head.orientation) } else { found });
        }
        let mut mask = match (&levels, &self.mask) {
            (Some(levels), Some(path)) => {
                check_size(path, levels.dimensions(), &self.image, rgb.dimensions())?;
                self.reading.mask(levels).map_err(|reason| Error::data(path, reason))?
            }
            _ => GrayImage::new(rgb.width(), rgb.height()),
        };
        if let Some(t) = self.tile {
            rgb = imageops::crop_imm(&rgb, t.x, t.y, t.width, t.height).to_image();
            mask = imageops::crop_imm(&mask, t.x, t.y, t.width, t.height).to_image();
        }
        Ok((Pair { rgb, mask }, levels))
    }
}

/// Fails if a mask does not have its image's size.
fn check_size(mask: &Path, found: (u32, u32), image: &Path, (width, height): (u32, u32)) -> Result<()> {
    if found == (width, height) {
        return Ok(());
    }
    let (w, h) = found;
    Err(Error::data(
        mask,
        format!(
            "is {w}x{h}, but its image {} is {width}x{height}; scale the mask without smoothing, or use the one that belongs to it",
            image.display()
        ),
    ))
}

/// `case12` for `case12_3`.
pub fn case_of(sequence: &str) -> &str {
    match sequence.rsplit_once('_') {
        Some((case, part)) if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => case,
        _ => sequence,
    }
}

impl Dataset {
    /// Keeps the first of every `n` frames.
    pub fn keep_every(&mut self, n: usize) {
        let mut at = 0;
        self.items.retain(|_| {
            at += 1;
            (at - 1) % n.max(1) == 0
        });
    }

    /// Splits every image into as few tiles of `side × side` pixels as cover it, evenly spaced (they overlap if the
    /// side does not divide the image's); smaller images stay whole. Used for MoNuSeg's 1000 × 1000 images.
    pub fn tiled(mut self, side: u32) -> Result<Self> {
        let mut tiles = Vec::new();
        for item in self.items {
            let (w, h) = decode::head(&item.image)?.upright();
            let starts = |length: u32| -> Vec<u32> {
                let count = length.div_ceil(side).max(1);
                let slack = length.saturating_sub(side);
                (0..count).map(|i| if count == 1 { 0 } else { slack * i / (count - 1) }).collect()
            };
            for y in starts(h) {
                for x in starts(w) {
                    let tile = Tile { x, y, width: side.min(w), height: side.min(h) };
                    tiles.push(Item {
                        name: format!("{}@{x},{y}", item.name),
                        tile: Some(tile),
                        ..item.clone()
                    });
                }
            }
        }
        self.items = tiles;
        Ok(self)
    }

    /// The images `items` of the folder `dir`, without masks.
    pub fn of_images(dir: &Path, items: Vec<Item>) -> Self {
        let mut set = Self { items, ..Self::empty(dir) };
        set.settle_depth();
        set
    }

    fn empty(dir: &Path) -> Self {
        let parts: Vec<String> =
            dir.components().rev().take(3).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        let name = parts.into_iter().rev().collect::<Vec<_>>().join("/");
        Self {
            name,
            root: dir.to_owned(),
            items: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            masks: String::new(),
        }
    }

    /// Completes the set: determines how masks are interpreted, unless `reading` is given, and the bit depth of images.
    fn finish(mut self, reading: Option<Reading>) -> Result<Self> {
        if self.items.is_empty() {
            // Includes the warnings about unsupported files, since the folder may contain nothing else.
            let known = self.problems.into_iter().take(1).chain(self.warnings);
            let known = known.chain(annotations::found(&self.root, true));
            let reasons: String = known.map(|reason| format!("; {reason}")).collect();
            return Err(Error::data(&self.root, format!("no image with a mask{reasons}")));
        }
        self.settle(reading);
        self.settle_depth();
        Ok(self)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folders in `dir`, in natural order (`case2` before `case10`); without hidden ones and leftovers of archives.
pub fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    list(dir, |p| p.is_dir() && !LEFTOVERS.contains(&file_name(p).as_str()))
}

/// Leftover folders of archives and file managers.
const LEFTOVERS: [&str; 3] = ["__MACOSX", "@eaDir", "$RECYCLE.BIN"];

/// The images in `dir` itself, in order, without masks. Names that differ only in their extension keep it, because
/// outputs would otherwise overwrite each other.
pub fn images_in(dir: &Path) -> Result<Vec<Item>> {
    let files = image_files(dir)?;
    let mut count: HashMap<String, usize> = HashMap::new();
    files.iter().for_each(|(name, _)| *count.entry(name.clone()).or_default() += 1);
    let named_apart = |(name, image): (String, PathBuf)| {
        let name = if count[&name] > 1 { file_name(&image) } else { name };
        Item::new("", name, image, None)
    };
    Ok(files.into_iter().map(named_apart).collect())
}

/// The images in `dir` itself, otherwise those of the data set in `dir`.
///
/// # Errors
/// If there are none.
pub fn items_in(dir: &Path) -> Result<Vec<Item>> {
    let mut items = images_in(dir)?;
    if items.is_empty() {
        items = Dataset::open(dir)?.items;
    }
    if items.is_empty() {
        return Err(Error::data(dir, "no images in it (.jpg, .png, .bmp, .tif)"));
    }
    Ok(items)
}

/// The images in `dir` by name without extension, in SUN-SEG's frame order.
pub(crate) fn image_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let files = list(dir, |p| is_image_file(p) && p.is_file())?;
    Ok(files
        .into_iter()
        .map(|p| (p.file_stem().unwrap_or_default().to_string_lossy().into_owned(), p))
        .collect())
}

/// Whether the extension is one of a supported image format.
fn is_image_file(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["png", "jpg", "jpeg", "jpe", "jfif", "bmp", "dib", "tif", "tiff"].contains(&ending.as_str())
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
    fn missing_masks_and_images_are_named() {
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
    fn all_sets_in_a_folder_are_opened() {
        let dir = folder(&[
            "Kvasir/images/a.png",
            "Kvasir/masks/a.png",
            "CVC-300/images/a.png",
            "CVC-300/masks/a.png",
        ]);
        let found = Dataset::open_all(dir.path()).unwrap();
        assert_eq!(found.sets.iter().map(|s| s.items.len()).collect::<Vec<_>>(), [1, 1]);
        let dir = folder(&[
            "TestEasyDataset/Unseen/Frame/case1_1/a.png",
            "TestEasyDataset/Unseen/GT/case1_1/a.png",
        ]);
        let sets = Dataset::open_all(dir.path()).unwrap().sets;
        assert_eq!((sets.len(), sets[0].items[0].case()), (1, "case1"));
    }

    #[test]
    fn glas_masks_are_object_numbers() {
        let dir = folder(&["train_1.bmp", "train_1_anno.bmp", "train_2.bmp"]);
        GrayImage::from_fn(4, 3, |x, _| image::Luma([x as u8]))
            .save(dir.path().join("train_1_anno.bmp"))
            .unwrap();
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!((set.items.len(), set.problems.len()), (1, 1));
        assert_eq!(set.items[0].load().unwrap().mask.as_raw()[..4], [0, 255, 255, 255]);
    }

    #[test]
    fn tiles_cover_the_frame() {
        let dir = folder(&["images/a.png", "masks/a.png"]);
        let set = Dataset::open(dir.path()).unwrap().tiled(3).unwrap();
        let at: Vec<_> =
            set.items.iter().map(|i| i.tile.unwrap()).map(|t| (t.x, t.y, t.width, t.height)).collect();
        assert_eq!(at, [(0, 0, 3, 3), (1, 0, 3, 3)]);
        assert_eq!(set.items[1].load().unwrap().rgb.dimensions(), (3, 3));
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
        assert!(text.contains("is 5x5, but its image"), "{text}");
        fs::write(dir.path().join("images/a.png"), b"not an image").unwrap();
        let text = Dataset::open(dir.path()).unwrap().items[0].load().unwrap_err().to_string();
        assert!(text.contains("a.png: cannot read the image"), "{text}");
    }
}
