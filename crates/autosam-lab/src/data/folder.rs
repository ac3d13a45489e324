//! A folder's content, and the usual names of folders of images and masks.

use super::{file_name, folders, image_files};
use crate::Result;
use std::path::{Path, PathBuf};

/// Names of folders of images and masks in the form of [`plain`], in order of preference.
const IMAGES: [&str; 8] = ["images", "image", "imgs", "img", "frame", "frames", "original", "originals"];
const MASKS: [&str; 11] = [
    "masks",
    "mask",
    "gt",
    "gts",
    "groundtruth",
    "labels",
    "label",
    "annotations",
    "annotation",
    "segmentations",
    "segmentation",
];

/// A folder's content without leftovers of archives and file managers.
pub struct Folder {
    pub path: PathBuf,
    pub folders: Vec<PathBuf>,
    /// Names without extension, and paths.
    pub images: Vec<(String, PathBuf)>,
}

impl Folder {
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), folders: folders(path)?, images: image_files(path)? })
    }

    /// Descends to the first folder with images or several folders, so that `train/train/` counts as one folder.
    pub fn unnested(path: &Path) -> Result<Self> {
        let mut folder = Self::read(path)?;
        while let ([], [only]) = (&folder.images[..], &folder.folders[..]) {
            folder = Self::read(only)?;
        }
        Ok(folder)
    }

    fn named(&self, name: &str) -> Option<&PathBuf> {
        self.folders.iter().find(|f| plain(f) == name)
    }
}

/// The folder's name in lower case, without blanks, hyphens and the like.
pub fn plain(path: &Path) -> String {
    file_name(path).chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The folders of images and masks, by their names.
pub fn named_pair(folder: &Folder) -> Option<(&PathBuf, &PathBuf)> {
    let of = |names: &[&str]| names.iter().find_map(|name| folder.named(name));
    Some((of(&IMAGES)?, of(&MASKS)?))
}

/// `images_C1` and `masks_C1`.
pub fn numbered_pair(folder: &Folder) -> Option<(&PathBuf, &PathBuf)> {
    let rest = |path: &Path, names: [&str; 2]| {
        let name = file_name(path).to_lowercase();
        names.iter().find_map(|n| name.strip_prefix(n)?.strip_prefix(['_', '-']).map(str::to_owned))
    };
    folder.folders.iter().find_map(|images| {
        let end = rest(images, ["images", "image"])?;
        let masks = folder.folders.iter().find(|f| rest(f, ["masks", "mask"]).as_ref() == Some(&end))?;
        Some((images, masks))
    })
}

/// nnU-Net's `imagesTr` and `labelsTr`, or `imagesTs` and `labelsTs`.
pub fn nnunet_pair(folder: &Folder) -> Option<(&PathBuf, &PathBuf)> {
    let pairs = [("imagestr", "labelstr"), ("imagests", "labelsts")];
    pairs.iter().find_map(|(images, masks)| Some((folder.named(images)?, folder.named(masks)?)))
}

/// The folders of images and masks in `dir`, by any of the naming rules.
pub fn pair_in(dir: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    let folder = Folder::read(dir)?;
    let pair = named_pair(&folder).or_else(|| numbered_pair(&folder)).or_else(|| nnunet_pair(&folder));
    Ok(pair.map(|(images, masks)| (images.clone(), masks.clone())))
}

/// Whether the folder is named as one of images, and as one of masks.
pub fn half_names(path: &Path) -> (bool, bool) {
    let name = plain(path);
    (IMAGES.contains(&name.as_str()), MASKS.contains(&name.as_str()))
}
