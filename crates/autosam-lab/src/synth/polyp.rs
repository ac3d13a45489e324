//! Polyps: closed surfaces on the wall, which blend into it at their rim.

use super::math::*;
use super::texture::{self, Pattern, Skin};
use super::tube::Tube;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::f32::consts::{PI, TAU};

/// Paris classes, roughly.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Is: a dome.
    Sessile,
    /// Ip: a head on a stalk.
    Pedunculated,
    /// IIa: a low plateau.
    Flat,
}

/// A point of a wall's or polyp's surface, with the parameters of its colour.
#[derive(Clone, Copy, Default)]
pub struct Vertex {
    pub p: Vec3,
    /// Unit normal into the lumen.
    pub n: Vec3,
    /// Position on the wall: centimetres along the tube, radians around it.
    pub wall: [f32; 2],
    /// Position on the polyp's own skin in centimetres.
    pub skin: [f32; 2],
    /// Opacity of the polyp's skin, 0 (wall) to 1.
    pub tint: f32,
    /// The annotation: polyp at 0.5 and above.
    pub cover: f32,
    /// See [`Tube::relief`].
    pub relief: f32,
}

pub struct Polyp {
    pub vertices: Vec<Vertex>,
    pub triangles: Vec<[u32; 3]>,
    /// Centre of the head or dome.
    pub centre: Vec3,
    /// Radius in centimetres of a ball around `centre` that contains the head or dome.
    pub radius: f32,
    /// Direction away from the wall.
    pub axis: Vec3,
    /// Position along the tube in centimetres.
    pub s: f32,
    pub skin: Skin,
    /// Factors on the wall's own colour.
    pub tint: [f32; 3],
    /// Darkness of pits.
    pub pits: f32,
}

const RINGS: usize = 56;
const AROUND: usize = 72;
/// Fraction of the rings that lie on the polyp; the others fade out on the wall.
const BODY: f32 = 0.82;

/// A profile from the top (`t` = 0) to the rim: distance from the axis and height, in centimetres.
struct Profile {
    kind: Kind,
    radius: f32,
    height: f32,
    /// Angle at which a dome or head ends, in radians from its top.
    end: f32,
    /// Exponent of a plateau's edge.
    edge: f32,
    stalk: f32,
    stalk_length: f32,
}

impl Profile {
    fn foot(&self) -> f32 {
        (0.08 * self.radius).min(0.05)
    }

    fn body(&self, x: f32) -> (f32, f32) {
        let dome = |y: f32| {
            let a = y * self.end;
            (self.radius * a.sin(), self.height * (a.cos() - self.end.cos()))
        };
        match self.kind {
            Kind::Sessile => {
                let (r, h) = dome(x);
                (r, h + self.foot())
            }
            Kind::Flat => (self.radius * x, self.height * (1.0 - x.powf(self.edge)) + self.foot()),
            Kind::Pedunculated if x < 0.6 => {
                let (r, h) = dome(x / 0.6);
                (r, h + self.stalk_length + self.foot())
            }
            Kind::Pedunculated => {
                let y = (x - 0.6) / 0.4;
                (self.stalk * (1.0 + 0.5 * y * y * y), self.stalk_length * (1.0 - y) + self.foot())
            }
        }
    }

    fn at(&self, t: f32) -> (f32, f32) {
        if t <= BODY {
            return self.body(t / BODY);
        }
        let q = (t - BODY) / (1.0 - BODY);
        let (r, h) = self.body(1.0);
        (r + 0.3 * self.radius * q, h * (1.0 - q) * (1.0 - q) - 0.02 * q)
    }

    /// Height of the top.
    fn top(&self) -> f32 {
        self.body(0.0).1
    }
}

impl Polyp {
    /// A polyp of random shape and size at about `s` cm along the tube.
    pub fn new(seed: u32, rng: &mut ChaCha8Rng, tube: &Tube, s: f32, tile: f32) -> Self {
        let kind = match rng.random_range(0..10) {
            0..5 => Kind::Sessile,
            5..8 => Kind::Flat,
            _ => Kind::Pedunculated,
        };
        let big = rng.random_range(0f32..1.0);
        let profile = match kind {
            Kind::Sessile => {
                let radius = mix(0.2, 0.95, big);
                Profile {
                    kind,
                    radius,
                    height: radius * rng.random_range(0.5..1.05),
                    end: rng.random_range(1.2..1.75),
                    edge: 0.0,
                    stalk: 0.0,
                    stalk_length: 0.0,
                }
            }
            Kind::Flat => {
                let radius = mix(0.3, 1.1, big);
                Profile {
                    kind,
                    radius,
                    height: radius * rng.random_range(0.14..0.34),
                    end: 0.0,
                    edge: rng.random_range(2.2..4.5),
                    stalk: 0.0,
                    stalk_length: 0.0,
                }
            }
            Kind::Pedunculated => {
                let radius = mix(0.28, 0.8, big);
                let stalk = radius * rng.random_range(0.35..0.65);
                Profile {
                    kind,
                    radius,
                    height: radius * rng.random_range(0.85..1.2),
                    end: PI - (stalk / radius).asin(),
                    edge: 0.0,
                    stalk,
                    stalk_length: radius * rng.random_range(0.5..1.8),
                }
            }
        };
        let place = Place::find(rng, tube, s, profile.radius);
        let (vertices, triangles, centre) = mesh(seed, rng, tube, &place, &profile);
        let radius = match kind {
            Kind::Flat => 0.6 * profile.radius,
            _ => profile.radius.max(profile.height),
        };
        let pattern = match rng.random_range(0..10) {
            0..4 => Pattern::Smooth,
            4..8 => Pattern::Pits,
            _ => Pattern::Gyri,
        };
        // Redder than the wall, similar, or paler.
        let strength = if kind == Kind::Flat { 0.6 } else { 1.0 };
        let red = strength
            * if rng.random_bool(0.4) {
                rng.random_range(-0.25f32..0.25)
            } else {
                rng.random_range(-0.4..1.0)
            };
        let tint = [
            1.0 + 0.06 * red + 0.1 * rng.random_range(-0.5..1.0f32),
            (1.0 - 0.32 * red).min(1.2),
            (1.0 - 0.3 * red + 0.1 * rng.random_range(-1.0..1.0f32)).min(1.2),
        ];
        let skin = texture::polyp(seed, rng, pattern, tile);
        let pits = rng.random_range(0.15..0.55);
        Self { vertices, triangles, centre, radius, axis: place.n, s: place.s, skin, tint, pits }
    }
}

/// A spot on the wall with its axes.
struct Place {
    s: f32,
    angle: f32,
    p: Vec3,
    n: Vec3,
    /// Along the tube and around it, in the wall's plane.
    along: Vec3,
    around: Vec3,
    /// Centimetres of wall per centimetre of centre line, and per radian.
    stretch: [f32; 2],
}

impl Place {
    fn at(tube: &Tube, s: f32, angle: f32, radius: f32) -> (Self, f32) {
        let turn = radius / tube.radius;
        let (p, mut n) = tube.surface(s, angle);
        for (i, j) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)] {
            n += tube.surface(s + 0.7 * i * radius, angle + 0.7 * j * turn).1 * 0.6;
        }
        let n = n.unit();
        let axes = tube.axes(s);
        let ahead = tube.surface(s + radius, angle).0 - tube.surface(s - radius, angle).0;
        let beside = tube.surface(s, angle + turn).0 - tube.surface(s, angle - turn).0;
        let along = (axes.t - n * n.dot(axes.t)).unit();
        let around = n.cross(along);
        let around = if around.dot(beside) < 0.0 { -around } else { around };
        let stretch = [ahead.length() / (2.0 * radius), beside.length() / (2.0 * turn)];
        (Self { s, angle, p, n, along, around, stretch }, n.dot(axes.t).abs())
    }

    /// The least steep of a few random spots, because flanks of folds are unsuitable.
    fn find(rng: &mut ChaCha8Rng, tube: &Tube, s: f32, radius: f32) -> Self {
        (0..6)
            .map(|_| Self::at(tube, s + rng.random_range(-1.5..1.5), rng.random_range(0.0..TAU), radius))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|best| best.0)
            .expect("six candidates")
    }

    /// Position on the wall below (`x`, `y`) cm of its plane.
    fn under(&self, x: f32, y: f32) -> [f32; 2] {
        [self.s + x / self.stretch[0], self.angle + y / self.stretch[1]]
    }
}

/// One ring of the mesh around the axis, by the profile.
struct Ring {
    /// Distance from the axis and height, in centimetres.
    r: f32,
    h: f32,
    /// Distance from the top along the profile in centimetres.
    arc: f32,
    /// Position between the top (0) and the rim of the polyp (1); beyond it on the wall.
    body: f32,
    /// 1 on a head or dome, 0 on a stalk.
    on_head: f32,
}

impl Profile {
    /// The mesh's rings from the top to the wall.
    fn rings(&self) -> Vec<Ring> {
        let mut arc = 0.0;
        let mut last = self.at(0.0);
        let ring = |i: usize| {
            // Never quite 0, so that the first ring has a direction.
            let t = (i as f32 / (RINGS - 1) as f32).max(1e-3);
            let (r, h) = self.at(t);
            arc += ((r - last.0).powi(2) + (h - last.1).powi(2)).sqrt();
            last = (r, h);
            let body = t / BODY;
            let on_head = match self.kind {
                Kind::Pedunculated => smoothstep(0.72, 0.5, body),
                _ => 1.0,
            };
            Ring { r, h, arc, body, on_head }
        };
        (0..RINGS).map(ring).collect()
    }
}

/// Random deviations of a polyp from a solid of revolution.
#[derive(Clone, Copy)]
struct Deviation {
    /// Depth of lobes as a fraction of the radius, and the strength of finer bumps on them.
    lobes: f32,
    uneven: f32,
    /// Ratio of the outline's axes, and the angle of the longer one in radians.
    oval: f32,
    turned: f32,
    /// How far the top leans to a side as a fraction of its height, and in which direction in radians.
    lean: f32,
    lean_to: f32,
}

impl Deviation {
    fn new(rng: &mut ChaCha8Rng, kind: Kind) -> Self {
        let lobes = match kind {
            Kind::Flat => rng.random_range(0.05..0.3),
            _ if rng.random_bool(0.3) => rng.random_range(0.2..0.4),
            _ => rng.random_range(0.03..0.15),
        };
        let uneven = rng.random_range(0.0..0.25f32);
        let oval = rng.random_range(0.75f32..1.0);
        let turned = rng.random_range(0.0..PI);
        let lean = match kind {
            Kind::Sessile => rng.random_range(0.0..0.35),
            Kind::Flat => 0.0,
            Kind::Pedunculated => rng.random_range(0.1..1.0),
        };
        let lean_to = rng.random_range(0.0..TAU);
        Self { lobes, uneven, oval, turned, lean, lean_to }
    }
}

/// The surface of one polyp on its spot of the wall.
struct Surface<'a> {
    seed: u32,
    tube: &'a Tube,
    place: &'a Place,
    profile: &'a Profile,
    deviation: Deviation,
    /// Height of the top in centimetres.
    top: f32,
}

impl Surface<'_> {
    /// Distance from the axis and height, in centimetres, of a ring's point at `angle` radians, with lobes and an oval
    /// outline.
    fn deviated(&self, ring: &Ring, angle: f32) -> (f32, f32) {
        let &Ring { r, h, body, on_head, .. } = ring;
        let Deviation { lobes, uneven, oval, turned, .. } = self.deviation;
        let (seed, profile) = (self.seed, self.profile);
        let (sin, cos) = angle.sin_cos();
        let (st, ct) = (angle - turned).sin_cos();
        let outline = 1.0 / (ct * ct + (st / oval).powi(2)).sqrt();
        let bump = noise3(seed, vec3(cos * r, sin * r, h) * (0.95 / profile.radius) + vec3(3.7, 1.1, 8.3))
            + uneven * noise3(seed ^ 1, vec3(cos * r, sin * r, h) * (2.6 / profile.radius));
        // Lobes fade out on the skirt, so that it stays on the wall.
        let swell = 1.0 + on_head * lobes * bump * smoothstep(1.2, 0.95, body);
        let edge = if profile.kind == Kind::Flat {
            1.0 + 0.22 * noise3(seed ^ 2, vec3(cos * 1.4, sin * 1.4, 0.0))
        } else {
            1.0
        };
        let r = r * mix(1.0, outline, on_head) * edge * swell;
        let h = if h > profile.foot() { h * mix(1.0, swell, 0.6) } else { h };
        (r, h)
    }

    /// The vertex of a ring at `angle` radians. Its normal is the wall's.
    fn vertex(&self, ring: &Ring, angle: f32) -> Vertex {
        let &Ring { arc, body, on_head, .. } = ring;
        let Deviation { lean, lean_to, .. } = self.deviation;
        let (place, top) = (self.place, self.top);
        let (sin, cos) = angle.sin_cos();
        let (r, h) = self.deviated(ring, angle);
        let up = ring.h / top.max(1e-3);
        let shift = lean * top * up.max(0.0).powf(1.6);
        let (x, y) = (r * cos + shift * lean_to.cos(), r * sin + shift * lean_to.sin());
        let ground = place.under(x, y);
        let (foot, normal) = self.tube.surface(ground[0], ground[1]);
        let free = match self.profile.kind {
            Kind::Flat => 0.0,
            _ => smoothstep(0.0, 0.55 * top, h),
        };
        let planar = place.p + place.along * x + place.around * y + place.n * h;
        let tint = smoothstep(1.14, 0.93, body);
        Vertex {
            p: (foot + normal.mix(place.n, 0.5).unit() * h).mix(planar, free),
            n: normal,
            wall: ground,
            skin: [arc * cos, arc * sin],
            tint: tint * mix(0.25, 1.0, on_head),
            cover: smoothstep(1.13, 0.99, body),
            relief: mix(-0.3, 0.35, smoothstep(0.0, 0.5, up)) * smoothstep(1.2, 1.0, body),
        }
    }
}

/// A polyp's vertices ring by ring, triangles, and the centre of its head or dome.
fn mesh(
    seed: u32,
    rng: &mut ChaCha8Rng,
    tube: &Tube,
    place: &Place,
    profile: &Profile,
) -> (Vec<Vertex>, Vec<[u32; 3]>, Vec3) {
    let deviation = Deviation::new(rng, profile.kind);
    let surface = Surface { seed, tube, place, profile, deviation, top: profile.top() };
    let mut vertices = Vec::with_capacity(RINGS * AROUND);
    for ring in profile.rings() {
        for k in 0..AROUND {
            vertices.push(surface.vertex(&ring, k as f32 * TAU / AROUND as f32));
        }
    }
    let triangles = triangles();
    set_normals(&mut vertices, &triangles, place.n);
    let head = &vertices[..(RINGS as f32 * BODY * if profile.kind == Kind::Pedunculated { 0.6 } else { 1.0 })
        as usize
        * AROUND];
    let centre = head.iter().fold(Vec3::default(), |sum, v| sum + v.p) * (1.0 / head.len() as f32);
    (vertices, triangles, centre)
}

/// Two triangles for each cell between neighbouring rings.
fn triangles() -> Vec<[u32; 3]> {
    let mut triangles = Vec::with_capacity(2 * RINGS * AROUND);
    for i in 0..RINGS as u32 - 1 {
        for k in 0..AROUND as u32 {
            let next = (k + 1) % AROUND as u32;
            let (a, b) = (i * AROUND as u32 + k, i * AROUND as u32 + next);
            let (c, d) = (a + AROUND as u32, b + AROUND as u32);
            triangles.push([a, c, b]);
            triangles.push([b, c, d]);
        }
    }
    triangles
}

/// Computes normals from the mesh, blended into the wall's own (already in `n`) towards the rim.
fn set_normals(vertices: &mut [Vertex], triangles: &[[u32; 3]], axis: Vec3) {
    let mut sums = vec![Vec3::default(); vertices.len()];
    for t in triangles {
        let [a, b, c] = t.map(|i| vertices[i as usize].p);
        let n = (b - a).cross(c - a);
        for i in t {
            sums[*i as usize] += n;
        }
    }
    // The first ring is the top, which faces along the axis.
    let top = sums[..AROUND].iter().fold(Vec3::default(), |s, n| s + *n);
    let sign = if top.dot(axis) < 0.0 { -1.0 } else { 1.0 };
    let apex = (top * sign).unit();
    for (i, (v, n)) in vertices.iter_mut().zip(sums).enumerate() {
        let n = if i < AROUND { apex } else { (n * sign).unit() };
        v.n = v.n.mix(n, smoothstep(0.02, 0.6, v.cover)).unit();
    }
}
