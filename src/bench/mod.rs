//! Benchmarks: the model ([`model`]), and the element in a live pipeline ([`live`]).

#[cfg(feature = "video")]
mod integrity;
#[cfg(feature = "video")]
pub mod live;
pub mod model;
#[cfg(feature = "video")]
mod shown;

use crate::Result;
use crate::data;
use crate::report::Curve;
use crate::synth::{Sequence, SequenceConfig};
use image::{GrayImage, RgbImage, imageops};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Percentiles of measured times in milliseconds, by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Percentiles {
    /// `None` if nothing was measured.
    pub fn of(times: &[Duration]) -> Option<Self> {
        let mut ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let max = *ms.last()?;
        let at = |share: f64| ms[((share * ms.len() as f64).ceil() as usize).clamp(1, ms.len()) - 1];
        Some(Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), p999: at(0.999), max })
    }
}

/// The cumulative distribution of `times`: milliseconds to per cent.
pub fn distribution(label: &str, times: &[Duration]) -> Curve {
    let mut ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let share = |i: usize| 100.0 * (i + 1) as f64 / ms.len() as f64;
    Curve { label: label.to_owned(), points: ms.iter().enumerate().map(|(i, t)| (*t, share(i))).collect() }
}

/// Peak memory of this process in MB (10⁶ bytes); `None` if the OS does not report it.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Memory pages that all threads of this process got from the OS so far (minor faults, proc(5)); `None` if unknown.
fn fresh_pages() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name in brackets, which may contain blanks, comes field 3; this is field 10.
    stat.rsplit(')').next()?.split_whitespace().nth(7)?.parse().ok()
}

/// At most `most` images at `width × height`: the first of the folder `input` (images in name order, or a data set), or
/// synthetic endoscopy if it is `None`.
///
/// # Errors
/// If the folder has no images or cannot be read.
pub fn images(input: Option<&Path>, width: u32, height: u32, most: usize) -> Result<Vec<RgbImage>> {
    labelled(input, width, height, most)?.map(|labelled| labelled.map(|(image, _)| image)).collect()
}

/// An image and its true mask, if there is one.
type Labelled = (RgbImage, Option<GrayImage>);

/// The same images with their masks, as an iterator, so that images need memory only while they are used.
fn labelled(
    input: Option<&Path>,
    width: u32,
    height: u32,
    most: usize,
) -> Result<Box<dyn Iterator<Item = Result<Labelled>>>> {
    let fitted = move |image: RgbImage, mask: Option<GrayImage>| match image.dimensions() {
        same if same == (width, height) => (image, mask),
        _ => (
            imageops::resize(&image, width, height, imageops::FilterType::Triangle),
            mask.map(|m| imageops::resize(&m, width, height, imageops::FilterType::Nearest)),
        ),
    };
    let Some(dir) = input else {
        let sequence = Sequence::new(8, SequenceConfig { frames: most, ..SequenceConfig::default() })?;
        let frame = move |i| {
            let (image, mask) = sequence.frame(i);
            Ok(fitted(image, Some(mask)))
        };
        return Ok(Box::new((0..most).map(frame)));
    };
    let items = data::items_in(dir)?;
    let load = move |item: data::Item| {
        let pair = item.load()?;
        Ok(fitted(pair.rgb, item.mask.is_some().then_some(pair.mask)))
    };
    Ok(Box::new(items.into_iter().take(most).map(load)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_first_touch_of_a_page_is_counted() {
        let before = fresh_pages().unwrap();
        // Larger than the memory that any allocator keeps for reuse.
        let mut memory = vec![0u8; 64 << 20];
        memory.chunks_mut(4096).for_each(|page| page[0] = 1);
        assert!(std::hint::black_box(memory)[4096] == 1);
        assert!(fresh_pages().unwrap() - before >= 32, "of 2 MB at the most");
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<_> = (1..=1000).rev().map(Duration::from_millis).collect();
        let p = Percentiles::of(&times).unwrap();
        assert_eq!((p.p50, p.p95, p.p99, p.p999, p.max), (500.0, 950.0, 990.0, 999.0, 1000.0));
        let one = Percentiles::of(&[Duration::from_millis(3)]).unwrap();
        assert_eq!((one.p50, one.max), (3.0, 3.0));
        assert_eq!(Percentiles::of(&[]), None);
    }

    #[test]
    fn a_distribution_rises_to_a_hundred() {
        let curve = distribution("delay", &[3, 1, 2, 4].map(Duration::from_millis));
        assert_eq!(curve.points, [(1.0, 25.0), (2.0, 50.0), (3.0, 75.0), (4.0, 100.0)]);
    }
}
