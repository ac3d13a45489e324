//! The session's file, `label.json`: the clip it belongs to, and the labels with their masks.

use super::session::{Labels, Status};
use crate::archive::rle;
use crate::{Error, Result, write_atomically};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes at each end of the clip that identify it.
const ENDS: u64 = 1 << 20;
const VERSION: u32 = 1;
const FILE: &str = "label.json";
const LOCK: &str = ".label.lock";

/// What a clip is recognised by. Its name may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clip {
    pub name: String,
    pub bytes: u64,
    /// SHA-256 of the first and of the last MiB.
    pub sha256_first: String,
    pub sha256_last: String,
    /// Size of its frames, upright.
    pub width: u32,
    pub height: u32,
}

impl Clip {
    /// # Errors
    /// If the file cannot be read.
    pub fn of(path: &Path, (width, height): (u32, u32)) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut hash = |from: u64| -> Result<String> {
            file.seek(SeekFrom::Start(from)).map_err(failed)?;
            let mut part = Vec::new();
            file.by_ref().take(ENDS).read_to_end(&mut part).map_err(failed)?;
            Ok(Sha256::digest(&part).iter().map(|b| format!("{b:02x}")).collect())
        };
        let (sha256_first, sha256_last) = (hash(0)?, hash(bytes.saturating_sub(ENDS))?);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, bytes, sha256_first, sha256_last, width, height })
    }

    fn is_same(&self, other: &Self) -> bool {
        Self { name: other.name.clone(), ..self.clone() } == *other
    }
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    program: &'a str,
    clip: &'a Clip,
    labels: &'a Labels,
}

#[derive(Deserialize)]
struct Stored {
    version: u32,
    clip: Clip,
    labels: Labels,
}

/// The folder of a session. Only one program uses it at a time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    clip: Clip,
    program: String,
    /// Locked as long as the store exists.
    _lock: File,
}

impl Store {
    /// Whether [`Self::open`] would accept the video file `input` for `dir`, as far as that is known before it is decoded.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn check(dir: &Path, input: &Path) -> Result<()> {
        check_folder(dir)?;
        let file = dir.join(FILE);
        if !file.exists() {
            return Ok(());
        }
        let stored = parse(&file)?.clip;
        check_clip(&file, &stored, &Clip::of(input, (stored.width, stored.height))?)
    }

    /// Opens `dir`, creating it if needed, and returns the labels of its session.
    ///
    /// # Errors
    /// If the folder has files but no session, its session belongs to another clip or is damaged, or another program uses it.
    pub fn open(dir: &Path, clip: &Clip) -> Result<(Self, Labels)> {
        check_folder(dir)?;
        let file = dir.join(FILE);
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let path = dir.join(LOCK);
        let lock =
            OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::data(dir, "another `autosam-video label` uses this folder; end it first"));
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(Error::io(&path, e)),
        }
        let (clip, labels) = match file.exists() {
            true => read(&file, clip)?,
            false => (clip.clone(), Labels::new()),
        };
        let program = crate::archive::program();
        Ok((Self { dir: dir.to_owned(), clip, program, _lock: lock }, labels))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// Writes the session; the previous file stays intact until the new one is complete.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, labels: &Labels) -> Result<()> {
        let document = Document { version: VERSION, program: &self.program, clip: &self.clip, labels };
        let text = serde_json::to_vec(&document).map_err(|e| Error::invalid(e.to_string()))?;
        write_atomically(&self.dir.join(FILE), &text)
    }
}

/// # Errors
/// If `dir` has files but no session.
fn check_folder(dir: &Path) -> Result<()> {
    if dir.join(FILE).exists() || !dir.exists() {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    // The program may have been killed while it wrote its first session.
    let own = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy();
        name == LOCK || (name.starts_with(FILE) && name.ends_with(".partial"))
    };
    match entries.any(|entry| entry.is_ok_and(|entry| !own(&entry.file_name()))) {
        true => Err(Error::data(dir, format!("has files but no {FILE}; choose a new or empty folder"))),
        false => Ok(()),
    }
}

/// # Errors
/// If the session in `file` belongs to another clip.
fn check_clip(file: &Path, stored: &Clip, clip: &Clip) -> Result<()> {
    if stored.is_same(clip) {
        return Ok(());
    }
    let text = format!(
        "a session of another clip ({}, {} bytes, not {}, {} bytes); choose another --output",
        stored.name, stored.bytes, clip.name, clip.bytes
    );
    Err(Error::data(file, text))
}

fn damaged(file: &Path, reason: &str) -> Error {
    Error::data(file, format!("the session cannot be read: {reason}; move the file away to begin again"))
}

fn parse(file: &Path) -> Result<Stored> {
    let text = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    let stored: Stored = serde_json::from_slice(&text).map_err(|e| damaged(file, &e.to_string()))?;
    if stored.version != VERSION {
        let reason = format!("a session of version {}; this program reads version {VERSION}", stored.version);
        return Err(Error::data(file, reason));
    }
    Ok(stored)
}

/// The clip, under its first name, and the labels of the session in `file`, which must belong to `clip`.
fn read(file: &Path, clip: &Clip) -> Result<(Clip, Labels)> {
    let read = parse(file)?;
    check_clip(file, &read.clip, clip)?;
    for (frame, label) in &read.labels {
        let (w, h) = (clip.width as usize, clip.height as usize);
        let whole = match &label.mask {
            Some(mask) => label.status != Status::Empty && rle::mask(mask, w, h).is_some(),
            None => label.status == Status::Empty,
        };
        if !whole {
            return Err(damaged(file, &format!("the mask of frame {frame} is damaged")));
        }
    }
    Ok((read.clip, read.labels))
}

#[cfg(test)]
mod tests {
    use super::super::session::Session;
    use super::*;

    fn clip(bytes: &[u8]) -> (tempfile::TempDir, Clip) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clip.mp4");
        std::fs::write(&path, bytes).unwrap();
        let clip = Clip::of(&path, (4, 3)).unwrap();
        (dir, clip)
    }

    /// A session with a mask of the clip's size.
    fn session() -> Session {
        let mut session = Session::default();
        session.set_manual(5, Vec::new(), "42102".into(), 0.75);
        session.set_empty(6);
        session
    }

    #[test]
    fn a_session_is_resumed_with_every_label() {
        let (dir, clip) = clip(b"video");
        let out = dir.path().join("out");
        let (store, labels) = Store::open(&out, &clip).unwrap();
        assert!(labels.is_empty());
        store.save(session().labels()).unwrap();
        // As after a kill: the program ends without a further step.
        drop(store);
        let renamed = Clip { name: "other.mp4".into(), ..clip };
        let (_store, labels) = Store::open(&out, &renamed).unwrap();
        assert_eq!(labels, *session().labels());
        let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}: the session and its lock, nothing partial");
    }

    #[test]
    fn a_write_that_fails_leaves_the_session_intact() {
        let (dir, clip) = clip(b"video");
        let out = dir.path().join("out");
        let (store, _) = Store::open(&out, &clip).unwrap();
        store.save(session().labels()).unwrap();
        // Where the folder was there is a file.
        let aside = dir.path().join("aside");
        std::fs::rename(&out, &aside).unwrap();
        std::fs::write(&out, b"").unwrap();
        let text = store.save(&Labels::new()).unwrap_err().to_string();
        assert!(text.contains(out.to_str().unwrap()), "{text}");
        std::fs::remove_file(&out).unwrap();
        std::fs::rename(&aside, &out).unwrap();
        drop(store);
        assert_eq!(Store::open(&out, &clip).unwrap().1, *session().labels());
    }

    #[test]
    fn another_clip_a_foreign_folder_and_a_second_program_are_refused() {
        let (dir, mine) = clip(b"video");
        let out = dir.path().join("out");
        let (store, _) = Store::open(&out, &mine).unwrap();
        store.save(session().labels()).unwrap();
        let refused = |dir: &Path, clip: &Clip| Store::open(dir, clip).unwrap_err().to_string();
        assert!(refused(&out, &mine).contains("another `autosam-video label`"));
        drop(store);
        let (_dir, other) = clip(b"Video");
        let text = refused(&out, &other);
        assert!(text.contains("a session of another clip") && text.contains("--output"), "{text}");
        assert!(refused(dir.path(), &mine).contains("no label.json"));
        let killed = dir.path().join("killed");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("label.json.aB12.partial"), b"").unwrap();
        assert!(
            Store::open(&killed, &mine).is_ok(),
            "a program that was killed in its first write left this"
        );
    }

    #[test]
    fn a_damaged_session_is_an_error_with_its_path() {
        let (dir, clip) = clip(b"video");
        let out = dir.path().join("out");
        Store::open(&out, &clip).unwrap().0.save(session().labels()).unwrap();
        let file = out.join(FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        for bad in [
            &text[..text.len() / 2],
            &text.replace("42102", "4210"),
            &text.replace("\"version\":1", "\"version\":9"),
        ] {
            std::fs::write(&file, bad).unwrap();
            let said = Store::open(&out, &clip).unwrap_err().to_string();
            assert!(said.contains("label.json"), "{said}");
        }
    }
}
