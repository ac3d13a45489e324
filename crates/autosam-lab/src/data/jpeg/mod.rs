//! Checks whether a JPEG file is complete. Decoders silently fill missing parts with grey. Therefore the entropy-coded
//! data are parsed here without computing pixels; all blocks that the header announces must be present.

mod bits;

use bits::{Bits, Huffman, Stop, Tables};

/// Maximum number of blocks of a checked frame; larger ones are left to the decoder's own limits.
const MOST_BLOCKS: usize = 1 << 23;

/// Checks sequential and progressive Huffman-coded files (others are left to the decoder, which refuses them).
///
/// # Errors
/// A description of the missing or damaged part.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let mut at = 0;
    let mut frame: Option<Frame> = None;
    let mut tables = Tables::default();
    let (mut restart, mut scans) = (0, 0);
    while let Some(marker) = next_marker(bytes, &mut at) {
        match marker {
            0x01 | 0xD0..=0xD8 => continue,
            0xD9 if scans == 0 => return Err("it has no image data".into()),
            0xD9 => return frame.map_or(Ok(()), |f| f.all_scanned()),
            _ => {}
        }
        let Some(segment) = segment(bytes, &mut at) else { break };
        match marker {
            0xC0..=0xC2 => match Frame::parse(segment, marker == 0xC2) {
                Some(parsed) => frame = Some(parsed),
                None => return Ok(()),
            },
            0xC4 => tables.define(segment),
            // Lossless, hierarchical or arithmetic coding.
            0xC3 | 0xC5..=0xCF => return Ok(()),
            0xDD => restart = segment.get(..2).map_or(0, |v| usize::from(v[0]) << 8 | usize::from(v[1])),
            0xDA => {
                let Some(frame) = &mut frame else { return Ok(()) };
                let Some(scan) = frame.scan(segment) else { return Ok(()) };
                let mut bits = Bits::new(bytes, at);
                frame.read(&scan, &tables, restart, &mut bits)?;
                at = bits.at;
                scans += 1;
            }
            _ => {}
        }
    }
    match frame {
        // Without an end marker a sequential file may be whole, a progressive one only if all bits were sent.
        Some(frame) if scans > 0 => frame.all_scanned().and_then(|()| frame.all_bits()),
        _ => Err("it is cut short before its image data".into()),
    }
}

/// Advances `at` past the next marker.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    let rest = bytes.get(*at..)?;
    let found = rest.windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xFF))?;
    *at += found + 2;
    Some(bytes[*at - 1])
}

/// Advances `at` past the segment that begins there; returns the segment's content after its length.
fn segment<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let length = usize::from(*bytes.get(*at)?) << 8 | usize::from(*bytes.get(*at + 1)?);
    let segment = bytes.get(*at + 2..*at + length.max(2))?;
    *at += length.max(2);
    Some(segment)
}

/// A colour component of the frame.
struct Component {
    id: u8,
    /// Blocks per MCU, horizontally and vertically.
    across: usize,
    down: usize,
    /// Blocks in a scan of only this component, horizontally and vertically.
    own: (usize, usize),
    /// Blocks per row, including those of incomplete MCUs.
    stride: usize,
    /// For each block a bit set of its nonzero coefficients (progressive only).
    nonzero: Vec<u64>,
    /// For each coefficient the lowest bit received so far (progressive only).
    lowest: [Option<u8>; 64],
    scanned: bool,
}

/// The frame header, and the data found so far.
struct Frame {
    progressive: bool,
    /// Horizontally and vertically.
    mcus: (usize, usize),
    components: Vec<Component>,
}

/// A scan's header.
struct Scan {
    /// Component, DC table and AC table.
    parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    spectrum: (usize, usize),
    /// Whether the scan refines coefficients of an earlier one.
    refines: bool,
    /// The lowest bit that the scan contains.
    low: u8,
}

impl Frame {
    /// Parses the header; `None` if it is not supported.
    fn parse(segment: &[u8], progressive: bool) -> Option<Self> {
        let number =
            |at: usize| Some(usize::from(*segment.get(at)?) << 8 | usize::from(*segment.get(at + 1)?));
        let (height, width) = (number(1)?, number(3)?);
        let parts: Vec<&[u8]> =
            segment.get(6..)?.chunks_exact(3).take(usize::from(*segment.get(5)?)).collect();
        let factor = |p: &[u8]| (usize::from(p[1] >> 4), usize::from(p[1] & 15));
        if parts.is_empty()
            || parts.iter().any(|p| !(1..=4).contains(&factor(p).0) || !(1..=4).contains(&factor(p).1))
        {
            return None;
        }
        let most =
            |pick: fn((usize, usize)) -> usize| parts.iter().map(|p| pick(factor(p))).max().unwrap_or(1);
        let (most_across, most_down) = (most(|f| f.0), most(|f| f.1));
        let mcus = (width.div_ceil(8 * most_across), height.div_ceil(8 * most_down));
        // A height of 0 means that it follows after the first scan.
        if mcus.0 * mcus.1 == 0 || mcus.0 * mcus.1 * most_across * most_down > MOST_BLOCKS {
            return None;
        }
        let components = parts.iter().map(|p| {
            let (across, down) = factor(p);
            let own = |length: usize, of: usize, most: usize| (length * of).div_ceil(most).div_ceil(8);
            let blocks = mcus.0 * across * mcus.1 * down;
            Component {
                id: p[0],
                across,
                down,
                own: (own(width, across, most_across), own(height, down, most_down)),
                stride: mcus.0 * across,
                nonzero: vec![0; if progressive { blocks } else { 0 }],
                lowest: [None; 64],
                scanned: false,
            }
        });
        Some(Self { progressive, mcus, components: components.collect() })
    }

    /// Parses a scan's header; `None` if it does not fit the frame.
    fn scan(&self, segment: &[u8]) -> Option<Scan> {
        let count = usize::from(*segment.first()?);
        let rest = segment.get(1 + 2 * count..)?;
        let parts: Option<Vec<_>> = segment[1..]
            .chunks_exact(2)
            .take(count)
            .map(|p| {
                let component = self.components.iter().position(|c| c.id == p[0])?;
                Some((component, usize::from(p[1] >> 4) & 3, usize::from(p[1]) & 3))
            })
            .collect();
        let (first, last, bits) = (usize::from(*rest.first()?), usize::from(*rest.get(1)?), *rest.get(2)?);
        let spectrum = if self.progressive { (first, last) } else { (0, 63) };
        let known = count > 0 && spectrum.0 <= spectrum.1 && spectrum.1 < 64;
        Some(Scan { parts: parts?, spectrum, refines: bits >> 4 > 0, low: bits & 15 }).filter(|_| known)
    }

    /// Reads the scan's data from `bits`.
    fn read(&mut self, scan: &Scan, tables: &Tables, restart: usize, bits: &mut Bits) -> Result<(), String> {
        let (columns, rows) = match scan.parts[..] {
            [(only, ..)] => self.components[only].own,
            _ => self.mcus,
        };
        let mut run = 0;
        for unit in 0..columns * rows {
            let begun = match restart > 0 && unit > 0 && unit % restart == 0 {
                true => {
                    run = 0;
                    bits.restart(unit / restart)
                }
                false => Ok(()),
            };
            let at = (unit % columns, unit / columns);
            if let Err(stop) = begun.and_then(|()| self.unit(scan, tables, at, &mut run, bits)) {
                return Err(self.lost(&stop, unit, columns * rows));
            }
        }
        if bits.left_over() {
            return Err("it is damaged: there is data after its last block".into());
        }
        for (component, ..) in &scan.parts {
            let component = &mut self.components[*component];
            component.scanned = true;
            component.lowest[scan.spectrum.0..=scan.spectrum.1].fill(Some(scan.low));
        }
        Ok(())
    }

    /// Reads an MCU, or a single block if the scan has one component.
    fn unit(
        &mut self,
        scan: &Scan,
        tables: &Tables,
        (x, y): (usize, usize),
        run: &mut u32,
        bits: &mut Bits,
    ) -> Result<(), Stop> {
        let single = scan.parts.len() == 1;
        for (component, dc, ac) in &scan.parts {
            let c = &mut self.components[*component];
            let (across, down) = if single { (1, 1) } else { (c.across, c.down) };
            for block in 0..across * down {
                let at = (y * down + block / across) * c.stride + x * across + block % across;
                let (dc, ac) = (&tables.dc[*dc], &tables.ac[*ac]);
                if self.progressive {
                    let nonzero = c.nonzero.get_mut(at).ok_or(Stop::Damaged)?;
                    progressive_block(bits, scan, dc, ac, run, nonzero)?;
                } else {
                    sequential_block(bits, dc, ac)?;
                }
            }
        }
        Ok(())
    }

    /// The message for a scan that ends at unit `done` of `all`.
    fn lost(&self, stop: &Stop, done: usize, all: usize) -> String {
        let share = 100 * done / all.max(1);
        match stop {
            Stop::Damaged => format!("it is damaged {share} % down"),
            Stop::Short if self.progressive && self.components.iter().any(|c| c.scanned) => {
                "it is cut short: its later scans, which contain the detail, are missing".into()
            }
            Stop::Short => format!("it is cut short: {share} % of the image is there"),
        }
    }

    fn all_scanned(&self) -> Result<(), String> {
        match self.components.iter().filter(|c| !c.scanned).count() {
            0 => Ok(()),
            missing => Err(format!("it is cut short: {missing} of its colour components are missing")),
        }
    }

    /// Fails unless all bits of every coefficient were received.
    fn all_bits(&self) -> Result<(), String> {
        let whole = |c: &Component| c.lowest.iter().all(|low| *low == Some(0));
        match !self.progressive || self.components.iter().all(whole) {
            true => Ok(()),
            false => Err("it is cut short: its later scans, which contain the detail, are missing".into()),
        }
    }
}

/// A block of a sequential frame.
fn sequential_block(bits: &mut Bits, dc: &Huffman, ac: &Huffman) -> Result<(), Stop> {
    let size = bits.code(dc)?;
    bits.skip(size)?;
    let mut k = 1;
    while k < 64 {
        let code = bits.code(ac)?;
        let (zeros, size) = (usize::from(code >> 4), code & 15);
        match (zeros, size) {
            (15, 0) => k += 16,
            (_, 0) => break,
            _ => {
                k += zeros;
                if k > 63 {
                    return Err(Stop::Damaged);
                }
                bits.skip(size)?;
                k += 1;
            }
        }
    }
    Ok(())
}

/// Reads a block of a progressive scan. `run` counts the remaining blocks without a new coefficient.
fn progressive_block(
    bits: &mut Bits,
    scan: &Scan,
    dc: &Huffman,
    ac: &Huffman,
    run: &mut u32,
    nonzero: &mut u64,
) -> Result<(), Stop> {
    let (mut k, last) = scan.spectrum;
    if k == 0 {
        let size = if scan.refines { 1 } else { bits.code(dc)? };
        return bits.skip(size);
    }
    if *run == 0 {
        while k <= last {
            let code = bits.code(ac)?;
            let (mut zeros, size) = (code >> 4, code & 15);
            if size == 0 && zeros < 15 {
                *run = (1 << zeros) + bits.read(zeros)?;
                break;
            }
            // A new coefficient's sign, or its whole value.
            bits.skip(size)?;
            while k <= last {
                if scan.refines && *nonzero >> k & 1 == 1 {
                    bits.skip(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if size > 0 {
                if k > last {
                    return Err(Stop::Damaged);
                }
                *nonzero |= 1 << k;
            }
            k += 1;
        }
    }
    if *run > 0 {
        if scan.refines {
            for k in k..=last {
                bits.skip((*nonzero >> k & 1) as u8)?;
            }
        }
        *run -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;
    use image::{DynamicImage, Rgb, RgbImage};

    fn jpeg(image: &DynamicImage, quality: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality);
        image.write_with_encoder(encoder).unwrap();
        bytes
    }

    fn photo(w: u32, h: u32) -> DynamicImage {
        RgbImage::from_fn(w, h, |x, y| Rgb([(x * 7 + y * y) as u8, (x * y) as u8, (3 * x) as u8 ^ y as u8]))
            .into()
    }

    #[test]
    fn complete_files_pass_at_any_size_and_quality() {
        for (w, h) in [(1, 1), (8, 8), (17, 9), (160, 120)] {
            for quality in [5, 50, 100] {
                let bytes = jpeg(&photo(w, h), quality);
                assert_eq!(check(&bytes), Ok(()), "{w}x{h} at {quality}");
                assert_eq!(check(&jpeg(&photo(w, h).into_luma8().into(), quality)), Ok(()));
                // Without its end marker all blocks are still present. Data after the marker is ignored.
                assert_eq!(check(&bytes[..bytes.len() - 2]), Ok(()));
                assert_eq!(check(&[&bytes[..], &[0; 9]].concat()), Ok(()));
            }
        }
    }

    #[test]
    fn every_truncation_is_found_with_its_fraction() {
        let bytes = jpeg(&photo(160, 120), 80);
        for length in (0..bytes.len() - 2).rev().step_by(97) {
            // Up to the last byte of data, which may contain only padding.
            assert!(
                check(&bytes[..length]).is_err() || length + 1 >= bytes.len() - 2,
                "{length} of {}",
                bytes.len()
            );
        }
        let share = |length: usize| check(&bytes[..length]).unwrap_err();
        assert!(
            share(bytes.len() / 2).contains("cut short: 4")
                || share(bytes.len() / 2).contains("cut short: 5")
        );
        assert!(share(20).contains("before its image data"));
    }

    #[test]
    fn overwritten_data_in_the_middle_is_reported_as_damage() {
        let mut bytes = jpeg(&photo(160, 120), 80);
        let middle = bytes.len() / 2;
        bytes[middle..middle + 2000].fill(0);
        let text = check(&bytes).unwrap_err();
        assert!(text.contains("damaged") || text.contains("cut short"), "{text}");
    }

    /// 40x24 pixels, written by libjpeg as a progressive file.
    const PROGRESSIVE: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHz/wgARCAAYACgDASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAAEEAwL/xAAXAQEBAQEAAAAAAAAAAAAAAAADBAIB/9oADAMBAAIQAxAAAAG3NTf2zkDazs0dKHjlRJ+g5R//xAAYEAEAAwEAAAAAAAAAAAAAAAAAARESEP/aAAgBAQABBQKJWta0dhDLLLLL/8QAGREAAwEBAQAAAAAAAAAAAAAAAAEhERIC/9oACAEDAQE/AeYc0Xk2G0TZ/8QAFhEBAQEAAAAAAAAAAAAAAAAAABES/9oACAECAQE/Acssqqv/xAAUEAEAAAAAAAAAAAAAAAAAAAAw/9oACAEBAAY/An//xAAVEAEBAAAAAAAAAAAAAAAAAAABAP/aAAgBAQABPyGWtKVMrLJkxGMIT//aAAwDAQACAAMAAAAQhUC+j9//xAAWEQEBAQAAAAAAAAAAAAAAAAAAEQH/2gAIAQMBAT8QkkxjNlkT/8QAFxEBAQEBAAAAAAAAAAAAAAAAAQARIf/aAAgBAgEBPxAGxxIhbCy1f//EABwQAAICAgMAAAAAAAAAAAAAAAABESExURBBYf/aAAgBAQABPxBAiBWxUi6IBEHdHoIGeaVOLLtlR//Z";

    #[test]
    fn progressive_files_are_checked_scan_by_scan() {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(PROGRESSIVE).unwrap();
        assert_eq!(check(&bytes), Ok(()));
        assert_eq!(check(&bytes[..bytes.len() - 2]), Ok(()), "all bits are there");
        for length in 0..bytes.len() - 4 {
            assert!(check(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
        }
        assert!(check(&bytes[..bytes.len() / 2]).unwrap_err().contains("later scans"));
    }
}
