//! Batches for training: an endless, seeded order in which any batch can be had without those before it.

use super::augment::Augment;
use super::{Dataset, Item};
use crate::engine::segmenter::Sample;
use crate::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Side of the network's input in pixels.
    pub image_size: usize,
    pub batch: usize,
    pub seed: u64,
    pub augment: Augment,
}

/// Samples and, in the same order, their masks on the padded square (`size × size`, 0 or 255) and names.
#[derive(Debug, Clone)]
pub struct Batch {
    pub samples: Vec<Sample>,
    pub masks: Vec<Vec<u8>>,
    /// Paths, for messages about a batch.
    pub ids: Vec<String>,
}

/// Draws batches from several data sets. Within an epoch every picture comes `weight` times.
#[derive(Debug)]
pub struct Loader {
    config: LoaderConfig,
    /// Each item as often as its data set's weight says; a fraction is rounded up or down by position.
    items: Vec<Item>,
}

impl Loader {
    pub fn new(sets: &[(Dataset, f32)], config: LoaderConfig) -> Result<Self> {
        let mut items = Vec::new();
        for (set, weight) in sets {
            if !(0.0..=1000.0).contains(weight) {
                return Err(Error::invalid(format!(
                    "{}: weight {weight} is not within 0 and 1000",
                    set.name
                )));
            }
            let weight = f64::from(*weight);
            for (i, item) in set.items.iter().enumerate() {
                let upto = |n: usize| (n as f64 * weight).floor() as usize;
                items.extend(std::iter::repeat_n(item, upto(i + 1) - upto(i)).cloned());
            }
        }
        if items.is_empty() {
            return Err(Error::invalid(
                "no picture to train on: the data sets are empty or their weights are 0",
            ));
        }
        Ok(Self { config, items })
    }

    /// Pictures an epoch.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never: a loader has at least one picture.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Batches without end from number `first` on; the same as an iterator from 0 gives after `first` calls.
    pub fn batches_from(&self, first: u64) -> impl Iterator<Item = Result<Batch>> + '_ {
        let (mut epoch, mut order) = (u64::MAX, Vec::new());
        (first..).map(move |number| {
            let picks: Vec<(u64, &Item)> = (0..self.config.batch as u64)
                .map(|k| {
                    let position = number * self.config.batch as u64 + k;
                    let count = self.items.len() as u64;
                    if position / count != epoch {
                        epoch = position / count;
                        order = (0..self.items.len()).collect();
                        order.shuffle(&mut stream(self.config.seed, 2 * epoch));
                    }
                    (position, &self.items[order[(position % count) as usize]])
                })
                .collect();
            let views = picks
                .par_iter()
                .map(|(position, item)| {
                    let mut rng = stream(self.config.seed, 2 * position + 1);
                    self.config.augment.view(&item.load()?, self.config.image_size, &mut rng)
                })
                .collect::<Result<Vec<_>>>()?;
            let (samples, masks) = views.into_iter().unzip();
            Ok(Batch {
                samples,
                masks,
                ids: picks.iter().map(|(_, i)| i.image.display().to_string()).collect(),
            })
        })
    }
}

/// A stream of random numbers of its own for each `number`.
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
        let config = LoaderConfig { image_size: 16, batch: 3, seed: 5, augment: Augment::default() };
        Loader::new(sets, config).unwrap()
    }

    #[test]
    fn an_epoch_has_each_picture_as_often_as_weighted() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let loader = loader(&[(set(a.path(), 4), 2.0), (set(b.path(), 8), 0.5)]);
        assert_eq!(loader.len(), 12);
        let mut seen: Vec<String> = loader.batches_from(0).take(4).flat_map(|b| b.unwrap().ids).collect();
        seen.sort();
        let of_a = seen.iter().filter(|id| id.starts_with(&a.path().display().to_string())).count();
        assert_eq!(of_a, 8);
        seen.dedup();
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn any_batch_can_be_had_without_those_before() {
        let dir = tempfile::tempdir().unwrap();
        let loader = loader(&[(set(dir.path(), 5), 1.0)]);
        let from_start = loader.batches_from(0).nth(7).unwrap().unwrap();
        let direct = loader.batches_from(7).next().unwrap().unwrap();
        assert_eq!(from_start.ids, direct.ids);
        assert_eq!(from_start.samples, direct.samples);
        assert_ne!(direct.samples, loader.batches_from(8).next().unwrap().unwrap().samples);
    }
}
