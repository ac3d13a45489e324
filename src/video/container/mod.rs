//! Number of frames and duration stated by a video file's container, to detect missing parts, which decoders and demuxers skip
//! silently.
//!
//! Only headers and tables are read, never pixels. A container that cannot be read states nothing.

mod avi;
mod holes;
mod matroska;
mod packets;

pub use holes::has_hole;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Statements of the container, and faults of the file itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Promise {
    /// Number of frames that are shown.
    pub frames: Option<u64>,
    /// Duration of the video in seconds.
    pub seconds: Option<f64>,
    /// Whether GStreamer's demuxer reports the duration of the longest stream, as stated by the header (ASF, FLV, MXF).
    pub lasts: bool,
    /// Faults of the file: truncation, missing packets.
    pub faults: Vec<String>,
    /// Reason why no frame of the file can be decoded, if so.
    pub hopeless: Option<String>,
    /// Length in bytes of the readable part of the file, if GStreamer's demuxer would fail for the rest (DV).
    pub usable: Option<u64>,
    /// Remarks on what the container does not state, such as its end.
    pub notes: Vec<String>,
}

/// The promise of the file at `path`; an empty one for containers that state nothing (MPEG elementary streams).
pub fn promise(path: &Path) -> Promise {
    // If the file cannot be read, the decoder reports it with GStreamer's reason.
    File::open(path).and_then(|file| read(&mut BufReader::new(file))).unwrap_or_default()
}

/// [`promise`] of an open file.
///
/// # Errors
/// If reading fails.
pub fn read(file: &mut (impl Read + Seek)) -> std::io::Result<Promise> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut head = Vec::new();
    file.by_ref().take(2 * transport::PACKET as u64 + 16).read_to_end(&mut head)?;
    file.rewind()?;
    match head.as_slice() {
        [_, _, _, _, kind @ ..] if mp4::FIRST.iter().any(|first| kind.starts_with(*first)) => {
            mp4::promise(file, length)
        }
        [0x1a, 0x45, 0xdf, 0xa3, ..] => matroska::promise(file, length),
        [b'R', b'I', b'F', b'F', ..] => avi::promise(file, length),
        _ => match [0, 4].into_iter().find(|before| transport::begins(&head, *before)) {
            Some(before) => transport::promise(file, length, before),
            None => Ok(packets::promise(file, &head, length)?.unwrap_or_default()),
        },
    }
}

fn cut_short(length: u64, end: u64) -> String {
    format!("the file is cut short: it has {length} of {end} bytes")
}

fn damaged_at(byte: u64) -> String {
    format!("the file is damaged at byte {byte}: frames after it may be missing; copy or download it again")
}

fn bytes<const N: usize>(file: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut out = [0; N];
    file.read_exact(&mut out)?;
    Ok(out)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

/// ISO base media files (ISO/IEC 14496-12): MP4, MOV, 3GP.
mod mp4 {
    use super::*;

    /// A movie header larger than this is not read.
    const LARGEST: u64 = 1 << 28;
    /// Maximum number of frames; more mean a damaged table.
    const MOST_SAMPLES: u32 = 1 << 26;
    /// Boxes with which a file may begin.
    pub const FIRST: [&[u8; 4]; 6] = [b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"];
    const NO_INDEX: &str = "its fragments have no index (sidx, mfra) and no stated duration: if the file was cut between two of them, the missing part cannot be detected";
    const NO_TABLE: &str = "the file is cut short: its table of frames (moov) is missing; copy it again, or have the recorder or a repair program finish it";

    pub fn promise(file: &mut (impl Read + Seek), length: u64) -> std::io::Result<Promise> {
        let mut promise = Promise::default();
        let (mut at, mut track, mut fragments) = (0, None, Vec::new());
        let (mut tables, mut indexed, mut closed) = (0, 0, false);
        while at + 8 <= length {
            file.seek(SeekFrom::Start(at))?;
            let head: [u8; 8] = bytes(file)?;
            let (mut size, mut header) =
                (u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]])), 8);
            match size {
                // The box extends to the end of the file.
                0 => size = length - at,
                1 => (size, header) = (u64::from_be_bytes(bytes(file)?), 16),
                _ => {}
            }
            if size < header {
                break;
            }
            let end = at.saturating_add(size);
            if end > length {
                promise.faults.push(cut_short(length, end));
                break;
            }
            let kind = &head[4..];
            tables += usize::from(kind == b"moov");
            // A recorder writes the random access table last.
            closed |= kind == b"mfra";
            if matches!(kind, b"moov" | b"moof" | b"sidx") && size <= LARGEST {
                let mut data = vec![0; (size - header) as usize];
                file.read_exact(&mut data)?;
                match kind {
                    b"moov" => {
                        track = video_track(&data);
                        promise.seconds = fragmented_seconds(&data);
                    }
                    b"sidx" => indexed = indexed.max(end.saturating_add(referenced(&data).unwrap_or(0))),
                    _ => fragments.push(data),
                }
            }
            at = end;
        }
        // The index also detects files that end between two fragments.
        if indexed > length && promise.faults.is_empty() {
            promise.faults.push(cut_short(length, indexed));
        }
        let missing = missing_fragments(&fragments);
        if missing > 0 {
            promise.faults.push(format!("{missing} fragments are missing"));
        }
        if !fragments.is_empty() && !closed && indexed == 0 && promise.seconds.is_none() {
            promise.notes.push(NO_INDEX.to_owned());
        }
        promise.hopeless = (tables == 0).then(|| NO_TABLE.to_owned());
        if let Some(track) = track {
            let in_fragments: u64 = fragments.iter().map(|moof| samples_in(moof, track.id)).sum();
            // Edits in fragmented files are ignored: all samples of the fragments are shown.
            promise.frames = track.shown.map(|shown| shown + in_fragments);
        }
        Ok(promise)
    }

    /// The duration of all fragments by the movie's header (`mehd`). It is used only if there is one track, so that it is the
    /// video's.
    fn fragmented_seconds(moov: &[u8]) -> Option<f64> {
        let header = find(moov, &[b"mvex", b"mehd"])?;
        let ticks = if header.first() == Some(&1) { u64_at(header, 4)? } else { u32_at(header, 4)?.into() };
        let scale = timescale(find(moov, &[b"mvhd"])?)?.max(1);
        let tracks = boxes(moov).filter(|(kind, _)| *kind == b"trak").count();
        (tracks == 1 && ticks > 0).then(|| ticks as f64 / f64::from(scale))
    }

    /// Number of fragments missing in their sequence numbers. A smaller number starts another recording.
    fn missing_fragments(fragments: &[Vec<u8>]) -> u64 {
        let numbers: Vec<u32> =
            fragments.iter().filter_map(|moof| u32_at(find(moof, &[b"mfhd"])?, 4)).collect();
        numbers.windows(2).map(|pair| u64::from(pair[1].saturating_sub(pair[0]).saturating_sub(1))).sum()
    }

    /// Number of bytes after a segment index to which it refers.
    fn referenced(sidx: &[u8]) -> Option<u64> {
        let (first, at) = match sidx.first()? {
            0 => (u64::from(u32_at(sidx, 16)?), 20),
            _ => (u64_at(sidx, 20)?, 28),
        };
        let count = u32_at(sidx, at)? as usize & 0xffff;
        // The first bit is set for references to another index.
        let sizes = (0..count).map_while(|i| Some(u64::from(u32_at(sidx, at + 4 + 12 * i)? & 0x7fff_ffff)));
        first.checked_add(sizes.sum())
    }

    struct Track {
        id: u32,
        /// Samples within the track's edit; `None` if there are several edits.
        shown: Option<u64>,
    }

    /// The boxes in `data`.
    fn boxes(data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = data;
        std::iter::from_fn(move || {
            let size = u32_at(rest, 0)? as usize;
            let inner = rest.get(8..if size == 0 { rest.len() } else { size })?;
            let kind = rest.get(4..8)?;
            rest = rest.get(8 + inner.len()..)?;
            Some((kind, inner))
        })
    }

    fn find<'a>(data: &'a [u8], path: &[&[u8; 4]]) -> Option<&'a [u8]> {
        path.iter().try_fold(data, |data, kind| Some(boxes(data).find(|(k, _)| k == kind)?.1))
    }

    /// The first video track, which is the one that is shown.
    fn video_track(moov: &[u8]) -> Option<Track> {
        let movie_scale = timescale(find(moov, &[b"mvhd"])?)?;
        let trak = boxes(moov)
            .filter(|(kind, _)| kind == b"trak")
            .find(|(_, trak)| {
                find(trak, &[b"mdia", b"hdlr"]).and_then(|h| h.get(8..12)) == Some(b"vide".as_slice())
            })?
            .1;
        let header = find(trak, &[b"tkhd"])?;
        let id = u32_at(header, if header.first() == Some(&1) { 20 } else { 12 })?;
        let scale = timescale(find(trak, &[b"mdia", b"mdhd"])?)?;
        let table = find(trak, &[b"mdia", b"minf", b"stbl"])?;
        let shown = match find(trak, &[b"edts", b"elst"]).map(edits) {
            None => count(table, 0, u64::MAX),
            Some(edits) => match edits.as_slice() {
                [] => count(table, 0, u64::MAX),
                [(length, start)] => {
                    let length = u128::from(*length) * u128::from(scale) / u128::from(movie_scale.max(1));
                    // A length of 0 means that fragments follow.
                    let length = if length == 0 { u64::MAX } else { length.min(u128::from(u64::MAX)) as u64 };
                    count(table, *start, start.saturating_add(length))
                }
                _ => None,
            },
        };
        Some(Track { id, shown })
    }

    fn timescale(header: &[u8]) -> Option<u32> {
        u32_at(header, if header.first() == Some(&1) { 20 } else { 12 })
    }

    /// Length and start of each edit that shows samples.
    fn edits(elst: &[u8]) -> Vec<(u64, u64)> {
        let long = elst.first() == Some(&1);
        let one = |at: usize| -> Option<(u64, u64)> {
            match long {
                true => Some((u64_at(elst, at)?, u64_at(elst, at + 8)?)),
                // A start of -1 is an edit that shows nothing.
                false => {
                    let start = u32_at(elst, at + 4)?;
                    Some((
                        u64::from(u32_at(elst, at)?),
                        if start == u32::MAX { u64::MAX } else { start.into() },
                    ))
                }
            }
        };
        let step = if long { 20 } else { 12 };
        let count = u32_at(elst, 4).unwrap_or(0) as usize;
        (0..count).map_while(|i| one(8 + i * step)).filter(|(_, start)| *start != u64::MAX).collect()
    }

    /// Number of the track's samples that end after `start` and begin before `end`, in its own ticks.
    fn count(table: &[u8], start: u64, end: u64) -> Option<u64> {
        let stts = find(table, &[b"stts"])?;
        let runs = (0..u32_at(stts, 4)? as usize)
            .map_while(|i| Some((u32_at(stts, 8 + 8 * i)?, u32_at(stts, 12 + 8 * i)?)));
        let ctts = find(table, &[b"ctts"]);
        // Some programs write negative offsets in version 0, too.
        let offsets =
            (0..).map_while(|i| Some((u32_at(ctts?, 8 + 8 * i)?, u32_at(ctts?, 12 + 8 * i)? as i32)));
        let mut offsets = offsets.flat_map(|(n, offset)| std::iter::repeat_n(i64::from(offset), n as usize));
        let (mut time, mut shown, mut all) = (0i64, 0, 0u32);
        for (n, step) in runs {
            all = all.saturating_add(n);
            if all > MOST_SAMPLES {
                return None;
            }
            for _ in 0..n {
                let begin = time + offsets.next().unwrap_or(0);
                let within = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
                shown += u64::from(begin + i64::from(step) > within(start) && begin < within(end));
                time += i64::from(step);
            }
        }
        Some(shown)
    }

    /// Samples of the track `id` in a fragment.
    fn samples_in(moof: &[u8], id: u32) -> u64 {
        let of_track = |traf: &[u8]| find(traf, &[b"tfhd"]).and_then(|h| u32_at(h, 4)) == Some(id);
        boxes(moof)
            .filter(|(kind, traf)| kind == b"traf" && of_track(traf))
            .flat_map(|(_, traf)| boxes(traf).filter(|(kind, _)| kind == b"trun"))
            .filter_map(|(_, trun)| u32_at(trun, 4))
            .map(u64::from)
            .sum()
    }
}

/// MPEG transport streams (ISO/IEC 13818-1), with packets of 188 bytes, or 192 with a preceding time.
mod transport {
    use super::*;

    pub const PACKET: usize = 188;
    const SYNC: u8 = 0x47;
    const NULL: usize = 0x1fff;
    /// Program tables (PAT, SDT). If recordings are joined, each begins with one of them.
    const TABLES: [usize; 2] = [0, 0x11];

    /// Whether there are two packets, each preceded by `before` bytes.
    pub fn begins(head: &[u8], before: usize) -> bool {
        [before, 2 * before + PACKET].iter().all(|at| head.get(*at) == Some(&SYNC))
    }

    pub fn promise(file: &mut impl Read, length: u64, before: usize) -> std::io::Result<Promise> {
        let mut promise = Promise::default();
        let (mut packet, mut last) = (vec![0; PACKET + before], vec![None::<u8>; NULL + 1]);
        let (mut missing, mut unreadable) = (0u64, 0u64);
        for _ in 0..length / packet.len() as u64 {
            file.read_exact(&mut packet)?;
            let p = &packet[before..];
            if p[0] != SYNC {
                unreadable += 1;
                continue;
            }
            let (pid, payload) = (usize::from(u16::from_be_bytes([p[1], p[2]]) & 0x1fff), p[3] & 0x10 > 0);
            if pid == NULL || !payload {
                continue;
            }
            if p[1] & 0x80 > 0 {
                unreadable += 1;
            }
            let counter = p[3] & 0x0f;
            let announced = p[3] & 0x20 > 0 && p[4] > 0 && p[5] & 0x80 > 0;
            if let Some(before) = last[pid].filter(|_| !announced) {
                // A packet may be sent twice.
                let lost = u64::from(counter.wrapping_sub(before).wrapping_sub(1) & 0x0f);
                if lost > 0 && counter != before {
                    if TABLES.contains(&pid) {
                        last.fill(None);
                    } else {
                        missing += lost;
                    }
                }
            }
            last[pid] = Some(counter);
        }
        let rest = length % packet.len() as u64;
        if rest > 0 {
            promise
                .faults
                .push(format!("the file is cut short: its last packet has {rest} of {} bytes", packet.len()));
        }
        if missing + unreadable > 0 {
            promise.faults.push(format!(
                "at least {missing} packets of the transport stream are missing and {unreadable} cannot be read"
            ));
        }
        Ok(promise)
    }
}

#[cfg(test)]
mod tests;
