//! Labelled pictures on disk: SUN-SEG's sequences, stills, polyp-free frames; augmentation; batches.

pub mod augment;
pub mod check;
mod disturb;
pub mod loader;
mod order;
pub mod reorganize;
pub mod split;

use crate::engine::segmenter::Sample;
use crate::frame::region::Region;
use crate::frame::sample::Sampler;
use crate::frame::{Frame, Rect};
use crate::{Error, Result};
use image::{GrayImage, RgbImage, imageops};
use rayon::prelude::*;
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
    /// Which values of the mask are foreground.
    pub labels: Labels,
    /// The part of the picture that counts, where it is a tile of a larger one.
    pub tile: Option<Tile>,
}

/// How a mask file says "foreground".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Labels {
    /// Values above 127.
    #[default]
    Half,
    /// The numbers of objects, 1 and up (GlaS).
    Instances,
}

/// A rectangle of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
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

/// Names that stills' pictures and masks have their folders by.
const STILLS: [(&str, &str); 2] = [("images", "masks"), ("image", "mask")];

/// What GlaS's masks have at the end of their names.
const ANNOTATION: &str = "_anno";

/// Splits of SUN-SEG, as its folders are named.
pub const SPLITS: [&str; 5] = [
    "TrainDataset",
    "TestEasyDataset/Seen",
    "TestEasyDataset/Unseen",
    "TestHardDataset/Seen",
    "TestHardDataset/Unseen",
];

impl Pair {
    /// The part of both that lies in `area`.
    pub fn part(&self, area: Rect) -> Self {
        let [x, y, w, h] = [area.left, area.top, area.width, area.height].map(|v| v as u32);
        Self {
            rgb: imageops::crop_imm(&self.rgb, x, y, w, h).to_image(),
            mask: imageops::crop_imm(&self.mask, x, y, w, h).to_image(),
        }
    }
}

impl Item {
    /// A whole picture with a mask of 0 and 255.
    fn new(sequence: &str, name: String, image: PathBuf, mask: Option<PathBuf>) -> Self {
        Self { sequence: sequence.to_owned(), name, image, mask, labels: Labels::default(), tile: None }
    }

    /// The case that its sequence is of: `case12` of `case12_3`, a sequence's own name where it has no such number.
    pub fn case(&self) -> &str {
        case_of(&self.sequence)
    }

    /// What a network sees of it, `region` at the sampler's size, and the mask of that (0 and 255, row by row).
    ///
    /// # Errors
    /// As [`Self::load`]'s.
    pub fn sampled(&self, region: Region, sampler: &mut Sampler) -> Result<(Sample, Vec<u8>)> {
        let pair = self.load()?;
        let pair = pair.part(region.of(&Frame::rgb_image(&pair.rgb))?);
        let mut sample = Sample::default();
        sampler.sample(&Frame::rgb_image(&pair.rgb), &mut sample)?;
        let (width, height) = (sample.width as u32, sample.height as u32);
        let mask = imageops::resize(&pair.mask, width, height, imageops::FilterType::Nearest);
        Ok((sample, mask.into_raw()))
    }

    /// Decodes picture and mask. Masks are made 0 and 255; a missing one is empty.
    ///
    /// # Errors
    /// With the path: unreadable files, a mask of another size.
    pub fn load(&self) -> Result<Pair> {
        let mut rgb = open(&self.image)?.into_rgb8();
        let mut mask = match &self.mask {
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
                let background = if self.labels == Labels::Instances { 0 } else { 127 };
                for v in mask.iter_mut() {
                    *v = if *v > background { 255 } else { 0 };
                }
                mask
            }
        };
        if let Some(t) = self.tile {
            rgb = imageops::crop_imm(&rgb, t.x, t.y, t.width, t.height).to_image();
            mask = imageops::crop_imm(&mask, t.x, t.y, t.width, t.height).to_image();
        }
        Ok(Pair { rgb, mask })
    }
}

/// Cells along the longer side of the grid that [`free_square`] is sought on.
const FREE_GRID: u32 = 48;

/// The largest square of `mask` without a polyp in it or within a cell of it; `None` where it is smaller than four tenths of
/// the shorter side.
fn free_square(mask: &GrayImage) -> Option<Tile> {
    let (w, h) = mask.dimensions();
    let cell = w.max(h).div_ceil(FREE_GRID).max(1);
    let (columns, rows) = ((w / cell) as usize, (h / cell) as usize);
    let mut taken = vec![false; columns * rows];
    for (x, y, _) in mask.enumerate_pixels().filter(|(_, _, v)| v.0[0] > 0) {
        let (cx, cy) = ((x / cell) as usize, (y / cell) as usize);
        for y in cy.saturating_sub(1)..(cy + 2).min(rows) {
            for x in cx.saturating_sub(1)..(cx + 2).min(columns) {
                taken[y * columns + x] = true;
            }
        }
    }
    // The side of the largest free square that ends at each cell.
    let mut side = vec![0u32; columns * rows];
    let mut best = (0, 0, 0);
    for y in 0..rows {
        for x in 0..columns {
            let at = y * columns + x;
            let before =
                |dx: usize, dy: usize| if x < dx || y < dy { 0 } else { side[at - dx - dy * columns] };
            side[at] = if taken[at] { 0 } else { 1 + before(1, 0).min(before(0, 1)).min(before(1, 1)) };
            best = best.max((side[at], x as u32, y as u32));
        }
    }
    let (side, x, y) = best;
    let (width, x, y) = (side * cell, (x + 1 - side.min(x + 1)) * cell, (y + 1 - side.min(y + 1)) * cell);
    (width * 10 >= w.min(h) * 4 && width > 0).then_some(Tile { x, y, width, height: width })
}

/// `case12` of `case12_3`.
pub fn case_of(sequence: &str) -> &str {
    match sequence.rsplit_once('_') {
        Some((case, part)) if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => case,
        _ => sequence,
    }
}

/// Opens a picture, whatever its name says it is.
pub fn open(path: &Path) -> Result<image::DynamicImage> {
    let reader = image::ImageReader::open(path)
        .and_then(|r| r.with_guessed_format())
        .map_err(|e| Error::io(path, e))?;
    reader.decode().map_err(|e| Error::image(path, e))
}

/// Width and height from the file's head.
fn dimensions(path: &Path) -> Result<(u32, u32)> {
    let reader = image::ImageReader::open(path)
        .and_then(|r| r.with_guessed_format())
        .map_err(|e| Error::io(path, e))?;
    reader.into_dimensions().map_err(|e| Error::image(path, e))
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

    /// Any known layout: `Frame/` and `GT/` with a folder a sequence; `images/` and `masks/` (or `image/` and `mask/`);
    /// GlaS's pictures beside masks `*_anno` of object numbers; or polyp-free frames, `SUN-Negative/` or its like,
    /// which holds nothing but folders `case*` of pictures.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.join("Frame").is_dir() && dir.join("GT").is_dir() {
            return Self::sequences(dir);
        }
        for (images, masks) in STILLS {
            if dir.join(images).is_dir() && dir.join(masks).is_dir() {
                return Self::stills(dir, images, masks);
            }
        }
        let files = pictures(dir)?;
        if files.iter().any(|(name, _)| name.ends_with(ANNOTATION)) {
            return Self::annotated(dir, files);
        }
        let cases = folders(dir)?;
        if !cases.is_empty() && cases.iter().all(|c| file_name(c).starts_with("case")) {
            return Self::negatives(dir, &cases);
        }
        Err(Error::data(
            dir,
            "no known layout: expected Frame/ and GT/, images/ and masks/, pictures beside their *_anno masks (GlaS), or folders case* of polyp-free frames",
        ))
    }

    /// [`Self::open`], or, where `dir` holds several data sets side by side (SUN-SEG's splits, PraNet's `TestDataset`),
    /// each of them.
    pub fn open_all(dir: &Path) -> Result<Vec<Self>> {
        let first = match Self::open(dir) {
            Ok(set) => return Ok(vec![set]),
            Err(e) => e,
        };
        let splits: Vec<PathBuf> =
            SPLITS.iter().map(|s| dir.join(s)).filter(|d| d.join("Frame").is_dir()).collect();
        let inside = if splits.is_empty() { folders(dir)? } else { splits };
        let sets: Vec<Self> = inside.iter().filter_map(|d| Self::open(d).ok()).collect();
        if sets.is_empty() { Err(first) } else { Ok(sets) }
    }

    /// Cuts every picture into tiles of `side × side` pixels, as few as cover it, evenly spread (they overlap where the
    /// side does not divide); smaller pictures stay whole. MoNuSeg's 1000 × 1000 pictures are trained on this way.
    pub fn tiled(mut self, side: u32) -> Result<Self> {
        let mut tiles = Vec::new();
        for item in self.items {
            let (w, h) = dimensions(&item.image)?;
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

    /// Of each picture the largest square that is within the endoscope's picture and free of polyps and their surroundings;
    /// pictures whose square would be smaller than four tenths of the picture's shorter side are left out.
    ///
    /// # Errors
    /// A picture that cannot be read.
    pub fn polyp_free(mut self) -> Result<Self> {
        let parts = self.items.par_iter().map(|item| {
            let pair = item.load()?;
            let area = Region::Auto.of(&Frame::rgb_image(&pair.rgb))?;
            Ok(free_square(&pair.part(area).mask).map(|square| Item {
                name: format!("{}@free", item.name),
                tile: Some(Tile { x: area.left as u32 + square.x, y: area.top as u32 + square.y, ..square }),
                ..item.clone()
            }))
        });
        self.items = parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        Ok(self)
    }

    /// A folder with pictures and one with masks whose files agree in name but for the ending.
    fn stills(dir: &Path, images: &str, masks: &str) -> Result<Self> {
        let mut set = Self::empty(dir);
        set.pair("", &dir.join(images), &dir.join(masks))?;
        set.finish()
    }

    /// `a.bmp` with `a_anno.bmp` beside it.
    fn annotated(dir: &Path, files: Vec<(String, PathBuf)>) -> Result<Self> {
        let mut set = Self::empty(dir);
        let (masks, images): (Vec<_>, Vec<_>) = files.into_iter().partition(|(n, _)| n.ends_with(ANNOTATION));
        let mut masks: HashMap<String, PathBuf> = masks.into_iter().collect();
        for (name, image) in images {
            match masks.remove(&format!("{name}{ANNOTATION}")) {
                Some(mask) => {
                    let item = Item::new("", name, image, Some(mask));
                    set.items.push(Item { labels: Labels::Instances, ..item });
                }
                None => set.problems.push(format!("{}: no {name}{ANNOTATION} beside it", image.display())),
            }
        }
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
                set.items.push(Item::new(&file_name(case), name, image, None));
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
                Some(mask) => self.items.push(Item::new(sequence, name, image, Some(mask))),
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
    Ok(pictures(dir)?.into_iter().map(|(name, image)| Item::new("", name, image, None)).collect())
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
    fn the_free_square_keeps_its_distance_from_polyps() {
        let mask = GrayImage::from_fn(120, 80, |x, _| image::Luma([if x < 30 { 255 } else { 0 }]));
        let square = free_square(&mask).unwrap();
        assert!(square.x >= 31 && square.x + square.width <= 120, "{square:?}");
        assert!(square.width > 70 && square.height == square.width, "{square:?}");
        assert_eq!(free_square(&GrayImage::from_pixel(120, 80, image::Luma([255]))), None);
        let middle = GrayImage::from_fn(100, 100, |x, y| {
            image::Luma([if (30..70).contains(&x) && (30..70).contains(&y) { 255 } else { 0 }])
        });
        assert_eq!(free_square(&middle), None, "a rim of 30 is less than four tenths");
    }

    #[test]
    fn polyp_free_parts_are_pictures_without_a_polyp() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images", "masks"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (name, polyp) in [("a", 20), ("b", 200)] {
            image::RgbImage::from_pixel(100, 80, image::Rgb([150, 90, 80]))
                .save(dir.path().join(format!("images/{name}.png")))
                .unwrap();
            GrayImage::from_fn(100, 80, |x, _| image::Luma([if x < polyp { 255 } else { 0 }]))
                .save(dir.path().join(format!("masks/{name}.png")))
                .unwrap();
        }
        let set = Dataset::open(dir.path()).unwrap().polyp_free().unwrap();
        assert_eq!(set.items.len(), 1);
        let pair = set.items[0].load().unwrap();
        assert!(pair.rgb.width() > 60 && pair.mask.iter().all(|v| *v == 0));
        assert_eq!(set.items[0].name, "a@free");
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
    fn several_sets_side_by_side_are_all_opened() {
        let dir = folder(&[
            "Kvasir/images/a.png",
            "Kvasir/masks/a.png",
            "CVC-300/images/a.png",
            "CVC-300/masks/a.png",
        ]);
        let names: Vec<_> = Dataset::open_all(dir.path()).unwrap().iter().map(|s| s.items.len()).collect();
        assert_eq!(names, [1, 1]);
        let dir = folder(&[
            "TestEasyDataset/Unseen/Frame/case1_1/a.png",
            "TestEasyDataset/Unseen/GT/case1_1/a.png",
        ]);
        let sets = Dataset::open_all(dir.path()).unwrap();
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
    fn tiles_cover_the_picture() {
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
        assert!(text.contains("is 5x5, but its picture"), "{text}");
        fs::write(dir.path().join("images/a.png"), b"not a picture").unwrap();
        let text = Dataset::open(dir.path()).unwrap().items[0].load().unwrap_err().to_string();
        assert!(text.contains("a.png: cannot read the picture"), "{text}");
    }
}
