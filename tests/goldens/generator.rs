//! The prompt generator against the published PyTorch code: `prompt_generator_*.safetensors`.

use crate::support::{Golden, check, goldens, param, relative_error, signed};
use autosam::generator::{Generator, GeneratorConfig};
use autosam::weights::recorder::shapes_of;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use std::collections::{BTreeMap, HashMap};

const OUT: f64 = 1e-4;
const GRAD: f64 = 1e-3;
/// Prompts are 64 × 64 in the published code.
const GRID: usize = 64;

/// The architecture whose state dict equals the golden's in names and shapes. The input size is the number at the end of the
/// file's name.
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

/// The golden's network with its deterministic weights, in `dtype`.
struct Net {
    generator: Generator,
    vars: HashMap<String, Var>,
    dtype: DType,
    prefix: String,
}

impl Net {
    fn new(golden: &Golden, config: &GeneratorConfig, dtype: DType) -> Self {
        let prefix = golden.prefix().to_owned();
        let vars: HashMap<String, Var> = shapes_of(|vb| Generator::load(config, vb))
            .unwrap()
            .into_iter()
            .map(|(n, s)| {
                let value = param(&format!("{prefix}{n}"), &s).to_dtype(dtype).unwrap();
                (n, Var::from_tensor(&value).unwrap())
            })
            .collect();
        let map = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
        let vb = VarBuilder::from_tensors(map, dtype, &Device::Cpu);
        Self { generator: Generator::load(config, vb).unwrap(), vars, dtype, prefix }
    }

    /// The goldens' inputs are 2 (2u - 1).
    fn input(&self, name: &str, shape: &[usize]) -> Tensor {
        (signed(&format!("{}{name}", self.prefix), shape) * 2.0).unwrap().to_dtype(self.dtype).unwrap()
    }

    /// The training step's prompt and loss.
    fn step(&self) -> (Tensor, Tensor) {
        let y = self.generator.forward(&self.input("input2", &[2, 3, 128, 128]), GRID, true).unwrap();
        let r = signed(&format!("{}cotangent", self.prefix), y.dims()).to_dtype(self.dtype).unwrap();
        let loss = ((&y * r).unwrap().mean_all().unwrap() * 100.0).unwrap();
        (y, loss)
    }
}

fn agrees(golden: &Golden) {
    let config = config(golden);
    let net = Net::new(golden, &config, DType::F32);
    let side = config.input_size;
    let x = net.input("input", &[1, 3, side, side]);
    for (i, feature) in net.generator.features(&x, true, false).unwrap().iter().enumerate() {
        let out = every(&every(&every(feature, 1, 8), 2, 4), 3, 4);
        check(golden, &format!("feature{i}"), &out, golden.get(&format!("feature{i}")), OUT);
    }
    let prompt = net.generator.forward(&x, GRID, false).unwrap();
    check(golden, "dense_prompt", &every(&prompt, 1, 4), golden.get("dense_prompt"), OUT);

    let (y, loss) = net.step();
    let channels = every(&y, 1, every_of(golden));
    check(golden, "train.dense_prompt", &channels, golden.get("train.dense_prompt"), OUT);
    check(golden, "train.loss", &loss.reshape(1).unwrap(), golden.get("train.loss"), OUT);
    let grads = loss.backward().unwrap();
    // Computed only if an f32 gradient exceeds the bar; see `beyond_f32`.
    let mut exact = None;
    for (name, expected) in &golden.tensors {
        if let Some(parameter) = name.strip_prefix("grad.") {
            let grad = strided(grads.get(&net.vars[parameter]).unwrap()).reshape(expected.shape()).unwrap();
            if relative_error(&grad, expected) < GRAD {
                check(golden, name, &grad, expected, GRAD);
            } else {
                let exact = exact.get_or_insert_with(|| Exact::new(golden, &config));
                exact.beyond_f32(golden, name, parameter, &grad, expected);
            }
        } else if let Some(buffer) = name.strip_prefix("after.") {
            check(golden, name, &net.vars[buffer].as_detached_tensor(), expected, OUT);
        }
    }
}

/// The same training step in f64, with its gradients.
///
/// HarDNet-68 and -85 pass a random cotangent back through about eighty batch norms and ReLU6 gates, at batch 2. If a value is
/// within rounding of a gate's edge, one program lets the gradient through and the other does not. Two correct f32 programs then
/// differ by more than 1e-3, and so do f64 and PyTorch's f32. The test therefore requires that our f32 gradient differs from
/// PyTorch's by at most three times as much as the f64 gradient does, and that the slope of the f64 graph, which has the same
/// layers, agrees with finite differences.
struct Exact {
    net: Net,
    loss: f64,
    grads: GradStore,
}

impl Exact {
    fn new(golden: &Golden, config: &GeneratorConfig) -> Self {
        let net = Net::new(golden, config, DType::F64);
        let (_, loss) = net.step();
        let grads = loss.backward().unwrap();
        Self { loss: loss.to_scalar().unwrap(), net, grads }
    }

    fn beyond_f32(&self, golden: &Golden, name: &str, parameter: &str, grad: &Tensor, expected: &Tensor) {
        let var = &self.net.vars[parameter];
        let exact = self.grads.get(var).unwrap();
        let gates = relative_error(&strided(exact).reshape(expected.shape()).unwrap(), expected);
        check(
            golden,
            &format!("{name} (f64 against the golden: {gates:.1e})"),
            grad,
            expected,
            GRAD.max(3.0 * gates),
        );
        assert!(gates < 0.05, "{name}: f64 differs from the golden by {gates:.1e}, more than gates explain");

        // The slope of the loss along the gradient is the gradient's length.
        let norm = exact.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        let theta = var.as_detached_tensor().copy().unwrap();
        let step = 1e-7;
        var.set(&(&theta + (exact * (step / norm)).unwrap()).unwrap()).unwrap();
        let risen: f64 = self.net.step().1.to_scalar().unwrap();
        var.set(&theta).unwrap();
        let slope = (risen - self.loss) / step;
        assert!((slope / norm - 1.0).abs() < 1e-2, "{name}: slope {slope:.6e}, gradient {norm:.6e}");
    }
}

/// The step by which the golden's channels of `train.dense_prompt` are subsampled, from its shape.
fn every_of(golden: &Golden) -> usize {
    256 / golden.get("train.dense_prompt").dim(1).unwrap()
}

#[test]
fn generators_agree_with_pytorch() {
    for golden in &goldens("prompt_generator_") {
        agrees(golden);
    }
}
