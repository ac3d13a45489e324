//! `autosam-video train`.

use anyhow::{Context, bail};
use autosam::data::Dataset;
use autosam::model::DeviceChoice;
use autosam::train::{self, Job, Observer, Place, Stage, StepReport, TrainConfig, Trainer, Validation};
use indicatif::{ProgressBar, ProgressStyle};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Fits the generator through a frozen SAM (stage generator), or a small SAM from scratch (stage sam).
///
/// A run folder gets config.toml, data.md, views.png (what the network is shown first), log.jsonl, TensorBoard's event
/// files, plots, checkpoint.safetensors, model.safetensors and, where there is --val, a report with the worst, median and
/// best frames (views and report hold pictures of your data). Ctrl-C writes a checkpoint; --resume goes on from it, also after a crash.
///
/// Several processes make one run where torchrun's variables say so (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
/// MASTER_PORT; under srun MASTER_ADDR is enough): each takes its own batches, on the GPU of its LOCAL_RANK where the
/// build has CUDA, and gradients are averaged. --out must be a folder that all of them see.
#[derive(clap::Args)]
pub struct Args {
    /// SUN-SEG folder (its TrainDataset is trained on)
    #[arg(long, value_name = "DIR")]
    sunseg: Vec<PathBuf>,
    /// Folder with images/ and masks/, or any layout that `eval --data` knows; several may be given.
    /// `DIR:2` draws its images twice as often
    #[arg(long, value_name = "DIR[:WEIGHT]")]
    data: Vec<String>,
    /// Folder to validate on (same layouts); several may be given
    #[arg(long, value_name = "DIR")]
    val: Vec<PathBuf>,
    /// Validate on every Nth frame only
    #[arg(long, value_name = "N", default_value_t = 1)]
    val_every: usize,
    /// Run folder
    #[arg(long, value_name = "DIR", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// SAM weights: Meta's or MobileSAM's .pth, or what --stage sam made. The shipped model's SAM where
    /// nothing is given. For --stage lightweight: the model whose prompts are decoded
    #[arg(long, value_name = "FILE")]
    sam: Option<PathBuf>,
    /// Learn this model's answers too, the mean over four mirror images of each picture (distillation)
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// TOML file; without one the defaults hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides one key of the configuration, for example --set steps=500
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// generator, sam or lightweight (the paper's ablation); short for --set stage=…
    #[arg(long)]
    stage: Option<String>,
    /// Go on from the checkpoint in --out
    #[arg(long)]
    resume: bool,
    /// Print the configuration and stop
    #[arg(long)]
    print_config: bool,
    /// Stop at pictures that cannot be used, instead of leaving them out
    #[arg(long)]
    strict: bool,
    /// Cut pictures into tiles of so many pixels a side (MoNuSeg: 512)
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(32..))]
    tile: Option<u32>,
    /// Folder for the frozen encoder's embeddings, kept where the configuration's views is above 0; runs may share it.
    /// OUT/embeddings where nothing is given
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The most that --cache may take on disk; what is beyond is computed every time
    #[arg(long, value_name = "GiB", default_value_t = 20.0)]
    cache_limit: f64,
    /// Serve figures for Prometheus at /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut overrides = args.set.clone();
    overrides.extend(args.stage.iter().map(|s| format!("stage={s}")));
    let config = TrainConfig::load(args.config.as_deref(), &overrides)?;
    if args.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    let out = args.out.clone().context("--out is missing")?;
    super::serve_metrics(args.metrics)?;
    let mut sets = Vec::new();
    for dir in &args.sunseg {
        sets.push((Dataset::sunseg(dir, "TrainDataset")?, 1.0));
    }
    for text in &args.data {
        let (dir, weight) = match text.rsplit_once(':').map(|(d, w)| (d, w.parse::<f32>())) {
            Some((dir, Ok(weight))) => (dir, weight),
            _ => (text.as_str(), 1.0),
        };
        sets.extend(Dataset::open_all(dir.as_ref())?.into_iter().map(|set| (set, weight)));
    }
    if sets.is_empty() {
        bail!(
            "nothing to train on: give --sunseg DIR or --data DIR (autosam-video synth makes a folder to try)"
        );
    }
    let mut validation = Vec::new();
    for dir in &args.val {
        validation.extend(Dataset::open_all(dir)?);
    }
    for set in sets.iter_mut().map(|(s, _)| s).chain(&mut validation) {
        set.verify();
        for problem in &set.problems {
            eprintln!("left out: {problem}");
        }
        if args.strict && !set.problems.is_empty() {
            bail!("{}: {} pictures cannot be used (--strict)", set.root.display(), set.problems.len());
        }
        eprintln!("{}: {} frames", set.name, set.items.len());
        if let Some(side) = args.tile {
            *set = set.clone().tiled(side)?;
        }
    }
    validation.iter_mut().for_each(|set| set.keep_every(args.val_every));
    let place = Place::from_variables(|name| std::env::var(name).ok())?;
    let first = place.as_ref().is_none_or(|p| p.rank == 0);
    let device = match &place {
        Some(place) if cfg!(feature = "cuda") => DeviceChoice::Cuda(place.local_rank),
        _ => DeviceChoice::Auto,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let job = Job {
        config,
        sam: args.sam,
        teacher: args.teacher,
        train: sets,
        validation,
        out: out.clone(),
        resume: args.resume,
        device: device.resolve()?,
        cache: (
            args.cache.unwrap_or_else(|| out.join("embeddings")),
            (args.cache_limit.max(0.0) * f64::from(1 << 30)) as u64,
        ),
        strict: args.strict,
        place,
    };
    let region = job.config.roi;
    let shows = first && job.config.stage == Stage::Generator && !job.validation.is_empty();
    let mut progress = Progress::default();
    match train::fit(&job, &mut progress, &stop) {
        Err(autosam::Error::Interrupted) => {
            bail!("interrupted; a checkpoint is in {}: go on with --resume", out.display())
        }
        result => result?,
    }
    let model = out.join("model.safetensors");
    if shows {
        super::eval::look(&model, &job.validation, region, device, &out.join("report"))?;
        println!("report: {}", out.join("report/report.html").display());
    }
    if first {
        println!("model: {}", model.display());
    }
    Ok(())
}

#[derive(Default)]
struct Progress {
    bar: Option<ProgressBar>,
    batch: u64,
}

impl Observer for Progress {
    fn started(&mut self, trainer: &Trainer, images: usize) {
        let (rank, size) = trainer.place();
        if rank > 0 {
            return;
        }
        let of = if size > 1 { format!(", {size} processes") } else { String::new() };
        eprintln!(
            "{images} images, {} trained parameters, {} px{of}",
            trainer.parameter_count(),
            trainer.image_size()
        );
        if let Some((held, room, bytes)) = trainer.cache_fill() {
            let gib = |n: usize| (n * bytes) as f64 / f64::from(1 << 30);
            eprintln!("embeddings: {held} of {room} are cached; {:.2} GiB on disk when all are", gib(room));
        }
        self.batch = trainer.images_per_step() as u64;
        let bar = ProgressBar::new(trainer.config().steps).with_position(trainer.step_count());
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} {elapsed} ETA {eta}") {
            bar.set_style(style);
        }
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn stepped(&mut self, r: &StepReport) {
        metrics::counter!("autosam_train_steps_total").increment(1);
        metrics::counter!("autosam_train_images_total").increment(self.batch);
        metrics::gauge!("autosam_train_loss").set(r.bce + r.dice_loss);
        metrics::gauge!("autosam_train_learning_rate").set(r.learning_rate);
        if let Some(bar) = &self.bar {
            bar.set_position(r.step);
            let images = bar.per_sec() * self.batch as f64;
            bar.set_message(format!(
                "loss {:.3} (BCE {:.3}, Dice {:.3}) {images:.1} images/s",
                r.bce + r.dice_loss,
                r.bce,
                r.dice_loss
            ));
        }
    }

    fn validated(&mut self, step: u64, results: &[Validation]) {
        for v in results {
            if let Some(dice) = v.dice {
                metrics::gauge!("autosam_train_validation_dice_ratio", "set" => v.name.clone()).set(dice);
            }
            let dice = v.dice.map_or("-".to_owned(), |d| format!("{d:.4}"));
            let line = format!(
                "step {step}: {}: Dice {dice} on {} frames; marked {} of {} polyp-free frames",
                v.name, v.positives, v.alarms, v.negatives
            );
            match &self.bar {
                Some(bar) if !bar.is_hidden() => bar.println(line),
                _ => eprintln!("{line}"),
            }
        }
    }
}
