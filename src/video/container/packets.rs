//! Containers that consist of packets with a stated length, or of frames of one size. If the chain of packets breaks, bytes are
//! missing.

use super::holes::has_hole;
use super::{Promise, bytes, cut_short, damaged_at};
use std::collections::HashMap;
use std::io::{Read, Seek};

/// The promise of a file that begins with `head` and is read from its start; `None` for other containers.
pub fn promise(file: &mut (impl Read + Seek), head: &[u8], length: u64) -> std::io::Result<Option<Promise>> {
    // GStreamer's demuxers report the duration of these.
    let lasting = |faults| Some(Promise { lasts: true, faults, ..Promise::default() });
    let plain = |faults| Some(Promise { faults, ..Promise::default() });
    let mut chain = Chain { file, at: 0, length };
    Ok(match head {
        [0x30, 0x26, 0xb2, 0x75, ..] => lasting(asf(&mut chain)?),
        [b'F', b'L', b'V', ..] => lasting(flv(&mut chain)?),
        [0x06, 0x0e, 0x2b, 0x34, ..] => lasting(mxf(&mut chain)?),
        [b'O', b'g', b'g', b'S', ..] => plain(ogg(&mut chain)?),
        [0, 0, 1, PACK, ..] => plain(program(&mut chain)?),
        [0x1f, 7, 0, system, ..] => Some(digital_video(&mut chain, system & 0x80 > 0)?),
        _ => None,
    })
}

/// A file that is read from packet to packet.
struct Chain<'a, F> {
    file: &'a mut F,
    at: u64,
    length: u64,
}

impl<F: Read + Seek> Chain<'_, F> {
    fn left(&self) -> u64 {
        self.length - self.at
    }

    /// The next `N` bytes; `None` at the end.
    fn next<const N: usize>(&mut self) -> std::io::Result<Option<[u8; N]>> {
        if self.left() < N as u64 {
            return Ok(None);
        }
        self.at += N as u64;
        bytes(self.file).map(Some)
    }

    /// Skips `count` bytes, which must exist.
    fn skip(&mut self, count: u64) -> std::io::Result<()> {
        self.at += count;
        self.file.seek_relative(count.cast_signed())
    }

    /// Skips `count` bytes; returns the fault if the file ends before.
    fn pass(&mut self, count: u64) -> std::io::Result<Option<String>> {
        let end = self.at.saturating_add(count);
        if end > self.length {
            return Ok(Some(cut_short(self.length, end)));
        }
        self.skip(count)?;
        Ok(None)
    }

    /// Reads up to and including the next `code`; false at the end of the file.
    fn find(&mut self, code: [u8; 4]) -> std::io::Result<bool> {
        let mut window = 0;
        while let Some([byte]) = self.next()? {
            window = window << 8 | u32::from(byte);
            if window == u32::from_be_bytes(code) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Windows Media: objects with a size; the data object consists of packets of equal size.
fn asf(chain: &mut Chain<impl Read + Seek>) -> std::io::Result<Vec<String>> {
    const HEADER: u64 = 24;
    const OF_FILE: [u8; 4] = [0x30, 0x26, 0xb2, 0x75];
    const OF_DATA: [u8; 4] = [0x36, 0x26, 0xb2, 0x75];
    /// A header larger than this is not read.
    const LARGEST: u64 = 1 << 24;
    let (mut packet, mut plain_sound) = (None, false);
    while let Some(head) = chain.next::<24>()? {
        let size = head[16..].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        // The size is unknown in live recordings.
        let Some(inner) = size.checked_sub(HEADER) else { return Ok(Vec::new()) };
        if inner > chain.left() {
            return Ok(vec![cut_short(chain.length, chain.at.saturating_add(inner))]);
        }
        if head[..4] == OF_FILE && inner <= LARGEST {
            let mut header = vec![0; inner as usize];
            chain.file.read_exact(&mut header)?;
            packet = packet_size(&header);
            plain_sound = has_plain_sound(&header);
            chain.at += inner;
        } else if let Some(packet) = packet.filter(|_| head[..4] == OF_DATA) {
            let damaged = damaged_packets(chain, inner, packet, plain_sound)?;
            if damaged > 0 {
                return Ok(vec![format!("{damaged} packets are damaged: frames may be missing")]);
            }
        } else {
            chain.pass(inner)?;
        }
    }
    Ok(rest(chain))
}

/// The packet size by the properties in an ASF file's header, if all packets have the same.
fn packet_size(header: &[u8]) -> Option<u64> {
    const PROPERTIES: [u8; 16] =
        [0xa1, 0xdc, 0xab, 0x8c, 0x47, 0xa9, 0xcf, 0x11, 0x8e, 0xe4, 0, 0xc0, 0x0c, 0x20, 0x53, 0x65];
    /// Offset of the smallest packet size from the start of the object; the largest follows.
    const SIZES: usize = 92;
    let at = header.windows(16).position(|window| window == PROPERTIES)? + SIZES;
    let size = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let smallest = size(at)?;
    (smallest > 3 && size(at + 4)? == smallest).then_some(smallest.into())
}

/// Whether an ASF file has uncompressed sound, whose silence consists of zeros.
fn has_plain_sound(header: &[u8]) -> bool {
    const SOUND: [u8; 16] =
        [0x40, 0x9e, 0x69, 0xf8, 0x4d, 0x5b, 0xcf, 0x11, 0xa8, 0xfd, 0, 0x80, 0x5f, 0x5c, 0x44, 0x2b];
    /// Offset of the sound's format from the start of its stream type.
    const FORMAT: usize = 54;
    const UNCOMPRESSED: [u8; 2] = [1, 0];
    header.windows(FORMAT + 2).any(|w| w[..16] == SOUND && w[FORMAT..] == UNCOMPRESSED)
}

/// Number of packets in a data object of `inner` bytes that do not begin like its first packet, or have a hole. Reads to the
/// end of the object.
fn damaged_packets(
    chain: &mut Chain<impl Read + Seek>,
    inner: u64,
    packet: u64,
    plain_sound: bool,
) -> std::io::Result<u64> {
    /// Number of bytes before the packets.
    const BEFORE: u64 = 26;
    /// Limit for damaged headers; valid packets have at most 64 KiB.
    const LARGEST: u64 = 1 << 20;
    /// The bit of the first byte that announces data for error correction. These data are equal in all packets; without them only
    /// the second byte is.
    const CORRECTION: u8 = 0x80;
    let end = chain.at + inner;
    let (mut first, mut damaged) = (None, 0);
    if packet <= LARGEST && chain.pass(BEFORE.min(inner))?.is_none() {
        let mut data = vec![0; packet as usize];
        while chain.at + packet <= end {
            chain.file.read_exact(&mut data)?;
            chain.at += packet;
            let begin = [data[0], data[1], data[2]];
            let first: [u8; 3] = *first.get_or_insert(begin);
            let same = if first[0] & CORRECTION > 0 { first == begin } else { first[1] == begin[1] };
            damaged += u64::from(!same || !plain_sound && has_hole(&data));
        }
    }
    chain.skip(end - chain.at)?;
    Ok(damaged)
}

/// Flash video: tags with a size.
fn flv(chain: &mut Chain<impl Read + Seek>) -> std::io::Result<Vec<String>> {
    /// Length of the file's header, and of the size field before the first tag.
    const HEADER: u64 = 13;
    /// Length of the field with the previous tag's size.
    const BACK: u64 = 4;
    if let Some(fault) = chain.pass(HEADER)? {
        return Ok(vec![fault]);
    }
    while let Some([kind, high, middle, low, ..]) = chain.next::<11>()? {
        if !matches!(kind & 0x1f, 8 | 9 | 18) {
            return Ok(vec![damaged_at(chain.at - 11)]);
        }
        let size = u64::from(u32::from_be_bytes([0, high, middle, low]));
        if let Some(fault) = chain.pass(size + BACK)? {
            return Ok(vec![fault]);
        }
    }
    Ok(rest(chain))
}

/// The fault if bytes follow the last complete packet.
fn rest(chain: &Chain<impl Read + Seek>) -> Vec<String> {
    match chain.left() {
        0 => Vec::new(),
        left => vec![format!("the file is cut short: only {left} bytes of its last packet exist")],
    }
}

/// Material exchange format: keys, lengths and values.
fn mxf(chain: &mut Chain<impl Read + Seek>) -> std::io::Result<Vec<String>> {
    while let Some(head) = chain.next::<17>()? {
        if head[..4] != [0x06, 0x0e, 0x2b, 0x34] {
            return Ok(vec![damaged_at(chain.at - 17)]);
        }
        let mut size = u64::from(head[16]);
        if size >= 0x80 {
            let digits = size & 0x7f;
            size = 0;
            for _ in 0..digits.min(8) {
                let Some([byte]) = chain.next()? else {
                    return Ok(vec![cut_short(chain.length, chain.at + 1)]);
                };
                size = size << 8 | u64::from(byte);
            }
        }
        if let Some(fault) = chain.pass(size)? {
            return Ok(vec![fault]);
        }
    }
    Ok(rest(chain))
}

/// Ogg (RFC 3533): numbered pages, the last of a stream has a flag.
fn ogg(chain: &mut Chain<impl Read + Seek>) -> std::io::Result<Vec<String>> {
    const CAPTURE_PATTERN: [u8; 4] = *b"OggS";
    const LAST: u8 = 4;
    // For each stream: the next page's number, and whether its last page was found.
    let mut streams: HashMap<[u8; 4], (u32, bool)> = HashMap::new();
    let (mut missing, mut cut) = (0u64, None);
    while chain.find(CAPTURE_PATTERN)? {
        let Some(head) = chain.next::<23>()? else { break };
        let serial = [head[10], head[11], head[12], head[13]];
        let number = u32::from_le_bytes([head[14], head[15], head[16], head[17]]);
        let stream = streams.entry(serial).or_insert((number, false));
        missing += u64::from(number.saturating_sub(stream.0));
        *stream = (number.wrapping_add(1), head[1] & LAST > 0);
        let mut size = 0;
        for _ in 0..head[22] {
            // A table that ends early counts as one missing byte.
            size += chain.next::<1>()?.map_or(chain.left() + 1, |[length]| u64::from(length));
        }
        cut = chain.pass(size)?;
        if cut.is_some() {
            break;
        }
    }
    let unended = streams.values().any(|(_, ended)| !ended);
    let mut faults: Vec<String> = cut.into_iter().collect();
    if faults.is_empty() && unended {
        faults.push("the file is cut short: its last page is missing".into());
    }
    if missing > 0 {
        faults.push(format!("at least {missing} pages are missing"));
    }
    Ok(faults)
}

/// The start code of a pack.
const PACK: u8 = 0xba;

/// MPEG program streams (ISO/IEC 13818-1 and 11172-1): packs and packets with their length.
fn program(chain: &mut Chain<impl Read + Seek>) -> std::io::Result<Vec<String>> {
    let mut breaks = 0;
    while let Some(code) = chain.next::<4>()? {
        let fault = match code {
            [0, 0, 1, PACK] => pack(chain)?,
            [0, 0, 1, 0xb9] => None,
            [0, 0, 1, 0xbb..=0xff] => match chain.next::<2>()? {
                Some(size) => chain.pass(u16::from_be_bytes(size).into())?,
                None => Some(cut_short(chain.length, chain.at + 2)),
            },
            // Recorders pad their last block.
            [0, 0, 0, 0] if breaks == 0 && chain.left() < 1 << 16 => return Ok(Vec::new()),
            _ => {
                breaks += 1;
                chain.find([0, 0, 1, PACK])?.then(|| pack(chain)).transpose()?.flatten()
            }
        };
        if let Some(fault) = fault {
            return Ok(vec![fault]);
        }
    }
    if breaks > 0 {
        return Ok(vec![format!("the program stream is damaged in {breaks} places")]);
    }
    Ok(rest(chain))
}

/// The rest of a pack's header.
fn pack(chain: &mut Chain<impl Read + Seek>) -> std::io::Result<Option<String>> {
    let Some([first]) = chain.next()? else { return Ok(Some(cut_short(chain.length, chain.at + 1))) };
    if first >> 6 != 1 {
        // MPEG-1.
        return chain.pass(7);
    }
    if let Some(fault) = chain.pass(8)? {
        return Ok(Some(fault));
    }
    match chain.next()? {
        Some([stuffing]) => chain.pass(u64::from(stuffing & 7)),
        None => Ok(Some(cut_short(chain.length, chain.at + 1))),
    }
}

/// Raw DV as sent by cameras: frames of one size that all begin with the same bytes.
fn digital_video(chain: &mut Chain<impl Read + Seek>, pal: bool) -> std::io::Result<Promise> {
    let frame: u64 = if pal { 144_000 } else { 120_000 };
    let (frames, rest) = (chain.length / frame, chain.length % frame);
    let mut promise = Promise::default();
    if rest > 0 {
        promise.faults.push(format!("the file is cut short: its last frame has {rest} of {frame} bytes"));
        promise.usable = Some(frames * frame);
        promise.hopeless = (frames == 0).then(|| "the file is cut short within its first frame".to_owned());
    }
    chain.file.rewind()?;
    let mut damaged = 0;
    for _ in 0..frames {
        damaged += u64::from(bytes::<3>(chain.file)? != [0x1f, 7, 0]);
        chain.file.seek_relative(frame.cast_signed() - 3)?;
    }
    if damaged > 0 {
        promise.faults.push(format!("{damaged} of {frames} frames are damaged at their start"));
    }
    Ok(promise)
}
