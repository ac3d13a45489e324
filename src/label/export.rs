//! The labels as a data set: frames with their masks in the layout of sequences, COCO and CVAT.

use super::frames::Frames;
use super::session::{Labels, Status};
use super::store::Clip;
use crate::archive::cvat::MadeBy;
use crate::archive::{Header, coco, cvat, program, rle};
use crate::{Error, Result, write_atomically, write_png};
use image::{DynamicImage, GrayImage};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a data set has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// Frames with a polyp.
    pub polyp: usize,
    /// Frames labelled as polyp-free.
    pub empty: usize,
    /// Propagated masks that are left out because nobody accepted them.
    pub waiting: usize,
    /// Labelled frames that are left out because they are neither loaded nor written earlier.
    pub not_loaded: usize,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames with a polyp, {} without", self.polyp, self.empty)?;
        if self.waiting > 0 {
            write!(f, "; {} propagated masks wait for acceptance and are left out", self.waiting)?;
        }
        if self.not_loaded > 0 {
            write!(
                f,
                "; {} labelled frames are not loaded (--from, --seconds) and are left out",
                self.not_loaded
            )?;
        }
        Ok(())
    }
}

/// Writes the frames whose labels are final to `dir` and removes those of earlier saves that are not any more. Images that exist are
/// kept.
///
/// # Errors
/// If a file cannot be written.
pub fn write(dir: &Path, clip: &Clip, frames: &Frames, labels: &Labels) -> Result<Exported> {
    let (folder, (w, h)) = (folder_name(&clip.name), (clip.width, clip.height));
    let [images, masks] = ["Frame", "GT"].map(|kind| dir.join(kind).join(&folder));
    let name = |frame: u64| format!("{frame:06}.png");
    let header = Header { video: clip.name.clone(), program: program(), width: w, height: h };
    let path = format!("Frame/{folder}");
    let mut coco = coco::Writer::create(&partial(dir, "coco.json"), &header, 0)?
        .named(move |frame| format!("{path}/{}", name(frame)));
    let mut cvat = cvat::Writer::create(&partial(dir, "cvat.xml"), &header)?;
    let (mut exported, mut kept) = (Exported::default(), BTreeSet::new());
    for (frame, label) in labels {
        if !label.is_final() {
            exported.waiting += 1;
            continue;
        }
        let image = images.join(name(*frame));
        if !image.exists() {
            if frames.jpeg(*frame).is_none() {
                exported.not_loaded += 1;
                continue;
            }
            write_png(&image, &DynamicImage::ImageRgb8(frames.rgb(*frame)?))?;
        }
        let damaged = || Error::data(dir, format!("the mask of frame {frame} does not fit the clip"));
        let mask = match &label.mask {
            Some(mask) => rle::mask(mask, w as usize, h as usize).ok_or_else(damaged)?,
            None => vec![0; w as usize * h as usize],
        };
        let made = if label.status == Status::Propagated { MadeBy::Program } else { MadeBy::Person };
        coco.write(*frame, (w, h), &mask, label.confidence.unwrap_or(1.0))?;
        cvat.write(*frame, (w, h), &mask, made)?;
        let mask = GrayImage::from_raw(w, h, mask).ok_or_else(damaged)?;
        write_if_new(&masks.join(name(*frame)), mask)?;
        kept.insert(name(*frame));
        *(if label.mask.is_some() { &mut exported.polyp } else { &mut exported.empty }) += 1;
    }
    coco.finish()?;
    cvat.finish()?;
    for file in ["coco.json", "cvat.xml"] {
        let to = dir.join(file);
        std::fs::rename(partial(dir, file), &to).map_err(|e| Error::io(&to, e))?;
    }
    // The mask goes first: an image without a mask is named by `data check`, a mask without an image is too.
    remove_others(&masks, &kept)?;
    remove_others(&images, &kept)?;
    Ok(exported)
}

fn partial(dir: &Path, file: &str) -> PathBuf {
    dir.join(format!("{file}.partial"))
}

/// The clip's name as the name of a sequence: letters, digits, `-`, `_` and `.`.
fn folder_name(clip: &str) -> String {
    let stem = Path::new(clip).file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = stem.trim_start_matches('.').chars().map(plain).collect();
    if name.is_empty() { "clip".into() } else { name }
}

/// Writes `mask` as PNG unless the file has these bytes already.
fn write_if_new(path: &Path, mask: GrayImage) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| Error::image(path, e))?;
    let same = std::fs::read(path).is_ok_and(|old| old == *bytes.get_ref());
    if same { Ok(()) } else { write_atomically(path, bytes.get_ref()) }
}

/// Removes the frames in `folder` (six digits or more and `.png`) that are not in `kept`.
fn remove_others(folder: &Path, kept: &BTreeSet<String>) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(folder, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let digits = name.strip_suffix(".png").filter(|n| n.len() >= 6);
        let ours = digits.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        if ours && !kept.contains(&name) {
            std::fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_named_after_the_clip() {
        for (clip, name) in
            [("case 7 (2).mp4", "case_7__2_"), ("a.b.mkv", "a.b"), ("..mp4", "clip"), ("é.mp4", "é")]
        {
            assert_eq!(folder_name(clip), name);
        }
    }

    #[test]
    fn only_frames_of_the_data_set_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["000001.png", "000002.png", "notes.png", "12.png", "000003.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_others(dir.path(), &BTreeSet::from(["000001.png".to_owned()])).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["000001.png", "000003.txt", "12.png", "notes.png"]);
    }
}
