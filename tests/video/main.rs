//! Video files as people have them: cut short, with any clock, any shape of pixels, interlaced, turned, in any container. The inputs
//! are made here by GStreamer's own encoders. One test or more for each row of docs/real-inputs.md.
#![cfg(feature = "archive")]

mod damage;
mod dicom;
mod folders;
mod geometry;
mod holes;
mod support;
mod time;
