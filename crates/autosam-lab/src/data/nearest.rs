//! Messages for a folder that is not a data set: the nearest layout, and the command that produces it.

use super::folder::{Folder, half_names, pair_in};
use super::mask::Levels;
use super::{annotations, file_name, pairing};
use crate::Error;
use std::collections::HashSet;
use std::path::Path;

/// Extensions of videos, which `run` processes and which are not data sets.
const VIDEOS: [&str; 10] = ["mp4", "mkv", "avi", "mov", "webm", "mpg", "mpeg", "ts", "m4v", "wmv"];

/// Maximum number of lines about folders below the given one.
const MOST_LINES: usize = 8;

/// Whether the folder contains images or masks and its parent contains the other half.
pub fn is_half(folder: &Folder) -> bool {
    let (image, mask) = half_names(&folder.path);
    let Some(parent) = folder.path.parent().filter(|_| image || mask) else { return false };
    let same = |a: &Path| file_name(a) == file_name(&folder.path);
    // A parent that cannot be read contains no pair.
    matches!(pair_in(parent), Ok(Some((images, masks))) if same(&images) || same(&masks))
}

/// The error for a folder that is in no known layout.
pub fn unknown(folder: &Folder) -> Error {
    Error::data(
        &folder.path,
        format!(
            "no known layout{}; expected images/ and masks/, Frame/ and GT/ or another one of `autosam-video data layouts`",
            hint(folder).map(|h| format!(": {h}")).unwrap_or_default()
        ),
    )
}

/// The error for a folder without a data set in or below it; `unreadable` has the reasons by path.
pub fn nothing(folder: &Folder, unreadable: &[String]) -> Error {
    if unreadable.is_empty() {
        return unknown(folder);
    }
    let lines: Vec<&str> = unreadable.iter().take(MOST_LINES).map(String::as_str).collect();
    let more = unreadable.len().saturating_sub(MOST_LINES);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Error::data(
        &folder.path,
        format!("no known layout (images/ and masks/, …) in or below it:\n  {}{more}", lines.join("\n  ")),
    )
}

fn hint(folder: &Folder) -> Option<String> {
    by_structure(folder)
        .or_else(|| pairs_in_one(folder))
        .or_else(|| annotations::found(&folder.path, true))
        .or_else(|| frames_only(folder))
        .or_else(|| videos(folder))
}

/// Advice from the folders' structure: they belong together, or to the parent folder.
pub fn by_structure(folder: &Folder) -> Option<String> {
    let path = folder.path.display();
    if is_half(folder) {
        let parent = folder.path.parent().unwrap_or(&folder.path);
        return Some(format!("this is one half of a data set; use {}", parent.display()));
    }
    if folder.path.join("GT").is_dir() && !folder.path.join("Frame").is_dir() {
        return Some(format!(
            "masks in GT/ without frames. SUN-SEG's frames come from the SUN database: `autosam-video data sunseg-reorganize --positive SUN --annotations SUN-SEG` (this is {path})"
        ));
    }
    two_folders(folder)
}

/// Two folders with matching file names.
fn two_folders(folder: &Folder) -> Option<String> {
    let inside: Vec<Folder> = folder.folders.iter().filter_map(|f| Folder::read(f).ok()).collect();
    let mut best: Option<(usize, &Folder, &Folder)> = None;
    for (a, b) in
        inside.iter().flat_map(|a| inside.iter().map(move |b| (a, b))).filter(|(a, b)| a.path != b.path)
    {
        let agreed = pairing::agreement(&a.images, &b.images);
        if agreed > 0 && best.is_none_or(|(most, ..)| agreed > most) {
            best = Some((agreed, a, b));
        }
    }
    let (agreed, a, b) = best?;
    let (images, masks) = if looks_like_mask(a) && !looks_like_mask(b) { (b, a) } else { (a, b) };
    let command = |from: &Folder, to: &str| match file_name(&from.path) == to {
        true => None,
        false => Some(format!("mv '{}' '{}'", from.path.display(), folder.path.join(to).display())),
    };
    let commands: Vec<String> =
        [command(images, "images"), command(masks, "masks")].into_iter().flatten().collect();
    Some(format!(
        "{} and {} have {agreed} names in common; the nearest layout is stills, images/ and masks/: `{}`",
        file_name(&images.path),
        file_name(&masks.path),
        commands.join(" && ")
    ))
}

/// Whether the folder's first image has few values.
fn looks_like_mask(folder: &Folder) -> bool {
    let levels = folder.images.first().and_then(|(_, path)| Levels::open(path).ok());
    levels.is_some_and(|l| l.values.as_raw().iter().collect::<HashSet<_>>().len() <= 8)
}

/// Files of one folder, half of which are named like the others with a suffix.
fn pairs_in_one(folder: &Folder) -> Option<String> {
    let names: HashSet<&str> = folder.images.iter().map(|(n, _)| n.as_str()).collect();
    let mut ends: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (name, _) in &folder.images {
        let cut = name.char_indices().skip(1).map(|(i, _)| i).find(|i| names.contains(&name[..*i]));
        if let Some(end) = cut.map(|i| &name[i..]) {
            *ends.entry(end).or_default() += 1;
        }
    }
    let (end, count) = ends.into_iter().max_by_key(|(_, n)| *n)?;
    if 3 * count < folder.images.len() {
        return None;
    }
    let (_, path) = folder.images.iter().find(|(n, _)| n.ends_with(end) && n != end)?;
    let kind = path.extension().unwrap_or_default().to_string_lossy();
    Some(format!(
        "{count} names are those of other files followed by `{end}`; the nearest layout is masks beside images, `_mask`: `cd '{}' && for f in *'{end}.{kind}'; do mv \"$f\" \"${{f%'{end}.{kind}'}}_mask.{kind}\"; done`",
        folder.path.display()
    ))
}

/// Images without possible masks.
fn frames_only(folder: &Folder) -> Option<String> {
    let inside: Vec<Folder> = folder.folders.iter().filter_map(|f| Folder::read(f).ok()).collect();
    let images = folder.images.len() + inside.iter().map(|f| f.images.len()).sum::<usize>();
    let path = folder.path.display();
    (images > 0).then(|| {
        format!(
            "{images} images without masks. Put masks with the same names into masks/ next to images/; put polyp-free frames into a folder case1: `mkdir -p SUN-Negative && mv '{path}' SUN-Negative/case1`"
        )
    })
}

fn videos(folder: &Folder) -> Option<String> {
    let is_video = |p: &Path| {
        let ending = p.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        p.is_file() && VIDEOS.contains(&ending.as_str())
    };
    let count = super::list(&folder.path, is_video).ok()?.len();
    (count > 0).then(|| {
        format!(
            "{count} videos, no images; process them with `autosam-video run --input {}`",
            folder.path.display()
        )
    })
}
