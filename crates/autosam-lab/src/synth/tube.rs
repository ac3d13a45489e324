//! The bowel wall: a bent tube with semilunar folds, as a grid of points.

use super::math::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::f32::consts::TAU;

/// Points around one ring.
pub const SEGMENTS: usize = 224;
/// Centimetres of centre line between rings.
pub const STEP: f32 = 0.07;

/// Position and axes of the centre line at one point: `t` along it, `u` and `v` across.
#[derive(Clone, Copy)]
pub struct Axes {
    pub c: Vec3,
    pub t: Vec3,
    pub u: Vec3,
    pub v: Vec3,
}

/// One semilunar fold: a chord cut across the lumen on one side, as between two taeniae.
struct Fold {
    s: f32,
    /// Direction of the middle of the chord.
    angle: f32,
    /// Depth as a fraction of the radius.
    depth: f32,
    /// Half thickness in centimetres.
    width: f32,
    /// Shift of the fold along the tube from one end to the other in centimetres.
    tilt: f32,
}

/// Shape parameters of one bowel.
pub struct Shape {
    /// Mean radius, centimetres.
    pub radius: f32,
    /// Centimetres between folds.
    pub spacing: f32,
    /// Mean fold depth as a fraction of the radius.
    pub depth: f32,
    /// Greatest curvature of the centre line, 1/cm.
    pub bend: f32,
    /// Unevenness of the wall as a fraction of the radius.
    pub lumps: f32,
}

pub struct Tube {
    pub radius: f32,
    axes: Vec<Axes>,
    /// Ring-major, [`SEGMENTS`] per ring.
    pub points: Vec<Vec3>,
    /// Unit normals into the lumen.
    pub normals: Vec<Vec3>,
    /// Height of a point above its surroundings, about -1 (sac) to 1 (crest of a fold).
    pub relief: Vec<f32>,
    distances: Vec<f32>,
}

impl Tube {
    /// A tube `length` cm long.
    pub fn new(seed: u32, rng: &mut ChaCha8Rng, shape: &Shape, length: f32) -> Self {
        let rings = (length / STEP) as usize;
        let axes = centre_line(seed, rings, shape.bend);
        let folds = folds(rng, shape, length);
        let distances: Vec<f32> = (0..rings)
            .into_par_iter()
            .flat_map_iter(|ring| {
                let s = ring as f32 * STEP;
                let near: Vec<&Fold> =
                    folds.iter().filter(|f| (f.s - s).abs() < 3.0 * f.width + 1.0).collect();
                (0..SEGMENTS).map(move |k| wall(seed, shape, s, k as f32 * TAU / SEGMENTS as f32, &near))
            })
            .collect();
        let points: Vec<Vec3> = (0..rings)
            .into_par_iter()
            .flat_map_iter(|ring| {
                let (a, row) = (axes[ring], &distances[ring * SEGMENTS..][..SEGMENTS]);
                row.iter().enumerate().map(move |(k, r)| {
                    let (sin, cos) = (k as f32 * TAU / SEGMENTS as f32).sin_cos();
                    a.c + (a.u * cos + a.v * sin) * *r
                })
            })
            .collect();
        let at = |ring: usize, k: usize| points[ring * SEGMENTS + k];
        let normals = (0..rings)
            .into_par_iter()
            .flat_map_iter(|ring| {
                let (before, after) = (ring.saturating_sub(1), (ring + 1).min(rings - 1));
                (0..SEGMENTS).map(move |k| {
                    let along = at(after, k) - at(before, k);
                    let around = at(ring, (k + 1) % SEGMENTS) - at(ring, (k + SEGMENTS - 1) % SEGMENTS);
                    along.cross(around).unit()
                })
            })
            .collect();
        let relief = relief(&distances, rings, shape.radius);
        Self { radius: shape.radius, axes, points, normals, relief, distances }
    }

    pub fn rings(&self) -> usize {
        self.axes.len()
    }

    /// The centre line `s` cm from its start, clamped at both ends.
    pub fn axes(&self, s: f32) -> Axes {
        let x = (s / STEP).clamp(0.0, (self.rings() - 2) as f32);
        let (i, f) = (x as usize, x.fract());
        let (a, b) = (self.axes[i], self.axes[i + 1]);
        let t = a.t.mix(b.t, f).unit();
        let u = a.u.mix(b.u, f);
        let u = (u - t * t.dot(u)).unit();
        Axes { c: a.c.mix(b.c, f), t, u, v: t.cross(u) }
    }

    /// The centre line's direction near `s`, to the nearest ring.
    pub fn ahead(&self, s: f32) -> Vec3 {
        self.axes[((s / STEP).max(0.0) as usize).min(self.rings() - 1)].t
    }

    fn bilinear<T: Copy>(&self, grid: &[T], s: f32, angle: f32, mix: impl Fn(T, T, f32) -> T) -> T {
        let x = (s / STEP).clamp(0.0, (self.rings() - 2) as f32);
        let y = (angle / TAU).rem_euclid(1.0) * SEGMENTS as f32;
        let (i, fx) = (x as usize, x.fract());
        let (k, fy) = (y as usize % SEGMENTS, y.fract());
        let row = |i: usize| mix(grid[i * SEGMENTS + k], grid[i * SEGMENTS + (k + 1) % SEGMENTS], fy);
        mix(row(i), row(i + 1), fx)
    }

    /// The wall's point and unit normal at a position.
    pub fn surface(&self, s: f32, angle: f32) -> (Vec3, Vec3) {
        (
            self.bilinear(&self.points, s, angle, Vec3::mix),
            self.bilinear(&self.normals, s, angle, Vec3::mix).unit(),
        )
    }

    /// Distance of the wall from the centre line, centimetres.
    pub fn distance(&self, s: f32, angle: f32) -> f32 {
        self.bilinear(&self.distances, s, angle, mix)
    }

    /// The space for a camera in one direction: the smallest wall distance within half a centimetre along the tube and
    /// 20° around it.
    pub fn room(&self, s: f32, angle: f32) -> f32 {
        (-4..=4)
            .flat_map(|i| (-2..=2).map(move |j| (i as f32 * 0.125, j as f32 * 0.17)))
            .map(|(ds, da)| self.distance(s + ds, angle + da))
            .fold(f32::MAX, f32::min)
    }
}

fn centre_line(seed: u32, rings: usize, bend: f32) -> Vec<Axes> {
    let mut a =
        Axes { c: Vec3::default(), t: vec3(0.0, 0.0, 1.0), u: vec3(1.0, 0.0, 0.0), v: vec3(0.0, 1.0, 0.0) };
    (0..rings)
        .map(|i| {
            let here = a;
            let s = i as f32 * STEP;
            // Bends of about 10 cm; the frame is carried along without twist.
            let turn = a.u * noise1(seed ^ 0x51, s / 9.0) + a.v * noise1(seed ^ 0x52, s / 9.0 + 0.5);
            let t = (a.t + turn * (1.6 * bend * STEP)).unit();
            let u = (a.u - t * t.dot(a.u)).unit();
            a = Axes { c: a.c + t * STEP, t, u, v: t.cross(u) };
            here
        })
        .collect()
}

fn folds(rng: &mut ChaCha8Rng, shape: &Shape, length: f32) -> Vec<Fold> {
    let mut folds = Vec::new();
    let mut s = rng.random_range(0.0..shape.spacing);
    let mut turn: f32 = rng.random_range(0.0..TAU);
    while s < length {
        turn += rng.random_range(-0.35..0.35);
        for side in 0..3 {
            let depth = shape.depth * rng.random_range(0.45..1.35);
            folds.push(Fold {
                s: s + rng.random_range(-0.22..0.22) * shape.spacing,
                angle: turn + side as f32 * TAU / 3.0 + rng.random_range(-0.2..0.2),
                depth: depth.min(0.56),
                width: rng.random_range(0.2..0.42),
                tilt: rng.random_range(-0.5..0.5),
            });
        }
        s += shape.spacing * rng.random_range(0.6..1.5);
    }
    folds
}

/// Distance of the wall from the centre line.
fn wall(seed: u32, shape: &Shape, s: f32, angle: f32, folds: &[&Fold]) -> f32 {
    let (sin, cos) = angle.sin_cos();
    let r = shape.radius;
    let base = r * (1.0 + 0.14 * noise1(seed ^ 0x61, s / 7.0));
    let mut cut = 0.0;
    for f in folds {
        let delta = angle - f.angle;
        let (ds, dc) = delta.sin_cos();
        if dc < 0.15 {
            continue;
        }
        let wobble = 0.12 * noise1(seed ^ f.s.to_bits(), delta * 3.0);
        let x = (s - f.s - f.tilt * ds - wobble) / f.width;
        // The chord's depth with rounded ends.
        let chord = base - base * (1.0 - f.depth) / dc;
        let soft = 0.5 * (chord + (chord * chord + 0.02 * base * base).sqrt()) * smoothstep(0.15, 0.5, dc);
        cut += soft * (-x.abs().powf(2.4)).exp();
    }
    let most = 0.6 * base;
    let cut = most * (cut / most).tanh();
    let p = vec3(cos * r, sin * r, s);
    let lumps = noise3(seed ^ 0x62, p * 0.55)
        + 0.35 * noise3(seed ^ 0x63, p * 1.7)
        + 0.1 * noise3(seed ^ 0x64, p * 4.3);
    base - cut + r * shape.lumps * lumps
}

/// Distance of each point from the mean of its surroundings (about 1.3 cm), towards the lumen.
fn relief(distances: &[f32], rings: usize, radius: f32) -> Vec<f32> {
    const REACH: isize = 9;
    let mean = |ring: isize, k: isize, along: bool| {
        let mut sum = 0.0;
        for d in -REACH..=REACH {
            let (i, j) = if along { (ring + d, k) } else { (ring, k + d) };
            let i = i.clamp(0, rings as isize - 1) as usize;
            sum += distances[i * SEGMENTS + j.rem_euclid(SEGMENTS as isize) as usize];
        }
        sum / (2 * REACH + 1) as f32
    };
    (0..rings)
        .into_par_iter()
        .flat_map_iter(|ring| {
            (0..SEGMENTS).map(move |k| {
                let around = 0.7 * mean(ring as isize, k as isize, true)
                    + 0.3 * mean(ring as isize, k as isize, false);
                ((around - distances[ring * SEGMENTS + k]) / (0.25 * radius)).clamp(-1.0, 1.0)
            })
        })
        .collect()
}
