//! Observations of a stream while it is decoded: its tracks, and damage that decoders conceal.

use super::container::has_hole;
use crate::Error;
use gst::prelude::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Formats in which holes are normal: uncompressed video, and lossless compression of uniform areas.
const WITH_ZEROS: [&str; 4] = ["video/x-raw", "video/x-huffyuv", "video/x-camtasia", "video/x-ffv"];

/// Observations of a stream.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The video track to decode, from 1.
    track: usize,
    /// Video tracks, each with its format.
    tracks: Mutex<Vec<String>>,
    /// Names of the current video pads. A transport stream may replace all of them in mid-stream.
    current: Mutex<Vec<String>>,
    /// Whether there is sound, which may last longer than the video.
    audio: AtomicBool,
    /// Frames that the decoder reports as incomplete.
    damaged: AtomicU64,
    /// Compressed frames with a hole.
    holes: AtomicU64,
    /// The format of a video track without a decoder.
    undecoded: Mutex<Option<String>>,
    /// Whether all tracks are known.
    complete: AtomicBool,
}

impl Seen {
    pub fn of_track(track: usize) -> Self {
        Self { track, ..Self::default() }
    }

    pub fn has_audio(&self) -> bool {
        self.audio.load(Ordering::Relaxed)
    }

    /// Damage, one line each.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let damaged = (self.damaged.load(Ordering::Relaxed), "frames are damaged");
        let holes = (self.holes.load(Ordering::Relaxed), "frames have holes of zero bytes in their data");
        [damaged, holes]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
    }

    /// Tracks that are not decoded.
    pub fn notes(&self) -> Vec<String> {
        let tracks = self.tracks.lock();
        if tracks.len() < 2 {
            return Vec::new();
        }
        let number = |i: usize| format!("{} ({})", i + 1, tracks[i]);
        let others: Vec<String> = (0..tracks.len()).filter(|i| i + 1 != self.track).map(number).collect();
        let (count, used) = (tracks.len(), number(self.track.clamp(1, tracks.len()) - 1));
        vec![format!("of {count} video tracks only {used} is used; not used: {}", others.join(", "))]
    }

    /// The error for a file whose video has no decoder. Without it, the file would seem to contain only sound.
    pub fn no_decoder(&self, input: &str) -> Option<Error> {
        if !self.complete.load(Ordering::Relaxed) || !self.tracks.lock().is_empty() {
            return None;
        }
        let undecoded = self.undecoded.lock();
        let format = undecoded.as_ref()?;
        Some(Error::Video(format!(
            "{input}: GStreamer has no decoder for its video ({format}): install gstreamer1.0-libav and \
             gstreamer1.0-plugins-bad, or convert the file with `ffmpeg -i FILE -c:v libx264 FILE.mp4`"
        )))
    }

    /// The error if the requested track does not exist.
    pub fn missing_track(&self, input: &str) -> Option<Error> {
        let count = self.tracks.lock().len();
        let missing = (1..self.track).contains(&count);
        missing.then(|| {
            Error::Video(format!("{input}: it has {count} video tracks, but no track {}", self.track))
        })
    }
}

/// Links the video track of `source` that `seen` names to `upright`, and records observations.
pub(super) fn watch(source: &gst::Element, upright: &gst::Element, seen: &Arc<Seen>) {
    let (target, streams) = (upright.downgrade(), seen.clone());
    source.connect_pad_added(move |_, pad| {
        let Some(sink) = target.upgrade().and_then(|c| c.static_pad("sink")) else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let kind = caps.structure(0).map(|s| s.name().as_str()).unwrap_or_default();
        if kind.starts_with("audio/") {
            streams.audio.store(true, Ordering::Relaxed);
        }
        if !kind.starts_with("video/") {
            return;
        }
        let number = {
            let mut current = streams.current.lock();
            current.push(pad.name().to_string());
            current.len()
        };
        let mut tracks = streams.tracks.lock();
        if number > tracks.len() {
            tracks.push(size_of(&caps));
        }
        drop(tracks);
        // Audio and further tracks stay unlinked.
        if number == streams.track && !sink.is_linked() && pad.link(&sink).is_err() {
            gst::glib::g_warning!("autosam", "the video stream cannot be converted to RGB");
        }
    });
    let streams = seen.clone();
    source.connect_pad_removed(move |_, pad| {
        let mut current = streams.current.lock();
        current.retain(|name| *name != pad.name());
    });
    let streams = seen.clone();
    source.connect("unknown-type", false, move |values| {
        let caps = values.get(2)?.get::<gst::Caps>().ok()?;
        let kind = caps.structure(0)?.name().to_string();
        if kind.starts_with("video/") {
            *streams.undecoded.lock() = Some(kind);
        }
        None
    });
    let streams = seen.clone();
    source.connect_no_more_pads(move |_| streams.complete.store(true, Ordering::Relaxed));
    if let Some(bin) = source.downcast_ref::<gst::Bin>() {
        look_for_holes(bin, seen);
    }
    let seen = seen.clone();
    if let Some(pad) = upright.static_pad("sink") {
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
            if probe.buffer().is_some_and(|b| b.flags().contains(gst::BufferFlags::CORRUPTED)) {
                seen.damaged.fetch_add(1, Ordering::Relaxed);
            }
            gst::PadProbeReturn::Ok
        });
    }
}

/// Width and height as text.
fn size_of(caps: &gst::Caps) -> String {
    let of = |name| caps.structure(0).and_then(|s| s.get::<i32>(name).ok());
    match (of("width"), of("height")) {
        (Some(width), Some(height)) => format!("{width}x{height}"),
        _ => "of unknown size".to_owned(),
    }
}

/// Counts compressed frames with holes after every demuxer in `bin`, because decoders conceal them.
fn look_for_holes(bin: &gst::Bin, seen: &Arc<Seen>) {
    let seen = seen.clone();
    bin.connect_deep_element_added(move |_, _, element| {
        if !element.factory().is_some_and(|f| f.has_type(gst::ElementFactoryType::DEMUXER)) {
            return;
        }
        let seen = seen.clone();
        element.connect_pad_added(move |_, pad| {
            let seen = seen.clone();
            pad.add_probe(gst::PadProbeType::BUFFER, move |pad, probe| {
                let kind = pad.current_caps().and_then(|c| Some(c.structure(0)?.name().to_string()));
                let of_interest = |kind: &String| {
                    (kind.starts_with("video/") || kind == "image/jpeg")
                        && !WITH_ZEROS.contains(&kind.as_str())
                };
                if !kind.as_ref().is_some_and(of_interest) {
                    return gst::PadProbeReturn::Remove;
                }
                let data = probe.buffer().and_then(|b| b.map_readable().ok());
                if data.is_some_and(|data| has_hole(&data)) {
                    seen.holes.fetch_add(1, Ordering::Relaxed);
                }
                gst::PadProbeReturn::Ok
            });
        });
    });
}
