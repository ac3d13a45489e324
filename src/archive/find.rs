//! Finds the videos in a folder.

use super::Video;
use crate::video::dicom;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// File extensions of videos.
const ENDINGS: [&str; 37] = [
    "mp4", "m4v", "mkv", "webm", "mov", "avi", "divx", "mpg", "mpeg", "mpe", "m1v", "m2v", "mod", "tod",
    "vob", "ts", "mts", "m2ts", "m2t", "wmv", "asf", "flv", "f4v", "3gp", "3g2", "mxf", "dv", "dif", "ogv",
    "ogm", "h264", "264", "h265", "265", "hevc", "mjpg", "mjpeg",
];

/// Result of [`find`].
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Sorted by path.
    pub videos: Vec<Video>,
    /// Files that are not videos, sorted by path.
    pub left_out: Vec<LeftOut>,
}

/// A file that is not processed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Below the input.
    pub relative: PathBuf,
    pub reason: String,
}

/// Finds the videos in `dir` and its subfolders by file extension, and DICOM files with video under any name. Hidden files
/// and linked folders are ignored.
///
/// # Errors
/// If a folder cannot be read.
pub fn find(dir: &Path) -> Result<Found> {
    let mut found = Found::default();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
            let entry = entry.map_err(|e| Error::io(&folder, e))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().map_err(|e| Error::io(&path, e))?;
            if kind.is_dir() {
                folders.push(path);
                continue;
            }
            let relative = path.strip_prefix(dir).unwrap_or(&path).to_owned();
            match refused(&path) {
                None => found.videos.push(Video { path, relative }),
                Some(reason) => found.left_out.push(LeftOut { relative, reason }),
            }
        }
    }
    found.videos.sort_by(|a, b| a.relative.cmp(&b.relative));
    found.left_out.sort();
    Ok(found)
}

/// The reason why the file at `path` is not a video; `None` if it is one.
fn refused(path: &Path) -> Option<String> {
    if path.is_dir() {
        return Some("a linked folder".into());
    }
    if !path.is_file() {
        return Some("not a file".into());
    }
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if ENDINGS.contains(&ending.as_str()) {
        return None;
    }
    if dicom::is_dicom(path) {
        return dicom::check(path).err().map(|e| e.to_string());
    }
    Some("not a video by its file extension".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn videos_are_found_at_any_depth_and_other_files_are_listed_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["b/c/x.MP4", "a.mkv", "tower.VOB", "d.mxf", "note.txt", "b/s.jpg", ".hidden/y.mp4", "b/.z.mp4"]
        {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("b"), dir.path().join("link")).unwrap();
        let found = find(dir.path()).unwrap();
        let names: Vec<_> = found.videos.iter().map(Video::name).collect();
        assert_eq!(names, ["a.mkv", "b/c/x.MP4", "d.mxf", "tower.VOB"]);
        let left: Vec<_> =
            found.left_out.iter().map(|l| (l.relative.to_str().unwrap(), l.reason.as_str())).collect();
        let ending = "not a video by its file extension";
        assert_eq!(left, [("b/s.jpg", ending), ("link", "a linked folder"), ("note.txt", ending)]);
    }

    #[test]
    fn no_extension_is_listed_twice() {
        let mut endings = ENDINGS.to_vec();
        endings.sort();
        endings.dedup();
        assert_eq!(endings.len(), ENDINGS.len());
    }
}
