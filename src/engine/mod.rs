//! Runs a segmenter beside a live picture (asynchronously) or over files (synchronously).

pub mod segmenter;
