//! Tileable surface detail: vessels, mottling, mucus, bubbles and the unevenness that makes highlights.

use super::math::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::f32::consts::TAU;

/// A square tileable texture of four channels with its mipmaps.
pub struct Texture {
    levels: Vec<(usize, Vec<[u8; 4]>)>,
}

impl Texture {
    fn new(size: usize, texels: Vec<[u8; 4]>) -> Self {
        let mut levels = vec![(size, texels)];
        while levels.last().is_some_and(|l| l.0 > 16) {
            let (n, fine) = levels.last().unwrap();
            let half = n / 2;
            let coarse = (0..half * half)
                .map(|i| {
                    let (x, y) = (i % half * 2, i / half * 2);
                    let at = |dx: usize, dy: usize| fine[(y + dy) * n + x + dx];
                    let four = [at(0, 0), at(1, 0), at(0, 1), at(1, 1)];
                    std::array::from_fn(|c| ((four.iter().map(|t| t[c] as u32).sum::<u32>() + 2) / 4) as u8)
                })
                .collect();
            levels.push((half, coarse));
        }
        Self { levels }
    }

    /// Four channels in 0..=1 at (`u`, `v`) in tiles; `lod` is log2 of the texels a pixel spans.
    pub fn sample(&self, u: f32, v: f32, lod: f32) -> [f32; 4] {
        let lod = lod.clamp(0.0, (self.levels.len() - 1) as f32);
        let (a, f) = split(lod);
        let mut near = self.bilinear(a as usize, u, v);
        if f > 0.02 {
            let far = self.bilinear(a as usize + 1, u, v);
            for c in 0..4 {
                near[c] = mix(near[c], far[c], f);
            }
        }
        near
    }

    fn bilinear(&self, level: usize, u: f32, v: f32) -> [f32; 4] {
        let (n, texels) = &self.levels[level];
        // Sizes are powers of two.
        let wrap = *n as i32 - 1;
        let ((x, fx), (y, fy)) = (split(u * *n as f32 - 0.5), split(v * *n as f32 - 0.5));
        let at = |x: i32, y: i32| texels[(y & wrap) as usize * n + (x & wrap) as usize];
        let mut sum = [0f32; 4];
        for (dx, dy, w) in [
            (0, 0, (1.0 - fx) * (1.0 - fy)),
            (1, 0, fx * (1.0 - fy)),
            (0, 1, (1.0 - fx) * fy),
            (1, 1, fx * fy),
        ] {
            let (texel, w) = (at(x + dx, y + dy), w * (1.0 / 255.0));
            for c in 0..4 {
                sum[c] += texel[c] as f32 * w;
            }
        }
        sum
    }
}

/// Colour detail and unevenness of one kind of surface.
pub struct Skin {
    /// Wall: vessels, mottling, mucus, dirt. Polyp: pits, mottling, pale patches, vessels.
    pub colour: Texture,
    /// Slope along u and v (0.5 is flat), wetness, bubbles.
    pub relief: Texture,
    /// Size of a tile in centimetres.
    pub tile: f32,
    /// Size of a tile in texels.
    pub size: usize,
}

fn quantise(x: f32) -> u8 {
    (x.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

/// Slopes of a tileable height field around 0.5, times `gain`.
fn slopes(height: &[f32], n: usize, gain: f32) -> impl Fn(usize) -> [f32; 2] + Sync + '_ {
    move |i| {
        let (x, y) = (i % n, i / n);
        let at = |x: usize, y: usize| height[(y % n) * n + x % n];
        let dx = at(x + 1, y) - at(x + n - 1, y);
        let dy = at(x, y + 1) - at(x, y + n - 1);
        [0.5 + gain * dx, 0.5 + gain * dy]
    }
}

/// `f` over the unit square, computed at a quarter of `n` in each direction and interpolated; for smooth features.
fn slow_field(n: usize, f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let m = n / 4;
    let coarse: Vec<f32> =
        (0..m * m).into_par_iter().map(|i| f((i % m) as f32 / m as f32, (i / m) as f32 / m as f32)).collect();
    (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (x, y) = (i % n, i / n);
            let (x0, y0, fx, fy) = (x / 4, y / 4, (x % 4) as f32 * 0.25, (y % 4) as f32 * 0.25);
            let (x1, y1) = ((x0 + 1) % m, (y0 + 1) % m);
            mix(
                mix(coarse[y0 * m + x0], coarse[y0 * m + x1], fx),
                mix(coarse[y1 * m + x0], coarse[y1 * m + x1], fx),
                fy,
            )
        })
        .collect()
}

/// `f` over the unit square at each of `n` × `n` texels.
fn field(n: usize, f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    (0..n * n).into_par_iter().map(|i| f((i % n) as f32 / n as f32, (i / n) as f32 / n as f32)).collect()
}

fn texture(n: usize, texel: impl Fn(usize) -> [f32; 4] + Sync) -> Texture {
    Texture::new(n, (0..n * n).into_par_iter().map(|i| texel(i).map(quantise)).collect())
}

/// Appearance of one bowel's wall.
pub struct WallLook {
    /// Number of vessel trees per tile.
    pub trees: u32,
    /// Fraction of the wall covered by mucus, 0 to 1.
    pub mucus: f32,
    /// Number of groups of bubbles per tile.
    pub foam: u32,
}

const WALL: usize = 1024;

/// The wall's skin, `tile` cm wide.
pub fn wall(seed: u32, rng: &mut ChaCha8Rng, look: &WallLook, tile: f32) -> Skin {
    let n = WALL;
    let vessels = vessels(seed, rng, n, look.trees);
    let bubbles = bubbles(rng, n, look.foam);
    let mucus = slow_field(n, |u, v| {
        if look.mucus == 0.0 {
            return 0.0;
        }
        let warp = 0.03 * fbm2_tiled(seed ^ 0x10, u, v, 7, 2);
        let edge = 1.05 - 1.3 * look.mucus;
        smoothstep(edge, edge + 0.22, fbm2_tiled(seed ^ 0x11, u + warp, v - warp, 9, 4))
    });
    let wet = slow_field(n, |u, v| 0.5 + 0.5 * fbm2_tiled(seed ^ 0x13, u, v, 11, 3));
    let mottle = slow_field(n, |u, v| 0.5 + 0.33 * fbm2_tiled(seed ^ 0x14, u, v, 6, 5));
    let rough = field(n, |u, v| fbm2_tiled(seed ^ 0x12, u, v, 40, 3));
    let height: Vec<f32> =
        (0..n * n).map(|i| 0.9 * rough[i] + 0.25 * vessels[i] + 0.5 * mucus[i] + 5.0 * bubbles[i]).collect();
    let slope = slopes(&height, n, 0.55);
    // Specks occur only within mucus, so the noise is computed only there.
    let dirt = field(n, |u, v| {
        let i = (v * n as f32) as usize * n + (u * n as f32) as usize;
        if mucus[i] < 0.1 {
            return 0.0;
        }
        smoothstep(0.62, 0.8, fbm2_tiled(seed ^ 0x15, u, v, 60, 2)) * smoothstep(0.1, 0.5, mucus[i])
    });
    Skin {
        colour: texture(n, |i| [vessels[i], mottle[i], mucus[i], dirt[i]]),
        relief: texture(n, |i| {
            let [dx, dy] = slope(i);
            [dx, dy, wet[i], if bubbles[i] > 0.0 { 1.0 - bubbles[i] } else { 0.0 }]
        }),
        tile,
        size: n,
    }
}

/// Pattern of a polyp's surface.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    Smooth,
    /// Round pits.
    Pits,
    /// Winding ridges, as on adenomas seen from close.
    Gyri,
}

const POLYP: usize = 512;

/// A polyp's skin, `tile` cm wide.
pub fn polyp(seed: u32, rng: &mut ChaCha8Rng, pattern: Pattern, tile: f32) -> Skin {
    let n = POLYP;
    let vessels = vessels(seed ^ 0x77, rng, n, 5);
    let cells: i32 = rng.random_range(13..24);
    let (wu, wv) = (
        slow_field(n, |u, v| 0.02 * fbm2_tiled(seed ^ 0x21, u, v, 9, 2)),
        slow_field(n, |u, v| 0.02 * fbm2_tiled(seed ^ 0x22, u, v, 9, 2)),
    );
    let pits = field(n, |u, v| {
        let i = (v * n as f32) as usize * n + (u * n as f32) as usize;
        let (wu, wv) = (u + wu[i], v + wv[i]);
        match pattern {
            Pattern::Smooth => 0.12 * (0.5 + 0.5 * noise2_tiled(seed ^ 0x23, u * 48.0, v * 48.0, 48)),
            Pattern::Pits => {
                let p = cells * 2;
                smoothstep(0.5, 0.12, cells_tiled(seed ^ 0x24, wu * p as f32, wv * p as f32, p))
            }
            Pattern::Gyri => smoothstep(0.28, 0.0, fbm2_tiled(seed ^ 0x25, wu, wv, cells, 2).abs()),
        }
    });
    let patches = slow_field(n, |u, v| smoothstep(0.35, 0.75, fbm2_tiled(seed ^ 0x26, u, v, 5, 4)));
    let mottle = slow_field(n, |u, v| 0.5 + 0.4 * fbm2_tiled(seed ^ 0x28, u, v, 6, 4));
    let wet = slow_field(n, |u, v| 0.55 + 0.5 * fbm2_tiled(seed ^ 0x29, u, v, 5, 3));
    let rough = field(n, |u, v| fbm2_tiled(seed ^ 0x27, u, v, 22, 3));
    let height: Vec<f32> = (0..n * n).map(|i| 0.75 * rough[i] - 0.6 * pits[i]).collect();
    let slope = slopes(&height, n, 0.55);
    Skin {
        colour: texture(n, |i| [pits[i], mottle[i], patches[i], vessels[i]]),
        relief: texture(n, |i| {
            let [dx, dy] = slope(i);
            [dx, dy, wet[i], 0.0]
        }),
        tile,
        size: n,
    }
}

/// Branching vessels on a torus of `n` texels, 0 to 1.
fn vessels(seed: u32, rng: &mut ChaCha8Rng, n: usize, trees: u32) -> Vec<f32> {
    struct Tip {
        x: f32,
        y: f32,
        heading: f32,
        width: f32,
    }
    let mut map = vec![0f32; n * n];
    let mut tips: Vec<Tip> = (0..trees)
        .map(|_| Tip {
            x: rng.random_range(0.0..n as f32),
            y: rng.random_range(0.0..n as f32),
            heading: rng.random_range(0.0..TAU),
            width: 0.8 + 2.4 * rng.random_range(0f32..1.0).powi(2),
        })
        .collect();
    // Limits the work; trees normally thin out long before.
    let mut left = 160 * n;
    while let Some(mut tip) = tips.pop() {
        let mut curl = 0.0;
        while tip.width > 0.45 && left > 0 {
            left -= 1;
            curl = 0.86 * curl + rng.random_range(-0.085..0.085);
            tip.heading += curl;
            tip.x += tip.heading.cos() * 1.2;
            tip.y += tip.heading.sin() * 1.2;
            tip.width *= 0.9985;
            // Vessels go below the surface in places.
            let depth =
                0.5 + 0.9 * noise2_tiled(seed ^ 0x31, tip.x * 14.0 / n as f32, tip.y * 14.0 / n as f32, 14);
            stamp(
                &mut map,
                n,
                tip.x,
                tip.y,
                tip.width,
                depth.clamp(0.05, 1.0) * (0.5 + 0.25 * tip.width).min(1.0),
            );
            if rng.random_bool(0.022) {
                let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
                let share = rng.random_range(0.5..0.85);
                tips.push(Tip {
                    heading: tip.heading + side * rng.random_range(0.5..1.2),
                    width: tip.width * share,
                    ..tip
                });
                tip.heading -= side * rng.random_range(0.0..0.3);
                tip.width *= 0.95;
            }
        }
    }
    map
}

/// Raises `map` around a point to a Gaussian of standard deviation `width` texels.
fn stamp(map: &mut [f32], n: usize, x: f32, y: f32, width: f32, strength: f32) {
    let reach = (2.2 * width).ceil() as i32;
    let (cx, cy) = (x.floor() as i32, y.floor() as i32);
    for dy in -reach..=reach {
        for dx in -reach..=reach {
            let (px, py) = ((cx + dx) as f32 + 0.5 - x, (cy + dy) as f32 + 0.5 - y);
            let value = strength * (-(px * px + py * py) / (2.0 * width * width)).exp();
            let at = (cy + dy).rem_euclid(n as i32) as usize * n + (cx + dx).rem_euclid(n as i32) as usize;
            map[at] = map[at].max(value);
        }
    }
}

/// Heights of groups of bubbles: hemispheres of height up to 1, 0 elsewhere.
fn bubbles(rng: &mut ChaCha8Rng, n: usize, groups: u32) -> Vec<f32> {
    let mut map = vec![0f32; n * n];
    for _ in 0..groups {
        let (gx, gy) = (rng.random_range(0.0..n as f32), rng.random_range(0.0..n as f32));
        let spread = rng.random_range(8.0..45.0);
        for _ in 0..rng.random_range(2..26) {
            let radius: f32 = rng.random_range(1.6f32..4.4) * rng.random_range(1.0f32..2.0);
            let (x, y) =
                (gx + spread * rng.random_range(-1.0..1.0f32), gy + spread * rng.random_range(-1.0..1.0f32));
            let reach = radius.ceil() as i32;
            for dy in -reach..=reach {
                for dx in -reach..=reach {
                    let q = (dx * dx + dy * dy) as f32 / (radius * radius);
                    if q < 1.0 {
                        let at = (y as i32 + dy).rem_euclid(n as i32) as usize * n
                            + (x as i32 + dx).rem_euclid(n as i32) as usize;
                        map[at] = map[at].max((1.0 - q).sqrt().max(0.02));
                    }
                }
            }
        }
    }
    map
}
