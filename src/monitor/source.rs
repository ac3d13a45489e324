//! Video sources of the monitor.

use crate::data;
use crate::video::{FrameRate, decoder, make, rgb_buffer, uri_of};
use crate::{Error, Result};
use gst::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Number of a folder's images that are read ahead.
const MAX_WAITING: u64 = 2;

/// A source in a pipeline; a folder of images has a thread that reads them.
pub struct Source {
    stop: Arc<AtomicBool>,
}

impl Source {
    /// Adds the source named by `input` to `pipeline`, before `target`.
    ///
    /// # Errors
    /// If the file or an element is missing, or the folder is empty.
    pub fn add(input: &str, pipeline: &gst::Pipeline, target: &gst::Element, repeat: bool) -> Result<Self> {
        let failed = |e: gst::glib::BoolError| Error::Video(e.to_string());
        let stop = Arc::new(AtomicBool::new(false));
        let path = Path::new(input);
        let source = if path.is_dir() {
            folder(path, repeat, stop.clone())?
        } else if let Some(number) = input.strip_prefix("decklink") {
            let source = make("decklinkvideosrc", "gstreamer1.0-plugins-bad")?;
            if let Some(number) = number.strip_prefix(':') {
                let bad = |_| Error::invalid(format!("{input}: {number:?} is not a card number"));
                source.set_property("device-number", number.parse::<i32>().map_err(bad)?);
            }
            source
        } else if input.starts_with("/dev/video") {
            if !path.exists() {
                return Err(Error::Video(format!(
                    "{input}: no such camera; list them with v4l2-ctl --list-devices"
                )));
            }
            let source = make("v4l2src", "gstreamer1.0-plugins-good")?;
            source.set_property("device", input);
            // Many cameras offer their full size and rate only compressed.
            let decode = make("decodebin", "gstreamer1.0-plugins-base")?;
            // GPU memory can neither be converted nor drawn on.
            decode.set_property("force-sw-decoders", true);
            pipeline.add(&source).and_then(|()| pipeline.add(&decode)).map_err(failed)?;
            source.link(&decode).map_err(failed)?;
            link_video(&decode, target);
            return Ok(Self { stop });
        } else {
            let source = decoder(&uri_of(input)?)?;
            pipeline.add(&source).map_err(failed)?;
            link_video(&source, target);
            return Ok(Self { stop });
        };
        pipeline.add(&source).and_then(|()| source.link(target)).map_err(failed)?;
        Ok(Self { stop })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Links the first video stream; audio and further streams stay unlinked.
fn link_video(decoder: &gst::Element, target: &gst::Element) {
    let target = target.downgrade();
    decoder.connect_pad_added(move |_, pad| {
        let Some(sink) = target.upgrade().and_then(|t| t.static_pad("sink")) else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let is_video = caps.structure(0).is_some_and(|s| s.name().starts_with("video/"));
        if is_video && !sink.is_linked() && pad.link(&sink).is_err() {
            tracing::warn!("the video stream cannot be converted");
        }
    });
}

/// The folder's images at a fixed frame rate, read by a thread on demand.
fn folder(dir: &Path, repeat: bool, stop: Arc<AtomicBool>) -> Result<gst::Element> {
    let items = data::items_in(dir)?;
    let source = gst_app::AppSrc::builder().format(gst::Format::Time).max_bytes(0).build();
    let feed = source.clone();
    let push = move || -> Result<()> {
        let (mut count, mut size) = (0, (0, 0));
        loop {
            for item in &items {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let image = item.load()?.rgb;
                if size != image.dimensions() {
                    size = image.dimensions();
                    let info = crate::video::info("RGB", size.0, size.1, FrameRate::DEFAULT)?;
                    feed.set_caps(info.to_caps().ok().as_ref());
                }
                let mut buffer = rgb_buffer(&image);
                if let Some(buffer) = buffer.get_mut() {
                    let begin = FrameRate::DEFAULT.time(count);
                    buffer.set_pts(gst::ClockTime::from_nseconds(begin));
                    buffer.set_duration(gst::ClockTime::from_nseconds(
                        FrameRate::DEFAULT.time(count + 1) - begin,
                    ));
                }
                count += 1;
                while feed.current_level_buffers() >= MAX_WAITING {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                if feed.push_buffer(buffer).is_err() {
                    // The pipeline has stopped.
                    return Ok(());
                }
            }
            if !repeat {
                return Ok(());
            }
        }
    };
    let end = source.clone();
    std::thread::Builder::new()
        .name("autosam-images".into())
        .spawn(move || {
            if let Err(e) = push() {
                gst::element_error!(end, gst::ResourceError::Read, ("{e}"));
            }
            // Fails only if the pipeline has ended.
            let _ = end.end_of_stream();
        })
        .map_err(|e| Error::device(format!("cannot start a thread for frames: {e}")))?;
    Ok(source.upcast())
}
