//! COCO's instance annotations (cocodataset.org, format of its 2017 release), masks as compressed run lengths ([`rle`]).

use super::Header;
use super::rle;
use crate::frame::Rect;
use crate::{Error, Result};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes annotations as they arrive; memory does not grow with the video's length.
pub(crate) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    /// Id of the first frame minus one; see `Archive::first_id`.
    first_id: u64,
    video: String,
    annotations: u64,
    /// Stretches of consecutive frames of one size: the first, the one after the last, the size.
    stretches: Vec<(u64, u64, (u32, u32))>,
    /// The name of a frame's image.
    name: Box<dyn Fn(u64) -> String + Send>,
}

impl Writer {
    pub fn create(path: &Path, header: &Header, first_id: u64) -> Result<Self> {
        let file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
        let mut writer = Self {
            file,
            path: path.to_owned(),
            first_id,
            video: header.video.clone(),
            annotations: 0,
            stretches: Vec::new(),
            // CVAT names the frames of a video like this.
            name: Box::new(|frame| format!("frame_{frame:06}.png")),
        };
        let info = json!({"description": header.video, "version": header.program});
        let categories = json!([{"id": 1, "name": "polyp"}]);
        writer.put(&format!("{{\"info\":{info},\"categories\":{categories},\"annotations\":["))?;
        Ok(writer)
    }

    /// Names the images of frames by `name` instead of CVAT's rule.
    #[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "labelling uses it"))]
    pub fn named(self, name: impl Fn(u64) -> String + Send + 'static) -> Self {
        Self { name: Box::new(name), ..self }
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    /// Writes one annotation for the frame's whole mask (`width × height` bytes, above 0 polyp), or none if it is empty.
    pub fn write(&mut self, frame: u64, (w, h): (u32, u32), mask: &[u8], score: f32) -> Result<()> {
        match self.stretches.last_mut() {
            Some((_, end, size)) if (*end, *size) == (frame, (w, h)) => *end += 1,
            _ => self.stretches.push((frame, frame + 1, (w, h))),
        }
        let Some(Rect { left, top, width, height }) = Rect::around(mask, w as usize, 0) else {
            return Ok(());
        };
        let runs = rle::runs(mask, w as usize, h as usize);
        let area: u64 = runs.iter().skip(1).step_by(2).map(|n| u64::from(*n)).sum();
        self.annotations += 1;
        let annotation = json!({
            // There is at most one per frame.
            "id": self.first_id + frame + 1,
            "image_id": self.first_id + frame + 1,
            "category_id": 1,
            "segmentation": {"size": [h, w], "counts": rle::compressed(&runs)},
            "area": area,
            "bbox": [left, top, width, height],
            "iscrowd": 0,
            "score": score,
        });
        let comma = if self.annotations > 1 { ",\n" } else { "\n" };
        self.put(&format!("{comma}{annotation}"))
    }

    pub fn finish(mut self) -> Result<()> {
        self.put("\n],\"images\":[")?;
        let mut comma = "\n";
        for (first, end, size) in std::mem::take(&mut self.stretches) {
            for frame in first..end {
                let (id, name) = (self.first_id + frame + 1, (self.name)(frame));
                let image = json!({"id": id, "file_name": name, "width": size.0, "height": size.1, "video": self.video});
                self.put(&format!("{comma}{image}"))?;
                comma = ",\n";
            }
        }
        self.put("\n]}\n")?;
        self.file.flush().map_err(|e| Error::io(&self.path, e))
    }
}
