//! `autosam-video monitor`.

use super::args::{parse_property, stop_flag};
use super::supervisor::Supervisor;
use anyhow::bail;
use autosam::monitor::{Monitor, MonitorOptions, Progress};
use autosam::serve::metrics;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Shows live video with its masks in a window, and on a web page with --http. No frame is stored.
///
/// A camera or stream that is lost while it plays is opened again, after 1 s, and up to 30 s if it stays away.
#[derive(clap::Args)]
pub struct Args {
    /// Video file, URI (rtsp://, https://), folder of frames, /dev/videoN, or decklink[:N]
    #[arg(long, value_name = "FILE|URI|DIR|DEVICE")]
    input: String,
    /// Serve a page with live video and statistics. At any address except loopback it requires an access token, which is
    /// part of the printed link
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// File with the page's access token (16 to 256 letters and digits); the token is required on loopback too
    #[arg(long, value_name = "FILE", requires = "http")]
    token_file: Option<PathBuf>,
    /// Further host name of the page, for example a proxy's, besides addresses and this machine's own name. The access token is
    /// then required on loopback too
    #[arg(long, value_name = "NAME", requires = "http")]
    http_name: Vec<String>,
    /// Open no window
    #[arg(long)]
    no_window: bool,
    /// Restart a file or folder at its end
    #[arg(long)]
    repeat: bool,
    /// Set a property of the element, for example --set model-location=FILE
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_property)]
    set: Vec<(String, String)>,
    /// Serve Prometheus metrics at /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

impl Args {
    /// The environment variable with the plugin's metrics address. The plugin has its own copy of the metrics library.
    pub fn environment(&self) -> Option<(&'static str, String)> {
        self.metrics.map(|address| (metrics::VARIABLE, address.to_string()))
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let display =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|v| std::env::var_os(v).is_some_and(|v| !v.is_empty()));
    let window = display && !args.no_window;
    if !window && args.http.is_none() {
        bail!("found no display for a window; use --http 127.0.0.1:8080 for a web page");
    }
    let options = MonitorOptions {
        input: args.input,
        http: args.http,
        token_file: args.token_file.clone(),
        names: args.http_name,
        window,
        repeat: args.repeat,
        properties: args.set,
    };
    let monitor = Monitor::start(&options)?;
    if let Some(link) = monitor.link() {
        println!("{link}");
        if let Some(file) = &args.token_file {
            eprintln!("the link needs ?token= with the token in {}", file.display());
        }
        if args.http.is_some_and(|a| !a.ip().is_loopback()) {
            eprintln!(
                "video and token are sent unencrypted; docs/howto/monitor.md explains how to protect them"
            );
        }
    }
    if let Some(address) = args.metrics {
        println!("http://{address}/metrics");
    }
    let stop = stop_flag()?;
    let mut supervisor = Supervisor::ready();
    monitor.run(&stop, |progress| match progress {
        Progress::Running => supervisor.runs(),
        Progress::Problem(text) => {
            eprintln!("{text}");
            Supervisor::status(text);
        }
    })?;
    Ok(())
}
