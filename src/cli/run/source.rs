//! Frames of a video and images of a folder, one after another.

use crate::cli::{progress, sets};
use anyhow::Context;
use autosam::data::{self, Dataset, Item};
use autosam::video::{FrameRate, Reader, Shape, VideoFrame};
use image::GrayImage;
use std::path::Path;
use std::time::Instant;

/// A frame or image of the source.
pub struct SourceFrame {
    /// File name without ending, after the folder of its sequence if it belongs to one.
    pub name: String,
    pub frame: VideoFrame,
    /// False for images, which have no timestamps.
    pub timed: bool,
    pub truth: Option<GrayImage>,
    /// The sequence it belongs to, or its own name if there is none. `None` for a video, which is one sequence.
    pub scene: Option<String>,
}

impl SourceFrame {
    pub fn shape(&self) -> Shape {
        Shape::of(&self.frame)
    }
}

pub enum Source {
    Video(Box<VideoSource>),
    Files { items: std::vec::IntoIter<Item>, labelled: bool, unreadable: u64 },
}

pub struct VideoSource {
    reader: Reader,
    index: u64,
}

impl Source {
    /// `track`: the video track of a file, from 1.
    pub fn open(input: &str, track: usize) -> anyhow::Result<Self> {
        let path = Path::new(input);
        if !path.is_dir() {
            let reader = Reader::open_track(input, track)?;
            for note in reader.notes() {
                eprintln!("note: {note}");
            }
            return Ok(Self::Video(Box::new(VideoSource { reader, index: 0 })));
        }
        let plain = data::images_in(path)?;
        let labelled = plain.is_empty();
        let mut set = if labelled {
            Dataset::open(path)
                .with_context(|| format!("{input} contains no images and is not a data set"))?
        } else {
            Dataset::of_images(path, plain)
        };
        let unreadable = verify(&mut set)?;
        Ok(Self::Files { items: set.items.into_iter(), labelled, unreadable })
    }

    /// Number of images that are left out because they cannot be read.
    pub fn unreadable(&self) -> u64 {
        match self {
            Self::Video(_) => 0,
            Self::Files { unreadable, .. } => *unreadable,
        }
    }

    pub fn rate(&self) -> FrameRate {
        match self {
            Self::Video(v) => v.reader.rate(),
            Self::Files { .. } => FrameRate::DEFAULT,
        }
    }

    pub fn expected(&self) -> Option<u64> {
        match self {
            Self::Video(v) => v.reader.expected(),
            Self::Files { items, .. } => Some(items.len() as u64),
        }
    }

    /// Reasons why frames of the video are missing. The list is complete after the last frame.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Video(v) => v.reader.problems(),
            Self::Files { .. } => Vec::new(),
        }
    }
}

/// Decodes all images before any result is written, so that a damaged file at the end of a set is known at the beginning.
/// Prints and removes those that cannot be read, and returns their number.
fn verify(set: &mut Dataset) -> anyhow::Result<u64> {
    let (begin, count, known) = (Instant::now(), set.items.len(), set.problems.len());
    let bar = progress::counting(count as u64, "images verified  {eta} left");
    set.verify_pixels(|| bar.inc(1));
    bar.finish_and_clear();
    let unreadable = set.problems.len() - known;
    for problem in &set.problems {
        eprintln!("left out: {problem}");
    }
    sets::print_remarks(set);
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!("{count} images verified in {seconds:.1} s; {unreadable} cannot be read");
    Ok(unreadable as u64)
}

impl Iterator for Source {
    type Item = anyhow::Result<SourceFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Video(v) => {
                let frame = v.reader.next_frame().transpose()?;
                v.index += 1;
                let name = format!("{:06}", v.index - 1);
                Some(
                    frame
                        .map(|frame| SourceFrame { name, frame, timed: true, truth: None, scene: None })
                        .map_err(Into::into),
                )
            }
            Self::Files { items, labelled, .. } => {
                let item = items.next()?;
                let name = if item.sequence.is_empty() {
                    item.name.clone()
                } else {
                    format!("{}/{}", item.sequence, item.name)
                };
                let scene = Some(if item.sequence.is_empty() { &item.name } else { &item.sequence }.clone());
                let labelled = *labelled;
                let image = item.load().map(|pair| SourceFrame {
                    name,
                    frame: VideoFrame { rgb: pair.rgb, time: 0, duration: None, pixel_aspect: (1, 1) },
                    timed: false,
                    truth: labelled.then_some(pair.mask),
                    scene,
                });
                Some(image.map_err(Into::into))
            }
        }
    }
}
