//! Real-world video files: truncated, with any timestamps, any pixel aspect ratio, interlaced, rotated, in any container. The
//! inputs are encoded here with GStreamer. Each row of docs/real-inputs.md has at least one test.
#![cfg(feature = "archive")]

mod damage;
mod dicom;
mod folders;
mod geometry;
mod holes;
mod support;
mod time;
