//! The images and masks of these tests: a disc in the centre of each.

use image::{GrayImage, Luma, Rgb, RgbImage};
use std::path::{Path, PathBuf};

/// Writes the mask of the image with this number to a path.
pub type DrawMask = Box<dyn Fn(u32, &Path)>;

pub const SIZE: (u32, u32) = (96, 80);

/// Whether the pixel is in a disc in the centre that covers a sixth of the image.
pub fn disc(x: u32, y: u32) -> bool {
    x.abs_diff(48).pow(2) + y.abs_diff(40).pow(2) < 400
}

pub fn photo(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        Rgb([150 + (x * y % 9) as u8, 80 + (x % 7) as u8 + (y % 5) as u8, 60 + (x * 3 % 11) as u8])
    })
}

/// Three images `N.jpg` in `dir/images`, and masks that `mask` writes to `dir/masks/N.ENDING`.
pub fn set(dir: &Path, ending: &str, mask: impl Fn(u32, &Path)) -> PathBuf {
    for kind in ["images", "masks"] {
        std::fs::create_dir_all(dir.join(kind)).unwrap();
    }
    for i in 0..3 {
        photo(SIZE.0, SIZE.1).save(dir.join(format!("images/{i}.jpg"))).unwrap();
        mask(i, &dir.join(format!("masks/{i}.{ending}")));
    }
    dir.to_owned()
}

pub fn grey(value: u8) -> impl Fn(u32, &Path) {
    move |_, path| {
        GrayImage::from_fn(SIZE.0, SIZE.1, |x, y| Luma([if disc(x, y) { value } else { 0 }]))
            .save(path)
            .unwrap();
    }
}

/// Writes a PNG with a palette and indices of 8 bits.
pub fn palette_png(path: &Path, colours: &[u8], index: impl Fn(u32, u32) -> u8) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(colours.to_vec());
    let indices: Vec<u8> =
        (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| (x, y))).map(|(x, y)| index(x, y)).collect();
    encoder.write_header().unwrap().write_image_data(&indices).unwrap();
}

/// Writes an uncompressed TIFF with a palette: 0 is black, 1 is `colour`.
pub fn palette_tiff(path: &Path, colour: [u16; 3]) {
    let (w, h) = SIZE;
    let pixels: Vec<u8> = (0..h).flat_map(|y| (0..w).map(move |x| u8::from(disc(x, y)))).collect();
    let entries = 9u16;
    let map_at = 8 + 2 + 12 * u32::from(entries) + 4;
    let pixels_at = map_at + 2 * 768;
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend(entries.to_le_bytes());
    // Tag, kind (3: 16 bits, 4: 32 bits), count, value.
    for (tag, kind, count, value) in [
        (256u16, 4u16, 1u32, w),
        (257, 4, 1, h),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 3),
        (273, 4, 1, pixels_at),
        (278, 4, 1, h),
        (279, 4, 1, w * h),
        (320, 3, 768, map_at),
    ] {
        file.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
        file.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
    }
    file.extend([0; 4]);
    for channel in colour {
        for i in 0..256 {
            file.extend(if i == 1 { channel } else { 0 }.to_le_bytes());
        }
    }
    file.extend(pixels);
    std::fs::write(path, file).unwrap();
}
