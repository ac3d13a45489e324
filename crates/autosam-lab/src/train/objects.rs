//! Target objects for training a promptable SAM, so that it learns objects of every kind: labelled ones, shapes painted
//! into the image, regions found without labels, and no object.

use autosam_frame::map::ModelInput;
use autosam_frame::parts::{Neighbours, connected};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Side of the grid on which regions are grown.
const COARSE: usize = 48;
/// Minimum and maximum fraction of the image that a region covers.
const REGION_SHARE: [f32; 2] = [0.01, 0.4];
/// Number of seeds tried before giving up.
const SEEDS: usize = 6;

/// How often each kind of object is used; the numbers are weights, not fractions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectMix {
    /// The image's mask, or one connected component of it. No object if it is empty.
    pub labelled: f32,
    /// A shape painted into the image.
    pub shape: f32,
    /// A region of similar colour (only for boxes and masks: a point on one could mean anything).
    pub region: f32,
    /// No object, although the prompt points at one.
    pub nothing: f32,
}

impl Default for ObjectMix {
    fn default() -> Self {
        Self { labelled: 0.55, shape: 0.15, region: 0.15, nothing: 0.15 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Labelled,
    Shape,
    Region,
    Nothing,
}

impl ObjectMix {
    /// Whether the weights are valid.
    pub fn is_usable(&self) -> bool {
        let all = [self.labelled, self.shape, self.region, self.nothing];
        all.iter().all(|w| w.is_finite() && *w >= 0.0) && all.iter().sum::<f32>() > 0.0
    }

    fn draw(&self, rng: &mut impl Rng) -> Kind {
        let kinds = [
            (Kind::Labelled, self.labelled),
            (Kind::Shape, self.shape),
            (Kind::Region, self.region),
            (Kind::Nothing, self.nothing),
        ];
        let mut at = rng.random::<f32>() * kinds.iter().map(|k| k.1).sum::<f32>();
        for (kind, weight) in kinds {
            at -= weight;
            if at < 0.0 {
                return kind;
            }
        }
        Kind::Nothing
    }

    /// Replaces each of `masks` (`size × size`, 0 or 255) by the mask of the target object in `samples`, and paints
    /// shapes into `samples`. `ambiguous`: the prompt will be a single point.
    pub fn choose(
        &self,
        samples: &mut [ModelInput],
        masks: &mut [Vec<u8>],
        size: usize,
        ambiguous: bool,
        rng: &mut impl Rng,
    ) {
        for i in 0..samples.len() {
            let kind = match self.draw(rng) {
                Kind::Region if ambiguous => Kind::Shape,
                kind => kind,
            };
            masks[i] = match kind {
                Kind::Labelled if ambiguous || rng.random_bool(0.4) => component(&masks[i], size, rng),
                Kind::Labelled => std::mem::take(&mut masks[i]),
                Kind::Nothing => vec![0; size * size],
                Kind::Region => match region(&samples[i], size, rng) {
                    Some(region) => region,
                    None => vec![0; size * size],
                },
                Kind::Shape => {
                    let texture = rng.random_bool(0.5).then(|| samples[(i + 1) % samples.len()].clone());
                    paint(&mut samples[i], texture.as_ref(), size, rng)
                }
            };
        }
    }
}

/// A random shape with a smooth outline: an ellipse with a wavy radius.
#[derive(Debug, Clone, Copy)]
pub struct Blob {
    centre: [f32; 2],
    radius: f32,
    aspect: f32,
    turn: f32,
    waves: [[f32; 2]; 4],
}

impl Blob {
    /// Draws a shape within `width × height`; `radius` has the limits of its radius as a fraction of the shorter side.
    pub fn draw(width: usize, height: usize, radius: [f32; 2], rng: &mut impl Rng) -> Self {
        let side = width.min(height) as f32;
        let radius = side * rng.random_range(radius[0].ln()..=radius[1].ln()).exp();
        let waves = std::array::from_fn(|k| {
            [rng.random_range(0.0..0.22) / (k + 1) as f32, rng.random_range(0.0..std::f32::consts::TAU)]
        });
        Self {
            centre: [width, height].map(|s| s as f32 * rng.random_range(0.1..0.9)),
            radius,
            aspect: rng.random_range(0.5..=1.0),
            turn: rng.random_range(0.0..std::f32::consts::PI),
            waves,
        }
    }

    /// Approximate distance in pixels from (x, y) to the outline, positive inside.
    pub fn depth(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        let (sin, cos) = self.turn.sin_cos();
        let (u, v) = (cos * dx + sin * dy, (cos * dy - sin * dx) / self.aspect);
        let angle = v.atan2(u);
        let wave: f32 = self
            .waves
            .iter()
            .zip(2u8..)
            .map(|([a, phase], k)| a * (f32::from(k) * angle + phase).cos())
            .sum();
        self.radius * (1.0 + wave) - u.hypot(v)
    }
}

/// Paints a shape into `sample` with `texture`'s pixels, or with its own pixels recoloured, and returns the mask.
fn paint(sample: &mut ModelInput, texture: Option<&ModelInput>, size: usize, rng: &mut impl Rng) -> Vec<u8> {
    let (w, h) = (sample.width, sample.height);
    let blob = Blob::draw(w, h, [0.04, 0.3], rng);
    let soft = rng.random_range(0.5..3.0f32);
    let gain: [f32; 3] = {
        let all = rng.random_range(0.6..1.5f32);
        std::array::from_fn(|_| all * rng.random_range(0.85..1.15f32))
    };
    let strength = rng.random_range(0.5..=1.0f32);
    let mut mask = vec![0; size * size];
    for y in 0..h {
        for x in 0..w {
            let depth = blob.depth(x as f32, y as f32);
            let share = (0.5 + depth / (2.0 * soft)).clamp(0.0, 1.0) * strength;
            if depth > 0.0 {
                mask[y * size + x] = 255;
            }
            if share == 0.0 {
                continue;
            }
            let own = 3 * (y * w + x);
            let source =
                texture.map(|t| (t, 3 * ((t.height - 1 - y * t.height / h) * t.width + x * t.width / w)));
            for (c, gain) in gain.iter().enumerate() {
                let v = f32::from(sample.rgb[own + c]);
                let other = source.map_or(v, |(t, at)| f32::from(t.rgb[at + c])) * gain;
                sample.rgb[own + c] = (v + share * (other - v)).clamp(0.0, 255.0) as u8;
            }
        }
    }
    mask
}

/// A random connected component of `mask` (`size × size`), weighted by the square root of its size; empty if `mask` is.
fn component(mask: &[u8], size: usize, rng: &mut impl Rng) -> Vec<u8> {
    let parts = connected((size, size), Neighbours::Four, 0..mask.len(), |i| mask[i] > 127, |_, _| true);
    let roots: Vec<f32> = parts.iter().map(|part| (part.len() as f32).sqrt()).collect();
    let mut at = rng.random::<f32>() * roots.iter().sum::<f32>();
    let chosen = roots.iter().position(|root| {
        at -= root;
        at < 0.0
    });
    let mut one = vec![0; mask.len()];
    // Rounding may select none.
    if let Some(part) = chosen.map_or(parts.last(), |i| parts.get(i)) {
        part.iter().for_each(|i| one[*i] = 255);
    }
    one
}

/// The cells left, right, above and below `at` on a grid of `side × side`.
fn neighbours(at: usize, side: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % side, at / side);
    [
        (x > 0).then(|| at - 1),
        (x + 1 < side).then(|| at + 1),
        (y > 0).then(|| at - side),
        (y + 1 < side).then(|| at + side),
    ]
    .into_iter()
    .flatten()
}

/// The mask of a region of similar colour around a random position; `None` if none of a useful size was found.
fn region(sample: &ModelInput, size: usize, rng: &mut impl Rng) -> Option<Vec<u8>> {
    let (w, h) = (sample.width, sample.height);
    let cells: Vec<[f32; 3]> =
        (0..COARSE * COARSE).map(|i| cell_colour(sample, i % COARSE, i / COARSE)).collect();
    for _ in 0..SEEDS {
        let seed = rng.random_range(0..cells.len());
        let reach = rng.random_range(12.0..40.0f32);
        // Black is the border around the image, not an object.
        if cells[seed].iter().sum::<f32>() < 60.0 {
            continue;
        }
        let near = |i: usize| {
            cells[i].iter().zip(cells[seed]).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() < reach * reach
        };
        let mut inside = vec![false; cells.len()];
        let (mut open, mut count) = (vec![seed], 1);
        inside[seed] = true;
        while let Some(at) = open.pop() {
            for next in neighbours(at, COARSE) {
                if !inside[next] && near(next) {
                    inside[next] = true;
                    count += 1;
                    open.push(next);
                }
            }
        }
        let share = count as f32 / cells.len() as f32;
        if (REGION_SHARE[0]..=REGION_SHARE[1]).contains(&share) {
            return Some(enlarged(&inside, (w, h), size));
        }
    }
    None
}

/// Mean colour of a cell of the coarse grid.
fn cell_colour(sample: &ModelInput, x: usize, y: usize) -> [f32; 3] {
    let span =
        |i: usize, side: usize| i * side / COARSE..((i + 1) * side / COARSE).max(i * side / COARSE + 1);
    let (rows, columns) = (span(y, sample.height), span(x, sample.width));
    let count = (rows.len() * columns.len()) as f32;
    let mut sum = [0f32; 3];
    for y in rows {
        for x in columns.clone() {
            let at = 3 * (y.min(sample.height - 1) * sample.width + x.min(sample.width - 1));
            for (sum, v) in sum.iter_mut().zip(&sample.rgb[at..at + 3]) {
                *sum += f32::from(*v);
            }
        }
    }
    sum.map(|s| s / count)
}

/// Enlarges cells to a mask of `size × size` whose image covers `w × h`, bilinearly, so that outlines are smooth.
fn enlarged(inside: &[bool], (w, h): (usize, usize), size: usize) -> Vec<u8> {
    let value = |x: usize, y: usize| f32::from(u8::from(inside[y * COARSE + x]));
    let place = |i: usize, side: usize| {
        let at = ((i as f32 + 0.5) * COARSE as f32 / side as f32 - 0.5).clamp(0.0, (COARSE - 1) as f32);
        (at as usize, (at as usize + 1).min(COARSE - 1), at.fract())
    };
    let mut mask = vec![0; size * size];
    for y in 0..h {
        let (y0, y1, fy) = place(y, h);
        for x in 0..w {
            let (x0, x1, fx) = place(x, w);
            let top = value(x0, y0) + fx * (value(x1, y0) - value(x0, y0));
            let bottom = value(x0, y1) + fx * (value(x1, y1) - value(x0, y1));
            if top + fy * (bottom - top) > 0.5 {
                mask[y * size + x] = 255;
            }
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const SIZE: usize = 96;

    /// A red disc on green, in an image that does not fill the square.
    fn disc() -> (ModelInput, Vec<u8>) {
        let (w, h) = (SIZE, SIZE - 20);
        let inside = |x: usize, y: usize| (x as f32 - 60.0).hypot(y as f32 - 40.0) < 18.0;
        let pixel = |i: usize| if inside(i % w, i / w) { [220, 60, 60] } else { [60, 160, 60] };
        let rgb = (0..w * h).flat_map(pixel).collect();
        let mask = (0..SIZE * SIZE).map(|i| if inside(i % SIZE, i / SIZE) { 255 } else { 0 }).collect();
        (ModelInput { width: w, height: h, rgb }, mask)
    }

    fn only(kind: Kind) -> ObjectMix {
        let one = |k| if k == kind { 1.0 } else { 0.0 };
        ObjectMix {
            labelled: one(Kind::Labelled),
            shape: one(Kind::Shape),
            region: one(Kind::Region),
            nothing: one(Kind::Nothing),
        }
    }

    fn area(mask: &[u8]) -> usize {
        mask.iter().filter(|v| **v > 127).count()
    }

    #[test]
    fn a_component_is_a_connected_part_of_the_mask() {
        let mut mask = vec![0; SIZE * SIZE];
        for (i, pixel) in mask.iter_mut().enumerate() {
            let (x, y) = (i % SIZE, i / SIZE);
            if (5..15).contains(&x) && (5..15).contains(&y) || (40..60).contains(&x) && (40..60).contains(&y)
            {
                *pixel = 255;
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut areas: Vec<usize> = (0..40).map(|_| area(&component(&mask, SIZE, &mut rng))).collect();
        areas.sort_unstable();
        areas.dedup();
        assert_eq!(areas, [100, 400]);
        assert_eq!(area(&component(&vec![0; SIZE * SIZE], SIZE, &mut rng)), 0);
    }

    #[test]
    fn a_region_follows_the_colours_and_stays_inside_the_image() {
        let (sample, mask) = disc();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let found: Vec<_> = (0..30).filter_map(|_| region(&sample, SIZE, &mut rng)).collect();
        assert!(found.len() > 3, "{}", found.len());
        for region in found {
            let both = region.iter().zip(&mask).filter(|(a, b)| **a > 127 && **b > 127).count();
            assert!(2 * both > (area(&region) + area(&mask)) * 9 / 10, "{both}");
            assert!(region[sample.height * SIZE..].iter().all(|v| *v == 0));
        }
    }

    #[test]
    fn a_painted_shape_changes_the_image_where_its_mask_is() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..20 {
            let (sample, mask) = disc();
            let (mut samples, mut masks) = (vec![sample.clone(), sample.clone()], vec![mask.clone(), mask]);
            only(Kind::Shape).choose(&mut samples, &mut masks, SIZE, false, &mut rng);
            let changed = |i: usize| samples[0].rgb[3 * i..3 * i + 3] != sample.rgb[3 * i..3 * i + 3];
            let outside = (0..sample.width * sample.height)
                .filter(|i| masks[0][i / sample.width * SIZE + i % sample.width] == 0 && changed(*i))
                .count();
            // A soft edge of a few pixels lies outside.
            assert!(area(&masks[0]) > 0 && outside < area(&masks[0]) + 400, "{outside}");
        }
    }

    #[test]
    fn no_object_and_unlabelled_images_have_an_empty_target() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for (kind, mask) in [(Kind::Nothing, disc().1), (Kind::Labelled, vec![0; SIZE * SIZE])] {
            let (mut samples, mut masks) = (vec![disc().0], vec![mask]);
            only(kind).choose(&mut samples, &mut masks, SIZE, true, &mut rng);
            assert_eq!((area(&masks[0]), &samples[0]), (0, &disc().0));
        }
        assert!(!ObjectMix { labelled: 0.0, shape: 0.0, region: 0.0, nothing: 0.0 }.is_usable());
    }
}
