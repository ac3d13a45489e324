//! Renders one frame's geometry and light.

use super::camera::{Lens, Path, Pose};
use super::math::*;
use super::polyp::{Polyp, Vertex};
use super::post::Motion;
use super::raster::{Buffer, weights};
use super::texture::Skin;
use super::tube::{SEGMENTS, STEP, Tube};
use std::f32::consts::TAU;

/// Colours and light of one bowel, linear.
pub struct Look {
    pub mucosa: [f32; 3],
    pub mucus: [f32; 3],
    /// Strength of mottling and of vessels.
    pub mottle: f32,
    pub vessels: f32,
    /// Strength and unevenness of highlights.
    pub gloss: f32,
    pub rough: f32,
    /// Wetness below which nothing glistens, 0 to 1.
    pub dry: f32,
    /// Light reflected in the bowel, as a fraction of the direct light.
    pub bounce: f32,
    /// Colour of the lamp.
    pub lamp: [f32; 3],
}

/// A bowel with its polyps and the endoscope in it.
pub struct Scene {
    pub tube: Tube,
    pub skin: Skin,
    pub polyps: Vec<Polyp>,
    pub path: Path,
    pub look: Look,
}

/// The rendered image at one moment.
pub struct Rendered {
    /// Linear light.
    pub light: Vec<[f32; 3]>,
    /// Whether each pixel is polyp.
    pub polyp: Vec<bool>,
    pub motion: Motion,
}

/// Centimetres of tube drawn behind and ahead of the camera; beyond, it is dark.
const BEHIND: f32 = 11.0;
const AHEAD: f32 = 30.0;
/// A polyp farther away than this in centimetres is not drawn, because it could not be seen or annotated.
const SIGHT: f32 = 7.0;
/// A polyp smaller than this fraction of the image is not drawn.
const SPECK: f32 = 0.0006;

impl Scene {
    /// Renders the image at frame time `t`; `inside` flags the pixels visible on the screen.
    pub fn render(&self, t: f32, lens: &Lens, width: usize, height: usize, inside: &[bool]) -> Rendered {
        let pose = self.path.pose(&self.tube, &self.polyps, t);
        let before = self.path.pose(&self.tube, &self.polyps, t - 1.0);
        let mut near: Vec<&Polyp> =
            self.polyps.iter().filter(|p| (p.centre - pose.p).length() < SIGHT).collect();
        let mut view = View::new(&self.tube, &near, &pose, lens, width, height);
        let least = (SPECK * (width * height) as f32) as usize;
        let counts = view.counts(inside);
        if counts.iter().any(|&n| n > 0 && n < least) {
            let mut counts = counts.iter();
            near.retain(|_| *counts.next().expect("one count per polyp") >= least);
            view = View::new(&self.tube, &near, &pose, lens, width, height);
        }
        self.shade(&view, &pose, &before, lens, inside)
    }

    fn shade(&self, view: &View, pose: &Pose, before: &Pose, lens: &Lens, inside: &[bool]) -> Rendered {
        let (width, height) = (view.buffer.width, view.buffer.height);
        let mut light = vec![[0f32; 3]; width * height];
        let mut polyp = vec![false; width * height];
        // Speeds at the cells' centres; cells without a surface get the mean.
        let cell = (width / 24).max(4);
        let (columns, rows) = (width.div_ceil(cell), height.div_ceil(cell));
        let mut speeds = vec![None; columns * rows];
        for y in 0..height {
            for x in 0..width {
                let at = y * width + x;
                if !inside[at] {
                    continue;
                }
                let Some(number) = view.buffer.get(x, y) else { continue };
                let (vertex, whose) = view.surface(number, x, y);
                light[at] = self.colour(&vertex, whose, pose, lens.f);
                polyp[at] = vertex.cover >= 0.5;
                if x % cell == cell / 2
                    && y % cell == cell / 2
                    && let Some(was) = lens.project(before, vertex.p)
                {
                    speeds[y / cell * columns + x / cell] =
                        Some([x as f32 + 0.5 - was[0], y as f32 + 0.5 - was[1]]);
                }
            }
        }
        let known = speeds.iter().flatten();
        let count = known.clone().count().max(1) as f32;
        let mean = known.fold([0.0, 0.0], |m, v| [m[0] + v[0] / count, m[1] + v[1] / count]);
        let speeds = speeds.into_iter().map(|v| v.unwrap_or(mean)).collect();
        Rendered { light, polyp, motion: Motion { cell, columns, speeds } }
    }

    /// Light from a surface point towards the lens.
    fn colour(&self, v: &Vertex, whose: Option<&Polyp>, pose: &Pose, f: f32) -> [f32; 3] {
        let look = &self.look;
        let seen = Seen::new(v, pose, f);
        let level = seen.lod(&self.skin);
        let mut material = self.wall(v, level);
        if let Some(polyp) = whose
            && v.tint > 0.0
        {
            self.add_polyp(&mut material, polyp, &seen);
        }
        // At a distance the film's unevenness is finer than a pixel, so highlights disappear.
        let sharp = smoothstep(3.0, 0.8, level);
        let (direct, shine) = self.lamps(&material, &seen, pose, sharp);
        let (skin, distance) = (material.colour, seen.distance);
        let around = look.bounce / ((0.7 + distance) * (0.7 + distance).sqrt());
        let light = |c: usize| {
            let bounced = around * (0.4 + 0.6 * skin[c] / look.mucosa[0]) * (1.0 + 0.3 * v.relief);
            look.lamp[c] * (skin[c] * (direct[c] + bounced) + look.gloss * shine)
        };
        [light(0), light(1), light(2)]
    }

    /// The wall's material at a point; `level` is the textures' level of detail.
    fn wall(&self, v: &Vertex, level: f32) -> Material {
        let look = &self.look;
        let u = v.wall[1] / TAU + 0.13 * v.wall[0] / self.skin.tile;
        let w = v.wall[0] / self.skin.tile;
        let [vessel, mottle, mucus, dirt] = self.skin.colour.sample(u, w, level);
        let [su, sv, wet, foam] = self.skin.relief.sample(u, w, level);
        let m = 2.0 * look.mottle * (mottle - 0.5) + 0.16 * v.relief;
        let mut colour = [
            look.mucosa[0] * (1.0 + 0.35 * m) * (1.0 - 0.3 * look.vessels * vessel),
            look.mucosa[1] * (1.0 + m) * (1.0 - 0.75 * look.vessels * vessel),
            look.mucosa[2] * (1.0 + m) * (1.0 - 0.7 * look.vessels * vessel),
        ];
        for c in 0..3 {
            // A film of varying thickness that tints the surface below.
            colour[c] *= mix(1.0, look.mucus[c], mucus);
            colour[c] = mix(colour[c], 0.6 * look.mucus[c], 0.3 * mucus * mucus);
            colour[c] *= 1.0 - dirt * [0.45, 0.6, 0.8][c];
            colour[c] *= 1.0 + 0.35 * foam;
        }
        Material { colour, slope: [su - 0.5, sv - 0.5], wet: wet + 0.4 * mucus + 0.5 * foam }
    }

    /// Blends a polyp's own skin over the wall's material.
    fn add_polyp(&self, material: &mut Material, polyp: &Polyp, seen: &Seen) {
        let (look, v) = (&self.look, seen.v);
        let (pu, pv) = (v.skin[0] / polyp.skin.tile, v.skin[1] / polyp.skin.tile);
        let level = seen.lod(&polyp.skin);
        let [pits, mottle, patch, vessel] = polyp.skin.colour.sample(pu, pv, level);
        let [qu, qv, qwet, _] = polyp.skin.relief.sample(pu, pv, level);
        let m = 2.0 * look.mottle * (mottle - 0.5) + 0.16 * v.relief;
        for c in 0..3 {
            let dark = [0.35, 0.8, 0.75][c];
            let own = look.mucosa[c]
                * polyp.tint[c]
                * (1.0 + m * [0.35, 1.0, 1.0][c])
                * (1.0 - dark * polyp.pits * pits)
                * (1.0 - 0.5 * dark * look.vessels * vessel);
            let own = mix(own, [0.62, 0.45, 0.34][c], 0.3 * patch);
            material.colour[c] = mix(material.colour[c], own, v.tint);
        }
        let slope = material.slope;
        material.slope = [mix(slope[0], qu - 0.5, v.tint), mix(slope[1], qv - 0.5, v.tint)];
        material.wet = mix(material.wet, qwet, v.tint);
    }

    /// Direct light of the two lamps next to the lens on a point, and the strength of its highlights, which `sharp` (0
    /// to 1) weakens.
    fn lamps(&self, material: &Material, seen: &Seen, pose: &Pose, sharp: f32) -> ([f32; 3], f32) {
        let (look, v) = (&self.look, seen.v);
        // Slopes tilt the normal slightly for shading and strongly for highlights.
        let ahead = self.tube.ahead(v.wall[0]);
        let along = (ahead - v.n * v.n.dot(ahead)).unit();
        let around = v.n.cross(along);
        let tilt = along * -material.slope[1] + around * -material.slope[0];
        let soft = (v.n + tilt * 0.9).unit();
        let film = (v.n + tilt * look.rough).unit();

        let mut direct = [0f32; 3];
        let mut shine = 0.0;
        for side in [-1.0, 1.0] {
            let to_lamp = pose.p + pose.right * (0.22 * side) + pose.down * 0.08 - v.p;
            let d2 = to_lamp.dot(to_lamp);
            let lamp = to_lamp * (1.0 / d2.sqrt());
            // The beam weakens off its axis.
            let beam = 0.25 + 0.75 * (-lamp.dot(pose.forward)).max(0.0);
            let power = 0.5 * beam / (d2 + 0.25);
            let cos = soft.dot(lamp);
            for (c, v) in direct.iter_mut().enumerate() {
                // Light scatters below the surface, red the furthest.
                let wrap = [0.28, 0.16, 0.12][c];
                *v += power * ((cos + wrap) / (1.0 + wrap)).max(0.0);
            }
            let half = (lamp + seen.eye).unit();
            let x = film.dot(half).max(0.0);
            let gate = smoothstep(look.dry, look.dry + 0.2, material.wet) * sharp;
            shine += power.sqrt()
                * power.sqrt().sqrt()
                * (smoothstep(0.986, 0.995, x) * gate * 3.0 + 0.12 * x.powi(24));
        }
        (direct, shine)
    }
}

/// A surface point in relation to the lens.
struct Seen<'a> {
    v: &'a Vertex,
    /// Distance to the lens in centimetres, and the direction to it.
    distance: f32,
    eye: Vec3,
    /// Cosine between that direction and the normal, at least 0.05.
    facing: f32,
    /// See [`Lens::f`].
    f: f32,
}

impl<'a> Seen<'a> {
    fn new(v: &'a Vertex, pose: &Pose, f: f32) -> Self {
        let to_eye = pose.p - v.p;
        let distance = to_eye.length();
        let eye = to_eye * (1.0 / distance);
        Self { v, distance, eye, facing: v.n.dot(eye).max(0.05), f }
    }

    /// Level of detail of a skin's textures, log2 of the texels that a pixel spans.
    fn lod(&self, skin: &Skin) -> f32 {
        (self.distance / self.f * skin.size as f32 / skin.tile / self.facing.sqrt()).max(1e-3).log2()
    }
}

/// Colour and film of a surface point.
struct Material {
    /// Reflected fraction of red, green and blue.
    colour: [f32; 3],
    /// Unevenness along u and v; 0 is flat.
    slope: [f32; 2],
    /// Wetness, which glistens above [`Look::dry`].
    wet: f32,
}

/// Projected geometry: image points and the nearest triangle of each pixel.
struct View<'a> {
    tube: &'a Tube,
    polyps: &'a [&'a Polyp],
    /// First ring drawn.
    first: usize,
    /// Corners in the image; distance 0 if the lens cannot see them.
    wall: Vec<[f32; 3]>,
    bumps: Vec<Vec<[f32; 3]>>,
    /// First triangle number of each polyp, and one past the last.
    starts: Vec<u32>,
    buffer: Buffer,
}

impl<'a> View<'a> {
    fn new(
        tube: &'a Tube,
        polyps: &'a [&'a Polyp],
        pose: &Pose,
        lens: &Lens,
        width: usize,
        height: usize,
    ) -> Self {
        let s = nearest_ring(tube, pose.p) as f32;
        let first = (s - BEHIND / STEP).max(0.0) as usize;
        let last = ((s + AHEAD / STEP) as usize).min(tube.rings() - 1);
        let project = |p: Vec3| lens.project(pose, p).unwrap_or([0.0; 3]);
        let wall: Vec<[f32; 3]> =
            tube.points[first * SEGMENTS..(last + 1) * SEGMENTS].iter().map(|p| project(*p)).collect();
        let bumps: Vec<Vec<[f32; 3]>> =
            polyps.iter().map(|b| b.vertices.iter().map(|v| project(v.p)).collect()).collect();
        let mut starts = vec![((last - first) * SEGMENTS * 2) as u32];
        for polyp in polyps {
            starts.push(starts.last().expect("never empty") + polyp.triangles.len() as u32);
        }
        let mut view = Self { tube, polyps, first, wall, bumps, starts, buffer: Buffer::new(width, height) };
        for number in 0..*view.starts.last().expect("never empty") {
            let corners = view.corners(number);
            if corners.iter().all(|c| c[2] > 0.0) {
                view.buffer.draw(number, corners);
            }
        }
        view
    }

    /// Which polyp a triangle belongs to.
    fn owner(&self, number: u32) -> Option<usize> {
        (number >= self.starts[0]).then(|| self.starts.partition_point(|&s| s <= number) - 1)
    }

    /// Ring (counted from the first drawn) and segment of a wall triangle's corners. Segments may exceed the ring's end
    /// instead of wrapping.
    fn wall_corners(number: u32) -> [(usize, usize); 3] {
        let (cell, second) = ((number / 2) as usize, number % 2 == 1);
        let (i, k) = (cell / SEGMENTS, cell % SEGMENTS);
        if second { [(i, k + 1), (i + 1, k), (i + 1, k + 1)] } else { [(i, k), (i + 1, k), (i, k + 1)] }
    }

    fn corners(&self, number: u32) -> [[f32; 3]; 3] {
        match self.owner(number) {
            None => Self::wall_corners(number).map(|(i, k)| self.wall[i * SEGMENTS + k % SEGMENTS]),
            Some(p) => {
                let t = self.polyps[p].triangles[(number - self.starts[p]) as usize];
                t.map(|i| self.bumps[p][i as usize])
            }
        }
    }

    /// The point of the surface at a pixel, and the polyp it belongs to.
    fn surface(&self, number: u32, x: usize, y: usize) -> (Vertex, Option<&Polyp>) {
        let w = weights(self.corners(number), x, y);
        let owner = self.owner(number);
        let corners: [Vertex; 3] = match owner {
            None => Self::wall_corners(number).map(|(i, k)| {
                let at = (self.first + i) * SEGMENTS + k % SEGMENTS;
                Vertex {
                    p: self.tube.points[at],
                    n: self.tube.normals[at],
                    wall: [(self.first + i) as f32 * STEP, k as f32 * TAU / SEGMENTS as f32],
                    relief: self.tube.relief[at],
                    ..Vertex::default()
                }
            }),
            Some(p) => {
                let polyp = self.polyps[p];
                polyp.triangles[(number - self.starts[p]) as usize].map(|i| polyp.vertices[i as usize])
            }
        };
        let mut vertex = Vertex::default();
        for (w, c) in w.into_iter().zip(&corners) {
            vertex.p += c.p * w;
            vertex.n += c.n * w;
            for k in 0..2 {
                vertex.wall[k] += c.wall[k] * w;
                vertex.skin[k] += c.skin[k] * w;
            }
            vertex.tint += c.tint * w;
            vertex.cover += c.cover * w;
            vertex.relief += c.relief * w;
        }
        vertex.n = vertex.n.unit();
        (vertex, owner.map(|p| self.polyps[p]))
    }

    /// Number of mask pixels of each polyp.
    fn counts(&self, inside: &[bool]) -> Vec<usize> {
        let mut counts = vec![0; self.polyps.len()];
        if counts.is_empty() {
            return counts;
        }
        for y in 0..self.buffer.height {
            for x in 0..self.buffer.width {
                if inside[y * self.buffer.width + x]
                    && let Some(number) = self.buffer.get(x, y)
                    && let Some(owner) = self.owner(number)
                    && self.surface(number, x, y).0.cover >= 0.5
                {
                    counts[owner] += 1;
                }
            }
        }
        counts
    }
}

fn nearest_ring(tube: &Tube, p: Vec3) -> usize {
    let distance = |i: usize| (tube.axes(i as f32 * STEP).c - p).length();
    (0..tube.rings()).step_by(8).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(0)
}
