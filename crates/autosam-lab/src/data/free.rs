//! Extracts polyp-free parts of images with polyps.

use super::{Dataset, Item, Tile};
use crate::Result;
use autosam_frame::Frame;
use autosam_frame::region::CropMode;
use image::GrayImage;
use rayon::prelude::*;

/// Cells along the longer side of the search grid of [`free_square`].
const FREE_GRID: u32 = 48;

/// The largest square of `mask` without a polyp in it or within one cell of it; `None` if it is smaller than four
/// tenths of the shorter side.
fn free_square(mask: &GrayImage) -> Option<Tile> {
    let (w, h) = mask.dimensions();
    let cell = w.max(h).div_ceil(FREE_GRID).max(1);
    let (columns, rows) = ((w / cell) as usize, (h / cell) as usize);
    let mut taken = vec![false; columns * rows];
    for (x, y, _) in mask.enumerate_pixels().filter(|(_, _, v)| v.0[0] > 0) {
        let (cx, cy) = ((x / cell) as usize, (y / cell) as usize);
        for y in cy.saturating_sub(1)..(cy + 2).min(rows) {
            for x in cx.saturating_sub(1)..(cx + 2).min(columns) {
                taken[y * columns + x] = true;
            }
        }
    }
    // Side of the largest free square that ends at each cell.
    let mut side = vec![0u32; columns * rows];
    let mut best = (0, 0, 0);
    for y in 0..rows {
        for x in 0..columns {
            let at = y * columns + x;
            let before =
                |dx: usize, dy: usize| if x < dx || y < dy { 0 } else { side[at - dx - dy * columns] };
            side[at] = if taken[at] { 0 } else { 1 + before(1, 0).min(before(0, 1)).min(before(1, 1)) };
            best = best.max((side[at], x as u32, y as u32));
        }
    }
    let (side, x, y) = best;
    let (width, x, y) = (side * cell, (x + 1 - side.min(x + 1)) * cell, (y + 1 - side.min(y + 1)) * cell);
    (width * 10 >= w.min(h) * 4 && width > 0).then_some(Tile { x, y, width, height: width })
}

impl Dataset {
    /// Crops each image to the largest square within the endoscope's image that is free of polyps and their
    /// surroundings. Images whose square would be smaller than four tenths of the shorter side are left out.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn polyp_free(mut self) -> Result<Self> {
        let parts = self.items.par_iter().map(|item| {
            let pair = item.load()?;
            let area = CropMode::Auto.of(&Frame::rgb_image(&pair.rgb))?;
            Ok(free_square(&pair.part(area).mask).map(|square| Item {
                name: format!("{}@free", item.name),
                tile: Some(Tile { x: area.left as u32 + square.x, y: area.top as u32 + square.y, ..square }),
                ..item.clone()
            }))
        });
        self.items = parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_square_keeps_a_distance_from_polyps() {
        let mask = GrayImage::from_fn(120, 80, |x, _| image::Luma([if x < 30 { 255 } else { 0 }]));
        let square = free_square(&mask).unwrap();
        assert!(square.x >= 31 && square.x + square.width <= 120, "{square:?}");
        assert!(square.width > 70 && square.height == square.width, "{square:?}");
        assert_eq!(free_square(&GrayImage::from_pixel(120, 80, image::Luma([255]))), None);
        let middle = GrayImage::from_fn(100, 100, |x, y| {
            image::Luma([if (30..70).contains(&x) && (30..70).contains(&y) { 255 } else { 0 }])
        });
        assert_eq!(free_square(&middle), None, "a rim of 30 is less than four tenths");
    }

    #[test]
    fn polyp_free_crops_contain_no_polyp() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images", "masks"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (name, polyp) in [("a", 20), ("b", 200)] {
            image::RgbImage::from_pixel(100, 80, image::Rgb([150, 90, 80]))
                .save(dir.path().join(format!("images/{name}.png")))
                .unwrap();
            GrayImage::from_fn(100, 80, |x, _| image::Luma([if x < polyp { 255 } else { 0 }]))
                .save(dir.path().join(format!("masks/{name}.png")))
                .unwrap();
        }
        let set = Dataset::open(dir.path()).unwrap().polyp_free().unwrap();
        assert_eq!(set.items.len(), 1);
        let pair = set.items[0].load().unwrap();
        assert!(pair.rgb.width() > 60 && pair.mask.iter().all(|v| *v == 0));
        assert_eq!(set.items[0].name, "a@free");
    }
}
