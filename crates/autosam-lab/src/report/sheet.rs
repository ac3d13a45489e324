//! Contact sheets of images with masks.

use super::letters;
use crate::Result;
use autosam_engine::overlay::{Overlay, OverlayMode, Style};
use autosam_frame::FrameMut;
use autosam_frame::map::ProbMap;
use autosam_frame::mask::{Mask, MaskSettings};
use image::{GrayImage, RgbImage, imageops};

/// Width of a cell in pixels; cells are three quarters as high.
const CELL: u32 = 240;

/// Gap between a cell's edge and its image.
const GAP: u32 = 2;

/// A frame, the truth (255 polyp) and a model's map.
pub struct Case {
    /// Caption below the image, truncated at the start to fit; none if empty.
    pub label: String,
    pub rgb: RgbImage,
    pub truth: GrayImage,
    pub map: ProbMap,
}

/// A contact sheet in a report.
pub struct Sheet {
    /// The file's name before the number of the report's section.
    pub file: String,
    pub caption: String,
    pub image: RgbImage,
}

/// `cases` in rows of `columns`: the overlay in green, the truth's outline in white, the label below.
pub fn contact_sheet(cases: &[Case], columns: usize) -> Result<RgbImage> {
    let line = if cases.iter().any(|case| !case.label.is_empty()) { letters::LINE } else { 0 };
    let (columns, cell) = (columns.max(1) as u32, (CELL, CELL * 3 / 4));
    let rows = (cases.len() as u32).div_ceil(columns).max(1);
    let mut sheet = RgbImage::from_pixel(columns * cell.0, rows * (cell.1 + line), image::Rgb([24, 24, 24]));
    for (i, case) in (0..).zip(cases) {
        let (x, y) = (i % columns * cell.0, i / columns * (cell.1 + line));
        let rgb = drawn(case);
        let (w, h) = (f64::from(rgb.width()), f64::from(rgb.height()));
        let scale = (f64::from(cell.0 - 2 * GAP) / w).min(f64::from(cell.1 - 2 * GAP) / h);
        let side = |v: f64| ((v * scale) as u32).max(1);
        let small = imageops::resize(&rgb, side(w), side(h), imageops::FilterType::Triangle);
        let left = x + (cell.0 - small.width()) / 2;
        let top = y + (cell.1 - small.height()) / 2;
        imageops::replace(&mut sheet, &small, i64::from(left), i64::from(top));
        let room = ((cell.0 - 2 * GAP) / letters::ADVANCE) as usize;
        let cut = case.label.chars().count().saturating_sub(room);
        let label: String = case.label.chars().skip(cut).collect();
        letters::write(&mut sheet, &label, (x + GAP, y + cell.1), image::Rgb([220; 3]));
    }
    Ok(sheet)
}

/// A case's frame with its overlay and the truth's outline.
fn drawn(case: &Case) -> RgbImage {
    let mut rgb = case.rgb.clone();
    let (w, h) = (rgb.width() as usize, rgb.height() as usize);
    let truth = ProbMap {
        width: case.truth.width() as usize,
        height: case.truth.height() as usize,
        data: case.truth.as_raw().clone(),
    };
    let white = Style { color: [255, 255, 255], opacity: 0.0 };
    // Regions that fail the hysteresis threshold are already removed from the map.
    let settings = MaskSettings { hysteresis: 0.0, ..MaskSettings::default() };
    for (map, mode, style) in
        [(&case.map, OverlayMode::MaskContour, Style::default()), (&truth, OverlayMode::Contour, white)]
    {
        let mask = Mask::new(map.clone(), &settings);
        Overlay::new(&mask, w, h, mode, 0).draw(&mut FrameMut::rgb_image(&mut rgb), &style);
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_and_truth_are_drawn_in_every_cell() {
        let case = || Case {
            label: String::new(),
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

    #[test]
    fn a_label_is_written_below_its_cell_and_truncated_at_the_start() {
        let case = |label: &str| Case {
            label: label.to_owned(),
            rgb: RgbImage::from_pixel(80, 60, image::Rgb([90, 40, 40])),
            truth: GrayImage::new(80, 60),
            map: ProbMap { width: 1, height: 1, data: vec![0] },
        };
        let line = |case: Case| {
            let sheet = contact_sheet(&[case], 1).unwrap();
            assert_eq!(sheet.dimensions(), (240, 180 + letters::LINE));
            imageops::crop_imm(&sheet, 0, 180, 240, letters::LINE).to_image()
        };
        let end = "case13/0004 0.32s";
        let long = format!("{}{end}", "x".repeat(40));
        assert!(line(case(end)).pixels().any(|p| p.0 == [220; 3]));
        let tail = |image: &RgbImage, from: usize| {
            let from = GAP + letters::ADVANCE * from as u32;
            imageops::crop_imm(image, from, 0, letters::ADVANCE * 16, letters::LINE).to_image()
        };
        let room = ((240 - 2 * GAP) / letters::ADVANCE) as usize;
        assert_eq!(tail(&line(case(end)), 1), tail(&line(case(&long)), room - 16));
    }
}
