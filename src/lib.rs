//! AutoSAM for live video: a frozen Segment Anything Model, prompted by a small trained network.
//!
//! Data flows one way: frame → tensor → embedding → mask → overlay.
//! [`sam`] and [`generator`] are the networks, [`model::AutoSam`] combines them, [`engine`] runs a
//! model in parallel with live video, [`overlay`] draws its masks.
//!
//! `docs/architecture.md` follows a frame through them.

#![forbid(unsafe_code)]

#[cfg(feature = "archive")]
pub mod archive;
pub mod bench;
#[cfg(all(feature = "serve", feature = "archive"))]
pub mod label;
#[cfg(all(feature = "serve", feature = "video"))]
pub mod monitor;
#[cfg(all(feature = "serve", feature = "video"))]
pub mod pointing;
#[cfg(feature = "video")]
pub mod video;

pub use autosam_engine::{overlay, priority};
pub use autosam_frame as frame;
pub use autosam_frame::{Error, Result, error, write_atomically, write_png};
#[cfg(feature = "process")]
pub use autosam_host::process;
#[cfg(feature = "serve")]
pub use autosam_host::serve;
pub use autosam_lab::{data, eval, report, synth, train};
pub use autosam_model as model;
pub use autosam_model::{backbone, generator, sam, weights};
pub use autosam_ops as ops;

/// The engine, and the types of frames and masks that it uses.
pub mod engine {
    pub use autosam_engine::*;
    pub use autosam_frame::{flow, mask, motion, temporal};

    /// The engine's interface to a model.
    pub mod segmenter {
        pub use autosam_engine::segmenter::Segmenter;
        pub use autosam_frame::map::{Mirror, ModelInput, ProbMap};
    }
}
