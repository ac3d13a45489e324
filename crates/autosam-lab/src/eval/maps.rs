//! Scores maps on disk against masks: sequences by the VPS toolbox's protocol, stills by PraNet's.

use super::live::Watcher;
use super::measure::{Scored, Sequence, WATCHED};
use super::metrics::FrameMetrics;
use super::predictor::resized;
use crate::data::{self, Item, Levels, Seen, folder};
use crate::{Error, Result};
use autosam_frame::map::ProbMap;
use autosam_frame::resize::fitted;
use image::GrayImage;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Maximum number of names in a message.
const MOST_NAMES: usize = 10;

/// One data set's maps, scored.
#[derive(Debug, Clone)]
pub struct ScoredSet {
    pub name: String,
    pub sequences: Vec<Sequence>,
}

/// Result of [`score_maps`].
#[derive(Debug, Clone, Default)]
pub struct ScoredMaps {
    pub sets: Vec<ScoredSet>,
    /// Skipped folders and doubts.
    pub notes: Vec<String>,
}

/// Corresponding folders of maps and masks.
struct Folders {
    maps: PathBuf,
    masks: PathBuf,
    /// Empty for stills.
    sequence: String,
}

/// Scores maps in `pred` against masks in `gt`; names match except for the extension.
///
/// Masks in `gt` itself, or in a data set's folder of masks there, are stills, all of which count. For a folder of such
/// data sets the maps are in folders of the same names. Anything else is one folder per sequence; its first and last
/// frames are not read (the VPS toolbox's protocol) and may be missing.
///
/// # Errors
/// If maps are missing (the message lists them) or files cannot be read.
pub fn score_maps(pred: &Path, gt: &Path, done: impl Fn() + Sync) -> Result<ScoredMaps> {
    let mut scored = ScoredMaps::default();
    let mut missing = Vec::new();
    for (name, folders) in sets(pred, gt, &mut scored.notes)? {
        let mut sequences = Vec::new();
        for folder in folders {
            sequences.push(score(&folder, &mut scored.notes, &mut missing, &done)?);
        }
        scored.sets.push(ScoredSet { name, sequences });
    }
    if !missing.is_empty() {
        return Err(Error::data(pred, missing.join("; ")));
    }
    if scored.sets.iter().flat_map(|s| &s.sequences).all(|s| s.frames.is_empty()) {
        return Err(Error::data(gt, "no stills and no sequence of three frames or more"));
    }
    Ok(scored)
}

/// Sets by name, with the folders of each.
fn sets(pred: &Path, gt: &Path, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<Folders>)>> {
    let whole = pred.display().to_string();
    let stills = |maps: PathBuf, masks: PathBuf| vec![Folders { maps, masks, sequence: String::new() }];
    if !data::images_in(gt)?.is_empty() {
        return Ok(vec![(whole, stills(pred.to_owned(), gt.to_owned()))]);
    }
    let mut root = gt.to_owned();
    if let Some((_, masks)) = folder::pair_in(gt)? {
        if !data::images_in(&masks)?.is_empty() {
            return Ok(vec![(whole, stills(pred.to_owned(), masks))]);
        }
        root = masks;
    }
    let mut inside = data::folders(&root)?;
    // `TestDataset/TestDataset`, as the archive unpacks.
    while let [only] = &inside[..] {
        if !data::images_in(only)?.is_empty() || folder::pair_in(only)?.is_some() {
            break;
        }
        inside = data::folders(only)?;
    }
    let (mut sets, mut sequences) = (Vec::new(), Vec::new());
    for masks in inside {
        let name = masks.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let maps = pred.join(&name);
        if !data::images_in(&masks)?.is_empty() {
            sequences.push(Folders { maps, masks, sequence: name });
        } else if let Some((_, masks)) = folder::pair_in(&masks)? {
            match maps.is_dir() {
                true => sets.push((name, stills(maps, masks))),
                false => notes.push(format!("{}: no maps of {name}; it is skipped", maps.display())),
            }
        }
    }
    if !sequences.is_empty() {
        sets.push((whole, sequences));
    }
    if sets.is_empty() {
        return Err(Error::data(
            gt,
            format!(
                "it has no masks for the maps in {}; expected one folder per sequence, masks, or data sets with masks/",
                pred.display()
            ),
        ));
    }
    Ok(sets)
}

fn score(
    folders: &Folders,
    notes: &mut Vec<String>,
    missing: &mut Vec<String>,
    done: &(impl Fn() + Sync),
) -> Result<Sequence> {
    let mut maps: HashMap<String, PathBuf> =
        data::images_in(&folders.maps)?.into_iter().map(|i| (i.name, i.image)).collect();
    let items = data::images_in(&folders.masks)?;
    let ends = if folders.sequence.is_empty() { 0 } else { 1 };
    let count = items.len();
    let (mut pairs, mut without) = (Vec::new(), Vec::new());
    for (at, item) in items.into_iter().enumerate() {
        let map = maps.remove(&item.name);
        match map {
            _ if at < ends || at + ends >= count => {}
            Some(map) => pairs.push((at, item, map)),
            None => without.push(item.name),
        }
    }
    if !without.is_empty() {
        missing.push(format!("{}: no map with the name {}", folders.maps.display(), names(&without)));
    }
    if !maps.is_empty() {
        let mut left: Vec<String> = maps.into_keys().collect();
        left.sort();
        notes.push(format!("{}: no mask for the maps {}", folders.maps.display(), names(&left)));
    }
    let truths: Vec<&Path> = pairs.iter().map(|(_, item, _)| item.image.as_path()).collect();
    let seen = Seen::of(&truths);
    let reading = seen.reading();
    let doubts = seen.doubts(&reading);
    notes.extend(doubts.into_iter().map(|doubt| format!("{}: {doubt}", folders.masks.display())));
    let predicted: Vec<&Path> = pairs.iter().map(|(.., map)| map.as_path()).collect();
    let binary = Seen::of(&predicted).is_zero_or_one();
    if binary {
        notes.push(format!("{}: map values 0 and 1 are read as 0 and 255", folders.maps.display()));
    }
    let frames = pairs.par_iter().map(|(at, item, map)| {
        let truth = reading.truth(&Levels::open(&item.image)?).map_err(|e| Error::data(&item.image, e))?;
        let mut map = data::open(map)?.into_luma8();
        if binary {
            map.iter_mut().for_each(|v| *v *= 255);
        }
        let frame = scored(*at, item, &map, &truth);
        done();
        Ok(frame)
    });
    Ok(Sequence::new(folders.sequence.clone(), frames.collect::<Result<_>>()?))
}

fn scored(at: usize, item: &Item, map: &GrayImage, truth: &GrayImage) -> Scored {
    let (w, h) = (truth.width() as usize, truth.height() as usize);
    let map =
        ProbMap { width: map.width() as usize, height: map.height() as usize, data: map.as_raw().clone() };
    let metrics = FrameMetrics::new(&map.resized(w, h), truth.as_raw(), w, h);
    let (sw, sh) = fitted(w, h, WATCHED);
    let seen = Watcher::default().observe(None, &map.resized(sw, sh), &resized(truth, sw, sh), sw, sh);
    Scored { name: item.name.clone(), item: at, metrics, seen, live_overlay: None }
}

fn names(all: &[String]) -> String {
    let more = all.len().saturating_sub(MOST_NAMES);
    let shown = all[..all.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::measure::Evaluation;

    fn save(path: &Path, side: u32, lit: impl Fn(u32, u32) -> u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        GrayImage::from_fn(side, side, |x, y| image::Luma([lit(x, y)])).save(path).unwrap();
    }

    #[test]
    fn maps_are_scored_by_sequence_and_case() {
        let dir = tempfile::tempdir().unwrap();
        let (pred, gt) = (dir.path().join("pred"), dir.path().join("gt"));
        for (sequence, shift) in [("case1_1", 0), ("case1_2", 4), ("case2_1", 8)] {
            for i in 0..4 {
                let square = |from: u32| {
                    move |x: u32, y: u32| {
                        if (from..from + 8).contains(&x) && (4..12).contains(&y) { 255 } else { 0 }
                    }
                };
                save(&gt.join(sequence).join(format!("{i}.png")), 24, square(2));
                save(&pred.join(sequence).join(format!("{i}.png")), 24, square(2 + shift));
            }
        }
        let sequences = score_maps(&pred, &gt, || {}).unwrap().sets.remove(0).sequences;
        let e = Evaluation::new(&sequences, 25.0, true);
        assert_eq!((e.summary.frames, e.sequences.len(), e.cases.len()), (6, 3, 2));
        let dice: Vec<f64> = e.sequences.iter().map(|l| l.dice.unwrap()).collect();
        assert_eq!(dice, [1.0, 0.5, 0.0]);
        assert_eq!(e.cases[0].dice, Some(0.75));
        assert_eq!((e.intervals["dice@0.5"].mean, e.intervals["dice@0.5"].cases), (0.5, 2));
        let live = e.live.unwrap();
        assert_eq!((live.appearances, live.recall), (3, Some(2.0 / 3.0)));
        let text = score_maps(&gt, &dir.path().join("none"), || {}).unwrap_err().to_string();
        assert!(text.contains("none"), "{text}");
        std::fs::remove_file(pred.join("case2_1/1.png")).unwrap();
        let text = score_maps(&pred, &gt, || {}).unwrap_err().to_string();
        assert!(text.contains("no map with the name 1"), "{text}");
    }

    #[test]
    fn all_stills_count_and_missing_maps_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (pred, gt) = (dir.path().join("res"), dir.path().join("TestDataset"));
        let disc = |x: u32, y: u32| if x.abs_diff(9).pow(2) + y.abs_diff(9).pow(2) < 25 { 255 } else { 0 };
        for set in ["Kvasir", "CVC-300"] {
            for i in 0..3 {
                save(&gt.join(set).join(format!("images/{i}.png")), 24, |_, _| 90);
                // Masks may contain labels.
                let value = move |x, y| if set == "Kvasir" { disc(x, y) } else { disc(x, y) / 255 };
                save(&gt.join(set).join(format!("masks/{i}.png")), 24, value);
                save(&pred.join(set).join(format!("{i}.png")), 24, disc);
            }
        }
        let scores = |pred: &Path, gt: &Path| -> Vec<(usize, Option<f64>)> {
            let sets = score_maps(pred, gt, || {}).unwrap().sets;
            let of = |s: &ScoredSet| Evaluation::new(&s.sequences, 25.0, true).summary;
            sets.iter().map(of).map(|s| (s.frames, s.metrics.dice_at_half)).collect()
        };
        assert_eq!(scores(&pred.join("Kvasir"), &gt.join("Kvasir/masks")), [(3, Some(1.0))]);
        assert_eq!(scores(&pred.join("Kvasir"), &gt.join("Kvasir")), [(3, Some(1.0))]);
        assert_eq!(scores(&pred, &gt), [(3, Some(1.0)); 2]);
        // Maps saved as 0 and 1.
        for i in 0..3 {
            save(&pred.join(format!("Kvasir/{i}.png")), 24, |x, y| disc(x, y) / 255);
        }
        assert_eq!(scores(&pred.join("Kvasir"), &gt.join("Kvasir/masks")), [(3, Some(1.0))]);

        std::fs::remove_file(pred.join("Kvasir/0.png")).unwrap();
        std::fs::remove_file(pred.join("Kvasir/2.png")).unwrap();
        let text = score_maps(&pred, &gt, || {}).unwrap_err().to_string();
        assert!(text.contains("Kvasir: no map with the name 0, 2"), "{text}");
        std::fs::remove_dir_all(pred.join("Kvasir")).unwrap();
        let scored = score_maps(&pred, &gt, || {}).unwrap();
        assert!(
            scored.sets.len() == 1 && scored.notes[0].contains("no maps of Kvasir"),
            "{:?}",
            scored.notes
        );
    }
}
