//! Configuration of a training run, read from TOML. Unknown keys are errors.

use super::objects::ObjectMix;
use super::optimizer::OptimizerConfig;
use super::prompts::PromptMix;
use crate::data::augment::Augment;
use crate::{Error, Result};
use autosam_frame::region::CropMode;
use autosam_model::MaskMode;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The part that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// A small SAM from scratch, as a promptable segmenter.
    Sam,
    /// The generator, through a frozen SAM (AutoSAM itself).
    Generator,
    /// The paper's ablation: a lightweight decoder on a frozen generator's prompts, without SAM.
    Lightweight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// Half a cosine down to a hundredth of `learning_rate`.
    Cosine,
}

/// How masks are reduced to the logits' resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The fraction of each cell's pixels that are inside, which keeps the information of boundary cells.
    Area,
    /// The cell's first pixel, as published.
    Nearest,
}

/// The SAM that stage sam starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamKind {
    /// A narrow TinyViT.
    Tiny,
    /// EfficientNet-Lite 0 to 2.
    Lite0,
    Lite1,
    Lite2,
}

/// The generator that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GeneratorKind {
    /// Continues with the generator of the SAM's file (fine-tuning); tiny if it has none.
    Auto,
    Tiny,
    HarDNet39ds,
    HarDNet68,
    HarDNet85,
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0,
    #[serde(rename = "efficientnet-lite1")]
    EfficientNetLite1,
    #[serde(rename = "efficientnet-lite2")]
    EfficientNetLite2,
}

/// One training run. The defaults are `configs/default.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    pub stage: Stage,
    pub seed: u64,
    /// Total number of optimiser steps.
    pub steps: u64,
    /// Images per forward pass.
    pub batch: usize,
    /// Forward passes per optimiser step.
    pub accumulate: usize,
    pub learning_rate: f64,
    /// The backbones' learning rate as a fraction of [`Self::learning_rate`], because pretrained weights need a lower
    /// one.
    pub backbone_rate: f64,
    /// Parameters whose names contain one of these are frozen (batch-norm statistics are still updated).
    pub freeze: Vec<String>,
    /// Steps over which the learning rate rises from 0.
    pub warmup: u64,
    pub schedule: Schedule,
    pub mask_mode: MaskMode,
    pub target: Target,
    /// On CUDA, matrix products and convolutions in bf16. A CPU computes in f32 either way.
    pub autocast: bool,
    /// Decay of the exponential moving average of the weights, which is validated and saved; 0 turns it off.
    pub ema: f64,
    /// Whether the decay ramps up to `ema`, because early weights are far off. False, for training that starts from
    /// good weights: `ema` applies from the first step on.
    pub ema_ramp: bool,
    /// Weight of the squared error of SAM's IoU head. Its target is the mask's overlap with the truth, 0 if the truth
    /// is empty.
    pub overlap_weight: f64,
    /// Weight of the loss on the generator's own logits (deep supervision), if it has any.
    pub own_weight: f64,
    /// Weight of the loss on a teacher's prediction (`--teacher`), relative to 1 for the mask's.
    pub teacher_weight: f64,
    /// Stage sam: side of the network's input in pixels, a multiple of 16. 0: as in the SAM that it starts with (256
    /// for a fresh one). Training can start at a small size, where steps are cheap, and continue at the final size.
    pub image_size: usize,
    /// Whether images, and later frames in use, are stretched to the network's input, so that no pixels are lost to
    /// padding. Otherwise as in the SAM that it starts with.
    pub stretch: bool,
    /// The part of each image that is used in training and validation; auto finds the endoscope's image.
    pub roi: CropMode,
    /// Stage sam: the network, unless it continues from a file.
    pub sam: SamKind,
    pub generator: GeneratorKind,
    /// Side of the generator's input in pixels (the paper's Idim).
    pub generator_input: usize,
    /// Steps between validations and between checkpoints.
    pub validate_every: u64,
    pub checkpoint_every: u64,
    /// Number of augmentations of each image. 0: a new one every time. Otherwise they alternate from epoch to epoch,
    /// and the frozen encoder's embeddings are cached.
    pub views: u32,
    /// Number of consecutive frames of a sequence in a batch, with the same augmentation.
    pub window: usize,
    /// How much more often an image with a small polyp (less than a 64th of the image) is drawn than others.
    pub small_polyps: f32,
    /// MiB of decoded images kept in memory; others are decoded every time.
    pub keep_images: usize,
    pub optimizer: OptimizerConfig,
    pub augment: Augment,
    pub prompts: PromptMix,
    pub objects: ObjectMix,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            stage: Stage::Generator,
            seed: 0,
            steps: 1000,
            batch: 8,
            accumulate: 1,
            learning_rate: 1e-3,
            backbone_rate: 1.0,
            freeze: Vec::new(),
            warmup: 100,
            schedule: Schedule::Cosine,
            mask_mode: MaskMode::Sigmoid,
            target: Target::Area,
            autocast: true,
            ema: 0.99,
            ema_ramp: true,
            overlap_weight: 1.0,
            own_weight: 0.4,
            teacher_weight: 1.0,
            image_size: 0,
            stretch: false,
            roi: CropMode::Auto,
            sam: SamKind::Lite0,
            generator: GeneratorKind::Auto,
            generator_input: 192,
            validate_every: 250,
            checkpoint_every: 100,
            optimizer: OptimizerConfig::default(),
            augment: Augment::default(),
            prompts: PromptMix::default(),
            objects: ObjectMix::default(),
            keep_images: 4096,
            views: 0,
            window: 1,
            small_polyps: 1.0,
        }
    }
}

impl TrainConfig {
    /// Reads `path` (or the defaults), then applies `key=value` overrides; dots access tables
    /// (`optimizer.weight_decay=0`). Errors name the file and the key.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let (text, origin) = match path {
            Some(p) => (std::fs::read_to_string(p).map_err(|e| Error::io(p, e))?, p.display().to_string()),
            None => (String::new(), "defaults".to_string()),
        };
        let mut table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| Error::invalid(format!("{origin}: {}", e.message())))?;
        for item in overrides {
            let (key, value) = item
                .split_once('=')
                .ok_or_else(|| Error::invalid(format!("--set {item}: expected KEY=VALUE")))?;
            set(&mut table, key, value)?;
        }
        let config: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| Error::invalid(format!("{origin}: {}", e.message())))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        for (name, value) in
            [("batch", self.batch as u64), ("accumulate", self.accumulate as u64), ("steps", self.steps)]
        {
            if value == 0 {
                return Err(Error::invalid(format!("{name} must be at least 1")));
            }
        }
        self.augment.validate()?;
        if !self.objects.is_usable() {
            return Err(Error::invalid("objects: the weights must be at least 0, one of them above it"));
        }
        if self.generator_input < 32 || !self.generator_input.is_multiple_of(32) {
            return Err(Error::invalid(format!(
                "generator_input is {}; it must be a multiple of 32, at least 32",
                self.generator_input
            )));
        }
        Ok(())
    }

    /// Learning rate of step `step` (from 0).
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
                let t = ((step - self.warmup) as f64 / span).min(1.0);
                let floor = 0.01;
                self.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos()))
            }
        }
    }
}

/// Sets the dotted `key` to `value`, parsed as TOML or taken as a string.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<()> {
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut at = table;
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        at = at
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| Error::invalid(format!("--set {key}: {part} is a value, not a table")))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(overrides: &[&str]) -> Result<TrainConfig> {
        TrainConfig::load(None, &overrides.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn overrides_set_keys_in_tables() {
        let c = load(&["steps=7", "optimizer.weight_decay=0.5", "stage=sam", "prompts.none=1.0"]).unwrap();
        assert_eq!((c.steps, c.stage), (7, Stage::Sam));
        assert_eq!((c.optimizer.weight_decay, c.prompts.none), (0.5, 1.0));
    }

    #[test]
    fn unknown_and_impossible_values_are_refused_by_name() {
        let text = |o: &[&str]| load(o).unwrap_err().to_string();
        assert!(text(&["stepz=7"]).contains("stepz"));
        assert!(text(&["optimizer.momentum=1"]).contains("momentum"));
        assert!(text(&["batch=0"]).contains("batch must be at least 1"));
        assert!(text(&["generator_input=100"]).contains("multiple of 32"));
        assert!(text(&["steps"]).contains("KEY=VALUE"));
    }

    #[test]
    fn every_file_in_configs_loads_and_default_toml_is_the_default() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let mut names = Vec::new();
        for file in std::fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            TrainConfig::load(Some(&path), &[]).unwrap();
            names.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
        assert!(names.len() >= 6, "{names:?}");
        let default = TrainConfig::load(Some(&dir.join("default.toml")), &[]).unwrap();
        assert_eq!(default, TrainConfig::default());
        let text = std::fs::read_to_string(dir.join("default.toml")).unwrap();
        for key in toml::Table::try_from(TrainConfig::default()).unwrap().keys() {
            assert!(text.contains(key.as_str()), "default.toml does not document {key}");
        }
    }

    #[test]
    fn the_learning_rate_rises_then_falls() {
        let c = TrainConfig { steps: 100, warmup: 10, learning_rate: 1.0, ..Default::default() };
        assert!((c.learning_rate_at(0) - 0.1).abs() < 1e-9);
        assert!((c.learning_rate_at(10) - 1.0).abs() < 1e-9);
        assert!(c.learning_rate_at(55) < c.learning_rate_at(20));
        assert!((c.learning_rate_at(100) - 0.01).abs() < 1e-9);
    }
}
