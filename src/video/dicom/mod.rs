//! DICOM files: video as encapsulated MPEG-2, MPEG-4 AVC and HEVC streams (PS3.5 8.2.5 to 8.2.8), as sent by endoscopy towers to
//! an archive, and images of one or several frames.

mod feed;
mod images;

use super::FrameRate;
use super::container::Promise;
use super::source::{Bytes, fed};
use crate::{Error, Result};
use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DicomCollector, InMemDicomObject};
use feed::{RawFrames, Times, fed_frames};
use images::{Coding, Pixels};
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

/// Transfer syntaxes of video. Each also has a variant for fragmented streams ("….1").
const VIDEO: [&str; 9] = [
    uids::MPEG2MPML,
    uids::MPEG2MPHL,
    uids::MPEG4HP41,
    uids::MPEG4HP41BD,
    uids::MPEG4HP422D,
    uids::MPEG4HP423D,
    uids::MPEG4HP42STEREO,
    uids::HEVCMP51,
    uids::HEVCM10P51,
];

/// Supported transfer syntaxes of images.
const IMAGES: [(&str, Coding); 4] = [
    (uids::IMPLICIT_VR_LITTLE_ENDIAN, Coding::Native),
    (uids::EXPLICIT_VR_LITTLE_ENDIAN, Coding::Native),
    (uids::RLE_LOSSLESS, Coding::RunLengths),
    (uids::JPEG_BASELINE8_BIT, Coding::Jpeg),
];

type Collector = DicomCollector<BufReader<File>>;

/// Whether this is a DICOM file (PS3.10): a preamble, then `DICM`.
pub fn is_dicom(path: &Path) -> bool {
    let mut head = [0; 132];
    File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok() && head.ends_with(b"DICM")
}

/// Contents of a file.
enum Content {
    Video,
    Images(Coding, Box<Pixels>),
}

/// A file, read up to its frames.
struct Opened {
    collector: Collector,
    header: InMemDicomObject,
    content: Content,
}

fn unreadable(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::data(path, format!("not readable as DICOM: {e}"))
}

/// # Errors
/// If the file cannot be read, or has no supported frames.
fn open(path: &Path) -> Result<Opened> {
    let mut collector = Collector::open_file(path).map_err(|e| unreadable(path, &e))?;
    let meta = collector.read_file_meta().map_err(|e| unreadable(path, &e))?;
    let syntax = meta.transfer_syntax().trim_end_matches(['\0', ' ']).to_owned();
    let mut header = InMemDicomObject::new_empty();
    if VIDEO.iter().any(|video| syntax == *video || syntax.strip_suffix(".1") == Some(video)) {
        collector.read_dataset_up_to_pixeldata(&mut header).map_err(|e| unreadable(path, &e))?;
        return Ok(Opened { collector, header, content: Content::Video });
    }
    let Some((_, coding)) = IMAGES.iter().find(|(image, _)| syntax == *image) else {
        return Err(Error::data(
            path,
            format!(
                "DICOM without video: its transfer syntax {syntax} ({}) is not supported; write it uncompressed with `gdcmconv \
                 --raw IN OUT`, or export it as video or as images",
                name_of(&syntax)
            ),
        ));
    };
    collector.read_dataset_up_to_pixeldata(&mut header).map_err(|e| unreadable(path, &e))?;
    let pixels = Pixels::of(&header, *coding)
        .map_err(|reason| Error::data(path, format!("DICOM without video or supported images: {reason}")))?;
    Ok(Opened { collector, header, content: Content::Images(*coding, Box::new(pixels)) })
}

/// The transfer syntax's name for messages.
fn name_of(syntax: &str) -> &'static str {
    match syntax {
        uids::JPEG_EXTENDED12_BIT => "JPEG of 12 bits",
        uids::JPEG_LOSSLESS | uids::JPEG_LOSSLESS_SV1 => "lossless JPEG",
        uids::JPEGLS_LOSSLESS | uids::JPEGLS_NEAR_LOSSLESS => "JPEG-LS",
        uids::JPEG2000_LOSSLESS | uids::JPEG2000 => "JPEG 2000",
        // Retired.
        "1.2.840.10008.1.2.2" => "big-endian",
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => "deflated",
        _ => "neither MPEG-2, MPEG-4 AVC nor HEVC",
    }
}

/// Checks that the DICOM file has supported frames.
///
/// # Errors
/// See [`open`].
pub fn check(path: &Path) -> Result<()> {
    open(path).map(drop)
}

/// An element that decodes the video or the images in the DICOM file, and the file's promise.
///
/// # Errors
/// If the file cannot be read, or has no supported frames.
pub fn source(path: &Path) -> Result<(gst::Element, Promise)> {
    let Opened { mut collector, header, content } = open(path)?;
    let stated = header.get(tags::NUMBER_OF_FRAMES).and_then(|e| e.to_int::<u64>().ok()).filter(|n| *n > 0);
    let mut promise = Promise { frames: stated, ..Promise::default() };
    let mut table = Vec::new();
    if !matches!(content, Content::Images(Coding::Native, _)) {
        // Uncompressed frames have no offset table.
        collector.read_basic_offset_table(&mut table).map_err(|e| unreadable(path, &e))?;
    }
    let native = matches!(content, Content::Images(Coding::Native, _));
    let mut fragments: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut fragment = Vec::new();
        let read = collector.read_next_fragment(&mut fragment);
        if !fragment.is_empty() {
            fragments.push(fragment);
        }
        match read {
            // Uncompressed frames are one fragment.
            Ok(Some(_)) if !native => {}
            Ok(_) => break,
            // Decode the available part of the fragment.
            Err(e) if !fragments.is_empty() => {
                promise.faults.push(format!("the file is cut short: {e}"));
                break;
            }
            Err(e) => return Err(unreadable(path, &e)),
        }
    }
    if fragments.is_empty() {
        return Err(Error::data(path, "DICOM without pixel data"));
    }
    match content {
        Content::Video => {
            let stream = fragments.concat();
            // MP4's index may be at its end. Transport and elementary streams are read sequentially: with random access their
            // demuxer finds no program.
            let random = stream.get(4..8) == Some(b"ftyp".as_slice());
            let length = stream.len() as u64;
            Ok((fed(Bytes { reader: Cursor::new(stream), length, random })?, promise))
        }
        Content::Images(coding, pixels) => {
            let count = stated.unwrap_or(1);
            promise.frames = Some(count);
            let mut frames: Vec<Vec<u8>> = match coding {
                Coding::Native => fragments[0].chunks(pixels.frame_bytes()).map(<[u8]>::to_vec).collect(),
                _ => joined(fragments, count as usize, &table),
            };
            // Bytes after the frames are padding to an even length.
            frames.truncate(count as usize);
            // An error in the first frame most likely concerns all frames.
            let first = frames.first().map_or(&[][..], Vec::as_slice);
            pixels.image(coding, first).map_err(|e| Error::data(path, format!("its first frame: {e}")))?;
            let (width, height) = (pixels.width, pixels.height);
            let times = times(&header, count, &mut promise);
            let raw = RawFrames { width, height, times, pixel_aspect: pixel_aspect(&header) };
            let mut frames = frames.into_iter().enumerate();
            // Other unreadable frames are skipped; the reader then reports how many are missing.
            let next =
                move || frames.by_ref().find_map(|(i, frame)| Some((i, pixels.image(coding, &frame).ok()?)));
            Ok((fed_frames(raw, next)?, promise))
        }
    }
}

/// Joins fragments to the compressed frames from which they were split.
fn joined(fragments: Vec<Vec<u8>>, frames: usize, table: &[u32]) -> Vec<Vec<u8>> {
    if fragments.len() <= frames {
        return fragments;
    }
    if frames == 1 {
        return vec![fragments.concat()];
    }
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut at = 0;
    for fragment in fragments {
        // Each fragment follows a tag and a length.
        let length = fragment.len() as u32 + 8;
        let begins = if table.is_empty() { fragment.starts_with(&[0xff, 0xd8]) } else { table.contains(&at) };
        at += length;
        match out.last_mut() {
            Some(frame) if !begins => frame.extend(fragment),
            _ => out.push(fragment),
        }
    }
    out
}

/// The times of the `count` frames, from the tag named by the frame increment pointer (PS3.3 C.7.6.6), otherwise from the first
/// tag that exists. Missing statements are added to `promise`.
fn times(header: &InMemDicomObject, count: u64, promise: &mut Promise) -> Times {
    let vector = header.get(tags::FRAME_TIME_VECTOR).filter(|_| {
        let pointer = header.get(tags::FRAME_INCREMENT_POINTER).and_then(|e| e.value().to_tag().ok());
        match pointer {
            Some(tag) => tag == tags::FRAME_TIME_VECTOR,
            None => header.get(tags::FRAME_TIME).is_none(),
        }
    });
    if let Some(vector) = vector {
        match vector.to_multi_float64().ok().as_deref().and_then(begins) {
            Some(begins) => {
                if (begins.len() as u64) < count {
                    let stated = begins.len();
                    promise.notes.push(format!("FrameTimeVector has times for {stated} of {count} frames"));
                }
                return Times::Begins(begins);
            }
            None => promise
                .faults
                .push("FrameTimeVector cannot be read: the times of frames are estimated".into()),
        }
    }
    let number = |tag: Tag| images::number(header, tag).filter(|v| v.is_finite() && *v > 0.0);
    let per_second = number(tags::FRAME_TIME).map(|ms| 1000.0 / ms);
    let per_second = per_second.or(number(tags::CINE_RATE)).or(number(tags::RECOMMENDED_DISPLAY_FRAME_RATE));
    Times::Rate(match per_second.filter(|rate| (0.001..1000.0).contains(rate)) {
        Some(rate) => FrameRate { numerator: (rate * 1000.0).round() as i32, denominator: 1000 },
        None => {
            if count > 1 {
                let assumed = FrameRate::DEFAULT.per_second();
                promise.notes.push(format!("the file states no frame rate: {assumed} frames/s are assumed"));
            }
            FrameRate::DEFAULT
        }
    })
}

/// The start of each frame in nanoseconds, from its distance in milliseconds to the previous frame; `None` if a distance is
/// invalid.
fn begins(intervals: &[f64]) -> Option<Vec<u64>> {
    let mut time = 0.0;
    // The first frame has no previous frame.
    let begins = intervals.iter().enumerate().map(|(i, interval)| {
        time += if i == 0 { 0.0 } else { *interval };
        (interval.is_finite() && *interval >= 0.0).then_some((time * 1e6).round() as u64)
    });
    begins.collect::<Option<Vec<u64>>>().filter(|begins| !begins.is_empty())
}

/// Pixel aspect ratio, width to height; DICOM stores the height first.
fn pixel_aspect(header: &InMemDicomObject) -> (i32, i32) {
    let sides = header.get(tags::PIXEL_ASPECT_RATIO).and_then(|e| e.to_multi_int::<i32>().ok());
    match sides.as_deref() {
        Some([height, width]) if *height > 0 && *width > 0 => (*width, *height),
        _ => (1, 1),
    }
}
