//! Position of a mask on a later frame: tracks the tissue under it from frame to frame.

use autosam_frame::Luma;
use autosam_frame::motion::{Extent, Scene};
use std::collections::VecDeque;

/// Whether masks follow the video between two inferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Motion {
    /// They stay where they were computed.
    #[default]
    Off,
    /// They follow the tissue on each frame after their own.
    On,
    /// They follow from the second frame after their own. On the first they stay if it looks the same, and follow
    /// otherwise.
    Auto,
}

/// How a mask is placed on a frame after its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// At its own position.
    Stays,
    /// At its own position if the frame looks like the mask's own; otherwise as [`Self::Follows`].
    StaysInScene,
    /// At the current position of the tissue under it; not drawn if that is not found.
    Follows,
}

impl Motion {
    /// The placement of a mask on the frame `age` frames after its own.
    pub(crate) fn placement(self, age: u64) -> Placement {
        match (self, age) {
            (Self::Off, _) | (_, 0) => Placement::Stays,
            (Self::Auto, 1) => Placement::StaysInScene,
            _ => Placement::Follows,
        }
    }
}

/// Number of frames whose position is kept. No mask is older than that.
const MOST_FRAMES: usize = 128;
/// Maximum number of missing frames between two for the path to predict the next position.
const MOST_MISSING: u64 = 2;

/// Fractions of the frame's sides, right and down.
type Place = (f32, f32);

/// The path of the tissue under the most recent masks.
#[derive(Default)]
pub(crate) struct Follower {
    /// Positions by ascending frame number. Only their differences are meaningful.
    path: VecDeque<(u64, Place)>,
}

impl Follower {
    /// Discards the path after a flush or a scene change.
    pub fn reset(&mut self) {
        self.path.clear();
    }

    /// How far the content of `extent` in `scene`, frame number `from`, has moved in `now`, frame number `index`;
    /// `None` if it cannot be followed.
    pub fn shift(
        &mut self,
        scene: &Scene,
        from: u64,
        extent: Extent,
        now: &Luma,
        index: u64,
    ) -> Option<Place> {
        let start = self.place(from);
        let near = start.and_then(|start| self.expected(index).map(|place| minus(place, start)));
        let Some(found) = scene.follow(now, extent, near) else {
            self.reset();
            return None;
        };
        let start = start.unwrap_or_else(|| {
            // The path so far belongs to an earlier mask.
            self.path.clear();
            self.path.push_back((from, (0.0, 0.0)));
            (0.0, 0.0)
        });
        if self.path.len() >= MOST_FRAMES {
            self.path.pop_front();
        }
        self.path.push_back((index, (start.0 + found.0, start.1 + found.1)));
        Some(found)
    }

    fn place(&self, frame: u64) -> Option<Place> {
        self.path.iter().rev().find(|(index, _)| *index == frame).map(|(_, place)| *place)
    }

    /// Expected position on frame `index`, extrapolated from the last motion.
    fn expected(&self, index: u64) -> Option<Place> {
        let (last, place) = *self.path.back()?;
        let ahead = index.checked_sub(last).filter(|frames| *frames <= MOST_MISSING)? as f32;
        let before = self.path.iter().rev().nth(1).filter(|(before, _)| last - before <= MOST_MISSING);
        let Some((before, from)) = before else { return Some(place) };
        let (step, frames) = (minus(place, *from), (last - before).max(1) as f32);
        Some((place.0 + step.0 * ahead / frames, place.1 + step.1 * ahead / frames))
    }
}

fn minus(a: Place, b: Place) -> Place {
    (a.0 - b.0, a.1 - b.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// An aperiodic texture, moved by `x` and `y` pixels.
    fn video(x: f32, y: f32) -> Luma {
        let (width, height) = (128, 96);
        let value = |i: usize| {
            let (x, y) = ((i % width) as f32 - x, (i / width) as f32 - y);
            let waves = (x * 0.19).sin() * (y * 0.16).cos() + (x * 0.071 + y * 0.117).sin();
            (128.0 + 35.0 * waves + 30.0 * (0.0021 * x * x + 0.0017 * y * y + 0.0013 * x * y).sin()) as u8
        };
        Luma { width, height, data: (0..width * height).map(value).collect() }
    }

    const MIDDLE: Extent = Extent { left: 0.4, top: 0.35, right: 0.6, bottom: 0.65 };

    #[test]
    fn masks_follow_from_the_second_frame_after_their_own() {
        use Placement::{Follows, Stays, StaysInScene};
        let placements = |motion: Motion| [0, 1, 2, 3].map(|age| motion.placement(age));
        assert_eq!(placements(Motion::Off), [Stays; 4]);
        assert_eq!(placements(Motion::On), [Stays, Follows, Follows, Follows]);
        assert_eq!(placements(Motion::Auto), [Stays, StaysInScene, Follows, Follows]);
    }

    #[test]
    fn the_path_continues_with_the_next_mask() {
        let mut follower = Follower::default();
        let at = |frame: u64| video(-1.5 * frame as f32, 0.7 * frame as f32);
        let scene = |frame: u64| Scene::new(Arc::new(at(frame)));
        // A mask every six frames, drawn from the sixth frame after its own. It ends 17 pixels away; the whole path is
        // 26 pixels.
        for made in [0, 6, 12] {
            let scene = scene(made);
            for index in made + 6..made + 12 {
                let (x, y) = follower.shift(&scene, made, MIDDLE, &at(index), index).unwrap();
                let age = (index - made) as f32;
                let off = (x * 128.0 + 1.5 * age, y * 96.0 - 0.7 * age);
                assert!(off.0.abs() < 0.6 && off.1.abs() < 0.6, "{made} at {index}: {off:?}");
            }
        }
        assert!(follower.place(6).is_some() && follower.place(23).is_some());
        let (x, y) = minus(follower.place(23).unwrap(), follower.place(6).unwrap());
        assert!((x * 128.0 + 25.5).abs() < 1.5 && (y * 96.0 - 11.9).abs() < 1.5, "{x} {y}");
    }

    #[test]
    fn another_scene_ends_the_path() {
        let mut follower = Follower::default();
        let scene = Scene::new(Arc::new(video(0.0, 0.0)));
        assert!(follower.shift(&scene, 1, MIDDLE, &video(1.0, 0.0), 2).is_some());
        let other = Luma {
            data: (0..128 * 96).map(|i| (i % 128 / 9 * 7919 + i / 128 / 9 * 104_729) as u8).collect(),
            ..video(0.0, 0.0)
        };
        assert_eq!(follower.shift(&scene, 1, MIDDLE, &other, 3), None);
        assert_eq!(follower.place(2), None);
    }

    #[test]
    fn the_path_is_bounded() {
        let mut follower = Follower::default();
        let scene = Scene::new(Arc::new(video(0.0, 0.0)));
        for index in 1..1000 {
            assert!(follower.shift(&scene, 0, MIDDLE, &video(0.0, 0.0), index).is_some());
        }
        assert!(follower.path.len() <= MOST_FRAMES);
    }
}
