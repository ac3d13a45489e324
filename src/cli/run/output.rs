//! Output of frames with overlay.

use anyhow::Context;
use autosam::video::{FrameRate, Shape, VideoFrame, Writer};
use autosam::write_png;
use image::DynamicImage;
use std::path::{Path, PathBuf};

pub enum Output {
    Nothing,
    Folder(PathBuf),
    Video(VideoOutput),
}

/// A video, or several if the frame size changes: `NAME-2.mp4`, …
pub struct VideoOutput {
    path: PathBuf,
    rate: FrameRate,
    /// The writer, opened with the size of the first frame, and that frame's time.
    open: Option<(Writer, u64)>,
    parts: usize,
    /// Whether frames have timestamps; otherwise each is shown for one frame interval.
    timed: bool,
}

/// Whether `path` names a file. Names of folders may contain a dot, too (`run.2024-11-28`).
fn is_file(path: &Path) -> bool {
    // Image formats are listed so that they are rejected: one image file cannot hold several frames.
    const ENDINGS: [&str; 22] = [
        "mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "ts", "m2ts", "mts", "wmv", "flv", "vob",
        "ogv", "gif", "png", "jpg", "jpeg", "tif", "tiff", "bmp",
    ];
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ENDINGS.contains(&ending.as_str())
}

impl Output {
    /// Chooses the kind of output by the path that the user gave.
    ///
    /// # Errors
    /// If the path names a file in a format that cannot be written.
    pub fn new(path: Option<&Path>, rate: FrameRate, timed: bool) -> anyhow::Result<Self> {
        Ok(match path {
            None => Self::Nothing,
            Some(path) if is_file(path) && !path.is_dir() => {
                Writer::check_name(path)?;
                Self::Video(VideoOutput { path: path.to_owned(), rate, open: None, parts: 0, timed })
            }
            Some(path) => Self::Folder(path.to_owned()),
        })
    }

    /// Whether any usable output was written.
    pub fn has_begun(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Folder(dir) => dir.is_dir(),
            Self::Video(video) => video.parts > 0,
        }
    }

    pub fn write(&mut self, name: &str, frame: VideoFrame) -> anyhow::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Folder(dir) => {
                Ok(write_png(&dir.join(format!("{name}.png")), &DynamicImage::ImageRgb8(frame.rgb))?)
            }
            Self::Video(video) => video.write(&frame),
        }
    }

    /// Closes the open file, if any.
    pub fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Video(VideoOutput { open: Some((writer, _)), .. }) => Ok(writer.finish()?),
            _ => Ok(()),
        }
    }
}

impl VideoOutput {
    fn write(&mut self, frame: &VideoFrame) -> anyhow::Result<()> {
        let shape = Shape::of(frame);
        if let Some((before, _)) = self.open.take_if(|(writer, _)| writer.shape() != shape) {
            before.finish()?;
            let (w, h) = (shape.width, shape.height);
            let path = self.part(self.parts + 1)?;
            let at = if self.timed { format!(" at {:.3} s", frame.time as f64 / 1e9) } else { String::new() };
            eprintln!(
                "the frame size changes to {w}x{h}{at}: output continues in {}, whose time starts there",
                path.display()
            );
        }
        if self.open.is_none() {
            let writer = Writer::create(&self.part(self.parts + 1)?, shape, self.rate)?;
            self.parts += 1;
            self.open = Some((writer, frame.time));
        }
        let Some((writer, start)) = &mut self.open else { return Ok(()) };
        if self.timed {
            Ok(writer.write_at(&frame.rgb, frame.time - *start, frame.duration)?)
        } else {
            Ok(writer.write(&frame.rgb)?)
        }
    }

    /// The path of part `n`, from 1.
    fn part(&self, n: usize) -> anyhow::Result<PathBuf> {
        if n == 1 {
            return Ok(self.path.clone());
        }
        let stem = self.path.file_stem().context("the output path has no file name")?.to_string_lossy();
        let ending = self.path.extension().unwrap_or_default().to_string_lossy();
        Ok(self.path.with_file_name(format!("{stem}-{n}.{ending}")))
    }
}
