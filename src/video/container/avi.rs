//! AVI, with OpenDML's further parts.

use super::{Promise, bytes, cut_short, damaged_at};
use std::io::{Read, Seek, SeekFrom};

/// Length of a chunk's name and size.
const HEADER: u64 = 8;

pub fn promise(file: &mut (impl Read + Seek), length: u64) -> std::io::Result<Promise> {
    let mut promise = Promise::default();
    let mut at = 0;
    while at + 12 <= length {
        file.seek(SeekFrom::Start(at))?;
        let head: [u8; 12] = bytes(file)?;
        if &head[..4] != b"RIFF" {
            break;
        }
        let size = little(&head, 4).unwrap_or(0);
        // A program that wrote into a pipe could not go back to fill in the size and the number of frames.
        let streamed = matches!(size, 0 | u32::MAX);
        let end = if streamed { length } else { at + HEADER + u64::from(size) };
        if end > length {
            promise.faults.push(cut_short(length, end));
        }
        if at == 0 && !streamed {
            let mut header = Vec::new();
            file.by_ref().take(1 << 16).read_to_end(&mut header)?;
            promise.seconds = seconds(&header);
        }
        match chunks(file, at + 12, end.min(length))? {
            Chunks::Broken(at) => {
                promise.faults.push(damaged_at(at));
                break;
            }
            Chunks::Until(last) if streamed && last > length => promise.faults.push(cut_short(length, last)),
            Chunks::Until(_) => {}
        }
        at = end.next_multiple_of(2);
    }
    Ok(promise)
}

/// A sequence of chunks.
enum Chunks {
    /// The position at which the sequence breaks.
    Broken(u64),
    /// The end of the last chunk, which may be beyond the end of the file.
    Until(u64),
}

/// The chunks between `at` and `end`.
fn chunks(file: &mut (impl Read + Seek), mut at: u64, end: u64) -> std::io::Result<Chunks> {
    let (mut odd, mut again) = (false, false);
    file.seek(SeekFrom::Start(at))?;
    while at + HEADER <= end {
        let head: [u8; 8] = bytes(file)?;
        if !head[..4].iter().all(|byte| (0x20..0x7f).contains(byte)) {
            // Some programs do not pad chunks of odd length.
            if !odd || again {
                return Ok(Chunks::Broken(at + u64::from(again)));
            }
            again = true;
            at -= 1;
            file.seek(SeekFrom::Start(at))?;
            continue;
        }
        again = false;
        at += HEADER;
        let mut size = u64::from(little(&head, 4).unwrap_or(0));
        if &head[..4] == b"LIST" && size >= 4 && at + 4 <= end {
            let kind: [u8; 4] = bytes(file)?;
            at += 4;
            size -= 4;
            // These lists contain the chunks with the video's data.
            if matches!(&kind, b"movi" | b"rec ") {
                continue;
            }
        }
        odd = size % 2 == 1;
        let step = size + size % 2;
        file.seek_relative(step.cast_signed())?;
        at += step;
    }
    Ok(Chunks::Until(at))
}

fn little(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// The video's duration by its stream header, which is in the file's first list.
fn seconds(header: &[u8]) -> Option<f64> {
    let at = header.windows(12).position(|w| &w[..4] == b"strh" && &w[8..] == b"vids")? + 8;
    let (scale, rate, count) = (little(header, at + 20)?, little(header, at + 24)?, little(header, at + 32)?);
    Some(f64::from(count) * f64::from(scale) / f64::from(rate)).filter(|s| s.is_finite() && *s > 0.0)
}
