//! Image corruptions for training: uneven light, blur, compression.

use crate::{Error, Result};
use autosam_frame::map::ModelInput;
use image::codecs::jpeg::JpegEncoder;
use image::{RgbImage, imageops};
use rand::Rng;

/// A linear brightness gradient across the image.
pub struct Light {
    /// Change per pixel to the right and down.
    slope: [f32; 2],
    middle: [f32; 2],
}

impl Light {
    /// Draws a gradient in a random direction, with up to `most` more at one edge and as much less at the opposite one.
    pub fn draw(most: f32, (width, height): (usize, usize), rng: &mut impl Rng) -> Self {
        let angle = rng.random_range(0.0..std::f32::consts::TAU);
        let strength = most * rng.random_range(0.0..=1.0f32);
        let slope =
            [2.0 * strength * angle.cos() / width as f32, 2.0 * strength * angle.sin() / height as f32];
        Self { slope, middle: [width as f32 / 2.0, height as f32 / 2.0] }
    }

    /// Factor at a pixel.
    pub fn at(&self, x: usize, y: usize) -> f32 {
        1.0 + self.slope[0] * (x as f32 - self.middle[0]) + self.slope[1] * (y as f32 - self.middle[1])
    }
}

/// Gaussian blur of `sigma` pixels.
pub fn blur(sample: &mut ModelInput, sigma: f32) -> Result<()> {
    through(sample, |rgb| Ok(imageops::fast_blur(&rgb, sigma)))
}

/// Compresses to JPEG of `quality` (1 to 100) and back.
pub fn jpeg(sample: &mut ModelInput, quality: u8) -> Result<()> {
    through(sample, |rgb| {
        let mut bytes = Vec::new();
        let coded = JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(&rgb);
        let decoded = coded.and_then(|()| image::load_from_memory(&bytes));
        Ok(decoded.map_err(|e| Error::invalid(format!("JPEG in memory: {e}")))?.into_rgb8())
    })
}

/// Applies `change`, which must keep the size, to the pixels.
fn through(sample: &mut ModelInput, change: impl FnOnce(RgbImage) -> Result<RgbImage>) -> Result<()> {
    let (w, h) = (sample.width as u32, sample.height as u32);
    let Some(rgb) = RgbImage::from_raw(w, h, std::mem::take(&mut sample.rgb)) else {
        return Err(Error::invalid(format!("the image is not {w}x{h}")));
    };
    sample.rgb = change(rgb)?.into_raw();
    Ok(())
}
