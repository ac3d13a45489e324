//! AutoSAM for live video: a frozen Segment Anything Model, prompted by a small trained network.
//!
//! Data flows one way: frame → tensor → embedding → mask → overlay.
//! [`sam`] and [`generator`] are the networks, [`model::AutoSam`] joins them, [`engine`] runs a
//! model beside a live picture, [`overlay`] draws its mask.

#[cfg(feature = "archive")]
pub mod archive;
pub mod bench;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod frame;
pub mod generator;
pub mod model;
#[cfg(all(feature = "serve", feature = "video"))]
pub mod monitor;
pub mod ops;
pub mod overlay;
pub mod priority;
#[cfg(feature = "process")]
pub mod process;
pub mod report;
pub mod sam;
#[cfg(feature = "serve")]
pub mod serve;
mod simd;
pub mod synth;
pub mod train;
#[cfg(feature = "video")]
pub mod video;
pub mod weights;

pub use error::{Error, Result, write_atomically, write_png};
