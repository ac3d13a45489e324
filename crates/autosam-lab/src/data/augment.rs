//! Random augmentation of images and masks: colour jitter, flips, rotation and scale as published for polyps, effects
//! of endoscopes (light, colour cast, blur, JPEG), and mixtures of two images.

use super::Pair;
use super::corruption;
use crate::{Error, Result};
use autosam_frame::map::ModelInput;
use autosam_frame::resize::{InputSize, Resizer};
use autosam_frame::{Frame, Rect};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Strength of the augmentations. The defaults are AutoSAM's for polyps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Factors are drawn from 1 ± this.
    pub brightness: f32,
    pub contrast: f32,
    pub saturation: f32,
    /// Rotation of the hue as a fraction of the circle, ± this.
    pub hue: f32,
    /// Probability of a flip, for each axis.
    pub flip: f64,
    /// Rotation in degrees, ± this.
    pub rotation: f32,
    /// Smallest and largest scale.
    pub scale: [f32; 2],
    /// The aspect ratio is changed by a factor of up to 1 + this.
    pub aspect: f32,
    /// Shift as a fraction of the side, ± this.
    pub shift: f32,
    /// Each colour channel's own factor is drawn from 1 ± this.
    pub cast: f32,
    /// Brightness gradient across the image: up to this fraction more at one edge and less at the other.
    pub light: f32,
    /// Probability of blur.
    pub blur: f64,
    /// Probability of JPEG artefacts.
    pub jpeg: f64,
    /// Probability that a rectangle of another image replaces a part (CutMix, arXiv 1905.04899).
    pub cutmix: f64,
    /// Probability that another image's polyps are pasted in, smaller and in the colours of where they land (copy-paste, arXiv 2012.07177).
    pub paste: f64,
    /// Probability that only a polyp-free part of the image is used, if it has one.
    pub mucosa: f64,
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
            ..Self::none()
        }
    }
}

impl Augment {
    /// No augmentation: the input of evaluation and live video.
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
            cast: 0.0,
            light: 0.0,
            blur: 0.0,
            jpeg: 0.0,
            cutmix: 0.0,
            paste: 0.0,
            mucosa: 0.0,
        }
    }

    /// Fails with the name of the first unusable value.
    pub fn validate(&self) -> Result<()> {
        let [low, high] = self.scale;
        if !(0.1..=10.0).contains(&low) || !(low..=10.0).contains(&high) {
            return Err(Error::invalid(format!(
                "augment.scale is [{low}, {high}]; it must increase and be within 0.1 and 10"
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
            ("cast", self.cast, 0.9),
            ("light", self.light, 0.9),
            ("blur", self.blur as f32, 1.0),
            ("jpeg", self.jpeg as f32, 1.0),
            ("cutmix", self.cutmix as f32, 1.0),
            ("paste", self.paste as f32, 1.0),
            ("mucosa", self.mucosa as f32, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::invalid(format!(
                    "augment.{name} is {value}; it must be within 0 and {most}"
                )));
            }
        }
        Ok(())
    }

    /// Randomly augments `pair` for a network of `size`. Pixels outside the image are black and not polyp.
    pub fn apply(&self, pair: &Pair, size: impl Into<InputSize>, rng: &mut impl Rng) -> Result<Augmented> {
        let size = size.into();
        match (self.mucosa > 0.0 && rng.random_bool(self.mucosa)).then(|| polyp_free(pair, rng)).flatten() {
            Some(part) => self.apply_whole(&pair.part(part), size, rng),
            None => self.apply_whole(pair, size, rng),
        }
    }

    fn apply_whole(&self, pair: &Pair, input: InputSize, rng: &mut impl Rng) -> Result<Augmented> {
        let spread = |rng: &mut dyn rand::RngCore, by: f32| 1.0 + by * rng.random_range(-1.0..=1.0f32);
        let (full_w, full_h) = (pair.rgb.width() as usize, pair.rgb.height() as usize);
        let size = input.side;
        let (w, h) = input.of(full_w, full_h);
        // An image that will be stretched is rotated at its own aspect ratio.
        let pixel = if input.stretch {
            [full_w, full_h].map(|side| side as f32 / full_w.min(full_h) as f32)
        } else {
            [1.0; 2]
        };

        let scale = rng.random_range(self.scale[0].ln()..=self.scale[1].ln()).exp();
        let stretch = ((1.0 + self.aspect).ln() * rng.random_range(-0.5..=0.5f32)).exp();
        let turn = (self.rotation * rng.random_range(-1.0..=1.0f32)).to_radians();
        let mirror = [0, 1].map(|_| if rng.random_bool(self.flip) { -1.0f32 } else { 1.0 });
        let shift = [w, h].map(|side| self.shift * side as f32 * rng.random_range(-1.0..=1.0f32));
        let factors = [self.brightness, self.contrast, self.saturation].map(|by| spread(rng, by));
        let hue = self.hue * rng.random_range(-1.0..=1.0f32);

        // Downscale first (the resizer averages), then rotate at the scale of the result.
        let mut source = ModelInput::default();
        let side = ((size as f32 * scale).round() as usize).max(1);
        Resizer::new(InputSize { side, ..input }).resize(&Frame::rgb_image(&pair.rgb), &mut source)?;
        let mut colour = Colour::new(factors, hue, &source);
        for row in &mut colour.matrix {
            let gain = spread(rng, self.cast);
            row.iter_mut().for_each(|m| *m *= gain);
        }
        let light = corruption::Light::draw(self.light, (w, h), rng);
        let (sin, cos) = turn.sin_cos();
        let mut out = ModelInput { width: w, height: h, rgb: vec![0; 3 * w * h] };
        let mut mask = vec![0; size * size];
        for y in 0..h {
            for x in 0..w {
                let (dx, dy) = (
                    (x as f32 + 0.5 - w as f32 / 2.0 - shift[0]) * pixel[0],
                    (y as f32 + 0.5 - h as f32 / 2.0 - shift[1]) * pixel[1],
                );
                let (dx, dy) = (
                    (cos * dx + sin * dy) * mirror[0] * stretch / pixel[0],
                    (cos * dy - sin * dx) * mirror[1] / stretch / pixel[1],
                );
                let (sx, sy) = (dx + source.width as f32 / 2.0, dy + source.height as f32 / 2.0);
                if sx < 0.0 || sy < 0.0 || sx >= source.width as f32 || sy >= source.height as f32 {
                    continue;
                }
                let rgb = bilinear(&source, sx - 0.5, sy - 0.5);
                out.rgb[3 * (y * w + x)..][..3].copy_from_slice(&colour.apply(rgb, light.at(x, y)));
                let at =
                    |v: f32, from: usize, to: usize| ((v * to as f32 / from as f32) as usize).min(to - 1);
                let (mx, my) = (at(sx, source.width, full_w), at(sy, source.height, full_h));
                mask[y * size + x] = pair.mask.as_raw()[my * full_w + mx];
            }
        }
        if rng.random_bool(self.blur) {
            corruption::blur(&mut out, rng.random_range(0.4..=1.0) * size as f32 / 128.0)?;
        }
        if rng.random_bool(self.jpeg) {
            corruption::jpeg(&mut out, rng.random_range(25..=75))?;
        }
        Ok(Augmented { sample: out, mask })
    }
}

/// An augmented model input, and its mask on the padded square (`size × size`, 0 or 255).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Augmented {
    pub sample: ModelInput,
    pub mask: Vec<u8>,
}

/// A square of the image, 0.35 to 0.75 of its shorter side, without a polyp in or near it.
fn polyp_free(pair: &Pair, rng: &mut impl Rng) -> Option<Rect> {
    let (w, h) = (pair.rgb.width() as usize, pair.rgb.height() as usize);
    (0..10).find_map(|_| {
        let side = (w.min(h) as f32 * rng.random_range(0.35..=0.75f32)) as usize;
        let (left, top) = (rng.random_range(0..=w - side), rng.random_range(0..=h - side));
        // Outlines are not exact, and a polyp's surroundings look like one.
        let margin = side / 8;
        let rows = top.saturating_sub(margin)..(top + side + margin).min(h);
        let columns = left.saturating_sub(margin)..(left + side + margin).min(w);
        let free =
            rows.into_iter().all(|y| pair.mask.as_raw()[y * w..][columns.clone()].iter().all(|v| *v == 0));
        free.then_some(Rect { left, top, width: side, height: side })
    })
}

fn bilinear(s: &ModelInput, x: f32, y: f32) -> [f32; 3] {
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

/// Brightness, contrast, saturation and hue as one affine map of RGB. The hue is a rotation about the grey axis, which
/// equals HSV's for the small angles used.
struct Colour {
    matrix: [[f32; 3]; 3],
    offset: f32,
}

/// Weights of red, green and blue in BT.601's luma.
const BT601: [f32; 3] = [0.299, 0.587, 0.114];

impl Colour {
    fn new([brightness, contrast, saturation]: [f32; 3], hue: f32, source: &ModelInput) -> Self {
        let n = (source.rgb.len() / 3).max(1) as f32;
        let mut mean = [0f32; 3];
        for pixel in source.rgb.chunks_exact(3) {
            for (sum, v) in mean.iter_mut().zip(pixel) {
                *sum += f32::from(*v);
            }
        }
        let grey: f32 = mean.iter().zip(BT601).map(|(m, g)| m / n * g).sum();
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
                let saturated = saturation * turn[i][j] + (1.0 - saturation) * BT601[j];
                brightness * contrast * saturated
            })
        });
        Self { matrix, offset: brightness * (1.0 - contrast) * grey }
    }

    fn apply(&self, rgb: [f32; 3], light: f32) -> [u8; 3] {
        self.matrix
            .map(|m| ((m[0] * rgb[0] + m[1] * rgb[1] + m[2] * rgb[2] + self.offset) * light + 0.5) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use rand::SeedableRng;

    /// A bright disc on a dark background, and its mask.
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
    fn without_augmentation_it_equals_the_live_input() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let Augmented { sample, .. } = Augment::none().apply(&disc(), 64, &mut rng).unwrap();
        let mut live = ModelInput::default();
        Resizer::new(64).resize(&Frame::rgb_image(&disc().rgb), &mut live).unwrap();
        assert_eq!((sample.width, sample.height), (64, 48));
        assert_eq!(sample, live);
        let stretched = InputSize { side: 64, stretch: true };
        let Augmented { sample, mask } = Augment::none().apply(&disc(), stretched, &mut rng).unwrap();
        Resizer::new(stretched).resize(&Frame::rgb_image(&disc().rgb), &mut live).unwrap();
        assert_eq!((sample.width, sample.height), (64, 64));
        assert_eq!(sample, live);
        let disc = mask.iter().filter(|v| **v > 0).count() as f32 / mask.len() as f32;
        assert!((disc - std::f32::consts::PI * 121.0 / 4800.0).abs() < 0.005, "{disc} of the image");
    }

    #[test]
    fn a_stretched_image_is_rotated_at_its_own_aspect_ratio() {
        let augment = Augment { rotation: 180.0, flip: 0.0, ..Augment::none() };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        // A disc in the middle becomes the same ellipse at any rotation.
        let inside = |x: u32, y: u32| (x as f32 - 59.5).hypot(y as f32 - 29.5) < 20.0;
        let pair = Pair {
            rgb: RgbImage::from_pixel(120, 60, Rgb([90; 3])),
            mask: GrayImage::from_fn(120, 60, |x, y| Luma([if inside(x, y) { 255 } else { 0 }])),
        };
        for _ in 0..10 {
            let Augmented { mask, .. } =
                augment.apply(&pair, InputSize { side: 60, stretch: true }, &mut rng).unwrap();
            let across = mask[30 * 60..][..60].iter().filter(|v| **v > 0).count();
            let down = mask.iter().skip(30).step_by(60).filter(|v| **v > 0).count();
            assert!(across.abs_diff(20) <= 1 && down.abs_diff(40) <= 1, "{across} by {down}");
        }
    }

    #[test]
    fn training_masks_follow_the_augmented_image() {
        let augment =
            Augment { aspect: 0.3, shift: 0.1, brightness: 0.1, contrast: 0.1, ..Augment::default() };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for _ in 0..20 {
            let Augmented { sample, mask } = augment.apply(&disc(), 96, &mut rng).unwrap();
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
    fn augmentation_is_deterministic_by_seed() {
        let augmented = || {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
            Augment::default().apply(&disc(), 64, &mut rng).unwrap()
        };
        assert_eq!(augmented(), augmented());
    }

    #[test]
    fn a_mucosa_crop_has_no_polyp() {
        let augment = Augment { mucosa: 1.0, ..Augment::none() };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        let empty =
            (0..20).filter(|_| augment.apply(&disc(), 64, &mut rng).unwrap().mask.iter().all(|v| *v == 0));
        assert!(empty.count() >= 10, "the whole image is used if ten tries find no polyp-free part");
        let full = Pair { mask: GrayImage::from_pixel(80, 60, Luma([255])), ..disc() };
        assert!(augment.apply(&full, 64, &mut rng).unwrap().mask.contains(&255), "the whole image is used");
    }

    #[test]
    fn corruptions_keep_the_mask() {
        let loud = Augment { cast: 0.2, light: 0.4, blur: 1.0, jpeg: 1.0, ..Augment::none() };
        let augmented = |augment: &Augment| {
            augment.apply(&disc(), 64, &mut rand_chacha::ChaCha8Rng::seed_from_u64(7)).unwrap()
        };
        let (plain, loud) = (augmented(&Augment::none()), augmented(&loud));
        assert_eq!(plain.mask, loud.mask);
        assert_ne!(plain.sample, loud.sample);
        assert_eq!((loud.sample.width, loud.sample.height), (64, 48));
    }

    #[test]
    fn impossible_values_are_named() {
        let text = Augment { scale: [1.2, 0.8], ..Augment::none() }.validate().unwrap_err().to_string();
        assert!(text.contains("augment.scale"), "{text}");
        let text = Augment { hue: 0.7, ..Augment::none() }.validate().unwrap_err().to_string();
        assert!(text.contains("augment.hue"), "{text}");
    }
}
