//! Writes a SAM of a published architecture with random weights to a file, to time training and caches or to try a pipeline
//! without Meta's weights. It segments nothing.
//!
//!     cargo run --release --example random_sam -- vit_b sam-random.safetensors

use autosam::model::SAM_CONFIG_KEY;
use autosam::sam::{Sam, SamConfig};
use autosam::weights::{self, Dtype, init::initialise, recorder::shapes_of};
use std::collections::HashMap;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shape, path] = args.as_slice() else {
        return Err("usage: random_sam vit_b|vit_l|vit_h|mobile_sam|tiny FILE.safetensors".into());
    };
    let config = match shape.as_str() {
        "vit_b" => SamConfig::vit_b(),
        "vit_l" => SamConfig::vit_l(),
        "vit_h" => SamConfig::vit_h(),
        "mobile_sam" => SamConfig::mobile_sam(),
        "tiny" => SamConfig::tiny(),
        other => {
            return Err(
                format!("unknown SAM {other}: expected vit_b, vit_l, vit_h, mobile_sam or tiny").into()
            );
        }
    };
    let tensors = initialise(&shapes_of(|vb| Sam::load(&config, vb))?, 0)?;
    let metadata = HashMap::from([(SAM_CONFIG_KEY.to_owned(), serde_json::to_string(&config)?)]);
    weights::save_safetensors(path.as_ref(), &tensors, &metadata, Dtype::F16)?;
    println!("{path}: {shape}, random weights");
    Ok(())
}
