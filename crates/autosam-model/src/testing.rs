//! Inputs for tests.

use autosam_frame::map::ModelInput;

/// A shaded ball on darker mucosa, which the shipped model segments as a polyp; its centre and radius are in pixels.
pub fn lesion(width: usize, height: usize, [cx, cy, radius]: [f32; 3]) -> ModelInput {
    let pixel = |i: usize| {
        let (dx, dy) = ((i % width) as f32 - cx, (i / width) as f32 - cy);
        let far = dx.hypot(dy) / radius;
        if (dx + 0.3 * radius).hypot(dy + 0.3 * radius) < 0.1 * radius {
            [250; 3]
        } else if far < 1.0 {
            let light = 0.65 + 0.6 * (1.0 - far * far).sqrt();
            [215.0, 120.0, 100.0].map(|v: f32| (v * light).min(255.0) as u8)
        } else {
            let span = width as f32;
            let rim = 1.0 - 0.35 * (-((far - 1.1) / 0.15).powi(2)).exp();
            let light = rim * (0.75 + 0.25 * (2.0 * dx / span).cos() * (2.0 * dy / span).cos());
            [150.0, 70.0, 60.0].map(|v: f32| (v * light) as u8)
        }
    };
    ModelInput { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
}
