//! Guarantees of training: the SAM stays frozen to the bit, an interrupted run resumes to the same result, and the same seed
//! gives the same weights.

mod processes;

use autosam::data::augment::Augment;
use autosam::data::loader::{Loader, LoaderConfig};
use autosam::data::{Dataset, Pair};
use autosam::engine::segmenter::ModelInput;
use autosam::eval::predictor::{EvalOptions, LabelledPredictor, Mode};
use autosam::frame::region::CropMode;
use autosam::frame::resize::InputSize;
use autosam::sam::{DecoderConfig, EncoderConfig, SamConfig, VitConfig};
use autosam::train::config::Schedule;
use autosam::train::objects::ObjectMix;
use autosam::train::prompts::PromptMix;
use autosam::train::{Job, Observer, Place, Stage, StepReport, TrainConfig, Trainer, Validation, fit};
use autosam::weights::init::initialise;
use autosam::weights::recorder::shapes_of;
use autosam::weights::{self, Dtype};
use autosam::{Error, Result};
use image::{GrayImage, Luma, Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Images with a bright disc at different positions, in the layout of stills.
fn images(dir: &Path) -> Dataset {
    for folder in ["images", "masks"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for i in 0..6u32 {
        let inside = |x: u32, y: u32| (x as f32 - 12.0 - 6.0 * i as f32).hypot(y as f32 - 30.0) < 9.0;
        RgbImage::from_fn(64, 56, |x, y| {
            Rgb(if inside(x, y) { [210, 120, 110] } else { [90, (x % 20) as u8 + 40, 50] })
        })
        .save(dir.join(format!("images/{i}.png")))
        .unwrap();
        GrayImage::from_fn(64, 56, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]))
            .save(dir.join(format!("masks/{i}.png")))
            .unwrap();
    }
    Dataset::open(dir).unwrap()
}

/// A file with a SAM of 64 px and random weights, as written by `--stage sam`.
fn small_sam(dir: &Path) -> PathBuf {
    let encoder = EncoderConfig::Vit(VitConfig {
        embed_dim: 32,
        depth: 1,
        heads: 2,
        global_blocks: vec![0],
        window: 2,
        mlp_ratio: 2,
    });
    let decoder = DecoderConfig { mlp_dim: 32, ..DecoderConfig::default() };
    let config = SamConfig { image_size: 64, stretch: false, encoder, embed_channels: 32, decoder };
    let tensors = initialise(&shapes_of(|vb| autosam::sam::Sam::load(&config, vb)).unwrap(), 3).unwrap();
    let path = dir.join("sam.safetensors");
    let metadata =
        HashMap::from([(autosam::model::SAM_CONFIG_KEY.to_owned(), serde_json::to_string(&config).unwrap())]);
    weights::save_safetensors(&path, &tensors, &metadata, Dtype::F32).unwrap();
    path
}

fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        stage: Stage::Generator,
        steps,
        batch: 2,
        warmup: 1,
        ema: 0.9,
        generator_input: 64,
        validate_every: 1000,
        checkpoint_every: 1000,
        ..TrainConfig::default()
    }
}

/// Stops the run after a step and records the losses.
struct Watch<'a> {
    stop: &'a AtomicBool,
    at: u64,
    losses: Vec<f64>,
}

impl Observer for Watch<'_> {
    fn started(&mut self, _: &Trainer, _: usize) {}
    fn stepped(&mut self, report: &StepReport) {
        self.losses.push(report.bce + report.dice_loss + report.auxiliary);
        if report.step == self.at {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn validated(&mut self, _: u64, _: &[Validation]) {}
}

struct Run {
    losses: Vec<f64>,
    result: Result<()>,
}

fn run(dir: &Path, out: &str, steps: u64, stop_at: u64, resume: bool) -> Run {
    run_with(config(steps), dir, out, stop_at, resume)
}

fn run_with(config: TrainConfig, dir: &Path, out: &str, stop_at: u64, resume: bool) -> Run {
    fit_until(&Job { resume, ..job(config, dir, out) }, stop_at)
}

fn job(config: TrainConfig, dir: &Path, out: &str) -> Job {
    Job {
        config,
        sam: Some(small_sam(dir)),
        teacher: None,
        init: None,
        train: vec![(images(&dir.join("data")), 1.0)],
        validation: vec![],
        out: dir.join(out),
        resume: false,
        device: autosam::model::DeviceChoice::Cpu.resolve().unwrap(),
        cache: (dir.join("cache"), 1 << 30),
        strict: true,
        place: None,
    }
}

/// Runs `job` and requests a stop after step `stop_at`; 0: never.
fn fit_until(job: &Job, stop_at: u64) -> Run {
    let stop = AtomicBool::new(false);
    let mut watch = Watch { stop: &stop, at: stop_at, losses: vec![] };
    let result = fit(job, &mut watch, &stop);
    Run { losses: watch.losses, result }
}

fn bytes(dir: &Path, out: &str) -> Vec<u8> {
    std::fs::read(dir.join(out).join("model.safetensors")).unwrap()
}

#[test]
fn a_model_trained_on_stretched_images_stretches_frames() {
    let dir = tempfile::tempdir().unwrap();
    let stretched = TrainConfig { stretch: true, ..config(2) };
    run_with(stretched, dir.path(), "stretched", 0, false).result.unwrap();
    run(dir.path(), "padded", 2, 0, false).result.unwrap();
    let size = |file: &Path| {
        let options = autosam::model::ModelOptions::default();
        autosam::model::open(Some(file), &options).unwrap().input_size()
    };
    let file = dir.path().join("stretched/model.safetensors");
    assert_eq!(size(&file), InputSize { side: 64, stretch: true });
    assert_eq!(size(&dir.path().join("padded/model.safetensors")), InputSize { side: 64, stretch: false });
    // A run that starts from this model also stretches, without the setting.
    let on = Job { sam: Some(file), ..job(config(1), dir.path(), "on") };
    fit_until(&on, 0).result.unwrap();
    assert_eq!(size(&dir.path().join("on/model.safetensors")), InputSize { side: 64, stretch: true });
}

#[test]
fn the_same_seed_gives_the_same_weights_and_sam_stays_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (run(dir.path(), "a", 4, 0, false), run(dir.path(), "b", 4, 0, false));
    a.result.unwrap();
    b.result.unwrap();
    assert_eq!(a.losses, b.losses);
    assert_eq!(bytes(dir.path(), "a"), bytes(dir.path(), "b"));

    let sam = weights::load(&small_sam(dir.path())).unwrap();
    let saved = dir.path().join("f32.safetensors");
    let mut trainer = Trainer::new(
        &config(1),
        Some(&small_sam(dir.path())),
        &autosam::model::DeviceChoice::Cpu.resolve().unwrap(),
    )
    .unwrap();
    let loader = Loader::new(
        &[(images(&dir.path().join("data")), 1.0)],
        LoaderConfig::new(trainer.input_size(), 2, 0, Augment::default()),
    )
    .unwrap();
    trainer.save_model(&saved, Dtype::F32).unwrap();
    let before = weights::load(&saved).unwrap();
    let batch = loader.batches_from(0, 1).next().unwrap().unwrap();
    trainer.step(&[batch]).unwrap();
    trainer.save_model(&saved, Dtype::F32).unwrap();
    let after = weights::load(&saved).unwrap();
    let values = |t: &autosam::weights::Checkpoint, n: &str| {
        t.tensors[n]
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    };
    for name in sam.tensors.keys() {
        assert_eq!(values(&sam, name), values(&after, &format!("sam.{name}")), "{name} changed");
    }
    let moved = after
        .tensors
        .keys()
        .filter(|n| n.starts_with("generator.") && values(&before, n) != values(&after, n));
    assert!(moved.count() > 50, "the generator was not trained");
}

#[test]
fn an_interrupted_run_resumes_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let whole = run(dir.path(), "whole", 6, 0, false);
    whole.result.unwrap();
    let first = run(dir.path(), "broken", 6, 3, false);
    assert!(matches!(first.result, Err(Error::Interrupted)));
    let text = run(dir.path(), "broken", 6, 0, false).result.unwrap_err().to_string();
    assert!(text.contains("--resume"), "{text}");
    let second = run(dir.path(), "broken", 6, 0, true);
    second.result.unwrap();
    assert_eq!([first.losses, second.losses].concat(), whole.losses);
    assert_eq!(bytes(dir.path(), "whole"), bytes(dir.path(), "broken"));
    let log = std::fs::read_to_string(dir.path().join("broken/log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
}

#[test]
fn cached_embeddings_are_reused_with_the_same_result() {
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { views: 2, ..config(6) };
    let first = run_with(config.clone(), dir.path(), "fills", 0, false);
    first.result.unwrap();
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(dir.path().join("cache"))
            .unwrap()
            .map(|f| f.unwrap())
            .map(|f| (f.file_name(), f.metadata().unwrap().len()))
            .collect();
        files.sort();
        files
    };
    let filled = files();
    let second = run_with(config.clone(), dir.path(), "finds", 0, false);
    second.result.unwrap();
    assert_eq!(first.losses, second.losses);
    assert_eq!(bytes(dir.path(), "fills"), bytes(dir.path(), "finds"));
    // The index, which grows with every stored embedding, is unchanged.
    assert_eq!(filled[1], files()[1]);

    // The same batches without a cache: the augmentations are the same, the embeddings are not rounded.
    let mut trainer = Trainer::new(&config, Some(&small_sam(dir.path())), &candle_core::Device::Cpu).unwrap();
    let sets = [(images(&dir.path().join("data")), 1.0)];
    let loader = LoaderConfig {
        views: 2,
        ..LoaderConfig::new(trainer.input_size(), config.batch, config.seed, config.augment.clone())
    };
    let loader = Loader::new(&sets, loader).unwrap();
    for (batch, cached) in loader.batches_from(0, 1).zip(&first.losses) {
        let report = trainer.step(&[batch.unwrap()]).unwrap();
        let loss = report.bce + report.dice_loss + report.auxiliary;
        assert!((loss - cached).abs() < 2e-3 * loss, "{loss} without a cache, {cached} with");
    }

    let text = run_with(TrainConfig { stage: Stage::Sam, ..config }, dir.path(), "sam", 0, false)
        .result
        .unwrap_err()
        .to_string();
    assert!(text.contains("set views=0"), "{text}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_with_the_batch_saved() {
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { learning_rate: 1e30, warmup: 0, ..config(9) };
    let text = run_with(config, dir.path(), "out", 0, false).result.unwrap_err().to_string();
    assert!(text.contains("is not finite") && text.contains("offending-batch"), "{text}");
    assert!(dir.path().join("out/offending-batch/0.png").exists());
    assert!(dir.path().join("out/offending-batch/0_mask.png").exists());
}

/// A run that is killed at random moments and resumed ends with the same weights. AUTOSAM_KILLS sets the number of kills (default
/// 3).
#[test]
fn a_run_killed_with_sigkill_resumes_to_the_same_weights() {
    let kills: u64 = std::env::var("AUTOSAM_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    let dir = tempfile::tempdir().unwrap();
    images(&dir.path().join("data"));
    // Long enough that the run does not end before the last kill.
    let steps = 14 * kills.div_ceil(3);
    let config = TrainConfig { checkpoint_every: 1, ..config(steps) };
    std::fs::write(dir.path().join("config.toml"), toml::to_string(&config).unwrap()).unwrap();
    let sam = small_sam(dir.path());
    let start = |out: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_autosam-video"));
        command.arg("train").arg("--config").arg(dir.path().join("config.toml")).arg("--sam").arg(&sam);
        command.arg("--data").arg(dir.path().join("data")).arg("--out").arg(dir.path().join(out));
        if dir.path().join(out).join("checkpoint.safetensors").exists() {
            command.arg("--resume");
        }
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        (std::time::Instant::now(), command.spawn().unwrap())
    };
    let (began, mut whole) = start("whole");
    assert!(whole.wait().unwrap().success());
    let takes = began.elapsed();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(kills);
    let mut killed = 0;
    for _ in 0..kills {
        let (_, mut child) = start("broken");
        std::thread::sleep(takes.mul_f64(rng.random_range(0.0..2.0 / kills as f64)));
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    println!("{killed} of {kills} runs were killed before they ended");
    assert!(2 * killed > kills, "most runs had ended before they could be killed");
    assert!(start("broken").1.wait().unwrap().success());
    assert_eq!(bytes(dir.path(), "whole"), bytes(dir.path(), "broken"));
    let log = std::fs::read_to_string(dir.path().join("broken/log.jsonl")).unwrap();
    assert_eq!(log.lines().count() as u64, steps);
}

#[test]
fn a_teacher_s_masks_are_learned_in_addition_to_the_labels() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "autosam", 2, 0, false).result.unwrap();
    let taught = |teacher: Option<PathBuf>, teacher_weight: f64, out: &str| {
        let config = TrainConfig { teacher_weight, ..config(1) };
        fit_until(&Job { teacher, ..job(config, dir.path(), out) }, 0)
    };
    let teacher = Some(dir.path().join("autosam/model.safetensors"));
    let first = |run: Run| {
        run.result.unwrap();
        run.losses[0]
    };
    let (without, ignored, learned) = (
        first(taught(None, 1.0, "without")),
        first(taught(teacher.clone(), 0.0, "ignored")),
        first(taught(teacher.clone(), 1.0, "learned")),
    );
    assert_eq!(without, ignored);
    assert!(learned > without + 0.1, "{learned} with a teacher, {without} without");
    let other = dir.path().join("other.safetensors");
    std::fs::write(&other, autosam::model::SHIPPED).unwrap();
    let text = taught(Some(other), 1.0, "refused").result.unwrap_err().to_string();
    assert!(text.contains("other.safetensors") && text.contains("--image-size"), "{text}");
    // Stage sam trains prompts for objects of every kind, which a teacher does not segment.
    let config = TrainConfig { stage: Stage::Sam, ..config(1) };
    let text =
        fit_until(&Job { teacher, ..job(config, dir.path(), "sam") }, 0).result.unwrap_err().to_string();
    assert!(text.contains("stage sam"), "{text}");
}

#[test]
fn the_lightweight_decoder_learns_behind_a_frozen_generator() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "autosam", 2, 0, false).result.unwrap();
    let config = TrainConfig {
        stage: Stage::Lightweight,
        learning_rate: 3e-3,
        augment: Augment::none(),
        ..config(60)
    };
    let job = Job { sam: Some(dir.path().join("autosam/model.safetensors")), ..job(config, dir.path(), "h") };
    let run = fit_until(&job, 0);
    run.result.unwrap();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&run.losses[..8]), mean(&run.losses[52..]));
    assert!(last < 0.9 * first, "{first} to {last}");

    // Every mode gives a map of the same image.
    let item = &job.train[0].0.items[2];
    let pair = item.load().unwrap();
    let h = dir.path().join("h/model.safetensors");
    for mode in [Mode::AutoSam, Mode::Lightweight, Mode::GtPoint, Mode::GtMask, Mode::AutoSamAsMaskPrompt] {
        let device = candle_core::Device::Cpu;
        let options = EvalOptions { mode, roi: CropMode::Full, ..EvalOptions::default() };
        let mut predictor = LabelledPredictor::open(job.sam.as_deref(), Some(&h), options, &device).unwrap();
        let map = predictor.answer(&pair).unwrap();
        assert_eq!((map.width, map.height, map.data.len()), (64, 56, 64 * 56));
        let nothing = Pair { mask: GrayImage::new(pair.mask.width(), pair.mask.height()), ..pair.clone() };
        if matches!(mode, Mode::GtPoint | Mode::GtMask) {
            assert!(predictor.answer(&nothing).unwrap().data.iter().all(|p| *p == 0));
        } else {
            assert_eq!(predictor.answer(&nothing).unwrap(), map);
        }
    }
    let text = LabelledPredictor::open(
        None,
        Some(&item.image),
        EvalOptions { mode: Mode::Lightweight, ..EvalOptions::default() },
        &candle_core::Device::Cpu,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(text.contains("2.png"), "{text}");
}

#[test]
fn a_new_generator_starts_with_sam_s_unprompted_answer() {
    let dir = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(&config(1), Some(&small_sam(dir.path())), &candle_core::Device::Cpu).unwrap();
    let path = dir.path().join("fresh.safetensors");
    trainer.save_model(&path, Dtype::F32).unwrap();
    let file = weights::load(&path).unwrap();
    let model = autosam::model::AutoSam::from_checkpoint(&file, &candle_core::Device::Cpu).unwrap();
    let sample =
        ModelInput { width: 64, height: 64, rgb: (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect() };
    let x = model.preprocess(&[sample]).unwrap();
    let prompt = model.dense_prompt(&x, false).unwrap();
    let none = model.sam().prompt_encoder.no_mask_dense().unwrap();
    let difference = prompt.broadcast_sub(&none).unwrap().abs().unwrap().mean_all().unwrap();
    let size = none.abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    let difference = difference.to_scalar::<f32>().unwrap();
    assert!(difference < 0.25 * size, "differs by {difference}, of {size}");
}

#[test]
fn a_small_sam_learns() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = PromptMix { none: 0.0, point: 0.0, bbox: 0.0, mask: 1.0 };
    let objects = ObjectMix { labelled: 1.0, shape: 0.0, region: 0.0, nothing: 0.0 };
    let config = TrainConfig {
        stage: Stage::Sam,
        learning_rate: 3e-3,
        augment: Augment::none(),
        prompts,
        objects,
        ..config(60)
    };
    let losses = run_with(config, dir.path(), "long", 0, false).losses;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..8]), mean(&losses[52..]));
    assert!(last < 0.85 * first, "{first} to {last}");
}

/// Differences that prevent resuming are reported; others are allowed.
#[test]
fn resume_reports_differences_and_accepts_harmless_changes() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(run(dir.path(), "out", 4, 2, false).result, Err(Error::Interrupted)));
    let refused = |job: Job| fit_until(&Job { resume: true, ..job }, 0).result.unwrap_err().to_string();
    let augment = Augment { rotation: 10.0, ..Augment::default() };
    let other = TrainConfig { batch: 3, augment, ..config(4) };
    let text = refused(job(other, dir.path(), "out"));
    assert!(
        text.contains("batch was 2, not 3") && text.contains("augment.rotation was 90.0, not 10.0"),
        "{text}"
    );
    assert!(!text.contains("learning_rate was"), "{text}");

    // Another SAM: its frozen part is not in the checkpoint.
    let sam = weights::load(&small_sam(dir.path())).unwrap();
    let tensors = sam.tensors.iter().map(|(n, t)| (n.clone(), (t * 1.5).unwrap())).collect();
    let other_sam = dir.path().join("other.safetensors");
    weights::save_safetensors(&other_sam, &tensors, &sam.metadata, Dtype::F32).unwrap();
    let text = refused(Job { sam: Some(other_sam), ..job(config(4), dir.path(), "out") });
    assert!(text.contains("frozen weights (--sam)"), "{text}");

    // Other data: one image fewer, another mask of the same name, another weight.
    let with = |change: &dyn Fn(&mut Dataset, &mut f32)| {
        let mut changed = job(config(4), dir.path(), "out");
        let (set, weight) = &mut changed.train[0];
        change(set, weight);
        refused(changed)
    };
    let text = with(&|set, _| drop(set.items.pop()));
    assert!(text.contains("6 images then, 5 now"), "{text}");
    let text = with(&|set, _| {
        let noise = GrayImage::from_fn(64, 56, |x, y| Luma([if (x * y) % 7 < 3 { 255 } else { 0 }]));
        noise.save(set.items[0].mask.as_ref().unwrap()).unwrap();
    });
    assert!(text.contains("different files"), "{text}");
    let text = with(&|_, weight| *weight = 2.0);
    assert!(text.contains("was 1, not 2"), "{text}");

    // More steps, other intervals and moved data are allowed.
    let more = TrainConfig { steps: 6, validate_every: 5, checkpoint_every: 5, ..config(4) };
    let moved = job(more, dir.path(), "out");
    std::fs::rename(dir.path().join("data"), dir.path().join("moved")).unwrap();
    let train = vec![(Dataset::open(&dir.path().join("moved")).unwrap(), 1.0)];
    let goes_on = fit_until(&Job { resume: true, train, ..moved }, 0);
    goes_on.result.unwrap();
    assert_eq!(goes_on.losses.len(), 4);
}
