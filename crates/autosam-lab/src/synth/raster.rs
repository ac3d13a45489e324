//! A depth buffer of triangle numbers.

/// For every pixel the nearest triangle. Colours are computed later, once per pixel.
pub struct Buffer {
    pub width: usize,
    pub height: usize,
    /// 1/distance, 0 if empty.
    inverse: Vec<f32>,
    /// Triangle number, meaningless if empty.
    triangle: Vec<u32>,
}

fn edge(a: [f32; 3], b: [f32; 3], x: f32, y: f32) -> f32 {
    (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
}

impl Buffer {
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, inverse: vec![0.0; width * height], triangle: vec![0; width * height] }
    }

    /// Draws a triangle of `[x, y, distance]` corners.
    pub fn draw(&mut self, number: u32, corners: [[f32; 3]; 3]) {
        let [a, b, c] = corners;
        let low = |k: usize| a[k].min(b[k]).min(c[k]);
        let high = |k: usize| a[k].max(b[k]).max(c[k]);
        let (w, h) = (self.width as f32, self.height as f32);
        if high(0) < 0.0 || high(1) < 0.0 || low(0) >= w || low(1) >= h {
            return;
        }
        let area = edge(a, b, c[0], c[1]);
        // Skip slivers, and triangles that the lens projection has stretched across the image.
        if area.abs() < 1e-6 || high(0) - low(0) > 0.4 * w || high(1) - low(1) > 0.4 * w {
            return;
        }
        // Pixels whose centres lie within the bounds.
        let first = |v: f32| (v - 0.5).ceil().max(0.0) as usize;
        let (x0, y0) = (first(low(0)), first(low(1)));
        let (x1, y1) = (first(high(0)).min(self.width), first(high(1)).min(self.height));
        let scale = 1.0 / area;
        let (ia, ib, ic) = (1.0 / a[2], 1.0 / b[2], 1.0 / c[2]);
        for y in y0..y1 {
            for x in x0..x1 {
                let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
                let wa = edge(b, c, px, py) * scale;
                let wb = edge(c, a, px, py) * scale;
                let wc = 1.0 - wa - wb;
                if wa < -1e-5 || wb < -1e-5 || wc < -1e-5 {
                    continue;
                }
                let inverse = wa * ia + wb * ib + wc * ic;
                let at = y * self.width + x;
                if inverse > self.inverse[at] {
                    self.inverse[at] = inverse;
                    self.triangle[at] = number;
                }
            }
        }
    }

    /// The triangle at a pixel.
    pub fn get(&self, x: usize, y: usize) -> Option<u32> {
        let at = y * self.width + x;
        (self.inverse[at] > 0.0).then(|| self.triangle[at])
    }
}

/// Weights of a triangle's corners at a pixel's centre, corrected for distance; they sum to 1.
pub fn weights(corners: [[f32; 3]; 3], x: usize, y: usize) -> [f32; 3] {
    let [a, b, c] = corners;
    let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
    let w = [edge(b, c, px, py) / a[2], edge(c, a, px, py) / b[2], edge(a, b, px, py) / c[2]];
    let sum = w[0] + w[1] + w[2];
    w.map(|v| v / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_triangle_wins_and_weights_interpolate() {
        let mut buffer = Buffer::new(20, 20);
        let far = [[2.0, 2.0, 5.0], [8.0, 2.0, 5.0], [2.0, 8.0, 5.0]];
        let near = [[2.0, 2.0, 1.0], [5.0, 2.0, 1.0], [2.0, 5.0, 1.0]];
        buffer.draw(7, near);
        buffer.draw(9, far);
        assert_eq!(buffer.get(3, 3), Some(7));
        assert_eq!(buffer.get(5, 3), Some(9));
        assert_eq!(buffer.get(7, 7), None);
        let w = weights(far, 3, 3);
        let x = w[0] * 2.0 + w[1] * 8.0 + w[2] * 2.0;
        assert!((x - 3.5).abs() < 1e-5);
    }
}
