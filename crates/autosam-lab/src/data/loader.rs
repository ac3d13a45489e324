//! Batches for training in an endless, seeded order with random access.

use super::augment::{Augment, Augmented};
use super::mix::Mix;
use super::{Dataset, Item, Pair};
use crate::{Error, Result};
use autosam_frame::map::ModelInput;
use autosam_frame::region::CropMode;
use autosam_frame::resize::InputSize;
use parking_lot::Mutex;
use rand::Rng;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Size of the network's input.
    pub input: InputSize,
    pub batch: usize,
    pub seed: u64,
    pub augment: Augment,
    /// The part of each image that is used.
    pub roi: CropMode,
    /// Number of augmentations of each image, which alternate from epoch to epoch; 0: a new one every time.
    pub views: u32,
    /// Number of consecutive frames of a sequence in a batch, with the same augmentation (for losses over time); 1:
    /// single images. Must divide `batch`.
    pub window: usize,
    /// Bytes of decoded images kept in memory; others are decoded every time.
    pub kept: u64,
    /// Whether an unreadable image is an error. Otherwise it is logged once, and the next one replaces it.
    pub strict: bool,
    /// How much more often an image with a polyp smaller than [`SMALL_POLYP`] is drawn than others; at least 1.
    pub small_polyps: f32,
}

/// A polyp is small if it covers less than this fraction of its image: 32 × 32 pixels of a network's 256 × 256. A
/// quarter of BKAI's images have one.
pub const SMALL_POLYP: f64 = 1.0 / 64.0;
/// Components that cover less are specks of the annotation.
const SPECK: f64 = 1.0 / 2048.0;

impl LoaderConfig {
    /// Single images, with a new augmentation every time.
    pub fn new(input: impl Into<InputSize>, batch: usize, seed: u64, augment: Augment) -> Self {
        Self {
            input: input.into(),
            batch,
            seed,
            augment,
            roi: CropMode::Full,
            views: 0,
            window: 1,
            kept: 0,
            strict: true,
            small_polyps: 1.0,
        }
    }
}

/// Model inputs and, in the same order, their masks on the padded square (`size × size`, 0 or 255) and names.
#[derive(Debug, Clone)]
pub struct Batch {
    pub samples: Vec<ModelInput>,
    pub masks: Vec<Vec<u8>>,
    /// Paths, for messages about a batch.
    pub ids: Vec<String>,
}

/// Draws batches from several data sets. Within an epoch every image is drawn `weight` times, one with a small polyp
/// [`LoaderConfig::small_polyps`] times as often.
#[derive(Debug)]
pub struct Loader {
    config: LoaderConfig,
    /// Items, repeated by their data set's weight; fractions are rounded up or down by position.
    items: Vec<Item>,
    /// Images found unreadable so far.
    unreadable: Mutex<HashSet<PathBuf>>,
    kept: Mutex<Kept>,
}

/// Cache of decoded images by index of the item.
#[derive(Debug, Default)]
struct Kept {
    pairs: HashMap<usize, Arc<Pair>>,
    bytes: u64,
}

impl Loader {
    pub fn new(sets: &[(Dataset, f32)], config: LoaderConfig) -> Result<Self> {
        if !(1.0..=100.0).contains(&config.small_polyps) {
            return Err(Error::invalid(format!(
                "small_polyps is {}; it must be within 1 and 100",
                config.small_polyps
            )));
        }
        let mut items = Vec::new();
        for (set, weight) in sets {
            if !(0.0..=1000.0).contains(weight) {
                return Err(Error::invalid(format!(
                    "{}: weight {weight} is not within 0 and 1000",
                    set.name
                )));
            }
            let (weight, mut sum) = (f64::from(*weight), 0.0);
            for (item, times) in set.items.iter().zip(times(set, &config)?) {
                let upto = |sum: f64| (sum * weight).floor() as usize;
                items.extend(std::iter::repeat_n(item, upto(sum + times) - upto(sum)).cloned());
                sum += times;
            }
        }
        if items.is_empty() {
            return Err(Error::invalid(
                "no image to train on: the data sets are empty or their weights are 0",
            ));
        }
        if config.window == 0 || !config.batch.is_multiple_of(config.window) {
            return Err(Error::invalid(format!(
                "window is {}; it must divide batch, which is {}",
                config.window, config.batch
            )));
        }
        Ok(Self { config, items, unreadable: Mutex::default(), kept: Mutex::default() })
    }

    /// Images per epoch.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Always false, because a loader has at least one image.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Endless iterator over every `step`th batch from number `first` on; skipped ones are not read. Batch n does not
    /// depend on earlier ones.
    pub fn batches_from(&self, first: u64, step: usize) -> impl Iterator<Item = Result<Batch>> + '_ {
        let (mut epoch, mut order) = (u64::MAX, Vec::new());
        let windows = (self.config.batch / self.config.window) as u64;
        (first..).step_by(step).map(move |number| {
            // Item and the number of its random stream.
            let picks: Vec<(usize, u64)> = (0..windows)
                .flat_map(|k| {
                    let position = number * windows + k;
                    let count = self.items.len() as u64;
                    if position / count != epoch {
                        epoch = position / count;
                        order = (0..self.items.len()).collect();
                        order.shuffle(&mut stream(self.config.seed, 2 * epoch));
                    }
                    let at = order[(position % count) as usize];
                    let round = match u64::from(self.config.views) {
                        0 => position,
                        views => at as u64 * views + epoch % views,
                    };
                    self.window(at).into_iter().map(move |i| (i, 2 * round + 1))
                })
                .collect();
            let drawn = picks
                .par_iter()
                .map(|(at, number)| self.augmented(*at, *number))
                .collect::<Result<Vec<_>>>()?;
            let mut batch = Batch { samples: Vec::new(), masks: Vec::new(), ids: Vec::new() };
            for (augmented, id) in drawn {
                batch.samples.push(augmented.sample);
                batch.masks.push(augmented.mask);
                batch.ids.push(id);
            }
            Ok(batch)
        })
    }

    /// `window` consecutive items of a sequence from `at` on. The window is shifted back at a sequence's end; the last
    /// item is repeated if the sequence is shorter.
    fn window(&self, at: usize) -> Vec<usize> {
        let length = self.config.window;
        let same = |i: usize| {
            let (a, b) = (&self.items[i], &self.items[at]);
            a.sequence == b.sequence && a.image.parent() == b.image.parent()
        };
        let end = (at..self.items.len()).take(length).take_while(|i| same(*i)).last().unwrap_or(at);
        let from = (0..=at).rev().take_while(|i| same(*i) && end - i < length).last().unwrap_or(at);
        (0..length).map(|k| (from + k).min(end)).collect()
    }

    /// Item `at`, or the next readable one, augmented with random stream `number`.
    fn augmented(&self, at: usize, number: u64) -> Result<(Augmented, String)> {
        let (item, pair) = self.pair(at)?;
        let mut rng = stream(self.config.seed, number);
        let mut augmented = self.config.augment.apply(&pair, self.config.input, &mut rng)?;
        if let Some(mix) = Mix::draw(&self.config.augment, &mut rng) {
            let (_, other) = self.pair(rng.random_range(0..self.items.len()))?;
            let other = mix.augment(&self.config.augment).apply(&other, self.config.input, &mut rng)?;
            mix.apply(&mut augmented, &other, &mut rng);
        }
        Ok((augmented, item.image.display().to_string()))
    }

    /// Item `at`, or the next readable one, and its cropped image.
    fn pair(&self, at: usize) -> Result<(&Item, Arc<Pair>)> {
        let mut failed = None;
        for i in (at..self.items.len()).chain(0..at) {
            let item = &self.items[i];
            if let Some(pair) = self.kept.lock().pairs.get(&i) {
                return Ok((item, pair.clone()));
            }
            match item.load() {
                Ok(pair) => {
                    let pair = Arc::new(pair.trained(self.config.roi)?);
                    self.keep(i, &pair);
                    return Ok((item, pair));
                }
                Err(e) if self.config.strict => return Err(e),
                Err(e) => {
                    let mut unreadable = self.unreadable.lock();
                    if unreadable.insert(item.image.clone()) {
                        tracing::warn!("left out: {e}");
                    }
                    failed = Some(e);
                }
            }
        }
        Err(failed.unwrap_or_else(|| Error::invalid("there is no image")))
    }
}

impl Loader {
    /// Keeps a decoded image if there is room.
    fn keep(&self, at: usize, pair: &Arc<Pair>) {
        let bytes = (pair.rgb.len() + pair.mask.len()) as u64;
        let mut kept = self.kept.lock();
        if kept.bytes + bytes <= self.config.kept && kept.pairs.insert(at, pair.clone()).is_none() {
            kept.bytes += bytes;
        }
    }
}

/// How often each image of `set` is drawn, before the set's weight.
fn times(set: &Dataset, config: &LoaderConfig) -> Result<Vec<f64>> {
    if config.small_polyps == 1.0 {
        return Ok(vec![1.0; set.items.len()]);
    }
    let small = |item: &Item| -> Result<bool> {
        match item.load() {
            Ok(pair) => {
                let polyps = pair.trained(config.roi)?.polyps();
                Ok(polyps.into_iter().any(|share| (SPECK..SMALL_POLYP).contains(&share)))
            }
            // The error is reported, or fails the training, when the image is drawn.
            Err(_) => Ok(false),
        }
    };
    let times = |item| Ok(if small(item)? { f64::from(config.small_polyps) } else { 1.0 });
    set.items.par_iter().map(times).collect()
}

/// An independent random stream for each `number`.
fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::GrayImage;

    fn set(dir: &std::path::Path, count: usize) -> Dataset {
        for folder in ["images", "masks"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
            for i in 0..count {
                GrayImage::from_fn(9, 9, |x, y| image::Luma([(x * 20 + y * 5 + i as u32) as u8]))
                    .save(dir.join(folder).join(format!("{i}.png")))
                    .unwrap();
            }
        }
        Dataset::open(dir).unwrap()
    }

    fn loader(sets: &[(Dataset, f32)]) -> Loader {
        Loader::new(sets, LoaderConfig::new(16, 3, 5, Augment::default())).unwrap()
    }

    #[test]
    fn augmentations_alternate_between_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let sets = [(set(dir.path(), 3), 1.0)];
        let config = LoaderConfig { views: 2, ..LoaderConfig::new(16, 3, 5, Augment::default()) };
        let loader = Loader::new(&sets, config).unwrap();
        let of = |first: u64| {
            let batch = loader.batches_from(first, 1).next().unwrap().unwrap();
            let mut views: Vec<_> = batch.ids.into_iter().zip(batch.samples).collect();
            views.sort_by(|a, b| a.0.cmp(&b.0));
            views
        };
        assert_eq!(of(0), of(2));
        assert_ne!(of(0), of(1));
    }

    #[test]
    fn a_window_has_consecutive_frames_with_one_augmentation() {
        let dir = tempfile::tempdir().unwrap();
        for (sequence, frames) in [("case1_1", 4), ("case2_1", 2)] {
            for kind in ["Frame", "GT"] {
                let folder = dir.path().join(kind).join(sequence);
                std::fs::create_dir_all(&folder).unwrap();
                for i in 0..frames {
                    GrayImage::from_fn(9, 9, |x, y| image::Luma([(x * 20 + y * 5) as u8]))
                        .save(folder.join(format!("{i}.png")))
                        .unwrap();
                }
            }
        }
        let sets = [(Dataset::open(dir.path()).unwrap(), 1.0)];
        let config = LoaderConfig { window: 3, ..LoaderConfig::new(16, 6, 5, Augment::default()) };
        let loader = Loader::new(&sets, config).unwrap();
        let mut seen: Vec<String> = Vec::new();
        for batch in loader.batches_from(0, 1).take(3) {
            let batch = batch.unwrap();
            for (ids, samples) in batch.ids.chunks(3).zip(batch.samples.chunks(3)) {
                let names: Vec<String> =
                    ids.iter().map(|i| i.split("Frame/").nth(1).unwrap().to_owned()).collect();
                seen.push(names.join(" "));
                // All frames are equal, so they are still equal after the same augmentation.
                assert!(samples.iter().all(|s| *s == samples[0]));
            }
        }
        seen.sort();
        let (a, b, c) = (
            "case1_1/0.png case1_1/1.png case1_1/2.png",
            "case1_1/1.png case1_1/2.png case1_1/3.png",
            "case2_1/0.png case2_1/1.png case2_1/1.png",
        );
        assert_eq!(seen, [a, b, b, b, c, c]);
    }

    #[test]
    fn an_unreadable_image_is_replaced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let sets = [(set(dir.path(), 3), 1.0)];
        let bad = dir.path().join("images/1.png");
        std::fs::write(&bad, b"not an image").unwrap();
        let config = LoaderConfig::new(16, 3, 5, Augment::default());
        let strict = Loader::new(&sets, config.clone()).unwrap();
        let text = strict.batches_from(0, 1).next().unwrap().unwrap_err().to_string();
        assert!(text.contains("1.png: cannot read the image"), "{text}");
        let loader = Loader::new(&sets, LoaderConfig { strict: false, ..config }).unwrap();
        let ids = loader.batches_from(0, 1).next().unwrap().unwrap().ids;
        assert!(ids.len() == 3 && ids.iter().all(|i| !i.ends_with("1.png")), "{ids:?}");
    }

    #[test]
    fn only_the_endoscope_s_image_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images", "masks"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            let of = |x: u32, y: u32| (50..150).contains(&x) && (10..90).contains(&y);
            GrayImage::from_fn(200, 100, |x, y| image::Luma([if of(x, y) { 200 } else { 0 }]))
                .save(dir.path().join(folder).join("0.png"))
                .unwrap();
        }
        let sets = [(Dataset::open(dir.path()).unwrap(), 1.0)];
        let shown = |roi| {
            let config = LoaderConfig { roi, ..LoaderConfig::new(64, 1, 5, Augment::none()) };
            let batch = Loader::new(&sets, config).unwrap().batches_from(0, 1).next().unwrap().unwrap();
            let lit = batch.masks[0].iter().filter(|v| **v > 0).count() as f64;
            lit / (batch.samples[0].width * batch.samples[0].height) as f64
        };
        assert!((shown(CropMode::Full) - 0.4).abs() < 0.03, "{}", shown(CropMode::Full));
        assert!(shown(CropMode::Auto) > 0.85, "{}", shown(CropMode::Auto));
    }

    #[test]
    fn mixed_images_are_reproducible() {
        let dir = tempfile::tempdir().unwrap();
        let sets = [(set(dir.path(), 5), 1.0)];
        let augment = Augment { cutmix: 0.5, paste: 0.5, mucosa: 0.3, ..Augment::default() };
        let config = LoaderConfig::new(32, 4, 9, augment);
        let of = |first| {
            let loader = Loader::new(&sets, config.clone()).unwrap();
            loader.batches_from(first, 1).next().unwrap().unwrap().samples
        };
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn an_epoch_contains_each_image_by_its_weight() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let loader = loader(&[(set(a.path(), 4), 2.0), (set(b.path(), 8), 0.5)]);
        assert_eq!(loader.len(), 12);
        let mut seen: Vec<String> = loader.batches_from(0, 1).take(4).flat_map(|b| b.unwrap().ids).collect();
        seen.sort();
        let of_a = seen.iter().filter(|id| id.starts_with(&a.path().display().to_string())).count();
        assert_eq!(of_a, 8);
        seen.dedup();
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn images_with_a_small_polyp_are_drawn_more_often() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path(), 4);
        // The second image has a large polyp and a small one, the third a large one, the first a speck.
        for (i, polyps) in [vec![1], vec![20, 4], vec![20], vec![]].into_iter().enumerate() {
            let mut mask = GrayImage::new(60, 60);
            for (k, side) in polyps.into_iter().enumerate() {
                let polyp = GrayImage::from_pixel(side, side, image::Luma([255]));
                image::imageops::replace(&mut mask, &polyp, 30 * k as i64, 5);
            }
            mask.save(dir.path().join(format!("masks/{i}.png"))).unwrap();
            GrayImage::new(60, 60).save(dir.path().join(format!("images/{i}.png"))).unwrap();
        }
        let config = LoaderConfig { small_polyps: 2.5, ..LoaderConfig::new(16, 3, 5, Augment::none()) };
        let sets = [(set, 2.0)];
        let loader = Loader::new(&sets, config.clone()).unwrap();
        let of =
            |i: usize| loader.items.iter().filter(|item| item.image.ends_with(format!("{i}.png"))).count();
        assert_eq!([of(0), of(1), of(2), of(3)], [2, 5, 2, 2]);
        let text = Loader::new(&sets, LoaderConfig { small_polyps: 0.5, ..config }).unwrap_err().to_string();
        assert!(text.contains("small_polyps is 0.5"), "{text}");
    }

    #[test]
    fn batches_have_random_access() {
        let dir = tempfile::tempdir().unwrap();
        let loader = loader(&[(set(dir.path(), 5), 1.0)]);
        let from_start = loader.batches_from(0, 1).nth(7).unwrap().unwrap();
        let direct = loader.batches_from(7, 1).next().unwrap().unwrap();
        assert_eq!(from_start.ids, direct.ids);
        assert_eq!(from_start.samples, direct.samples);
        assert_ne!(direct.samples, loader.batches_from(8, 1).next().unwrap().unwrap().samples);
    }
}
