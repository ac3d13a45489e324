//! The prompt generator against the published PyTorch code: `prompt_generator_*.safetensors`.

use crate::support::{Golden, check, goldens, param, signed};
use autosam::generator::{Generator, GeneratorConfig};
use autosam::weights::recorder::shapes_of;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use std::collections::{BTreeMap, HashMap};

const OUT: f64 = 1e-4;
const GRAD: f64 = 1e-3;
/// Prompts are 64 × 64 in the published code.
const GRID: usize = 64;

/// The architecture whose state dict is the golden's, name by name and shape by shape; the input's side is
/// the number that ends the file's name.
fn config(golden: &Golden) -> GeneratorConfig {
    let stem = golden.path.file_stem().unwrap().to_string_lossy().into_owned();
    let size =
        stem.rsplit('_').next().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{stem}: no size"));
    let wanted: BTreeMap<String, Vec<usize>> = serde_json::from_str(golden.meta("state_dict")).unwrap();
    for config in [
        GeneratorConfig::hardnet39ds(size),
        GeneratorConfig::hardnet68(size),
        GeneratorConfig::hardnet85(size),
    ] {
        let ours: BTreeMap<_, _> =
            shapes_of(|vb| Generator::load(&config, vb)).unwrap().into_iter().collect();
        let counted = |n: &&String| !n.ends_with("num_batches_tracked");
        if ours.keys().eq(wanted.keys().filter(counted)) && ours.iter().all(|(n, s)| wanted[n] == *s) {
            return config;
        }
    }
    panic!("{stem}: no architecture has this state dict");
}

/// The golden keeps every `step`th element of large gradients.
fn strided(x: &Tensor) -> Tensor {
    let x = x.flatten_all().unwrap();
    let n = x.elem_count();
    let step = if n >= 20_000 { n / 10_000 } else { 1 };
    let index: Vec<u32> = (0..n).step_by(step).map(|i| i as u32).collect();
    x.index_select(&Tensor::new(index.as_slice(), &Device::Cpu).unwrap(), 0).unwrap()
}

fn every(x: &Tensor, dim: usize, step: usize) -> Tensor {
    let index: Vec<u32> = (0..x.dim(dim).unwrap()).step_by(step).map(|i| i as u32).collect();
    x.contiguous().unwrap().index_select(&Tensor::new(index.as_slice(), &Device::Cpu).unwrap(), dim).unwrap()
}

fn agrees(golden: &Golden) {
    let (config, prefix) = (config(golden), golden.prefix());
    let vars: HashMap<String, Var> = shapes_of(|vb| Generator::load(&config, vb))
        .unwrap()
        .into_iter()
        .map(|(n, s)| (n.clone(), Var::from_tensor(&param(&format!("{prefix}{n}"), &s)).unwrap()))
        .collect();
    let map = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let generator =
        Generator::load(&config, VarBuilder::from_tensors(map, DType::F32, &Device::Cpu)).unwrap();

    let side = config.input_size;
    // The goldens' inputs are 2 (2u - 1).
    let input = |name: &str, shape: &[usize]| (signed(&format!("{prefix}{name}"), shape) * 2.0).unwrap();
    let x = input("input", &[1, 3, side, side]);
    for (i, feature) in generator.features(&x, true, false).unwrap().iter().enumerate() {
        let out = every(&every(&every(feature, 1, 8), 2, 4), 3, 4);
        check(golden, &format!("feature{i}"), &out, golden.get(&format!("feature{i}")), OUT);
    }
    let prompt = generator.forward(&x, GRID, false).unwrap();
    check(golden, "dense_prompt", &every(&prompt, 1, 4), golden.get("dense_prompt"), OUT);

    let y = generator.forward(&input("input2", &[2, 3, 128, 128]), GRID, true).unwrap();
    check(
        golden,
        "train.dense_prompt",
        &every(&y, 1, every_of(golden)),
        golden.get("train.dense_prompt"),
        OUT,
    );
    let r = signed(&format!("{prefix}cotangent"), y.dims());
    let loss = ((y * r).unwrap().mean_all().unwrap() * 100.0).unwrap();
    check(golden, "train.loss", &loss.reshape(1).unwrap(), golden.get("train.loss"), OUT);
    let grads = loss.backward().unwrap();
    for (name, expected) in &golden.tensors {
        if let Some(parameter) = name.strip_prefix("grad.") {
            let grad = strided(grads.get(&vars[parameter]).unwrap());
            check(golden, name, &grad.reshape(expected.shape()).unwrap(), expected, GRAD);
        } else if let Some(buffer) = name.strip_prefix("after.") {
            check(golden, name, &vars[buffer].as_detached_tensor(), expected, OUT);
        }
    }
}

/// Channels of `train.dense_prompt` are subsampled too; by how much its shape says.
fn every_of(golden: &Golden) -> usize {
    256 / golden.get("train.dense_prompt").dim(1).unwrap()
}

#[test]
fn generators_agree_with_pytorch() {
    for golden in &goldens("prompt_generator_") {
        agrees(golden);
    }
}
