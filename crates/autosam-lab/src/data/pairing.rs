//! Pairs masks with images: names match except for the extension and, in many public sets, a prefix or suffix.

use super::folder::Folder;
use super::{Dataset, Item, image_files};
use crate::Result;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// An image or mask: its name without extension, and its path.
type File = (String, PathBuf);
type Files = Vec<File>;

/// Prefixes and suffixes of masks' names.
const AFFIXES: [(&str, &str); 20] = [
    ("", ""),
    ("", "_mask"),
    ("", "_masks"),
    ("", "-mask"),
    ("", "_gt"),
    ("", "-gt"),
    ("", "_anno"),
    ("", "_label"),
    ("", "_labels"),
    ("", "_seg"),
    ("", "_segmentation"),
    ("", "_groundtruth"),
    ("", ".jpg"),
    ("", ".jpeg"),
    ("", ".png"),
    ("", ".bmp"),
    ("", ".tif"),
    ("mask_", ""),
    ("gt_", ""),
    // ETIS-Larib.
    ("p", ""),
];

/// Suffix of nnU-Net's image names: the number of the first channel. A file with all colours is one channel.
const CHANNEL: &str = "_0000";

/// Removes [`CHANNEL`] from the names of `images` if all of them have it and no mask has.
fn without_channel(images: Files, masks: &[File]) -> Files {
    let has = |(name, _): &File| name.ends_with(CHANNEL);
    if !images.iter().all(has) || masks.iter().any(has) {
        return images;
    }
    let strip = |(name, path): File| (name[..name.len() - CHANNEL.len()].to_owned(), path);
    images.into_iter().map(strip).collect()
}

/// Suffix of the name of a mask in the same folder as its image.
pub fn beside_ending(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    AFFIXES[1..12].iter().map(|(_, end)| *end).find(|end| name.len() > end.len() && name.ends_with(end))
}

/// `name` without prefix and suffix, which are compared case-insensitively.
fn stripped<'a>(name: &'a str, (before, after): (&str, &str)) -> Option<&'a str> {
    let end = name.len().checked_sub(after.len())?;
    let (front, rest) = (name.get(..before.len())?, name.get(end..)?);
    (front.eq_ignore_ascii_case(before) && rest.eq_ignore_ascii_case(after))
        .then(|| name.get(before.len()..end))?
}

/// The prefix and suffix for which most masks' names match images.
fn affix(images: &[File], masks: &[File]) -> (&'static str, &'static str) {
    let names: HashSet<&str> = images.iter().map(|(n, _)| n.as_str()).collect();
    let matches = |affix: (&str, &str)| {
        masks.iter().filter(|(n, _)| stripped(n, affix).is_some_and(|n| names.contains(n))).count()
    };
    let mut best = (matches(AFFIXES[0]), AFFIXES[0]);
    for affix in AFFIXES.into_iter().skip(1) {
        let count = matches(affix);
        if count > best.0 {
            best = (count, affix);
        }
    }
    best.1
}

/// Number of matching names.
pub fn agreement(images: &[File], masks: &[File]) -> usize {
    let names: HashSet<&str> = images.iter().map(|(n, _)| n.as_str()).collect();
    let affix = affix(images, masks);
    masks.iter().filter(|(n, _)| stripped(n, affix).is_some_and(|n| names.contains(n))).count()
}

/// Files by name; duplicate names are removed and reported.
fn by_name(files: Files, what: &str, problems: &mut Vec<String>) -> BTreeMap<String, PathBuf> {
    let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (name, path) in files {
        all.entry(name).or_default().push(path);
    }
    let one = |(name, mut paths): (String, Vec<PathBuf>)| match &paths[..] {
        [_] => paths.pop().map(|path| (name, path)),
        _ => {
            let names: Vec<_> = paths.iter().map(|p| super::file_name(p)).collect();
            problems.push(format!(
                "{}: {} {what} with the same name, {}; keep one of them",
                paths[0].display(),
                paths.len(),
                names.join(" and ")
            ));
            None
        }
    };
    all.into_iter().filter_map(one).collect()
}

impl Dataset {
    /// Adds the images of a folder with masks in another folder.
    pub(super) fn pair(&mut self, sequence: &str, images: &Path, masks: &Path) -> Result<()> {
        for folder in [images, masks] {
            self.warnings.extend(other_files(folder)?);
        }
        self.pair_files(sequence, (images, image_files(images)?), (masks, image_files(masks)?));
        Ok(())
    }

    /// Adds images with their masks; files without a partner are reported.
    pub(super) fn pair_files(&mut self, sequence: &str, images: (&Path, Files), masks: (&Path, Files)) {
        let ((image_dir, images), (mask_dir, masks)) = (images, masks);
        if images.is_empty() {
            self.problems.push(format!("{}: no images", image_dir.display()));
        }
        let images = without_channel(images, &masks);
        let affix = affix(&images, &masks);
        let order: Vec<String> = images.iter().map(|(name, _)| name.clone()).collect();
        let strip = |(name, path): (String, PathBuf)| {
            (stripped(&name, affix).map_or_else(|| name.clone(), str::to_owned), path)
        };
        let masks_of: Files = masks.into_iter().map(strip).collect();
        let doubled: Vec<String> = duplicates(&masks_of);
        let mut images = by_name(images, "images", &mut self.problems);
        let mut masks = by_name(masks_of, "masks", &mut self.problems);
        for name in order {
            let Some(image) = images.remove(&name) else {
                masks.remove(&name);
                continue;
            };
            match masks.remove(&name) {
                Some(mask) => self.items.push(Item::new(sequence, name, image, Some(mask))),
                None if doubled.contains(&name) => {}
                None => {
                    let wanted = format!("{}{name}{}", affix.0, affix.1);
                    self.problems.push(format!(
                        "{}: no mask with that name in {}{}",
                        image.display(),
                        mask_dir.display(),
                        if wanted == name { String::new() } else { format!(" ({wanted})") }
                    ));
                }
            }
        }
        self.problems.extend(masks.values().map(|m| format!("{}: a mask without an image", m.display())));
    }

    /// Notes folders with images next to the set that are not part of it.
    pub(super) fn unused(&mut self, folder: &Folder, used: &[&Path]) {
        for other in folder.folders.iter().filter(|f| !used.contains(&f.as_path())) {
            let images = images_below(other, 3);
            if images > 0 {
                self.warnings.push(format!(
                    "{}: {images} images next to the set are not used; to use them, give that folder separately",
                    other.display()
                ));
            }
        }
    }
}

fn duplicates(files: &[File]) -> Vec<String> {
    let mut names: Vec<&String> = files.iter().map(|(name, _)| name).collect();
    names.sort();
    names.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0].clone()).collect()
}

fn images_below(dir: &Path, depth: usize) -> usize {
    // An unreadable folder is reported when it is opened itself.
    let Ok(folder) = Folder::read(dir) else { return 0 };
    let inside = if depth == 0 { 0 } else { folder.folders.iter().map(|f| images_below(f, depth - 1)).sum() };
    folder.images.len() + inside
}

/// Files that look like images or masks in unsupported formats.
fn other_files(dir: &Path) -> Result<Option<String>> {
    const KNOWN_OTHERS: [&str; 12] =
        ["txt", "json", "csv", "xml", "md", "xlsx", "db", "ini", "pdf", "html", "py", "yaml"];
    let files = super::list(dir, |p| p.is_file() && !super::is_image_file(p))?;
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if !ending.is_empty() && !KNOWN_OTHERS.contains(&ending.as_str()) {
            *endings.entry(ending).or_default() += 1;
        }
    }
    if endings.is_empty() {
        return Ok(None);
    }
    let kinds: Vec<String> = endings.iter().map(|(ending, n)| format!("{n} .{ending}")).collect();
    Ok(Some(format!(
        "{}: unsupported files are not read: {}; convert images to PNG",
        dir.display(),
        kinds.join(", ")
    )))
}
