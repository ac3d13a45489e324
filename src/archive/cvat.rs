//! CVAT's "CVAT for video 1.1" (docs.cvat.ai, XML annotation format): one mask per frame, as run lengths within its box.
//!
//! CVAT has no tracks of masks. Each mask becomes a track of one frame, as in CVAT's own exports.

use super::Header;
use crate::frame::Rect;
use crate::{Error, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Digits reserved for the number of frames in the header, which is written before they are counted.
const ROOM: usize = 12;

/// Who made a mask; CVAT shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "labelling uses it"))]
pub(crate) enum MadeBy {
    Program,
    Person,
}

pub(crate) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    /// Position of the number of frames in the file.
    count_at: u64,
    frames: u64,
    tracks: u64,
}

impl Writer {
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
        let name = super::page::escaped(&header.video);
        let head = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n      \
             <name>{name}</name>\n      <size>"
        );
        let tail = format!(
            "</size>\n      <mode>interpolation</mode>\n      <start_frame>0</start_frame>\n      <frame_filter></frame_filter>\n      \
             <labels><label><name>polyp</name><type>mask</type><attributes></attributes></label></labels>\n      \
             <original_size><width>{}</width><height>{}</height></original_size>\n    </task>\n    <source>{name}</source>\n  </meta>\n",
            header.width, header.height
        );
        let mut writer =
            Self { file, path: path.to_owned(), count_at: head.len() as u64, frames: 0, tracks: 0 };
        writer.put(&format!("{head}{:ROOM$}{tail}", 0))?;
        Ok(writer)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    /// Writes the frame's whole mask (`width × height` bytes, above 0 polyp), or nothing if it is empty.
    pub fn write(&mut self, frame: u64, (w, _): (u32, u32), mask: &[u8], made: MadeBy) -> Result<()> {
        self.frames = frame + 1;
        let Some(Rect { left, top, width, height }) = Rect::around(mask, w as usize, 0) else {
            return Ok(());
        };
        let inside = (top..top + height).flat_map(|y| &mask[y * w as usize + left..][..width]);
        let text = format!(
            "  <track id=\"{}\" label=\"polyp\" source=\"{}\">\n    <mask frame=\"{frame}\" keyframe=\"1\" outside=\"0\" \
             occluded=\"0\" rle=\"{}\" left=\"{left}\" top=\"{top}\" width=\"{}\" height=\"{}\" z_order=\"0\"></mask>\n  \
             </track>\n",
            self.tracks,
            match made {
                MadeBy::Program => "auto",
                MadeBy::Person => "manual",
            },
            runs(inside.map(|v| *v > 0)),
            width,
            height
        );
        self.tracks += 1;
        self.put(&text)
    }

    pub fn finish(mut self) -> Result<()> {
        self.put("</annotations>\n")?;
        let number = format!("{:ROOM$}", self.frames);
        let written = self
            .file
            .seek(SeekFrom::Start(self.count_at))
            .and_then(|_| self.file.write_all(number.as_bytes()))
            .and_then(|()| self.file.flush());
        written.map_err(|e| Error::io(&self.path, e))
    }
}

/// Lengths of the alternating runs of background and polyp, row by row, starting with background.
fn runs(pixels: impl Iterator<Item = bool>) -> String {
    let (mut text, mut inside, mut length) = (String::new(), false, 0u64);
    for pixel in pixels {
        if pixel != inside {
            // Writing to a String cannot fail.
            let _ = write!(text, "{length}, ");
            (inside, length) = (pixel, 0);
        }
        length += 1;
    }
    let _ = write!(text, "{length}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_lengths_follow_cvats_format() {
        let row = |text: &str| runs(text.bytes().map(|b| b == b'#'));
        assert_eq!(row("..##.#"), "2, 2, 1, 1");
        assert_eq!(row("##."), "0, 2, 1");
        assert_eq!(row("####"), "0, 4");
    }
}
