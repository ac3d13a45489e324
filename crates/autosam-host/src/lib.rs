//! Process-wide setup around the engine, for programs and for the GStreamer plugin: the allocator, and metrics over HTTP.

#![deny(unsafe_code)]

#[cfg(feature = "process")]
#[expect(unsafe_code, reason = "an allocator, see docs/unsafe.md")]
pub mod process;
#[cfg(feature = "serve")]
pub mod serve;

pub use autosam_frame::{Error, Result};
