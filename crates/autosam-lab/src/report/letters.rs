//! Small letters for captions in images: three pixels by five, drawn twice as large.

use image::{Rgb, RgbImage};

/// Size of a letter's dot in pixels.
const DOT: u32 = 2;

/// Width of a letter with its gap, and height of a line.
pub(super) const ADVANCE: u32 = 4 * DOT;
pub(super) const LINE: u32 = 7 * DOT;

/// Rows of a letter from the top, one octal digit each, whose bits are dots.
fn rows(letter: char) -> u16 {
    match letter.to_ascii_uppercase() {
        ' ' => 0o00000,
        '0' => 0o75557,
        '1' => 0o26227,
        '2' => 0o71747,
        '3' => 0o71717,
        '4' => 0o55711,
        '5' => 0o74717,
        '6' => 0o74757,
        '7' => 0o71122,
        '8' => 0o75757,
        '9' => 0o75717,
        'A' => 0o25755,
        'B' => 0o65656,
        'C' => 0o34443,
        'D' => 0o65556,
        'E' => 0o74647,
        'F' => 0o74644,
        'G' => 0o34553,
        'H' => 0o55755,
        'I' => 0o72227,
        'J' => 0o11152,
        'K' => 0o55655,
        'L' => 0o44447,
        'M' => 0o57755,
        'N' => 0o65555,
        'O' => 0o25552,
        'P' => 0o65644,
        'Q' => 0o25563,
        'R' => 0o65655,
        'S' => 0o34216,
        'T' => 0o72222,
        'U' => 0o55557,
        'V' => 0o55552,
        'W' => 0o55775,
        'X' => 0o55255,
        'Y' => 0o55222,
        'Z' => 0o71247,
        '-' => 0o00700,
        '_' => 0o00007,
        '.' => 0o00002,
        ',' => 0o00024,
        ':' => 0o02020,
        '/' => 0o11244,
        '+' => 0o02720,
        '=' => 0o07070,
        '(' => 0o12221,
        ')' => 0o42224,
        _ => 0o77777,
    }
}

/// Writes `text` with its top left corner at (`x`, `y`), clipped to the image.
pub(super) fn write(image: &mut RgbImage, text: &str, (x, y): (u32, u32), color: Rgb<u8>) {
    for (i, letter) in (0..).zip(text.chars()) {
        let rows = rows(letter);
        for at in (0..15u32).filter(|at| rows >> (14 - at) & 1 == 1) {
            let (left, top) = (x + i * ADVANCE + at % 3 * DOT, y + at / 3 * DOT);
            for (dx, dy) in (0..DOT * DOT).map(|d| (d % DOT, d / DOT)) {
                if let Some(pixel) = image.get_pixel_mut_checked(left + dx, top + dy) {
                    *pixel = color;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_drawn_dot_by_dot_and_end_at_the_edge() {
        let mut image = RgbImage::new(13, 12);
        write(&mut image, "L1", (1, 1), Rgb([9; 3]));
        let dots: Vec<String> = (1..11)
            .step_by(2)
            .map(|y| {
                (1..13).step_by(2).map(|x| if image.get_pixel(x, y).0[0] > 0 { '#' } else { '.' }).collect()
            })
            .collect();
        assert_eq!(dots, ["#....#", "#...##", "#....#", "#....#", "###.##"]);
        assert_eq!(image.pixels().filter(|p| p.0[0] > 0).count(), 4 * (7 + 7));
    }
}
