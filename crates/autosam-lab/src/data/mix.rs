//! Mixing a part of one augmented image into another: CutMix (arXiv 1905.04899) and copy-paste (arXiv 2012.07177).

use super::augment::{Augment, Augmented};
use rand::Rng;

/// The part of another image that is mixed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// A rectangle of a fifth to three fifths of each side.
    Cut,
    /// The polyps, with softened edges and in the colours of where they land.
    Paste,
}

impl Mix {
    /// Draws whether to mix in another image, and how.
    pub fn draw(augment: &Augment, rng: &mut impl Rng) -> Option<Mix> {
        let at = rng.random::<f64>();
        if at < augment.cutmix {
            Some(Mix::Cut)
        } else if at < augment.cutmix + augment.paste {
            Some(Mix::Paste)
        } else {
            None
        }
    }

    /// How to augment the other image. Polyps are pasted smaller and anywhere in the frame: several small ones in a frame are rare in the data and are missed most.
    pub fn augment(self, augment: &Augment) -> Augment {
        match self {
            Mix::Cut => augment.clone(),
            Mix::Paste => Augment {
                scale: [0.5 * augment.scale[0], 0.7 * augment.scale[1]],
                shift: 0.35,
                ..augment.clone()
            },
        }
    }

    /// Mixes a part of `from`, augmented for the same network, into `into`.
    pub fn apply(self, into: &mut Augmented, from: &Augmented, rng: &mut impl Rng) {
        let size = (into.mask.len() as f64).sqrt() as usize;
        let (w, h) = (into.sample.width.min(from.sample.width), into.sample.height.min(from.sample.height));
        let [(left, wide), (top, high)] = [w, h].map(|side| {
            let length = (side as f32 * rng.random_range(0.2..=0.6f32)) as usize;
            (rng.random_range(0..=side - length), length)
        });
        let soft = match self {
            Mix::Cut => Vec::new(),
            Mix::Paste => softened(&from.mask, size),
        };
        let pixel = |of: &Augmented, x: usize, y: usize| -> [u8; 3] {
            of.sample.rgb[3 * (y * of.sample.width + x)..][..3].try_into().expect("three bytes")
        };
        // A share of 255 is all of `from`. Outside the endoscope's view nothing is pasted, nor onto it.
        let share = |into: &Augmented, x: usize, y: usize| match self {
            Mix::Cut => u8::from(x.wrapping_sub(left) < wide && y.wrapping_sub(top) < high) * 255,
            Mix::Paste if seen(pixel(from, x, y)) && seen(pixel(into, x, y)) => soft[y * size + x],
            Mix::Paste => 0,
        };
        let mut gain = [1.0f32; 3];
        if self == Mix::Paste {
            // Both images around the polyp, as sums: the tissue there should look the same.
            let (mut there, mut here) = ([0.0f32; 3], [0.0f32; 3]);
            for (x, y) in (0..h).flat_map(|y| (0..w).map(move |x| (x, y))) {
                if from.mask[y * size + x] == 0 && share(into, x, y) > 0 {
                    let (a, b) = (pixel(from, x, y), pixel(into, x, y));
                    (0..3).for_each(|c| {
                        there[c] += f32::from(a[c]);
                        here[c] += f32::from(b[c]);
                    });
                }
            }
            // Beyond a factor of two a polyp would lose its look.
            gain = std::array::from_fn(|c| ((here[c] + 1.0) / (there[c] + 1.0)).clamp(0.5, 2.0));
        }
        for y in 0..h {
            for x in 0..w {
                let (at, share) = (y * size + x, share(into, x, y));
                if share == 0 {
                    continue;
                }
                let (old, new, share) = (pixel(into, x, y), pixel(from, x, y), f32::from(share) / 255.0);
                let to = 3 * (y * into.sample.width + x);
                for c in 0..3 {
                    let new = (gain[c] * f32::from(new[c])).min(255.0);
                    into.sample.rgb[to + c] = (f32::from(old[c]) * (1.0 - share) + new * share).round() as u8;
                }
                match self {
                    Mix::Cut => into.mask[at] = from.mask[at],
                    Mix::Paste => into.mask[at] |= from.mask[at],
                }
            }
        }
    }
}

/// Whether a pixel is of the endoscope's view, not of the black around it.
fn seen(pixel: [u8; 3]) -> bool {
    pixel.iter().any(|v| *v > 10)
}

/// A mask (`size × size`) with a soft edge of a few pixels, so that a polyp is pasted with its surroundings.
fn softened(mask: &[u8], size: usize) -> Vec<u8> {
    let reach = (size / 32).max(1);
    // A box mean along each axis, doubled: full inside and at a straight outline, decreasing outside.
    let mean = |from: &[u32], stride: usize, step: usize| -> Vec<u32> {
        let mut to = vec![0; from.len()];
        for line in 0..size {
            let at = |i: usize| from[line * stride + i * step];
            let mut sum: u32 = (0..reach.min(size)).map(at).sum();
            for i in 0..size {
                sum += if i + reach < size { at(i + reach) } else { 0 };
                sum -= if i > reach { at(i - reach - 1) } else { 0 };
                to[line * stride + i * step] = sum / (2 * reach + 1) as u32;
            }
        }
        to
    };
    let wide: Vec<u32> = mask.iter().map(|v| u32::from(*v)).collect();
    let mean = mean(&mean(&wide, size, 1), 1, size);
    mean.into_iter().map(|v| (2 * v).min(255) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Pair;
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use rand::SeedableRng;

    /// A bright disc on a dark background, and its mask.
    fn disc() -> Pair {
        let inside = |x: u32, y: u32| (x as f32 - 30.0).hypot(y as f32 - 22.0) < 11.0;
        Pair {
            rgb: RgbImage::from_fn(80, 60, |x, y| {
                Rgb(if inside(x, y) { [200, 180, 160] } else { [60, 40, 40] })
            }),
            mask: GrayImage::from_fn(80, 60, |x, y| Luma([if inside(x, y) { 255 } else { 0 }])),
        }
    }

    /// `disc` pasted into an even image of a colour, and the disc.
    fn pasted(colour: [u8; 3]) -> (Augmented, Augmented) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let other = Augment::none().apply(&disc(), 64, &mut rng).unwrap();
        let even = Pair { rgb: RgbImage::from_pixel(80, 60, Rgb(colour)), mask: GrayImage::new(80, 60) };
        let mut augmented = Augment::none().apply(&even, 64, &mut rng).unwrap();
        Mix::Paste.apply(&mut augmented, &other, &mut rng);
        (augmented, other)
    }

    /// Mean red inside the mask. The input is as wide as the mask.
    fn inside(of: &Augmented) -> f32 {
        let red: Vec<f32> = (of.sample.rgb.chunks_exact(3).zip(&of.mask))
            .filter(|(_, m)| **m > 0)
            .map(|(p, _)| f32::from(p[0]))
            .collect();
        red.iter().sum::<f32>() / red.len() as f32
    }

    #[test]
    fn a_polyp_is_pasted_into_another_image_with_its_mask() {
        let (augmented, other) = pasted([60, 40, 40]);
        assert_eq!(augmented.mask, other.mask);
        // Outlines are soft where they bend.
        let ratio = inside(&augmented) / inside(&other);
        assert!((0.8..1.05).contains(&ratio), "{ratio}");
        assert_eq!(augmented.sample.rgb[..3], [60, 40, 40], "far from it nothing changes");
    }

    #[test]
    fn a_pasted_polyp_takes_the_light_of_where_it_lands() {
        // Half as bright around it, so half as bright itself.
        let (augmented, other) = pasted([30, 20, 20]);
        let ratio = inside(&augmented) / inside(&other);
        assert!((0.45..0.6).contains(&ratio), "{ratio}");
    }

    #[test]
    fn nothing_is_pasted_outside_the_view() {
        let (augmented, _) = pasted([0, 0, 0]);
        assert!(augmented.mask.iter().chain(&augmented.sample.rgb).all(|v| *v == 0));
    }

    #[test]
    fn pasted_polyps_are_drawn_smaller() {
        let augment = Augment::default();
        let (cut, paste) = (Mix::Cut.augment(&augment), Mix::Paste.augment(&augment));
        assert_eq!(cut.scale, augment.scale);
        assert!(paste.scale[0] < augment.scale[0] && paste.scale[1] < augment.scale[1]);
    }

    #[test]
    fn cutmix_pastes_a_rectangle_with_its_mask() {
        let (disc, mut rng) = (disc(), rand_chacha::ChaCha8Rng::seed_from_u64(5));
        let full = Pair { mask: GrayImage::from_pixel(80, 60, Luma([255])), ..disc.clone() };
        let other = Augment::none().apply(&full, 64, &mut rng).unwrap();
        let mut augmented =
            Augment::none().apply(&Pair { mask: GrayImage::new(80, 60), ..disc }, 64, &mut rng).unwrap();
        Mix::Cut.apply(&mut augmented, &other, &mut rng);
        let marked = augmented.mask.iter().filter(|v| **v > 0).count() as f32 / (64.0 * 48.0);
        assert!((0.03..=0.37).contains(&marked), "{marked}");
    }
}
