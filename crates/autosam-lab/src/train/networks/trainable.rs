//! Interface of trainable networks.

use crate::Result;
use crate::data::loader::Batch;
use crate::train::cache::EmbeddingCache;
use crate::train::config::{Target, TrainConfig};
use crate::train::losses::{Loss, bce_with_logits, low_resolution_target};
use autosam_frame::Rect;
use autosam_frame::map::ModelInput;
use autosam_model::{self as model, AutoSam, ModelConfig, Network, Predictor};
use candle_core::{Device, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;

/// A trainable network. Validation uses [`Network::logits`].
pub trait Trainable: Network {
    /// The loss of `batch`. Additional terms are added with [`Loss::add`].
    fn loss(&self, context: &LossContext, batch: &Batch) -> Result<Loss>;

    /// Name prefix of the trained backbone's tensors, which `--init` replaces.
    ///
    /// # Errors
    /// If the stage trains no backbone.
    fn backbone(&self) -> Result<&'static str>;

    /// The file for later stages and inference; `tensors` are all weights by name, with moving averages for trained
    /// ones.
    fn file(&self, model: &ModelConfig, tensors: HashMap<String, Tensor>) -> serde_json::Result<ModelFile>;
}

/// Contents of a weight file.
pub struct ModelFile {
    pub tensors: HashMap<String, Tensor>,
    /// Metadata key of the configuration.
    pub key: &'static str,
    /// The configuration, JSON.
    pub config: String,
}

/// Inputs of a loss in addition to network and batch.
pub struct LossContext<'a> {
    pub config: &'a TrainConfig,
    pub model: &'a ModelConfig,
    pub device: &'a Device,
    /// Number of completed steps.
    pub step: u64,
    /// Number of the batch within the step, over all processes.
    pub micro: usize,
    pub teacher: Option<&'a Predictor<AutoSam>>,
    /// Embeddings of the frozen encoder.
    pub cache: Option<&'a RefCell<EmbeddingCache>>,
}

impl LossContext<'_> {
    /// Width and height of the network's input.
    pub fn image_size(&self) -> usize {
        self.model.sam.image_size
    }

    /// Preprocesses `samples`, `[N, 3, S, S]`.
    pub fn input(&self, samples: &[ModelInput]) -> Result<Tensor> {
        model::preprocess(samples, self.image_size(), self.device)
    }

    /// Reduces masks to `low × low`, `[N, 1, low, low]`.
    pub fn target(&self, masks: &[Vec<u8>], low: usize, kind: Target) -> Result<Tensor> {
        Ok(low_resolution_target(masks, self.image_size(), low, kind, self.device)?)
    }

    /// Adds the distillation loss against the teacher's maps, if the run has a teacher.
    pub fn taught(&self, mut loss: Loss, logits: &Tensor, batch: &Batch) -> Result<Loss> {
        let Some(teacher) = self.teacher else { return Ok(loss) };
        let size = self.image_size();
        let answers: Vec<Vec<u8>> = teacher
            .maps(&batch.samples)?
            .into_iter()
            .map(|map| {
                let whole = Rect::whole(map.width, map.height);
                map.embedded(whole, size, size).data
            })
            .collect();
        let answers = self.target(&answers, logits.dim(2)?, Target::Area)?;
        loss.add(&bce_with_logits(logits, &answers)?.mean_all()?, self.config.teacher_weight)?;
        Ok(loss)
    }
}
