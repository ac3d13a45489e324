//! Everything a run needs to go on where it stopped, in one file that is written aside and renamed.

use super::config::TrainConfig;
use super::optimizer::Adam;
use super::params::Params;
use crate::weights::{self, Dtype};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const STEP: &str = "autosam.step";
const ADAM_STEPS: &str = "autosam.adam_steps";
const CONFIG: &str = "autosam.train_config";

/// The checkpoint of the run in `out`.
pub fn path(out: &Path) -> PathBuf {
    out.join("checkpoint.safetensors")
}

/// Saves weights, moving average, optimiser and position (every random number follows from seed and step).
pub fn save(
    out: &Path,
    config: &TrainConfig,
    step: u64,
    params: &Params,
    average: &HashMap<String, Tensor>,
    adam: &Adam,
) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = adam.state().collect();
    tensors.extend(params.trained().iter().map(|(n, v)| (format!("param/{n}"), v.as_detached_tensor())));
    tensors.extend(average.iter().map(|(n, t)| (format!("average/{n}"), t.clone())));
    let json = serde_json::to_string(config).map_err(|e| Error::invalid(e.to_string()))?;
    let metadata = HashMap::from([
        (STEP.to_owned(), step.to_string()),
        (ADAM_STEPS.to_owned(), adam.steps().to_string()),
        (CONFIG.to_owned(), json),
    ]);
    weights::save_safetensors(&path(out), &tensors, &metadata, Dtype::F32)
}

/// Loads what [`save`] wrote; returns the number of steps done and the moving average.
///
/// An error where the configuration is another one: a resumed run must follow the curve of an unbroken one.
pub fn restore(
    out: &Path,
    config: &TrainConfig,
    params: &Params,
    adam: &mut Adam,
) -> Result<(u64, HashMap<String, Tensor>)> {
    let path = path(out);
    let file = weights::load(&path)?;
    let number = |key: &str| {
        file.metadata.get(key).and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| {
            Error::weights(&path, format!("not a training checkpoint: no {key} in its metadata"))
        })
    };
    let (step, adam_steps) = (number(STEP)?, number(ADAM_STEPS)?);
    let saved: TrainConfig =
        file.metadata.get(CONFIG).and_then(|json| serde_json::from_str(json).ok()).ok_or_else(|| {
            Error::weights(&path, "its training configuration is missing or of another version")
        })?;
    if saved != *config {
        return Err(Error::weights(
            &path,
            "was made with another configuration; resume with the same one, or start in another folder",
        ));
    }
    params.restore(|name| file.tensors.get(&format!("param/{name}")).cloned())?;
    adam.restore(adam_steps, &file.tensors);
    let average = file
        .tensors
        .iter()
        .filter_map(|(k, t)| Some((k.strip_prefix("average/")?.to_owned(), t.clone())))
        .collect();
    Ok((step, average))
}
