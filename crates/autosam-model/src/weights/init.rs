//! Random initial weights.

use crate::Result;
use candle_core::{DType, Device, Tensor};
use fnv::FnvHasher;
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use std::collections::HashMap;
use std::hash::Hasher;

/// Initial parameters for `shapes`, deterministic by seed: He for convolutions, PyTorch's variance for linear maps,
/// N(0, 1) for SAM's Fourier matrix, ones and zeros for norms, biases and position tables.
pub fn initialise(shapes: &[(String, Vec<usize>)], seed: u64) -> Result<HashMap<String, Tensor>> {
    let mut out = HashMap::new();
    for (name, shape) in shapes {
        // One random stream per tensor, so that adding a layer does not change the other layers' values.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ hash(name));
        let n: usize = shape.iter().product();
        let fan_in = (n / shape.first().copied().unwrap_or(1).max(1)).max(1) as f32;
        let ends = |s: &str| name.ends_with(s);
        let std = if ends("running_var") || (shape.len() == 1 && ends("weight")) {
            // TinyViT's MBConv starts as the identity, because its last norm has zero gain.
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
            // SAM's learned embeddings are added to features of unit variance; smaller initial values train faster.
            0.3
        } else if shape.len() <= 1 || name.contains("rel_pos") || name.contains("attention_biases") {
            0.0
        } else if name.contains("output_upscaling") {
            // Transposed convolution without overlap: an output pixel sums only over the input channels.
            (1.0 / shape[0] as f32).sqrt()
        } else if shape.len() == 4 {
            // The prompt starts near 0, where tanh is steep and a frozen SAM behaves as without a prompt.
            (2.0 / fan_in).sqrt() * if ends("decoder.final.conv2.weight") { 0.03 } else { 1.0 }
        } else {
            // Masks must start near 0: from large random logits training collapses to a constant output. The last layer
            // of a residual branch starts small too.
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

/// FNV-1a of a name, stable across versions of the compiler.
fn hash(name: &str) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(name.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_depend_only_on_seed_and_name() {
        let shapes = [("a.conv.weight".to_owned(), vec![8, 4, 3, 3])];
        let get = |seed| {
            initialise(&shapes, seed).unwrap()["a.conv.weight"]
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
}
