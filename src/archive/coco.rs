//! COCO's instance annotations (cocodataset.org, format of its 2017 release), masks as compressed run lengths
//! (`maskApi.c`: column by column, differences to the run two before, five bits per character).

use super::Summary;
use crate::{Error, Result};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes annotations as they arrive; memory does not grow with the video's length.
pub(super) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    /// Id of the first frame minus one; see `Archive::first_id`.
    first_id: u64,
    video: String,
    annotations: u64,
    frames: u64,
    /// Index of the first frame of each size.
    sizes: Vec<(u64, (u32, u32))>,
}

impl Writer {
    pub fn create(path: &Path, summary: &Summary, first_id: u64) -> Result<Self> {
        let file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
        let mut writer = Self {
            file,
            path: path.to_owned(),
            first_id,
            video: summary.video.clone(),
            annotations: 0,
            frames: 0,
            sizes: Vec::new(),
        };
        let info = json!({"description": summary.video, "version": summary.program});
        let categories = json!([{"id": 1, "name": "polyp"}]);
        writer.put(&format!("{{\"info\":{info},\"categories\":{categories},\"annotations\":["))?;
        Ok(writer)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    /// Writes one annotation for the frame's whole mask (`width × height` bytes, above 0 polyp), or none if it is empty.
    pub fn write(&mut self, frame: u64, (w, h): (u32, u32), mask: &[u8], score: f32) -> Result<()> {
        if self.sizes.last().is_none_or(|(_, size)| *size != (w, h)) {
            self.sizes.push((frame, (w, h)));
        }
        self.frames = frame + 1;
        let Some([left, top, right, bottom]) = bounds(mask, w as usize) else { return Ok(()) };
        let runs = runs(mask, w as usize, h as usize);
        let area: u64 = runs.iter().skip(1).step_by(2).map(|n| u64::from(*n)).sum();
        self.annotations += 1;
        let annotation = json!({
            // There is at most one per frame.
            "id": self.first_id + frame + 1,
            "image_id": self.first_id + frame + 1,
            "category_id": 1,
            "segmentation": {"size": [h, w], "counts": compressed(&runs)},
            "area": area,
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
            "score": score,
        });
        let comma = if self.annotations > 1 { ",\n" } else { "\n" };
        self.put(&format!("{comma}{annotation}"))
    }

    pub fn finish(mut self) -> Result<()> {
        self.put("\n],\"images\":[")?;
        let mut sizes = std::mem::take(&mut self.sizes).into_iter().peekable();
        let mut size = (0, 0);
        for frame in 0..self.frames {
            if let Some((_, new)) = sizes.next_if(|(from, _)| *from == frame) {
                size = new;
            }
            // CVAT names the frames of a video like this.
            let name = format!("frame_{frame:06}.png");
            let id = self.first_id + frame + 1;
            let image =
                json!({"id": id, "file_name": name, "width": size.0, "height": size.1, "video": self.video});
            let comma = if frame > 0 { ",\n" } else { "\n" };
            self.put(&format!("{comma}{image}"))?;
        }
        self.put("\n]}\n")?;
        self.file.flush().map_err(|e| Error::io(&self.path, e))
    }
}

/// Left, top, right, bottom (the latter two exclusive) of the pixels above 0.
pub(super) fn bounds(mask: &[u8], width: usize) -> Option<[usize; 4]> {
    let mut found: Option<[usize; 4]> = None;
    for (y, row) in mask.chunks_exact(width.max(1)).enumerate() {
        let Some(first) = row.iter().position(|v| *v > 0) else { continue };
        let last = row.iter().rposition(|v| *v > 0).unwrap_or(first);
        let [left, top, right, _] = found.unwrap_or([first, y, last + 1, y + 1]);
        found = Some([left.min(first), top, right.max(last + 1), y + 1]);
    }
    found
}

/// Lengths of the alternating runs of 0 and of other values, column by column, starting with 0.
fn runs(mask: &[u8], width: usize, height: usize) -> Vec<u32> {
    let (mut out, mut run, mut inside) = (Vec::new(), 0u32, false);
    for x in 0..width {
        for y in 0..height {
            if (mask[y * width + x] > 0) != inside {
                out.push(run);
                (run, inside) = (0, !inside);
            }
            run += 1;
        }
    }
    out.push(run);
    out
}

fn compressed(runs: &[u32]) -> String {
    let mut out = String::new();
    for (i, run) in runs.iter().enumerate() {
        let mut x = i64::from(*run);
        if i > 2 {
            x -= i64::from(runs[i - 2]);
        }
        loop {
            let low = (x & 0x1f) as u8;
            x >>= 5;
            let more = if low & 0x10 != 0 { x != -1 } else { x != 0 };
            out.push(char::from(48 + low + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks and their encodings by pycocotools 2.0.
    #[test]
    fn run_lengths_equal_those_of_pycocotools() {
        let mask = [0, 0, 0, 0, 0, 255, 255, 0, 0, 255, 255, 0];
        assert_eq!(runs(&mask, 4, 3), [4, 2, 1, 2, 3]);
        assert_eq!(compressed(&[4, 2, 1, 2, 3]), "42102");
        assert_eq!(bounds(&mask, 4), Some([1, 1, 3, 3]));
        assert_eq!(runs(&[255; 6], 3, 2), [0, 6]);
        assert_eq!(bounds(&[0; 6], 3), None);
        // Differences that are negative or need several characters.
        assert_eq!(compressed(&[100, 1, 2000, 31]), "T31`n1n0");
    }
}
