//! Converts a buffer to a frame for the engine, and draws the masks on it.

use super::CAT;
use super::input::seen;
use super::settings::{Settings, SyncMode};
use super::state::State;
use autosam_engine::{Engine, Shown};
use autosam_frame::{Frame, FrameMut, PlaneMut};
use gst::prelude::*;
use gst_video::prelude::*;

/// The masks drawn on a frame.
#[derive(Default)]
pub struct Drawn {
    pub automatic: Option<Shown>,
    /// Of the object that a person pointed at.
    pub object: Option<Shown>,
}

/// Submits the frame for inference and draws the current masks on it.
pub fn draw(
    element: &super::AutoSam,
    state: &mut State,
    settings: &Settings,
    buffer: &mut gst::BufferRef,
) -> Drawn {
    let mut drawn = Drawn::default();
    let pts = buffer.pts().map(gst::ClockTime::nseconds);
    let due = state.due(settings, pts);
    let (Some(engine), Some(input)) = (&mut state.engine, &state.input) else { return drawn };
    let fields = input.has_fields(buffer);
    let mut frame = match gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &input.video) {
        Ok(frame) => frame,
        Err(_) => {
            let caps = input.describe();
            state.report_once(format!("A buffer does not hold a {caps} frame; it passes unchanged"));
            return drawn;
        }
    };
    let strides =
        [0, 1, 2].map(|p| frame.plane_stride().get(p).map_or(0, |s| usize::try_from(*s).unwrap_or(0)));
    let [a, b, c, _] = frame.planes_data_mut();
    let plane = |data, p: usize| PlaneMut { data, stride: strides[p] };
    let mut canvas = match FrameMut::new(input.info, [plane(a, 0), plane(b, 1), plane(c, 2)]) {
        Ok(canvas) => canvas,
        Err(e) => {
            state.report_once(e.to_string());
            return drawn;
        }
    };
    state.reported = false;
    let due = due || engine.control().prompts_wait();
    // Both masks are fetched before either is drawn: the first one's outline must not disturb motion compensation of the second.
    let frame = seen(&canvas, fields);
    drawn.automatic = shown(element, engine, settings, &frame, pts, due);
    drawn.object = engine.current_object(&frame).filter(|s| lasting(settings, s));
    let styles = [settings.style(), settings.object_style()];
    for (shown, style) in [&mut drawn.automatic, &mut drawn.object].into_iter().zip(styles) {
        let Some(shown) = shown else { continue };
        let overlay = &shown.detection.overlay;
        if !overlay.is_empty() {
            if fields {
                overlay.draw_on_fields(&mut canvas, &style, shown.shift);
            } else {
                overlay.draw_at(&mut canvas, &style, shown.shift);
            }
            engine.record_annotation_delay(shown.detection.resized_at.elapsed());
        }
        if fields {
            // From field lines to frame lines.
            shown.shift.1 *= 2;
        }
    }
    drawn
}

/// The mask to draw on `frame`, which is submitted for inference if it is `due`.
fn shown(
    element: &super::AutoSam,
    engine: &mut Engine,
    settings: &Settings,
    frame: &Frame,
    pts: Option<u64>,
    due: bool,
) -> Option<Shown> {
    let own = |detection| Some(Shown { detection, shift: (0, 0) });
    let accurate = settings.sync_mode == SyncMode::FrameAccurate;
    if accurate && due {
        // If inference fails, the worker has posted it on the bus.
        return engine.segment(frame, pts).ok().and_then(own);
    }
    // A paused pipeline shows this frame for a long time, so it is worth waiting for its own mask.
    if due && element.current_state() < gst::State::Playing {
        return engine.segment_within(frame, pts, settings.mask_max_age()).ok().and_then(own);
    }
    if !due {
        engine.skip();
    } else if let Err(e) = engine.try_submit(frame, pts) {
        gst::warning!(CAT, obj = element, "{e}");
    }
    engine.current_overlay(frame).filter(|s| lasting(settings, s))
}

/// Whether a mask is young enough to be drawn.
fn lasting(settings: &Settings, shown: &Shown) -> bool {
    settings.sync_mode == SyncMode::FrameAccurate
        || settings.expire_overlay.is_zero()
        || shown.detection.resized_at.elapsed() <= settings.mask_max_age()
}
