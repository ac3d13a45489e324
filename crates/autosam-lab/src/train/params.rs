//! Named parameters of a network in training, some of them frozen.

use super::parallel::Group;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use std::collections::{BTreeMap, HashMap};

/// All parameters of a model by state-dict name: trained ones are variables, the rest are plain tensors, which pass
/// gradients on but receive none.
#[derive(Debug)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
    trained: BTreeMap<String, Var>,
    device: Device,
}

impl Params {
    /// Takes the tensors of `initial`; those for which `trains` is true become variables. Running statistics of a
    /// trained batch norm are variables too, because they change, but receive no gradient.
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

    /// A `VarBuilder` for loading layers, which share the variables' storage.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let map: HashMap<String, Tensor> = self.tensors.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        VarBuilder::from_tensors(map, DType::F32, &self.device)
    }

    /// Every trained tensor, by name.
    pub fn trained(&self) -> &BTreeMap<String, Var> {
        &self.trained
    }

    /// Every tensor, including frozen ones, detached from the graph.
    pub fn snapshot(&self) -> HashMap<String, Tensor> {
        self.tensors.iter().map(|(k, v)| (k.clone(), v.detach())).collect()
    }

    /// Replaces running statistics by their means over the processes of `group`.
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

    /// Overwrites trained tensors by name; fails if one is missing.
    pub fn restore(&self, from: impl Fn(&str) -> Option<Tensor>) -> Result<()> {
        for (name, var) in &self.trained {
            let t =
                from(name).ok_or_else(|| Error::invalid(format!("the checkpoint has no tensor {name}")))?;
            var.set(&t.to_device(&self.device)?)?;
        }
        Ok(())
    }
}

/// Whether the optimiser must not change the tensor: statistics and SAM's random Fourier matrix.
pub fn is_buffer(name: &str) -> bool {
    ["running_mean", "running_var", "num_batches_tracked", "positional_encoding_gaussian_matrix"]
        .iter()
        .any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use autosam_model::weights::init::initialise;

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
