//! Signals of the element: notifications of detections and prompts, and action signals with which applications prompt.

use super::pointing::{Pointer, Request};
use gst::glib;
use gst::glib::subclass::Signal;
use gst::prelude::*;
use gst::subclass::prelude::*;

/// All signals of the element.
pub fn all() -> Vec<Signal> {
    let detection =
        |name: &'static str| Signal::builder(name).param_types([gst::Structure::static_type()]).build();
    vec![
        detection("detection-started"),
        detection("detection-ended"),
        detection("prompt-started"),
        detection("prompt-ended"),
        detection("prompt-refused"),
        action(
            "prompt-point",
            &[f64::static_type(), f64::static_type(), bool::static_type()],
            |pointer, args| {
                let foreground = args.get(3).is_none_or(|v| v.get().unwrap_or(true));
                pointer.point(place(args, 1), place(args, 2), foreground).map(Request::Prompt)
            },
        ),
        action("prompt-box", &[f64::static_type(); 4], |pointer, args| {
            let (x, y) = (place(args, 1), place(args, 2));
            pointer.bounds(x, y, x + place(args, 3), y + place(args, 4)).map(Request::Prompt)
        }),
        action("clear-prompts", &[], |_, _| Some(Request::Clear)),
        Signal::builder("model-updated")
            .param_types([String::static_type(), bool::static_type(), String::static_type()])
            .build(),
    ]
}

/// An action signal, which applications emit. `request` converts its arguments, of which the first is the element, to a request.
/// The signal returns whether the request was accepted.
fn action(
    name: &'static str,
    types: &[glib::Type],
    request: fn(&mut Pointer, &[glib::Value]) -> Option<Request>,
) -> Signal {
    Signal::builder(name)
        .param_types(types.iter().copied())
        .return_type::<bool>()
        .action()
        .run_last()
        .class_handler(move |args| {
            let element = args.first().and_then(|v| v.get::<super::AutoSam>().ok());
            Some(element.is_some_and(|e| e.imp().ask_by(|pointer| request(pointer, args))).to_value())
        })
        .build()
}

/// Argument `i` of an action signal, a coordinate; outside every frame if it is missing.
fn place(args: &[glib::Value], i: usize) -> f64 {
    args.get(i).and_then(|v| v.get().ok()).unwrap_or(f64::NAN)
}
