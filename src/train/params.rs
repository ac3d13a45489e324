//! Parameters as training sees them: named, initialised by rule, some frozen.

use super::parallel::Group;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use std::collections::{BTreeMap, HashMap};

/// All parameters of a model by state-dict name: those being trained are variables, the rest plain tensors,
/// through which gradients pass but into which none flows.
#[derive(Debug)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
    trained: BTreeMap<String, Var>,
    device: Device,
}

impl Params {
    /// Takes `initial`'s tensors; those for which `trains` holds become variables. Running statistics of a
    /// trained batch norm are variables too (they change), but no gradient reaches them.
    pub fn new(
        initial: HashMap<String, Tensor>,
        trains: impl Fn(&str) -> bool,
        device: &Device,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut trained = BTreeMap::new();
        for (name, tensor) in initial {
            let mut tensor = tensor.to_dtype(DType::F32)?.to_device(device)?;
            if trains(&name) {
                let var = Var::from_tensor(&tensor)?;
                tensor = var.as_tensor().clone();
                trained.insert(name.clone(), var);
            }
            tensors.insert(name, tensor);
        }
        Ok(Self { tensors, trained, device: device.clone() })
    }

    /// What layers are loaded from; they share the variables' storage.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let map: HashMap<String, Tensor> = self.tensors.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        VarBuilder::from_tensors(map, DType::F32, &self.device)
    }

    /// Every trained tensor, by name.
    pub fn trained(&self) -> &BTreeMap<String, Var> {
        &self.trained
    }

    /// Every tensor, frozen ones too, cut from the graph.
    pub fn snapshot(&self) -> HashMap<String, Tensor> {
        self.tensors.iter().map(|(k, v)| (k.clone(), v.detach())).collect()
    }

    /// Running statistics become their means over the processes of `group`.
    pub fn average_buffers(&self, group: &Group) -> Result<()> {
        let buffers = || self.trained.iter().filter(|(name, _)| is_buffer(name)).map(|(_, var)| var);
        let own = buffers().map(|var| Some(var.as_detached_tensor())).collect();
        let like: Vec<&Tensor> = buffers().map(Var::as_tensor).collect();
        for (var, mean) in buffers().zip(group.mean_of_tensors(own, &like)?) {
            if let Some(mean) = mean {
                var.set(&mean)?;
            }
        }
        Ok(())
    }

    /// Overwrites trained tensors by name; all must be there.
    pub fn restore(&self, from: impl Fn(&str) -> Option<Tensor>) -> Result<()> {
        for (name, var) in &self.trained {
            let t =
                from(name).ok_or_else(|| Error::invalid(format!("the checkpoint has no tensor {name}")))?;
            var.set(&t.to_device(&self.device)?)?;
        }
        Ok(())
    }
}

/// True of tensors that an optimiser never touches: statistics and SAM's random Fourier matrix.
pub fn is_buffer(name: &str) -> bool {
    ["running_mean", "running_var", "num_batches_tracked", "positional_encoding_gaussian_matrix"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Fresh parameters for `shapes`, the same for the same seed: He for convolutions, PyTorch's variance for linear
/// maps, N(0, 1) for SAM's Fourier matrix, ones and zeros for norms, biases and position tables.
pub fn initialise(shapes: &[(String, Vec<usize>)], seed: u64) -> Result<HashMap<String, Tensor>> {
    let mut out = HashMap::new();
    for (name, shape) in shapes {
        // One stream a tensor: adding a layer leaves the other layers' values as they were.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ fnv1a64(name));
        let n: usize = shape.iter().product();
        let fan_in = (n / shape.first().copied().unwrap_or(1).max(1)).max(1) as f32;
        let ends = |s: &str| name.ends_with(s);
        let std = if ends("running_var") || (shape.len() == 1 && ends("weight")) {
            // TinyViT's MBConv begins as the identity: its last norm has no gain.
            let gain = if name.contains(".blocks.") && ends("conv3.bn.weight") { 0.0 } else { 1.0 };
            out.insert(name.clone(), (Tensor::ones(shape.as_slice(), DType::F32, &Device::Cpu)? * gain)?);
            continue;
        } else if ends("positional_encoding_gaussian_matrix") {
            1.0
        } else if ends("pos_embed") {
            0.02
        } else if (name.contains("_embed") && !name.contains("patch_embed"))
            || ends("iou_token.weight")
            || ends("mask_tokens.weight")
        {
            // SAM's learned embeddings stand beside unit-variance features; smaller starts train sooner.
            0.3
        } else if shape.len() <= 1 || name.contains("rel_pos") || name.contains("attention_biases") {
            0.0
        } else if name.contains("output_upscaling") {
            // Transposed, without overlap: an output pixel sums over the input channels alone.
            (1.0 / shape[0] as f32).sqrt()
        } else if shape.len() == 4 {
            // The prompt begins near 0, where its tanh is steep and a frozen SAM answers as without a prompt.
            (2.0 / fan_in).sqrt() * if ends("decoder.final.conv2.weight") { 0.03 } else { 1.0 }
        } else {
            // Masks must begin near 0: from large random logits training flees to a constant answer and stays.
            // What ends a residual branch begins small too.
            let last = name.contains("output_hypernetworks_mlps") && ends("layers.2.weight");
            let branch = ["attn.proj.weight", "mlp.fc2.weight", "mlp.lin2.weight"].iter().any(|e| ends(e));
            (1.0 / (3.0 * fan_in)).sqrt()
                * if last {
                    0.1
                } else if branch {
                    0.3
                } else {
                    1.0
                }
        };
        let values: Vec<f32> = if std == 0.0 {
            vec![0.0; n]
        } else {
            (0..n)
                .map(|_| {
                    let v: f32 = StandardNormal.sample(&mut rng);
                    std * v
                })
                .collect()
        };
        out.insert(name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?);
    }
    Ok(out)
}

/// FNV-1a, a stable hash of names for seeding.
fn fnv1a64(s: &str) -> u64 {
    s.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Vec<(String, Vec<usize>)> {
        [
            ("a.conv.weight", vec![8, 4, 3, 3]),
            ("a.norm.weight", vec![8]),
            ("b.bias", vec![3]),
            ("bn.running_var", vec![2]),
        ]
        .map(|(n, s)| (n.to_string(), s))
        .to_vec()
    }

    #[test]
    fn initial_values_depend_on_seed_and_name_alone() {
        let get = |seed| {
            initialise(&shapes(), seed).unwrap()["a.conv.weight"]
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        assert_eq!(get(1), get(1));
        assert_ne!(get(1), get(2));
        let std = (get(1).iter().map(|v| v * v).sum::<f32>() / 288.0).sqrt();
        assert!((std - (2.0f32 / 36.0).sqrt()).abs() < 0.03, "{std}");
    }

    #[test]
    fn frozen_tensors_get_no_gradient() {
        let params = Params::new(initialise(&shapes(), 0).unwrap(), |n| n == "b.bias", &Device::Cpu).unwrap();
        let vb = params.var_builder();
        let frozen = vb.get((8, 4, 3, 3), "a.conv.weight").unwrap();
        let bias = vb.get(3, "b.bias").unwrap();
        assert!(bias.is_variable() && !frozen.is_variable());
        let loss = (frozen.sum_all().unwrap() * bias.sum_all().unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        assert!(grads.get(&bias).is_some() && grads.get(&frozen).is_none());
    }
}
