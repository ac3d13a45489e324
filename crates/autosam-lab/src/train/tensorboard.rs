//! Writes scalars as TensorBoard event files: TFRecords of `Event` protocol buffers (tensorflow/core/util/event.proto).

use crate::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// Writes events to a new file; TensorBoard joins the files of a resumed run.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates an `events.out.tfevents.*` in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = dir.join(format!("events.out.tfevents.{}.{:09}", since.as_secs(), since.subsec_nanos()));
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        let mut writer = Self { path, file };
        let mut event = time();
        field(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Writes the `values` of one step by tag.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            field(&mut entry, 1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            field(&mut summary, 1, &entry);
        }
        let mut event = time();
        event.push(2 << 3);
        varint(&mut event, step);
        field(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let masked =
            |bytes: &[u8]| CRC.checksum(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes();
        let record = [&length[..], &masked(&length), event, &masked(event)].concat();
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

/// An event with its wall time (field 1, double).
fn time() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut event = vec![1 << 3 | 1];
    event.extend(now.to_le_bytes());
    event
}

/// Appends bytes as field `number`.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_records_contain_tag_and_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::new(dir.path()).unwrap();
        writer.scalars(300, &[("loss/dice", 0.25)]).unwrap();
        let bytes = std::fs::read(&writer.path).unwrap();
        let (mut at, mut events) = (0, Vec::new());
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            events.push(bytes[at + 12..at + 12 + n].to_vec());
            at += 16 + n;
        }
        assert_eq!((at, events.len()), (bytes.len(), 2));
        assert!(events[0].ends_with(b"brain.Event:2"));
        // Step 300 as a varint, then the summary with tag and value.
        assert_eq!(events[1][9..12], [16, 0xAC, 2]);
        assert!(events[1].ends_with(&[&b"loss/dice"[..], &[21], &0.25f32.to_le_bytes()].concat()));
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(CRC.checksum(&[0; 32]), 0x8A91_36AA);
    }
}
