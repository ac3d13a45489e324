//! What is in a data set and what is wrong with it.

use super::{Dataset, Item, dimensions};
use crate::{Error, Result};
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
    /// Share of the picture that is foreground, over frames that have any: 10th, 50th and 90th percentile.
    pub area: Option<[f64; 3]>,
    /// Smallest and largest picture.
    pub sizes: [(u32, u32); 2],
    /// What was left out and why, with the path.
    pub problems: Vec<String>,
}

impl Dataset {
    /// Leaves out what can be seen to be unusable from the files' heads: no pictures, sizes that differ. Quick; pixels are
    /// not decoded.
    pub fn verify(&mut self) {
        self.keep(|item| {
            let picture = dimensions(&item.image)?;
            let Some(mask) = &item.mask else { return Ok(()) };
            let (w, h) = dimensions(mask)?;
            if (w, h) == picture {
                return Ok(());
            }
            Err(Error::data(
                mask,
                format!(
                    "is {w}x{h}, but its picture {} is {}x{}",
                    item.image.display(),
                    picture.0,
                    picture.1
                ),
            ))
        });
    }

    /// Decodes every picture and mask, calling `done` after each.
    pub fn census(&self, done: impl Fn() + Sync) -> Census {
        let seen: Vec<Result<(u32, u32, f64)>> = self
            .items
            .par_iter()
            .map(|item| {
                let pair = item.load();
                done();
                let pair = pair?;
                let lit = pair.mask.iter().filter(|v| **v > 0).count() as f64;
                Ok((pair.rgb.width(), pair.rgb.height(), lit / pair.mask.len().max(1) as f64))
            })
            .collect();
        let mut problems = self.problems.clone();
        problems.extend(seen.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string));
        let good: Vec<(u32, u32, f64)> = seen.into_iter().flatten().collect();
        let mut areas: Vec<f64> = good.iter().map(|g| g.2).filter(|a| *a > 0.0).collect();
        areas.sort_by(f64::total_cmp);
        let percentile = |p: usize| areas[(areas.len() - 1) * p / 100];
        let size = |g: Option<&(u32, u32, f64)>| g.map_or((0, 0), |g| (g.0, g.1));
        let pixels = |g: &&(u32, u32, f64)| u64::from(g.0) * u64::from(g.1);
        let clips: BTreeSet<&str> =
            self.items.iter().map(|i| i.sequence.as_str()).filter(|s| !s.is_empty()).collect();
        Census {
            name: self.name.clone(),
            clips: clips.len(),
            frames: good.len(),
            negatives: good.len() - areas.len(),
            area: (!areas.is_empty()).then(|| [10, 50, 90].map(percentile)),
            sizes: [size(good.iter().min_by_key(pixels)), size(good.iter().max_by_key(pixels))],
            problems,
        }
    }

    fn keep(&mut self, usable: impl Fn(&Item) -> Result<()> + Sync) {
        let found: Vec<Option<String>> =
            self.items.par_iter().map(|i| usable(i).err().map(|e| e.to_string())).collect();
        let mut good = found.iter();
        self.items.retain(|_| good.next().is_some_and(Option::is_none));
        self.problems.extend(found.into_iter().flatten());
    }
}

/// The heading of [`Census`]'s lines.
pub const HEADING: &str = "| data | clips | frames | without | area 10 / 50 / 90 % | sizes | problems |\n|---|---|---|---|---|---|---|";

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = self.area.map_or("-".to_owned(), |a| a.map(|v| format!("{:.1}", 100.0 * v)).join(" / "));
        let [(w, h), (x, y)] = self.sizes;
        let sizes = if (w, h) == (x, y) { format!("{w}x{h}") } else { format!("{w}x{h} to {x}x{y}") };
        write!(
            f,
            "| {} | {} | {} | {} | {area} | {sizes} | {} |",
            self.name,
            self.clips,
            self.frames,
            self.negatives,
            self.problems.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma};

    #[test]
    fn what_cannot_be_used_is_counted_and_named() {
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
        // The head is whole, the pixels are not.
        let path = dir.path().join("images/d.png");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();

        let mut set = Dataset::open(dir.path()).unwrap();
        set.verify();
        assert_eq!(set.items.len(), 3);
        assert!(set.problems[0].contains("c.png: is 4x4, but its picture"), "{:?}", set.problems);
        let census = set.census(|| {});
        assert_eq!((census.frames, census.negatives, census.clips), (2, 1, 0));
        assert_eq!(census.area, Some([1.0; 3]));
        assert!(census.problems[1].contains("d.png: cannot read the picture"), "{:?}", census.problems);
        assert!(census.to_string().contains("| 0 | 2 | 1 | 100.0 / 100.0 / 100.0 | 8x8 | 2 |"), "{census}");
    }
}
