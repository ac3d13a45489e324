//! The property `stats`.

use autosam_engine::{Latency, Stats};

/// `stats`, and the plugin's allocations if they are counted.
pub fn structure(stats: &Stats, allocations: Option<u64>) -> gst::Structure {
    let mut s = gst::Structure::builder("application/x-autosam-stats")
        .field("frames", stats.frames)
        .field("inferred", stats.inferred)
        .field("skipped", stats.skipped)
        .field("errors", stats.errors)
        .field("restarts", stats.restarts)
        .field("pending", stats.pending)
        .build();
    if let Some(allocations) = allocations {
        s.set("allocations", allocations);
    }
    let mut add = |name: &str, l: &Latency| {
        s.set(format!("{name}-last"), l.last.as_nanos() as u64);
        s.set(format!("{name}-mean"), l.mean.as_nanos() as u64);
        s.set(format!("{name}-max"), l.max.as_nanos() as u64);
    };
    add("inference", &stats.inference);
    add("video-delay", &stats.video_delay);
    add("annotation-delay", &stats.annotation_delay);
    s
}
