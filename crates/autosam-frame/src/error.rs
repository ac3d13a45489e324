//! The one error type of these crates. Every message names the file or value at fault and the way out.
//!
//! A variant says what a caller can do. [`Error::Io`], [`Error::Image`], [`Error::Weights`], [`Error::Data`]: replace the file.
//! [`Error::Invalid`]: change the value. [`Error::Engine`]: try again later, or start the engine again. [`Error::Device`]: choose another
//! device, or have the machine set up.

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
    /// A weights file that is not what it should be: truncated, misnamed, misshapen, unknown.
    #[error("{}: {reason}", path.display())]
    Weights { path: PathBuf, reason: String },
    /// A value from the user (flag, property, configuration) that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// A request that the engine, its worker thread or its model cannot serve now: stopped, flushed, loading, paused after a failure.
    #[error("{0}")]
    Engine(String),
    /// A device or the operating system that refused: a GPU without a driver, a thread, an address or a permission that is not to be had.
    #[error("{0}")]
    Device(String),
    /// Data on disk that does not have the layout it should have.
    #[error("{}: {reason}", path.display())]
    Data { path: PathBuf, reason: String },
    #[cfg(feature = "candle")]
    #[error("model: {0}")]
    Candle(#[from] candle_core::Error),
    #[error("video: {0}")]
    Video(String),
    /// Training that cannot go on: a loss or gradient that is not finite.
    #[error("{0}")]
    Diverged(String),
    /// Another process of a training run is gone, or none of this run.
    #[error("{0}")]
    Peer(String),
    /// Work ended early because it was asked to (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

/// What to do about an image that is not read.
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

/// Where `path` is written until it is whole: `NAME.partial` beside it, in a folder that is made where it is missing.
pub fn partial(path: &Path) -> Result<PathBuf> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    Ok(path.with_file_name(name))
}

/// Writes `bytes` beside `path`, whose folder is made where it is missing, and renames: what was there stays until the
/// new file is whole.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial(path)?;
    let written = std::fs::write(&partial, bytes).map_err(|e| Error::io(&partial, e));
    if written.is_err() {
        // Half a file helps nobody; the error that matters is the first.
        let _ = std::fs::remove_file(&partial);
    }
    written?;
    std::fs::rename(&partial, path).map_err(|e| Error::io(path, e))
}

/// [`write_atomically`] of `image` as PNG.
pub fn write_png(path: &Path, image: &image::DynamicImage) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| Error::image(path, e))?;
    write_atomically(path, bytes.get_ref())
}
