//! `autosam-video monitor`.

use super::bench::parse_property;
use anyhow::{Context, bail};
use autosam::monitor::{Monitor, MonitorOptions};
use autosam::serve::metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shows a live picture with its masks: in a window, and on a page with --http. No picture is kept.
#[derive(clap::Args)]
pub struct Args {
    /// Video file, URI (rtsp://, https://), folder of frames, /dev/videoN, or decklink[:N]
    #[arg(long, value_name = "FILE|URI|DIR|DEVICE")]
    input: String,
    /// Serve a page with the live picture and its figures. Whoever reaches the address sees the picture
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// Open no window
    #[arg(long)]
    no_window: bool,
    /// Begin a file or folder anew at its end
    #[arg(long)]
    repeat: bool,
    /// Sets a property of the element, for example --set model-location=FILE
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_property)]
    set: Vec<(String, String)>,
    /// Serve figures for Prometheus at /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

impl Args {
    /// The variable that the plugin takes its address from: it counts in its own copy of the library.
    pub fn environment(&self) -> Option<(&'static str, String)> {
        self.metrics.map(|address| (metrics::VARIABLE, address.to_string()))
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let display =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|v| std::env::var_os(v).is_some_and(|v| !v.is_empty()));
    let window = display && !args.no_window;
    if !window && args.http.is_none() {
        bail!("there is no window to show it in; give --http 127.0.0.1:8080 for a page");
    }
    let options = MonitorOptions {
        input: args.input,
        http: args.http,
        window,
        repeat: args.repeat,
        properties: args.set,
    };
    let monitor = Monitor::start(&options)?;
    if let Some(address) = monitor.address() {
        println!("http://{address}/");
        if !address.ip().is_loopback() {
            eprintln!("everybody who reaches this address sees the picture");
        }
    }
    if let Some(address) = args.metrics {
        println!("http://{address}/metrics");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot catch Ctrl-C")?;
    monitor.run(&stop, |text| eprintln!("{text}"))?;
    Ok(())
}
