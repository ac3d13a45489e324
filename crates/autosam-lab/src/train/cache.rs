//! Disk cache for the embeddings of a frozen encoder, so that it runs once per augmentation of a frame.
//!
//! Each encoder has two files: fixed-size f16 records, read through a memory map, and an index. The key of a record is
//! the encoder's hash (in the file's name) and the hash of the augmented image, so it covers frame and augmentation,
//! and a cache can serve any run. An index entry is appended after its record is written and contains the record's
//! checksum. Records that a kill or a crash left incomplete are computed again.

use crate::{Error, Result};
use autosam_frame::map::ModelInput;
use half::f16;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Key and checksum.
const ENTRY: usize = 32 + 8;

/// Embeddings of one encoder, `[C, g, g]` each.
#[derive(Debug)]
pub struct EmbeddingCache {
    records: File,
    index: File,
    path: PathBuf,
    map: Mmap,
    /// Number of values of an embedding.
    length: usize,
    /// Slot and checksum by key.
    slots: HashMap<[u8; 32], (usize, u64)>,
    /// Number of slots in use, including those of lost records.
    used: usize,
    capacity: usize,
}

impl EmbeddingCache {
    /// Opens the cache of the encoder with hash `encoder` in `dir`, creating it if needed. It can grow by `room`
    /// records of `length` values, but never beyond `limit` bytes.
    ///
    /// # Errors
    /// If the folder cannot be written, or another run has the cache open.
    pub fn open(dir: &Path, encoder: &str, length: usize, room: usize, limit: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let name = &encoder[..encoder.len().min(16)];
        let path = dir.join(format!("{name}.embeddings"));
        let index_path = dir.join(format!("{name}.index"));
        let open = |p: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(p)
                .map_err(|e| Error::io(p, e))
        };
        let (records, mut index) = (open(&path)?, open(&index_path)?);
        index.try_lock().map_err(|_| {
            Error::data(
                &index_path,
                "another run uses this cache; wait for it, or use another --cache folder",
            )
        })?;
        let mut bytes = Vec::new();
        index.read_to_end(&mut bytes).map_err(|e| Error::io(&index_path, e))?;
        let used = bytes.len() / ENTRY;
        // Remove an incomplete last entry.
        index.set_len((used * ENTRY) as u64).map_err(|e| Error::io(&index_path, e))?;
        let mut slots = HashMap::new();
        for (slot, entry) in bytes.chunks_exact(ENTRY).enumerate() {
            let (key, sum) = entry.split_at(32);
            let (Ok(key), Ok(sum)) = (key.try_into(), sum.try_into()) else { continue };
            slots.insert(key, (slot, u64::from_le_bytes(sum)));
        }
        let capacity = (used + room).min((limit / (2 * length as u64)) as usize).max(used);
        // The file is sparse: disk space is used as records are written.
        records.set_len((capacity * 2 * length).max(1) as u64).map_err(|e| Error::io(&path, e))?;
        // SAFETY: the index is locked, so no other run shortens the file below the map; writes through `records` are of
        // slots that no slice of the map is held on (a slice never outlives `get`).
        let map = unsafe { Mmap::map(&records) }.map_err(|e| Error::io(&path, e))?;
        Ok(Self { records, index, path, map, length, slots, used, capacity })
    }

    /// Number of stored embeddings, and capacity.
    pub fn fill(&self) -> (usize, usize) {
        (self.slots.len(), self.capacity)
    }

    /// Size of an embedding on disk in bytes.
    pub fn record_bytes(&self) -> usize {
        2 * self.length
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key of `sample`.
    pub fn key(sample: &ModelInput) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((sample.width as u64).to_le_bytes());
        hash.update((sample.height as u64).to_le_bytes());
        hash.update(&sample.rgb);
        hash.finalize().into()
    }

    /// The embedding of `key`; `None` if it is missing or incomplete.
    pub fn get(&self, key: &[u8; 32]) -> Option<Vec<f16>> {
        let (slot, sum) = *self.slots.get(key)?;
        let bytes = self.map.get(slot * 2 * self.length..(slot + 1) * 2 * self.length)?;
        (checksum(bytes) == sum)
            .then(|| bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect())
    }

    /// Stores `values` under `key`; does nothing if the cache is full.
    ///
    /// # Errors
    /// If the disk is full; the message has the cache's path, and existing records stay.
    pub fn put(&mut self, key: [u8; 32], values: &[f16]) -> Result<()> {
        // A record whose checksum failed is overwritten.
        let known = self.slots.get(&key).map(|s| s.0);
        let slot = known.unwrap_or(self.used);
        if slot >= self.capacity || values.len() != self.length {
            return Ok(());
        }
        let full = |e: std::io::Error| {
            Error::data(
                &self.path,
                format!(
                    "cannot store an embedding: {e}; free disk space, lower --cache-limit, or use another --cache folder"
                ),
            )
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.records.write_all_at(&bytes, (slot * 2 * self.length) as u64).map_err(full)?;
        let sum = checksum(&bytes);
        let mut entry = key.to_vec();
        entry.extend(sum.to_le_bytes());
        self.index.write_all_at(&entry, (slot * ENTRY) as u64).map_err(full)?;
        self.used = self.used.max(slot + 1);
        self.slots.insert(key, (slot, sum));
        Ok(())
    }
}

/// FNV-1a over words of eight bytes: fast, and sufficient to detect holes and torn writes. Caches on disk contain it, so another
/// checksum would make them useless.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xCBF2_9CE4_8422_2325, |h, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (h ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(v: f32) -> Vec<f16> {
        vec![f16::from_f32(v); 5]
    }

    fn open(dir: &Path, room: usize) -> EmbeddingCache {
        EmbeddingCache::open(dir, "abc", 5, room, 1 << 20).unwrap()
    }

    #[test]
    fn stored_embeddings_are_found_up_to_the_capacity() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path(), 2);
        for (key, v) in [(1, 0.5), (2, 1.5), (3, 2.5)] {
            cache.put([key; 32], &values(v)).unwrap();
        }
        assert_eq!(cache.fill(), (2, 2));
        assert_eq!(cache.get(&[2; 32]), Some(values(1.5)));
        assert_eq!(cache.get(&[3; 32]), None);
        let text = EmbeddingCache::open(dir.path(), "abc", 5, 2, 1 << 20).unwrap_err().to_string();
        assert!(text.contains("another run"), "{text}");
        drop(cache);
        let mut cache = open(dir.path(), 1);
        assert_eq!(cache.get(&[1; 32]), Some(values(0.5)));
        cache.put([3; 32], &values(2.5)).unwrap();
        assert_eq!(cache.get(&[3; 32]), Some(values(2.5)));
        drop(cache);
        assert_eq!(EmbeddingCache::open(dir.path(), "abc", 5, 9, 40).unwrap().fill(), (3, 4));
    }

    #[test]
    fn incomplete_records_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path(), 2);
        cache.put([1; 32], &values(0.5)).unwrap();
        cache.put([2; 32], &values(1.5)).unwrap();
        let (records, index) = (cache.path().to_owned(), dir.path().join("abc.index"));
        drop(cache);
        let file = OpenOptions::new().write(true).open(&records).unwrap();
        file.write_all_at(&[9], 3).unwrap();
        let cut = OpenOptions::new().write(true).open(&index).unwrap();
        cut.set_len(ENTRY as u64 * 2 - 7).unwrap();
        let mut cache = open(dir.path(), 2);
        assert_eq!((cache.get(&[1; 32]), cache.get(&[2; 32])), (None, None));
        cache.put([1; 32], &values(0.5)).unwrap();
        cache.put([2; 32], &values(1.5)).unwrap();
        drop(cache);
        let cache = open(dir.path(), 0);
        assert_eq!((cache.get(&[1; 32]), cache.get(&[2; 32])), (Some(values(0.5)), Some(values(1.5))));
    }
}
