//! Prints the element's reports to an application: messages on the bus, signals, and the property `stats`.
//!
//!     cargo run --release -p gst-autosam --example watch_bus -- clip.mp4

use gst::prelude::*;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: watch_bus CLIP")?;
    let uri = gst::glib::filename_to_uri(Path::new(&file).canonicalize()?, None)?;
    gst::init()?;
    // This program links the plugin. Others find it through GST_PLUGIN_PATH.
    gstautosam::plugin_register_static()?;
    let pipeline = gst::parse::launch(&format!(
        "uridecodebin uri={uri} ! videoconvert ! autosam name=autosam stats-interval=2000000000 ! fakesink sync=true"
    ))?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "no pipeline")?;
    let autosam = pipeline.by_name("autosam").ok_or("no element")?;

    // Signals are emitted on a thread of the element, at the same time as the messages.
    autosam.connect("detection-started", false, |values| {
        if let Ok(s) = values[1].get::<gst::Structure>() {
            println!(
                "signal: a detection began, confidence {:.2}",
                s.get::<f64>("confidence").unwrap_or_default()
            );
        }
        None
    });

    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let mut failure = None;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Element(element) => match element.structure() {
                Some(s) if s.name() == "application/x-autosam-stats" => println!(
                    "{} frames, {} inferred; mask age {:.1} ms",
                    s.get::<u64>("frames")?,
                    s.get::<u64>("inferred")?,
                    s.get::<u64>("annotation-delay-mean")? as f64 / 1e6
                ),
                Some(s) if s.name().starts_with("application/x-autosam-") => println!("message: {s}"),
                _ => {}
            },
            gst::MessageView::Warning(w) => eprintln!("warning: {}", w.error()),
            gst::MessageView::Error(e) => {
                failure = Some(e.error().to_string());
                break;
            }
            gst::MessageView::Eos(_) => break,
            _ => {}
        }
    }
    // The property can be read at any time, also while playing.
    println!("at the end: {}", autosam.property::<gst::Structure>("stats"));
    pipeline.set_state(gst::State::Null)?;
    failure.map_or(Ok(()), |text| Err(text.into()))
}
