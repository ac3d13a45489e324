//! Writes synthetic sequences in SUN-SEG's layout.

use super::{Sequence, SequenceConfig};
use crate::{Error, Result};
use image::{GrayImage, RgbImage};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Configuration of the data set.
#[derive(Clone, Debug)]
pub struct DatasetConfig {
    /// Size and number of frames of each sequence (`polyps` is set here for each kind).
    pub sequence: SequenceConfig,
    /// Number of sequences with polyps: `SPLIT/{Frame,GT}/caseN_1/`.
    pub sequences: usize,
    /// Number of sequences without polyps: `SUN-Negative/caseN/`, frames only.
    pub negatives: usize,
    pub seed: u64,
    /// Folder below the data set's, such as `TrainDataset` or `TestEasyDataset/Unseen`.
    pub split: PathBuf,
    /// Whether to write into a folder that is not empty; sequences of the same name are replaced.
    pub force: bool,
    /// JPEG quality of frames, 1..=100.
    pub quality: u8,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self {
            sequence: SequenceConfig::default(),
            sequences: 1,
            negatives: 0,
            seed: 0,
            split: "TrainDataset".into(),
            force: false,
            quality: 92,
        }
    }
}

/// Summary of the written data.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Number of sequences, including negatives.
    pub sequences: usize,
    pub frames: usize,
    /// Number of frames with a polyp in their mask.
    pub with_polyp: usize,
}

/// The seed of a data set's sequence: `number` counts sequences with polyps, or negatives, from 0.
pub fn sequence_seed(seed: u64, number: usize, polyps: bool) -> u64 {
    // SplitMix64, so that consecutive numbers yield unrelated seeds.
    let mut z =
        seed.wrapping_add((2 * number as u64 + u64::from(!polyps) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A frame's name without its ending. It has the parts by which SUN-SEG's own tools sort (before `-`, after `_a`, after
/// `_image`), and its text order is frame order too.
fn frame_name(sequence: usize, frame: usize) -> String {
    format!("synth_{sequence:04}-1_a1_image{:05}", frame + 1)
}

/// Renders and writes a data set. `each` is called after each frame, in frame order, with its image and mask (the mask
/// of a negative is empty). A sequence appears under its name only when it is complete. After an error, or when `stop`
/// becomes true ([`Error::Interrupted`]), only complete sequences remain.
///
/// # Errors
/// [`Error::Invalid`] for values out of range or a folder that is not empty without `force`; [`Error::Io`] and
/// [`Error::Image`] with the path that could not be written; errors of `each`.
pub fn write_dataset(
    dir: &Path,
    config: &DatasetConfig,
    stop: &AtomicBool,
    mut each: impl FnMut(&RgbImage, &GrayImage) -> Result<()>,
) -> Result<Summary> {
    if config.sequences + config.negatives == 0 {
        return Err(Error::invalid("synth: nothing to write: 0 sequences and 0 negatives"));
    }
    if !(1..=100).contains(&config.quality) {
        return Err(Error::invalid(format!(
            "synth: JPEG quality {} is not within 1 and 100",
            config.quality
        )));
    }
    if config.split.components().any(|c| !matches!(c, std::path::Component::Normal(_)))
        || config.split.as_os_str().is_empty()
    {
        return Err(Error::invalid(format!(
            "synth: split {:?} is not a folder below the data set's, such as TrainDataset",
            config.split
        )));
    }
    if !config.force && dir.is_dir() && fs::read_dir(dir).map_err(|e| Error::io(dir, e))?.next().is_some() {
        return Err(Error::invalid(format!(
            "{} is not empty; choose another folder, or --force to write into it and replace sequences of the same name",
            dir.display()
        )));
    }
    let mut writer = Writer { dir, config, stop, each: &mut each, summary: Summary::default() };
    for number in 0..config.sequences {
        writer.sequence(number, true)?;
    }
    for number in 0..config.negatives {
        writer.sequence(number, false)?;
    }
    Ok(writer.summary)
}

struct Writer<'a, F> {
    dir: &'a Path,
    config: &'a DatasetConfig,
    stop: &'a AtomicBool,
    each: &'a mut F,
    summary: Summary,
}

/// A folder that is deleted unless it has been moved to its final place.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // A failure only leaves unneeded files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl<F: FnMut(&RgbImage, &GrayImage) -> Result<()>> Writer<'_, F> {
    fn sequence(&mut self, number: usize, polyps: bool) -> Result<()> {
        let seed = sequence_seed(self.config.seed, number, polyps);
        let sequence = Sequence::new(seed, SequenceConfig { polyps, ..self.config.sequence.clone() })?;
        let partial = Partial(self.dir.join(format!(".partial-{}", std::process::id())));
        let (frames, masks) = (partial.0.join("Frame"), partial.0.join("GT"));
        make(&frames)?;
        if polyps {
            make(&masks)?;
        }
        let total = self.config.sequence.frames;
        let mut with_polyp = 0;
        // Enough to keep all threads busy, few enough to fit in memory.
        let batch = 4 * rayon::current_num_threads();
        for start in (0..total).step_by(batch) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let made: Vec<(RgbImage, GrayImage)> = (start..total.min(start + batch))
                .into_par_iter()
                .map(|i| {
                    let (image, mask) = sequence.frame(i);
                    let name = frame_name(number + 1, i);
                    save_jpeg(&frames.join(format!("{name}.jpg")), &image, self.config.quality)?;
                    if polyps {
                        let path = masks.join(format!("{name}.png"));
                        mask.save(&path).map_err(|e| Error::image(&path, e))?;
                    }
                    Ok((image, mask))
                })
                .collect::<Result<_>>()?;
            for (image, mask) in &made {
                with_polyp += usize::from(mask.pixels().any(|p| p.0[0] > 0));
                (self.each)(image, mask)?;
            }
        }
        if polyps {
            let split = self.dir.join(&self.config.split);
            let case = format!("case{}_1", number + 1);
            // Masks first, so that a folder of frames never exists without its masks.
            place(&masks, &split.join("GT").join(&case))?;
            place(&frames, &split.join("Frame").join(&case))?;
        } else {
            place(&frames, &self.dir.join("SUN-Negative").join(format!("case{}", number + 1)))?;
        }
        self.summary.sequences += 1;
        self.summary.frames += total;
        self.summary.with_polyp += with_polyp;
        Ok(())
    }
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))
}

/// Moves a finished folder to its place and replaces an existing one.
fn place(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        make(parent)?;
    }
    if to.exists() {
        fs::remove_dir_all(to).map_err(|e| Error::io(to, e))?;
    }
    fs::rename(from, to).map_err(|e| Error::io(to, e))
}

fn save_jpeg(path: &Path, image: &RgbImage, quality: u8) -> Result<()> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode_image(image)
        .map_err(|e| Error::image(path, e))?;
    fs::write(path, bytes).map_err(|e| Error::io(path, e))
}
