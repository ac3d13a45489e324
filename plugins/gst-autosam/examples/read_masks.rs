//! Reads masks as video from the pad `mask`, and as metadata on frames. `read_masks.py` does the same in Python.
//!
//!     cargo run --release -p gst-autosam --example read_masks -- clip.mp4

use gst::prelude::*;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: read_masks CLIP")?;
    let uri = gst::glib::filename_to_uri(Path::new(&file).canonicalize()?, None)?;
    gst::init()?;
    gstautosam::plugin_register_static()?;
    // With frame-accurate each frame waits for its own mask. For live use omit it: video then never waits.
    let pipeline = gst::parse::launch(&format!(
        "uridecodebin uri={uri} ! videoconvert ! autosam name=a sync-mode=frame-accurate attach-meta=true \
         a.src ! queue ! appsink name=frames sync=false \
         a.mask ! queue ! appsink name=masks sync=false"
    ))?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "no pipeline")?;
    let sink =
        |name| pipeline.by_name(name).and_then(|e| e.downcast::<gst_app::AppSink>().ok()).ok_or("no appsink");

    // The pad `mask`: GRAY8 with the frame's size and time, 255 inside the mask.
    let masks = sink("masks")?;
    masks.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(|sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                if let Some((buffer, map)) = sample.buffer().and_then(|b| Some((b, b.map_readable().ok()?))) {
                    let inside = map.iter().filter(|v| **v > 0).count();
                    if inside > 0 {
                        println!("pad:  {} {inside} pixels", buffer.pts().unwrap_or_default());
                    }
                }
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );

    pipeline.set_state(gst::State::Playing)?;
    let frames = sink("frames")?;
    while let Ok(sample) = frames.pull_sample() {
        let Some(buffer) = sample.buffer() else { continue };
        for region in buffer.iter_meta::<gst_video::VideoRegionOfInterestMeta>() {
            let (x, y, w, h) = region.rect();
            let confidence = region.param("detection").and_then(|p| p.get::<f64>("confidence").ok());
            println!(
                "meta: {} {w}x{h} at {x},{y}, confidence {confidence:.2?}",
                buffer.pts().unwrap_or_default()
            );
        }
        // The mask at the network's resolution.
        if let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, "GstAutoSamMaskMeta") {
            let s = meta.structure();
            let mask = s.get::<gst::Buffer>("mask")?;
            debug_assert_eq!(mask.size() as i32, s.get::<i32>("width")? * s.get::<i32>("height")?);
        }
    }
    let bus = pipeline.bus().ok_or("no bus")?;
    let failure = bus.pop_filtered(&[gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null)?;
    match failure.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Error(e)) => Err(e.error().to_string().into()),
        _ => Ok(()),
    }
}
