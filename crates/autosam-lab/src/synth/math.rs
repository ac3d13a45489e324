//! Interpolation and seeded noise; vectors, in centimetres or as directions, are glam's. Everything here is a pure function
//! of its arguments.

pub use glam::{Vec3, vec3};

/// Operations that glam rounds differently: a seed's frames must stay the same bit by bit.
pub trait Blend {
    /// The direction of `self`; a vector shorter than 1e-12 stays as it is.
    fn unit(self) -> Self;
    /// `self` at `t` = 0, `o` at 1.
    fn mix(self, o: Self, t: f32) -> Self;
}

impl Blend for Vec3 {
    fn unit(self) -> Self {
        let l = self.length();
        if l > 1e-12 { self * (1.0 / l) } else { self }
    }

    fn mix(self, o: Self, t: f32) -> Self {
        self + (o - self) * t
    }
}

pub fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 at `a`, 1 at `b`, smooth in between; `a > b` is allowed.
pub fn smoothstep(a: f32, b: f32, x: f32) -> f32 {
    let t = ((x - a) / (b - a)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A well-mixed 32-bit hash of a lattice point.
pub fn hash(seed: u32, x: i32, y: i32, z: i32) -> u32 {
    let mut h = seed
        ^ (x as u32).wrapping_mul(0x8da6_b343)
        ^ (y as u32).wrapping_mul(0xd816_3841)
        ^ (z as u32).wrapping_mul(0xcb1a_b31f);
    h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d);
    h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
    h ^ (h >> 16)
}

/// A hash as a number in [0, 1).
pub fn unit_hash(seed: u32, x: i32, y: i32, z: i32) -> f32 {
    (hash(seed, x, y, z) >> 8) as f32 / (1 << 24) as f32
}

/// The integer below `x` and the fraction; much faster than `floor` if that is a library call.
pub fn split(x: f32) -> (i32, f32) {
    let i = x as i32;
    let i = if x < i as f32 { i - 1 } else { i };
    (i, x - i as f32)
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

/// Gradient noise in one dimension, within about [-1, 1], zero at whole numbers.
pub fn noise1(seed: u32, t: f32) -> f32 {
    let (i, f) = split(t);
    let slope = |k: i32| unit_hash(seed, i + k, 0, 0) * 4.0 - 2.0;
    mix(slope(0) * f, slope(1) * (f - 1.0), fade(f))
}

fn gradient(h: u32, x: f32, y: f32, z: f32) -> f32 {
    match h & 15 {
        0 => x + y,
        1 => y - x,
        2 => x - y,
        3 => -x - y,
        4 => x + z,
        5 => z - x,
        6 => x - z,
        7 => -x - z,
        8 => y + z,
        9 => z - y,
        10 => y - z,
        11 => -y - z,
        12 => x + y,
        13 => z - y,
        14 => y - x,
        _ => -y - z,
    }
}

/// Gradient noise in three dimensions, within about [-1, 1], features about 1 unit wide.
pub fn noise3(seed: u32, p: Vec3) -> f32 {
    let ((ix, fx), (iy, fy), (iz, fz)) = (split(p.x), split(p.y), split(p.z));
    let (u, v, w) = (fade(fx), fade(fy), fade(fz));
    let g = |dx: i32, dy: i32, dz: i32| {
        gradient(hash(seed, ix + dx, iy + dy, iz + dz), fx - dx as f32, fy - dy as f32, fz - dz as f32)
    };
    let near = mix(mix(g(0, 0, 0), g(1, 0, 0), u), mix(g(0, 1, 0), g(1, 1, 0), u), v);
    let far = mix(mix(g(0, 0, 1), g(1, 0, 1), u), mix(g(0, 1, 1), g(1, 1, 1), u), v);
    mix(near, far, w)
}

/// Gradient noise on a torus: repeats every `period` units in both directions; within about [-1, 1].
pub fn noise2_tiled(seed: u32, x: f32, y: f32, period: i32) -> f32 {
    let ((ix, fx), (iy, fy)) = (split(x), split(y));
    let (x0, y0) = (ix.rem_euclid(period), iy.rem_euclid(period));
    let next = |k: i32| if k + 1 == period { 0 } else { k + 1 };
    let (x1, y1) = (next(x0), next(y0));
    let g = |cx: i32, cy: i32, dx: f32, dy: f32| {
        let h = hash(seed, cx, cy, 0);
        let (a, b) = if h & 1 == 0 { (dx, dy) } else { (dy, dx) };
        let a = if h & 2 == 0 { a } else { -a };
        let b = if h & 4 == 0 { b } else { -b };
        // Eight directions 22.5° off the axes have fewer straight artefacts than the diagonals.
        1.2 * (a + 0.414 * b)
    };
    let (u, v) = (fade(fx), fade(fy));
    mix(
        mix(g(x0, y0, fx, fy), g(x1, y0, fx - 1.0, fy), u),
        mix(g(x0, y1, fx, fy - 1.0), g(x1, y1, fx - 1.0, fy - 1.0), u),
        v,
    )
}

/// Several octaves of [`noise2_tiled`] over the unit square, the first with `period` cells.
pub fn fbm2_tiled(seed: u32, u: f32, v: f32, period: i32, octaves: u32) -> f32 {
    (0..octaves).fold(0.0, |sum, o| {
        let p = period << o;
        sum + noise2_tiled(seed.wrapping_add(o * 101), u * p as f32, v * p as f32, p) / (1 << o) as f32
    })
}

/// Distance to the nearest of one random point per cell on a torus of `period` cells, in cells.
pub fn cells_tiled(seed: u32, x: f32, y: f32, period: i32) -> f32 {
    let (ix, iy) = (split(x).0, split(y).0);
    let mut best = f32::MAX;
    for dy in -1..=1 {
        for dx in -1..=1 {
            let (cx, cy) = ((ix + dx).rem_euclid(period), (iy + dy).rem_euclid(period));
            let px = (ix + dx) as f32 + unit_hash(seed, cx, cy, 1) - x;
            let py = (iy + dy) as f32 + unit_hash(seed, cx, cy, 2) - y;
            best = best.min(px * px + py * py);
        }
    }
    best.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_bounded_and_tiles() {
        let (mut low, mut high) = (0f32, 0f32);
        for k in 0..4000 {
            let (x, y) = (k as f32 * 0.137, k as f32 * 0.071);
            let n = noise2_tiled(7, x, y, 8);
            assert!((n - noise2_tiled(7, x + 8.0, y - 16.0, 8)).abs() < 1e-3);
            let m = noise3(7, vec3(x, y, x - y));
            (low, high) = (low.min(n).min(m), high.max(n).max(m));
        }
        assert!(low > -1.3 && low < -0.4 && high < 1.3 && high > 0.4, "{low} {high}");
    }
}
