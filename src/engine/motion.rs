//! Where the tissue under the latest mask has gone since the frame that the mask was made from: the shift of the mask's own
//! surroundings, found by block matching in small grey copies of both frames. Never over a cut: a picture that does not fit
//! anywhere near is another scene.

use super::flow::Window;
use super::mask::Region;
use crate::frame::Luma;

/// Longest side of the small copies in pixels.
pub const SIDE: usize = 128;

/// How far the surroundings are sought, in pixels of the halved copy, and how far the finer level corrects that.
const COARSE: isize = 6;
const FINE: isize = 2;
/// Pixels that are compared on each level at most, thinned out evenly: it bounds the time on the picture's thread.
const MOST_PIXELS: usize = 300;
/// Surroundings of a mask that move with it, as a part of its box's sides, and at least in pixels.
const MARGIN: usize = 4;
const LEAST_MARGIN: usize = 4;
/// [`unlikeness`] from which a scene is another.
const CUT: f32 = 0.6;
/// Grey levels that noise makes.
const NOISE: f32 = 4.0;

/// A part of the picture, 0 to 1 along both sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
}

impl Extent {
    pub const WHOLE: Self = Self { left: 0.0, top: 0.0, right: 1.0, bottom: 1.0 };

    /// What holds all `regions`.
    pub fn of(regions: &[Region]) -> Self {
        let start = Self { left: 1.0, top: 1.0, right: 0.0, bottom: 0.0 };
        regions.iter().fold(start, |e, r| Self {
            left: e.left.min(r.left),
            top: e.top.min(r.top),
            right: e.right.max(r.right),
            bottom: e.bottom.max(r.bottom),
        })
    }
}

/// How far what was in `extent` of `before` has moved in `now`, right and down, as parts of the picture's sides; `None` where
/// `now` is another scene. Copies of different sizes do not compare: nothing moves.
pub fn shift(before: &Luma, now: &Luma, extent: Extent) -> Option<(f32, f32)> {
    let (w, h) = (before.width, before.height);
    if (w, h) != (now.width, now.height) || w < 4 || h < 4 {
        return Some((0.0, 0.0));
    }
    let now = &relit(now, before);
    let window = window(extent, w, h);
    let (half_before, half_now) = (before.halved(), now.halved());
    let half = window_of(
        window.left / 2,
        window.top / 2,
        window.width.div_ceil(2).min(half_now.width - window.left / 2),
        window.height.div_ceil(2).min(half_now.height - window.top / 2),
    );
    let (dx, dy) = half.find(&half_before, &half_now, COARSE, (0, 0));
    let best = window.find(before, now, FINE, (2 * dx, 2 * dy));
    // Neither the surroundings nor the picture as a whole look as they did.
    let all = window_of(0, 0, w, h);
    if [window, all].into_iter().all(|part| unlikeness(before, now, part, best) > CUT) {
        return None;
    }
    // A parabola through the differences left and right of the best, and above and below: the top between pixels.
    let at = |dx, dy| window.difference(before, now, best.0 + dx, best.1 + dy) as f32;
    let middle = at(0, 0);
    let between = |low: f32, high: f32| {
        let bend = low - 2.0 * middle + high;
        if bend > 0.0 { ((low - high) / (2.0 * bend)).clamp(-0.5, 0.5) } else { 0.0 }
    };
    let (fx, fy) = (between(at(-1, 0), at(1, 0)), between(at(0, -1), at(0, 1)));
    Some(((best.0 as f32 + fx) / w as f32, (best.1 as f32 + fy) / h as f32))
}

/// `now` as bright as `before` on the whole: differences are to tell of motion, not of the lamp.
fn relit(now: &Luma, before: &Luma) -> Luma {
    let mean = |l: &Luma| l.data.iter().map(|v| i64::from(*v)).sum::<i64>() / l.data.len().max(1) as i64;
    let by = mean(before) - mean(now);
    let data = now.data.iter().map(|v| (i64::from(*v) + by).clamp(0, 255) as u8).collect();
    Luma { data, ..*now }
}

/// How little two pictures of one size have to do with each other, at the best shift of the whole: 0 to about 1.
pub fn change(before: &Luma, now: &Luma) -> f32 {
    let all = window_of(0, 0, before.width, before.height);
    let (half_before, half_now) = (before.halved(), now.halved());
    let half = window_of(0, 0, half_now.width, half_now.height);
    let (dx, dy) = half.find(&half_before, &half_now, COARSE, (0, 0));
    unlikeness(before, now, all, all.find(before, now, FINE, (2 * dx, 2 * dy)))
}

fn window(extent: Extent, w: usize, h: usize) -> Window {
    let side = |low: f32, high: f32, side: usize| {
        let (low, high) = ((low * side as f32) as usize, (high * side as f32).ceil() as usize);
        let margin = (high.saturating_sub(low) / MARGIN).max(LEAST_MARGIN);
        let low = low.saturating_sub(margin).min(side - 1);
        (low, (high + margin).min(side).max(low + 1) - low)
    };
    let ((left, width), (top, height)) =
        (side(extent.left, extent.right, w), side(extent.top, extent.bottom, h));
    window_of(left, top, width, height)
}

fn window_of(left: usize, top: usize, width: usize, height: usize) -> Window {
    let every = (1..).find(|n| width.div_ceil(*n) * height.div_ceil(*n) <= MOST_PIXELS).unwrap_or(1);
    Window { left, top, width, height, every }
}

/// How much the pixels of `window` differ from those `shift` away: 0 not at all, about 1 as two pictures that have nothing to do
/// with each other. Brightness as a whole does not count.
fn unlikeness(before: &Luma, now: &Luma, window: Window, shift: (isize, isize)) -> f32 {
    let pairs = || {
        (window.top..window.top + window.height).step_by(window.every).flat_map(move |y| {
            (window.left..window.left + window.width).step_by(window.every).map(move |x| {
                let (x, y) = (x as isize, y as isize);
                (before.at(x, y) as f32, now.at(x + shift.0, y + shift.1) as f32)
            })
        })
    };
    let n = window.pixels() as f32;
    let mean = |sum: f32| sum / n;
    let (a, b) = (mean(pairs().map(|p| p.0).sum()), mean(pairs().map(|p| p.1).sum()));
    let difference = mean(pairs().map(|p| ((p.0 - a) - (p.1 - b)).abs()).sum());
    let contrast = mean(pairs().map(|p| (p.0 - a).abs().max((p.1 - b).abs())).sum());
    difference / (contrast + NOISE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(seed: f32, shift: (f32, f32), light: f32) -> Luma {
        let (width, height) = (128, 72);
        let value = |x: f32, y: f32| {
            let (x, y) = (x - shift.0 + seed, y - shift.1 + 0.7 * seed);
            let waves = 34.0 * (x * 0.21).sin() * (y * 0.17).cos() + 30.0 * (x * 0.07 + y * 0.11).sin();
            (128.0 + waves + light).clamp(0.0, 255.0) as u8
        };
        let data = (0..width * height).map(|i| value((i % width) as f32, (i / width) as f32)).collect();
        Luma { width, height, data }
    }

    const MIDDLE: Extent = Extent { left: 0.4, top: 0.35, right: 0.6, bottom: 0.65 };

    #[test]
    fn the_shift_is_found_between_pixels() {
        for moved in [(0.0, 0.0), (1.0, 0.5), (-3.3, 2.0), (9.0, -7.6), (-13.0, 12.0)] {
            let (dx, dy) = shift(&scene(0.0, (0.0, 0.0), 0.0), &scene(0.0, moved, 0.0), MIDDLE).unwrap();
            let (x, y) = (dx * 128.0, dy * 72.0);
            assert!((x - moved.0).abs() < 0.4 && (y - moved.1).abs() < 0.4, "{moved:?}: {x} {y}");
        }
    }

    #[test]
    fn another_scene_is_told_and_another_light_is_not() {
        let before = scene(0.0, (0.0, 0.0), 0.0);
        // Blotches at random, of the same contrast.
        let mut other = before.clone();
        for (i, v) in other.data.iter_mut().enumerate() {
            let (x, y) = ((i % 128 / 9) as u32, (i / 128 / 9) as u32);
            *v = 60 + ((x * 7919 + y * 104_729 + 17).wrapping_mul(2_654_435_761) >> 25) as u8;
        }
        assert_eq!(shift(&before, &other, MIDDLE), None);
        let (dx, dy) = shift(&before, &scene(0.0, (2.0, 1.0), 18.0), MIDDLE).unwrap();
        assert!((dx * 128.0 - 2.0).abs() < 1.5 && (dy * 72.0 - 1.0).abs() < 1.5, "{dx} {dy}");
    }

    #[test]
    fn any_size_and_extent_will_do() {
        for (w, h) in [(1, 1), (4, 4), (5, 128), (128, 5)] {
            let flat = Luma { width: w, height: h, data: vec![50; w * h] };
            for extent in [MIDDLE, Extent::WHOLE, Extent { left: 1.0, top: 1.0, right: 1.0, bottom: 1.0 }] {
                assert_eq!(shift(&flat, &flat, extent), Some((0.0, 0.0)), "{w}x{h} {extent:?}");
            }
            assert_eq!(shift(&flat, &Luma::default(), MIDDLE), Some((0.0, 0.0)));
        }
    }
}
