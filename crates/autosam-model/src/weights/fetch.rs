//! Downloads published weights: resumes interrupted downloads, checks files before use, and keeps them in the user's
//! cache.

use super::published::PublishedWeights;
use super::sha256_of;
use crate::{Error, Result};
use etcetera::base_strategy::{BaseStrategy, Xdg};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Number of consecutive attempts without progress before giving up.
const ATTEMPTS: u32 = 3;

/// Maximum time without data from the server.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a file of unknown length.
const LARGEST: u64 = 8 << 30;

/// The cache folder for weights: `$XDG_CACHE_HOME/autosam-video/weights`, or below `~/.cache`.
///
/// # Errors
/// If there is no home folder.
pub fn cache_dir() -> Result<PathBuf> {
    let dir = Xdg::new().map(|xdg| xdg.cache_dir()).ok().filter(|dir| dir.is_absolute());
    dir.map(|dir| dir.join("autosam-video/weights"))
        .ok_or_else(|| Error::invalid("there is no home folder; set HOME, or choose a folder with --dir"))
}

/// Downloads `published` to `dir` unless it is already there, and returns its path. `url` may name a mirror, since the
/// hash must match. `progress` is called with the bytes so far and in total.
///
/// # Errors
/// With a remedy: no network (which file to put where), a wrong hash, a full disk, a concurrent download.
pub fn fetch(
    published: &PublishedWeights,
    url: &str,
    dir: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<PathBuf> {
    let path = dir.join(published.file);
    let pin = dir.join(format!("{}.sha256", published.file));
    let expected = match published.sha256 {
        Some(hash) => Some(hash.to_owned()),
        None => match std::fs::read_to_string(&pin) {
            Ok(text) => text.split_whitespace().next().map(str::to_owned),
            Err(_) => None,
        },
    };
    if path.exists() {
        let found = sha256_of(&path)?;
        if let Some(expected) = &expected
            && *expected != found
        {
            return Err(Error::weights(
                &path,
                format!("its SHA-256 is {found}, expected {expected}; remove the file and fetch it again"),
            ));
        }
        if expected.is_none() {
            pinned(&pin, &found, published)?;
        }
        return Ok(path);
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let part = dir.join(format!("{}.part", published.file));
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(&part)
        .map_err(|e| Error::io(&part, e))?;
    if file.try_lock().is_err() {
        return Err(Error::weights(&part, "another process is downloading it; wait for that process"));
    }
    let mut download = Download { published, url, file, part: &part, etag: None, progress };
    download.run().map_err(|reason| match reason {
        Stop::Final(e) => e,
        Stop::Cut(reason) => Error::weights(
            &part,
            format!(
                "the download of {url} stopped ({reason}); run the same command to resume it. \
                 Without a network: put {} ({}) at {}",
                published.file,
                published.sha256.map_or("from its authors' page".to_owned(), |h| format!("SHA-256 {h}")),
                path.display()
            ),
        ),
    })?;
    download.file.sync_all().map_err(|e| Error::io(&part, e))?;
    let found = sha256_of(&part)?;
    match &expected {
        Some(expected) if *expected != found => {
            std::fs::remove_file(&part).map_err(|e| Error::io(&part, e))?;
            return Err(Error::weights(
                &path,
                format!("the file from {url} has the SHA-256 {found}, expected {expected}; it was removed"),
            ));
        }
        Some(_) => {}
        None => pinned(&pin, &found, published)?,
    }
    std::fs::rename(&part, &path).map_err(|e| Error::io(&path, e))?;
    Ok(path)
}

/// Stores the hash of a file without a published hash, in `sha256sum`'s format.
fn pinned(pin: &Path, hash: &str, published: &PublishedWeights) -> Result<()> {
    tracing::warn!(
        "no SHA-256 of {} is published; {hash} is stored and expected from now on",
        published.file
    );
    autosam_frame::write_atomically(pin, format!("{hash}  {}\n", published.file).as_bytes())
}

/// Why a download stopped.
enum Stop {
    /// A connection failure; another attempt may succeed.
    Cut(String),
    Final(Error),
}

struct Download<'a> {
    published: &'a PublishedWeights,
    url: &'a str,
    file: File,
    part: &'a Path,
    /// The server's ETag of the version being downloaded.
    etag: Option<String>,
    progress: &'a mut dyn FnMut(u64, Option<u64>),
}

impl Download<'_> {
    fn io(&self, e: std::io::Error) -> Stop {
        Stop::Final(Error::io(self.part, e))
    }

    fn length(&self) -> std::result::Result<u64, Stop> {
        Ok(self.file.metadata().map_err(|e| self.io(e))?.len())
    }

    fn start_over(&mut self) -> std::result::Result<(), Stop> {
        self.file.set_len(0).map_err(|e| self.io(e))?;
        self.file.seek(SeekFrom::Start(0)).map(drop).map_err(|e| self.io(e))
    }

    fn run(&mut self) -> std::result::Result<(), Stop> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_per_read(Some(TIMEOUT))
            .user_agent(concat!("autosam-video/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        if self.published.sha256.is_none() {
            // Without a hash it cannot be checked whether an earlier run's bytes belong to the same file.
            self.start_over()?;
        }
        let mut fruitless = 0;
        loop {
            let before = self.length()?;
            match self.attempt(&agent) {
                Err(Stop::Cut(reason)) => {
                    fruitless = if self.length()? > before { 0 } else { fruitless + 1 };
                    if fruitless == ATTEMPTS {
                        return Err(Stop::Cut(reason));
                    }
                    tracing::info!("{}: {reason}; going on", self.url);
                    std::thread::sleep(Duration::from_millis(200 << fruitless));
                }
                result => return result,
            }
        }
    }

    /// One request, starting at the end of the partial file.
    fn attempt(&mut self, agent: &ureq::Agent) -> std::result::Result<(), Stop> {
        let mut have = self.length()?;
        if self.published.bytes == Some(have) {
            return Ok(());
        }
        let mut request = agent.get(self.url);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
            if let Some(etag) = &self.etag {
                request = request.header("If-Range", etag);
            }
        }
        let response = request.call().map_err(|e| Stop::Cut(e.to_string()))?;
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let total = match response.status().as_u16() {
            200 => {
                self.start_over()?;
                have = 0;
                header("content-length").and_then(|v| v.parse::<u64>().ok())
            }
            206 => {
                // bytes FIRST-LAST/TOTAL
                let range = header("content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {have}-")) {
                    self.start_over()?;
                    return Err(Stop::Cut(format!("the server answered with the range {range:?}")));
                }
                range.rsplit('/').next().and_then(|v| v.parse().ok())
            }
            416 => {
                self.start_over()?;
                return Err(Stop::Cut("the server's file is shorter than the partial download".into()));
            }
            code @ (408 | 429 | 500..=599) => return Err(Stop::Cut(format!("the server answered {code}"))),
            code => {
                let reason =
                    format!("{} answered {code}; see {} for the file", self.url, self.published.source);
                return Err(Stop::Final(Error::weights(self.part, reason)));
            }
        };
        self.etag = header("etag").filter(|e| !e.starts_with("W/"));
        let most = self.published.bytes.or(total).unwrap_or(LARGEST);
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; 1 << 18];
        (self.progress)(have, self.published.bytes.or(total));
        loop {
            let count = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) => return Err(Stop::Cut(e.to_string())),
            };
            have += count as u64;
            if have > most {
                self.start_over()?;
                let reason = format!("{} sent more than the expected {most} bytes", self.url);
                return Err(Stop::Final(Error::weights(self.part, reason)));
            }
            self.file.write_all(&piece[..count]).map_err(|e| self.io(e))?;
            (self.progress)(have, self.published.bytes.or(total));
        }
        match self.published.bytes.or(total) {
            Some(all) if have < all => Err(Stop::Cut(format!("cut off at {have} of {all} bytes"))),
            _ => Ok(()),
        }
    }
}
