//! Tileable surface detail: vessels, mottling, mucus, bubbles and the unevenness that makes highlights.

use super::math::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::f32::consts::TAU;

/// A square tileable texture of four channels with its reductions by halves.
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
        let (a, f) = (lod as usize, lod.fract());
        let near = self.bilinear(a, u, v);
        if f < 0.02 || a + 1 == self.levels.len() {
            return near;
        }
        let far = self.bilinear(a + 1, u, v);
        std::array::from_fn(|c| mix(near[c], far[c], f))
    }

    fn bilinear(&self, level: usize, u: f32, v: f32) -> [f32; 4] {
        let (n, texels) = &self.levels[level];
        // Sizes are powers of two.
        let wrap = n - 1;
        let (x, y) = (u * *n as f32 - 0.5, v * *n as f32 - 0.5);
        let (ix, iy) = (x.floor(), y.floor());
        let (fx, fy) = (x - ix, y - iy);
        let (x0, y0) = (ix as i32 as usize & wrap, iy as i32 as usize & wrap);
        let (x1, y1) = ((x0 + 1) & wrap, (y0 + 1) & wrap);
        let (a, b, c, d) =
            (texels[y0 * n + x0], texels[y0 * n + x1], texels[y1 * n + x0], texels[y1 * n + x1]);
        let (wa, wb, wc, wd) = ((1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy);
        std::array::from_fn(|k| {
            (a[k] as f32 * wa + b[k] as f32 * wb + c[k] as f32 * wc + d[k] as f32 * wd) * (1.0 / 255.0)
        })
    }
}

/// Colour detail and unevenness of one kind of surface.
pub struct Skin {
    /// Wall: vessels, mottling, mucus, dirt. Polyp: pits, mottling, pale patches, vessels.
    pub colour: Texture,
    /// Slope along u and v (0.5 is flat), wetness, bubbles.
    pub relief: Texture,
    /// Centimetres of one tile.
    pub tile: f32,
    /// Texels of one tile.
    pub size: usize,
}

fn quantise(x: f32) -> u8 {
    (x.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

/// Slopes of a tileable height field as bytes around 128, with `gain` per texel of height.
fn slopes(height: &[f32], n: usize, gain: f32) -> impl Fn(usize) -> (u8, u8) + Sync + '_ {
    move |i| {
        let (x, y) = (i % n, i / n);
        let at = |x: usize, y: usize| height[(y % n) * n + x % n];
        let dx = at(x + 1, y) - at(x + n - 1, y);
        let dy = at(x, y + 1) - at(x, y + n - 1);
        (quantise(0.5 + gain * dx), quantise(0.5 + gain * dy))
    }
}

/// How one bowel's wall looks.
pub struct WallLook {
    /// Number of vessel trees to a tile.
    pub trees: u32,
    /// How much of the wall mucus covers, 0 to 1.
    pub mucus: f32,
    /// Groups of bubbles to a tile.
    pub foam: u32,
}

const WALL: usize = 1024;

/// The wall's skin, `tile` cm wide.
pub fn wall(seed: u32, rng: &mut ChaCha8Rng, look: &WallLook, tile: f32) -> Skin {
    let n = WALL;
    let vessels = vessels(seed, rng, n, look.trees);
    let bubbles = bubbles(rng, n, look.foam);
    // Height, wetness, mucus.
    let parts: Vec<[f32; 3]> = (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (u, v) = ((i % n) as f32 / n as f32, (i / n) as f32 / n as f32);
            let warp = 0.03 * fbm2_tiled(seed ^ 0x10, u, v, 7, 2);
            let film = fbm2_tiled(seed ^ 0x11, u + warp, v - warp, 9, 4);
            let edge = 1.05 - 1.3 * look.mucus;
            let mucus = if look.mucus > 0.0 { smoothstep(edge, edge + 0.22, film) } else { 0.0 };
            let rough = fbm2_tiled(seed ^ 0x12, u + warp, v + warp, 40, 3);
            let wet = 0.5 + 0.5 * fbm2_tiled(seed ^ 0x13, u, v, 11, 3);
            [0.9 * rough + 0.5 * mucus + bubbles[i] * 5.0, wet, mucus]
        })
        .collect();
    let height: Vec<f32> = parts.iter().zip(&vessels).map(|(p, v)| p[0] + 0.25 * v).collect();
    let slope = slopes(&height, n, 0.55);
    let colour = (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (u, v) = ((i % n) as f32 / n as f32, (i / n) as f32 / n as f32);
            let mottle = 0.5 + 0.33 * fbm2_tiled(seed ^ 0x14, u, v, 6, 5);
            let dirt = smoothstep(0.62, 0.8, fbm2_tiled(seed ^ 0x15, u, v, 60, 2))
                * smoothstep(0.1, 0.5, parts[i][2]);
            [quantise(vessels[i]), quantise(mottle), quantise(parts[i][2]), quantise(dirt)]
        })
        .collect();
    let relief = (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (dx, dy) = slope(i);
            [dx, dy, quantise(parts[i][1]), quantise(if bubbles[i] > 0.0 { 1.0 - bubbles[i] } else { 0.0 })]
        })
        .collect();
    Skin { colour: Texture::new(n, colour), relief: Texture::new(n, relief), tile, size: n }
}

/// How a polyp's surface is patterned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    Smooth,
    /// Round pits.
    Pits,
    /// Winding ridges, as on adenomas seen close.
    Gyri,
}

const POLYP: usize = 512;

/// A polyp's skin, `tile` cm wide.
pub fn polyp(seed: u32, rng: &mut ChaCha8Rng, pattern: Pattern, tile: f32) -> Skin {
    let n = POLYP;
    let vessels = vessels(seed ^ 0x77, rng, n, 5);
    let cells: i32 = rng.random_range(13..24);
    let parts: Vec<[f32; 3]> = (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (u, v) = ((i % n) as f32 / n as f32, (i / n) as f32 / n as f32);
            let (wu, wv) =
                (0.02 * fbm2_tiled(seed ^ 0x21, u, v, 9, 2), 0.02 * fbm2_tiled(seed ^ 0x22, u, v, 9, 2));
            let pits = match pattern {
                Pattern::Smooth => 0.12 * (0.5 + 0.5 * noise2_tiled(seed ^ 0x23, u * 48.0, v * 48.0, 48)),
                Pattern::Pits => {
                    let p = cells * 2;
                    smoothstep(
                        0.5,
                        0.12,
                        cells_tiled(seed ^ 0x24, (u + wu) * p as f32, (v + wv) * p as f32, p),
                    )
                }
                Pattern::Gyri => {
                    let x = fbm2_tiled(seed ^ 0x25, u + wu, v + wv, cells, 2);
                    smoothstep(0.28, 0.0, x.abs())
                }
            };
            let patches = smoothstep(0.35, 0.75, fbm2_tiled(seed ^ 0x26, u, v, 5, 4));
            let rough = fbm2_tiled(seed ^ 0x27, u, v, 22, 3);
            [pits, patches, 0.75 * rough - 0.6 * pits]
        })
        .collect();
    let height: Vec<f32> = parts.iter().map(|p| p[2]).collect();
    let slope = slopes(&height, n, 0.55);
    let colour = (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (u, v) = ((i % n) as f32 / n as f32, (i / n) as f32 / n as f32);
            let mottle = 0.5 + 0.4 * fbm2_tiled(seed ^ 0x28, u, v, 6, 4);
            [quantise(parts[i][0]), quantise(mottle), quantise(parts[i][1]), quantise(vessels[i])]
        })
        .collect();
    let relief = (0..n * n)
        .into_par_iter()
        .map(|i| {
            let (u, v) = ((i % n) as f32 / n as f32, (i / n) as f32 / n as f32);
            let (dx, dy) = slope(i);
            [dx, dy, quantise(0.55 + 0.5 * fbm2_tiled(seed ^ 0x29, u, v, 5, 3)), 0]
        })
        .collect();
    Skin { colour: Texture::new(n, colour), relief: Texture::new(n, relief), tile, size: n }
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
            width: rng.random_range(0.9f32..2.6),
        })
        .collect();
    // A bound on the work; trees normally thin out long before.
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
            // Vessels dive under the surface here and there.
            let depth =
                0.5 + 0.9 * noise2_tiled(seed ^ 0x31, tip.x * 14.0 / n as f32, tip.y * 14.0 / n as f32, 14);
            stamp(
                &mut map,
                n,
                tip.x,
                tip.y,
                tip.width,
                depth.clamp(0.05, 1.0) * (0.45 + 0.22 * tip.width).min(1.0),
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

/// Raises `map` around a point to a bell of standard deviation `width` texels.
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
