use super::{DepthWise, Isa, LARGEST, Product};
use crate::ByteScale;
use crate::runtime::capture::noise;
use crate::runtime::memory::to_write;
use proptest::prelude::*;

/// Bytes over the whole range.
fn some_bytes(n: usize, seed: u32) -> Vec<u8> {
    noise(n, seed).into_iter().map(|v| ((v + 1.0) * 128.0) as u8).collect()
}

/// The value that a byte stands for.
fn number(byte: u8, scale: ByteScale) -> f64 {
    f64::from(scale.step) * (f64::from(byte) - f64::from(scale.zero))
}

/// Weights rounded to their byte values, in f64.
fn coarse(weights: &[f32], taps: usize) -> Vec<f64> {
    let row = |row: &[f32]| {
        let most = row.iter().fold(0f32, |most, w| most.max(w.abs()));
        let step = f64::from(most / LARGEST);
        row.iter().map(|w| (f64::from(*w) / step).round() * step).collect::<Vec<_>>()
    };
    weights.chunks_exact(taps).flat_map(row).collect()
}

/// Position of `value` on `scale`, clamped to the range of a byte.
fn place(value: f64, scale: ByteScale) -> f64 {
    (value / f64::from(scale.step) + f64::from(scale.zero)).clamp(0.0, 255.0)
}

fn assert_near(found: &[u8], expected: &[f64]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= 0.51, "byte {i}: {found} for {expected}");
    }
}

fn range() -> impl Strategy<Value = [f32; 2]> {
    (-4f32..=0.0, 0.1f32..6.0).prop_map(|(low, high)| [low, high])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// On every available instruction set.
    #[test]
    fn int8_products_agree_with_f64(
        (m, quads, n) in (1..20usize, 1..20usize, 1..70usize),
        (from, to, other) in (range(), range(), range()),
        residual: bool,
        seed in 0..1000u32,
    ) {
        let (k, from, to, other) = (4 * quads, ByteScale::of(from), ByteScale::of(to), ByteScale::of(other));
        let (x, r) = (some_bytes(m * k, seed), some_bytes(m * n, seed + 1));
        let (w, bias) = (noise(n * k, seed + 2), noise(n, seed + 3));
        let exact = coarse(&w, k);
        let mut expected = Vec::new();
        for row in 0..m {
            for o in 0..n {
                let mut sum = f64::from(bias[o]);
                for i in 0..k {
                    sum += number(x[row * k + i], from) * exact[o * k + i];
                }
                if residual {
                    sum += number(r[row * n + o], other);
                }
                expected.push(place(sum, to));
            }
        }
        let mut first: Option<Vec<u8>> = None;
        for isa in Isa::available() {
            let mut product = Product::new(isa, &w, &bias, from, to);
            if residual {
                product = product.with_residual(other, to);
            }
            let mut found = vec![77u8; m * n];
            product.run(&x, residual.then_some(&r[..]), to_write(&mut found));
            assert_near(&found, &expected);
            prop_assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{:?}", isa);
        }
    }

    /// On every available instruction set.
    #[test]
    fn int8_depth_wise_convolutions_agree_with_f64(
        (c, outputs, more) in (1..150usize, 1..12usize, 0..3usize),
        (k, stride) in (prop::sample::select(vec![1usize, 3, 5, 7]), 1..3usize),
        (high, to) in (0.1f32..6.0, range()),
        seed in 0..1000u32,
    ) {
        let (from, to) = (ByteScale::of([0.0, high]), ByteScale::of(to));
        let width = (outputs - 1) * stride + k + more;
        let lines = some_bytes(k * width * c, seed);
        let (w, bias) = (noise(c * k * k, seed + 1), noise(c, seed + 2));
        let exact = coarse(&w, k * k);
        let mut expected = Vec::new();
        for ox in 0..outputs {
            for channel in 0..c {
                let mut sum = f64::from(bias[channel]);
                for tap in 0..k * k {
                    let at = (tap / k * width + ox * stride + tap % k) * c + channel;
                    sum += number(lines[at], from) * exact[channel * k * k + tap];
                }
                expected.push(place(sum, to));
            }
        }
        let mut first: Option<Vec<u8>> = None;
        for isa in Isa::available() {
            let convolution = DepthWise::new(isa, &w, &bias, stride, from, to);
            let mut buffer = vec![0u8; convolution.buffer(width)];
            let mut found = vec![77u8; outputs * c];
            convolution.row(&lines, width, &mut buffer, to_write(&mut found));
            assert_near(&found, &expected);
            prop_assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{:?}", isa);
        }
    }
}

#[test]
fn a_channel_with_zero_weights_yields_its_bias() {
    let scale = ByteScale::of([0.0, 2.55]);
    for isa in Isa::available() {
        let product = Product::new(isa, &[0.0; 8], &[1.0, 2.0], scale, scale);
        let mut found = [0u8; 2];
        product.run(&[200; 4], None, to_write(&mut found));
        assert_eq!(found, [100, 200], "{isa:?}");
    }
}
