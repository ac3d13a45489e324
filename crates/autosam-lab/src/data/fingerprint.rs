//! Fingerprint of a run's data, which detects whether data have changed.

use super::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Fingerprint of a data set: the names and sizes of its files relative to its folder, and how they are interpreted.
/// Moving or copying the folder does not change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub name: String,
    pub images: usize,
    pub sha256: String,
}

impl Dataset {
    /// The set's [`Fingerprint`].
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for item in &self.items {
            let mut file = |path: Option<&Path>| {
                let path = path.unwrap_or(Path::new(""));
                let below = path.strip_prefix(&self.root).unwrap_or(path);
                // A missing file is reported when it is read.
                let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
                hash.update(format!("{}\0{bytes}\0", below.display()));
            };
            file(Some(&item.image));
            file(item.mask.as_deref());
            hash.update(format!("{:?} {:?}\0", item.reading, item.tile));
            // Only if set, so that fingerprints of older runs stay valid.
            if let Some(bits) = item.bits {
                hash.update(format!("{bits} bits\0"));
            }
        }
        let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Fingerprint { name: self.name.clone(), images: self.items.len(), sha256 }
    }
}
