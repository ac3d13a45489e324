//! Compares every kernel with candle's composed operations in f64, values and gradients.

mod definitions;

use super::*;
use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

/// Deterministic numbers in [-1, 1).
pub(super) fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let values: Vec<f32> = (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Exclusive use of the GPU, because another test's work would end up in a graph that is being captured.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_turn() -> parking_lot::MutexGuard<'static, ()> {
    static TURN: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    TURN.lock()
}

fn norm(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

pub(super) fn error(a: &Tensor, b: &Tensor) -> f64 {
    error_beside(a, b, 0.0)
}

/// The error of `a` relative to the norm of `b`, or to `least` if that is larger.
fn error_beside(a: &Tensor, b: &Tensor, least: f64) -> f64 {
    let diff = norm(&(a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap());
    let size = norm(b).max(least);
    if size < 1e-12 { diff } else { diff / size }
}

/// Runs `f` in f32 (this crate's training and inference kernels) and in f64 (candle's operations), and compares the
/// results and the gradients of `sum(result · noise)` with respect to every input.
fn agrees(what: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype: DType| -> (Tensor, Vec<Tensor>) {
        let vars: Vec<Var> =
            inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let weights = noise(y.dims(), 99).to_dtype(dtype).unwrap();
        let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        (y.detach(), vars.iter().map(|v| grads.get(v).expect("a gradient for every input").clone()).collect())
    };
    let (ours, our_grads) = run(DType::F32);
    let (theirs, their_grads) = run(DType::F64);
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let e = error(&ours, &theirs);
    assert!(e < 2e-6, "{what}: value off by {e:.1e}");
    let e = error(&f(inputs).unwrap(), &theirs);
    assert!(e < 2e-6, "{what}: value without gradients off by {e:.1e}");
    // A sum of many terms that nearly cancel, such as the gradient of a single channel's bias, has an error relative to
    // the terms.
    let least = 0.05 * norm(&noise(ours.dims(), 99));
    for (i, (a, b)) in our_grads.iter().zip(&their_grads).enumerate() {
        let e = error_beside(a, b, least);
        assert!(e < 2e-5, "{what}: gradient {i} off by {e:.1e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    // Starts at two output channels: the gradient of a single channel's bias is one number, a sum that may nearly
    // cancel in any kernel. 6 of 892 such shapes with 3x3 kernels exceed the bound when unfolded.
    // `convolution_to_one_channel` tests shapes without that problem.
    #[test]
    fn convolution(n in 1usize..4, c in 1usize..9, o in 2usize..9, h in 3usize..20, w in 3usize..20,
                   k in 1usize..4, stride in 1usize..3, padding in 0usize..2, trailing in 0usize..2) {
        convolves([n, c, h, w], o, k, Conv2d { stride, padding, trailing, groups: 1 });
    }

    #[test]
    fn linear_layers(rows in 1usize..90, i in 1usize..40, o in 1usize..40) {
        let inputs = [noise(&[2, rows, i], 25), noise(&[o, i], 26), noise(&[o], 27)];
        agrees("linear", &inputs, |t| linear_then(&t[0], &t[1], Some(&t[2]), Some(Activation::Relu)));
        agrees("linear without bias", &inputs[..2], |t| linear(&t[0], &t[1], None));
        agrees("linear, prepared", &inputs, |t| {
            let mut layer = Linear::new(t[1].clone(), Some(t[2].clone()));
            layer.prepare()?;
            layer.forward(&t[0], Some(Activation::Gelu))
        });
    }

    #[test]
    fn products(n in 1usize..3, m in 1usize..5, k in 1usize..40, p in 1usize..90) {
        agrees("product", &[noise(&[n, m, k], 48), noise(&[n, k, p], 49)], |t| matmul(&t[0], &t[1]));
    }

    #[test]
    fn attention_and_its_gradients(b in 1usize..10, tokens in 1usize..160, keys in 1usize..80, heads in 1usize..4, d in 1usize..9) {
        let apart = [noise(&[b, tokens, heads * d], 28), noise(&[b, keys, heads * d], 29), noise(&[b, keys, heads * d], 30)];
        agrees("attention", &apart, |t| attention(&t[0], &t[1], &t[2], heads, 0.7));
        let packed = [noise(&[b, tokens, 3 * heads * d], 32), noise(&[heads, tokens, tokens], 31)];
        for packing in [Packing::Heads, Packing::Parts] {
            agrees("packed", &packed[..1], |t| self_attention(&t[0], packing, heads, 0.7, None));
            agrees("packed, with a bias", &packed, |t| self_attention(&t[0], packing, heads, 0.7, Some(&t[1])));
        }
    }

    #[test]
    fn relative_positions(b in 1usize..3, h in 1usize..12, w in 1usize..12, heads in 1usize..4, d in 1usize..9) {
        let inputs = [noise(&[b, h * w, 3 * heads * d], 45), noise(&[2 * h - 1, d], 46), noise(&[2 * w - 1, d], 47)];
        agrees("relative", &inputs, |t| relative_attention(&t[0], heads, 0.7, (h, w), (&t[1], &t[2])));
    }

    #[test]
    fn windows_and_concatenation(n in 1usize..3, c in 1usize..6, h in 1usize..12, w in 1usize..12, side in 1usize..6) {
        let x = [noise(&[n, h, w, c], 48)];
        agrees("partition", &x, |t| partition(&t[0], side));
        agrees("and back", &x, |t| unpartition(&(partition(&t[0], side)? * 2.0)?, side, h, w));
        let parts: Vec<Tensor> = (1..6).map(|i| noise(&[n, i, h, w], 49 + i as u64)).collect();
        for count in 1..=parts.len() {
            agrees("concat", &parts[..count], |t| concat(&t.iter().collect::<Vec<_>>()));
        }
    }

    // More than one weight per channel, because the norm cancels the scale of a single one, whose gradient is then only
    // rounding noise.
    #[test]
    fn convolution_norm_and_activation(n in 2usize..4, c in 2usize..5, o in 1usize..40, h in 3usize..9, w in 3usize..9,
                                       k in 2usize..6, stride in 1usize..3, trailing in 0usize..2, kind in 0usize..4) {
        let (c, cfg, last) = match kind {
            0 => (c, Conv2d { stride, padding: k / 2, trailing, groups: 1 }, false),
            1 => (o, Conv2d { stride, padding: k / 2, trailing, groups: o }, false),
            2 => (o, Conv2d { stride, padding: k / 2, trailing, groups: o }, true),
            _ => (c, Conv2d::default(), true),
        };
        let k = if kind == 3 { 1 } else { k };
        // candle's depth-wise convolution has no backward to compare with, so the reference is a full convolution.
        let inputs = [noise(&[n, c, h, w], 56), noise(&[o, c / cfg.groups, k, k], 57), (noise(&[o], 58) + 2.0).unwrap(), noise(&[o], 59)];
        for activation in [None, Some(Activation::Gelu)] {
            agrees(&format!("{cfg:?} k{k} last {last} {activation:?}"), &inputs, |t| {
                let names = ["weight", "bias", "running_mean", "running_var"];
                let of = |i: usize| if i < 2 { t[2 + i].clone() } else { t[2].detach() };
                let map = names.iter().enumerate().map(|(i, name)| (name.to_string(), of(i))).collect();
                let norm = BatchNorm::load(candle_nn::VarBuilder::from_tensors(map, t[0].dtype(), &Device::Cpu), o)?;
                if t[0].dtype() == DType::F32 && last {
                    let layer = ConvNorm::new(t[1].clone(), None, norm, cfg);
                    return channels_first(&layer.forward_last(&channels_last(&t[0])?, activation, true)?);
                }
                if t[0].dtype() == DType::F32 {
                    return ConvNorm::new(t[1].clone(), None, norm, cfg).forward(&t[0], activation, true);
                }
                let full = match cfg.groups {
                    1 => t[1].clone(),
                    _ => t[1].broadcast_mul(&Tensor::eye(o, DType::F64, &Device::Cpu)?.reshape((o, o, 1, 1))?)?,
                };
                let zero = Tensor::zeros(o, DType::F64, &Device::Cpu)?;
                let y = norm.forward(&shifted_convolution(&t[0], &full, &zero, Conv2d { groups: 1, ..cfg })?, true)?;
                match activation {
                    Some(f) => activate(&y, f),
                    None => Ok(y),
                }
            });
        }
    }

    #[test]
    fn gates(n in 1usize..4, h in 1usize..9, w in 1usize..9, m in 1usize..5, least in -1f32..1.0, slope in 0f32..9.0) {
        let inputs = [noise(&[n, 1, h, w], 61), noise(&[n, m], 62)];
        agrees("gate", &inputs, |t| gate(&t[0], &t[1], least, slope));
    }

    #[test]
    fn layouts(n in 1usize..3, c in 1usize..40, h in 1usize..20, w in 1usize..20) {
        let x = [noise(&[n, c, h, w], 33)];
        agrees("channels last", &x, |t| channels_last(&t[0]));
        agrees("and back", &x, |t| channels_first(&(channels_last(&t[0])? * 2.0)?));
    }

    #[test]
    fn softmax_and_norms(rows in 1usize..40, width in 8usize..70) {
        let x = (noise(&[rows, width], 4) * 5.0).unwrap();
        agrees("softmax", std::slice::from_ref(&x), |t| softmax(&t[0]));
        let inputs = [x, noise(&[width], 5), noise(&[width], 6)];
        agrees("layer_norm", &inputs, |t| layer_norm(&t[0], &t[1], &t[2], 1e-6));
    }

    #[test]
    fn channel_norms(n in 1usize..4, c in 8usize..24, h in 1usize..14, w in 1usize..14) {
        let inputs = [noise(&[n, c, h, w], 7), noise(&[c], 8), noise(&[c], 9)];
        agrees("layer_norm_2d", &inputs, |t| layer_norm_2d(&t[0], &t[1], &t[2], 1e-6));
    }
}

#[test]
fn convolution_to_one_channel() {
    for (x, k, stride, padding) in [
        ([3, 4, 9, 11], 3, 1, 1),
        ([1, 8, 19, 16], 3, 1, 1),
        ([2, 1, 12, 7], 3, 1, 1),
        ([1, 5, 4, 4], 3, 1, 1),
        ([2, 3, 8, 15], 3, 2, 1),
        ([3, 8, 10, 6], 3, 1, 0),
        ([2, 6, 13, 9], 2, 2, 0),
        ([3, 7, 5, 18], 1, 1, 0),
    ] {
        convolves(x, 1, k, Conv2d { stride, padding, ..Conv2d::default() });
    }
}

fn convolves(x: [usize; 4], o: usize, k: usize, cfg: Conv2d) {
    let inputs = [noise(&x, 1), noise(&[o, x[1], k, k], 2), noise(&[o], 3)];
    agrees(&format!("{x:?} to {o} k{k} {cfg:?}"), &inputs, |t| match t[0].dtype() {
        DType::F64 => activate(&shifted_convolution(&t[0], &t[1], &t[2], cfg)?, Activation::Gelu),
        _ => conv2d_then(&t[0], &t[1], Some(&t[2]), cfg, Some(Activation::Gelu)),
    });
}

/// A convolution as a sum over kernel positions of a matrix product with a shifted image. candle's own backward is
/// wrong for a stride of 2 on non-square images.
fn shifted_convolution(x: &Tensor, w: &Tensor, bias: &Tensor, cfg: Conv2d) -> Result<Tensor> {
    let ((n, c, h, width), (o, _, k, _)) = (x.dims4()?, w.dims4()?);
    let (s, p) = (cfg.stride, cfg.padding);
    let out = |size: usize| (size + 2 * p + cfg.trailing - k) / s + 1;
    let (oh, ow) = (out(h), out(width));
    let after = p + cfg.trailing + s;
    let x = x.pad_with_zeros(2, p, after)?.pad_with_zeros(3, p, after)?;
    let mut y = bias.reshape((1, o, 1))?.broadcast_as((n, o, oh * ow))?;
    for ky in 0..k {
        for kx in 0..k {
            let view = x
                .narrow(2, ky, s * oh)?
                .narrow(3, kx, s * ow)?
                .contiguous()?
                .reshape((n, c, oh, s, ow, s))?
                .narrow(3, 0, 1)?
                .narrow(5, 0, 1)?
                .contiguous()?
                .reshape((n, c, oh * ow))?;
            let weights = w.narrow(2, ky, 1)?.narrow(3, kx, 1)?.contiguous()?.reshape((1, o, c))?;
            y = (y + weights.broadcast_as((n, o, c))?.contiguous()?.matmul(&view)?)?;
        }
    }
    y.reshape((n, o, oh, ow))
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares values with `reference` and gradients with its central differences, both in f64.
fn agrees_with_finite_differences(
    what: &str,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Vec<f64>,
) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let y = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>()).unwrap();
    for (a, b) in values(&y).iter().zip(reference(inputs)) {
        assert!((a - b).abs() < 1e-5, "{what}: {a} against {b}");
    }
    for (a, b) in values(&f(inputs).unwrap()).iter().zip(reference(inputs)) {
        assert!((a - b).abs() < 1e-5, "{what}: without gradients {a} against {b}");
    }
    let weights = noise(y.dims(), 98);
    let grads = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let weights = values(&weights);
    for (which, var) in vars.iter().enumerate() {
        let ours = values(grads.get(var).expect("a gradient for every input"));
        let base = values(&inputs[which]);
        for at in 0..base.len() {
            let shifted = |delta: f64| -> f64 {
                let mut moved = base.clone();
                moved[at] += delta;
                let mut all: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
                all[which] = Tensor::from_vec(moved, inputs[which].dims(), &Device::Cpu).unwrap();
                reference(&all).iter().zip(&weights).map(|(y, w)| y * w).sum()
            };
            let step = 1e-6;
            let slope = (shifted(step) - shifted(-step)) / (2.0 * step);
            assert!(
                (ours[at] - slope).abs() < 1e-4,
                "{what}: gradient {which}[{at}]: {} against {slope}",
                ours[at]
            );
        }
    }
}

#[test]
fn activations() {
    let x = (noise(&[3, 1000], 14) * 8.0).unwrap();
    agrees("gelu", std::slice::from_ref(&x), |t| gelu(&t[0]));
    agrees("leaky_relu", std::slice::from_ref(&x), |t| activate(&t[0], Activation::LeakyRelu));
    // candle's clamp has a correct gradient except at its corners, which random numbers do not hit.
    agrees("relu6", std::slice::from_ref(&x), |t| activate(&t[0], Activation::Relu6));
    agrees("relu", std::slice::from_ref(&x), |t| activate(&t[0], Activation::Relu));
    agrees("tanh", std::slice::from_ref(&x), |t| activate(&t[0], Activation::Tanh));
    agrees("sigmoid", std::slice::from_ref(&x), |t| activate(&t[0], Activation::Sigmoid));
}

#[test]
fn sums() {
    agrees("add", &[noise(&[2, 30, 900], 41), noise(&[2, 30, 900], 42)], |t| add(&t[0], &t[1]));
    agrees("add, one for the batch", &[noise(&[2, 3, 4], 43), noise(&[1, 3, 4], 44)], |t| add(&t[0], &t[1]));
}

#[test]
fn transposed_convolution() {
    for (k, stride) in [(2, 2), (3, 2)] {
        let inputs = [noise(&[2, 6, 5, 4], 15), noise(&[6, 3, k, k], 16), noise(&[3], 17)];
        agrees(&format!("k{k} s{stride}"), &inputs, |t| {
            conv_transpose2d_then(&t[0], &t[1], Some(&t[2]), stride, Some(Activation::LeakyRelu))
        });
    }
}

#[test]
fn batch_norm_in_training_and_inference() {
    let shape = [3, 4, 6, 5];
    let x = ((noise(&shape, 18) * 2.0).unwrap() + 3.0).unwrap();
    for train in [true, false] {
        agrees(&format!("train {train}"), &[x.clone(), noise(&[4], 19), noise(&[4], 20)], |t| {
            let statistics = |seed: u64| noise(&[4], seed).to_dtype(t[0].dtype())?.abs()? + 0.5;
            let map = std::collections::HashMap::from([
                ("weight".to_string(), t[1].clone()),
                ("bias".to_string(), t[2].clone()),
                ("running_mean".to_string(), statistics(21)?),
                ("running_var".to_string(), statistics(22)?),
            ]);
            let vb = candle_nn::VarBuilder::from_tensors(map, t[0].dtype(), &Device::Cpu);
            BatchNorm::load(vb, 4)?.forward(&t[0], train)
        });
    }
}

#[test]
fn a_folded_norm_does_what_convolution_and_norm_did() {
    for (bias, groups) in [(None, 1), (Some(noise(&[6], 34)), 1), (None, 6)] {
        let names = [("weight", 35), ("bias", 36), ("running_mean", 37), ("running_var", 38)];
        let map = names.map(|(name, seed)| {
            let t = noise(&[6], seed);
            (name.to_string(), if name == "running_var" { (t.abs().unwrap() + 0.1).unwrap() } else { t })
        });
        let vb = candle_nn::VarBuilder::from_tensors(map.into_iter().collect(), DType::F32, &Device::Cpu);
        let cfg = Conv2d { stride: 2, padding: 1, groups, ..Conv2d::default() };
        let weight = noise(&[6, 6 / groups, 3, 3], 39);
        let mut layer = ConvNorm::new(weight, bias, BatchNorm::load(vb, 6).unwrap(), cfg);
        let x = noise(&[2, 6, 9, 7], 40);
        let apart = layer.forward(&x, Some(Activation::Gelu), false).unwrap();
        layer.fold().unwrap();
        let e = error(&layer.forward(&x, Some(Activation::Gelu), false).unwrap(), &apart);
        assert!(e < 1e-6, "groups {groups}: off by {e:.1e}");
    }
}

#[test]
fn frozen_weights_get_no_gradient() {
    let x = Var::from_tensor(&noise(&[1, 2, 4, 4], 23)).unwrap();
    let w = noise(&[3, 2, 3, 3], 24);
    let grads = conv2d(&x, &w, None, Conv2d::default()).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
}

#[test]
fn negligible_tails_become_zero_instead_of_subnormal() {
    let reach: Vec<f32> = (0..400).map(|i| -0.5 * i as f32).collect();
    let x = Var::new(reach.as_slice(), &Device::Cpu).unwrap();
    let small = Tensor::full(1e-24f32, 400, &Device::Cpu).unwrap();
    type Op = fn(&Tensor) -> Result<Tensor>;
    let ops: [(&str, Op); 3] = [
        ("softmax", softmax),
        ("gelu", |x| activate(x, Activation::Gelu)),
        ("sigmoid", |x| activate(x, Activation::Sigmoid)),
    ];
    for (name, op) in ops {
        let y = op(&x).unwrap();
        let grads = (&y * &small).unwrap().sum_all().unwrap().backward().unwrap();
        for t in [&y, grads.get(&x).unwrap()] {
            let values = t.to_vec1::<f32>().unwrap();
            assert!(!values.iter().any(|v| v.is_subnormal()), "{name}");
            assert!(values.contains(&0.0), "{name}");
        }
    }
}

/// Splitting the weights between threads gives the same result as each thread reading all of them.
#[test]
fn few_rows_and_many_weights_are_split_by_weights() {
    let (x, w, bias) = (noise(&[3, 700], 60), noise(&[501, 700], 61), noise(&[501], 62));
    let many = Tensor::cat(&[&x; 20], 0).unwrap();
    let plain = Linear::new(w, Some(bias));
    let mut prepared = plain.clone();
    prepared.prepare().unwrap();
    for layer in [plain, prepared] {
        let of = |x: &Tensor| layer.forward(x, Some(Activation::Gelu)).unwrap();
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (few, many) = (values(of(&x)), values(of(&many).narrow(0, 30, 3).unwrap()));
        for (a, b) in few.iter().zip(&many) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} and {b}");
        }
    }
}
