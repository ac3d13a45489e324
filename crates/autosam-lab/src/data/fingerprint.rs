//! What a run was trained on, in a few bytes: enough to tell other data from the same.

use super::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Of a data set as it is used: the names and sizes of its files below its folder, and how they are read. A folder that was
/// moved or copied keeps it.
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
            // Runs from before this was settled keep theirs.
            if let Some(bits) = item.bits {
                hash.update(format!("{bits} bits\0"));
            }
        }
        let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Fingerprint { name: self.name.clone(), images: self.items.len(), sha256 }
    }
}
