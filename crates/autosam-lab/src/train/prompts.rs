//! Prompts simulated from ground truth, as SAM was trained (arXiv 2304.02643, appendix A): points on and off the
//! object, its box with jitter, a rough low-resolution mask; and no prompt, for which the target is an empty mask.

use super::objects::Blob;
use crate::Result;
use autosam_frame::Rect;
use autosam_model::sam::Prompts;
use candle_core::{Device, Tensor};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How often each kind of prompt is drawn; the numbers are weights, not fractions.
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
        Self { none: 0.05, point: 0.25, bbox: 0.15, mask: 0.55 }
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
    /// Draws one kind for a whole batch, so that all its images have the same number of tokens.
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

/// Simulates prompts of one kind for a batch of target `masks` (each `size × size`, 0 or 255).
///
/// If a mask is empty, the prompt is an object point, a box or a rough mask at a random position. The target is then an
/// empty mask with overlap 0. `low` is the side of SAM's mask prompt, 4 × the embedding grid.
pub fn simulate(
    kind: PromptKind,
    masks: &[Vec<u8>],
    size: usize,
    low: usize,
    rng: &mut impl Rng,
    device: &Device,
) -> Result<Prompts> {
    let mut prompts = Prompts::default();
    match kind {
        PromptKind::None => {}
        PromptKind::Point => {
            let count = [1, 1, 2, 3][rng.random_range(0..4)];
            prompts.points = Some(points(masks, size, count, rng, device)?);
        }
        PromptKind::Box => prompts.boxes = Some(boxes(masks, size, rng, device)?),
        PromptKind::Mask => {
            let values = masks.iter().flat_map(|mask| rough(mask, size, low, rng)).collect::<Vec<f32>>();
            prompts.masks = Some(Tensor::from_vec(values, (masks.len(), 1, low, low), device)?);
            if rng.random_bool(0.2) {
                prompts.points = Some(points(masks, size, 1, rng, device)?);
            }
        }
    }
    Ok(prompts)
}

/// `count` points per image, the first on the object, others on or off it: coordinates `[N, P, 2]` and labels `[N, P]`.
fn points(
    masks: &[Vec<u8>],
    size: usize,
    count: usize,
    rng: &mut impl Rng,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let mut coords = Vec::with_capacity(2 * count * masks.len());
    let mut labels = Vec::with_capacity(count * masks.len());
    for mask in masks {
        let inside: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] > 127).collect();
        for p in 0..count {
            let object = p == 0 || rng.random_bool(0.5) && !inside.is_empty();
            let at = match inside.as_slice() {
                all if object && !all.is_empty() => all[rng.random_range(0..all.len())],
                _ => (0..8).map(|_| rng.random_range(0..mask.len())).find(|i| mask[*i] <= 127).unwrap_or(0),
            };
            coords.extend([(at % size) as f32, (at / size) as f32]);
            labels.push(if object { 1f32 } else { 0.0 });
        }
    }
    let n = masks.len();
    Ok((Tensor::from_vec(coords, (n, count, 2), device)?, Tensor::from_vec(labels, (n, count), device)?))
}

/// Each object's box with jitter, `[N, 4]`.
fn boxes(masks: &[Vec<u8>], size: usize, rng: &mut impl Rng, device: &Device) -> Result<Tensor> {
    let mut boxes = Vec::with_capacity(4 * masks.len());
    for mask in masks {
        let object = Rect::around(mask, size, 127);
        let corners = object.map(|r| (r.left, r.top, r.left + r.width - 1, r.top + r.height - 1));
        let (x0, y0, x1, y1) = corners.unwrap_or_else(|| {
            let (x, y) = (rng.random_range(0..size / 2), rng.random_range(0..size / 2));
            (x, y, x + rng.random_range(8..size / 2), y + rng.random_range(8..size / 2))
        });
        // Jitter of a tenth of the side, at most 20 px, as in SAM.
        let mut jitter = |v: usize, side: usize| {
            let d = (side as f32 * 0.1).min(20.0);
            (v as f32 + rng.random_range(-1.0..1.0) * d).clamp(0.0, size as f32 - 1.0)
        };
        let (w, h) = (x1 - x0 + 1, y1 - y0 + 1);
        boxes.extend([jitter(x0, w), jitter(y0, h), jitter(x1, w), jitter(y1, h)]);
    }
    Ok(Tensor::from_vec(boxes, (masks.len(), 4), device)?)
}

/// Logits `low × low` of a rough mask of the object: shifted, blurred, grown or shrunk, with a missing or additional
/// part, and more or less confident. For an empty mask, a shape at a random position.
fn rough(mask: &[u8], size: usize, low: usize, rng: &mut impl Rng) -> Vec<f32> {
    let step = size / low;
    let reach = (low / 48).max(1) as i64;
    let (dx, dy) = (rng.random_range(-reach..=reach), rng.random_range(-reach..=reach));
    let at = |v: usize, d: i64| (v as i64 + d).clamp(0, low as i64 - 1) as usize * step + step / 2;
    let mut share: Vec<f32> = (0..low * low)
        .map(|i| if mask[at(i / low, dy) * size + at(i % low, dx)] > 127 { 1.0 } else { 0.0 })
        .collect();
    let add = |share: &mut Vec<f32>, rng: &mut _| {
        let blob = Blob::draw(low, low, [0.03, 0.25], rng);
        for (i, v) in share.iter_mut().enumerate() {
            if blob.depth((i % low) as f32, (i / low) as f32) > 0.0 {
                *v = 1.0;
            }
        }
    };
    if share.iter().all(|v| *v == 0.0) {
        // Sometimes the mask prompt is empty.
        if rng.random_bool(0.6) {
            add(&mut share, rng);
        }
    } else if rng.random_bool(0.25) {
        add(&mut share, rng);
    }
    if rng.random_bool(0.15) {
        let [(x, w), (y, h)] =
            [(); 2].map(|()| (rng.random_range(0..low), rng.random_range(low / 8..low / 2)));
        for (i, v) in share.iter_mut().enumerate() {
            if (i % low).wrapping_sub(x) < w && (i / low).wrapping_sub(y) < h {
                *v = 0.0;
            }
        }
    }
    let blur = rng.random_range(0..=low / 16);
    let share = box_mean(&box_mean(&share, low, blur, 1, low), low, blur, low, 1);
    let grown = rng.random_range(-0.25..0.25f32);
    let sure = rng.random_range(1.0f32.ln()..8f32.ln()).exp();
    let noise = rng.random_range(0.0..1.0f32);
    share
        .into_iter()
        .map(|v| {
            sure * (2.0 * (v + if v > 0.0 { grown } else { 0.0 }) - 1.0).clamp(-1.0, 1.0)
                + noise * rng.random_range(-1.0..1.0f32)
        })
        .collect()
}

/// Mean over `2 · reach + 1` values along the axis with stride `step`; lines have stride `line`.
fn box_mean(from: &[f32], side: usize, reach: usize, step: usize, line: usize) -> Vec<f32> {
    let mut to = vec![0f32; from.len()];
    for l in 0..side {
        let at = |i: usize| from[l * line + i * step];
        let mut sum: f32 = (0..reach.min(side)).map(at).sum();
        for i in 0..side {
            sum += if i + reach < side { at(i + reach) } else { 0.0 };
            sum -= if i > reach { at(i - reach - 1) } else { 0.0 };
            to[l * line + i * step] = (sum / (2 * reach + 1) as f32).max(0.0);
        }
    }
    to
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
    fn point_prompts_match_their_labels() {
        let masks = vec![square(20, 10), vec![0; SIZE * SIZE]];
        let mut rng = rng();
        for _ in 0..40 {
            let p = simulate(PromptKind::Point, &masks, SIZE, 16, &mut rng, &Device::Cpu).unwrap();
            let (coords, labels) = p.points.unwrap();
            let (c, l) = (coords.to_vec3::<f32>().unwrap(), labels.to_vec2::<f32>().unwrap());
            // The first point is labelled as object even if the mask is empty.
            assert!(l[0][0] == 1.0 && l[1][0] == 1.0);
            for (point, label) in c[0].iter().zip(&l[0]) {
                let on = (20.0..30.0).contains(&point[0]) && (20.0..30.0).contains(&point[1]);
                assert_eq!(on, *label == 1.0, "{point:?}");
            }
        }
    }

    #[test]
    fn boxes_contain_the_object_up_to_jitter() {
        let p = simulate(PromptKind::Box, &[square(20, 20)], SIZE, 16, &mut rng(), &Device::Cpu).unwrap();
        let b = p.boxes.unwrap().to_vec2::<f32>().unwrap()[0].clone();
        for (got, want) in b.iter().zip([20.0, 20.0, 39.0, 39.0]) {
            assert!((got - want).abs() <= 2.0, "{b:?}");
        }
    }

    #[test]
    fn mask_prompts_are_positive_inside() {
        let mut rng = rng();
        let (mut inside, mut outside, mut nowhere) = (0, 0, 0);
        for _ in 0..60 {
            let masks = [square(16, 32), vec![0; SIZE * SIZE]];
            let p = simulate(PromptKind::Mask, &masks, SIZE, 16, &mut rng, &Device::Cpu).unwrap();
            let m = p.masks.unwrap();
            assert_eq!(m.dims(), [2, 1, 16, 16]);
            let v = m.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            inside += usize::from(v[8 * 16 + 8] > 0.0);
            outside += usize::from(v[0] > 0.0);
            nowhere += usize::from(v[256..].iter().any(|v| *v > 0.5));
        }
        // Rough but not wrong: most are correct in the middle and in the corner.
        assert!(inside > 45 && outside < 10, "{inside}, {outside}");
        // For an empty mask the prompt is usually a shape somewhere.
        assert!((15..60).contains(&nowhere), "{nowhere}");
    }

    #[test]
    fn prompt_kinds_are_drawn_by_their_weights() {
        let mix = PromptMix { none: 0.0, point: 1.0, bbox: 0.0, mask: 3.0 };
        let mut rng = rng();
        let masks = (0..400).filter(|_| mix.draw(&mut rng) == PromptKind::Mask).count();
        assert!((250..350).contains(&masks), "{masks}");
    }
}
