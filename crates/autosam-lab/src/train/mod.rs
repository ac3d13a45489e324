//! Trains a small SAM, then the generator through it: losses, parameters, training loop, checkpoints.

#[expect(unsafe_code, reason = "the map of a file in memory, see docs/unsafe.md")]
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod losses;
mod networks;
pub mod objects;
pub mod optimizer;
mod origin;
pub mod parallel;
pub mod params;
pub mod prompts;
pub mod tensorboard;
pub mod trainer;
mod validation;

pub use config::{Stage, TrainConfig};
pub use parallel::Place;
pub use trainer::{StepReport, Trainer};
pub use validation::Validation;

use crate::data::Dataset;
use crate::data::loader::{Batch, Loader, LoaderConfig};
use crate::report::{self, Case};
use crate::{Error, Result};
use autosam_frame::map::ProbMap;
use autosam_frame::{write_atomically, write_png};
use autosam_model::weights::Dtype;
use candle_core::Device;
use image::{GrayImage, RgbImage, imageops};
use origin::Origin;
use parallel::Group;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Inputs and outputs of a training run.
#[derive(Debug)]
pub struct Job {
    pub config: TrainConfig,
    /// SAM weights: frozen for training a generator, or the start of training a SAM.
    pub sam: Option<PathBuf>,
    /// A backbone pretrained on ImageNet for a fresh network ([`Trainer::begin_with`]).
    pub init: Option<PathBuf>,
    /// A model whose predictions are learned in addition to the masks ([`Trainer::learn_from`]).
    pub teacher: Option<PathBuf>,
    /// Data sets with their weights: how often images are drawn compared with plain concatenation.
    pub train: Vec<(Dataset, f32)>,
    pub validation: Vec<Dataset>,
    /// The run's folder: `config.toml`, `data.md`, `views.png`, `log.jsonl`, TensorBoard's events, `loss.svg`, `dice.svg`,
    /// `checkpoint.safetensors`, `model.safetensors`.
    pub out: PathBuf,
    /// Whether to resume from the checkpoint in `out`.
    pub resume: bool,
    pub device: Device,
    /// Folder and maximum size in bytes of the embedding cache, which the configuration's `views` enables.
    pub cache: (PathBuf, u64),
    /// Whether an unreadable image is an error instead of being left out.
    pub strict: bool,
    /// This process's place in a distributed run. All processes have the same job; `out` is a shared folder (each reads
    /// the checkpoint there, and process 0 writes).
    pub place: Option<Place>,
}

/// Receives a run's progress.
pub trait Observer {
    fn started(&mut self, trainer: &Trainer, images: usize);
    fn stepped(&mut self, report: &StepReport);
    fn validated(&mut self, step: u64, results: &[Validation]);
}

/// Runs `job` to its end, or until `stop` is set (a checkpoint is written first). The model file holds the
/// moving average of weights; it is replaced at every validation.
pub fn fit(job: &Job, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<()> {
    let config = &job.config;
    std::fs::create_dir_all(&job.out).map_err(|e| Error::io(&job.out, e))?;
    if !job.resume && checkpoint::path(&job.out).exists() {
        return Err(Error::invalid(format!(
            "{} contains another run; continue it with --resume, or choose another --out",
            job.out.display()
        )));
    }
    let (mut trainer, origin) = trainer(job)?;
    let (rank, size) = trainer.place();
    let input = trainer.input_size();
    let loader = Loader::new(
        &job.train,
        LoaderConfig {
            views: config.views,
            roi: config.roi,
            window: config.window,
            kept: (config.keep_images as u64) << 20,
            strict: job.strict,
            small_polyps: config.small_polyps,
            ..LoaderConfig::new(input, config.batch, config.seed, config.augment.clone())
        },
    )?;
    if config.views > 0 {
        // A cache can have only one writer.
        let dir = if rank == 0 { job.cache.0.clone() } else { job.cache.0.join(format!("rank-{rank}")) };
        trainer.cache_embeddings(&dir, loader.len() * config.views as usize, job.cache.1)?;
    }
    let mut records = match rank {
        0 => Some(Records::open(job, &trainer, &loader)?),
        _ => None,
    };
    observer.started(&trainer, loader.len());

    let first = trainer.step_count() * (config.accumulate * size) as u64 + rank as u64;
    let mut batches = loader.batches_from(first, size);
    while trainer.step_count() < config.steps {
        let micro = (0..config.accumulate)
            .map(|_| batches.next().unwrap_or_else(|| Err(Error::invalid("there is no image to train on"))))
            .collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        let report = match trainer.step(&micro) {
            Err(Error::Diverged(reason)) => return Err(save_offenders(&job.out, rank, &micro, &reason)),
            report => report?,
        };
        let seconds = began.elapsed().as_secs_f64();
        if let Some(records) = &mut records {
            records.stepped(&report, seconds)?;
        }
        observer.stepped(&report);
        let stopped = trainer.in_any_process(stop.load(Ordering::Relaxed))?;
        let (step, last) = (report.step, report.step == config.steps);
        if let Some(records) = &mut records {
            if step.is_multiple_of(config.checkpoint_every) || last || stopped {
                trainer.save_checkpoint(&job.out, &origin)?;
            }
            if step.is_multiple_of(config.validate_every) || last {
                let results = records.validate(&trainer)?;
                trainer.save_model(&job.out.join("model.safetensors"), Dtype::F16)?;
                observer.validated(step, &results);
            }
        }
        if stopped {
            return Err(Error::Interrupted);
        }
    }
    Ok(())
}

/// The trainer of `job`, new or at the run's checkpoint, and the run's origin.
fn trainer(job: &Job) -> Result<(Trainer, Origin)> {
    let mut trainer = Trainer::new(&job.config, job.sam.as_deref(), &job.device)?;
    if let Some(file) = &job.teacher {
        trainer.learn_from(file)?;
    }
    if let Some(file) = &job.init {
        trainer.begin_with(file)?;
    }
    let origin = Origin::of(job, trainer.frozen_fingerprint()?)?;
    if job.resume {
        trainer.resume(&job.out, &origin)?;
    }
    if let Some(place) = &job.place {
        trainer.join(Group::gather(place, &trainer.fingerprint()?, &job.device)?);
    }
    Ok((trainer, origin))
}

/// Records of a run, other than weights, that process 0 writes.
struct Records {
    out: PathBuf,
    log: Log,
    events: tensorboard::EventWriter,
    validation: validation::Sets,
}

impl Records {
    /// Writes the files that are known before the first step: configuration, data, augmented images.
    fn open(job: &Job, trainer: &Trainer, loader: &Loader) -> Result<Self> {
        let out = job.out.clone();
        let text = toml::to_string(&job.config).map_err(|e| Error::invalid(e.to_string()))?;
        write_atomically(&out.join("config.toml"), text.as_bytes())?;
        write_atomically(&out.join("data.md"), data_table(job).as_bytes())?;
        let log = Log::open(&out.join("log.jsonl"), trainer.step_count())?;
        let validation = validation::Sets::load(&job.validation, job.config.roi, trainer.input_size())?;
        if !job.resume {
            write_png(&out.join("views.png"), &views(loader)?.into())?;
        }
        let events = tensorboard::EventWriter::new(&out)?;
        Ok(Self { out, log, events, validation })
    }

    fn stepped(&mut self, report: &StepReport, seconds: f64) -> Result<()> {
        self.log.write(&serde_json::json!({ "train": report, "seconds": seconds }))?;
        self.events.scalars(
            report.step,
            &[
                ("loss/bce", report.bce),
                ("loss/dice", report.dice_loss),
                ("loss/auxiliary", report.auxiliary),
                ("gradient_norm", report.gradient_norm),
                ("learning_rate", report.learning_rate),
            ],
        )
    }

    fn validate(&mut self, trainer: &Trainer) -> Result<Vec<Validation>> {
        let step = trainer.step_count();
        let results = self.validation.run(&trainer.averaged()?)?;
        for result in &results {
            self.log.write(&serde_json::json!({ "validation": result, "step": step }))?;
            if let Some(dice) = result.dice {
                self.events.scalars(step, &[(&format!("validation/dice/{}", result.name), dice)])?;
            }
        }
        report::training_plots(&self.log.path, &self.out)?;
        Ok(results)
    }
}

/// The first 24 augmented images as the network sees them, with outlined polyps.
fn views(loader: &Loader) -> Result<RgbImage> {
    let mut cases = Vec::new();
    for batch in loader.batches_from(0, 1) {
        let batch = batch?;
        for (sample, mask) in batch.samples.into_iter().zip(batch.masks) {
            let (w, h) = (sample.width as u32, sample.height as u32);
            let side = mask.len().isqrt() as u32;
            if let (Some(rgb), Some(mask)) =
                (RgbImage::from_raw(w, h, sample.rgb), GrayImage::from_raw(side, side, mask))
            {
                let truth = imageops::crop_imm(&mask, 0, 0, w, h).to_image();
                let map = ProbMap { width: 1, height: 1, data: vec![0] };
                cases.push(Case { label: String::new(), rgb, truth, map });
            }
        }
        if cases.len() >= 24 {
            break;
        }
    }
    cases.truncate(24);
    report::contact_sheet(&cases, 6)
}

/// Table of the data for training and validation.
fn data_table(job: &Job) -> String {
    let mut text =
        String::from("| use | data | weight | frames | left out | masks |\n|---|---|---|---|---|---|\n");
    let trained = job.train.iter().map(|(set, weight)| ("training", set, weight.to_string()));
    let validated = job.validation.iter().map(|set| ("validation", set, "-".to_owned()));
    for (what, set, weight) in trained.chain(validated) {
        let line = [what, &set.root.display().to_string(), &weight].join(" | ");
        text.push_str(&format!(
            "| {line} | {} | {} | {} |\n",
            set.items.len(),
            set.problems.len(),
            set.masks
        ));
    }
    text
}

/// Saves the images and masks of the failed batch, and names the folder.
fn save_offenders(out: &Path, rank: usize, batches: &[Batch], reason: &str) -> Error {
    let dir =
        out.join(if rank == 0 { "offending-batch".to_owned() } else { format!("offending-batch-{rank}") });
    let save = || -> Result<()> {
        for (i, (sample, mask)) in batches.iter().flat_map(|b| b.samples.iter().zip(&b.masks)).enumerate() {
            let (w, h) = (sample.width as u32, sample.height as u32);
            let side = (mask.len() as f64).sqrt() as u32;
            if let (Some(rgb), Some(mask)) = (
                image::RgbImage::from_raw(w, h, sample.rgb.clone()),
                image::GrayImage::from_raw(side, side, mask.clone()),
            ) {
                write_png(&dir.join(format!("{i}.png")), &rgb.into())?;
                write_png(&dir.join(format!("{i}_mask.png")), &mask.into())?;
            }
        }
        Ok(())
    };
    match save() {
        Ok(()) => Error::Diverged(format!("{reason}. The batch is in {}", dir.display())),
        Err(e) => Error::Diverged(format!("{reason}. The batch could not be saved: {e}")),
    }
}

/// JSON lines, one per step or validation.
struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    /// Opens the log for appending, and removes the lines of steps after a resumed run's checkpoint.
    fn open(path: &Path, step: u64) -> Result<Self> {
        let mut kept = String::new();
        if step > 0
            && let Ok(text) = std::fs::read_to_string(path)
        {
            let of = |line: &str| {
                let value: serde_json::Value = serde_json::from_str(line).ok()?;
                value["train"]["step"].as_u64().or_else(|| value["step"].as_u64())
            };
            for line in text.lines().filter(|l| of(l).is_some_and(|s| s <= step)) {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        write_atomically(path, kept.as_bytes())?;
        let file = std::fs::OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|e| Error::io(&self.path, e))
    }
}
