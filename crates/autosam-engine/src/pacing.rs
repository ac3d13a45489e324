//! Which frames are skipped.

use std::time::Duration;

/// Returns whether it is better to skip this frame: it would wait in the queue so long that a later frame, arriving when the
/// worker is idle, would yield a fresher mask. Masks are drawn only when a frame arrives, so skipping makes no drawn mask older. `busy`:
/// how long the worker has been on its current frame. `usual`: its typical time per frame. `interval`: time between frames.
pub(super) fn should_skip_frame(busy: Option<Duration>, usual: Duration, interval: Duration) -> bool {
    let Some(rest) = busy.and_then(|busy| usual.checked_sub(busy)) else { return false };
    if rest.is_zero() || interval.is_zero() || interval >= usual.saturating_add(rest) {
        return false;
    }
    let frames = usual.as_nanos().div_ceil(interval.as_nanos());
    // A margin of an eighth of an interval, because neither frames nor masks arrive exactly on time.
    (usual + rest + interval / 8).as_nanos() > frames * interval.as_nanos()
}
