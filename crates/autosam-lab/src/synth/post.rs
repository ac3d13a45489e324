//! Simulates the camera from light to the recorded image: blur, exposure, tone, sharpening, noise and compression.

use super::math::{hash, mix};
use image::RgbImage;

/// Image processing of processor and recorder; constant within a sequence.
pub struct Chain {
    /// Target mean brightness, 0 to 1, linear.
    pub exposure: f32,
    /// Standard deviation of the optics' blur, pixels.
    pub blur: f32,
    /// Edge enhancement, 0 none.
    pub sharpen: f32,
    /// Standard deviation of sensor noise, 0..=255.
    pub noise: f32,
    /// Colour strength, 1 as rendered.
    pub saturation: f32,
    pub gamma: f32,
    /// JPEG quality of the recording; `None` if uncompressed.
    pub quality: Option<u8>,
}

/// Speeds in pixels per frame on a coarse grid.
pub struct Motion {
    pub cell: usize,
    pub columns: usize,
    pub speeds: Vec<[f32; 2]>,
}

impl Motion {
    fn at(&self, x: usize, y: usize) -> [f32; 2] {
        let rows = self.speeds.len() / self.columns;
        let place = |v: usize, most: usize| {
            let f = (v as f32 / self.cell as f32 - 0.5).clamp(0.0, most as f32 - 1.0);
            let i = (f as usize).min(most.saturating_sub(2));
            (i, f - i as f32, (i + 1).min(most - 1))
        };
        let ((i, fx, i1), (j, fy, j1)) = (place(x, self.columns), place(y, rows));
        let at = |i: usize, j: usize| self.speeds[j * self.columns + i];
        let across =
            |c: usize| mix(mix(at(i, j)[c], at(i1, j)[c], fx), mix(at(i, j1)[c], at(i1, j1)[c], fx), fy);
        [across(0), across(1)]
    }
}

/// Motion blur of an image.
pub struct Shutter {
    /// Open time in frames.
    pub open: f32,
    /// Frames between the red, green and blue exposures (sequential-colour endoscopes).
    pub colour_lag: f32,
    /// Frames between odd and even lines (interlaced recorders).
    pub interlace: f32,
}

/// Blurs the image along its motion.
pub fn smear(
    src: &[[f32; 3]],
    width: usize,
    height: usize,
    motion: &Motion,
    shutter: &Shutter,
) -> Vec<[f32; 3]> {
    let (right, bottom) = (width as f32 - 1.001, height as f32 - 1.001);
    // Adds `share` of the image at (x, y) to the channels of `sum` from `first` up to `end`.
    let add = |sum: &mut [f32; 3], first: usize, end: usize, share: f32, x: f32, y: f32| {
        let (x, y) = (x.clamp(0.0, right), y.clamp(0.0, bottom));
        let (i, j) = (x as usize, y as usize);
        let (fx, fy) = (x - i as f32, y - j as f32);
        let (top, below) = (j * width + i, (j + 1) * width + i);
        for (at, w) in [
            (top, (1.0 - fx) * (1.0 - fy)),
            (top + 1, fx * (1.0 - fy)),
            (below, (1.0 - fx) * fy),
            (below + 1, fx * fy),
        ] {
            for c in first..end {
                sum[c] += share * w * src[at][c];
            }
        }
    };
    let mut out = Vec::with_capacity(src.len());
    for y in 0..height {
        let field = if y % 2 == 1 { shutter.interlace } else { 0.0 };
        for x in 0..width {
            let [vx, vy] = motion.at(x, y);
            let speed = (vx * vx + vy * vy).sqrt();
            if speed * (shutter.open + shutter.colour_lag + field) < 0.4 {
                out.push(src[y * width + x]);
                continue;
            }
            let taps = (1 + (0.7 * speed * shutter.open) as usize).min(8);
            let share = 1.0 / taps as f32;
            let mut sum = [0f32; 3];
            for k in 0..taps {
                let t = field + shutter.open * ((k as f32 + 0.5) * share - 0.5);
                if shutter.colour_lag == 0.0 {
                    add(&mut sum, 0, 3, share, x as f32 - vx * t, y as f32 - vy * t);
                    continue;
                }
                for c in 0..3 {
                    let t = t + shutter.colour_lag * (c as f32 - 1.0);
                    add(&mut sum, c, c + 1, share, x as f32 - vx * t, y as f32 - vy * t);
                }
            }
            out.push(sum);
        }
    }
    out
}

/// Gaussian blur of standard deviation `sigma` pixels.
pub fn blur(image: &mut [[f32; 3]], width: usize, height: usize, sigma: f32) {
    if sigma < 0.25 {
        return;
    }
    let reach = (2.5 * sigma).ceil() as usize;
    let mut kernel: Vec<f32> =
        (0..=reach).map(|k| (-((k * k) as f32) / (2.0 * sigma * sigma)).exp()).collect();
    let sum = kernel[0] + 2.0 * kernel[1..].iter().sum::<f32>();
    kernel.iter_mut().for_each(|k| *k /= sum);
    let mut next = vec![[0f32; 3]; image.len()];
    for (row, out) in image.chunks_exact(width).zip(next.chunks_exact_mut(width)) {
        for x in 0..width {
            let mut acc = [0f32; 3];
            for c in 0..3 {
                acc[c] = kernel[0] * row[x][c];
            }
            for (k, w) in kernel.iter().enumerate().skip(1) {
                let (a, b) = (row[x.saturating_sub(k)], row[(x + k).min(width - 1)]);
                for c in 0..3 {
                    acc[c] += w * (a[c] + b[c]);
                }
            }
            out[x] = acc;
        }
    }
    for y in 0..height {
        let out = &mut image[y * width..][..width];
        for (o, v) in out.iter_mut().zip(&next[y * width..]) {
            for c in 0..3 {
                o[c] = kernel[0] * v[c];
            }
        }
        for (k, w) in kernel.iter().enumerate().skip(1) {
            let above = &next[y.saturating_sub(k) * width..][..width];
            let below = &next[(y + k).min(height - 1) * width..][..width];
            for ((o, a), b) in out.iter_mut().zip(above).zip(below) {
                for c in 0..3 {
                    o[c] += w * (a[c] + b[c]);
                }
            }
        }
    }
}

/// Weighted mean of the channels, about BT.601's luma. Every byte of a seed's frames depends on these two-digit weights.
fn brightness(p: [f32; 3]) -> f32 {
    0.3 * p[0] + 0.59 * p[1] + 0.11 * p[2]
}

/// The factor that brings the visible part's mean brightness, highlights clipped, to `target`.
pub fn gain(linear: &[[f32; 3]], aperture: &[f32], target: f32) -> f32 {
    let seen: Vec<f32> = linear
        .iter()
        .zip(aperture)
        .step_by(7)
        .filter(|(_, a)| **a > 0.5)
        .map(|(p, _)| brightness(*p))
        .collect();
    if seen.is_empty() {
        return 1.0;
    }
    let mut gain = 1.0;
    for _ in 0..6 {
        let mean = seen.iter().map(|l| (l * gain).min(0.9)).sum::<f32>() / seen.len() as f32;
        gain *= (target / mean.max(1e-6)).clamp(0.05, 20.0);
    }
    gain
}

/// Linear light to display values, 0..=255, with `gain` applied.
pub fn develop(linear: &mut [[f32; 3]], chain: &Chain, gain: f32) {
    // A table of the tone curve: a soft shoulder, then gamma.
    const STEPS: usize = 2048;
    const TOP: f32 = 6.0;
    let curve: Vec<f32> = (0..=STEPS)
        .map(|i| {
            // Finer steps in the dark.
            let x = TOP * (i as f32 / STEPS as f32).powi(2);
            255.0 * (1.0 - (-1.35 * x).exp()).powf(1.0 / chain.gamma)
        })
        .collect();
    for p in linear.iter_mut() {
        let l = brightness(*p);
        for v in p {
            let x = (l + (*v - l) * chain.saturation).max(0.0) * gain;
            let at = (x.min(TOP) / TOP).sqrt() * STEPS as f32;
            let i = (at as usize).min(STEPS - 1);
            *v = mix(curve[i], curve[i + 1], at - i as f32);
        }
    }
}

/// Edge enhancement with its overshoot, as processors apply it to brightness.
pub fn sharpen(image: &mut [[f32; 3]], width: usize, height: usize, amount: f32, sigma: f32) {
    if amount < 0.02 {
        return;
    }
    let mut soft = image.to_vec();
    blur(&mut soft, width, height, sigma);
    for (p, s) in image.iter_mut().zip(&soft) {
        let lift = amount * (brightness(*p) - brightness(*s));
        for v in p {
            *v += lift;
        }
    }
}

/// Sensor noise, stronger in the dark (the processor lifts it there), little of it coloured.
pub fn noise(image: &mut [[f32; 3]], seed: u32, amount: f32) {
    // The sum of four bytes is close enough to a normal distribution; its standard deviation is 148.
    let normal =
        |h: u32| ((h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24)) as f32 / 148.0 - 510.0 / 148.0;
    for (i, p) in image.iter_mut().enumerate() {
        let h = hash(seed, i as i32, 1, 2);
        let grey = normal(h);
        let scale = amount * (1.3 - 0.8 * brightness(*p) / 255.0);
        for (c, v) in p.iter_mut().enumerate() {
            *v += scale * (0.8 * grey + 0.5 * normal(hash(h, c as i32, 3, 4)));
        }
    }
}

/// Truncates values to bytes, with saturation. The added noise makes rounding unnecessary.
pub fn to_bytes(image: &[[f32; 3]], width: usize, height: usize) -> RgbImage {
    let mut bytes = Vec::with_capacity(3 * image.len());
    for p in image {
        bytes.extend_from_slice(&[p[0] as u8, p[1] as u8, p[2] as u8]);
    }
    RgbImage::from_raw(width as u32, height as u32, bytes).expect("three bytes per pixel")
}

/// The image after one JPEG compression.
pub fn compress(image: RgbImage, quality: u8) -> RgbImage {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode_image(&image)
        .and_then(|()| image::load_from_memory_with_format(&bytes, image::ImageFormat::Jpeg))
        .map(|decoded| decoded.into_rgb8())
        .expect("a JPEG written by the same crate is readable")
}
