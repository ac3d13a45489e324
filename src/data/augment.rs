//! Random views of a picture and its mask, as published for polyps: colour jitter, flips, rotation, scale.

use super::Pair;
use crate::engine::segmenter::Sample;
use crate::frame::Frame;
use crate::frame::sample::{Sampler, fitted};
use crate::{Error, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How far a view may be from its picture. The defaults are AutoSAM's for polyps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Factors are drawn from 1 ± this.
    pub brightness: f32,
    pub contrast: f32,
    pub saturation: f32,
    /// Turn of the hue, as a part of the circle, ± this.
    pub hue: f32,
    /// Chance of a mirror image, for each axis.
    pub flip: f64,
    /// Degrees, ± this.
    pub rotation: f32,
    /// Smallest and largest scale.
    pub scale: [f32; 2],
    /// Sides are stretched against each other by a factor of up to 1 + this.
    pub aspect: f32,
    /// Shift, as a part of the side, ± this.
    pub shift: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
            flip: 0.5,
            rotation: 90.0,
            scale: [0.75, 1.25],
            aspect: 0.0,
            shift: 0.0,
        }
    }
}

impl Augment {
    /// No change at all: the sample that evaluation and live video see.
    pub fn none() -> Self {
        Self {
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            flip: 0.0,
            rotation: 0.0,
            scale: [1.0, 1.0],
            aspect: 0.0,
            shift: 0.0,
        }
    }

    /// Says which value cannot be used.
    pub fn validate(&self) -> Result<()> {
        let [low, high] = self.scale;
        if !(0.1..=10.0).contains(&low) || !(low..=10.0).contains(&high) {
            return Err(Error::invalid(format!(
                "augment.scale is [{low}, {high}]; it must rise, within 0.1 and 10"
            )));
        }
        for (name, value, most) in [
            ("brightness", self.brightness, 1.0),
            ("contrast", self.contrast, 1.0),
            ("saturation", self.saturation, 1.0),
            ("hue", self.hue, 0.5),
            ("flip", self.flip as f32, 1.0),
            ("rotation", self.rotation, 180.0),
            ("aspect", self.aspect, 3.0),
            ("shift", self.shift, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::invalid(format!(
                    "augment.{name} is {value}; it must be within 0 and {most}"
                )));
            }
        }
        Ok(())
    }

    /// A random view of `pair` for a network of `size`: the sample, and its mask on the padded square
    /// (`size × size`, 0 or 255). What lies outside the picture is black and not polyp.
    pub fn view(&self, pair: &Pair, size: usize, rng: &mut impl Rng) -> Result<(Sample, Vec<u8>)> {
        let spread = |rng: &mut dyn rand::RngCore, by: f32| 1.0 + by * rng.random_range(-1.0..=1.0f32);
        let (full_w, full_h) = (pair.rgb.width() as usize, pair.rgb.height() as usize);
        let (w, h) = fitted(full_w, full_h, size);

        let scale = rng.random_range(self.scale[0].ln()..=self.scale[1].ln()).exp();
        let stretch = ((1.0 + self.aspect).ln() * rng.random_range(-0.5..=0.5f32)).exp();
        let turn = (self.rotation * rng.random_range(-1.0..=1.0f32)).to_radians();
        let mirror = [0, 1].map(|_| if rng.random_bool(self.flip) { -1.0f32 } else { 1.0 });
        let shift = [w, h].map(|side| self.shift * side as f32 * rng.random_range(-1.0..=1.0f32));
        let factors = [self.brightness, self.contrast, self.saturation].map(|by| spread(rng, by));
        let hue = self.hue * rng.random_range(-1.0..=1.0f32);

        // Reduce first (the sampler averages), then turn at the scale of the result.
        let mut source = Sample::default();
        Sampler::new(((size as f32 * scale).round() as usize).max(1))
            .sample(&Frame::rgb_image(&pair.rgb), &mut source)?;
        let colour = Colour::new(factors, hue, &source);
        let (sin, cos) = turn.sin_cos();
        let mut out = Sample { width: w, height: h, rgb: vec![0; 3 * w * h] };
        let mut mask = vec![0; size * size];
        for y in 0..h {
            for x in 0..w {
                let (dx, dy) =
                    (x as f32 + 0.5 - w as f32 / 2.0 - shift[0], y as f32 + 0.5 - h as f32 / 2.0 - shift[1]);
                let (dx, dy) = (
                    (cos * dx + sin * dy) * mirror[0] * stretch,
                    (cos * dy - sin * dx) * mirror[1] / stretch,
                );
                let (sx, sy) = (dx + source.width as f32 / 2.0, dy + source.height as f32 / 2.0);
                if sx < 0.0 || sy < 0.0 || sx >= source.width as f32 || sy >= source.height as f32 {
                    continue;
                }
                let rgb = bilinear(&source, sx - 0.5, sy - 0.5);
                out.rgb[3 * (y * w + x)..][..3].copy_from_slice(&colour.apply(rgb));
                let at =
                    |v: f32, from: usize, to: usize| ((v * to as f32 / from as f32) as usize).min(to - 1);
                let (mx, my) = (at(sx, source.width, full_w), at(sy, source.height, full_h));
                mask[y * size + x] = pair.mask.as_raw()[my * full_w + mx];
            }
        }
        Ok((out, mask))
    }
}

fn bilinear(s: &Sample, x: f32, y: f32) -> [f32; 3] {
    let (x, y) = (x.clamp(0.0, (s.width - 1) as f32), y.clamp(0.0, (s.height - 1) as f32));
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(s.width - 1), (y0 + 1).min(s.height - 1));
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let at = |x: usize, y: usize, c: usize| f32::from(s.rgb[3 * (y * s.width + x) + c]);
    std::array::from_fn(|c| {
        let top = at(x0, y0, c) + fx * (at(x1, y0, c) - at(x0, y0, c));
        let bottom = at(x0, y1, c) + fx * (at(x1, y1, c) - at(x0, y1, c));
        top + fy * (bottom - top)
    })
}

/// Brightness, contrast, saturation and hue as one affine map of RGB; the hue is a turn about the grey
/// axis, which for the small angles used is HSV's.
struct Colour {
    matrix: [[f32; 3]; 3],
    offset: f32,
}

const GREY: [f32; 3] = [0.299, 0.587, 0.114];

impl Colour {
    fn new([brightness, contrast, saturation]: [f32; 3], hue: f32, source: &Sample) -> Self {
        let n = (source.rgb.len() / 3).max(1) as f32;
        let mut mean = [0f32; 3];
        for pixel in source.rgb.chunks_exact(3) {
            for (sum, v) in mean.iter_mut().zip(pixel) {
                *sum += f32::from(*v);
            }
        }
        let grey: f32 = mean.iter().zip(GREY).map(|(m, g)| m / n * g).sum();
        // Rodrigues' rotation about (1, 1, 1).
        let (sin, cos) = (hue * std::f32::consts::TAU).sin_cos();
        let (third, root) = ((1.0 - cos) / 3.0, sin / 3f32.sqrt());
        let turn = [
            [cos + third, third - root, third + root],
            [third + root, cos + third, third - root],
            [third - root, third + root, cos + third],
        ];
        let matrix = std::array::from_fn(|i| {
            std::array::from_fn(|j| {
                let saturated = saturation * turn[i][j] + (1.0 - saturation) * GREY[j];
                brightness * contrast * saturated
            })
        });
        Self { matrix, offset: brightness * (1.0 - contrast) * grey }
    }

    fn apply(&self, rgb: [f32; 3]) -> [u8; 3] {
        self.matrix.map(|m| (m[0] * rgb[0] + m[1] * rgb[1] + m[2] * rgb[2] + self.offset + 0.5) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use rand::SeedableRng;

    /// A bright disc on dark ground, and its mask.
    fn disc() -> Pair {
        let inside = |x: u32, y: u32| (x as f32 - 30.0).hypot(y as f32 - 22.0) < 11.0;
        Pair {
            rgb: RgbImage::from_fn(80, 60, |x, y| {
                Rgb(if inside(x, y) { [220, 200, 180] } else { [60, 40, 40] })
            }),
            mask: GrayImage::from_fn(80, 60, |x, y| Luma([if inside(x, y) { 255 } else { 0 }])),
        }
    }

    #[test]
    fn without_change_it_is_the_live_sample() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let (sample, _) = Augment::none().view(&disc(), 64, &mut rng).unwrap();
        let mut live = Sample::default();
        Sampler::new(64).sample(&Frame::rgb_image(&disc().rgb), &mut live).unwrap();
        assert_eq!((sample.width, sample.height), (64, 48));
        assert_eq!(sample, live);
    }

    #[test]
    fn the_mask_follows_the_picture() {
        let augment =
            Augment { aspect: 0.3, shift: 0.1, brightness: 0.1, contrast: 0.1, ..Augment::default() };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for _ in 0..20 {
            let (sample, mask) = augment.view(&disc(), 96, &mut rng).unwrap();
            let (mut agree, mut lit) = (0, 0);
            for (i, pixel) in sample.rgb.chunks_exact(3).enumerate() {
                let bright = pixel[1] > 110;
                let marked = mask[i / sample.width * 96 + i % sample.width] > 127;
                agree += usize::from(bright == marked);
                lit += usize::from(marked);
            }
            assert!(lit > 100, "{lit}");
            assert!(agree as f64 > 0.97 * (sample.width * sample.height) as f64, "{agree}");
        }
    }

    #[test]
    fn the_same_random_numbers_give_the_same_view() {
        let view = || {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
            Augment::default().view(&disc(), 64, &mut rng).unwrap()
        };
        assert_eq!(view(), view());
    }

    #[test]
    fn impossible_values_are_named() {
        let text = Augment { scale: [1.2, 0.8], ..Augment::none() }.validate().unwrap_err().to_string();
        assert!(text.contains("augment.scale"), "{text}");
        let text = Augment { hue: 0.7, ..Augment::none() }.validate().unwrap_err().to_string();
        assert!(text.contains("augment.hue"), "{text}");
    }
}
