//! The measures of video polyp segmentation for one frame, as the SUN-SEG (VPS) toolbox computes them.
//!
//! Structure (Fan 2017), enhanced alignment (Fan 2018), weighted F (Margolin 2014), F, MAE, and Dice, IoU and
//! sensitivity over 256 thresholds. Ground truth is polyp above 128; predictions are stretched to [0, 1] per frame
//! (a constant one is only divided by 255). Follows the toolbox to its rounding, quirks included, because published
//! tables were made with it.

/// Thresholds of a curve.
pub const THRESHOLDS: usize = 256;

/// `numpy.spacing(1)`.
const EPS: f64 = f64::EPSILON;

/// A measure at each threshold, from high to low.
pub type Curve = Vec<f64>;

/// Everything for one frame. Where the toolbox divides by zero there is NaN.
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
    /// Dice and IoU of pixels above 127, without stretching; `None` on frames without a polyp.
    pub dice_at_half: Option<f64>,
    pub iou_at_half: Option<f64>,
    /// Whether the truth has a polyp, and whether any pixel is above 127.
    pub positive: bool,
    pub marked: bool,
}

/// One frame's maps, prepared as the toolbox does.
struct Pair {
    width: usize,
    height: usize,
    pred: Vec<f64>,
    /// `(pred * 255)` cut to a byte, by which the curves of E and F are counted.
    bytes: Vec<u8>,
    gt: Vec<bool>,
    positives: usize,
}

impl FrameMetrics {
    /// Measures `pred` against `gt`, both `width × height`.
    ///
    /// # Panics
    /// If a length is not `width · height`.
    pub fn new(pred: &[u8], gt: &[u8], width: usize, height: usize) -> Self {
        assert!(pred.len() == width * height && gt.len() == width * height, "maps of another size");
        let p = Pair::new(pred, gt, width, height);
        let threshold = (2.0 * mean(&p.pred)).min(1.0);
        let binary: Vec<bool> = p.pred.iter().map(|v| *v >= threshold).collect();
        let hits = count(&p, |i| binary[i] && p.gt[i]);
        let marked = count(&p, |i| binary[i]);
        let (tp, fp) = p.cumulated();
        let (dice, iou, sensitivity, specificity) = p.medical();
        let half = |f: fn(f64, f64, f64) -> f64| {
            let and = count(&p, |i| pred[i] > 127 && p.gt[i]) as f64;
            let sum = count(&p, |i| pred[i] > 127) as f64;
            (p.positives > 0).then(|| f(and, sum, p.positives as f64))
        };
        Self {
            s_measure: p.s_measure(),
            weighted_f: p.weighted_f(),
            mae: mean(
                &p.pred
                    .iter()
                    .zip(&p.gt)
                    .map(|(v, g)| (v - f64::from(u8::from(*g))).abs())
                    .collect::<Vec<_>>(),
            ),
            adaptive_e: p.e_measure(hits as f64, (marked - hits) as f64),
            adaptive_f: if hits == 0 {
                0.0
            } else {
                let (precision, recall) = (hits as f64 / marked as f64, hits as f64 / p.positives as f64);
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
            marked: pred.iter().any(|v| *v > 127),
        }
    }
}

fn count(p: &Pair, what: impl Fn(usize) -> bool) -> usize {
    (0..p.pred.len()).filter(|i| what(*i)).count()
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

impl Pair {
    fn new(pred: &[u8], gt: &[u8], width: usize, height: usize) -> Self {
        let mut pred: Vec<f64> = pred.iter().map(|v| f64::from(*v) / 255.0).collect();
        let (low, high) = pred.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        if high != low {
            for v in &mut pred {
                *v = (*v - low) / (high - low);
            }
        }
        let gt: Vec<bool> = gt.iter().map(|v| *v > 128).collect();
        let positives = gt.iter().filter(|g| **g).count();
        let bytes = pred.iter().map(|v| (v * 255.0) as u8).collect();
        Self { width, height, pred, bytes, gt, positives }
    }

    /// Hits and false alarms with bytes of at least 255, 254, …, 0.
    fn cumulated(&self) -> (Curve, Curve) {
        let (mut hits, mut alarms) = (vec![0.0; THRESHOLDS], vec![0.0; THRESHOLDS]);
        for (b, g) in self.bytes.iter().zip(&self.gt) {
            let at = THRESHOLDS - 1 - usize::from(*b);
            if *g { hits[at] += 1.0 } else { alarms[at] += 1.0 }
        }
        for i in 1..THRESHOLDS {
            hits[i] += hits[i - 1];
            alarms[i] += alarms[i - 1];
        }
        (hits, alarms)
    }

    fn e_measure(&self, hits: f64, alarms: f64) -> f64 {
        let size = self.pred.len() as f64;
        let positives = self.positives as f64;
        let marked = hits + alarms;
        let sum = if self.positives == 0 {
            size - marked
        } else if self.positives == self.pred.len() {
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
        for (v, g) in self.pred.iter().zip(&self.gt) {
            // The first threshold that the value reaches; they fall.
            let at = thresholds.partition_point(|t| *t > *v);
            if at < THRESHOLDS {
                if *g { hits[at] += 1.0 } else { alarms[at] += 1.0 }
            }
        }
        let size = self.pred.len() as f64;
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
        let share = self.positives as f64 / self.pred.len() as f64;
        let score = if self.positives == 0 {
            1.0 - mean(&self.pred)
        } else if self.positives == self.pred.len() {
            mean(&self.pred)
        } else {
            0.5 * self.s_object(share) + 0.5 * self.s_region()
        };
        // Python's max(0, nan) is 0.
        if score > 0.0 { score } else { 0.0 }
    }

    fn s_object(&self, share: f64) -> f64 {
        let score = |inside: bool| {
            let values: Vec<f64> = self
                .pred
                .iter()
                .zip(&self.gt)
                .filter(|(_, g)| **g == inside)
                .map(|(v, _)| if inside { *v } else { 1.0 - v })
                .collect();
            let x = mean(&values);
            let variance = values.iter().map(|v| (v - x).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0);
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
        let (mut p, mut g) = (Vec::new(), Vec::new());
        for y in ys {
            for x in xs.clone() {
                p.push(self.pred[y * self.width + x]);
                g.push(f64::from(u8::from(self.gt[y * self.width + x])));
            }
        }
        let n = p.len() as f64;
        let (x, y) = (mean(&p), mean(&g));
        let spread = |a: &[f64], ma: f64, b: &[f64], mb: f64| {
            a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum::<f64>() / (n - 1.0)
        };
        let (sx, sy, sxy) = (spread(&p, x, &p, x), spread(&g, y, &g, y), spread(&p, x, &g, y));
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
        let error: Vec<f64> =
            self.pred.iter().zip(&self.gt).map(|(v, g)| (v - f64::from(u8::from(*g))).abs()).collect();
        let spread: Vec<f64> = nearest.iter().map(|(y, x)| error[y * w + x]).collect();
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
                            smooth += weight * spread[ky * w + kx];
                        }
                    }
                    inside += smooth.min(error[i]);
                } else {
                    let (ny, nx) = nearest[i];
                    let distance = (ny as f64 - y as f64).hypot(nx as f64 - x as f64);
                    outside += error[i] * (2.0 - (0.5f64.ln() / 5.0 * distance).exp());
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

/// For every pixel the row and column of the nearest true pixel; of several equally near the one that SciPy's
/// `distance_transform_edt` gives (Maurer's algorithm, columns first, then rows). At least one pixel is true.
pub(super) fn nearest(gt: &[bool], w: usize, h: usize) -> Vec<(usize, usize)> {
    type Site = Option<(usize, usize)>;
    let mut sites: Vec<Site> = (0..w * h).map(|i| gt[i].then_some((i / w, i % w))).collect();
    // `line`: pixels along the axis; `along` and `across` pick a site's coordinates on it and off it.
    let sweep = |sites: &mut [Site],
                 line: &[usize],
                 along: fn((usize, usize)) -> f64,
                 across: fn((usize, usize)) -> f64,
                 at: f64| {
        let found: Vec<Site> = line.iter().map(|i| sites[*i]).collect();
        let off = |s: (usize, usize)| (across(s) - at).powi(2);
        let mut kept: Vec<(usize, usize)> = Vec::new();
        for site in found.into_iter().flatten() {
            while let [.., u, v] = kept[..] {
                let (a, b) = (along(v) - along(u), along(site) - along(v));
                let c = a + b;
                if c * off(v) - b * off(u) - a * off(site) - a * b * c <= 0.0 {
                    break;
                }
                kept.pop();
            }
            kept.push(site);
        }
        if kept.is_empty() {
            return;
        }
        let mut l = 0;
        for (i, pixel) in line.iter().enumerate() {
            let distance = |s: (usize, usize)| (along(s) - i as f64).powi(2) + off(s);
            while l + 1 < kept.len() && distance(kept[l]) > distance(kept[l + 1]) {
                l += 1;
            }
            sites[*pixel] = Some(kept[l]);
        }
    };
    for x in 0..w {
        let line: Vec<usize> = (0..h).map(|y| y * w + x).collect();
        sweep(&mut sites, &line, |s| s.0 as f64, |s| s.1 as f64, x as f64);
    }
    for y in 0..h {
        let line: Vec<usize> = (0..w).map(|x| y * w + x).collect();
        sweep(&mut sites, &line, |s| s.1 as f64, |s| s.0 as f64, y as f64);
    }
    sites.into_iter().map(|s| s.unwrap_or((0, 0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_nearest_pixel_is_as_near_as_any(w in 1usize..12, h in 1usize..12, seed in any::<u64>()) {
            let mut gt: Vec<bool> = (0..w * h).map(|i| (seed >> (i % 61)) % 5 == 0).collect();
            gt[seed as usize % (w * h)] = true;
            for (i, (y, x)) in nearest(&gt, w, h).into_iter().enumerate() {
                let d = |y: usize, x: usize| y.abs_diff(i / w).pow(2) + x.abs_diff(i % w).pow(2);
                prop_assert!(gt[y * w + x]);
                let best = (0..w * h).filter(|j| gt[*j]).map(|j| d(j / w, j % w)).min();
                prop_assert_eq!(Some(d(y, x)), best);
            }
        }
    }
}
