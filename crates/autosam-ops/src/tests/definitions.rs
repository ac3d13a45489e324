//! Compares kernels with their written-out definitions.

use super::*;

/// The reference is a naive sum, because candle's f64 backward of depth-wise convolution is not reliable.
#[test]
fn depthwise_convolution_follows_its_definition() {
    for (h, w, k, stride, padding) in
        [(9, 7, 3, 1, 1), (8, 8, 3, 2, 1), (7, 10, 5, 1, 2), (5, 6, 3, 2, 0), (1, 1, 3, 1, 1)]
    {
        let (n, c) = (2, 3);
        let cfg = Conv2d { stride, padding, groups: c, ..Conv2d::default() };
        agrees_with_finite_differences(
            &format!("{h}x{w} k{k} s{stride} p{padding}"),
            &[noise(&[n, c, h, w], 10), noise(&[c, 1, k, k], 11)],
            |t| conv2d(&t[0], &t[1], None, cfg),
            |t| {
                let (x, weights) = (values(&t[0]), values(&t[1]));
                let out = |size: usize| (size + 2 * padding - k) / stride + 1;
                let (oh, ow) = (out(h), out(w));
                let mut y = vec![0f64; n * c * oh * ow];
                for (at, y) in y.iter_mut().enumerate() {
                    let (plane, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
                    for ky in 0..k {
                        for kx in 0..k {
                            let (iy, ix) = (oy * stride + ky, ox * stride + kx);
                            if iy >= padding && ix >= padding && iy - padding < h && ix - padding < w {
                                let v = x[plane * h * w + (iy - padding) * w + ix - padding];
                                *y += v * weights[plane % c * k * k + ky * k + kx];
                            }
                        }
                    }
                }
                y
            },
        );
    }
}

#[test]
fn max_pooling_follows_its_definition() {
    for (h, w, k, stride, padding) in
        [(8, 8, 2, 2, 0), (7, 9, 2, 2, 0), (8, 7, 3, 2, 1), (9, 9, 3, 2, 1), (5, 5, 3, 1, 1)]
    {
        agrees_with_finite_differences(
            &format!("{h}x{w} k{k} s{stride} p{padding}"),
            &[noise(&[2, 2, h, w], 12)],
            |t| max_pool2d(&t[0], k, stride, padding),
            |t| {
                let x = values(&t[0]);
                let out = |size: usize| (size + 2 * padding - k) / stride + 1;
                let (oh, ow) = (out(h), out(w));
                let mut y = vec![f64::NEG_INFINITY; 4 * oh * ow];
                for (at, y) in y.iter_mut().enumerate() {
                    let (plane, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
                    for ky in 0..k {
                        for kx in 0..k {
                            let (iy, ix) = (oy * stride + ky, ox * stride + kx);
                            if iy >= padding && ix >= padding && iy - padding < h && ix - padding < w {
                                *y = y.max(x[plane * h * w + (iy - padding) * w + ix - padding]);
                            }
                        }
                    }
                }
                y
            },
        );
    }
}

#[test]
fn bilinear_resizing_follows_its_definition() {
    for (h, w, to_h, to_w, align) in [
        (4, 5, 9, 7, false),
        (4, 5, 9, 7, true),
        (8, 8, 3, 5, false),
        (8, 8, 3, 5, true),
        (1, 3, 4, 1, true),
        (6, 6, 6, 6, false),
    ] {
        agrees_with_finite_differences(
            &format!("{h}x{w} to {to_h}x{to_w} align {align}"),
            &[noise(&[2, 2, h, w], 13)],
            |t| resize_bilinear(&t[0], to_h, to_w, align),
            |t| {
                let x = values(&t[0]);
                let at = |i: usize, from: usize, to: usize| -> f64 {
                    match (align, to) {
                        (true, 1) => 0.0,
                        (true, _) => i as f64 * (from - 1) as f64 / (to - 1) as f64,
                        (false, _) => ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0),
                    }
                };
                let mut y = Vec::new();
                for plane in x.chunks(h * w) {
                    for i in 0..to_h {
                        for j in 0..to_w {
                            let (fy, fx) = (at(i, h, to_h), at(j, w, to_w));
                            let (y0, x0) = ((fy as usize).min(h - 1), (fx as usize).min(w - 1));
                            let (y1, x1) = ((y0 + 1).min(h - 1), (x0 + 1).min(w - 1));
                            let (ty, tx) = (fy - y0 as f64, fx - x0 as f64);
                            let row = |r: usize| plane[r * w + x0] * (1.0 - tx) + plane[r * w + x1] * tx;
                            y.push(row(y0) * (1.0 - ty) + row(y1) * ty);
                        }
                    }
                }
                y
            },
        );
    }
}
