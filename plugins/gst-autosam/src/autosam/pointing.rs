//! Pointing at an object: converts navigation events, which video sinks send upstream, and action signals to prompts.

use autosam_engine::{Prompt, PromptEvent};
use gst_video::{NavigationEvent, NavigationModifierType};

/// Minimum length of a drag, as a fraction of the frame's longer side; a shorter one is a click.
const MIN_DRAG: f64 = 1.0 / 64.0;
/// Mouse buttons as X counts them.
const LEFT: i32 = 1;
const RIGHT: i32 = 3;

/// A user's request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Request {
    Prompt(Prompt),
    Clear,
}

/// A button or finger that is down.
#[derive(Debug, Clone, Copy)]
struct Press {
    x: f64,
    y: f64,
    /// `None` for a finger.
    button: Option<i32>,
    shift: bool,
}

/// Converts events to requests. Positions are in pixels of the element's frames.
#[derive(Debug, Default)]
pub struct Pointer {
    /// Size of the frames; 0 until it is known.
    pub size: (usize, usize),
    press: Option<Press>,
}

impl Pointer {
    /// The request that `event` completes.
    pub fn request(&mut self, event: &NavigationEvent) -> Option<Request> {
        match *event {
            NavigationEvent::MouseButtonPress { button, x, y, modifier_state }
                if [LEFT, RIGHT].contains(&button) =>
            {
                let shift = modifier_state.contains(NavigationModifierType::SHIFT_MASK);
                self.press = Some(Press { x, y, button: Some(button), shift });
                None
            }
            NavigationEvent::MouseButtonRelease { button, x, y, .. } => {
                self.press.take_if(|p| p.button == Some(button)).and_then(|p| self.released(p, x, y))
            }
            NavigationEvent::TouchDown { x, y, .. } => {
                // Gestures with two fingers mean something else.
                let second = self.press.take().is_some();
                self.press = (!second).then_some(Press { x, y, button: None, shift: false });
                None
            }
            NavigationEvent::TouchUp { x, y, .. } => {
                self.press.take_if(|p| p.button.is_none()).and_then(|p| self.released(p, x, y))
            }
            NavigationEvent::TouchCancel { .. } => {
                self.press = None;
                None
            }
            NavigationEvent::KeyPress { ref key, .. } if key == "Escape" => {
                self.press = None;
                Some(Request::Clear)
            }
            _ => None,
        }
    }

    fn released(&self, press: Press, x: f64, y: f64) -> Option<Request> {
        let longer = self.size.0.max(self.size.1) as f64;
        let foreground = press.button != Some(RIGHT) && !press.shift;
        let dragged = (x - press.x).abs().max((y - press.y).abs()) >= MIN_DRAG * longer;
        if dragged && foreground {
            self.bounds(press.x, press.y, x, y).map(Request::Prompt)
        } else {
            self.point(press.x, press.y, foreground).map(Request::Prompt)
        }
    }

    /// A point; `None` if it is outside the frame or no frame size is known yet.
    pub fn point(&self, x: f64, y: f64, foreground: bool) -> Option<Prompt> {
        let (width, height) = (self.size.0 as f64, self.size.1 as f64);
        let inside = (0.0..width).contains(&x) && (0.0..height).contains(&y);
        inside.then(|| Prompt::Point { x: (x / width) as f32, y: (y / height) as f32, foreground })
    }

    /// A box between two corners, clipped to the frame; `None` if nothing of it is inside.
    pub fn bounds(&self, x0: f64, y0: f64, x1: f64, y1: f64) -> Option<Prompt> {
        let side = |a: f64, b: f64, side: usize| {
            let part = |v: f64| (v / side as f64).clamp(0.0, 1.0) as f32;
            (part(a.min(b)), part(a.max(b)))
        };
        let ((left, right), (top, bottom)) = (side(x0, x1, self.size.0), side(y0, y1, self.size.1));
        (left < right && top < bottom).then_some(Prompt::Box { left, top, right, bottom })
    }
}

/// The name of the message and signal for `event`, and their structure; positions are in pixels of a frame of this size.
pub fn announcement(event: &PromptEvent, (width, height): (usize, usize)) -> (&'static str, gst::Structure) {
    let named = |name: &str| gst::Structure::builder(format!("application/x-autosam-{name}"));
    match event {
        PromptEvent::Started(detection) => {
            let largest = detection.mask.regions.first();
            let (x, y, w, h) =
                largest.map_or((0, 0, 0, 0), |r| super::meta::pixels(r, (0, 0), width, height));
            let structure = named("prompt-started")
                .field("id", detection.prompt.unwrap_or_default())
                .field("timestamp", detection.pts.map(gst::ClockTime::from_nseconds))
                .field("confidence", largest.map_or(0.0, |r| f64::from(r.confidence)))
                .field("x", x)
                .field("y", y)
                .field("width", w)
                .field("height", h)
                .build();
            ("prompt-started", structure)
        }
        PromptEvent::Ended { id, reason } => {
            ("prompt-ended", named("prompt-ended").field("id", id).field("reason", reason).build())
        }
        PromptEvent::Refused { reason } => {
            ("prompt-refused", named("prompt-refused").field("reason", reason).build())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn button(
        x: f64,
        y: f64,
        button: i32,
        modifier_state: NavigationModifierType,
        down: bool,
    ) -> NavigationEvent {
        if down {
            NavigationEvent::MouseButtonPress { button, x, y, modifier_state }
        } else {
            NavigationEvent::MouseButtonRelease { button, x, y, modifier_state }
        }
    }

    /// The request made by pressing a button at `from` and releasing it at `to`.
    fn stroke(number: i32, shift: bool, from: (f64, f64), to: (f64, f64)) -> Option<Request> {
        let mut pointer = Pointer { size: (640, 480), ..Pointer::default() };
        let state = if shift { NavigationModifierType::SHIFT_MASK } else { NavigationModifierType::empty() };
        assert_eq!(pointer.request(&button(from.0, from.1, number, state, true)), None);
        pointer.request(&button(to.0, to.1, number, NavigationModifierType::empty(), false))
    }

    #[test]
    fn clicks_are_points_and_drags_are_boxes() {
        let point = |foreground| Some(Request::Prompt(Prompt::Point { x: 0.5, y: 0.25, foreground }));
        let (at, near, far) = ((320.0, 120.0), (325.0, 118.0), (160.0, 240.0));
        assert_eq!(stroke(1, false, at, at), point(true));
        assert_eq!(stroke(1, false, at, near), point(true));
        assert_eq!(stroke(1, true, at, at), point(false));
        assert_eq!(stroke(3, false, at, far), point(false));
        let bounds = Prompt::Box { left: 0.25, top: 0.25, right: 0.5, bottom: 0.5 };
        assert_eq!(stroke(1, false, at, far), Some(Request::Prompt(bounds)));
        assert_eq!(stroke(2, false, at, at), None);
    }

    #[test]
    fn points_outside_the_frame_are_rejected_and_boxes_are_clipped() {
        assert_eq!(stroke(1, false, (640.0, 10.0), (640.0, 10.0)), None);
        assert_eq!(stroke(1, false, (-1.0, 10.0), (-1.0, 10.0)), None);
        assert_eq!(stroke(1, false, (f64::NAN, 10.0), (3.0, 10.0)), None);
        let bounds = Prompt::Box { left: 0.5, top: 0.0, right: 1.0, bottom: 0.5 };
        assert_eq!(stroke(1, false, (320.0, 240.0), (900.0, -50.0)), Some(Request::Prompt(bounds)));
        // Before the first caps.
        assert_eq!(Pointer::default().point(0.0, 0.0, true), None);
        assert_eq!(Pointer::default().bounds(0.0, 0.0, 5.0, 5.0), None);
    }

    #[test]
    fn one_finger_acts_as_the_left_button_and_two_are_ignored() {
        let mut pointer = Pointer { size: (100, 100), ..Pointer::default() };
        let modifier_state = NavigationModifierType::empty();
        let down = |identifier| NavigationEvent::TouchDown {
            identifier,
            x: 50.0,
            y: 50.0,
            pressure: 1.0,
            modifier_state,
        };
        let up = |identifier| NavigationEvent::TouchUp { identifier, x: 50.0, y: 50.0, modifier_state };
        assert_eq!(pointer.request(&down(1)), None);
        assert!(matches!(
            pointer.request(&up(1)),
            Some(Request::Prompt(Prompt::Point { foreground: true, .. }))
        ));
        assert_eq!([down(1), down(2), up(2), up(1)].map(|e| pointer.request(&e)), [None; 4]);
        let escape = NavigationEvent::KeyPress { key: "Escape".into(), modifier_state };
        assert_eq!(pointer.request(&escape), Some(Request::Clear));
    }
}
