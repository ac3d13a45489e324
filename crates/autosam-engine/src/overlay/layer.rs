//! Blends the overlay into the values of one plane, in every format.

use super::Style;
use autosam_frame::simd::simd;
use autosam_frame::{Component, FrameInfo, Packing, PlaneMut};
use std::ops::Range;

/// How the overlay is blended into one plane.
pub(super) struct Layer {
    packing: Packing,
    /// Number of values and of lines in a block of 2 × 2 pixels.
    block: (usize, usize),
    /// Number of values of a line, and of lines, that belong to the frame.
    size: (usize, usize),
    /// A value inside each line's last block that is not part of the frame: the second luma value of the last pair if
    /// the width is odd.
    beyond: Option<usize>,
    tint: Paint,
    line: Paint,
}

/// How values are blended.
#[expect(
    clippy::large_enum_variant,
    reason = "a few live at a time, and none is allocated when a frame is drawn on"
)]
enum Paint {
    /// For [`Packing::Bytes`].
    Bytes(Pattern),
    /// For more than 8 bits.
    Wide(Wide),
}

impl Layer {
    /// The layers of a frame's planes, which have `sizes` (bytes of a line, number of lines).
    pub(super) fn of(info: &FrameInfo, sizes: &[(usize, usize)], style: &Style) -> [Option<Self>; 3] {
        let tint = (style.opacity.clamp(0.0, 1.0) * 256.0).round() as u16;
        let color = if info.format.packed().is_some() { style.color } else { info.yuv(style.color) };
        let packing = info.format.packing();
        std::array::from_fn(|plane| {
            let &(bytes, rows) = sizes.get(plane)?;
            let (colors, count, lines) = block(info, plane, color);
            let values = &colors[..count];
            let luma =
                info.format.yuv().map(|yuv| yuv.luma).filter(|luma| luma.plane == plane && luma.step > 1);
            let beyond =
                luma.filter(|_| info.width % 2 == 1).map(|luma| luma.step * info.width + luma.offset);
            let paint = |alpha: u16| match packing {
                Packing::Bytes => Paint::Bytes(Pattern::new(values, alpha)),
                _ => Paint::Wide(Wide::new(packing, values, alpha)),
            };
            let (across, repeats) =
                (packing.values(bytes), if info.format.packed().is_some() { 2 } else { 1 });
            // Groups of v210 can end beyond the frame.
            let across = if packing == Packing::Triples { 4 * info.width.div_ceil(2) } else { across };
            let (tint, line) = (paint(tint), paint(256));
            Some(Self {
                packing,
                block: (repeats * values.len(), lines),
                size: (across, rows),
                beyond,
                tint,
                line,
            })
        })
    }

    /// Draws on the blocks `across` in row `down` of blocks.
    pub(super) fn draw(&self, plane: &mut PlaneMut, across: Range<usize>, down: usize, line: bool) {
        let paint = if line { &self.line } else { &self.tint };
        let (start, end) = (self.block.0 * across.start, (self.block.0 * across.end).min(self.size.0));
        for y in self.block.1 * down..(self.block.1 * (down + 1)).min(self.size.1) {
            let row = &mut plane.data[y * plane.stride..][..self.packing.bytes(end)];
            match paint {
                Paint::Bytes(pattern) => {
                    let beyond = self.beyond.and_then(|at| row.get(at).map(|v| (at, *v)));
                    pattern.blend(&mut row[start..]);
                    if let Some((at, v)) = beyond {
                        row[at] = v;
                    }
                }
                // A value beyond the frame is the last one of its line.
                Paint::Wide(wide) => {
                    wide.blend(row, start..self.beyond.map_or(end, |beyond| end.min(beyond)))
                }
            }
        }
    }
}

/// The values of one line of a block in `plane` (of half a block for packed RGB), each with its colour, or `None` if it
/// is not drawn on; their number; and the number of lines of a block.
fn block(info: &FrameInfo, plane: usize, color: [u8; 3]) -> ([Option<u8>; 4], usize, usize) {
    let (mut values, mut count, mut lines) = ([None; 4], 0, 2);
    if let Some((step, order)) = info.format.packed() {
        order.iter().zip(color).for_each(|(at, c)| values[*at] = Some(c));
        return (values, step, lines);
    }
    let mut put = |component: Component, columns: usize, c: u8| {
        let own = columns * component.step;
        count = count.max(own);
        (component.offset..own).step_by(component.step).for_each(|at| values[at] = Some(c));
    };
    if let Some(yuv) = info.format.yuv() {
        if yuv.luma.plane == plane {
            put(yuv.luma, 2, color[0]);
        }
        let chroma = yuv.chroma.iter().flat_map(|chroma| chroma.components.map(|c| (c, chroma.rows)));
        for ((component, rows), c) in chroma.zip([color[1], color[2]]).filter(|((c, _), _)| c.plane == plane)
        {
            put(component, 1, c);
            lines = 2 / rows;
        }
    }
    (values, count, lines)
}

/// Bytes that [`Pattern`] blends at a time; a multiple of any pixel's size.
const PERIOD: usize = 96;

/// How each byte of pixels in a row is blended: `(v · keep + add) / 256`, which fits 16 bits.
struct Pattern {
    keep: [u16; PERIOD],
    add: [u16; PERIOD],
}

impl Pattern {
    /// `bytes`: the repeating colours of a few neighbouring bytes, `None` for bytes that are not drawn on. `alpha` of
    /// 256 is the opacity.
    fn new(bytes: &[Option<u8>], alpha: u16) -> Self {
        let of = |i: usize| bytes[i % bytes.len()];
        Self {
            keep: std::array::from_fn(|i| of(i).map_or(256, |_| 256 - alpha)),
            add: std::array::from_fn(|i| of(i).map_or(0, |c| u16::from(c) * alpha.min(256)) + 128),
        }
    }

    /// `row` begins at a pixel.
    fn blend(&self, row: &mut [u8]) {
        simd(
            #[inline(always)]
            || {
                let blended = |v: u8, i: usize| ((u16::from(v) * self.keep[i] + self.add[i]) >> 8) as u8;
                let (periods, rest) = row.as_chunks_mut::<PERIOD>();
                for period in periods {
                    *period = std::array::from_fn(|i| blended(period[i], i));
                }
                for (i, v) in rest.iter_mut().enumerate() {
                    *v = blended(*v, i);
                }
            },
        );
    }
}

/// Words that [`Wide`] blends at a time; a multiple of the period of the colours.
const WORDS: usize = 16;

/// [`Pattern`] for values of more than 8 bits. Unused bits are unchanged.
struct Wide {
    packing: Packing,
    keep: u32,
    /// Repeating terms of neighbouring values, for a row that begins with value 0.
    add: [u32; 4],
}

impl Wide {
    /// `values`: the 8-bit colours of 1, 2 or 4 neighbouring values, all of which are drawn on.
    fn new(packing: Packing, values: &[Option<u8>], alpha: u16) -> Self {
        let color =
            |i: usize| u32::from(values[i % values.len()].unwrap_or_default()) << (packing.bits() - 8);
        let alpha = u32::from(alpha);
        Self { packing, keep: 256 - alpha, add: std::array::from_fn(|i| color(i) * alpha + 128) }
    }

    /// Draws on `values` of `row`.
    fn blend(&self, row: &mut [u8], values: Range<usize>) {
        match self.packing {
            Packing::Bytes => {}
            Packing::Words { bits, shift } => self.blend_words(&mut row[2 * values.start..], bits, shift),
            Packing::Triples => self.blend_triples(row, values),
        }
    }

    /// `word` with the `bits` bits from `shift` on blended.
    #[inline(always)]
    fn blended(&self, word: u32, bits: u32, shift: u32, add: u32) -> u32 {
        let mask = ((1 << bits) - 1) << shift;
        let value = ((((word & mask) >> shift) * self.keep + add) >> 8) << shift;
        word & !mask | value
    }

    /// `row` begins at a block.
    fn blend_words(&self, row: &mut [u8], bits: u32, shift: u32) {
        let (words, _) = row.as_chunks_mut::<2>();
        let add: [u32; WORDS] = std::array::from_fn(|i| self.add[i % 4]);
        simd(
            #[inline(always)]
            || {
                let one = |word: [u8; 2], i: usize| {
                    let word = u32::from(u16::from_le_bytes(word));
                    (self.blended(word, bits, shift, add[i]) as u16).to_le_bytes()
                };
                let (periods, rest) = words.as_chunks_mut::<WORDS>();
                for period in periods {
                    *period = std::array::from_fn(|i| one(period[i], i));
                }
                for (i, word) in rest.iter_mut().enumerate() {
                    *word = one(*word, i);
                }
            },
        );
    }

    fn blend_triples(&self, row: &mut [u8], values: Range<usize>) {
        let bits = self.packing.bits();
        let (words, _) = row.as_chunks_mut::<4>();
        // Words whose three values are all drawn on. Single values precede and follow them.
        let first = values.start.div_ceil(3);
        let last = (values.end / 3).max(first);
        for value in (values.start..values.end.min(3 * first)).chain((3 * last).max(values.start)..values.end)
        {
            let word = &mut words[value / 3];
            let shift = bits * (value % 3) as u32;
            *word = self.blended(u32::from_le_bytes(*word), bits, shift, self.add[value % 4]).to_le_bytes();
        }
        let add: [[u32; WORDS]; 3] =
            std::array::from_fn(|part| std::array::from_fn(|i| self.add[(3 * (first + i) + part) % 4]));
        simd(
            #[inline(always)]
            || {
                let one = |word: [u8; 4], i: usize| {
                    let parts = (0..3).fold(u32::from_le_bytes(word), |word, part| {
                        self.blended(word, bits, bits * part, add[part as usize][i])
                    });
                    parts.to_le_bytes()
                };
                let (periods, rest) = words[first..last].as_chunks_mut::<WORDS>();
                for period in periods {
                    *period = std::array::from_fn(|i| one(period[i], i));
                }
                for (i, word) in rest.iter_mut().enumerate() {
                    *word = one(*word, i);
                }
            },
        );
    }
}
