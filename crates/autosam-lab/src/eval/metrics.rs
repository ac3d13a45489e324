//! Metrics of video polyp segmentation for one frame, as computed by the SUN-SEG (VPS) toolbox.
//!
//! Structure (Fan 2017), enhanced alignment (Fan 2018), weighted F (Margolin 2014), F, MAE, and Dice, IoU and
//! sensitivity over 256 thresholds. Ground truth is polyp above 128; predictions are stretched to [0, 1] per frame (a
//! constant one is only divided by 255). Follows the toolbox down to its rounding and quirks, because published tables
//! were computed with it.

use super::reliability::Reliability;

/// Thresholds of a curve.
pub const THRESHOLDS: usize = 256;

/// `numpy.spacing(1)`.
const EPS: f64 = f64::EPSILON;

/// A metric at each threshold, from high to low.
pub type Curve = Vec<f64>;

/// All metrics of one frame. NaN if the toolbox divides by zero.
#[derive(Debug, Clone)]
pub struct FrameMetrics {
    pub s_measure: f64,
    pub weighted_f: f64,
    pub mae: f64,
    pub adaptive_e: f64,
    pub adaptive_f: f64,
    pub e: Curve,
    pub f: Curve,
    pub dice: Curve,
    pub iou: Curve,
    pub sensitivity: Curve,
    pub specificity: Curve,
    /// Dice and IoU of pixels above 127, without stretching; `None` for frames without a polyp.
    pub dice_at_half: Option<f64>,
    pub iou_at_half: Option<f64>,
    /// Whether the truth has a polyp, and whether any pixel is above 127.
    pub positive: bool,
    pub marked: bool,
    pub reliability: Reliability,
}

/// Number of pixels of each value, in the truth's background and foreground.
type Histogram = [[u32; 256]; 2];

/// One frame's maps, prepared as in the toolbox. A map has at most 256 values, so sums over pixels are computed from a
/// histogram.
struct Pair<'a> {
    width: usize,
    height: usize,
    bytes: &'a [u8],
    /// Value of each byte after stretching.
    levels: [f64; 256],
    gt: Vec<bool>,
    counts: Histogram,
    positives: usize,
}

impl FrameMetrics {
    /// Compares `pred` with `gt`, both `width × height`.
    ///
    /// # Panics
    /// If a length is not `width · height`.
    pub fn new(pred: &[u8], gt: &[u8], width: usize, height: usize) -> Self {
        assert!(pred.len() == width * height && gt.len() == width * height, "the maps differ in size");
        let p = Pair::new(pred, gt, width, height);
        let size = (width * height) as f64;
        let threshold = (2.0 * p.sum(|v, _| v) / size).min(1.0);
        let hits = p.sum(|v, g| f64::from(u8::from(g && v >= threshold)));
        let marked = p.sum(|v, _| f64::from(u8::from(v >= threshold)));
        let (tp, fp) = p.cumulated();
        let (dice, iou, sensitivity, specificity) = p.medical();
        let above = |g: usize| p.counts[g][128..].iter().sum::<u32>();
        let half = |f: fn(f64, f64, f64) -> f64| {
            let and = f64::from(above(1));
            (p.positives > 0).then(|| f(and, and + f64::from(above(0)), p.positives as f64))
        };
        Self {
            s_measure: p.s_measure(),
            weighted_f: p.weighted_f(),
            mae: p.sum(|v, g| (v - f64::from(u8::from(g))).abs()) / size,
            adaptive_e: p.e_measure(hits, marked - hits),
            adaptive_f: if hits == 0.0 {
                0.0
            } else {
                let (precision, recall) = (hits / marked, hits / p.positives as f64);
                1.3 * precision * recall / (0.3 * precision + recall)
            },
            e: tp.iter().zip(&fp).map(|(t, f)| p.e_measure(*t, *f)).collect(),
            f: tp
                .iter()
                .zip(&fp)
                .map(|(t, f)| {
                    let precision = t / (t + f).max(1.0);
                    let recall = t / (p.positives.max(1)) as f64;
                    let numerator = 1.3 * precision * recall;
                    if numerator == 0.0 { 0.0 } else { numerator / (0.3 * precision + recall) }
                })
                .collect(),
            dice,
            iou,
            sensitivity,
            specificity,
            dice_at_half: half(|and, pred, gt| 2.0 * and / (pred + gt)),
            iou_at_half: half(|and, pred, gt| and / (pred + gt - and)),
            positive: p.positives > 0,
            marked: above(0) + above(1) > 0,
            reliability: Reliability::of(&p.counts),
        }
    }
}

impl<'a> Pair<'a> {
    fn new(bytes: &'a [u8], gt: &[u8], width: usize, height: usize) -> Self {
        let gt: Vec<bool> = gt.iter().map(|v| *v > 128).collect();
        let counts = histogram(bytes.iter().zip(&gt));
        let used = || (0..256).filter(|b| counts[0][*b] + counts[1][*b] > 0).map(|b| b as f64 / 255.0);
        let (low, high) = used().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let levels = std::array::from_fn(|b| {
            let v = b as f64 / 255.0;
            if high > low { (v - low) / (high - low) } else { v }
        });
        let positives = counts[1].iter().sum::<u32>() as usize;
        Self { width, height, bytes, levels, gt, counts, positives }
    }

    /// Sum of `f(value, foreground)` over the pixels.
    fn sum(&self, f: impl Fn(f64, bool) -> f64) -> f64 {
        sum(&self.counts, &self.levels, f)
    }

    /// Number of true and false positives at byte thresholds 255, 254, …, 0.
    fn cumulated(&self) -> (Curve, Curve) {
        let (mut hits, mut alarms) = (vec![0.0; THRESHOLDS], vec![0.0; THRESHOLDS]);
        for (b, level) in self.levels.iter().enumerate() {
            let at = THRESHOLDS - 1 - usize::from((level * 255.0) as u8);
            hits[at] += f64::from(self.counts[1][b]);
            alarms[at] += f64::from(self.counts[0][b]);
        }
        for i in 1..THRESHOLDS {
            hits[i] += hits[i - 1];
            alarms[i] += alarms[i - 1];
        }
        (hits, alarms)
    }

    fn e_measure(&self, hits: f64, alarms: f64) -> f64 {
        let size = self.gt.len() as f64;
        let positives = self.positives as f64;
        let marked = hits + alarms;
        let sum = if self.positives == 0 {
            size - marked
        } else if self.positives == self.gt.len() {
            marked
        } else {
            let (mp, mg) = (marked / size, positives / size);
            let missed = positives - hits;
            let parts = [
                (hits, 1.0 - mp, 1.0 - mg),
                (alarms, 1.0 - mp, -mg),
                (missed, -mp, 1.0 - mg),
                (size - marked - missed, -mp, -mg),
            ];
            parts
                .iter()
                .map(|(n, a, b)| {
                    let align = 2.0 * (a * b) / (a * a + b * b + EPS);
                    (align + 1.0).powi(2) / 4.0 * n
                })
                .sum()
        };
        sum / (size - 1.0 + EPS)
    }

    /// Dice, IoU, sensitivity and specificity at thresholds 1 to 0.
    fn medical(&self) -> (Curve, Curve, Curve, Curve) {
        let step = -1.0 / 255.0;
        let thresholds: Vec<f64> =
            (0..THRESHOLDS).map(|k| if k == 255 { 0.0 } else { k as f64 * step + 1.0 }).collect();
        let (mut hits, mut alarms) = (vec![0.0; THRESHOLDS], vec![0.0; THRESHOLDS]);
        for (b, level) in self.levels.iter().enumerate() {
            // The first threshold that the value reaches; thresholds decrease.
            let at = thresholds.partition_point(|t| t > level);
            if at < THRESHOLDS {
                hits[at] += f64::from(self.counts[1][b]);
                alarms[at] += f64::from(self.counts[0][b]);
            }
        }
        let size = self.gt.len() as f64;
        let positives = self.positives as f64;
        let (mut sum_hits, mut sum_alarms) = (0.0, 0.0);
        let mut curves = (vec![], vec![], vec![], vec![]);
        for (h, a) in hits.iter().zip(&alarms) {
            sum_hits += h;
            sum_alarms += a;
            let (dice, iou, sensitivity, specificity) = if sum_hits == 0.0 {
                (0.0, 0.0, 0.0, 0.0)
            } else {
                let marked = sum_hits + sum_alarms;
                let missed = positives - sum_hits;
                let clear = size - marked - missed;
                (
                    2.0 * sum_hits / (positives + marked),
                    sum_hits / (missed + marked),
                    sum_hits / positives,
                    clear / (clear + sum_alarms),
                )
            };
            curves.0.push(dice);
            curves.1.push(iou);
            curves.2.push(sensitivity);
            curves.3.push(specificity);
        }
        curves
    }

    fn s_measure(&self) -> f64 {
        let size = self.gt.len() as f64;
        let share = self.positives as f64 / size;
        let score = if self.positives == 0 {
            1.0 - self.sum(|v, _| v) / size
        } else if self.positives == self.gt.len() {
            self.sum(|v, _| v) / size
        } else {
            0.5 * self.s_object(share) + 0.5 * self.s_region()
        };
        // Python's max(0, nan) is 0.
        if score > 0.0 { score } else { 0.0 }
    }

    fn s_object(&self, share: f64) -> f64 {
        let score = |inside: bool| {
            let n = if inside { self.positives } else { self.gt.len() - self.positives } as f64;
            let value = |v: f64| if inside { v } else { 1.0 - v };
            let over = |f: &dyn Fn(f64) -> f64| self.sum(|v, g| if g == inside { f(value(v)) } else { 0.0 });
            let x = over(&|v| v) / n;
            let variance = over(&|v| (v - x).powi(2)) / (n - 1.0);
            2.0 * x / (x * x + 1.0 + variance.sqrt() + EPS)
        };
        share * score(true) + (1.0 - share) * score(false)
    }

    fn s_region(&self) -> f64 {
        let (w, h) = (self.width, self.height);
        let (mut sx, mut sy) = (0usize, 0usize);
        for i in (0..self.gt.len()).filter(|i| self.gt[*i]) {
            sx += i % w;
            sy += i / w;
        }
        let centre = |sum: usize| (sum as f64 / self.positives as f64).round_ties_even() as usize + 1;
        let (x, y) = (centre(sx), centre(sy));
        let area = (w * h) as f64;
        let (w1, w2, w3) = ((x * y) as f64 / area, (y * (w - x)) as f64 / area, ((h - y) * x) as f64 / area);
        let w4 = 1.0 - w1 - w2 - w3;
        w1 * self.ssim(0..x, 0..y)
            + w2 * self.ssim(x..w, 0..y)
            + w3 * self.ssim(0..x, y..h)
            + w4 * self.ssim(x..w, y..h)
    }

    fn ssim(&self, xs: std::ops::Range<usize>, ys: std::ops::Range<usize>) -> f64 {
        let n = (xs.len() * ys.len()) as f64;
        let rows = ys.map(|y| y * self.width + xs.start..y * self.width + xs.end);
        let counts = histogram(rows.flat_map(|row| self.bytes[row.clone()].iter().zip(&self.gt[row])));
        let over =
            |f: &dyn Fn(f64, f64) -> f64| sum(&counts, &self.levels, |v, g| f(v, f64::from(u8::from(g))));
        let (x, y) = (over(&|v, _| v) / n, over(&|_, g| g) / n);
        let sx = over(&|v, _| (v - x).powi(2)) / (n - 1.0);
        let sy = over(&|_, g| (g - y).powi(2)) / (n - 1.0);
        let sxy = over(&|v, g| (v - x) * (g - y)) / (n - 1.0);
        let alpha = 4.0 * x * y * sxy;
        let beta = (x * x + y * y) * (sx + sy);
        if alpha != 0.0 {
            alpha / (beta + EPS)
        } else if beta == 0.0 {
            1.0
        } else {
            0.0
        }
    }

    fn weighted_f(&self) -> f64 {
        if self.positives == 0 {
            return 0.0;
        }
        let (w, h) = (self.width, self.height);
        let nearest = nearest(&self.gt, w, h);
        let error =
            |i: usize| (self.levels[usize::from(self.bytes[i])] - f64::from(u8::from(self.gt[i]))).abs();
        let kernel = gaussian();
        let (mut inside, mut outside) = (0.0, 0.0);
        for y in 0..h {
            for x in 0..w {
                let i = y * w + x;
                if self.gt[i] {
                    let mut smooth = 0.0;
                    for (k, weight) in kernel.iter().enumerate() {
                        let (ky, kx) = ((y + k / 7).wrapping_sub(3), (x + k % 7).wrapping_sub(3));
                        if ky < h && kx < w {
                            smooth += weight * error(nearest[ky * w + kx] as usize);
                        }
                    }
                    inside += smooth.min(error(i));
                } else if self.bytes[i] > 0 || self.levels[0] > 0.0 {
                    let at = nearest[i] as usize;
                    let (dy, dx) = ((at / w).abs_diff(y), (at % w).abs_diff(x));
                    let distance = ((dy * dy + dx * dx) as f64).sqrt();
                    outside += error(i) * (2.0 - (-0.2 * distance).exp2());
                }
            }
        }
        let positives = self.positives as f64;
        let recall = 1.0 - inside / positives;
        let hits = positives - inside;
        let precision = hits / (hits + outside + EPS);
        2.0 * recall * precision / (recall + precision + EPS)
    }
}

/// A 7 × 7 Gaussian of standard deviation 5, as MATLAB's `fspecial`.
fn gaussian() -> [f64; 49] {
    let mut k = std::array::from_fn(|i| {
        let (y, x) = ((i / 7) as f64 - 3.0, (i % 7) as f64 - 3.0);
        (-(x * x + y * y) / 50.0).exp()
    });
    let sum: f64 = k.iter().sum();
    for v in &mut k {
        *v /= sum;
    }
    k
}

fn histogram<'p>(pixels: impl Iterator<Item = (&'p u8, &'p bool)>) -> Histogram {
    let mut counts = [[0; 256]; 2];
    for (b, g) in pixels {
        counts[usize::from(*g)][usize::from(*b)] += 1;
    }
    counts
}

/// Sum of `f(value, foreground)` over the pixels counted.
fn sum(counts: &Histogram, levels: &[f64; 256], f: impl Fn(f64, bool) -> f64) -> f64 {
    let of = |g: usize| {
        let counted = counts[g].iter().zip(levels).filter(|(n, _)| **n > 0);
        counted.map(|(n, v)| f64::from(*n) * f(*v, g == 1)).sum::<f64>()
    };
    of(0) + of(1)
}

/// For every pixel the index of the nearest true pixel. Ties are resolved as in SciPy's `distance_transform_edt`
/// (Maurer's algorithm, columns first, then rows). At least one pixel must be true.
pub(super) fn nearest(gt: &[bool], w: usize, h: usize) -> Vec<u32> {
    const NONE: u32 = u32::MAX;
    let mut sites = vec![NONE; w * h];
    // Columns: the nearest true pixel above or below, the upper one on a tie.
    for x in 0..w {
        let rows: Vec<usize> = (0..h).filter(|y| gt[y * w + x]).collect();
        let mut l = 0;
        for y in (0..h).filter(|_| !rows.is_empty()) {
            while l + 1 < rows.len() && rows[l].abs_diff(y) > rows[l + 1].abs_diff(y) {
                l += 1;
            }
            sites[y * w + x] = (rows[l] * w + x) as u32;
        }
    }
    // Rows: the lower envelope of the columns' parabolas. A site has its column and squared distance to the row.
    let mut kept: Vec<(i64, i64, u32)> = Vec::with_capacity(w);
    for (y, row) in sites.chunks_exact_mut(w).enumerate() {
        kept.clear();
        for site in row.iter().copied().filter(|s| *s != NONE) {
            let (sx, sy) = ((site as usize % w) as i64, site as usize / w);
            let off = (sy.abs_diff(y) as i64).pow(2);
            while let [.., u, v] = kept[..] {
                let (a, b) = (v.0 - u.0, sx - v.0);
                let c = a + b;
                if c * v.1 - b * u.1 - a * off - a * b * c <= 0 {
                    break;
                }
                kept.pop();
            }
            kept.push((sx, off, site));
        }
        let mut l = 0;
        for (x, cell) in row.iter_mut().enumerate() {
            let distance = |s: (i64, i64, u32)| (s.0 - x as i64).pow(2) + s.1;
            while l + 1 < kept.len() && distance(kept[l]) > distance(kept[l + 1]) {
                l += 1;
            }
            if let Some(site) = kept.get(l) {
                *cell = site.2;
            }
        }
    }
    sites
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_nearest_pixel_has_the_smallest_distance(w in 1usize..12, h in 1usize..12, seed in any::<u64>()) {
            let mut gt: Vec<bool> = (0..w * h).map(|i| (seed >> (i % 61)) % 5 == 0).collect();
            gt[seed as usize % (w * h)] = true;
            for (i, at) in nearest(&gt, w, h).into_iter().enumerate() {
                let (y, x) = (at as usize / w, at as usize % w);
                let d = |y: usize, x: usize| y.abs_diff(i / w).pow(2) + x.abs_diff(i % w).pow(2);
                prop_assert!(gt[y * w + x]);
                let best = (0..w * h).filter(|j| gt[*j]).map(|j| d(j / w, j % w)).min();
                prop_assert_eq!(Some(d(y, x)), best);
            }
        }
    }
}
