//! What the engine asks of a model: network-sized RGB in, probabilities out. No tensor shows here.

use crate::Result;

/// A frame at the network's size: packed RGB, `width × height × 3` bytes, the longest side equal to
/// [`Segmenter::input_size`]. Never padded: padding is the model's own business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

/// Polyp probability for every pixel of the [`Sample`] it was made from: 0 to 255 stand for 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbMap {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// What a picture is mirrored about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// Left becomes right.
    pub across: bool,
    /// Top becomes bottom.
    pub down: bool,
}

impl Mirror {
    /// `pixels`, rows of `width` elements, mirrored; mirroring again gives them back.
    pub fn of<T: Copy>(self, pixels: &[T], width: usize) -> Vec<T> {
        let line = |row: &[T]| -> Vec<T> {
            if self.across { row.iter().rev().copied().collect() } else { row.to_vec() }
        };
        let rows = pixels.chunks_exact(width.max(1));
        if self.down { rows.rev().flat_map(line).collect() } else { rows.flat_map(line).collect() }
    }
}

/// A model as the engine sees it.
pub trait Segmenter: Send {
    /// Longest side of the samples it takes, in pixels.
    fn input_size(&self) -> usize;
    /// True where it computes on a GPU, so that the CPU's threads have time for frames.
    fn spares_the_cpu(&self) -> bool {
        false
    }
    /// One mask for one sample; `out` is reused between calls.
    fn segment(&mut self, sample: &Sample, out: &mut ProbMap) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_turns_rows_or_their_order() {
        let pixels = [1, 2, 3, 4, 5, 6];
        let of = |across, down| Mirror { across, down }.of(&pixels, 3);
        assert_eq!(of(false, false), pixels);
        assert_eq!(of(true, false), [3, 2, 1, 6, 5, 4]);
        assert_eq!(of(false, true), [4, 5, 6, 1, 2, 3]);
        assert_eq!(of(true, true), [6, 5, 4, 3, 2, 1]);
    }
}
