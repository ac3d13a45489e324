//! Prompts simulated from ground truth, as SAM was trained (arXiv 2304.02643, appendix A): points inside the
//! object, its box with jitter, a rough low-resolution mask; and none at all, for which the answer asked for
//! is "the polyp, if there is one".

use crate::Result;
use crate::sam::Prompts;
use candle_core::{Device, Tensor};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How often each kind is drawn; the numbers are weights, not fractions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptMix {
    pub none: f32,
    pub point: f32,
    pub bbox: f32,
    pub mask: f32,
}

impl Default for PromptMix {
    fn default() -> Self {
        Self { none: 0.4, point: 0.25, bbox: 0.2, mask: 0.15 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptKind {
    None,
    Point,
    Box,
    Mask,
}

impl PromptMix {
    /// Draws a kind; one for a whole batch, so that all its images have the same number of tokens.
    pub fn draw(&self, rng: &mut impl Rng) -> PromptKind {
        let kinds = [
            (PromptKind::None, self.none),
            (PromptKind::Point, self.point),
            (PromptKind::Box, self.bbox),
            (PromptKind::Mask, self.mask),
        ];
        let mut at = rng.random::<f32>() * kinds.iter().map(|k| k.1).sum::<f32>();
        for (kind, weight) in kinds {
            at -= weight;
            if at < 0.0 {
                return kind;
            }
        }
        PromptKind::None
    }
}

/// Prompts of one kind for a batch of `masks` (each `size × size`, 0 or 255).
///
/// Where a mask is empty, a point is labelled background, a box lies anywhere and the mask prompt is empty:
/// the right answer stays "nothing". `low` is the side of SAM's mask prompt, 4 × the embedding grid.
pub fn simulate(
    kind: PromptKind,
    masks: &[Vec<u8>],
    size: usize,
    low: usize,
    rng: &mut impl Rng,
    device: &Device,
) -> Result<Prompts> {
    let n = masks.len();
    let mut prompts = Prompts::default();
    match kind {
        PromptKind::None => {}
        PromptKind::Point => {
            let mut coords = Vec::with_capacity(2 * n);
            let mut labels = Vec::with_capacity(n);
            for mask in masks {
                let inside: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] > 127).collect();
                let at = if inside.is_empty() {
                    rng.random_range(0..mask.len())
                } else {
                    inside[rng.random_range(0..inside.len())]
                };
                coords.extend([(at % size) as f32, (at / size) as f32]);
                labels.push(if inside.is_empty() { 0f32 } else { 1.0 });
            }
            prompts.points = Some((
                Tensor::from_vec(coords, (n, 1, 2), device)?,
                Tensor::from_vec(labels, (n, 1), device)?,
            ));
        }
        PromptKind::Box => {
            let mut boxes = Vec::with_capacity(4 * n);
            for mask in masks {
                let (x0, y0, x1, y1) = bounding_box(mask, size).unwrap_or_else(|| {
                    let (x, y) = (rng.random_range(0..size / 2), rng.random_range(0..size / 2));
                    (x, y, x + rng.random_range(8..size / 2), y + rng.random_range(8..size / 2))
                });
                // Jitter of a tenth of the side, at most 20 px, as SAM.
                let mut jitter = |v: usize, side: usize| {
                    let d = (side as f32 * 0.1).min(20.0);
                    (v as f32 + rng.random_range(-1.0..1.0) * d).clamp(0.0, size as f32 - 1.0)
                };
                let (w, h) = (x1 - x0 + 1, y1 - y0 + 1);
                boxes.extend([jitter(x0, w), jitter(y0, h), jitter(x1, w), jitter(y1, h)]);
            }
            prompts.boxes = Some(Tensor::from_vec(boxes, (n, 4), device)?);
        }
        PromptKind::Mask => {
            let mut values = Vec::with_capacity(n * low * low);
            for mask in masks {
                // A rough mask: shifted by up to a cell or two, its logits blurred by sampling, not sharp.
                let step = size / low;
                let reach = 2 * step as i64;
                let (dx, dy) = (rng.random_range(-reach..=reach), rng.random_range(-reach..=reach));
                for y in 0..low {
                    for x in 0..low {
                        let at =
                            |v: usize, d: i64| ((v * step + step / 2) as i64 + d).clamp(0, size as i64 - 1);
                        let inside = mask[at(y, dy) as usize * size + at(x, dx) as usize] > 127;
                        values.push(if inside { 6f32 } else { -6.0 } + rng.random_range(-2.0..2.0));
                    }
                }
            }
            prompts.masks = Some(Tensor::from_vec(values, (n, 1, low, low), device)?);
        }
    }
    Ok(prompts)
}

/// First and last column and row (inclusive) of the pixels above half, as x0, y0, x1, y1.
fn bounding_box(mask: &[u8], size: usize) -> Option<(usize, usize, usize, usize)> {
    let (mut x0, mut y0, mut x1, mut y1) = (size, size, 0, 0);
    for (i, _) in mask.iter().enumerate().filter(|(_, v)| **v > 127) {
        let (x, y) = (i % size, i / size);
        (x0, y0, x1, y1) = (x0.min(x), y0.min(y), x1.max(x), y1.max(y));
    }
    (x0 < size).then_some((x0, y0, x1, y1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const SIZE: usize = 64;

    fn square(at: usize, side: usize) -> Vec<u8> {
        (0..SIZE * SIZE)
            .map(|i| {
                let inside = |v: usize| (at..at + side).contains(&v);
                if inside(i % SIZE) && inside(i / SIZE) { 255 } else { 0 }
            })
            .collect()
    }

    fn rng() -> rand_chacha::ChaCha8Rng {
        rand_chacha::ChaCha8Rng::seed_from_u64(3)
    }

    #[test]
    fn points_lie_on_the_object_and_background_points_are_labelled_so() {
        let masks = vec![square(20, 10), vec![0; SIZE * SIZE]];
        for _ in 0..20 {
            let p = simulate(PromptKind::Point, &masks, SIZE, 16, &mut rng(), &Device::Cpu).unwrap();
            let (coords, labels) = p.points.unwrap();
            let c = coords.to_vec3::<f32>().unwrap();
            assert!((20.0..30.0).contains(&c[0][0][0]) && (20.0..30.0).contains(&c[0][0][1]));
            assert_eq!(labels.to_vec2::<f32>().unwrap(), [[1.0], [0.0]]);
        }
    }

    #[test]
    fn boxes_hold_the_object_within_their_jitter() {
        let p = simulate(PromptKind::Box, &[square(20, 20)], SIZE, 16, &mut rng(), &Device::Cpu).unwrap();
        let b = p.boxes.unwrap().to_vec2::<f32>().unwrap()[0].clone();
        for (got, want) in b.iter().zip([20.0, 20.0, 39.0, 39.0]) {
            assert!((got - want).abs() <= 2.0, "{b:?}");
        }
    }

    #[test]
    fn mask_prompts_are_positive_inside() {
        let p = simulate(PromptKind::Mask, &[square(16, 32)], SIZE, 16, &mut rng(), &Device::Cpu).unwrap();
        let m = p.masks.unwrap();
        assert_eq!(m.dims(), [1, 1, 16, 16]);
        let v = m.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(v[8 * 16 + 8] > 0.0 && v[0] < 0.0);
    }

    #[test]
    fn the_mix_is_followed() {
        let mix = PromptMix { none: 0.0, point: 1.0, bbox: 0.0, mask: 3.0 };
        let mut rng = rng();
        let masks = (0..400).filter(|_| mix.draw(&mut rng) == PromptKind::Mask).count();
        assert!((250..350).contains(&masks), "{masks}");
    }
}
