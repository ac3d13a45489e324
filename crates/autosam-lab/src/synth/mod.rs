//! Labelled synthetic colonoscopy.
//!
//! A camera with a wide-angle lens and two lamps moves through a bent tube with semilunar folds; polyps (domes, heads
//! on stalks, low plateaus) stand on its wall, enter and leave the view. Colour comes from tileable skins (vessels,
//! mottling, mucus, bubbles, pits), highlights from the unevenness of the wet surface. The result passes through blur,
//! exposure, sharpening, noise and JPEG, and is placed on a processor's screen with a black border and text without
//! patient data.
//!
//! The mask comes from the same geometry as the image: a pixel is polyp exactly if the polyp's surface, including its
//! stalk, is the nearest surface seen by the lens within the screen's aperture. A polyp that shows less than 0.06 % of
//! the image, or is more than 7 cm away in the dark, is not drawn, so it is not in the mask either: frames without a
//! polyp in view have an all-black mask.
//!
//! Everything is a pure function of the seed, the configuration and the frame's number, independent of the number of
//! threads. (Sines and logarithms are the platform's, so bytes may differ between operating systems.)

use crate::{Error, Result};
use image::{GrayImage, RgbImage};
use math::hash;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod camera;
mod dataset;
mod math;
mod polyp;
mod post;
mod raster;
mod render;
mod screen;
mod texture;
mod tube;

pub use dataset::{DatasetConfig, Summary, sequence_seed, write_dataset};

/// Frames per second of a sequence's clock and of clips.
pub const FRAME_RATE: u32 = 25;

/// Configuration of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceConfig {
    /// Pixels, 32 to 4096.
    pub width: u32,
    /// Pixels, 32 to 4096.
    pub height: u32,
    /// Number of frames, at least 1.
    pub frames: usize,
    /// Whether the sequence has polyps. Otherwise every mask is empty.
    pub polyps: bool,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        Self { width: 640, height: 512, frames: 100, polyps: true }
    }
}

/// One sequence: a bowel, its polyps and a camera's path through it.
pub struct Sequence {
    config: SequenceConfig,
    seed: u32,
    scene: render::Scene,
    lens: camera::Lens,
    screen: screen::Screen,
    chain: post::Chain,
    shutter: post::Shutter,
    /// Rendered pixels per pixel of the image in each direction.
    oversampling: usize,
    aperture: Vec<f32>,
    /// Rendered pixels visible through the aperture.
    inside: Vec<bool>,
}

/// Minimum distance between polyps (or, without polyps, between places to look at) in centimetres.
const STOP_GAP: f32 = 12.0;
const MOST_STOPS: usize = 6;
/// Images smaller than this (pixels) are rendered at twice the size.
const OVERSAMPLE_BELOW: u32 = 180_000;

impl Sequence {
    /// Builds the bowel of `seed`, which takes a few tenths of a second. Frames are rendered by [`Sequence::frame`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size outside 32..=4096 or no frames.
    pub fn new(seed: u64, config: SequenceConfig) -> Result<Self> {
        let SequenceConfig { width, height, frames, polyps } = config;
        for (name, value) in [("width", width), ("height", height)] {
            if !(32..=4096).contains(&value) {
                return Err(Error::invalid(format!("synth: {name} {value} is not within 32 and 4096")));
            }
        }
        if frames == 0 {
            return Err(Error::invalid("synth: a sequence needs at least 1 frame"));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let seed = rng.random::<u32>();
        let screen = screen::Screen::new(&mut rng, width as usize, height as usize);
        let look = look(&mut rng);
        let chain = chain(&mut rng, height);
        let shutter = shutter(&mut rng);

        let oversampling = if width * height < OVERSAMPLE_BELOW { 2 } else { 1 };
        let half = screen.hx.min(screen.hy);
        let (edge, k) = (rng.random_range(0.9f32..1.12), rng.random_range(-0.06f32..0.1));
        let f = half / (edge * (1.0 + k * edge * edge));
        let scale = oversampling as f32;
        let lens = camera::Lens { cx: screen.cx * scale, cy: screen.cy * scale, f: f * scale, k };

        let shape = tube::Shape {
            radius: rng.random_range(1.9..2.9),
            spacing: rng.random_range(2.2..4.6),
            // Some stretches of bowel are nearly smooth.
            depth: if rng.random_bool(0.2) {
                rng.random_range(0.05..0.2)
            } else {
                rng.random_range(0.22..0.46)
            },
            bend: rng.random_range(0.04..0.16),
            lumps: rng.random_range(0.02..0.06),
        };
        // At least one more stop, so that polyps leave the view.
        let count = (2 + frames / 80).min(MOST_STOPS);
        let mut stops = vec![16.0];
        while stops.len() < count {
            let last = stops[stops.len() - 1];
            stops.push(last + STOP_GAP + rng.random_range(0.0..5.0f32));
        }
        let tube = tube::Tube::new(seed, &mut rng, &shape, stops[count - 1] + 40.0);
        let tile = std::f32::consts::TAU * shape.radius;
        let wall = texture::WallLook {
            trees: rng.random_range(8..40),
            mucus: if rng.random_bool(0.5) { rng.random_range(0.1..0.6) } else { 0.0 },
            foam: if rng.random_bool(0.35) { rng.random_range(2..14) } else { 0 },
        };
        let skin = texture::wall(seed, &mut rng, &wall, tile);
        let polyps: Vec<polyp::Polyp> = if polyps {
            stops
                .iter()
                .enumerate()
                .map(|(i, s)| polyp::Polyp::new(hash(seed, i as i32, 5, 5), &mut rng, &tube, *s, 2.2))
                .collect()
        } else {
            Vec::new()
        };
        let view = camera::View { edge, f, pixels: (width * height) as f32 };
        let path = camera::Path::new(seed, &mut rng, &tube, &polyps, &stops, &view, frames);

        let (w, h) = (width as usize, height as usize);
        let aperture: Vec<f32> = (0..w * h).map(|i| screen.aperture(i % w, i / w)).collect();
        let wide = w * oversampling;
        let inside = (0..wide * h * oversampling)
            .map(|i| aperture[i / wide / oversampling * w + i % wide / oversampling] > 0.0)
            .collect();
        let scene = render::Scene { tube, skin, polyps, path, look };
        Ok(Self { config, seed, scene, lens, screen, chain, shutter, oversampling, aperture, inside })
    }

    /// The sequence's configuration.
    pub fn config(&self) -> &SequenceConfig {
        &self.config
    }

    /// Frame `index` and its mask (255 polyp, 0 not), both `width` × `height`.
    ///
    /// # Panics
    /// If `index` is not below the configuration's `frames`.
    pub fn frame(&self, index: usize) -> (RgbImage, GrayImage) {
        assert!(index < self.config.frames, "frame {index} of a sequence of {}", self.config.frames);
        let (w, h, n) = (self.config.width as usize, self.config.height as usize, self.oversampling);
        let rendered = self.scene.render(index as f32, &self.lens, w * n, h * n, &self.inside);
        let light = post::smear(&rendered.light, w * n, h * n, &rendered.motion, &self.shutter);
        let mut frame = reduce(&light, w, h, n);
        let noise = hash(self.seed, index as i32, 8, 8);
        // Focus drifts as the tip nears and leaves the wall.
        let focus = 1.0 + 0.8 * math::noise1(self.seed ^ 0xf0c5, index as f32 / 37.0).max(0.0);
        post::blur(&mut frame, w, h, self.chain.blur * focus);
        let gain = post::gain(&frame, &self.aperture, self.chain.exposure);
        post::develop(&mut frame, &self.chain, gain);
        post::sharpen(&mut frame, w, h, self.chain.sharpen, 1.6 * self.chain.blur.max(0.5));
        post::noise(&mut frame, noise, self.chain.noise);
        self.screen.compose(&mut frame, &self.aperture, index as f32 / FRAME_RATE as f32);
        let mut frame = post::to_bytes(&frame, w, h);
        if let Some(quality) = self.chain.quality {
            frame = post::compress(frame, quality);
        }
        let mask = (0..w * h)
            .map(|i| {
                let (x, y) = (i % w * n, i / w * n);
                let hits = (0..n * n).filter(|j| rendered.polyp[(y + j / n) * w * n + x + j % n]).count();
                if 2 * hits >= n * n && self.aperture[i] > 0.5 { 255 } else { 0 }
            })
            .collect();
        (frame, GrayImage::from_raw(w as u32, h as u32, mask).expect("one byte per pixel"))
    }
}

/// The mean of each `n` × `n` block; the result is `w` × `h`.
fn reduce(light: &[[f32; 3]], w: usize, h: usize, n: usize) -> Vec<[f32; 3]> {
    if n == 1 {
        return light.to_vec();
    }
    let share = 1.0 / (n * n) as f32;
    (0..w * h)
        .map(|i| {
            let (x, y) = (i % w * n, i / w * n);
            let mut sum = [0f32; 3];
            for j in 0..n * n {
                let p = light[(y + j / n) * w * n + x + j % n];
                for c in 0..3 {
                    // A highlight must not exceed its neighbours by more than the sensor's range.
                    sum[c] += p[c] * share;
                }
            }
            sum
        })
        .collect()
}

fn look(rng: &mut ChaCha8Rng) -> render::Look {
    // Pink, orange, tan, red, greyish.
    const MUCOSA: [[f32; 3]; 5] =
        [[0.62, 0.26, 0.21], [0.66, 0.27, 0.13], [0.64, 0.36, 0.17], [0.58, 0.18, 0.11], [0.58, 0.31, 0.2]];
    let (a, b) = (MUCOSA[rng.random_range(0..5)], MUCOSA[rng.random_range(0..5)]);
    let t = rng.random_range(0.0..0.6);
    let warm = rng.random_range(-0.16..0.16f32);
    render::Look {
        mucosa: std::array::from_fn(|c| math::mix(a[c], b[c], t)),
        mucus: [1.0, rng.random_range(0.8..0.98), rng.random_range(0.35..0.7)],
        mottle: rng.random_range(0.3..0.8),
        vessels: rng.random_range(0.4..1.25),
        gloss: rng.random_range(0.5..1.2),
        rough: rng.random_range(1.6..4.5),
        dry: rng.random_range(0.4..0.75),
        bounce: rng.random_range(0.05..0.22),
        lamp: [1.0 + warm, 1.0, 1.0 - warm],
    }
}

fn chain(rng: &mut ChaCha8Rng, height: u32) -> post::Chain {
    post::Chain {
        exposure: rng.random_range(0.13..0.36),
        blur: rng.random_range(0.45..1.1) * height as f32 / 512.0,
        sharpen: rng.random_range(0.0..1.2),
        noise: rng.random_range(0.8..3.2),
        saturation: rng.random_range(0.9..1.3),
        gamma: rng.random_range(1.9..2.4),
        quality: rng.random_bool(0.7).then(|| rng.random_range(60..95)),
    }
}

fn shutter(rng: &mut ChaCha8Rng) -> post::Shutter {
    post::Shutter {
        open: rng.random_range(0.1..0.45),
        colour_lag: if rng.random_bool(0.3) { rng.random_range(0.05..0.2) } else { 0.0 },
        interlace: if rng.random_bool(0.15) { 0.5 } else { 0.0 },
    }
}
