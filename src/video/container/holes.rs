//! Holes in compressed video: runs of zero bytes, left by bad sectors and incomplete downloads.

/// A run of this many zero bytes is a hole.
const HOLE: usize = 512;

/// Whether `data` contains a run of [`HOLE`] zero bytes. Runs at the end or before a start code do not count, because encoders
/// pad with them.
pub fn has_hole(data: &[u8]) -> bool {
    let mut at = 0;
    while at < data.len() {
        // With this step every run of the length is hit at least once.
        if data[at] != 0 {
            at += HOLE / 2;
            continue;
        }
        let begin = data[..at].iter().rposition(|v| *v != 0).map_or(0, |last| last + 1);
        let Some(length) = data[at..].iter().position(|v| *v != 0) else { return false };
        let end = at + length;
        if end - begin >= HOLE && data[end] != 1 {
            return true;
        }
        at = end + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_distinguished_from_padding_in_frames() {
        let frame = |zeros: usize, rest: &[u8]| [&[7; 700][..], &vec![0; zeros], rest].concat();
        assert!(has_hole(&frame(512, &[9; 20])) && has_hole(&frame(4096, &[9])));
        assert!(!has_hole(&frame(511, &[9; 20])));
        assert!(!has_hole(&frame(4096, &[])), "at the end");
        assert!(!has_hole(&frame(4096, &[1, 0xb3, 9])), "before a start code");
        assert!(has_hole(&[&[0; 600][..], &[9; 20]].concat()), "at the start");
        assert!(!has_hole(&[]));
        let twice = [frame(300, &[5; 100]), frame(600, &[5])].concat();
        assert!(has_hole(&twice));
    }
}
