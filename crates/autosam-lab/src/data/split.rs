//! Splits off a part of a data set for validation, with look-alikes on the same side: public polyp sets share images,
//! and a frame of a video resembles the next one.

use super::{Dataset, Item, open};
use crate::{Error, Result};
use image_hasher::{HashAlg, HasherConfig, ImageHash};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bits along a side of a hash.
const SIDE: u32 = 12;

/// How to split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitConfig {
    /// The fraction to split off, 0 to 1.
    pub part: f64,
    /// Images whose hashes (144 bits: DCT, then gradients) differ in at most this many bits are look-alikes.
    pub distance: u32,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self { part: 0.1, distance: 20 }
    }
}

/// The assignment of every image of the sets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Split {
    pub train: Vec<Item>,
    pub val: Vec<Item>,
    /// Images in neither part because they resemble an image of a set to keep apart, which is named.
    pub left_out: Vec<(Item, PathBuf)>,
    /// Look-alikes within the sets, as groups of two images or more.
    pub groups: Vec<Vec<PathBuf>>,
}

/// Splits the images of `sets`: groups of look-alikes stay together, and those that resemble an image of `apart` (other
/// validation and test sets) are left out. A group's side depends only on the hash of its first image's file name,
/// so it is the same on every machine. `progress` is called after each image is read.
///
/// # Errors
/// If an image cannot be read; the error names its path.
pub fn split(
    sets: &[Dataset],
    apart: &[Dataset],
    config: SplitConfig,
    progress: impl Fn() + Sync,
) -> Result<Split> {
    let ours: Vec<&Item> = sets.iter().flat_map(|s| &s.items).collect();
    let theirs: Vec<&Item> = apart.iter().flat_map(|s| &s.items).collect();
    let (hashes, foreign) = (hashes(&ours, &progress)?, hashes(&theirs, &progress)?);
    let alike = |a: &ImageHash, b: &ImageHash| a.dist(b) <= config.distance;

    // A group is named by its first member.
    let mut group: Vec<usize> = (0..ours.len()).collect();
    for i in 0..ours.len() {
        for j in (0..i).filter(|j| alike(&hashes[i], &hashes[*j])) {
            let (a, b) = (root(&group, i), root(&group, j));
            let (first, second) = (a.min(b), a.max(b));
            group[second] = first;
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in 0..ours.len() {
        groups.entry(root(&group, i)).or_default().push(i);
    }
    let mut result = Split::default();
    for members in groups.values() {
        if members.len() > 1 {
            result.groups.push(members.iter().map(|i| ours[*i].image.clone()).collect());
        }
        let twin = members.iter().find_map(|i| {
            let at = foreign.iter().position(|h| alike(h, &hashes[*i]))?;
            Some(theirs[at].image.clone())
        });
        let items = members.iter().map(|i| ours[*i].clone());
        match (twin, members.first().is_some_and(|i| share(&ours[*i].name) < config.part)) {
            (Some(twin), _) => result.left_out.extend(items.map(|item| (item, twin.clone()))),
            (None, true) => result.val.extend(items),
            (None, false) => result.train.extend(items),
        }
    }
    Ok(result)
}

impl Split {
    /// Creates `dir/train` and `dir/val`, each with `images/` and `masks/` of links, and `dir/split.md`, which lists
    /// look-alikes and omitted images.
    ///
    /// # Errors
    /// If the folder exists, an image has no mask, or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        if dir.exists() {
            return Err(Error::data(dir, "already exists; give a new folder"));
        }
        for (part, items) in [("train", &self.train), ("val", &self.val)] {
            for kind in ["images", "masks"] {
                let folder = dir.join(part).join(kind);
                std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            }
            for (i, item) in items.iter().enumerate() {
                let mask = item.mask.as_ref().ok_or_else(|| {
                    Error::data(&item.image, "has no mask; polyp-free sets need no split, use them unchanged")
                })?;
                for (kind, file) in [("images", &item.image), ("masks", mask)] {
                    let ending = file.extension().unwrap_or_default().to_string_lossy();
                    // Sets may use the same names.
                    let link = dir.join(part).join(kind).join(format!("{i:05}_{}.{ending}", item.name));
                    let file = file.canonicalize().map_err(|e| Error::io(file, e))?;
                    std::os::unix::fs::symlink(file, &link).map_err(|e| Error::io(&link, e))?;
                }
            }
        }
        let mut text = format!(
            "# Split\n{} images for training, {} for validation, {} left out.\n\n## Look-alikes, kept together\n",
            self.train.len(),
            self.val.len(),
            self.left_out.len()
        );
        for group in &self.groups {
            let names: Vec<String> = group.iter().map(|p| p.display().to_string()).collect();
            text += &format!("- {}\n", names.join(", "));
        }
        text += "\n## Left out\n";
        for (item, twin) in &self.left_out {
            text += &format!("- {}: as {}\n", item.image.display(), twin.display());
        }
        crate::write_atomically(&dir.join("split.md"), text.as_bytes())
    }
}

fn hashes(items: &[&Item], progress: &(impl Fn() + Sync)) -> Result<Vec<ImageHash>> {
    items
        .par_iter()
        .map(|item| {
            // Not shared between threads because it contains the DCT's plans.
            let hasher = HasherConfig::new()
                .hash_size(SIDE, SIDE)
                .hash_alg(HashAlg::Gradient)
                .preproc_dct()
                .to_hasher();
            let hash = hasher.hash_image(&open(&item.image)?.into_rgb8());
            progress();
            Ok(hash)
        })
        .collect()
}

/// The first member of the group that `at` is in.
fn root(group: &[usize], mut at: usize) -> usize {
    while group[at] != at {
        at = group[at];
    }
    at
}

/// Maps `name` to a number between 0 and 1.
fn share(name: &str) -> f64 {
    let digest = Sha256::digest(name.as_bytes());
    f64::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])) / 2f64.powi(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Rgb, RgbImage};

    /// Blobs at positions that depend on `seed`, brighter by `light`.
    fn blobs(seed: u32, light: u8) -> RgbImage {
        RgbImage::from_fn(96, 80, |x, y| {
            let wave = |a: u32, b: u32| {
                ((x * (a + seed * 3 % 7) + y * (b + seed % 5)) as f32 * 0.02 + seed as f32).sin()
            };
            let v = 110.0 + 45.0 * wave(2, 5) + 40.0 * wave(7, 1);
            Rgb([v as u8 + light, (v * 0.6) as u8 + light, 50 + light])
        })
    }

    fn set(dir: &Path, images: &[(&str, RgbImage)]) -> Dataset {
        for kind in ["images", "masks"] {
            std::fs::create_dir_all(dir.join(kind)).unwrap();
        }
        for (name, rgb) in images {
            rgb.save(dir.join(format!("images/{name}.png"))).unwrap();
            GrayImage::new(96, 80).save(dir.join(format!("masks/{name}.png"))).unwrap();
        }
        Dataset::open(dir).unwrap()
    }

    #[test]
    fn look_alikes_stay_together_and_resembling_images_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut images: Vec<(String, RgbImage)> = (0..24).map(|i| (format!("p{i}"), blobs(i, 0))).collect();
        images.push(("brighter".into(), blobs(3, 20)));
        let named: Vec<(&str, RgbImage)> = images.iter().map(|(n, p)| (n.as_str(), p.clone())).collect();
        let ours = set(&dir.path().join("ours"), &named);
        let apart = set(&dir.path().join("apart"), &[("q", blobs(5, 10))]);
        let split = |part| {
            let config = SplitConfig { part, distance: 8 };
            split(std::slice::from_ref(&ours), std::slice::from_ref(&apart), config, || ()).unwrap()
        };
        let half = split(0.5);
        let name = |item: &Item| item.name.clone();
        assert_eq!(half.left_out.iter().map(|(i, _)| name(i)).collect::<Vec<_>>(), ["p5"]);
        assert_eq!(half.groups.len(), 1, "{:?}", half.groups);
        let (train, val): (Vec<_>, Vec<_>) =
            (half.train.iter().map(name).collect(), half.val.iter().map(name).collect());
        assert_eq!(train.len() + val.len(), 24);
        assert!(train.len() > 4 && val.len() > 4, "{train:?} {val:?}");
        assert_eq!(train.contains(&"p3".into()), train.contains(&"brighter".into()));
        assert_eq!(half, split(0.5));
        assert!(split(0.0).val.is_empty() && split(1.0).train.is_empty());

        let out = dir.path().join("out");
        half.write(&out).unwrap();
        assert_eq!(Dataset::open(&out.join("val")).unwrap().items.len(), val.len());
        let first = &Dataset::open(&out.join("train")).unwrap().items[0];
        assert_eq!(first.load().unwrap().rgb.dimensions(), (96, 80));
        assert!(std::fs::read_to_string(out.join("split.md")).unwrap().contains("p5.png: as"));
        assert!(half.write(&out).unwrap_err().to_string().contains("already"));
    }
}
