//! Adam with decoupled or coupled weight decay. Its state is accessible for checkpoints.

use super::parallel::Group;
use crate::Result;
use autosam_ops::{self as ops, AdamStep};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// True: AdamW. False: the decay is part of the gradient, as in `torch.optim.Adam` (the published recipe).
    pub decoupled: bool,
    /// Gradients are scaled down to this global norm; 0 turns it off.
    pub clip_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, decoupled: true, clip_norm: 1.0 }
    }
}

/// First and second moments for every trained tensor.
#[derive(Debug)]
pub struct Adam {
    config: OptimizerConfig,
    moments: BTreeMap<String, (Tensor, Tensor)>,
    steps: u64,
}

impl Adam {
    pub fn new(config: OptimizerConfig) -> Self {
        Self { config, moments: BTreeMap::new(), steps: 0 }
    }

    /// Takes one step with `grads` (already averaged over micro-batches), with each parameter's `rate`. Returns the
    /// gradients' global norm before clipping; if that is not finite, nothing is changed.
    pub fn step(
        &mut self,
        vars: &BTreeMap<String, Var>,
        grads: &Gradients,
        rate: impl Fn(&str) -> f64,
    ) -> Result<f64> {
        let c = &self.config;
        let norm = grads.norm()?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        let scale = if c.clip_norm > 0.0 && norm > c.clip_norm { c.clip_norm / norm } else { 1.0 };
        let correction1 = 1.0 - c.beta1.powi(self.steps as i32);
        let correction2 = 1.0 - c.beta2.powi(self.steps as i32);
        for (name, grad) in &grads.by_name {
            let (var, lr) = (&vars[name], rate(name));
            // Norm gains, biases and embeddings of one row are not decayed, as is usual for ViTs.
            let decay = if var.dims().len() > 1 || !c.decoupled { c.weight_decay } else { 0.0 };
            let (grad, scale) = if c.decoupled {
                (grad.clone(), scale)
            } else {
                (((grad * scale)? + (var.as_detached_tensor() * decay)?)?, 1.0)
            };
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), (grad.zeros_like()?, grad.zeros_like()?));
            }
            if let Some((m, v)) = self.moments.get_mut(name) {
                ops::blend(m, &grad, c.beta1, (1.0 - c.beta1) * scale)?;
                ops::blend_square(v, &grad, c.beta2, (1.0 - c.beta2) * scale * scale)?;
                let step = AdamStep {
                    keep: if c.decoupled { 1.0 - lr * decay } else { 1.0 },
                    rate: lr / correction1,
                    v_scale: 1.0 / correction2,
                    eps: c.eps,
                };
                step.apply(var, m, v)?;
            }
        }
        Ok(norm)
    }

    /// The state as named tensors for a checkpoint: `adam.m/NAME`, `adam.v/NAME`.
    pub fn state(&self) -> impl Iterator<Item = (String, Tensor)> + '_ {
        self.moments
            .iter()
            .flat_map(|(n, (m, v))| [(format!("adam.m/{n}"), m.clone()), (format!("adam.v/{n}"), v.clone())])
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Restores the state from [`Adam::state`].
    pub fn restore(&mut self, steps: u64, tensors: &std::collections::HashMap<String, Tensor>) {
        self.steps = steps;
        self.moments = tensors
            .iter()
            .filter_map(|(key, m)| {
                let name = key.strip_prefix("adam.m/")?;
                let v = tensors.get(&format!("adam.v/{name}"))?;
                Some((name.to_owned(), (m.clone(), v.clone())))
            })
            .collect();
    }
}

/// Gradients by name, summed over micro-batches.
#[derive(Debug, Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Adds `weight` times the gradients of one backward pass.
    pub fn add(&mut self, vars: &BTreeMap<String, Var>, mut store: GradStore, weight: f64) -> Result<()> {
        for (name, var) in vars {
            let Some(grad) = store.remove(var) else { continue };
            let grad = if weight == 1.0 { grad.detach() } else { (grad.detach() * weight)? };
            let sum = match self.by_name.remove(name) {
                Some(sum) => (sum + grad)?,
                None => grad,
            };
            self.by_name.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// Averages over the processes of `group`, as if one process had processed all their images.
    pub fn average(&mut self, vars: &BTreeMap<String, Var>, group: &Group) -> Result<()> {
        let own = vars.keys().map(|name| self.by_name.remove(name)).collect();
        let like: Vec<&Tensor> = vars.values().map(Var::as_tensor).collect();
        let means = group.mean_of_tensors(own, &like)?;
        self.by_name =
            vars.keys().cloned().zip(means).filter_map(|(name, mean)| Some((name, mean?))).collect();
        Ok(())
    }

    /// L2 norm over all gradients.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for g in self.by_name.values() {
            sum += ops::sum_of_squares(g)?;
        }
        Ok(sum.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Compares with `torch.optim.Adam`'s formula, written out for one number.
    #[test]
    fn steps_follow_the_published_formula() {
        for decoupled in [false, true] {
            let config =
                OptimizerConfig { weight_decay: 0.1, decoupled, clip_norm: 0.0, ..Default::default() };
            let var = Var::new(&[[2.0f32]], &Device::Cpu).unwrap();
            let vars = BTreeMap::from([("w".to_string(), var.clone())]);
            let mut adam = Adam::new(config);
            let (mut w, mut m, mut v) = (2.0f64, 0.0, 0.0);
            for step in 1..=3 {
                let loss = var.as_tensor().sqr().unwrap().sum_all().unwrap();
                let mut grads = Gradients::default();
                grads.add(&vars, loss.backward().unwrap(), 1.0).unwrap();
                adam.step(&vars, &grads, |_| 0.05).unwrap();
                let mut g = 2.0 * w;
                if decoupled {
                    w *= 1.0 - 0.05 * 0.1;
                } else {
                    g += 0.1 * w;
                }
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                let m_hat = m / (1.0 - 0.9f64.powi(step));
                let v_hat = v / (1.0 - 0.999f64.powi(step));
                w -= 0.05 * m_hat / (v_hat.sqrt() + 1e-8);
            }
            let got = f64::from(var.as_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]);
            assert!((got - w).abs() < 1e-5, "decoupled {decoupled}: {got} against {w}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let var = Var::new(&[1.0f32], &Device::Cpu).unwrap();
        let vars = BTreeMap::from([("w".to_string(), var.clone())]);
        let loss = (var.as_tensor() * f64::INFINITY).unwrap().sum_all().unwrap();
        let mut grads = Gradients::default();
        grads.add(&vars, loss.backward().unwrap(), 1.0).unwrap();
        let norm = Adam::new(OptimizerConfig::default()).step(&vars, &grads, |_| 0.1).unwrap();
        assert!(!norm.is_finite());
        assert_eq!(var.as_tensor().to_vec1::<f32>().unwrap(), [1.0]);
    }
}
