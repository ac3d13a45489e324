//! Motion of the tissue under the latest mask since the frame that the mask was computed from: the shift of the mask's
//! surroundings, found by block matching in small grey copies of both frames. A scene change is never bridged: a frame
//! in which the surroundings match nowhere nearby is another scene.

use super::flow::Window;
use super::mask::Region;
use crate::Luma;
use std::sync::Arc;

/// Longest side of the small copies in pixels.
pub const SIDE: usize = 128;

/// Search range for the surroundings in pixels of the halved copy, and range of the correction on the finer level.
const COARSE: isize = 6;
const FINE: isize = 2;
/// Search range around the position where they are expected, in pixels of the halved copy.
const NEAR: isize = 3;
/// Minimum side of the search window in pixels of the copy halved twice. A smaller window matches anywhere.
const LEAST_COARSE: usize = 10;
/// Maximum number of pixels compared on each level, in whole lines. It bounds the time spent on the streaming thread.
const MOST_PIXELS: usize = 1200;
/// Margin around a mask that is assumed to move with it: its box's sides divided by `MARGIN`, but at least
/// `LEAST_MARGIN` pixels.
const MARGIN: usize = 4;
const LEAST_MARGIN: usize = 4;
/// Thresholds of [`unlikeness`]: above the first the scene has changed; above the second a position in the same scene
/// is wrong; below the third it is right whatever the rest of the frame does.
const SCENE_CHANGE: f32 = 0.6;
const LOST: f32 = 0.4;
const SURE: f32 = 0.2;
/// Amplitude of noise in grey levels.
const NOISE: f32 = 4.0;

/// A part of the frame, in fractions (0 to 1) of its sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
}

impl Extent {
    pub const WHOLE: Self = Self { left: 0.0, top: 0.0, right: 1.0, bottom: 1.0 };

    /// The bounding box of all `regions`.
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

/// How far the content of `extent` in `before` has moved in `now`, right and down, in fractions of the frame's sides;
/// `None` if `now` is another scene. Copies of different sizes cannot be compared and yield no motion.
pub fn shift(before: &Luma, now: &Luma, extent: Extent) -> Option<(f32, f32)> {
    let (w, h) = (before.width, before.height);
    if (w, h) != (now.width, now.height) || w < 4 || h < 4 {
        return Some((0.0, 0.0));
    }
    let now = &relit(now, mean(before));
    let window = window(extent, w, h);
    let (half_before, half_now) = (before.halved(), now.halved());
    let (dx, dy) = window.halved(&half_now).find(&half_before, &half_now, COARSE, (0, 0));
    // Lost if neither the surroundings nor the frame as a whole look as they did.
    refined(before, now, window, (2 * dx, 2 * dy), |part, all| part > SCENE_CHANGE && all > SCENE_CHANGE)
}

/// Whether `now` shows the scene of `before`, shifted at most by the search range of [`shift`].
pub fn same_scene(before: &Luma, now: &Luma) -> bool {
    shift(before, now, Extent::WHOLE).is_some()
}

/// The subpixel shift of `window` within [`FINE`] of `start`; `None` if `wrong` rejects it by the [`unlikeness`] of the
/// window and of the whole frame there.
fn refined(
    before: &Luma,
    now: &Luma,
    window: Window,
    start: (isize, isize),
    wrong: impl Fn(f32, f32) -> bool,
) -> Option<(f32, f32)> {
    let (w, h) = (before.width, before.height);
    let best = window.find(before, now, FINE, start);
    let [part, all] = [window, window_of(0, 0, w, h)].map(|part| unlikeness(before, now, part, best));
    if wrong(part, all) {
        return None;
    }
    // Subpixel position: the minimum of a parabola through the best difference and its neighbours, in each direction.
    let at = |dx, dy| window.difference(before, now, best.0 + dx, best.1 + dy) as f32;
    let middle = at(0, 0);
    let between = |low: f32, high: f32| {
        let bend = low - 2.0 * middle + high;
        if bend > 0.0 { ((low - high) / (2.0 * bend)).clamp(-0.5, 0.5) } else { 0.0 }
    };
    let (fx, fy) = (between(at(-1, 0), at(1, 0)), between(at(0, -1), at(0, 1)));
    Some(((best.0 as f32 + fx) / w as f32, (best.1 as f32 + fy) / h as f32))
}

/// The small copy of the frame that a mask was computed from, prepared for the search in later frames.
#[derive(Debug, Clone)]
pub struct Scene {
    full: Arc<Luma>,
    half: Luma,
    quarter: Luma,
    mean: i32,
}

impl Scene {
    /// Prepares a copy whose longest side is [`SIDE`].
    pub fn new(full: Arc<Luma>) -> Self {
        let half = full.halved();
        Self { quarter: half.halved(), mean: mean(&full), half, full }
    }

    /// As [`shift`], with a larger range and less work: it first searches close to `near`, the expected position, if
    /// given, and then within a sixth of the frame. It also returns `None` if the tissue has moved beyond the search
    /// range.
    pub fn follow(&self, now: &Luma, extent: Extent, near: Option<(f32, f32)>) -> Option<(f32, f32)> {
        let (w, h) = (self.full.width, self.full.height);
        if (w, h) != (now.width, now.height) || w < 4 || h < 4 {
            return Some((0.0, 0.0));
        }
        let now = relit(now, self.mean);
        let half_now = now.halved();
        let window = window(extent, w, h);
        let half = window.halved(&half_now);
        let found = near.and_then(|(x, y)| {
            let start = ((x * w as f32 / 2.0).round() as isize, (y * h as f32 / 2.0).round() as isize);
            inside(half.find(&self.half, &half_now, NEAR, start), start, NEAR)
        });
        let (dx, dy) = match found {
            Some(found) => found,
            None => {
                let quarter_now = half_now.halved();
                let wide = window.grown(4 * LEAST_COARSE, w, h).halved(&half_now).halved(&quarter_now);
                let at = wide.find(&self.quarter, &quarter_now, COARSE, (0, 0));
                let (dx, dy) = inside(at, (0, 0), COARSE)?;
                half.find(&self.half, &half_now, NEAR, (2 * dx, 2 * dy))
            }
        };
        refined(&self.full, &now, window, (2 * dx, 2 * dy), lost)
    }

    /// [`same_scene`] with this copy as the earlier frame.
    pub fn continues(&self, now: &Luma) -> bool {
        same_scene(&self.full, now)
    }

    /// Whether `extent` and the frame as a whole still look the same in `now` without motion. Costs much less than
    /// [`Self::follow`] and detects scene changes as strictly.
    pub fn unmoved(&self, now: &Luma, extent: Extent) -> bool {
        let (w, h) = (self.full.width, self.full.height);
        if (w, h) != (now.width, now.height) || w < 4 || h < 4 {
            return true;
        }
        let [part, all] = [window(extent, w, h), window_of(0, 0, w, h)]
            .map(|part| unlikeness(&self.full, now, part, (0, 0)));
        !lost(part, all)
    }
}

/// Whether a position is wrong, judged by the [`unlikeness`] of the mask's surroundings and of the whole frame there.
/// After a scene change some position may look similar by chance, but the whole frame does not.
fn lost(part: f32, all: f32) -> bool {
    (part > LOST && all > LOST) || (part > SURE && all > SCENE_CHANGE)
}

/// `found`, or `None` if it lies at the edge of the search range, because the true position is then beyond it.
fn inside(found: (isize, isize), start: (isize, isize), reach: isize) -> Option<(isize, isize)> {
    ((found.0 - start.0).abs() < reach && (found.1 - start.1).abs() < reach).then_some(found)
}

fn mean(l: &Luma) -> i32 {
    (l.data.iter().map(|v| u64::from(*v)).sum::<u64>() / l.data.len().max(1) as u64) as i32
}

/// `now` scaled to this mean brightness, so that differences show motion and not changes of the light.
fn relit(now: &Luma, bright: i32) -> Luma {
    let by = bright - mean(now);
    let data = now.data.iter().map(|v| (i32::from(*v) + by).clamp(0, 255) as u8).collect();
    Luma { data, ..*now }
}

/// Dissimilarity of two frames of the same size at the best global shift: 0 (same) to about 1 (unrelated).
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
    let every = (1..height).find(|n| width * height.div_ceil(*n) <= MOST_PIXELS).unwrap_or(height.max(1));
    Window { left, top, width, height, every }
}

impl Window {
    /// The same window in a copy of half the size.
    fn halved(self, half: &Luma) -> Self {
        let (left, top) = (self.left / 2, self.top / 2);
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        window_of(left, top, width.min(half.width - left), height.min(half.height - top))
    }

    /// Extends the window around its centre to sides of at least `least`, within the frame.
    fn grown(self, least: usize, w: usize, h: usize) -> Self {
        let side = |low: usize, length: usize, side: usize| {
            let wanted = length.max(least).min(side);
            (low.saturating_sub((wanted - length) / 2).min(side - wanted), wanted)
        };
        let ((left, width), (top, height)) = (side(self.left, self.width, w), side(self.top, self.height, h));
        window_of(left, top, width, height)
    }
}

/// How much the pixels of `window` differ from those `shift` away: 0 for equal content, about 1 for unrelated frames.
/// The mean brightness does not count.
fn unlikeness(before: &Luma, now: &Luma, window: Window, shift: (isize, isize)) -> f32 {
    let pairs = || {
        (window.top..window.top + window.height).step_by(window.every).flat_map(move |y| {
            (window.left..window.left + window.width).map(move |x| {
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
    fn shifts_are_found_with_subpixel_precision() {
        for moved in [(0.0, 0.0), (1.0, 0.5), (-3.3, 2.0), (9.0, -7.6), (-13.0, 12.0)] {
            let (dx, dy) = shift(&scene(0.0, (0.0, 0.0), 0.0), &scene(0.0, moved, 0.0), MIDDLE).unwrap();
            let (x, y) = (dx * 128.0, dy * 72.0);
            assert!((x - moved.0).abs() < 0.4 && (y - moved.1).abs() < 0.4, "{moved:?}: {x} {y}");
        }
    }

    #[test]
    fn a_scene_is_followed_within_the_search_range() {
        let before = Scene::new(Arc::new(scene(0.0, (0.0, 0.0), 0.0)));
        let pixels = |found: Option<(f32, f32)>| found.map(|(x, y)| (x * 128.0, y * 72.0));
        let close = |found: (f32, f32), want: (f32, f32)| {
            (found.0 - want.0).abs() < 0.5 && (found.1 - want.1).abs() < 0.5
        };
        for moved in [(0.0, 0.0), (1.0, 0.5), (-3.3, 2.0), (9.0, -7.6), (-16.0, 12.0), (18.4, 3.0)] {
            let now = scene(0.0, moved, 6.0);
            let found = pixels(before.follow(&now, MIDDLE, None)).unwrap();
            assert!(close(found, moved), "{moved:?}: {found:?}");
            for off in [(0.0, 0.0), (3.0, -2.0)] {
                let near = ((moved.0 + off.0) / 128.0, (moved.1 + off.1) / 72.0);
                let found = pixels(before.follow(&now, MIDDLE, Some(near))).unwrap();
                assert!(close(found, moved), "{moved:?} near {near:?}: {found:?}");
            }
        }
        // Beyond the search range around the old position, but within that around the expected one.
        let now = scene(0.0, (34.0, 0.0), 0.0);
        let found = pixels(before.follow(&now, MIDDLE, None));
        assert!(found.is_none_or(|f| close(f, (34.0, 0.0))), "{found:?}");
        let found = pixels(before.follow(&now, MIDDLE, Some((31.0 / 128.0, 0.0)))).unwrap();
        assert!(close(found, (34.0, 0.0)), "{found:?}");
    }

    #[test]
    fn scene_changes_are_detected_and_light_changes_are_ignored() {
        let before = scene(0.0, (0.0, 0.0), 0.0);
        // Random blotches of the same contrast.
        let mut other = before.clone();
        for (i, v) in other.data.iter_mut().enumerate() {
            let (x, y) = ((i % 128 / 9) as u32, (i / 128 / 9) as u32);
            *v = 60 + ((x * 7919 + y * 104_729 + 17).wrapping_mul(2_654_435_761) >> 25) as u8;
        }
        assert_eq!(shift(&before, &other, MIDDLE), None);
        let own = Scene::new(Arc::new(before.clone()));
        assert!(!own.unmoved(&other, MIDDLE) && own.follow(&other, MIDDLE, None).is_none());
        assert!(own.unmoved(&scene(0.0, (0.6, 0.4), 18.0), MIDDLE), "the same scene in another light");
        let (dx, dy) = shift(&before, &scene(0.0, (2.0, 1.0), 18.0), MIDDLE).unwrap();
        assert!((dx * 128.0 - 2.0).abs() < 1.5 && (dy * 72.0 - 1.0).abs() < 1.5, "{dx} {dy}");
    }

    #[test]
    fn any_size_and_extent_is_accepted() {
        for (w, h) in [(1, 1), (4, 4), (5, 128), (128, 5)] {
            let flat = Luma { width: w, height: h, data: vec![50; w * h] };
            for extent in [MIDDLE, Extent::WHOLE, Extent { left: 1.0, top: 1.0, right: 1.0, bottom: 1.0 }] {
                assert_eq!(shift(&flat, &flat, extent), Some((0.0, 0.0)), "{w}x{h} {extent:?}");
            }
            assert_eq!(shift(&flat, &Luma::default(), MIDDLE), Some((0.0, 0.0)));
            let scene = Scene::new(Arc::new(flat.clone()));
            for near in [None, Some((0.0, 0.0)), Some((0.9, -0.9))] {
                for extent in [MIDDLE, Extent::WHOLE, Extent { left: 1.0, top: 1.0, right: 1.0, bottom: 1.0 }]
                {
                    assert_eq!(
                        scene.follow(&flat, extent, near),
                        Some((0.0, 0.0)),
                        "{w}x{h} {extent:?} {near:?}"
                    );
                }
            }
        }
    }
}
