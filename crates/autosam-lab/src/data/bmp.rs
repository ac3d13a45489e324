//! Reads the indices of a Windows bitmap with a palette. The `image` crate returns them only for 8 bits.

use super::decode::{self, Plane, check_fits, unpacked};
use crate::Result;
use std::path::Path;

/// Offsets of the header's fields.
const DATA: usize = 10;
const HEADER_SIZE: usize = 14;
const SIZE: usize = 18;
const DEPTH: usize = 28;
const COMPRESSION: usize = 30;
/// Size of the header of OS/2 bitmaps, whose width and height have 16 bits and which are never compressed.
const CORE: u32 = 12;

/// The indices of the bitmap `bytes`, the first row at the top; `None` for one without a palette or with compressed indices.
///
/// # Errors
/// If the file is truncated or too large; the message has `path`.
pub(super) fn indices(path: &Path, bytes: &[u8]) -> Result<Option<Plane>> {
    let Some((width, height, depth, data)) = head(bytes) else { return Ok(None) };
    let size = (width, height.unsigned_abs());
    check_fits(path, size)?;
    let line = (width as usize * usize::from(depth)).div_ceil(32) * 4;
    let needed = line.saturating_mul(size.1 as usize);
    let rows = bytes.get(data..).unwrap_or_default();
    if rows.len() < needed {
        let part = 100 * rows.len() / needed.max(1);
        return Err(decode::damaged(path, &format!("it is cut short: {part} % of the image is there")));
    }
    let mut plane = unpacked(rows, line, size, depth);
    // A negative height means that rows are stored from the top.
    if height > 0 {
        image::imageops::flip_vertical_in_place(&mut plane);
    }
    Ok(Some(plane))
}

/// Width, height, bits per pixel and offset of the rows, for uncompressed indices.
fn head(bytes: &[u8]) -> Option<(u32, i32, u8, usize)> {
    let short = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let core = long(HEADER_SIZE)? == CORE;
    let (width, height, depth) = if core {
        (u32::from(short(SIZE)?), i32::from(short(SIZE + 2)?), short(SIZE + 6)?)
    } else {
        (long(SIZE)?, long(SIZE + 4)?.cast_signed(), short(DEPTH)?)
    };
    let plain = core || long(COMPRESSION)? == 0;
    let depth = u8::try_from(depth).ok().filter(|depth| plain && matches!(depth, 1 | 2 | 4 | 8))?;
    Some((width, height, depth, long(DATA)? as usize))
}
