//! Matroska and WebM (RFC 9559).

use super::{Promise, bytes, cut_short, damaged_at};
use std::io::{ErrorKind, Read, Seek, SeekFrom};

const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_A966;
const TRACKS: u32 = 0x1654_AE6B;
const CLUSTER: u32 = 0x1F43_B675;
const BLOCK_GROUP: u32 = 0xA0;
const TICK: u32 = 0x2A_D7B1;
const DURATION: u32 = 0x4489;
const TRACK: u32 = 0xAE;
const TRACK_TYPE: u32 = 0x83;
const AUDIO: u64 = 2;
/// Headers larger than this are not read.
const LARGEST: u64 = 1 << 24;

pub fn promise(file: &mut (impl Read + Seek), length: u64) -> std::io::Result<Promise> {
    let mut promise = Promise::default();
    let (mut at, mut audio, mut last) = (0, false, length);
    file.seek(SeekFrom::Start(0))?;
    while at < last {
        let found = match element(file) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                promise.faults.push("the file is cut short: it ends within an element's header".to_owned());
                break;
            }
            found => found?,
        };
        let Some((id, size, header)) = found else {
            // If the chain of elements breaks, demuxers continue silently at the next cluster.
            promise.faults.push(damaged_at(at));
            break;
        };
        let start = at + header;
        let end = size.map(|size| start.saturating_add(size));
        if let Some(end) = end.filter(|end| *end > length) {
            promise.faults.push(cut_short(length, end));
            if id != SEGMENT {
                break;
            }
        }
        if id == SEGMENT {
            // Any data may follow the segment.
            last = end.map_or(length, |end| end.min(length));
        }
        // Live recordings have segments and clusters of unknown size.
        if matches!(id, SEGMENT | CLUSTER | BLOCK_GROUP) {
            at = start;
            continue;
        }
        let Some(size) = size else { break };
        if matches!(id, INFO | TRACKS) && size <= LARGEST {
            let mut data = vec![0; size as usize];
            file.read_exact(&mut data)?;
            match id {
                INFO => promise.seconds = seconds(&data),
                _ => {
                    audio = children(&data).filter(|(id, _)| *id == TRACK).any(|(_, track)| {
                        children(track).any(|(id, v)| id == TRACK_TYPE && number(v) == AUDIO)
                    });
                }
            }
        } else {
            file.seek_relative(size.cast_signed())?;
        }
        at = start + size;
    }
    // The stated duration is that of the longest track.
    promise.seconds = promise.seconds.filter(|_| !audio);
    // The end of the segment is sufficient.
    promise.faults.truncate(1);
    Ok(promise)
}

/// An element's id, size (`None` if unknown) and the length of both; `None` if it is not an element.
fn element(file: &mut impl Read) -> std::io::Result<Option<(u32, Option<u64>, u64)>> {
    let [first] = bytes(file)?;
    let id_length = first.leading_zeros() as usize + 1;
    if id_length > 4 {
        return Ok(None);
    }
    let mut id = u32::from(first);
    for _ in 1..id_length {
        let [next] = bytes(file)?;
        id = id << 8 | u32::from(next);
    }
    let [first] = bytes(file)?;
    let size_length = first.leading_zeros() as usize + 1;
    if size_length > 8 {
        return Ok(None);
    }
    let mut size = u64::from(first) & ((1 << (8 - size_length)) - 1);
    for _ in 1..size_length {
        let [next] = bytes(file)?;
        size = size << 8 | u64::from(next);
    }
    let unknown = size == (1 << (7 * size_length)) - 1;
    Ok(Some((id, (!unknown).then_some(size), (id_length + size_length) as u64)))
}

fn children(data: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (id, size, header) = element(&mut &*rest).ok()??;
        let inner = rest.get(header as usize..)?.get(..size? as usize)?;
        rest = &rest[header as usize + inner.len()..];
        Some((id, inner))
    })
}

fn number(data: &[u8]) -> u64 {
    data.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn seconds(info: &[u8]) -> Option<f64> {
    let of = |wanted: u32| children(info).find(|(id, _)| *id == wanted).map(|(_, data)| data);
    let tick = of(TICK).map_or(1_000_000, number) as f64 / 1e9;
    let ticks = match of(DURATION)? {
        short if short.len() == 4 => f64::from(f32::from_bits(number(short) as u32)),
        long => f64::from_bits(number(long)),
    };
    Some(ticks * tick).filter(|s| s.is_finite() && *s > 0.0)
}
