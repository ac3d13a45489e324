//! The process's figures for Prometheus: everything that is counted through the `metrics` facade, at `/metrics`.

use super::{Answer, Server};
use crate::{Error, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

/// The environment variable that has the GStreamer element serve its figures: an address such as `127.0.0.1:9090`.
pub const VARIABLE: &str = "AUTOSAM_METRICS";

/// Seconds: from an element's own work on a picture to a network on a slow CPU.
const VIDEO_BUCKETS: [f64; 12] =
    [5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2.5e-3, 5.75e-3, 1e-2, 5e-2];
const MASK_BUCKETS: [f64; 14] =
    [2e-3, 5e-3, 1e-2, 1.5e-2, 2e-2, 3e-2, 4e-2, 6e-2, 8e-2, 0.12, 0.25, 0.5, 1.0, 5.0];

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves the process's figures for as long as the process lives. Before the first engine starts: figures that began without
/// it are not told. A second call serves nothing anew.
///
/// # Errors
/// For an address that cannot be taken, or where the process has another recorder.
pub fn serve(address: SocketAddr) -> Result<SocketAddr> {
    static SERVED: OnceLock<std::result::Result<(Server, SocketAddr), String>> = OnceLock::new();
    let served = SERVED.get_or_init(|| start(address).map_err(|e| e.to_string()));
    served.as_ref().map(|(_, address)| *address).map_err(|e| Error::invalid(e.clone()))
}

/// [`serve`] at the address in [`VARIABLE`]; nothing where it is not set.
///
/// # Errors
/// As [`serve`], and for what is no address.
pub fn serve_from_environment() -> Result<()> {
    let Some(text) = std::env::var(VARIABLE).ok().filter(|t| !t.is_empty()) else { return Ok(()) };
    let address = text
        .parse()
        .map_err(|_| Error::invalid(format!("{VARIABLE}: {text:?} is no address such as 127.0.0.1:9090")))?;
    serve(address).map(drop)
}

fn start(address: SocketAddr) -> Result<(Server, SocketAddr)> {
    let handle =
        builder()?.install_recorder().map_err(|e| Error::invalid(format!("figures for Prometheus: {e}")))?;
    describe();
    let told = handle.clone();
    let server = Server::start(address, move |path| match path {
        "/metrics" => Answer::Document(TYPE, told.render().into_bytes().into()),
        "/" => Answer::Document("text/plain; charset=utf-8", b"/metrics\n".as_slice().into()),
        _ => Answer::NotFound,
    })?;
    keep_up(handle)?;
    let address = server.address();
    Ok((server, address))
}

/// Sums up what was measured now and then: nobody may ever ask for it.
fn keep_up(handle: PrometheusHandle) -> Result<()> {
    std::thread::Builder::new()
        .name("autosam-metrics".into())
        .spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(5));
                handle.run_upkeep();
            }
        })
        .map(drop)
        .map_err(|e| Error::invalid(format!("no thread for figures: {e}")))
}

fn builder() -> Result<PrometheusBuilder> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    let unusable = |e| Error::invalid(format!("figures for Prometheus: {e}"));
    PrometheusBuilder::new()
        .set_buckets_for_metric(full("autosam_video_delay_seconds"), &VIDEO_BUCKETS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &MASK_BUCKETS))
        .map_err(unusable)
}

/// What the figures are, for Prometheus' HELP lines and docs/metrics-export.md.
fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("autosam_frames_total", "Pictures offered, whether or not the network saw them");
    describe_counter!("autosam_inferred_total", "Pictures that the network gave a mask for");
    describe_counter!("autosam_skipped_total", "Pictures that passed without inference");
    describe_counter!("autosam_errors_total", "Pictures whose inference failed");
    describe_counter!("autosam_restarts_total", "Times the model was opened anew after a failure");
    describe_histogram!("autosam_inference_seconds", Unit::Seconds, "One inference, without waiting for it");
    describe_histogram!("autosam_video_delay_seconds", Unit::Seconds, "What was added to a picture's way");
    describe_histogram!("autosam_annotation_delay_seconds", Unit::Seconds, "Age of a mask when it was drawn");
    describe_counter!("autosam_train_images_total", "Images trained on");
    describe_counter!("autosam_train_steps_total", "Optimiser steps");
    describe_gauge!("autosam_train_loss", "Loss of the last step");
    describe_gauge!("autosam_train_learning_rate", "Learning rate of the last step");
    describe_gauge!("autosam_train_validation_dice_ratio", "Mean Dice of the last validation, 0 to 1");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// One test: a process has one recorder.
    #[test]
    fn figures_are_served_under_prometheus_names() {
        let address = serve(([127, 0, 0, 1], 0).into()).unwrap();
        assert_eq!(
            serve(([127, 0, 0, 1], 0).into()).unwrap(),
            address,
            "a second call serves another address"
        );
        metrics::counter!("autosam_frames_total").increment(3);
        metrics::histogram!("autosam_video_delay_seconds").record(4e-4);
        metrics::histogram!("autosam_inference_seconds").record(0.03);
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        // Other tests of this process may count as well.
        for line in [
            "# HELP autosam_frames_total Pictures offered",
            "# TYPE autosam_frames_total counter",
            "# TYPE autosam_video_delay_seconds histogram",
            "autosam_video_delay_seconds_bucket{le=\"0.0005\"}",
            "autosam_inference_seconds_bucket{le=\"0.04\"}",
            "autosam_inference_seconds_sum",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
