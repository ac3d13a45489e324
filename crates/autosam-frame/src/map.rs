//! Input and output of a model: RGB at the network's size, and probabilities. Independent of tensors.

/// A frame at the network's size: packed RGB, `width × height × 3` bytes, the longest side equal to the network's input
/// size. Not padded; the model pads its input itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelInput {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

/// Polyp probability of every pixel of a [`ModelInput`]; 0 to 255 stand for 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbMap {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// Axes about which an input is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// Left becomes right.
    pub across: bool,
    /// Top becomes bottom.
    pub down: bool,
}

impl Mirror {
    /// Flips `pixels`, rows of `width` elements. Flipping twice restores them.
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
    fn flipping_reverses_rows_or_their_order() {
        let pixels = [1, 2, 3, 4, 5, 6];
        let of = |across, down| Mirror { across, down }.of(&pixels, 3);
        assert_eq!(of(false, false), pixels);
        assert_eq!(of(true, false), [3, 2, 1, 6, 5, 4]);
        assert_eq!(of(false, true), [4, 5, 6, 1, 2, 3]);
        assert_eq!(of(true, true), [6, 5, 4, 3, 2, 1]);
    }
}
