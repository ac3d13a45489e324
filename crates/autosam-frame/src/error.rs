//! The error type shared by these crates. Every message names the file or value at fault and how to fix it.
//!
//! Each variant implies what a caller can do. [`Error::Io`], [`Error::Image`], [`Error::Weights`], [`Error::Data`]:
//! replace the file. [`Error::Invalid`]: change the value. [`Error::Engine`]: try again later, or start the engine
//! again. [`Error::Device`]: choose another device, or have the machine set up.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // `cause`, not `source`: the message contains it, and a printed chain would repeat it.
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },
    #[error("{}: cannot read the image: {cause}; {}", path.display(), way_out(cause))]
    Image { path: PathBuf, cause: image::ImageError },
    /// An unusable weights file: truncated, unknown, or with missing, misnamed or misshapen tensors.
    #[error("{}: {reason}", path.display())]
    Weights { path: PathBuf, reason: String },
    /// A value from the user (flag, property, configuration) that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// A request that the engine, its worker thread or its model cannot serve now: stopped, flushed, loading, paused after a failure.
    #[error("{0}")]
    Engine(String),
    /// A device or operating-system resource that is not available: a GPU without a driver, a thread, an address, a
    /// permission.
    #[error("{0}")]
    Device(String),
    /// Data on disk whose layout is not the expected one.
    #[error("{}: {reason}", path.display())]
    Data { path: PathBuf, reason: String },
    #[cfg(feature = "candle")]
    #[error("model: {0}")]
    Candle(#[from] candle_core::Error),
    #[error("video: {0}")]
    Video(String),
    /// Training cannot continue because a loss or gradient is not finite.
    #[error("{0}")]
    Diverged(String),
    /// Another process of a distributed training run has ended or belongs to a different run.
    #[error("{0}")]
    Peer(String),
    /// Work stopped early on request (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

/// Advice on how to fix an image that cannot be read.
fn way_out(cause: &image::ImageError) -> &'static str {
    use image::ImageError::{Limits, Unsupported};
    match cause {
        Unsupported(_) => "save it as PNG",
        Limits(_) => "save it smaller",
        _ => "copy or download it again, or save it as PNG if other programs open it",
    }
}

impl Error {
    pub fn io(path: impl AsRef<Path>, cause: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), cause }
    }
    pub fn image(path: impl AsRef<Path>, cause: image::ImageError) -> Self {
        Self::Image { path: path.as_ref().to_owned(), cause }
    }
    pub fn weights(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Weights { path: path.as_ref().to_owned(), reason: reason.into() }
    }
    pub fn data(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_owned(), reason: reason.into() }
    }
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
    pub fn engine(reason: impl Into<String>) -> Self {
        Self::Engine(reason.into())
    }
    pub fn device(reason: impl Into<String>) -> Self {
        Self::Device(reason.into())
    }
}
