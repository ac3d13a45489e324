//! Opens and checks a command's data sets, and prints left-out files and warnings.

use anyhow::bail;
use autosam::data::Dataset;
use std::path::{Path, PathBuf};

/// The data sets in or below `dir`. Folders that cannot be read as one are printed; they are an error if `strict`.
pub fn open(dir: &Path, strict: bool) -> anyhow::Result<Vec<Dataset>> {
    let found = Dataset::open_all(dir)?;
    for line in &found.unreadable {
        eprintln!("left out: {line}");
    }
    if strict && !found.unreadable.is_empty() {
        bail!(
            "{}: {} folders cannot be read as a data set (--strict)",
            dir.display(),
            found.unreadable.len()
        );
    }
    Ok(found.sets)
}

/// [`open`] for several folders, without the strictness.
pub fn open_each(dirs: &[PathBuf]) -> anyhow::Result<Vec<Dataset>> {
    let sets: Vec<_> = dirs.iter().map(|dir| open(dir, false)).collect::<Result<_, _>>()?;
    Ok(sets.concat())
}

/// Removes unusable files from `set` and prints them with all warnings. If `strict`, unusable files are an error.
pub fn verify(set: &mut Dataset, strict: bool) -> anyhow::Result<()> {
    set.verify();
    for problem in &set.problems {
        eprintln!("left out: {problem}");
    }
    print_remarks(set);
    if strict && !set.problems.is_empty() {
        bail!("{}: {} images cannot be used (--strict)", set.root.display(), set.problems.len());
    }
    Ok(())
}

/// Prints warnings about `set`, and how its images are read if that is not obvious.
pub fn print_remarks(set: &Dataset) {
    for warning in &set.warnings {
        eprintln!("warning: {warning}");
    }
    for note in &set.notes {
        eprintln!("note: {note}");
    }
}
