//! Archives: a folder of videos to masks on disk, by as many processes on as many machines as one likes.
//!
//! Each video becomes a folder of its own below the output, under the video's path, which appears by one rename when it is
//! complete: what is there is done. Who works on a video holds a lock on a file for it; the kernel lets go of the lock when
//! the process ends, however it ends, so a killed process costs the video in its hands and nothing else, and the next to
//! come begins that one anew. A video that cannot be read is told and the others go on.
//!
//! ```text
//! OUT/index.html, OUT/summary.csv     every video of the input: done, failed with the reason, or open
//! OUT/a/b.mp4/summary.json            how it was made and what was found; OUT/a/b.mp4/frames.csv: frame by frame
//! OUT/a/b.mp4/masks/000000.png        by choice: PNG, COCO RLE (coco.json), DICOM SEG (segmentation-0001.dcm, …)
//! OUT/.autosam                        locks, work in hand, reasons of failures; may be deleted when nobody works
//! ```

mod coco;
mod page;
mod segmentation;

use crate::engine::{Detection, Engine};
use crate::frame::Frame;
use crate::frame::region::Region;
use crate::video::Reader;
use crate::weights::{self, sha256_of};
use crate::{Error, Result, write_atomically, write_png};
use image::{DynamicImage, GrayImage};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

pub use page::{State, write_pages};

/// Endings of what is taken for video.
const ENDINGS: [&str; 13] =
    ["mp4", "m4v", "mkv", "webm", "mov", "avi", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "ogv"];

/// What is written of each video beside `frames.csv` and `summary.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `masks/NNNNNN.png`, one a frame, 255 polyp, 0 not.
    Png,
    /// `coco.json`: COCO's annotations, masks as compressed run lengths.
    Coco,
    /// `segmentation-NNNN.dcm`: DICOM Segmentation objects of the frames with a mark.
    DicomSeg,
}

/// What the masks were made with; a video's folder tells it, and a folder made otherwise is not taken for done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Making {
    /// SHA-256 of the weights.
    pub model: String,
    pub threshold: f32,
    pub min_area: f32,
    #[serde(default)]
    pub hysteresis: f32,
    pub mask_mode: String,
    pub roi: Region,
    pub formats: Vec<Format>,
}

/// A video's `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its path below the input.
    pub video: String,
    pub bytes: u64,
    pub sha256: String,
    /// Of the first picture.
    pub width: u32,
    pub height: u32,
    pub frames_per_second: f64,
    pub frames: u64,
    pub marked_frames: u64,
    /// First and last frame of each stretch of frames with a mark.
    pub stretches: Vec<(u64, u64)>,
    /// The largest region of any frame, as part of the picture, 0 to 1.
    pub largest_area: f32,
    pub seconds_taken: f64,
    pub program: String,
    pub making: Making,
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

    /// The name of its files in `.autosam`: short, whatever the path.
    fn id(&self) -> String {
        let mut id = weights::sha256(self.relative.as_os_str().as_encoded_bytes());
        id.truncate(24);
        id
    }
}

/// The videos in `dir` and the folders in it, sorted by path; hidden ones and linked folders left out.
pub fn find(dir: &Path) -> Result<Vec<Video>> {
    let mut found = Vec::new();
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
            let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if ENDINGS.contains(&ending.as_str()) && path.is_file() {
                let relative = path.strip_prefix(dir).unwrap_or(&path).to_owned();
                found.push(Video { path, relative });
            }
        }
    }
    found.sort_by(|a, b| a.relative.cmp(&b.relative));
    Ok(found)
}

/// Part `index` (from 0) of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// `i/n` with i from 0, as array and indexed jobs count.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err(format!("{text:?} is not i/n with i from 0 to n-1, such as 0/4")),
        }
    }
}

/// Work on a folder of videos.
pub struct Archive {
    pub videos: Vec<Video>,
    pub output: PathBuf,
    pub making: Making,
    /// Which of `videos` this process takes.
    pub shard: Option<Shard>,
    /// Do again what is there.
    pub redo: bool,
}

/// What became of a video.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Box<Summary>),
    /// It was there already.
    Skipped,
    /// Another process has it in hand.
    Elsewhere,
    Failed(String),
    /// Ctrl-C came first; the next run begins it anew.
    Interrupted,
}

/// Counts of [`Outcome`]s, and what failed and why.
#[derive(Debug, Default)]
pub struct Tally {
    pub done: usize,
    pub skipped: usize,
    pub elsewhere: usize,
    pub interrupted: usize,
    pub failed: Vec<(String, String)>,
}

impl Archive {
    /// Works on this process's videos with `jobs` engines beside each other; `tell` hears of each outcome. The pages are
    /// written at the end.
    ///
    /// # Errors
    /// Where nothing can be done at all: an engine that does not start, an output that cannot be written.
    pub fn run(
        &self,
        jobs: usize,
        engine: &(dyn Fn() -> Result<Engine> + Sync),
        stop: &AtomicBool,
        tell: &(dyn Fn(&Video, &Outcome) + Sync),
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
                    // Where it was the model that failed, the next video shall not find it resting.
                    worker = engine()?;
                }
                tell(video, &outcome);
                let mut tally = tally.lock().unwrap_or_else(|e| e.into_inner());
                match outcome {
                    Outcome::Done(_) => tally.done += 1,
                    Outcome::Skipped => tally.skipped += 1,
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
                Err(_) => Err(Error::invalid("a job panicked; the videos that are there are complete")),
            })
        })?;
        // Several processes may end at once; each writes what is on disk by then.
        let lock = self.output.join(".autosam/locks/pages");
        let file =
            OpenOptions::new().create(true).append(true).open(&lock).map_err(|e| Error::io(&lock, e))?;
        file.lock().map_err(|e| Error::io(&lock, e))?;
        write_pages(&self.videos, &self.output)?;
        Ok(tally.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn hidden(&self, folder: &str, video: &Video) -> PathBuf {
        self.output.join(".autosam").join(folder).join(video.id())
    }

    /// Takes the video's lock and works on it, unless it is done or in other hands.
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
            // For the pages, also those of other processes. Who cannot write it is told the reason all the same.
            let _ = write_atomically(&self.hidden("failed", video), error.to_string().as_bytes());
        })
    }

    /// Works on a video whose lock is held.
    fn held(&self, video: &Video, engine: &mut Engine, stop: &AtomicBool) -> Result<Outcome> {
        // Only now: who held the lock until a moment ago may have finished it.
        let place = self.output.join(&video.relative);
        if place.exists() && !self.redo {
            let summary = page::summary(&place)?;
            if summary.making != self.making {
                return Err(Error::data(
                    &place,
                    "made with another model or other settings; --redo does it again, another --output keeps both",
                ));
            }
            return Ok(Outcome::Skipped);
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
        if self.redo {
            clear(&place)?;
        }
        fs::rename(&work, &place).map_err(|e| Error::io(&place, e))?;
        // There is nothing to remove where it did not fail before.
        let _ = fs::remove_file(self.hidden("failed", video));
        Ok(Outcome::Done(Box::new(summary)))
    }

    /// Every frame with its own mask, into `work`. `None` where it was interrupted.
    fn segment(
        &self,
        video: &Video,
        work: &Path,
        engine: &mut Engine,
        stop: &AtomicBool,
    ) -> Result<Option<Summary>> {
        let begin = Instant::now();
        let bytes = fs::metadata(&video.path).map_err(|e| Error::io(&video.path, e))?.len();
        let sha256 = sha256_of(&video.path)?;
        let path = video.path.to_str().ok_or_else(|| Error::data(&video.path, "its name is not UTF-8"))?;
        let mut reader = Reader::open(path)?;
        let rate = reader.rate();
        let (width, height) = reader.size();
        engine.control().flush();
        let mut summary = Summary {
            video: video.name(),
            bytes,
            sha256,
            width,
            height,
            frames_per_second: f64::from(rate.numerator) / f64::from(rate.denominator.max(1)),
            frames: 0,
            marked_frames: 0,
            stretches: Vec::new(),
            largest_area: 0.0,
            seconds_taken: 0.0,
            program: format!("autosam-video {}", env!("CARGO_PKG_VERSION")),
            making: self.making.clone(),
        };
        let mut out = Outputs::create(work, &summary)?;
        while let Some((rgb, pts)) = reader.next_picture()? {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let detection = engine.segment(&Frame::rgb_image(&rgb), pts)?;
            let frame = summary.frames;
            summary.frames += 1;
            if let Some(largest) = detection.mask.regions.first() {
                summary.marked_frames += 1;
                summary.largest_area = summary.largest_area.max(largest.area);
                match summary.stretches.last_mut() {
                    Some((_, last)) if *last + 1 == frame => *last = frame,
                    _ => summary.stretches.push((frame, frame)),
                }
            }
            let time = pts.unwrap_or_else(|| rate.time(frame));
            out.write(frame, time, rgb.dimensions(), &detection)?;
        }
        out.finish()?;
        summary.seconds_taken = begin.elapsed().as_secs_f64();
        let text = serde_json::to_vec_pretty(&summary).map_err(|e| Error::invalid(e.to_string()))?;
        write_atomically(&work.join("summary.json"), &text)?;
        Ok(Some(summary))
    }
}

fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// The files that a video's frames go to.
struct Outputs {
    csv: BufWriter<File>,
    csv_path: PathBuf,
    masks: Option<PathBuf>,
    coco: Option<coco::Writer>,
    seg: Option<segmentation::Writer>,
}

impl Outputs {
    fn create(work: &Path, summary: &Summary) -> Result<Self> {
        let csv_path = work.join("frames.csv");
        let mut csv = BufWriter::new(File::create(&csv_path).map_err(|e| Error::io(&csv_path, e))?);
        csv.write_all(b"frame,time_s,regions,area,confidence,left,top,right,bottom\n")
            .map_err(|e| Error::io(&csv_path, e))?;
        let wants = |format| summary.making.formats.contains(&format);
        Ok(Self {
            csv,
            csv_path,
            masks: wants(Format::Png).then(|| work.join("masks")),
            coco: wants(Format::Coco)
                .then(|| coco::Writer::create(&work.join("coco.json"), summary))
                .transpose()?,
            seg: wants(Format::DicomSeg).then(|| segmentation::Writer::new(work, summary)),
        })
    }

    /// `frames.csv` tells the largest region: its area and place as parts of the picture, its mean probability.
    fn write(&mut self, frame: u64, time: u64, size: (u32, u32), detection: &Detection) -> Result<()> {
        let regions = &detection.mask.regions;
        let place = regions.first().map_or(",,,,,".to_owned(), |r| {
            let (area, sure) = (r.area, r.confidence);
            format!("{area:.6},{sure:.4},{:.5},{:.5},{:.5},{:.5}", r.left, r.top, r.right, r.bottom)
        });
        writeln!(self.csv, "{frame},{:.6},{},{place}", time as f64 / 1e9, regions.len())
            .map_err(|e| Error::io(&self.csv_path, e))?;
        if self.masks.is_none() && self.coco.is_none() && self.seg.is_none() {
            return Ok(());
        }
        let mask = detection.mask.enlarge(size.0 as usize, size.1 as usize);
        if let Some(coco) = &mut self.coco {
            coco.write(frame, size, &mask, regions.first().map_or(0.0, |r| r.confidence))?;
        }
        if let Some(seg) = &mut self.seg {
            seg.write(frame, size, &mask)?;
        }
        if let Some(dir) = &self.masks {
            let image = GrayImage::from_raw(size.0, size.1, mask)
                .ok_or_else(|| Error::Video("a mask of another size than its picture".into()))?;
            write_png(&dir.join(format!("{frame:06}.png")), &DynamicImage::ImageLuma8(image))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.csv.flush().map_err(|e| Error::io(&self.csv_path, e))?;
        self.coco.map_or(Ok(()), coco::Writer::finish)?;
        self.seg.map_or(Ok(()), segmentation::Writer::finish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_all_and_share_nothing() {
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

    #[test]
    fn videos_are_found_at_any_depth_and_by_their_endings() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/c/x.MP4", "a.mkv", "note.txt", ".hidden/y.mp4", "b/.z.mp4"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        let names: Vec<_> = find(dir.path()).unwrap().iter().map(Video::name).collect();
        assert_eq!(names, ["a.mkv", "b/c/x.MP4"]);
    }
}
