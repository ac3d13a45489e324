//! The endoscope: its lens, its path through the tube, and its view direction.

use super::math::*;
use super::polyp::Polyp;
use super::tube::Tube;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::f32::consts::{PI, TAU};

/// Position and orientation of the endoscope's tip; the three axes are orthonormal.
#[derive(Clone, Copy)]
pub struct Pose {
    pub p: Vec3,
    pub right: Vec3,
    pub down: Vec3,
    pub forward: Vec3,
}

/// A wide-angle lens: a ray φ radians off axis is projected `f·φ·(1 + k·φ²)` pixels from the centre.
#[derive(Clone, Copy)]
pub struct Lens {
    pub cx: f32,
    pub cy: f32,
    pub f: f32,
    pub k: f32,
}

/// Near limit of drawing in centimetres.
const NEAR: f32 = 0.12;
/// Maximum angle off axis that is drawn, in radians.
const WIDEST: f32 = 1.75;

impl Lens {
    /// Pixel coordinates and distance (cm) of a point, if the lens can see it.
    pub fn project(&self, pose: &Pose, p: Vec3) -> Option<[f32; 3]> {
        let d = p - pose.p;
        let (x, y, z) = (d.dot(pose.right), d.dot(pose.down), d.dot(pose.forward));
        let across = (x * x + y * y).sqrt();
        let distance = (across * across + z * z).sqrt();
        let phi = across.atan2(z);
        if distance < NEAR || phi > WIDEST {
            return None;
        }
        let r = if across > 1e-9 { self.f * phi * (1.0 + self.k * phi * phi) / across } else { 0.0 };
        Some([self.cx + r * x, self.cy + r * y, distance])
    }
}

/// One control point: position along the tube (cm), offset from the centre line (cm, two axes), view direction in the
/// tube's axes (three), roll (radians).
struct Key {
    t: f32,
    c: [f32; 7],
}

pub struct Path {
    keys: Vec<Key>,
    seed: u32,
    tremor: f32,
}

/// Properties of the image needed for a path.
pub struct View {
    /// Angle from the centre to the nearer edge in radians.
    pub edge: f32,
    /// Pixels per radian.
    pub f: f32,
    /// Number of pixels of the whole image.
    pub pixels: f32,
}

/// Minimum distance of the camera from the wall in centimetres.
const MARGIN: f32 = 0.42;
/// Most oblique planned view of a polyp in radians off its axis; beyond, the wall hides it.
const STEEPEST: f32 = 1.25;

impl Path {
    /// A path of `frames` frames that stops at each polyp in turn, there and back again if there is time.
    pub fn new(
        seed: u32,
        rng: &mut ChaCha8Rng,
        tube: &Tube,
        polyps: &[Polyp],
        stops: &[f32],
        view: &View,
        frames: usize,
    ) -> Self {
        let mut plan = Plan { tube, view, keys: Vec::new(), roll: rng.random_range(0.0..TAU) };
        let mut at = 0usize;
        let mut step = 1isize;
        // Withdrawal is as likely as insertion: the same stops from the far end.
        if rng.random_bool(0.5) {
            (at, step) = (stops.len() - 1, -1);
        }
        // Most sequences start at a polyp, because short ones would not reach one otherwise.
        let mut t = -rng.random_range(10f32..34.0);
        let far = rng.random_bool(0.35);
        plan.travel(rng, t, stops[at] - if far { 10.5 } else { 5.0 });
        t += if far { rng.random_range(25.0..45.0) } else { rng.random_range(8.0..16.0) };
        loop {
            t = match polyps.get(at) {
                Some(polyp) => plan.visit(rng, t, polyp),
                None => plan.look_at_wall(rng, t, stops[at]),
            };
            if t > frames as f32 + 30.0 {
                break;
            }
            let next = at as isize + step;
            if next < 0 || next >= stops.len() as isize {
                step = -step;
            }
            let next = (at as isize + step).clamp(0, stops.len() as isize - 1) as usize;
            let (from, to) = (plan.keys.last().expect("a visit leaves keys").c[0], stops[next] - 5.0);
            let speed = rng.random_range(0.14..0.32);
            let legs = ((to - from).abs() / 4.5).ceil().max(1.0);
            for leg in 1..=legs as usize {
                t += ((to - from).abs() / legs / speed).max(7.0);
                plan.travel(rng, t, mix(from, to, leg as f32 / legs));
            }
            t += rng.random_range(7.0..14.0);
            at = next;
        }
        Self { keys: plan.keys, seed, tremor: rng.random_range(0.3..1.2) }
    }

    /// Control values at frame time `t`: a cubic through the keys.
    fn values(&self, t: f32) -> [f32; 7] {
        let k = &self.keys;
        let i = k.partition_point(|key| key.t <= t).clamp(1, k.len() - 1);
        let (a, b) = (&k[i - 1], &k[i]);
        let (before, after) = (&k[i.saturating_sub(2)], &k[(i + 1).min(k.len() - 1)]);
        let span = b.t - a.t;
        let x = ((t - a.t) / span).clamp(0.0, 1.0);
        std::array::from_fn(|c| {
            let slope = |p: &Key, q: &Key| if q.t > p.t { (q.c[c] - p.c[c]) / (q.t - p.t) } else { 0.0 };
            // Damped tangents, because a hand moves in starts and stops, and overshoot would leave the lumen.
            let (ma, mb) = (0.6 * slope(before, b) * span, 0.6 * slope(a, after) * span);
            let (x2, x3) = (x * x, x * x * x);
            (2.0 * x3 - 3.0 * x2 + 1.0) * a.c[c]
                + (x3 - 2.0 * x2 + x) * ma
                + (3.0 * x2 - 2.0 * x3) * b.c[c]
                + (x3 - x2) * mb
        })
    }

    /// The camera at frame time `t`.
    pub fn pose(&self, tube: &Tube, polyps: &[Polyp], t: f32) -> Pose {
        let mut c = self.values(t);
        let shake =
            |channel: u32, speed: f32| self.tremor * noise1(self.seed ^ (0x90 + channel), t * speed + 0.3);
        c[0] += 0.06 * shake(0, 0.11);
        for (k, c) in c.iter_mut().enumerate().take(3).skip(1) {
            *c += 0.09 * shake(k as u32, 0.13) + 0.02 * shake(k as u32 + 10, 0.37);
        }
        for (k, c) in c.iter_mut().enumerate().take(6).skip(4) {
            *c += 0.09 * shake(k as u32, 0.09) + 0.03 * shake(k as u32 + 10, 0.31);
        }
        let axes = tube.axes(c[0]);
        let (mut out, angle) = ((c[1] * c[1] + c[2] * c[2]).sqrt(), c[2].atan2(c[1]));
        out = out.min((tube.room(c[0], angle) - MARGIN).max(0.0));
        let (sin, cos) = angle.sin_cos();
        let mut p = axes.c + (axes.u * cos + axes.v * sin) * out;
        for polyp in polyps {
            let (away, keep) = (p - polyp.centre, polyp.radius + 0.38);
            let d = away.length();
            if d < keep {
                p += away.unit() * (keep - d);
            }
        }
        let forward = (axes.t * c[3] + axes.u * c[4] + axes.v * c[5]).unit();
        // The tube's transverse axis, turned by the smallest rotation from the tube's direction to the view's.
        let lift = 1.0 / (1.0 + axes.t.dot(forward)).max(0.05);
        let down = axes.v - (axes.t + forward) * (axes.v.dot(forward) * lift);
        let down = (down - forward * forward.dot(down)).unit();
        let right = down.cross(forward);
        let (sin, cos) = (c[6] + 0.05 * shake(6, 0.05)).sin_cos();
        Pose { p, right: right * cos + down * sin, down: down * cos - right * sin, forward }
    }
}

struct Plan<'a> {
    tube: &'a Tube,
    view: &'a View,
    keys: Vec<Key>,
    roll: f32,
}

impl Plan<'_> {
    fn push(&mut self, t: f32, s: f32, offset: (f32, f32), look: Vec3) {
        let axes = self.tube.axes(s);
        let local = [look.dot(axes.t), look.dot(axes.u), look.dot(axes.v)];
        // Never fully backwards, because the scope does not turn round in the bowel.
        let local = if local[0] < -0.5 { [-0.5, local[1], local[2]] } else { local };
        self.keys.push(Key { t, c: [s, offset.0, offset.1, local[0], local[1], local[2], self.roll] });
    }

    /// A look down the lumen at `s`.
    fn travel(&mut self, rng: &mut ChaCha8Rng, t: f32, s: f32) {
        let axes = self.tube.axes(s);
        let ahead = self.tube.axes(s + 4.0).c - axes.c;
        let side = rng.random_range(0.0..TAU);
        let tilt = rng.random_range(0.0..0.55f32);
        let look = ahead.unit() + (axes.u * side.cos() + axes.v * side.sin()) * tilt;
        let (out, to) = (rng.random_range(0.0..0.55) * self.tube.radius, rng.random_range(0.0..TAU));
        self.roll += rng.random_range(-0.4..0.4);
        self.push(t, s, (out * to.cos(), out * to.sin()), look.unit());
    }

    /// A few looks at the wall near `s`, close or far.
    fn look_at_wall(&mut self, rng: &mut ChaCha8Rng, mut t: f32, s: f32) -> f32 {
        let side = rng.random_range(0.0..TAU);
        for _ in 0..rng.random_range(2..4) {
            let here = s + rng.random_range(-1.5..1.5);
            let axes = self.tube.axes(here);
            let to = side + rng.random_range(-0.5..0.5);
            let across = axes.u * to.cos() + axes.v * to.sin();
            let turn = rng.random_range(0.5..1.35f32);
            let out = rng.random_range(-0.5..0.6) * self.tube.radius;
            self.push(t, here, (out * to.cos(), out * to.sin()), axes.t * turn.cos() + across * turn.sin());
            t += rng.random_range(10.0..24.0);
        }
        t
    }

    /// Several looks at one polyp, from different distances and sides.
    fn visit(&mut self, rng: &mut ChaCha8Rng, mut t: f32, polyp: &Polyp) -> f32 {
        let axes = self.tube.axes(polyp.s);
        for _ in 0..rng.random_range(2..4) {
            // Fraction of the image's area, 1.2 % to 36 %, uniform in the logarithm.
            let area = 0.012 * 30f32.powf(rng.random_range(0.0..1.0));
            let seen = ((area * self.view.pixels / PI).sqrt() / self.view.f).min(1.0);
            let distance = (polyp.radius / seen.tan()).clamp(polyp.radius + 0.45, 5.5);
            // From a distance the camera must move back along the tube.
            let back = (1.2 * self.tube.radius / distance).min(1.0).acos();
            let back = rng.random_range(0.0..1.0f32).mul_add((STEEPEST - back).max(0.0), back).min(STEEPEST);
            let sideways = rng.random_range(-0.5..0.5f32);
            let across = polyp.axis.cross(axes.t).unit();
            let from = (polyp.axis * back.cos() - axes.t * back.sin() + across * sideways).unit();
            let wanted = polyp.centre + from * distance;
            let s = polyp.s - distance * back.sin();
            let here = self.tube.axes(s);
            let (dx, dy) = ((wanted - here.c).dot(here.u), (wanted - here.c).dot(here.v));
            let (out, to) = ((dx * dx + dy * dy).sqrt(), dy.atan2(dx));
            let out = out.min((self.tube.room(s, to) - MARGIN).max(0.0));
            let p = here.c + (here.u * to.cos() + here.v * to.sin()) * out;
            let aim = (polyp.centre - p).unit();
            // Off the image's centre, sometimes clipped by its edge.
            let miss = self.view.edge * 0.8 * rng.random_range(0f32..1.0).powf(0.8);
            let side = aim.cross(here.t + here.u * 0.3).unit();
            let around = rng.random_range(0.0..TAU);
            let off = side * around.cos() + aim.cross(side) * around.sin();
            self.roll += rng.random_range(-0.5..0.5);
            self.push(t, s, (out * to.cos(), out * to.sin()), aim * miss.cos() + off * miss.sin());
            t += rng.random_range(8.0..22.0);
        }
        t
    }
}
