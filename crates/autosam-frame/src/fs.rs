//! Files that appear under their name only once they are complete.

use crate::{Error, Result};
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The permissions of a file that `File::create` makes; the process's mask applies.
const MODE: u32 = 0o666;

/// Creates the folder of `path` if needed, and returns it.
fn folder_of(path: &Path) -> Result<&Path> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    Ok(dir)
}

/// Path of the temporary file for `path` until it is complete, for a writer that needs a path: `NAME.partial` in the
/// same folder, which is created if needed.
///
/// # Errors
/// If the folder cannot be created.
pub fn partial(path: &Path) -> Result<PathBuf> {
    folder_of(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    Ok(path.with_file_name(name))
}

/// Calls `write` with a temporary file in the folder of `path`, which is created if needed, and renames the file to
/// `path`. An existing file stays intact until the new one is complete. `durable`: the contents are on the disk before
/// the file is renamed, so that a power failure does not replace a complete file by an empty one.
///
/// # Errors
/// If `write` fails or the file cannot be written. The temporary file is then removed.
pub fn replace(path: &Path, durable: bool, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&name).suffix(".partial").permissions(Permissions::from_mode(MODE));
    let failed = |e| Error::io(path, e);
    let mut file = builder.tempfile_in(folder_of(path)?).map_err(failed)?;
    write(file.as_file_mut())?;
    if durable {
        file.as_file().sync_all().map_err(failed)?;
    }
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

/// Replaces the file at `path` by one with `bytes`, see [`replace`]; durable.
///
/// # Errors
/// If the file cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, true, |file| file.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// Replaces the file at `path` by `image` as PNG, see [`replace`]. Not durable: there may be one for each frame, and to wait
/// for the disk would take longer than inference.
///
/// # Errors
/// If the image cannot be encoded or the file cannot be written.
pub fn write_png(path: &Path, image: &image::DynamicImage) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| Error::image(path, e))?;
    replace(path, false, |file| file.write_all(bytes.get_ref()).map_err(|e| Error::io(path, e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/a.txt");
        write_atomically(&path, b"old").unwrap();
        let failed = replace(&path, true, |file| {
            file.write_all(b"half").unwrap();
            Err(Error::invalid("stopped"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        write_atomically(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn permissions_are_those_of_any_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("a"), dir.path().join("b"));
        write_atomically(&ours, b"x").unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn an_unwritable_path_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let text = write_atomically(&dir.path().join("file/a.txt"), b"x").unwrap_err().to_string();
        assert!(text.contains("file"), "{text}");
    }
}
