//! Files and URIs, and their decoders.

use super::make;
use crate::{Error, Result};
use gst::prelude::*;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Bytes passed to the demuxer at a time, unless it requests a number.
const CHUNK: usize = 1 << 16;

/// How long a source may send no data.
pub(super) const SOURCE_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether the text has the form `scheme://…`.
pub fn is_uri(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// `input` if it is a URI, otherwise the URI of the file of this name, which must exist.
pub(crate) fn uri_of(input: &str) -> Result<String> {
    if is_uri(input) {
        return Ok(input.to_owned());
    }
    let path = Path::new(input).canonicalize().map_err(|e| Error::io(input, e))?;
    let uri = gst::glib::filename_to_uri(&path, None);
    uri.map(|u| u.to_string()).map_err(|e| Error::Video(format!("{}: {e}", path.display())))
}

/// `uridecodebin` for `uri`, restricted to software decoders, because GPU memory can neither be copied nor drawn on here.
pub(crate) fn decoder(uri: &str) -> Result<gst::Element> {
    let source = make("uridecodebin", "gstreamer1.0-plugins-base")?;
    source.set_property("uri", uri);
    source.set_property("force-sw-decoders", true);
    if uri.starts_with("rtsp://") {
        source.connect("source-setup", false, |values| {
            let rtsp = values.get(1).and_then(|v| v.get::<gst::Element>().ok())?;
            if rtsp.has_property("protocols") && rtsp.has_property("tcp-timeout") {
                // TCP loses no data, not even the end of the stream. Users request UDP with rtspu://.
                rtsp.set_property_from_str("protocols", "tcp");
                // The reader's own timeout comes first, and its message names the camera.
                rtsp.set_property("tcp-timeout", 3 * SOURCE_TIMEOUT.as_micros() as u64);
            }
            None
        });
    }
    Ok(source)
}

/// [`decoder`] of the first `length` bytes of the file at `path`.
///
/// # Errors
/// If the file cannot be opened.
pub(super) fn begin_of(path: &Path, length: u64) -> Result<gst::Element> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    fed(Bytes { reader: file, length, random: false })
}

/// Bytes to decode that are not a file by themselves.
pub(super) struct Bytes<R> {
    pub reader: R,
    pub length: u64,
    /// Whether the demuxer may ask for any part of them at any time.
    pub random: bool,
}

/// [`decoder`] of `bytes`.
///
/// # Errors
/// If GStreamer lacks `uridecodebin`.
pub(super) fn fed<R: Read + Seek + Send + 'static>(bytes: Bytes<R>) -> Result<gst::Element> {
    let element = decoder("appsrc://")?;
    let bytes = Mutex::new(Some(bytes));
    element.connect("source-setup", false, move |values| {
        let source = values.get(1)?.get::<gst_app::AppSrc>().ok()?;
        let bytes = bytes.lock().take()?;
        feed(&source, bytes);
        None
    });
    Ok(element)
}

/// Feeds `bytes` to `source`, which may request any part of them.
fn feed<R: Read + Seek + Send + 'static>(source: &gst_app::AppSrc, bytes: Bytes<R>) {
    source.set_stream_type(match bytes.random {
        true => gst_app::AppStreamType::RandomAccess,
        false => gst_app::AppStreamType::Seekable,
    });
    source.set_size(i64::try_from(bytes.length).unwrap_or(-1));
    source.set_format(gst::Format::Bytes);
    let length = bytes.length;
    // The reader, and the position of the next read.
    let reader = Arc::new(Mutex::new((bytes.reader, 0u64)));
    let seeker = reader.clone();
    let callbacks = gst_app::AppSrcCallbacks::builder()
        .need_data(move |source, wanted| {
            let mut reader = reader.lock();
            let (reader, at) = &mut *reader;
            let wanted = if wanted == u32::MAX { CHUNK as u64 } else { wanted.into() };
            let mut part = Vec::new();
            // Unreadable bytes end the stream early; the reader then reports what is missing.
            let _ = reader.by_ref().take(wanted.min(length.saturating_sub(*at))).read_to_end(&mut part);
            *at += part.len() as u64;
            // Fails only if the pipeline has stopped.
            let _ = match part.is_empty() {
                true => source.end_of_stream(),
                false => source.push_buffer(gst::Buffer::from_mut_slice(part)),
            };
        })
        .seek_data(move |_, offset| {
            let mut reader = seeker.lock();
            let (reader, at) = &mut *reader;
            *at = offset;
            reader.seek(SeekFrom::Start(offset)).is_ok()
        });
    source.set_callbacks(callbacks.build());
}
