//! EfficientNet-Lite against PyTorch: `efficientnet_lite*.safetensors`, made by `tests/data/make_efficientnet_lite_goldens.py`.

use crate::support::{Golden, check, goldens, param, signed};
use autosam::backbone::{EfficientNetLite, EfficientNetLiteConfig};
use autosam::weights::recorder::shapes_of;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use std::collections::HashMap;

const OUT: f64 = 1e-4;
const GRAD: f64 = 1e-3;

fn every(x: &Tensor, dim: usize, step: usize) -> Tensor {
    let index: Vec<u32> = (0..x.dim(dim).unwrap()).step_by(step).map(|i| i as u32).collect();
    x.contiguous().unwrap().index_select(&Tensor::new(index.as_slice(), &Device::Cpu).unwrap(), dim).unwrap()
}

/// The golden keeps about 5000 elements of large gradients.
fn strided(x: &Tensor) -> Tensor {
    let x = x.flatten_all().unwrap();
    every(&x, 0, (x.elem_count() / 5000).max(1))
}

fn agrees(golden: &Golden, number: usize) {
    let prefix = golden.prefix().to_owned();
    let config = EfficientNetLiteConfig::lite(number);
    let vars: HashMap<String, Var> = shapes_of(|vb| EfficientNetLite::load(&config, vb))
        .unwrap()
        .into_iter()
        .map(|(n, s)| {
            let value = param(&format!("{prefix}{n}"), &s);
            (n, Var::from_tensor(&value).unwrap())
        })
        .collect();
    let map = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
    let mut net = EfficientNetLite::load(&config, vb).unwrap();
    let input = |name: &str, shape: &[usize]| (signed(&format!("{prefix}{name}"), shape) * 2.0).unwrap();
    let features = |net: &EfficientNetLite, x: &Tensor, train: bool| -> Vec<Tensor> {
        let last = net.features(x, usize::MAX, train).unwrap();
        last.iter().map(|f| f.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()).collect()
    };

    let x = input("input", &[1, 3, 96, 64]);
    let compare = |net: &EfficientNetLite, how: &str| {
        for (i, feature) in features(net, &x, false).iter().enumerate() {
            let out = every(&every(&every(feature, 1, 8), 2, 2), 3, 2);
            check(golden, &format!("feature{i}{how}"), &out, golden.get(&format!("feature{i}")), OUT);
        }
    };
    compare(&net, "");

    let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    let trained = features(&net, &input("input2", &[2, 3, 128, 128]), true);
    check(golden, "train.feature4", &every(&trained[4], 1, 4), golden.get("train.feature4"), OUT);
    for feature in &trained[..3] {
        loss = (loss + (feature * feature).unwrap().mean_all().unwrap()).unwrap();
    }
    let grads = loss.backward().unwrap();
    for (name, expected) in &golden.tensors {
        if let Some(parameter) = name.strip_prefix("grad.") {
            let grad = strided(grads.get(&vars[parameter]).unwrap());
            check(golden, name, &grad, expected, GRAD);
        } else if let Some(buffer) = name.strip_prefix("after.") {
            check(golden, name, &vars[buffer].as_detached_tensor(), expected, OUT);
        }
    }

    // The training step has updated the running statistics; they are restored before they are folded.
    for (name, var) in &vars {
        var.set(&param(&format!("{prefix}{name}"), var.dims())).unwrap();
    }
    net.fold().unwrap();
    compare(&net, ", folded");
}

#[test]
fn efficientnet_lite_agrees_with_pytorch() {
    for golden in &goldens("efficientnet_lite") {
        let stem = golden.path.file_stem().unwrap().to_string_lossy().into_owned();
        let number = stem.strip_prefix("efficientnet_lite").and_then(|n| n.parse().ok());
        agrees(golden, number.unwrap_or_else(|| panic!("{stem}: no number")));
    }
}
