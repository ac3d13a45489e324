//! The command line, one file per subcommand: each parses its flags, calls the library and prints.

use clap::{Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::fmt::format::FmtSpan;

// First, because its macros are in scope from here on.
#[macro_use]
mod print;

mod archive;
mod args;
mod bench;
mod data;
mod eval;
mod label;
mod models;
mod monitor;
mod progress;
mod run;
mod sets;
mod settings;
mod shipping;
mod supervisor;
mod synth;
mod train;

/// Segments polyps in endoscopy video with AutoSAM. Research use only; not a medical device.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    /// TOML file with defaults for every command's flags [default: $XDG_CONFIG_HOME/autosam-video/settings.toml]
    #[arg(long, global = true, value_name = "FILE", env = "AUTOSAM_SETTINGS", hide_env_values = true)]
    settings: Option<PathBuf>,
    /// Format of logs on stderr (set AUTOSAM_LOG=info, debug, … for their level)
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "AUTOSAM_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Synth(synth::Args),
    Models(models::Args),
    Train(train::Args),
    Data(data::Args),
    Eval(eval::Args),
    Bench(bench::Args),
    Monitor(monitor::Args),
    Label(label::Args),
    Config(settings::Args),
    Completions(shipping::Completions),
    Manual(shipping::Manual),
}

/// Serves Prometheus metrics if --metrics is given.
fn serve_metrics(address: Option<SocketAddr>) -> anyhow::Result<()> {
    if let Some(address) = address {
        eprintln!("http://{}/metrics", autosam::serve::metrics::serve(address)?);
    }
    Ok(())
}

pub fn main() -> ExitCode {
    print::finish(command())
}

/// Parses the command line and runs its command.
fn command() -> ExitCode {
    let cli = match settings::parse() {
        Ok(cli) => cli,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    if let Command::Monitor(args) = &cli.command
        && let Some((name, value)) = args.environment()
    {
        // SAFETY: the process has only one thread so far, so nothing reads the environment at the same time.
        unsafe { std::env::set_var(name, value) };
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("AUTOSAM_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_span_events(FmtSpan::CLOSE)
        // They are written to stderr, by a macro that panics if stderr is closed.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let result = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Models(args) => models::run(args),
        Command::Train(args) => train::run(args),
        Command::Data(args) => data::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Monitor(args) => monitor::run(args),
        Command::Label(args) => label::run(args),
        Command::Config(args) => settings::run(args, cli.settings),
        Command::Completions(args) => shipping::completions(args),
        Command::Manual(args) => shipping::manual(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
