//! COCO's run lengths of masks (`maskApi.c`): column by column, differences to the run two before, five bits per character.

/// The most characters of one number: 32 bits at five bits each.
#[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "labelling uses it"))]
const LONGEST: u32 = 7;

/// Lengths of the alternating runs of 0 and of other values, column by column, starting with 0.
pub(crate) fn runs(mask: &[u8], width: usize, height: usize) -> Vec<u32> {
    let (mut out, mut run, mut inside) = (Vec::new(), 0u32, false);
    for x in 0..width {
        for y in 0..height {
            if (mask[y * width + x] > 0) != inside {
                out.push(run);
                (run, inside) = (0, !inside);
            }
            run += 1;
        }
    }
    out.push(run);
    out
}

pub(crate) fn compressed(runs: &[u32]) -> String {
    let mut out = String::new();
    for (i, run) in runs.iter().enumerate() {
        let mut x = i64::from(*run);
        if i > 2 {
            x -= i64::from(runs[i - 2]);
        }
        loop {
            let low = (x & 0x1f) as u8;
            x >>= 5;
            let more = if low & 0x10 != 0 { x != -1 } else { x != 0 };
            out.push(char::from(48 + low + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    out
}

/// The mask of `width × height` bytes, 255 or 0, of [`compressed`] runs; `None` if they are damaged or of another size.
#[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "labelling uses it"))]
pub(crate) fn mask(compressed: &str, width: usize, height: usize) -> Option<Vec<u8>> {
    let total = width.checked_mul(height)?;
    let (mut mask, mut at, mut inside) = (vec![0; total], 0, false);
    let (mut runs, mut x, mut shift) = (Vec::new(), 0i64, 0u32);
    for c in compressed.bytes() {
        let bits = i64::from(c.checked_sub(48).filter(|bits| *bits < 64)?);
        x |= (bits & 0x1f) << shift;
        shift += 5;
        if bits & 0x20 != 0 {
            if shift >= 5 * LONGEST {
                return None;
            }
            continue;
        }
        if bits & 0x10 != 0 {
            x |= -1 << shift;
        }
        if runs.len() > 2 {
            x += runs[runs.len() - 2];
        }
        let length = usize::try_from(x).ok().filter(|length| *length <= total - at)?;
        if inside {
            (at..at + length).for_each(|i| mask[i % height * width + i / height] = 255);
        }
        at += length;
        runs.push(x);
        (x, shift, inside) = (0, 0, !inside);
    }
    (at == total && shift == 0).then_some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks and their encodings by pycocotools 2.0.
    #[test]
    fn run_lengths_equal_those_of_pycocotools() {
        let mask = [0, 0, 0, 0, 0, 255, 255, 0, 0, 255, 255, 0];
        assert_eq!(runs(&mask, 4, 3), [4, 2, 1, 2, 3]);
        assert_eq!(compressed(&[4, 2, 1, 2, 3]), "42102");
        assert_eq!(runs(&[255; 6], 3, 2), [0, 6]);
        // Differences that are negative or need several characters.
        assert_eq!(compressed(&[100, 1, 2000, 31]), "T31`n1n0");
    }

    #[test]
    fn masks_survive_the_way_there_and_back_and_damage_is_noticed() {
        let (w, h) = (97, 61);
        let blob =
            |i: usize| ((i % w) as f32 - 40.0).hypot((i / w) as f32 - 30.0) < 17.0 || i.is_multiple_of(53);
        let original: Vec<u8> = (0..w * h).map(|i| if blob(i) { 255 } else { 0 }).collect();
        for original in [original, vec![0; w * h], vec![255; w * h]] {
            let text = compressed(&runs(&original, w, h));
            assert_eq!(mask(&text, w, h), Some(original));
            for (text, w, h) in [
                (&text[..text.len() - 1], w, h),
                (&text, w, h + 1),
                ("ooooooooo", w, h),
                ("é", w, h),
                (" ", w, h),
            ] {
                assert_eq!(mask(text, w, h), None, "{text:.20}");
            }
        }
    }
}
