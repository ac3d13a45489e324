//! Pictures with their masks beside each other.

use crate::Result;
use crate::engine::mask::{Mask, MaskSettings};
use crate::engine::segmenter::ProbMap;
use crate::frame::FrameMut;
use crate::overlay::{Mark, OverlayMode, Style};
use image::{GrayImage, RgbImage, imageops};

/// Width of a cell in pixels; cells are three quarters as high.
const CELL: u32 = 240;

/// A frame, the truth (255 polyp) and what a model said.
pub struct Case {
    pub rgb: RgbImage,
    pub truth: GrayImage,
    pub map: ProbMap,
}

/// `cases` in rows of `columns`: the mark in green, the truth's outline in white.
pub fn contact_sheet(cases: &[Case], columns: usize) -> Result<RgbImage> {
    let (columns, cell) = (columns.max(1) as u32, (CELL, CELL * 3 / 4));
    let rows = (cases.len() as u32).div_ceil(columns).max(1);
    let mut sheet = RgbImage::from_pixel(columns * cell.0, rows * cell.1, image::Rgb([24, 24, 24]));
    for (i, case) in (0..).zip(cases) {
        let mut rgb = case.rgb.clone();
        let (w, h) = (rgb.width() as usize, rgb.height() as usize);
        let truth = ProbMap {
            width: case.truth.width() as usize,
            height: case.truth.height() as usize,
            data: case.truth.as_raw().clone(),
        };
        let white = Style { color: [255, 255, 255], opacity: 0.0 };
        for (map, mode, style) in
            [(&case.map, OverlayMode::MaskContour, Style::default()), (&truth, OverlayMode::Contour, white)]
        {
            let mask = Mask::new(map.clone(), &MaskSettings::default());
            Mark::new(&mask, w, h, mode, 0).draw(&mut FrameMut::rgb_image(&mut rgb), &style);
        }
        let scale = f64::from(cell.0 - 4) / w as f64;
        let scale = scale.min(f64::from(cell.1 - 4) / h as f64);
        let side = |v: usize| ((v as f64 * scale) as u32).max(1);
        let small = imageops::resize(&rgb, side(w), side(h), imageops::FilterType::Triangle);
        let (x, y) = (i % columns * cell.0, i / columns * cell.1);
        let left = x + (cell.0 - small.width()) / 2;
        let top = y + (cell.1 - small.height()) / 2;
        imageops::replace(&mut sheet, &small, i64::from(left), i64::from(top));
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_and_truth_are_drawn_in_every_cell() {
        let case = || Case {
            rgb: RgbImage::from_pixel(80, 60, image::Rgb([90, 40, 40])),
            truth: GrayImage::from_fn(80, 60, |x, _| image::Luma([if x > 50 { 255 } else { 0 }])),
            map: ProbMap {
                width: 40,
                height: 30,
                data: (0..1200).map(|i| if i % 40 < 15 { 255 } else { 0 }).collect(),
            },
        };
        let sheet = contact_sheet(&[case(), case(), case()], 2).unwrap();
        assert_eq!(sheet.dimensions(), (480, 360));
        for (x, y) in [(0, 0), (240, 0), (0, 180)] {
            let cell = imageops::crop_imm(&sheet, x, y, 240, 180).to_image();
            assert!(cell.pixels().any(|p| p.0[1] > 2 * u8::max(p.0[0], p.0[2])), "no green");
            assert!(cell.pixels().any(|p| p.0.iter().all(|v| *v > 180)), "no white");
        }
        assert!(imageops::crop_imm(&sheet, 240, 180, 240, 180).to_image().pixels().all(|p| p.0 == [24; 3]));
    }
}
