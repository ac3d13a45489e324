//! Compares GPU kernels with CPU kernels. Without a GPU the tests print that and pass.

use crate::device::DeviceChoice;
use crate::tests::{error, gpu_turn, noise};
use crate::{
    Activation, Conv2d, Packing, add, add_for_products, add_linear, autocast, channels_first, channels_last,
    conv2d, conv2d_then, layer_norm, layer_norm_2d, linear_then, max_pool2d, normalised, partition,
    probability_bytes, relative_attention, resize_bilinear, self_attention, unpartition, windowed_attention,
};
use candle_core::{DType, Device, Result, Tensor, Var};
use parking_lot::MutexGuard;

/// The GPU, reserved while the guard is held.
fn gpu() -> Option<(Device, MutexGuard<'static, ()>)> {
    let device = DeviceChoice::Cuda(0).resolve().inspect_err(|e| eprintln!("SKIPPED: {e}")).ok()?;
    Some((device, gpu_turn()))
}

/// The relative error of `f` on the GPU with products in `products`, compared with the CPU in f32.
fn off(products: Option<DType>, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Option<f64> {
    let (gpu, _turn) = gpu()?;
    let there: Vec<Tensor> = inputs.iter().map(|t| t.to_device(&gpu).unwrap()).collect();
    let y = autocast(products, || f(&there)).unwrap().to_dtype(DType::F32).unwrap();
    Some(error(&y.to_device(&Device::Cpu).unwrap(), &f(inputs).unwrap()))
}

fn agrees(what: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    for (products, bound) in [(None, 5e-6), (Some(DType::F16), 2e-3), (Some(DType::BF16), 1e-2)] {
        if let Some(e) = off(products, inputs, &f) {
            assert!(e < bound, "{what} in {products:?}: off by {e:.1e}");
        }
    }
}

#[test]
fn convolutions() {
    for (c, o, k, stride, padding) in [(5, 7, 3, 1, 1), (3, 8, 3, 2, 1), (6, 4, 1, 1, 0), (3, 16, 4, 4, 0)] {
        let inputs = [noise(&[2, c, 20, 17], 1), noise(&[o, c, k, k], 2), noise(&[o], 3)];
        let cfg = Conv2d { stride, padding, ..Default::default() };
        agrees("convolution", &inputs, |t| {
            conv2d_then(&t[0], &t[1], Some(&t[2]), cfg, Some(Activation::Relu6))
        });
    }
    let inputs = [noise(&[2, 9, 20, 17], 1), noise(&[9, 1, 3, 3], 2), noise(&[9], 3)];
    for stride in [1, 2] {
        let cfg = Conv2d { stride, padding: 1, groups: 9, ..Default::default() };
        agrees("depth-wise", &inputs, |t| {
            conv2d_then(&t[0], &t[1], Some(&t[2]), cfg, Some(Activation::Gelu))
        });
    }
}

#[test]
fn gradients_of_convolutions() {
    let Some((gpu, _turn)) = gpu() else { return };
    for (c, o, groups, stride) in [(5, 7, 1, 1), (4, 6, 1, 2), (6, 6, 6, 1), (6, 6, 6, 2)] {
        let (x, w) = (noise(&[2, c, 14, 11], 1), noise(&[o, c / groups, 3, 3], 2));
        let gradients = |device: &Device| {
            let var = |t: &Tensor| Var::from_tensor(&t.to_device(device).unwrap()).unwrap();
            let (x, w) = (var(&x), var(&w));
            let y =
                conv2d(&x, &w, None, Conv2d { stride, padding: 1, groups, ..Default::default() }).unwrap();
            let weights = noise(y.dims(), 9).to_device(device).unwrap();
            let grads = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
            [&x, &w].map(|v| grads.get(v).unwrap().to_device(&Device::Cpu).unwrap())
        };
        for (a, b) in gradients(&gpu).iter().zip(&gradients(&Device::Cpu)) {
            let e = error(a, b);
            assert!(e < 2e-6, "{c} to {o} in {groups} groups, stride {stride}: off by {e:.1e}");
        }
    }
}

#[test]
fn every_activation_with_a_bias() {
    use Activation::{Gelu, LeakyRelu, Relu, Relu6, Sigmoid, Tanh};
    let inputs = [noise(&[33, 40], 1), noise(&[24, 40], 2), noise(&[24], 3)];
    for f in [Gelu, LeakyRelu, Relu, Relu6, Sigmoid, Tanh] {
        agrees(&format!("{f:?}"), &inputs, |t| linear_then(&t[0], &t[1], Some(&t[2]), Some(f)));
    }
}

#[test]
fn fused_linear_layers() {
    use Activation::{Gelu, Relu};
    // Weights and biases as prepared by `prepare`.
    let prepared = |t: &Tensor| crate::prepared(t).unwrap();
    let inputs = [noise(&[3, 33, 40], 1), noise(&[24, 40], 2), noise(&[24], 3), noise(&[3, 33, 24], 4)];
    for f in [None, Some(Gelu), Some(Relu)] {
        agrees(&format!("{f:?}"), &inputs, |t| {
            linear_then(&t[0], &prepared(&t[1]), Some(&prepared(&t[2])), f)
        });
    }
    agrees("no bias", &inputs, |t| linear_then(&t[0], &prepared(&t[1]), None, None));
    agrees("residual", &inputs, |t| add_linear(&t[3], &t[0], &prepared(&t[1]), Some(&t[2])));
    agrees("residual without bias", &inputs, |t| add_linear(&t[3], &t[0], &prepared(&t[1]), None));
}

#[test]
fn norms_and_sums() {
    let inputs = [noise(&[3, 37, 72], 1), noise(&[72], 2), noise(&[72], 3)];
    agrees("layer norm", &inputs, |t| layer_norm(&t[0], &t[1], &t[2], 1e-6));
    let inputs = [noise(&[2, 40, 9, 7], 1), noise(&[40], 2), noise(&[40], 3)];
    agrees("layer norm of planes", &inputs, |t| layer_norm_2d(&t[0], &t[1], &t[2], 1e-6));
    let inputs = [noise(&[3, 8, 8], 1), noise(&[1, 8, 8], 2)];
    agrees("sum along the batch", &inputs, |t| add(&t[0], &t[1]));
    agrees("sum for products", &inputs, |t| add_for_products(&t[0], &t[1]));
}

#[test]
fn attention() {
    for d in [16, 32, 64, 80] {
        for tokens in [49, 64, 100] {
            let (heads, scale) = (2, (d as f64).powf(-0.5));
            let inputs = [noise(&[3, tokens, 3 * heads * d], 1), noise(&[heads, tokens, tokens], 2)];
            for packing in [Packing::Parts, Packing::Heads] {
                agrees("attention", &inputs, |t| self_attention(&t[0], packing, heads, scale, Some(&t[1])));
                agrees("plain attention", &inputs, |t| self_attention(&t[0], packing, heads, scale, None));
            }
        }
        // Tokens to an image, an image to tokens.
        for (tokens, keys) in [(5, 300), (7, 300), (300, 7), (2, 4096)] {
            let inputs =
                [noise(&[2, tokens, 2 * d], 1), noise(&[2, keys, 2 * d], 2), noise(&[2, keys, 2 * d], 3)];
            agrees("cross-attention", &inputs, |t| {
                crate::attention(&t[0], &t[1], &t[2], 2, (d as f64).powf(-0.5))
            });
        }
        // A window, SAM's whole grid, and others.
        for (h, w) in [(14, 14), (64, 64), (5, 18), (64, 17), (3, 7)] {
            let (heads, scale) = (2, (d as f64).powf(-0.5));
            let inputs =
                [noise(&[1, h * w, 3 * heads * d], 1), noise(&[2 * h - 1, d], 2), noise(&[2 * w - 1, d], 3)];
            agrees(&format!("relative attention {h}x{w}, {d} channels"), &inputs, |t| {
                relative_attention(&t[0], heads, scale, (h, w), (&t[1], &t[2]))
            });
        }
        // Grids and windows: SAM's, windows cut off at the border, other sides, and the whole grid.
        for (grid, side) in [
            ((64, 64), (14, 14)),
            ((20, 33), (14, 14)),
            ((33, 30), (16, 16)),
            ((9, 5), (4, 4)),
            ((20, 33), (20, 33)),
        ] {
            let (heads, scale) = (2, (d as f64).powf(-0.5));
            let inputs = [
                noise(&[2, grid.0, grid.1, 3 * heads * d], 1),
                noise(&[2 * side.0 - 1, d], 2),
                noise(&[2 * side.1 - 1, d], 3),
                noise(&[3 * heads * d], 4),
            ];
            agrees(&format!("windows {side:?} of {grid:?}, {d} channels"), &inputs, |t| {
                windowed_attention(&t[0], Some(&t[3]), heads, scale, side, (&t[1], &t[2]))
            });
        }
    }
}

#[test]
fn layout_conversions() {
    let inputs = [noise(&[2, 11, 9, 16], 1)];
    agrees("windows", &inputs, |t| partition(&t[0], 4));
    agrees("windows and back", &inputs, |t| unpartition(&partition(&t[0], 4)?, 4, 11, 9));
    let inputs = [noise(&[2, 45, 9, 7], 1)];
    agrees("channels last", &inputs, |t| channels_last(&t[0]));
    agrees("channels first", &inputs, |t| channels_first(&t[0]));
    let bytes = (noise(&[9, 14, 3], 1).affine(100.0, 128.0)).and_then(|t| t.to_dtype(DType::U8)).unwrap();
    agrees("pixels", &[bytes], |t| normalised(&t[0], 16, [0.5, 0.25, 2.0], [-1.0, 0.0, 3.0]));
    if let Some((gpu, _turn)) = gpu() {
        let logits = noise(&[2, 1, 12, 10], 1).affine(8.0, 0.0).unwrap();
        let bytes = |logits: Tensor| {
            probability_bytes(&logits, 33).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap()
        };
        let there = bytes(logits.to_device(&gpu).unwrap());
        assert!(bytes(logits).iter().zip(there).all(|(a, b)| a.abs_diff(b) <= 1));
    }
    let inputs = [noise(&[2, 5, 12, 10], 1)];
    agrees("pooling", &inputs, |t| max_pool2d(&t[0], 2, 2, 0));
    agrees("padded pooling", &inputs, |t| max_pool2d(&t[0], 3, 2, 1));
    for corners in [false, true] {
        agrees("resize", &inputs, |t| resize_bilinear(&t[0], 31, 7, corners));
    }
}
