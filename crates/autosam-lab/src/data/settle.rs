//! Determines once how all masks of a set are interpreted.

use super::{Dataset, Levels, Reading, Seen};
use rayon::prelude::*;
use std::path::Path;

/// Number of masks inspected when a set is opened; all if these are inconclusive.
const SAMPLED: usize = 24;

impl Dataset {
    /// Determines which values of the masks are foreground, unless `given` specifies it, and adds warnings about doubts.
    pub(super) fn settle(&mut self, given: Option<Reading>) {
        let masks: Vec<&Path> = self.items.iter().filter_map(|i| i.mask.as_deref()).collect();
        if masks.is_empty() {
            self.masks = "none, polyp-free".to_owned();
            return;
        }
        let seen = Seen::of(&masks);
        let reading = given.unwrap_or_else(|| seen.reading());
        self.masks = seen.describe(&reading);
        let name = &self.name;
        self.warnings.extend(seen.doubts(&reading).into_iter().map(|doubt| format!("{name}: {doubt}")));
        self.items.iter_mut().for_each(|item| item.reading = reading);
    }
}

impl Seen {
    /// Combined values of mask files: of a sample, or of all files if the sample is inconclusive.
    pub fn of(masks: &[&Path]) -> Self {
        let step = masks.len().div_ceil(SAMPLED).max(1);
        let sample: Vec<&Path> = masks.iter().copied().step_by(step).collect();
        let seen = look(&sample);
        if step > 1 && !seen.is_settled() { look(masks) } else { seen }
    }
}

/// The values of all files together. Unreadable files are reported when they are used.
fn look(masks: &[&Path]) -> Seen {
    let add = |mut seen: Seen, path: &&Path| {
        if let Ok(levels) = Levels::open(path) {
            seen.add(&levels);
        }
        seen
    };
    masks.par_iter().fold(Seen::default, add).reduce(Seen::default, |a, b| a.merge(&b))
}
