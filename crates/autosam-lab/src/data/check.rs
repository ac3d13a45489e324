//! Reports the content and the problems of a data set.

use super::{Dataset, Item, Seen, check_size, decode};
use crate::Result;
use autosam_frame::Frame;
use autosam_frame::region::CropMode;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fmt;

/// One data set's line of the table that `data check` prints.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Census {
    pub name: String,
    /// Sequences; 0 for stills.
    pub clips: usize,
    pub frames: usize,
    /// Frames whose mask is empty.
    pub negatives: usize,
    /// Foreground fraction of the image, over frames that have any: 10th, 50th and 90th percentile.
    pub area: Option<[f64; 3]>,
    /// Smallest and largest image size.
    pub sizes: [(u32, u32); 2],
    /// How the masks are interpreted.
    pub masks: String,
    /// Number of frames in which `roi=auto` would crop labelled pixels away; training extends the crop for these.
    pub cut: usize,
    /// Files left out, each with path and reason.
    pub problems: Vec<String>,
    /// Doubts about the set as a whole.
    pub warnings: Vec<String>,
    /// How images are interpreted, if that is not obvious.
    pub notes: Vec<String>,
}

/// Findings about one frame.
struct Look {
    size: (u32, u32),
    /// Foreground fraction of the image.
    area: f64,
    seen: Seen,
    /// Whether `roi=auto` crops labelled pixels away.
    cut: bool,
}

impl Look {
    fn at(item: &Item) -> Result<Self> {
        let (pair, levels) = item.decode()?;
        let mut seen = Seen::default();
        if let Some(levels) = &levels {
            seen.add(levels);
        }
        let lit = pair.mask.iter().filter(|v| **v > 0).count() as f64;
        let shown = CropMode::Auto.of(&Frame::rgb_image(&pair.rgb))?;
        let cut = pair.labelled().is_some_and(|labelled| shown.union(labelled) != shown);
        Ok(Self { size: pair.rgb.dimensions(), area: lit / pair.mask.len().max(1) as f64, seen, cut })
    }
}

/// Masks are assumed to be inverted if the foreground fraction of every image exceeds this.
const INVERTED: f64 = 0.6;

impl Dataset {
    /// Removes files whose headers show that they are unusable: not images, truncated, different sizes. Fast, because
    /// pixels are not decoded.
    pub fn verify(&mut self) {
        self.keep(|item| {
            let image = decode::head(&item.image)?;
            let Some(mask) = &item.mask else { return Ok(()) };
            let found = decode::head(mask)?;
            // The mask was drawn on the image as stored, see `Item::decode`.
            if found.size == image.size && found.size == found.upright() {
                return Ok(());
            }
            check_size(mask, found.upright(), &item.image, image.upright())
        });
    }

    /// Decodes every image and mask, calling `done` after each.
    pub fn census(&self, done: impl Fn() + Sync) -> Census {
        let looks: Vec<Result<Look>> = self
            .items
            .par_iter()
            .map(|item| {
                let look = Look::at(item);
                done();
                look
            })
            .collect();
        let mut problems = self.problems.clone();
        problems.extend(looks.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string));
        let first_cut = self.items.iter().zip(&looks).find(|(_, l)| l.as_ref().is_ok_and(|l| l.cut));
        let first_cut = first_cut.map(|(item, _)| item.image.display().to_string());
        let good: Vec<Look> = looks.into_iter().flatten().collect();
        let mut areas: Vec<f64> = good.iter().map(|g| g.area).filter(|a| *a > 0.0).collect();
        areas.sort_by(f64::total_cmp);
        let percentile = |p: usize| areas[(areas.len() - 1) * p / 100];
        let size = |g: Option<&Look>| g.map_or((0, 0), |g| g.size);
        let pixels = |g: &&Look| u64::from(g.size.0) * u64::from(g.size.1);
        let clips: BTreeSet<&str> =
            self.items.iter().map(|i| i.sequence.as_str()).filter(|s| !s.is_empty()).collect();
        let area = (!areas.is_empty()).then(|| [10, 50, 90].map(percentile));
        let cut = good.iter().filter(|g| g.cut).count();
        let mut warnings = self.warnings.clone();
        if let Some(first) = first_cut {
            warnings.push(format!(
                "{}: roi=auto would crop labelled pixels of {cut} images away (training uses a larger crop of them): {first}",
                self.name
            ));
        }
        if area.is_some_and(|[low, ..]| low > INVERTED) {
            warnings.push(format!(
                "{}: nearly every pixel of every image is polyp; are the masks inverted?",
                self.name
            ));
        }
        Census {
            name: self.name.clone(),
            clips: clips.len(),
            frames: good.len(),
            negatives: good.len() - areas.len(),
            area,
            sizes: [size(good.iter().min_by_key(pixels)), size(good.iter().max_by_key(pixels))],
            masks: self.masks_of(&good),
            cut,
            problems,
            warnings,
            notes: self.notes.clone(),
        }
    }

    /// How masks are interpreted, from all that were inspected.
    fn masks_of(&self, looks: &[Look]) -> String {
        let Some(reading) = self.items.iter().find(|i| i.mask.is_some()).map(|i| i.reading) else {
            return self.masks.clone();
        };
        let seen = looks.iter().fold(Seen::default(), |all, look| all.merge(&look.seen));
        seen.describe(&reading)
    }

    /// [`Self::verify`], and decodes every pixel, so that all remaining files are readable. Slow; `done` is called
    /// after each image.
    pub fn verify_pixels(&mut self, done: impl Fn() + Sync) {
        self.keep(|item| {
            let read = item.load().map(drop);
            done();
            read
        });
    }

    fn keep(&mut self, usable: impl Fn(&Item) -> Result<()> + Sync) {
        let found: Vec<Option<String>> =
            self.items.par_iter().map(|i| usable(i).err().map(|e| e.to_string())).collect();
        let mut good = found.iter();
        self.items.retain(|_| good.next().is_some_and(Option::is_none));
        self.problems.extend(found.into_iter().flatten());
    }
}

/// The table header for [`Census`] lines.
pub const HEADING: &str = "| data | clips | frames | without | area 10 / 50 / 90 % | sizes | masks | problems |\n|---|---|---|---|---|---|---|---|";

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = self.area.map_or("-".to_owned(), |a| a.map(|v| format!("{:.1}", 100.0 * v)).join(" / "));
        let [(w, h), (x, y)] = self.sizes;
        let sizes = if (w, h) == (x, y) { format!("{w}x{h}") } else { format!("{w}x{h} to {x}x{y}") };
        write!(
            f,
            "| {} | {} | {} | {} | {area} | {sizes} | {} | {} |",
            self.name,
            self.clips,
            self.frames,
            self.negatives,
            self.masks,
            self.problems.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma};

    #[test]
    fn unusable_files_are_counted_and_named() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images", "masks"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let save = |name: &str, side: u32, value: u8| {
            GrayImage::from_pixel(side, side, Luma([value])).save(dir.path().join(name)).unwrap();
        };
        for (name, mask_side, value) in [("a", 8, 255), ("b", 8, 0), ("c", 4, 255), ("d", 8, 255)] {
            save(&format!("images/{name}.png"), 8, 90);
            save(&format!("masks/{name}.png"), mask_side, value);
        }
        // The header is intact, the end is not.
        let path = dir.path().join("images/d.png");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();

        let mut set = Dataset::open(dir.path()).unwrap();
        set.verify();
        assert_eq!(set.items.len(), 2, "{:?}", set.problems);
        let named =
            |name: &str, reason: &str| set.problems.iter().any(|p| p.contains(name) && p.contains(reason));
        assert!(named("c.png", "is 4x4, but its image") && named("d.png", "cannot read the image"));
        let census = set.census(|| {});
        assert_eq!((census.frames, census.negatives, census.clips), (2, 1, 0));
        assert_eq!(census.area, Some([1.0; 3]));
        assert_eq!(census.problems.len(), 2);
        assert!(
            census.to_string().contains("| 0 | 2 | 1 | 100.0 / 100.0 / 100.0 | 8x8 | 0 and 255 | 2 |"),
            "{census}"
        );
    }
}
