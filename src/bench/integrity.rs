//! Checks that a frame is unchanged, bit for bit, outside the overlay.

use super::shown::ShownMask;
use gst_video::prelude::*;

/// The area where the element may have drawn: the mask of its meta, widened by one pixel of the network on all sides, because
/// overlays follow the enlarged probabilities between the network's pixels.
#[derive(Default)]
pub struct Allowed {
    width: usize,
    height: usize,
    shift: (i64, i64),
    cells: Vec<bool>,
}

impl Allowed {
    /// The area allowed by the shown mask; empty if none is shown.
    pub fn of(shown: Option<&ShownMask>) -> Self {
        shown.map(|s| Self::new(&s.cells, s.width, s.height, s.shift)).unwrap_or_default()
    }

    fn new(mask: &[u8], width: usize, height: usize, shift: (i64, i64)) -> Self {
        let mut cells = vec![false; width * height];
        for (i, _) in mask.iter().enumerate().filter(|(_, v)| **v > 0) {
            let (x, y) = (i % width, i / width);
            for ny in y.saturating_sub(1)..(y + 2).min(height) {
                for nx in x.saturating_sub(1)..(x + 2).min(width) {
                    cells[ny * width + nx] = true;
                }
            }
        }
        Self { width, height, shift, cells }
    }

    /// Reader for the pixels of a `width × height` frame that may differ.
    fn rows(&self, width: usize, height: usize) -> Rows<'_> {
        let columns = (0..width).map(|x| cells(x, self.shift.0, width, self.width)).collect();
        Rows { allowed: self, height, columns, last: 0..0, row: vec![false; width] }
    }
}

/// See [`Allowed::rows`]. Neighbouring rows mostly lie in the same cells, which are therefore read once.
struct Rows<'a> {
    allowed: &'a Allowed,
    height: usize,
    /// The cells of each column of pixels.
    columns: Vec<std::ops::Range<usize>>,
    /// The cells from which `row` was computed.
    last: std::ops::Range<usize>,
    row: Vec<bool>,
}

impl Rows<'_> {
    /// Which pixels of row `y` may differ.
    fn at(&mut self, y: usize) -> &[bool] {
        let Allowed { width, height, shift, cells: all } = self.allowed;
        let rows = cells(y, shift.1, self.height, *height);
        if rows != self.last {
            let within: Vec<bool> = (0..*width).map(|x| rows.clone().any(|y| all[y * width + x])).collect();
            for (allowed, cells) in self.row.iter_mut().zip(&self.columns) {
                *allowed = within[cells.clone()].contains(&true);
            }
            self.last = rows;
        }
        &self.row
    }
}

/// The cells of `count` along `side` pixels that belong to pixel `at`, its 2 × 2 block and the next: overlays consist of such
/// blocks and move by whole blocks.
fn cells(at: usize, shift: i64, side: usize, count: usize) -> std::ops::Range<usize> {
    let (at, last) = (at as i64 - shift, side as i64 - 1);
    let (low, high) = (at.div_euclid(2) * 2 - 2, at.div_euclid(2) * 2 + 3);
    if count == 0 || high < 0 || low > last {
        return 0..0;
    }
    let cell = |v: i64| v.clamp(0, last) as usize * count / side;
    cell(low)..cell(high) + 1
}

/// Number of samples of `after` that differ from `before` (same layout) outside the allowed area. A shared chroma sample counts
/// once; alpha counts as well.
pub fn changed_outside(
    before: &gst_video::VideoFrameRef<&gst::BufferRef>,
    after: &gst_video::VideoFrameRef<&gst::BufferRef>,
    allowed: &Allowed,
) -> u64 {
    let info = after.info();
    let format = info.format_info();
    let (width, height) = (info.width() as usize, info.height() as usize);
    let (mut changed, mut rows) = (0, allowed.rows(width, height));
    for plane in 0..info.n_planes() {
        let (Ok(old), Ok(new)) = (before.plane_data(plane), after.plane_data(plane)) else { continue };
        let stride =
            |f: &gst_video::VideoFrameRef<&gst::BufferRef>| f.plane_stride()[plane as usize] as usize;
        let components: Vec<usize> =
            (0..info.n_components() as usize).filter(|c| format.plane()[*c] == plane).collect();
        for (row, (old, new)) in old.chunks(stride(before)).zip(new.chunks(stride(after))).enumerate() {
            if old == new {
                continue;
            }
            for c in &components {
                let y = row << format.h_sub()[*c];
                if y >= height {
                    continue;
                }
                let allowed = rows.at(y);
                let outside =
                    |at: &usize| allowed.get(*at << format.w_sub()[*c]).is_some_and(|allowed| !allowed);
                let step = format.pixel_stride()[*c] as usize;
                if step == 0 {
                    changed += triples(old, new, *c).filter(outside).count() as u64;
                    continue;
                }
                let bytes = format.depth()[*c].div_ceil(8) as usize;
                // GStreamer 1.22 reports an offset of 1 for P010's Cr, which begins at byte 2.
                let offset = (format.poffset()[*c] as usize).next_multiple_of(bytes);
                let mut last = None;
                changed += differing(old, new)
                    .filter_map(|at| at.checked_sub(offset))
                    .filter(|at| at % step < bytes)
                    .map(|at| at / step)
                    // A sample whose bytes differ counts once, by its first byte.
                    .filter(|at| last.replace(*at) != Some(*at))
                    .filter(outside)
                    .count() as u64;
            }
        }
    }
    changed
}

/// The samples of component `c` that differ in two lines of v210. It is the only format whose samples begin within bytes: each
/// word holds three, in the order Cb, Y', Cr, Y'.
fn triples<'a>(old: &'a [u8], new: &'a [u8], c: usize) -> impl Iterator<Item = usize> + 'a {
    let (old, new) = (old.as_chunks::<4>().0, new.as_chunks::<4>().0);
    let words = old.iter().zip(new).map(|(a, b)| u32::from_le_bytes(*a) ^ u32::from_le_bytes(*b)).enumerate();
    let parts = words.filter(|(_, differ)| *differ != 0).flat_map(|(i, differ)| {
        let part = move |part: usize| (differ >> (10 * part) & 1023 != 0).then_some(3 * i + part);
        (0..3).filter_map(part)
    });
    parts.filter_map(move |at| match (at % 4, c) {
        (1 | 3, 0) => Some(at / 2),
        (0, 1) | (2, 2) => Some(at / 4),
        _ => None,
    })
}

/// Positions where two lines differ. Most bytes are equal, so many are compared at a time: this runs on the streaming thread.
fn differing<'a>(old: &'a [u8], new: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    const PART: usize = 64;
    let parts = old.chunks(PART).zip(new.chunks(PART)).enumerate().filter(|(_, (old, new))| old != new);
    parts.flat_map(|(part, (old, new))| {
        let bytes = old.iter().zip(new).enumerate().filter(|(_, (old, new))| old != new);
        bytes.map(move |(at, _)| part * PART + at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(format: gst_video::VideoFormat, touch: &[(usize, u8)], allowed: &Allowed) -> u64 {
        gst::init().unwrap();
        let info = gst_video::VideoInfo::builder(format, 32, 16).build().unwrap();
        let buffer = |touch: &[(usize, u8)]| {
            let mut bytes = vec![7u8; info.size()];
            touch.iter().for_each(|(at, v)| bytes[*at] = *v);
            gst::Buffer::from_mut_slice(bytes)
        };
        let (a, b) = (buffer(&[]), buffer(touch));
        let frame = |b| gst_video::VideoFrameRef::from_buffer_ref_readable(b, &info).unwrap();
        changed_outside(&frame(a.as_ref()), &frame(b.as_ref()), allowed)
    }

    #[test]
    fn only_changes_outside_the_mask_count() {
        // A mask of 8 x 4 cells of 4 pixels; one cell set, its neighbours are margin.
        let mut mask = vec![0; 32];
        mask[8 + 1] = 255;
        let allowed = Allowed::new(&mask, 8, 4, (0, 0));
        let nothing = Allowed::default();
        for format in
            [gst_video::VideoFormat::Nv12, gst_video::VideoFormat::Uyvy, gst_video::VideoFormat::Rgba]
        {
            assert_eq!(changed(format, &[], &nothing), 0);
        }
        let rgba = |x: usize, y: usize| 4 * (y * 32 + x) + 1;
        let touched = [(rgba(5, 5), 9), (rgba(30, 1), 9), (rgba(30, 15), 9)];
        assert_eq!(changed(gst_video::VideoFormat::Rgba, &touched, &allowed), 2);
        assert_eq!(changed(gst_video::VideoFormat::Rgba, &touched, &nothing), 3);
        // NV12: luma at (31, 15), and the chroma pair at (4, 4), which the mask covers.
        let touched = [(15 * 32 + 31, 0), (32 * 16 + 2 * 32 + 4, 0), (32 * 16 + 2 * 32 + 5, 0)];
        assert_eq!(changed(gst_video::VideoFormat::Nv12, &touched, &allowed), 1);
        assert_eq!(changed(gst_video::VideoFormat::Nv12, &touched, &nothing), 3);
        // UYVY: luma of pixel 5 lies at byte 11 of its row.
        assert_eq!(changed(gst_video::VideoFormat::Uyvy, &[(5 * 64 + 11, 0)], &allowed), 0);
        assert_eq!(changed(gst_video::VideoFormat::Uyvy, &[(15 * 64 + 63, 0)], &allowed), 1);
        eprintln!(
            "{:?}",
            gst_video::VideoFormatInfo::from_format(gst_video::VideoFormat::P01010le).poffset()
        );
        // P010: both bytes of a luma at (31, 15), and one of the Cr pair at (4, 4), which the mask covers.
        let touched = [(15 * 64 + 62, 0), (15 * 64 + 63, 0), (32 * 32 + 2 * 64 + 11, 0)];
        assert_eq!(changed(gst_video::VideoFormat::P01010le, &touched, &allowed), 1);
        assert_eq!(changed(gst_video::VideoFormat::P01010le, &touched, &nothing), 2);
        // v210, lines of 128 bytes: all three of the word 1 of pixel 30's group, Y' of pixel 31 and its neighbours.
        let v210 = 15 * 128 + 16 * 5;
        assert_eq!(changed(gst_video::VideoFormat::V210, &[(v210, 0)], &nothing), 1);
        assert_eq!(changed(gst_video::VideoFormat::V210, &[(v210 + 4, 0), (v210 + 6, 0)], &allowed), 1);
        assert_eq!(changed(gst_video::VideoFormat::V210, &[(5 * 128, 0)], &allowed), 0);
    }

    #[test]
    fn a_moved_mask_allows_changes_at_its_new_position() {
        let mut mask = vec![0; 64];
        mask[0] = 255;
        let moved = Allowed::new(&mask, 8, 8, (16, 0));
        let row = moved.rows(32, 32).at(1).to_vec();
        assert!(row[18] && !row[2], "{row:?}");
        assert!(!moved.rows(32, 32).at(20).contains(&true));
    }
}
