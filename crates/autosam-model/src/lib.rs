//! AutoSAM (arXiv 2306.06370): a frozen SAM whose dense prompt a small network generates. Frame in, logits and
//! mask out; the same code for live video, files, training and evaluation.

mod arithmetic;
mod autosam;
#[cfg_attr(not(feature = "cuda"), path = "aux_stream_stub.rs")]
mod aux_stream;
pub mod backbone;
mod config;
mod exec;
pub mod generator;
mod network;
mod object;
mod options;
mod pixels;
mod predictor;
pub mod sam;
mod segmenter;
#[cfg(test)]
mod testing;
pub mod weights;

pub use arithmetic::{Arithmetic, Trunk};
pub use autosam::AutoSam;
pub use autosam_frame::{Error, Result};
pub use autosam_ops::device::{DeviceChoice, Precision};
pub use config::{
    CONFIG_KEY, Calibration, ModelConfig, Presence, Quantisation, SAM_CONFIG_KEY, complete, resize,
    sam_config,
};
pub use network::{Network, PromptSource, Prompted};
pub use options::{Flips, MaskMode, ModelOptions};
pub use pixels::{preprocess, probabilities};
pub use predictor::{Predictor, PredictorOptions};
pub use segmenter::{open, open_checkpoint};

use crate::weights::Checkpoint;
use std::path::Path;

/// The default model: AutoSAM at small scale, trained by this project (see its card in `models/`). Its weights are not
/// Meta's.
pub const SHIPPED: &[u8] = include_bytes!("../../../models/autosam-lite.safetensors");

/// The checkpoint at `location`, or the shipped one for `None`.
pub fn checkpoint(location: Option<&Path>) -> Result<Checkpoint> {
    match location {
        Some(path) => weights::load(path),
        None => weights::load_bytes(Path::new("shipped autosam-lite"), SHIPPED),
    }
}
