//! Training checkpoints: everything that a run needs to continue, in one file that is written atomically.

use super::config::TrainConfig;
use super::optimizer::Adam;
use super::origin::Origin;
use super::params::Params;
use crate::{Error, Result};
use autosam_model::weights::{self, Dtype};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

const STEP: &str = "autosam.step";
const ADAM_STEPS: &str = "autosam.adam_steps";
const CONFIG: &str = "autosam.train_config";
const ORIGIN: &str = "autosam.origin";

/// Configuration keys that do not affect steps already taken. They may change when a run is resumed.
const HARMLESS: [&str; 4] = ["steps", "validate_every", "checkpoint_every", "keep_images"];

/// The checkpoint of the run in `out`.
pub fn path(out: &Path) -> PathBuf {
    out.join("checkpoint.safetensors")
}

/// Saves weights, moving average, optimiser and step (all random numbers follow from seed and step).
pub fn save(
    out: &Path,
    config: &TrainConfig,
    origin: &Origin,
    step: u64,
    params: &Params,
    average: &HashMap<String, Tensor>,
    adam: &Adam,
) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = adam.state().collect();
    tensors.extend(params.trained().iter().map(|(n, v)| (format!("param/{n}"), v.as_detached_tensor())));
    tensors.extend(average.iter().map(|(n, t)| (format!("average/{n}"), t.clone())));
    let failed = |e: serde_json::Error| Error::invalid(e.to_string());
    let json = serde_json::to_string(config).map_err(failed)?;
    let metadata = HashMap::from([
        (STEP.to_owned(), step.to_string()),
        (ADAM_STEPS.to_owned(), adam.steps().to_string()),
        (CONFIG.to_owned(), json),
        (ORIGIN.to_owned(), serde_json::to_string(origin).map_err(failed)?),
    ]);
    weights::save_safetensors(&path(out), &tensors, &metadata, Dtype::F32)
}

/// Loads a checkpoint of [`save`]; returns the number of completed steps and the moving average.
///
/// Fails if the configuration, the data or the frozen weights have changed, and names the difference, because a resumed
/// run must follow the curve of an uninterrupted one. Only the keys in [`HARMLESS`] may change.
pub fn restore(
    out: &Path,
    config: &TrainConfig,
    origin: &Origin,
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
            Error::weights(&path, "its training configuration is missing or from another version")
        })?;
    check_config(&path, &saved, config)?;
    check_origin(&path, file.metadata.get(ORIGIN), origin)?;
    params.restore(|name| file.tensors.get(&format!("param/{name}")).cloned())?;
    adam.restore(adam_steps, &file.tensors);
    let average = file
        .tensors
        .iter()
        .filter_map(|(k, t)| Some((k.strip_prefix("average/")?.to_owned(), t.clone())))
        .collect();
    Ok((step, average))
}

/// Fails if a relevant key differs; logs other differences.
fn check_config(path: &Path, saved: &TrainConfig, now: &TrainConfig) -> Result<()> {
    let value = |config: &TrainConfig| {
        let mut keys = BTreeMap::new();
        let value = serde_json::to_value(config).map_err(|e| Error::invalid(e.to_string()))?;
        flatten("", &value, &mut keys);
        Ok::<_, Error>(keys)
    };
    let (saved, now) = (value(saved)?, value(now)?);
    let none = serde_json::Value::Null;
    let mut changed = Vec::new();
    for key in saved.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (saved.get(key).unwrap_or(&none), now.get(key).unwrap_or(&none));
        if old == new {
            continue;
        }
        if HARMLESS.contains(&key.as_str()) {
            tracing::warn!("{}: continues with {key} = {new} (was {old})", path.display());
        } else {
            changed.push(format!("{key} was {old}, not {new}"));
        }
    }
    match changed.is_empty() {
        true => Ok(()),
        false => Err(Error::weights(
            path,
            format!(
                "was made with another configuration: {}. Resume with the same configuration ({} may change), or start in another folder",
                changed.join("; "),
                HARMLESS.join(", ")
            ),
        )),
    }
}

/// Values by dotted key.
fn flatten(prefix: &str, value: &serde_json::Value, keys: &mut BTreeMap<String, serde_json::Value>) {
    match value {
        serde_json::Value::Object(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, keys);
            }
        }
        value => {
            keys.insert(prefix.to_owned(), value.clone());
        }
    }
}

fn check_origin(path: &Path, saved: Option<&String>, now: &Origin) -> Result<()> {
    let Some(saved) = saved else {
        tracing::warn!(
            "{}: made by a version that did not record data and SAM; they are not compared",
            path.display()
        );
        return Ok(());
    };
    let saved: Origin = serde_json::from_str(saved)
        .map_err(|_| Error::weights(path, "its record of data and SAM is from another version"))?;
    let differences = saved.differences(now);
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::weights(
            path,
            format!(
                "was made with other data or weights: {}. Resume with the same, or start in another folder",
                differences.join("; ")
            ),
        )),
    }
}
