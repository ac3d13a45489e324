//! What goes into a model and comes out of it: network-sized RGB, and probabilities. No tensor shows here.

/// A frame at the network's size: packed RGB, `width × height × 3` bytes, the longest side equal to
/// the network's input size. Never padded: padding is the model's own business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelInput {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

/// Polyp probability for every pixel of the [`ModelInput`] it was made from: 0 to 255 stand for 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbMap {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// What a sample is mirrored about.
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
