//! SUN-SEG's reorganisation step: adds the SUN database's frames to SUN-SEG's annotations.

use super::{SPLITS, folders, image_files};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Result of [`sunseg`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Cases of the SUN database that were found.
    pub cases: usize,
    pub clips: usize,
    pub frames: usize,
    /// Masks without a frame, with the expected location.
    pub missing: Vec<String>,
}

/// Puts the frames below the folders in `positive` (`SUN-Positive/case1/*.jpg`, or the parts of the SUN database as
/// downloaded, `sundatabase_positive_part1/case1/*.jpg`) and the annotations of `annotations`
/// (`TrainDataset/GT/case1_1/*.png` and so on) together in `out`, which may be `annotations` itself: `Frame/` gets the
/// frame of every mask in `GT/`. Files are linked if the file system supports it, otherwise copied; existing files are
/// kept.
///
/// `done` is called after each clip. Follows the data set's `reorganize.py` (SUN-SEG, arXiv 2203.14291).
///
/// # Errors
/// If `annotations` contains no split, or a folder cannot be read or written.
pub fn sunseg(
    positive: &[PathBuf],
    annotations: &Path,
    out: &Path,
    mut done: impl FnMut(&Report),
) -> Result<Report> {
    let splits: Vec<&str> = SPLITS.into_iter().filter(|s| annotations.join(s).join("GT").is_dir()).collect();
    if splits.is_empty() {
        return Err(Error::data(
            annotations,
            format!("no SUN-SEG annotations: expected {}/GT or the GT of another split", SPLITS[0]),
        ));
    }
    let mut cases = BTreeMap::new();
    for dir in positive {
        find_cases(dir, DEPTH, &mut cases)?;
    }
    if cases.is_empty() {
        let dirs: Vec<_> = positive.iter().map(|d| d.display().to_string()).collect();
        return Err(Error::data(
            dirs.join(", "),
            "no folder case1, case2, … with frames in or below it; give SUN-Positive, or the folder that contains sundatabase_positive_part1 and part2",
        ));
    }
    let mut report = Report { cases: cases.len(), ..Report::default() };
    for split in splits {
        for clip in folders(&annotations.join(split).join("GT"))? {
            let name = super::file_name(&clip);
            let case = super::case_of(&name);
            let sources = cases.get(case).map(Vec::as_slice).unwrap_or_default();
            let mut frames: HashMap<String, PathBuf> = HashMap::new();
            for source in sources {
                frames.extend(image_files(source)?);
            }
            for (stem, mask) in image_files(&clip)? {
                let Some(frame) = frames.get(&stem) else {
                    let place = match sources {
                        [] => format!("{case}, which is not in any of the given folders"),
                        [first, ..] => first.display().to_string(),
                    };
                    report.missing.push(format!("{}: no frame {stem} in {place}", mask.display()));
                    continue;
                };
                place(frame, &out.join(split).join("Frame").join(&name))?;
                if out != annotations {
                    place(&mask, &out.join(split).join("GT").join(&name))?;
                }
                report.frames += 1;
            }
            report.clips += 1;
            done(&report);
        }
    }
    Ok(report)
}

/// Depth to which cases are searched below the given folders.
const DEPTH: usize = 3;

/// Adds the folders named `case…` with frames in and below `dir`.
fn find_cases(dir: &Path, depth: usize, cases: &mut BTreeMap<String, Vec<PathBuf>>) -> Result<()> {
    for folder in folders(dir)? {
        let name = super::file_name(&folder);
        // Polyp-free cases are numbered separately.
        if name.to_lowercase().contains("negative") {
            continue;
        }
        if name.starts_with("case") && !image_files(&folder)?.is_empty() {
            cases.entry(name).or_default().push(folder);
        } else if depth > 0 {
            find_cases(&folder, depth - 1, cases)?;
        }
    }
    Ok(())
}

/// Links or copies `file` into `dir`; copies are atomic.
fn place(file: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let to = dir.join(file.file_name().unwrap_or_default());
    if to.exists() || fs::hard_link(file, &to).is_ok() {
        return Ok(());
    }
    // Not durable, because there may be thousands.
    autosam_frame::fs::replace(&to, false, |out| {
        let mut from = fs::File::open(file).map_err(|e| Error::io(file, e))?;
        std::io::copy(&mut from, out).map(drop).map_err(|e| Error::io(&to, e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Dataset;

    #[test]
    fn frames_are_placed_next_to_their_masks() {
        let dir = tempfile::tempdir().unwrap();
        let save_image = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::GrayImage::new(4, 4).save(path).unwrap();
        };
        let (a, b) = ("case_M_1_0U_1_005_001-1_a13_image0001", "case_M_1_0U_1_005_001-1_a13_image0002");
        save_image(&format!("SUN-Positive/case1/{a}.jpg"));
        save_image(&format!("SUN-SEG/TrainDataset/GT/case1_1/{a}.png"));
        save_image(&format!("SUN-SEG/TrainDataset/GT/case1_1/{b}.png"));
        let (positive, annotations) = (dir.path().join("SUN-Positive"), dir.path().join("SUN-SEG"));
        for out in ["SUN-SEG", "elsewhere"] {
            let out = dir.path().join(out);
            for _ in 0..2 {
                let report = sunseg(std::slice::from_ref(&positive), &annotations, &out, |_| {}).unwrap();
                assert_eq!((report.clips, report.frames, report.missing.len()), (1, 1, 1));
                assert!(report.missing[0].contains(b), "{:?}", report.missing);
            }
            assert_eq!(Dataset::sunseg(&out, "TrainDataset").unwrap().items.len(), 1);
        }
        let text =
            sunseg(std::slice::from_ref(&positive), &positive, &annotations, |_| {}).unwrap_err().to_string();
        assert!(text.contains("TrainDataset/GT"), "{text}");
    }
}
