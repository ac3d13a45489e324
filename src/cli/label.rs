//! `autosam-video label`.

use super::args::parse_device;
use super::progress;
use anyhow::Context;
use autosam::frame::region::CropMode;
use autosam::label::frames::Part;
use autosam::label::objects::ObjectOptions;
use autosam::label::{self, LabelOptions};
use autosam::model::{DeviceChoice, ModelOptions};
use autosam::serve::access::Token;
use indicatif::ProgressBar;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

/// Labels polyps in a video on a web page, as a data set for `train --data`.
///
/// Click a polyp, and SAM outlines it; propagate its mask to the frames that follow; review, correct and save. DIR then has
/// Frame/ and GT/, which train, eval and data check read as they are, and coco.json and cvat.xml. Every change is in
/// DIR/label.json before the page shows it: start the same command again to continue. Only this machine can open the page.
/// docs/howto/label.md has a walk-through.
#[derive(clap::Args)]
pub struct Args {
    /// Video file
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Folder of the session and of the data set: new, empty, or of an earlier session with the same clip
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Address of the page, on loopback; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081")]
    http: SocketAddr,
    /// File with an access token for the page (16 to 256 letters and digits), which excludes other users of this machine
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Start of the part to load, in seconds after the first frame
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = parse_seconds)]
    from: f64,
    /// Length of the part to load [default: to the end]
    #[arg(long, value_name = "N", value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Most memory for frames, in MB; about 500 kB per frame of 1920 x 1080
    #[arg(long, value_name = "MB", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    memory_mb: u64,
    /// Weights that answer prompts, made by `train` [default: the built-in model]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Processor: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: DeviceChoice,
    /// Part of the frame that the network sees: auto (the endoscope's image), full, or X,Y,WIDTH,HEIGHT in pixels
    #[arg(long, value_name = "PART", default_value = "auto")]
    roi: CropMode,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("invalid number {text:?}"))?;
    if (0.0..=1e9).contains(&seconds) { Ok(seconds) } else { Err(format!("{text} is not a length of time")) }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    // Checked before the clip is decoded, which may take minutes.
    label::check_loopback(args.http)?;
    let token = args.token_file.as_deref().map(Token::read).transpose()?;
    let options = LabelOptions {
        input: args.input,
        output: args.output,
        part: Part { from: args.from, seconds: args.seconds, memory: args.memory_mb * 1_000_000 },
        objects: ObjectOptions {
            model: args.model,
            options: ModelOptions { device: args.device, ..ModelOptions::default() },
            roi: args.roi,
        },
    };
    let bar = progress::styled(ProgressBar::new_spinner(), "{spinner} {pos} frames read, {per_sec}");
    let labeller = Arc::new(label::open(&options, |frames| bar.set_position(frames))?);
    bar.finish_and_clear();
    // From here on Ctrl-C saves first.
    let (stop, stopped) = mpsc::channel();
    let handler = move || {
        // Fails only if the program is ending already.
        let _ = stop.send(());
    };
    ctrlc::set_handler(handler).context("cannot install the Ctrl-C handler")?;
    let frames = labeller.frames();
    for problem in &frames.problems {
        eprintln!("note: {problem}");
    }
    let (count, megabytes) = (frames.numbers().count(), frames.bytes() as f64 / 1e6);
    let labelled = labeller.snapshot().labels.len();
    eprintln!("{count} frames in {megabytes:.0} MB; {labelled} labelled in {}", options.output.display());
    let server = label::serve(&labeller, args.http, token)?;
    println!("http://{}/", server.address());
    if let Some(file) = &args.token_file {
        eprintln!("the link needs ?token= with the token in {}", file.display());
    }
    eprintln!("label on the page; Ctrl-C here saves the data set and ends");
    // An error means that no signal can come any more.
    let _ = stopped.recv();
    drop(server);
    labeller.finish();
    if labeller.snapshot().labels.is_empty() {
        eprintln!("nothing was labelled");
        return Ok(());
    }
    let exported = labeller.save().map_err(|refused| anyhow::anyhow!("{}", refused.0))?;
    println!("{}: {exported}", options.output.display());
    Ok(())
}
