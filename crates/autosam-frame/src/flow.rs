//! Motion between frames by hierarchical block matching. It is fast and robust enough to evaluate the stability of
//! masks and to move them.

use crate::Luma;

/// Side of a block in pixels, and search range on the coarse and on the fine level.
const BLOCK: usize = 8;
const COARSE: isize = 6;
const FINE: isize = 2;

impl Luma {
    #[inline]
    pub(super) fn at(&self, x: isize, y: isize) -> i32 {
        let x = x.clamp(0, self.width as isize - 1) as usize;
        let y = y.clamp(0, self.height as isize - 1) as usize;
        i32::from(self.data[y * self.width + x])
    }

    /// Means of 2 × 2 pixels.
    pub(super) fn halved(&self) -> Self {
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let mut data = Vec::with_capacity(width * height);
        let row = |y: usize| &self.data[y * self.width..][..self.width];
        for y in 0..height {
            let (top, bottom) = (row(2 * y), row((2 * y + 1).min(self.height - 1)));
            data.extend((0..width).map(|x| {
                let (left, right) = (2 * x, (2 * x + 1).min(self.width - 1));
                let sum: u16 =
                    [top[left], top[right], bottom[left], bottom[right]].iter().map(|v| u16::from(*v)).sum();
                (sum / 4) as u8
            }));
        }
        Self { width, height, data }
    }
}

/// Position of each block in the previous frame, as a displacement in pixels from its position in the current one.
#[derive(Debug, Clone)]
pub struct Flow {
    width: usize,
    columns: usize,
    vectors: Vec<(isize, isize)>,
}

impl Flow {
    /// Computes the flow from `now` back to `before`, which must have the same size.
    pub fn between(before: &Luma, now: &Luma) -> Self {
        let coarse = search(&before.halved(), &now.halved(), COARSE, |_, _| (0, 0));
        let start = |bx: usize, by: usize| {
            let (dx, dy) = coarse.vector(bx * BLOCK / 2, by * BLOCK / 2);
            (2 * dx, 2 * dy)
        };
        search(before, now, FINE, start).smoothed()
    }

    fn vector(&self, x: usize, y: usize) -> (isize, isize) {
        let last = self.vectors.len() / self.columns.max(1) - 1;
        self.vectors[(y / BLOCK).min(last) * self.columns + (x / BLOCK).min(self.columns - 1)]
    }

    /// Warps a mask of the previous frame to the current one.
    pub fn warp(&self, mask: &[bool]) -> Vec<bool> {
        let (w, h) = (self.width as isize, (mask.len() / self.width.max(1)) as isize);
        (0..mask.len())
            .map(|i| {
                let (x, y) = (i % self.width, i / self.width);
                let (dx, dy) = self.vector(x, y);
                let (sx, sy) = (x as isize + dx, y as isize + dy);
                (0..w).contains(&sx) && (0..h).contains(&sy) && mask[(sy * w + sx) as usize]
            })
            .collect()
    }

    /// Replaces each component by its median over the neighbouring blocks, which removes isolated mismatches.
    fn smoothed(self) -> Self {
        let rows = self.vectors.len() / self.columns.max(1);
        let vectors = (0..self.vectors.len())
            .map(|i| {
                let (bx, by) = (i % self.columns, i / self.columns);
                let (mut xs, mut ys) = (Vec::new(), Vec::new());
                for y in by.saturating_sub(1)..(by + 2).min(rows) {
                    for x in bx.saturating_sub(1)..(bx + 2).min(self.columns) {
                        let v = self.vectors[y * self.columns + x];
                        xs.push(v.0);
                        ys.push(v.1);
                    }
                }
                xs.sort_unstable();
                ys.sort_unstable();
                (xs[xs.len() / 2], ys[ys.len() / 2])
            })
            .collect();
        Self { vectors, ..self }
    }
}

/// A part of a frame to search for in another, in pixels. Only every `every`-th line is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
    pub every: usize,
}

impl Window {
    /// Sum of absolute differences between its pixels in `here` and those `(dx, dy)` away in `there`. Pixels outside a
    /// frame repeat its border.
    pub fn difference(&self, here: &Luma, there: &Luma, dx: isize, dy: isize) -> i32 {
        let rows = (self.top..self.top + self.height).step_by(self.every);
        if self.left + self.width > here.width || self.top + self.height > here.height {
            let far = |x: usize, y: usize| {
                let (x, y) = (x as isize, y as isize);
                (here.at(x, y) - there.at(x + dx, y + dy)).abs()
            };
            return rows.flat_map(|y| (self.left..self.left + self.width).map(move |x| far(x, y))).sum();
        }
        // Columns to the left and right of those inside `there`.
        let left = self.left as isize + dx;
        let within = |columns: isize| columns.clamp(0, self.width as isize) as usize;
        let (before, behind) = (within(-left), within(there.width as isize - left));
        let far = |(a, b): (&u8, &u8)| i32::from(a.abs_diff(*b));
        let mut sum = 0;
        for y in rows {
            let a = &here.data[y * here.width + self.left..][..self.width];
            let y = (y as isize + dy).clamp(0, there.height as isize - 1) as usize;
            let b = &there.data[y * there.width..][..there.width];
            if before < behind {
                let b = &b[(left + before as isize) as usize..];
                sum += a[before..behind].iter().zip(b).map(far).sum::<i32>();
            }
            sum += a[..before].iter().map(|a| far((a, &b[0]))).sum::<i32>();
            sum += a[behind.max(before)..].iter().map(|a| far((a, &b[b.len() - 1]))).sum::<i32>();
        }
        sum
    }

    /// Number of pixels that [`Self::difference`] compares.
    pub fn pixels(&self) -> usize {
        self.width * self.height.div_ceil(self.every)
    }

    /// The displacement with the smallest difference within `reach` of `start`; the shortest one on a tie.
    pub fn find(&self, here: &Luma, there: &Luma, reach: isize, start: (isize, isize)) -> (isize, isize) {
        // Each pixel of motion must improve the match by about a grey level over a few pixels, so that flat tissue does
        // not move.
        let step = (self.pixels() / 75).max(4) as i32;
        let cost = |(dx, dy): (isize, isize)| {
            self.difference(here, there, dx, dy) + step * (dx.abs() + dy.abs()) as i32
        };
        (-reach..=reach)
            .flat_map(|dy| (-reach..=reach).map(move |dx| (start.0 + dx, start.1 + dy)))
            .min_by_key(|at| cost(*at))
            .unwrap_or(start)
    }
}

/// Finds the displacement of each block within `reach` of `start`.
fn search(before: &Luma, now: &Luma, reach: isize, start: impl Fn(usize, usize) -> (isize, isize)) -> Flow {
    let (columns, rows) = (now.width.div_ceil(BLOCK).max(1), now.height.div_ceil(BLOCK).max(1));
    let vectors = (0..columns * rows)
        .map(|i| {
            let (bx, by) = (i % columns, i / columns);
            let block = Window { left: bx * BLOCK, top: by * BLOCK, width: BLOCK, height: BLOCK, every: 1 };
            block.find(now, before, reach, start(bx, by))
        })
        .collect();
    Flow { width: now.width, columns, vectors }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texture(shift: (usize, usize)) -> Luma {
        let (width, height) = (96, 80);
        let value = |x: usize, y: usize| {
            let (x, y) = ((x + 40 - shift.0) as f32, (y + 40 - shift.1) as f32);
            (128.0 + 60.0 * (x * 0.21).sin() * (y * 0.17).cos() + 50.0 * (x * 0.07 + y * 0.11).sin()) as u8
        };
        Luma { width, height, data: (0..width * height).map(|i| value(i % width, i / width)).collect() }
    }

    #[test]
    fn a_mask_follows_the_frame() {
        for shift in [(0, 0), (3, 1), (7, 5), (10, 9)] {
            let flow = Flow::between(&texture((0, 0)), &texture(shift));
            let disc = |cx: usize, cy: usize| -> Vec<bool> {
                (0usize..96 * 80)
                    .map(|i| (i % 96).abs_diff(cx).pow(2) + (i / 96).abs_diff(cy).pow(2) < 150)
                    .collect()
            };
            let (moved, want) = (flow.warp(&disc(40, 35)), disc(40 + shift.0, 35 + shift.1));
            let both = moved.iter().zip(&want).filter(|(a, b)| **a && **b).count() as f64;
            let any = moved.iter().zip(&want).filter(|(a, b)| **a || **b).count() as f64;
            assert!(both / any > 0.9, "{shift:?}: {}", both / any);
        }
    }

    #[test]
    fn differences_are_those_of_single_pixels() {
        let (here, there) = (texture((0, 0)), texture((7, 5)));
        for (left, top, width, height, every) in
            [(20, 30, 17, 9, 1), (0, 0, 96, 80, 3), (90, 70, 6, 10, 2), (88, 72, 16, 16, 1)]
        {
            let window = Window { left, top, width, height, every };
            for (dx, dy) in [(0, 0), (-3, 4), (5, -9), (-30, 0), (40, 60), (-200, -200), (200, 3)] {
                let mut want = 0;
                for y in (top..top + height).step_by(every) {
                    for x in left..left + width {
                        let (x, y) = (x as isize, y as isize);
                        want += (here.at(x, y) - there.at(x + dx, y + dy)).abs();
                    }
                }
                assert_eq!(window.difference(&here, &there, dx, dy), want, "{window:?} {dx} {dy}");
            }
        }
    }

    #[test]
    fn flat_frames_yield_no_motion() {
        let flat = Luma { width: 20, height: 9, data: vec![77; 180] };
        assert!(Flow::between(&flat, &flat).vectors.iter().all(|v| *v == (0, 0)));
        let dot = Luma { width: 1, height: 1, data: vec![3] };
        assert_eq!(Flow::between(&dot, &dot).warp(&[true]), [true]);
    }
}
