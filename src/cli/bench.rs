//! `autosam-video bench`.

use super::args::{Network, parse_property, size_parser};
use autosam::bench::live::{self, LiveBench};
use autosam::bench::model::{self, ModelBench, STAGES};
use autosam::bench::{Percentiles, distribution};
use autosam::report::plot;
use autosam::write_atomically;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Smallest and largest width and height of benchmark frames.
const LIMITS: RangeInclusive<u32> = 32..=16_384;

/// Measures speed on this machine.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Model(ModelArgs),
    Live(LiveArgs),
}

/// Times the model from frame to mask, one frame after another, and each stage separately.
#[derive(clap::Args)]
struct ModelArgs {
    #[command(flatten)]
    network: Network,
    /// Random weights for a published SAM (vit_h, vit_l, vit_b, mobile_sam) and `train`'s default generator; the speed is the
    /// same as with trained weights
    #[arg(long, value_name = "SAM", conflicts_with = "model")]
    untrained: Option<String>,
    /// Number of timed frames
    #[arg(long, value_name = "N", default_value_t = 100)]
    frames: usize,
    /// Frame size
    #[arg(long, value_name = "WxH", default_value = "1920x1080", value_parser = size_parser(LIMITS, "1920x1080"))]
    size: (u32, u32),
    /// Folder of images [default: synthetic frames]
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures the element in a live pipeline: the video delay it adds, the age of its masks, and whether bits outside the
/// overlay change. Runs in real time: frames / fps.
#[derive(clap::Args)]
struct LiveArgs {
    /// Video format that the element accepts: NV12, I420, UYVY, YUY2, v210, P010_10LE, RGBA, …
    #[arg(long, default_value = "NV12")]
    format: String,
    #[arg(long, value_name = "WxH", default_value = "1920x1080", value_parser = size_parser(LIMITS, "1920x1080"))]
    size: (u32, u32),
    /// Frames per second
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1000))]
    fps: u32,
    /// Number of measured frames per stream
    #[arg(long, value_name = "N", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    frames: u64,
    /// Number of warm-up frames, which are not measured
    #[arg(long, value_name = "N", default_value_t = 60)]
    warm_up: u64,
    /// Number of parallel pipelines
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams: usize,
    /// Folder of images [default: synthetic frames]
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
    /// Check every Nth frame for changed pixels outside the overlay; checking slows down what is measured
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    check_every: u64,
    /// Set a property of the element, for example --set model-location=FILE
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_property)]
    set: Vec<(String, String)>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Plot of the video delay's distribution; a second file next to it shows the annotation delay
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Model(args) => run_model(args),
        Command::Live(args) => run_live(args),
    }
}

fn run_model(args: ModelArgs) -> anyhow::Result<()> {
    let bench = ModelBench {
        model: args.network.model,
        untrained: args.untrained,
        device: args.network.device,
        precision: args.network.precision.precision(),
        views: args.network.views,
        frames: args.frames,
        size: args.size,
        input: args.input,
    };
    let report = model::run(&bench)?;
    println!(
        "{} on {} in {}: {:.1} frames/s, p50 {:.2} ms, p99 {:.2} ms per frame",
        report.size, report.device, report.precision, report.frames_per_s, report.p50_ms, report.p99_ms
    );
    println!("{:.1} frames/s if the next frame is resized during inference", report.overlapped_frames_per_s);
    for name in STAGES {
        if let Some(ms) = report.stages_ms.get(name) {
            println!("  {name:<14} {ms:>8.2} ms");
        }
    }
    if let Some(mb) = report.peak_memory_mb {
        println!("peak memory {mb:.0} MB");
    }
    if let Some(pages) = report.fresh_pages_per_frame {
        println!("{pages:.2} memory pages per frame requested from the OS");
    }
    if let Some(asked) = report.allocations_per_inference {
        println!("{asked:.2} allocations per inference, from input to probability map");
    }
    write_json(args.json.as_deref(), &report)
}

fn run_live(args: LiveArgs) -> anyhow::Result<()> {
    let bench = LiveBench {
        format: args.format,
        size: args.size,
        rate: args.fps,
        frames: args.frames,
        warm_up: args.warm_up,
        streams: args.streams,
        input: args.input,
        check_every: args.check_every,
        properties: args.set,
    };
    let (report, delays) = live::run(&bench)?;
    println!(
        "{} {} at {} frames/s, {} stream{}",
        report.format,
        report.size,
        report.fps,
        report.streams,
        if report.streams == 1 { "" } else { "s" }
    );
    println!("  ms                p50      p95      p99    p99.9      max");
    let row = |name: &str, p: &Option<Percentiles>| match p {
        Some(p) => println!(
            "  {name:<12} {:>8.3} {:>8.3} {:>8.3} {:>8.3} {:>8.3}",
            p.p50, p.p95, p.p99, p.p999, p.max
        ),
        None => println!("  {name:<12} nothing was drawn"),
    };
    row("video", &report.video_delay_ms);
    row("annotation", &report.annotation_delay_ms);
    println!(
        "  {} frames in, {} out, {} dropped; {} inferred ({:.1}/s), {} skipped; {} with a detection",
        report.frames_in,
        report.frames_out,
        report.dropped,
        report.inferred,
        report.inferences_per_s,
        report.skipped,
        report.marked
    );
    print!("  {:.0} bytes copied", report.bytes_copied_per_frame);
    match report.allocations_per_frame {
        Some(n) => println!(", {n:.1} allocations by the element on the streaming thread per frame"),
        None => println!(" per frame"),
    }
    match report.pixels_changed_outside_mask {
        Some(n) => {
            println!("  {n} pixels changed outside the overlay, in {} frames checked", report.frames_checked);
        }
        None => {
            println!("  pixels outside the overlay not checked: this element has no property attach-meta")
        }
    }
    if let Some(iou) = report.mask_iou {
        println!("  IoU of the shown mask with the frame's own truth {iou:.3} (mean)");
    }
    if let Some(file) = &args.plot {
        let title = format!("{} {} at {} frames/s", report.format, report.size, report.fps);
        for (name, times, file) in [
            ("video delay", &delays.video, file.clone()),
            ("annotation delay", &delays.annotation, beside(file)),
        ] {
            let svg = plot(&format!("{title}: {name}"), "ms", "% of frames", &[distribution(name, times)])?;
            write_atomically(&file, svg.as_bytes())?;
        }
    }
    write_json(args.json.as_deref(), &report)
}

fn write_json(file: Option<&Path>, report: &impl serde::Serialize) -> anyhow::Result<()> {
    if let Some(file) = file {
        write_atomically(file, serde_json::to_string_pretty(report)?.as_bytes())?;
    }
    Ok(())
}

/// `delays.svg` → `delays-annotation.svg`.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push("-annotation.svg");
    file.with_file_name(name)
}
