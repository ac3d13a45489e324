//! The recognised layouts of data sets on disk, in one table for code, docs and tests.

use super::folder::{Folder, half_names, named_pair, nnunet_pair, numbered_pair, plain};
use super::reading::Reading;
use super::{Dataset, Item, annotations, file_name, image_files, nearest};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A layout of a data set on disk.
pub struct Layout {
    pub name: &'static str,
    /// Path of an image and, if any, of its mask, relative to the opened folder.
    pub shape: &'static str,
    /// Who publishes data like this.
    pub sets: &'static str,
    /// Opens a folder; `None` if it has another layout.
    open: fn(&Folder) -> Result<Option<Dataset>>,
}

/// All layouts in the order in which they are tried.
pub const LAYOUTS: [Layout; 8] = [
    Layout {
        name: "sequences",
        shape: "Frame/case1_1/a.jpg, GT/case1_1/a.png",
        sets: "SUN-SEG's splits after `data sunseg-reorganize`; what `synth` writes",
        open: |f| named(f, true),
    },
    Layout {
        name: "sequences, each with its masks",
        shape: "1/Frame/a.jpg, 1/GT/a.png",
        sets: "PNS-Net's CVC-ColonDB-300 and CVC-612 (IVPS); PolypGen's `sequenceData/positive` (`seq1/images_seq1`, `seq1/masks_seq1`)",
        open: sequence_folders,
    },
    Layout {
        name: "stills",
        shape: "images/a.jpg, masks/a.png",
        sets: "Kvasir-SEG, CVC-ColonDB, PraNet's `TrainDataset` (`image`, `masks`) and `TestDataset`; CVC-ClinicDB (`Original`, `Ground Truth`); flat `Frame`, `GT`",
        open: |f| named(f, false),
    },
    Layout {
        name: "stills of a centre",
        shape: "images_C1/a.jpg, masks_C1/a_mask.jpg",
        sets: "PolypGen's `data_C1` to `data_C6`",
        open: numbered,
    },
    Layout {
        name: "stills of nnU-Net",
        shape: "imagesTr/a_0000.png, labelsTr/a.png",
        sets: "nnU-Net's raw data sets (`Dataset001_Polyp`), with one file of all colours per image",
        open: nnunet,
    },
    Layout {
        name: "stills and a folder of truth",
        shape: "train/train/a.jpeg, train_gt/train_gt/a.jpeg",
        sets: "BKAI-IGH NeoPolyp as Kaggle has it; ETIS-Larib (`ETIS-LaribPolypDB/1.tif`, `Ground Truth/p1.tif`)",
        open: beside,
    },
    Layout {
        name: "masks beside images",
        shape: "a.bmp, a_anno.bmp",
        sets: "GlaS (`_anno`: the numbers of objects); `_mask`, `_gt` and the like",
        open: together,
    },
    Layout {
        name: "polyp-free frames",
        shape: "case1/a.jpg",
        sets: "`SUN-Negative`, SUN's `sundatabase_negative_part1` as downloaded; PolypGen's `negativeOnly` (`seq1_neg`)",
        open: negatives,
    },
];

/// Suffix of the names of GlaS's masks.
const OBJECTS: &str = "_anno";

/// Depth to which sets are searched below the opened folder.
const DEPTH: usize = 5;

/// Splits of SUN-SEG, as its folders are named.
pub const SPLITS: [&str; 5] = [
    "TrainDataset",
    "TestEasyDataset/Seen",
    "TestEasyDataset/Unseen",
    "TestHardDataset/Seen",
    "TestHardDataset/Unseen",
];

/// The table of layouts for the docs.
pub fn table() -> String {
    let mut text = String::from("| layout | an image, its mask | data like this |\n|---|---|---|\n");
    for layout in &LAYOUTS {
        let shape: Vec<String> = layout.shape.split(", ").map(|part| format!("`{part}`")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} | {} | {} |", layout.name, shape.join(", "), layout.sets);
    }
    text
}

/// Data sets found in a folder, and folders that could not be read as one.
#[derive(Debug, Default)]
pub struct Found {
    pub sets: Vec<Dataset>,
    /// One line each, with the path and a remedy.
    pub unreadable: Vec<String>,
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
        Self::open(&dir)
    }

    /// The data set in `dir`, in any of [`LAYOUTS`].
    ///
    /// # Errors
    /// If the folder has another layout. The message names the nearest layout and the command that produces it.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = Folder::read(dir)?;
        match recognise(&folder)? {
            Some(set) => Ok(set),
            None => Err(nearest::unknown(&folder)),
        }
    }

    /// [`Self::open`], or all data sets below `dir` and the folders that could not be read.
    ///
    /// # Errors
    /// If no data set is found.
    pub fn open_all(dir: &Path) -> Result<Found> {
        let folder = Folder::read(dir)?;
        let mut found = Found::default();
        let mut first = None;
        walk(&folder, DEPTH, &mut found, &mut first);
        match (found.sets.is_empty(), first) {
            (false, _) => Ok(found),
            (true, Some(e)) if found.unreadable.len() == 1 => Err(e),
            (true, _) => Err(nearest::nothing(&folder, &found.unreadable)),
        }
    }
}

fn recognise(folder: &Folder) -> Result<Option<Dataset>> {
    for layout in &LAYOUTS {
        if let Some(set) = (layout.open)(folder)? {
            return Ok(Some(set));
        }
    }
    Ok(None)
}

fn walk(folder: &Folder, depth: usize, found: &mut Found, first: &mut Option<Error>) {
    let mut failed = |e: Error, found: &mut Found| {
        found.unreadable.push(e.to_string());
        first.get_or_insert(e);
    };
    match recognise(folder) {
        Ok(Some(set)) => found.sets.push(set),
        Err(e) => failed(e, found),
        Ok(None) => {
            let ends_here = folder.folders.is_empty() || !folder.images.is_empty();
            if ends_here || nearest::by_structure(folder).is_some() {
                return failed(nearest::unknown(folder), found);
            }
            for inside in &folder.folders {
                match Folder::read(inside) {
                    Ok(inside) if depth > 0 => walk(&inside, depth - 1, found, first),
                    Ok(_) => {}
                    Err(e) => {
                        found.unreadable.push(e.to_string());
                        first.get_or_insert(e);
                    }
                }
            }
        }
    }
}

/// Whether both contain folders with common names.
fn common(images: &Folder, masks: &Folder) -> bool {
    images.folders.iter().any(|f| masks.folders.iter().any(|m| file_name(m) == file_name(f)))
}

/// Folders of images and masks with usual names, containing either one folder per sequence or stills.
fn named(folder: &Folder, sequences: bool) -> Result<Option<Dataset>> {
    let Some((images, masks)) = named_pair(folder) else { return Ok(None) };
    let (inside, truths) = (Folder::read(images)?, Folder::read(masks)?);
    let in_sequences = common(&inside, &truths) || (!inside.folders.is_empty() && plain(images) == "frame");
    if in_sequences != sequences {
        return Ok(None);
    }
    if !in_sequences {
        return stills(folder, images, masks).map(Some);
    }
    let mut set = Dataset::empty(&folder.path);
    for frames in &inside.folders {
        let sequence = file_name(frames);
        let masks = masks.join(&sequence);
        if masks.is_dir() {
            set.pair(&sequence, frames, &masks)?;
        } else {
            set.problems.push(format!(
                "{}: no masks for the sequence in {}",
                frames.display(),
                masks.display()
            ));
        }
    }
    if !inside.images.is_empty() {
        set.pair("", images, masks)?;
    }
    set.unused(folder, &[images, masks]);
    set.finish(None).map(Some)
}

fn stills(folder: &Folder, images: &Path, masks: &Path) -> Result<Dataset> {
    let mut set = Dataset::empty(&folder.path);
    set.pair("", &Folder::unnested(images)?.path, &Folder::unnested(masks)?.path)?;
    set.unused(folder, &[images, masks]);
    set.finish(None)
}

/// Whether the name is like `case3`, `seq_12`, `video 7` or `4`.
fn is_sequence(path: &Path) -> bool {
    let name = plain(path);
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    word.len() < name.len() && ["", "case", "seq", "sequence", "video", "vid", "clip"].contains(&word)
}

/// One folder per sequence, with folders of frames and masks inside.
fn sequence_folders(folder: &Folder) -> Result<Option<Dataset>> {
    let mut set = Dataset::empty(&folder.path);
    let mut used = Vec::new();
    for path in folder.folders.iter().filter(|f| is_sequence(f)) {
        let inside = Folder::read(path)?;
        let pair = named_pair(&inside).or_else(|| numbered_pair(&inside));
        if let Some((images, masks)) = pair {
            set.pair(&file_name(path), images, masks)?;
            used.push(path.as_path());
        } else if !inside.images.is_empty() || !inside.folders.is_empty() {
            set.problems.push(format!("{}: no folders of images and masks in it", path.display()));
        }
    }
    if used.is_empty() {
        return Ok(None);
    }
    set.unused(folder, &used);
    set.finish(None).map(Some)
}

fn numbered(folder: &Folder) -> Result<Option<Dataset>> {
    numbered_pair(folder).map(|(images, masks)| stills(folder, images, masks)).transpose()
}

fn nnunet(folder: &Folder) -> Result<Option<Dataset>> {
    nnunet_pair(folder).map(|(images, masks)| stills(folder, images, masks)).transpose()
}

/// `X/` and `X_gt/`, or a folder of truth and another one with matching names.
fn beside(folder: &Folder) -> Result<Option<Dataset>> {
    for images in &folder.folders {
        let name = file_name(images).to_lowercase();
        let truth = |f: &&PathBuf| {
            let ending = file_name(f).to_lowercase().strip_prefix(&name).map(str::to_owned);
            ending
                .is_some_and(|e| ["_gt", "-gt", "_mask", "_masks", "_label", "_labels"].contains(&e.as_str()))
        };
        if let Some(masks) = folder.folders.iter().find(truth) {
            return stills(folder, images, masks).map(Some);
        }
    }
    let (truths, others): (Vec<&PathBuf>, Vec<&PathBuf>) =
        folder.folders.iter().partition(|f| half_names(f).1);
    let ([masks], [images]) = (&truths[..], &others[..]) else { return Ok(None) };
    let (inside, truth) = (Folder::unnested(images)?, Folder::unnested(masks)?);
    if inside.images.is_empty() || truth.images.is_empty() {
        return Ok(None);
    }
    // Folders without matching names are not a pair.
    Ok(stills(folder, images, masks).ok())
}

/// Images and masks in the same folder, distinguished by the suffix of the masks' names.
fn together(folder: &Folder) -> Result<Option<Dataset>> {
    let is_mask = |name: &str| super::pairing::beside_ending(name).is_some();
    let (masks, images): (Vec<_>, Vec<_>) = folder.images.iter().cloned().partition(|(n, _)| is_mask(n));
    if masks.is_empty() || images.is_empty() {
        return Ok(None);
    }
    let objects = masks.iter().all(|(n, _)| n.ends_with(OBJECTS));
    let mut set = Dataset::empty(&folder.path);
    set.pair_files("", (&folder.path, images), (&folder.path, masks));
    set.unused(folder, &[]);
    set.finish(objects.then(Reading::objects)).map(Some)
}

/// Folders of frames without a polyp.
fn negatives(folder: &Folder) -> Result<Option<Dataset>> {
    let is_free = |path: &Path| {
        let name = file_name(path).to_lowercase();
        name.starts_with("case") || name.ends_with("_neg") || name.ends_with("-neg")
    };
    let whole = plain(&folder.path).contains("negative");
    // Frames that are not in one folder per case count as polyp-free only if the folder's name says so.
    let loose = !folder.images.is_empty();
    if loose && !(whole && folder.folders.is_empty()) {
        return Ok(None);
    }
    let frames: BTreeMap<PathBuf, Vec<(String, PathBuf)>> =
        folder.folders.iter().map(|f| Ok((f.clone(), image_files(f)?))).collect::<Result<_>>()?;
    let (cases, others): (Vec<&PathBuf>, Vec<&PathBuf>) = folder.folders.iter().partition(|f| is_free(f));
    let holds = |f: &PathBuf| frames.get(f).is_some_and(|images| !images.is_empty());
    if (cases.iter().all(|f| !holds(f)) && folder.images.is_empty()) || others.iter().any(|f| holds(f)) {
        return Ok(None);
    }
    if nearest::is_half(folder) {
        return Err(nearest::unknown(folder));
    }
    let positive = folder
        .path
        .components()
        .rev()
        .take(3)
        .find(|c| c.as_os_str().to_string_lossy().to_lowercase().contains("positive"));
    if let Some(part) = positive {
        return Err(Error::data(
            &folder.path,
            format!(
                "frames with polyps ({}) but no masks. The SUN database's frames need SUN-SEG's annotations: `autosam-video data sunseg-reorganize --positive {} --annotations SUN-SEG`",
                part.as_os_str().to_string_lossy(),
                folder.path.display()
            ),
        ));
    }
    if let Some(reason) = annotations::found(&folder.path, false) {
        return Err(Error::data(&folder.path, format!("frames without masks: {reason}")));
    }
    let mut set = Dataset::empty(&folder.path);
    for (name, image) in &folder.images {
        set.items.push(Item::new("", name.clone(), image.clone(), None));
    }
    for case in cases {
        for (name, image) in frames.get(case).into_iter().flatten() {
            set.items.push(Item::new(&file_name(case), name.clone(), image.clone(), None));
        }
    }
    set.finish(None).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma};

    /// The paths in the table are read by the layout that lists them.
    #[test]
    fn every_layout_of_the_table_is_read() {
        for layout in &LAYOUTS {
            let dir = tempfile::tempdir().unwrap();
            let files: Vec<&str> = layout.shape.split(", ").collect();
            for file in &files {
                let path = dir.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                GrayImage::from_fn(8, 6, |x, _| Luma([if x < 4 { 255 } else { 0 }])).save(path).unwrap();
            }
            let folder = Folder::read(dir.path()).unwrap();
            let set = (layout.open)(&folder).unwrap().unwrap_or_else(|| panic!("{}", layout.name));
            let first = LAYOUTS.iter().find(|l| matches!((l.open)(&folder), Ok(Some(_)))).unwrap();
            assert_eq!(first.name, layout.name);
            assert_eq!(
                (set.items.len(), set.items[0].mask.is_some()),
                (1, files.len() == 2),
                "{}",
                layout.name
            );
            assert!(
                set.problems.is_empty() && set.warnings.is_empty(),
                "{:?} {:?}",
                set.problems,
                set.warnings
            );
        }
    }

    #[test]
    fn unused_folders_next_to_a_set_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["images/a.png", "masks/a.png", "SUN-Negative/case1/b.png", "masks/note.gif"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let image = GrayImage::from_pixel(8, 6, Luma([200]));
            image.save_with_format(path, image::ImageFormat::Png).unwrap();
        }
        let set = Dataset::open(dir.path()).unwrap();
        let told = |part: &str| set.warnings.iter().any(|w| w.contains(part));
        assert!(
            told("SUN-Negative: 1 images next to the set are not used") && told("1 .gif"),
            "{:?}",
            set.warnings
        );
    }
}
