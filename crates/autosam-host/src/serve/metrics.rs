//! Prometheus exporter: serves everything counted through the `metrics` facade at `/metrics`.

use super::access::Access;
use super::{Answer, Method, Server};
use crate::{Error, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

/// The environment variable with the address of the GStreamer element's exporter, e.g. `127.0.0.1:9090`.
pub const VARIABLE: &str = "AUTOSAM_METRICS";

/// Buckets in seconds: from the element's own work on a frame to inference on a slow CPU.
const VIDEO_BUCKETS: [f64; 12] =
    [5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2.5e-3, 5.75e-3, 1e-2, 5e-2];
const MASK_BUCKETS: [f64; 14] =
    [2e-3, 5e-3, 1e-2, 1.5e-2, 2e-2, 3e-2, 4e-2, 6e-2, 8e-2, 0.12, 0.25, 0.5, 1.0, 5.0];

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves Prometheus metrics until the process exits. Call this before the first engine starts: metrics registered earlier are
/// not exported. Later calls have no effect.
///
/// # Errors
/// If the address cannot be used, or the process has another recorder.
pub fn serve(address: SocketAddr) -> Result<SocketAddr> {
    static SERVED: OnceLock<std::result::Result<(Server, SocketAddr), String>> = OnceLock::new();
    let served = SERVED.get_or_init(|| start(address).map_err(|e| e.to_string()));
    served.as_ref().map(|(_, address)| *address).map_err(|e| Error::device(e.clone()))
}

/// [`serve`] at the address in [`VARIABLE`]; does nothing if it is not set.
///
/// # Errors
/// As for [`serve`], and if the address is invalid.
pub fn serve_from_environment() -> Result<()> {
    let Some(text) = std::env::var(VARIABLE).ok().filter(|t| !t.is_empty()) else { return Ok(()) };
    let address = text.parse().map_err(|_| {
        Error::invalid(format!("{VARIABLE}: invalid address {text:?}, expected one like 127.0.0.1:9090"))
    })?;
    serve(address).map(drop)
}

fn start(address: SocketAddr) -> Result<(Server, SocketAddr)> {
    let handle = builder()?
        .install_recorder()
        .map_err(|e| Error::device(format!("cannot start the Prometheus exporter: {e}")))?;
    describe();
    let told = handle.clone();
    let server = Server::start(address, Access::Open, move |request| match request.path {
        _ if request.method != Method::Get => Answer::GetOnly,
        "/metrics" => Answer::Document(TYPE, told.render().into_bytes().into()),
        "/" => Answer::Document("text/plain; charset=utf-8", b"/metrics\n".as_slice().into()),
        _ => Answer::NotFound,
    })?;
    keep_up(handle)?;
    let address = server.address();
    Ok((server, address))
}

/// Aggregates measurements regularly, because there may be no client that fetches them.
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
        .map_err(|e| Error::device(format!("cannot start a thread for the Prometheus exporter: {e}")))
}

fn builder() -> Result<PrometheusBuilder> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    let unusable = |e| Error::device(format!("cannot start the Prometheus exporter: {e}"));
    PrometheusBuilder::new()
        .set_buckets_for_metric(full("autosam_video_delay_seconds"), &VIDEO_BUCKETS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &MASK_BUCKETS))
        .map_err(unusable)
}

/// Descriptions of the metrics, for Prometheus' HELP lines.
fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("autosam_frames_total", "Frames submitted, with or without inference");
    describe_counter!("autosam_inferred_total", "Frames for which the network computed a mask");
    describe_counter!("autosam_skipped_total", "Frames passed without inference");
    describe_counter!("autosam_errors_total", "Frames whose inference failed");
    describe_counter!("autosam_restarts_total", "Model reloads after a failure");
    describe_histogram!("autosam_inference_seconds", Unit::Seconds, "Time of one inference, without waiting");
    describe_histogram!(
        "autosam_video_delay_seconds",
        Unit::Seconds,
        "Delay that the element adds to a frame"
    );
    describe_histogram!("autosam_annotation_delay_seconds", Unit::Seconds, "Age of a mask when it was drawn");
    describe_counter!("autosam_train_images_total", "Images used by optimiser steps");
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
    fn metrics_are_served_under_prometheus_names() {
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
            "# HELP autosam_frames_total Frames submitted",
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
