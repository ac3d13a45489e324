//! Labels a video: a person clicks polyps on a web page, SAM outlines them, their masks are propagated, and the result is a data
//! set to train on (`docs/howto/label.md`).
//!
//! [`session`] has the labels and their changes, [`store`] their file, [`frames`] the clip in memory. [`objects`] asks the engine,
//! [`labeller`] puts them together, [`export`] writes the data set, and [`page`] serves it all on loopback.

pub mod export;
pub mod frames;
pub mod labeller;
pub mod objects;
pub mod page;
pub mod session;
pub mod store;

use crate::serve::Server;
use crate::serve::access::{Access, Token};
use crate::{Error, Result};
use frames::{Frames, Part};
use labeller::Labeller;
use objects::{ObjectOptions, Objects};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use store::{Clip, Store};

/// Input and output of a labelling session.
#[derive(Debug, Clone)]
pub struct LabelOptions {
    /// Video file.
    pub input: PathBuf,
    /// Folder of the session and of the data set.
    pub output: PathBuf,
    pub part: Part,
    pub objects: ObjectOptions,
}

/// Loads the clip, the session in the output folder, and the model. `progress` is called with the number of frames read so far.
///
/// # Errors
/// If the clip cannot be read or does not fit into memory, the session belongs to another clip, or the model cannot be loaded.
pub fn open(options: &LabelOptions, progress: impl FnMut(u64)) -> Result<Labeller> {
    // What can fail at once does so before the clip is decoded, which may take minutes.
    Store::check(&options.output, &options.input)?;
    let objects = Objects::open(&options.objects)?;
    let frames = Frames::read(&options.input, &options.part, progress)?;
    let clip = Clip::of(&options.input, frames.size())?;
    let (store, labels) = Store::open(&options.output, &clip)?;
    Ok(Labeller::new(frames, objects, store, labels))
}

/// Serves the page at `address`, which must be on loopback; with `token` only to clients that have it.
///
/// # Errors
/// For any other address, and if the address cannot be used.
pub fn serve(labeller: &Arc<Labeller>, address: SocketAddr, token: Option<Token>) -> Result<Server> {
    check_loopback(address)?;
    page::serve(address, Access::Guarded { token, names: Vec::new() }, labeller.clone())
}

/// # Errors
/// If `address` is not on loopback.
pub fn check_loopback(address: SocketAddr) -> Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let port = address.port();
    Err(Error::invalid(format!(
        "{address} is not a loopback address, and the page shows a patient's video: use 127.0.0.1:{port}, and from another machine \
         a tunnel (ssh -L {port}:127.0.0.1:{port} MACHINE)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_served() {
        for good in ["127.0.0.1:8081", "[::1]:0", "127.3.2.1:9"] {
            check_loopback(good.parse().unwrap()).unwrap();
        }
        for bad in ["0.0.0.0:8081", "192.168.7.5:8081", "[::]:8081", "[2001:db8::1]:8081"] {
            let text = check_loopback(bad.parse().unwrap()).unwrap_err().to_string();
            assert!(text.contains("loopback") && text.contains("127.0.0.1:8081"), "{text}");
        }
    }
}
