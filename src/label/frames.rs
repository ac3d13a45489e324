//! The clip's frames in memory, as JPEG of high quality. Nothing is written to disk.

use crate::video::Reader;
use crate::{Error, Result};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// JPEG quality; the encoder does not subsample colours.
const QUALITY: u8 = 95;
/// Threads that compress frames.
const MOST_THREADS: usize = 8;

/// The part of a clip to load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Seconds after the first frame.
    pub from: f64,
    /// Length in seconds; to the end if `None`.
    pub seconds: Option<f64>,
    /// Most bytes of all frames together.
    pub memory: u64,
}

/// A frame: when it is shown, in nanoseconds since the clip's first, and its JPEG.
type Stored = (u64, Vec<u8>);

/// Consecutive frames of a clip.
#[derive(Debug)]
pub struct Frames {
    first: u64,
    frames: Vec<Stored>,
    size: (u32, u32),
    pixel_aspect: (u32, u32),
    /// Remarks on the clip, such as missing parts.
    pub problems: Vec<String>,
}

impl Frames {
    /// Decodes `part` of the video file `input` and calls `progress` with the number of frames read so far.
    ///
    /// # Errors
    /// If the file is not a video, the part has no frames, its frames differ in size, or they need more memory than allowed.
    pub fn read(input: &Path, part: &Part, mut progress: impl FnMut(u64)) -> Result<Self> {
        let name = input.to_str().ok_or_else(|| Error::data(input, "its name is not UTF-8"))?;
        if input.is_dir() {
            return Err(Error::data(input, "is a folder; --input takes a video file"));
        }
        let mut reader = Reader::open(name)?;
        let (used, stored) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let (queue, waiting) = crossbeam_channel::bounded::<(u64, u64, RgbImage)>(threads);
        let found = std::thread::scope(|scope| {
            let compress = || -> Result<()> {
                let mut outcome = Ok(());
                // After an error the queue is still emptied, so that the reader does not wait for it.
                for (index, time, rgb) in waiting.clone() {
                    outcome = outcome.and_then(|()| {
                        let jpeg = compressed(&rgb)?;
                        used.fetch_add(jpeg.len() as u64, Ordering::Relaxed);
                        stored.lock().insert(index, (time, jpeg));
                        Ok(())
                    });
                }
                outcome
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(compress)).collect();
            let read = feed(&mut reader, input, part, &queue, &used, &mut progress);
            drop(queue);
            for worker in workers {
                worker.join().map_err(|_| Error::engine("compressing a frame panicked"))??;
            }
            read
        })?;
        let frames: Vec<Stored> = stored.into_inner().into_values().collect();
        // The last frames were compressed after the reader had looked.
        let bytes = used.into_inner();
        if bytes > part.memory {
            let seconds = frames
                .last()
                .zip(frames.first())
                .map_or(0.0, |(last, first)| (last.0 - first.0) as f64 / 1e9);
            return Err(too_large(input, part, seconds * part.memory as f64 / bytes as f64));
        }
        let Found { first, size, pixel_aspect, whole } = found;
        let problems = [reader.notes(), if whole { reader.problems() } else { Vec::new() }].concat();
        Ok(Self { first, frames, size, pixel_aspect, problems })
    }

    /// The numbers of the frames in the file, from 0.
    pub fn numbers(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.frames.len() as u64
    }

    /// Width and height of every frame.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Pixel aspect ratio, width to height.
    pub fn pixel_aspect(&self) -> (u32, u32) {
        self.pixel_aspect
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> u64 {
        self.frames.iter().map(|(_, jpeg)| jpeg.len() as u64).sum()
    }

    fn at(&self, number: u64) -> Option<&Stored> {
        self.frames.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The time of frame `number` in nanoseconds since the clip's first; `None` for a frame that is not loaded.
    pub fn time(&self, number: u64) -> Option<u64> {
        self.at(number).map(|(time, _)| *time)
    }

    pub fn jpeg(&self, number: u64) -> Option<&[u8]> {
        self.at(number).map(|(_, jpeg)| jpeg.as_slice())
    }

    /// # Errors
    /// For a frame that is not loaded.
    pub fn rgb(&self, number: u64) -> Result<RgbImage> {
        let missing = || Error::invalid(format!("frame {number} is not loaded"));
        let image =
            image::load_from_memory_with_format(self.jpeg(number).ok_or_else(missing)?, ImageFormat::Jpeg);
        Ok(image.map_err(|e| Error::image(format!("frame {number}"), e))?.into_rgb8())
    }
}

/// The part that was read.
struct Found {
    /// Number of its first frame.
    first: u64,
    size: (u32, u32),
    pixel_aspect: (u32, u32),
    /// Whether the clip was read to its end.
    whole: bool,
}

/// Passes the frames of `part` to the threads that compress them.
fn feed(
    reader: &mut Reader,
    input: &Path,
    part: &Part,
    queue: &crossbeam_channel::Sender<(u64, u64, RgbImage)>,
    used: &AtomicU64,
    progress: &mut impl FnMut(u64),
) -> Result<Found> {
    let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
    let from = nanoseconds(part.from);
    let end = part.seconds.map_or(u64::MAX, |seconds| from.saturating_add(nanoseconds(seconds)));
    let (mut index, mut last, mut found) = (0, 0, None::<Found>);
    while let Some(frame) = reader.next_frame()? {
        let number = index;
        index += 1;
        progress(index);
        last = frame.time;
        if frame.time < from {
            continue;
        }
        if frame.time >= end {
            found = found.map(|found| Found { whole: false, ..found });
            break;
        }
        let found = found.get_or_insert(Found {
            first: number,
            size: frame.rgb.dimensions(),
            pixel_aspect: frame.pixel_aspect,
            whole: true,
        });
        if frame.rgb.dimensions() != found.size {
            let at = frame.time as f64 / 1e9;
            let text = format!(
                "the size of its frames changes at {at:.2} s; load the part before with --seconds, or the part after with --from"
            );
            return Err(Error::data(input, text));
        }
        if used.load(Ordering::Relaxed) > part.memory {
            return Err(too_large(input, part, (frame.time - from) as f64 / 1e9));
        }
        // Fails only if a thread ended with an error, which is then reported.
        if queue.send((number, frame.time, frame.rgb)).is_err() {
            break;
        }
    }
    let none = || {
        let ends = last as f64 / 1e9;
        Error::data(
            input,
            format!("no frame between --from and --seconds; the last one read is at {ends:.1} s"),
        )
    };
    found.ok_or_else(none)
}

/// The error if only `fits` seconds of the part fit into its memory.
fn too_large(input: &Path, part: &Part, fits: f64) -> Error {
    Error::invalid(format!(
        "{}: only {fits:.1} s of it fit into {} MB. Label a part, for example --from {} --seconds {}, or raise --memory-mb",
        input.display(),
        part.memory / 1_000_000,
        part.from,
        (0.9 * fits).floor().max(1.0),
    ))
}

fn compressed(rgb: &RgbImage) -> Result<Vec<u8>> {
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
    rgb.write_with_encoder(encoder)
        .map_err(|e| Error::Video(format!("a frame cannot be compressed: {e}")))?;
    Ok(jpeg)
}
