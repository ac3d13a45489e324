//! Archives: converts a folder of videos to masks on disk, with any number of processes and machines.
//!
//! Each video gets a folder with its relative path below the output. The folder appears by one rename when it is
//! complete: an existing folder is finished, unless the video has changed since. A process that works on a video holds a lock
//! on a file for it. The kernel releases the lock when the process ends in any way, so a killed process loses only its current
//! video, which another process starts from the beginning. A video that cannot be read is reported and the others continue. If
//! a video is cut short or damaged, its readable frames are processed, and its summary says what is missing.
//!
//! Times are in seconds since a video's first frame, by the container's timestamps, in every file that is written.
//!
//! ```text
//! OUT/index.html, OUT/summary.csv     every video of the input: done, failed with the reason, or open
//! OUT/a/b.mp4/summary.json            settings and results; OUT/a/b.mp4/frames.csv: frame by frame
//! OUT/a/b.mp4/masks/000000.png        optional: PNG, COCO RLE (coco.json), DICOM SEG (segmentation-0001.dcm, …), CVAT (cvat.xml)
//! OUT/.autosam                        locks, unfinished work, reasons of failures; may be deleted when no process runs
//! ```

pub(crate) mod coco;
pub(crate) mod cvat;
mod find;
mod page;
pub(crate) mod rle;
mod segmentation;
mod summary;

use crate::engine::{Detection, Engine};
use crate::frame::Frame;
use crate::frame::region::CropMode;
use crate::video::{Reader, Shape};
use crate::weights;
use crate::{Error, Result, write_atomically, write_png};
use fnv::FnvHasher;
use image::{DynamicImage, GrayImage};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

pub use find::{Found, LeftOut, find};
pub use page::{State, write_pages};
pub use summary::Summary;
use summary::seconds;
pub(crate) use summary::{Header, program};

/// Files written for each video in addition to `frames.csv` and `summary.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `masks/NNNNNN.png`, one per frame, 255 polyp, 0 background.
    Png,
    /// `coco.json`: COCO's annotations, masks as compressed run lengths.
    Coco,
    /// `segmentation-NNNN.dcm`: DICOM Segmentation objects of the frames with a detection.
    DicomSeg,
    /// `cvat.xml`: CVAT's "CVAT for video 1.1".
    Cvat,
}

/// Model and settings that the masks were made with. They are stored in a video's folder; a folder made with others does not
/// count as finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// SHA-256 of the weights.
    pub model: String,
    pub threshold: f32,
    pub min_area: f32,
    #[serde(default)]
    pub hysteresis: f32,
    pub mask_mode: String,
    pub roi: CropMode,
    pub formats: Vec<Format>,
}

/// One video of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Video {
    pub path: PathBuf,
    /// Below the input.
    pub relative: PathBuf,
}

impl Video {
    pub fn name(&self) -> String {
        self.relative.to_string_lossy().into_owned()
    }

    /// The name of its files in `.autosam`, short even if the path is long.
    fn id(&self) -> String {
        let mut id = weights::sha256(self.relative.as_os_str().as_encoded_bytes());
        id.truncate(24);
        id
    }
}

/// Part `index` (from 0) of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// Parses `i/n` with i from 0, as used by array and indexed jobs.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err(format!("invalid shard {text:?}: expected i/n with i from 0 to n-1, e.g. 0/4")),
        }
    }
}

/// The processing of a folder of videos.
pub struct Archive {
    pub videos: Vec<Video>,
    /// Files of the input that are not videos; the overview lists them.
    pub left_out: Vec<LeftOut>,
    pub output: PathBuf,
    pub provenance: Provenance,
    /// This process's share of `videos`.
    pub shard: Option<Shard>,
    /// Process finished videos again.
    pub redo: bool,
}

/// Outcome of a video.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Box<Summary>),
    /// It was finished by an earlier run.
    Skipped(Box<Summary>),
    /// Another process works on it.
    Elsewhere,
    Failed(String),
    /// Interrupted by Ctrl-C; the next run starts it from the beginning.
    Interrupted,
}

/// Counts of [`Outcome`]s, and failures with their reasons.
#[derive(Debug, Default)]
pub struct Tally {
    pub done: usize,
    pub skipped: usize,
    pub elsewhere: usize,
    pub interrupted: usize,
    pub failed: Vec<(String, String)>,
    /// Finished but incomplete videos, and what is missing.
    pub incomplete: Vec<(String, String)>,
}

impl Archive {
    /// Processes this process's videos with `jobs` parallel engines and calls `report` with each outcome. The overview is
    /// written at the end.
    ///
    /// # Errors
    /// If an engine does not start or the output cannot be written.
    pub fn run(
        &self,
        jobs: usize,
        engine: &(dyn Fn() -> Result<Engine> + Sync),
        stop: &AtomicBool,
        report: &(dyn Fn(&Video, &Outcome) + Sync),
    ) -> Result<Tally> {
        for folder in ["locks", "work", "failed"] {
            let dir = self.output.join(".autosam").join(folder);
            fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        }
        let mine: Vec<&Video> = match self.shard {
            None => self.videos.iter().collect(),
            Some(s) => self.videos.iter().skip(s.index).step_by(s.count).collect(),
        };
        let next = AtomicUsize::new(0);
        let tally = Mutex::new(Tally::default());
        let work = || -> Result<()> {
            let mut worker = engine()?;
            while let Some(video) = mine.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = if stop.load(Ordering::Relaxed) {
                    Outcome::Interrupted
                } else {
                    self.claimed(video, &mut worker, stop).unwrap_or_else(|e| Outcome::Failed(e.to_string()))
                };
                if matches!(outcome, Outcome::Failed(_)) {
                    // If the model failed, the next video must not start during the pause after the failure.
                    worker = engine()?;
                }
                report(video, &outcome);
                let mut tally = tally.lock();
                if let Outcome::Done(summary) | Outcome::Skipped(summary) = &outcome
                    && !summary.problems.is_empty()
                {
                    tally.incomplete.push((video.name(), summary.problems.join("; ")));
                }
                match outcome {
                    Outcome::Done(_) => tally.done += 1,
                    Outcome::Skipped(_) => tally.skipped += 1,
                    Outcome::Elsewhere => tally.elsewhere += 1,
                    Outcome::Interrupted => tally.interrupted += 1,
                    Outcome::Failed(reason) => tally.failed.push((video.name(), reason)),
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..jobs.clamp(1, mine.len().max(1))).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| match t.join() {
                Ok(result) => result,
                Err(_) => Err(Error::engine("a job panicked; the videos in the output are complete")),
            })
        })?;
        // Several processes may end at the same time; each writes the current state of the disk.
        let lock = self.output.join(".autosam/locks/pages");
        let file =
            OpenOptions::new().create(true).append(true).open(&lock).map_err(|e| Error::io(&lock, e))?;
        file.lock().map_err(|e| Error::io(&lock, e))?;
        write_pages(&self.videos, &self.left_out, &self.output)?;
        Ok(tally.into_inner())
    }

    fn hidden(&self, folder: &str, video: &Video) -> PathBuf {
        self.output.join(".autosam").join(folder).join(video.id())
    }

    /// Locks and processes the video, unless it is finished or locked by another process.
    fn claimed(&self, video: &Video, engine: &mut Engine, stop: &AtomicBool) -> Result<Outcome> {
        let lock = self.hidden("locks", video);
        let file =
            OpenOptions::new().create(true).append(true).open(&lock).map_err(|e| Error::io(&lock, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(Outcome::Elsewhere),
            Err(fs::TryLockError::Error(e)) => return Err(Error::io(&lock, e)),
        }
        self.held(video, engine, stop).inspect_err(|error| {
            // For the overview, also of other processes. The reason is returned even if this file cannot be written.
            let _ = write_atomically(&self.hidden("failed", video), error.to_string().as_bytes());
        })
    }

    /// Processes a video whose lock is held.
    fn held(&self, video: &Video, engine: &mut Engine, stop: &AtomicBool) -> Result<Outcome> {
        // Checked after locking: the previous holder of the lock may have finished it.
        let place = self.output.join(&video.relative);
        if place.exists() && !self.redo {
            let summary = page::summary(&place)?;
            if summary.provenance != self.provenance {
                return Err(Error::data(
                    &place,
                    "made with another model or other settings; use --redo to replace it, or another --output to keep both",
                ));
            }
            if !summary.outdated(&video.path)? {
                return Ok(Outcome::Skipped(Box::new(summary)));
            }
        }
        let work = self.hidden("work", video);
        clear(&work)?;
        fs::create_dir_all(&work).map_err(|e| Error::io(&work, e))?;
        let summary = match self.segment(video, &work, engine, stop) {
            Ok(Some(summary)) => summary,
            Ok(None) => {
                clear(&work)?;
                return Ok(Outcome::Interrupted);
            }
            Err(e) => {
                clear(&work)?;
                return Err(e);
            }
        };
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        }
        // Remove the results of the previous version of the file.
        clear(&place)?;
        fs::rename(&work, &place).map_err(|e| Error::io(&place, e))?;
        // The file exists only if the video failed before.
        let _ = fs::remove_file(self.hidden("failed", video));
        Ok(Outcome::Done(Box::new(summary)))
    }

    /// Writes every frame's mask to `work`. Returns `None` if interrupted.
    fn segment(
        &self,
        video: &Video,
        work: &Path,
        engine: &mut Engine,
        stop: &AtomicBool,
    ) -> Result<Option<Summary>> {
        let begin = Instant::now();
        let path = video.path.to_str().ok_or_else(|| Error::data(&video.path, "its name is not UTF-8"))?;
        let mut reader = Reader::open(path)?;
        let mut summary = Summary::begun(video, &reader, &self.provenance)?;
        let (mut out, mut shape) = (None, None);
        while let Some(frame) = reader.next_frame()? {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if shape != Some(Shape::of(&frame)) {
                // State from another video or frame size must not carry over.
                engine.control().flush();
                shape = Some(Shape::of(&frame));
            }
            let out = match &mut out {
                Some(out) => out,
                None => {
                    summary.pixel_aspect = frame.pixel_aspect;
                    out.insert(Outputs::create(work, &summary, self.first_id(video))?)
                }
            };
            let seen = Frame::rgb_image(&frame.rgb).with_pixel_aspect(frame.pixel_aspect);
            let detection = engine.segment(&seen, Some(frame.time))?;
            let number = summary.frames;
            summary.count(frame.time, &detection);
            out.write(number, frame.time, frame.rgb.dimensions(), &detection)?;
        }
        summary.frames_per_second = reader.measured_rate();
        (summary.start_s, summary.seconds) = (seconds(reader.start()), seconds(reader.end()));
        summary.problems = reader.problems();
        summary.notes = reader.notes();
        if let Some(out) = out {
            summary.notes.extend(out.finish()?);
        }
        summary.seconds_taken = begin.elapsed().as_secs_f64();
        let text = serde_json::to_vec_pretty(&summary).map_err(|e| Error::invalid(e.to_string()))?;
        write_atomically(&work.join("summary.json"), &text)?;
        Ok(Some(summary))
    }

    /// First frame id of the video in COCO files, unique across the archive so that files can be merged. It is derived from the
    /// video's path and incremented if another video has the same. Each video has room for two million frames.
    fn first_id(&self, video: &Video) -> u64 {
        // 31 bits of FNV-1a: together with 21 bits for frames they fit into the 53 bits of a JSON float.
        let hash = |v: &Video| {
            let mut hasher = FnvHasher::default();
            hasher.write(v.relative.as_os_str().as_encoded_bytes());
            let all = hasher.finish();
            (all ^ all >> 32) & 0x7fff_ffff
        };
        let mine = hash(video);
        let before = self.videos.iter().take_while(|v| v.relative != video.relative);
        (mine + before.filter(|v| hash(v) == mine).count() as u64) << 21
    }
}

fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// The output files of a video.
struct Outputs {
    csv: BufWriter<File>,
    csv_path: PathBuf,
    masks: Option<PathBuf>,
    coco: Option<coco::Writer>,
    seg: Option<segmentation::Writer>,
    cvat: Option<cvat::Writer>,
}

impl Outputs {
    /// `first_id`: see [`Archive::first_id`].
    fn create(work: &Path, summary: &Summary, first_id: u64) -> Result<Self> {
        let csv_path = work.join("frames.csv");
        let mut csv = BufWriter::new(File::create(&csv_path).map_err(|e| Error::io(&csv_path, e))?);
        csv.write_all(b"frame,time_s,regions,area,confidence,left,top,right,bottom\n")
            .map_err(|e| Error::io(&csv_path, e))?;
        let wants = |format| summary.provenance.formats.contains(&format);
        Ok(Self {
            csv,
            csv_path,
            masks: wants(Format::Png).then(|| work.join("masks")),
            coco: wants(Format::Coco)
                .then(|| coco::Writer::create(&work.join("coco.json"), &summary.header(), first_id))
                .transpose()?,
            seg: wants(Format::DicomSeg).then(|| segmentation::Writer::new(work, summary)),
            cvat: wants(Format::Cvat)
                .then(|| cvat::Writer::create(&work.join("cvat.xml"), &summary.header()))
                .transpose()?,
        })
    }

    /// Describes the largest region in `frames.csv`: area and position as fractions of the frame, mean probability.
    fn write(&mut self, frame: u64, time: u64, size: (u32, u32), detection: &Detection) -> Result<()> {
        let regions = &detection.mask.regions;
        let place = regions.first().map_or(",,,,,".to_owned(), |r| {
            let (area, sure) = (r.area, r.confidence);
            format!("{area:.6},{sure:.4},{:.5},{:.5},{:.5},{:.5}", r.left, r.top, r.right, r.bottom)
        });
        writeln!(self.csv, "{frame},{:.6},{},{place}", seconds(time), regions.len())
            .map_err(|e| Error::io(&self.csv_path, e))?;
        if self.masks.is_none() && self.coco.is_none() && self.seg.is_none() && self.cvat.is_none() {
            return Ok(());
        }
        let mask = detection.mask.enlarge(size.0 as usize, size.1 as usize);
        if let Some(coco) = &mut self.coco {
            coco.write(frame, size, &mask, regions.first().map_or(0.0, |r| r.confidence))?;
        }
        if let Some(seg) = &mut self.seg {
            seg.write(frame, time, size, &mask)?;
        }
        if let Some(cvat) = &mut self.cvat {
            cvat.write(frame, size, &mask, cvat::MadeBy::Program)?;
        }
        if let Some(dir) = &self.masks {
            let image = GrayImage::from_raw(size.0, size.1, mask)
                .ok_or_else(|| Error::Video("a mask differs in size from its frame".into()))?;
            write_png(&dir.join(format!("{frame:06}.png")), &DynamicImage::ImageLuma8(image))?;
        }
        Ok(())
    }

    /// Remarks on the written files.
    fn finish(mut self) -> Result<Option<String>> {
        self.csv.flush().map_err(|e| Error::io(&self.csv_path, e))?;
        self.coco.map_or(Ok(()), coco::Writer::finish)?;
        self.cvat.map_or(Ok(()), cvat::Writer::finish)?;
        self.seg.map_or(Ok(None), segmentation::Writer::finish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_all_videos_without_overlap() {
        let videos: Vec<usize> = (0..11).collect();
        let mut all: Vec<usize> = (0..4)
            .flat_map(|i| {
                let s: Shard = format!("{i}/4").parse().unwrap();
                videos.iter().skip(s.index).step_by(s.count).copied().collect::<Vec<_>>()
            })
            .collect();
        all.sort();
        assert_eq!(all, videos);
        for bad in ["4/4", "1", "a/b", "-1/2", "0/0", ""] {
            assert!(bad.parse::<Shard>().unwrap_err().contains("0/4"), "{bad}");
        }
    }
}
