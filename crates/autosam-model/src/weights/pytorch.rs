//! PyTorch's files: the zip format since version 1.6, the older format, and archives that contain one of them, such as
//! the wheel of a Python package. No code in them is run ([`super::pickle`]).

use super::pickle::{Node, Result, Tree};
use super::taken::Taken;
use super::values::{View, read_storage};
use super::{Checkpoint, Fault};
use candle_core::Tensor;
use flate2::CrcReader;
use flate2::read::DeflateDecoder;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// Magic number of a file in the old format.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;

/// Version of the old format; only one exists.
const PROTOCOL: i128 = 1001;

/// Maximum ratio of a file's length to its deflated length.
const DEFLATE: u64 = 1032;

/// Maximum size of a weight file that is unpacked from an archive. Larger ones must be unpacked by the user.
const LONGEST_INNER: u64 = 1 << 30;

/// File name extensions of weight files in an archive.
const ENDINGS: [&str; 6] = [".pth", ".pt", ".ckpt", ".pth.tar", ".bin", ".safetensors"];

/// Reads a zip with a pickle, or one that contains a single weight file.
pub(super) fn read_zip(
    path: &Path,
    reader: impl BufRead + Seek,
    length: u64,
    key: Option<&str>,
    inner: bool,
) -> std::result::Result<Checkpoint, Fault> {
    let mut archive = ZipArchive::new(reader).map_err(|e| e.to_string())?;
    let names = archive
        .file_names()
        .map(|name| name.map(|n| n.into_owned()))
        .collect::<std::result::Result<Vec<String>, _>>()
        .map_err(|e| e.to_string())?;
    let Some(pickle) = names.iter().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl")) else {
        return read_inner(path, &mut archive, &names, key, inner);
    };
    let folder = pickle.trim_end_matches(".pkl");
    check_byte_order(&mut archive, folder.trim_end_matches("data"))?;
    let tree = {
        let mut member = BufReader::new(Member::open(&mut archive, pickle)?);
        let tree = Tree::read(&mut member)?;
        member.into_inner().finish()?;
        tree
    };
    let (views, taken) = tree.choose(key)?;
    let mut storages: Vec<(&str, Vec<(&str, &View)>)> = by_storage(&views).into_iter().collect();
    storages.sort_by_key(|(storage, _)| *storage);
    let limit = usize::try_from(length.saturating_mul(DEFLATE)).unwrap_or(usize::MAX);
    let mut tensors = HashMap::new();
    for (storage, views) in storages {
        let label = format!("{folder}/{storage}");
        let mut member = Member::open(&mut archive, &label)?;
        let bytes = member.bytes;
        read_storage(views, (&label, bytes), &mut member.reader, limit, &mut tensors)?;
        member.finish()?;
    }
    Ok(checkpoint(path, tensors, taken))
}

/// Decompressing reader of an archive member.
struct Member<'a> {
    name: &'a str,
    reader: CrcReader<Box<dyn Read + 'a>>,
    bytes: u64,
    check_sum: u32,
}

impl<'a> Member<'a> {
    fn open(archive: &'a mut ZipArchive<impl Read + Seek>, name: &'a str) -> Result<Self> {
        let at = archive.index_for_name(name).ok_or_else(|| format!("{name} is missing"))?;
        let member = archive.by_index_raw(at).map_err(|e| format!("{name}: {e}"))?;
        if member.encrypted() {
            return Err(format!("{name} is encrypted"));
        }
        let (bytes, check_sum) = (member.size(), member.crc32());
        let reader: Box<dyn Read + 'a> = match member.compression() {
            CompressionMethod::STORE => Box::new(member),
            CompressionMethod::DEFLATE => Box::new(DeflateDecoder::new(member)),
            other => return Err(format!("{name} is compressed with {other}, which is not supported")),
        };
        Ok(Self { name, reader: CrcReader::new(reader), bytes, check_sum })
    }

    /// Reads the rest and compares the checksum.
    fn finish(mut self) -> Result<()> {
        std::io::copy(&mut self.reader, &mut std::io::sink()).map_err(|e| format!("{}: {e}", self.name))?;
        if self.reader.crc().sum() == self.check_sum {
            Ok(())
        } else {
            Err(format!("{} does not match the archive's checksum", self.name))
        }
    }
}

impl Read for Member<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(bytes)
    }
}

/// Fails for a file with big-endian numbers. Files without a byte-order entry are little-endian.
fn check_byte_order<R: BufRead + Seek>(
    archive: &mut ZipArchive<R>,
    folder: &str,
) -> std::result::Result<(), Fault> {
    let name = format!("{folder}byteorder");
    if archive.index_for_name(&name).is_none() {
        return Ok(());
    }
    let mut order = String::new();
    Member::open(archive, &name)?.take(16).read_to_string(&mut order).map_err(|e| e.to_string())?;
    match order.trim() {
        "little" => Ok(()),
        other => Err(Fault::Unusable(format!(
            "its numbers are {other}-endian, which is not supported; save it on a little-endian machine"
        ))),
    }
}

/// Reads the one weight file in an archive.
fn read_inner<R: BufRead + Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    names: &[String],
    key: Option<&str>,
    inner: bool,
) -> std::result::Result<Checkpoint, Fault> {
    let weights: Vec<&String> = names
        .iter()
        .filter(|n| !n.starts_with("__MACOSX/") && ENDINGS.iter().any(|ending| n.ends_with(ending)))
        .collect();
    let [name] = weights.as_slice() else {
        return Err(Fault::Unusable(if weights.is_empty() {
            "a zip archive without weights; expected data.pkl or one .pth file in it".into()
        } else {
            let names = super::taken::listed(weights.into_iter().cloned());
            format!("a zip archive with several weight files ({names}); unpack it and name one")
        }));
    };
    let mut member = Member::open(archive, name)?;
    if inner || member.bytes > LONGEST_INNER {
        return Err(Fault::Unusable(format!("{name} in it is an archive or large: unpack it first")));
    }
    let mut bytes = Vec::new();
    (&mut member).take(LONGEST_INNER).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    member.finish()?;
    Ok(super::read(&path.join(name), Cursor::new(bytes), key, true)?)
}

/// Reads a file in the old format: pickles of the magic number, the version, the system, the object and the keys of its
/// storages, then each storage as a count followed by its numbers.
pub(super) fn read_old(
    path: &Path,
    mut reader: impl BufRead + Seek,
    length: u64,
    key: Option<&str>,
) -> std::result::Result<Checkpoint, Fault> {
    let is = |tree: &Tree, expected| matches!(tree.get(tree.root), Node::Int(v) if *v == expected);
    if !is(&Tree::read(&mut reader)?, MAGIC) {
        return Err(Fault::Unusable(
            "a pickle that torch.save did not write; save the state dict again with torch.save".into(),
        ));
    }
    if !is(&Tree::read(&mut reader)?, PROTOCOL) {
        return Err(format!("its version is not {PROTOCOL}").into());
    }
    // Word sizes of the machine that wrote it: the numbers are little-endian on all of them.
    Tree::read(&mut reader)?;
    let tree = Tree::read(&mut reader)?;
    let keys = Tree::read(&mut reader)?;
    let keys = keys
        .items(keys.root)
        .unwrap_or_default()
        .iter()
        .map(|id| keys.text(*id).ok_or_else(|| "the key of a storage is not text".to_owned()));
    let keys = keys.collect::<Result<Vec<&str>>>()?;
    let widths = tree.storage_widths()?;
    let (views, taken) = tree.choose(key)?;
    let mut wanted = by_storage(&views);
    let mut tensors = HashMap::new();
    let limit = usize::try_from(length).unwrap_or(usize::MAX);
    let failed = |e: std::io::Error| e.to_string();
    for storage in keys {
        let width = *widths.get(storage).ok_or_else(|| format!("no tensor uses the storage {storage}"))?;
        let mut count = [0; 8];
        reader.read_exact(&mut count).map_err(|_| format!("it ends before the storage {storage}"))?;
        let start = reader.stream_position().map_err(failed)?;
        let end = u64::try_from(i64::from_le_bytes(count))
            .ok()
            .and_then(|count| start.checked_add(count.checked_mul(width as u64)?))
            .ok_or_else(|| format!("the size of the storage {storage} is not a number"))?;
        if end > length {
            return Err(format!("the storage {storage} ends at byte {end}, the file at {length}").into());
        }
        if let Some(views) = wanted.remove(storage) {
            read_storage(
                views,
                (storage, end - start),
                &mut (&mut reader).take(end - start),
                limit,
                &mut tensors,
            )?;
        }
        reader.seek(std::io::SeekFrom::Start(end)).map_err(failed)?;
    }
    if let Some(storage) = wanted.keys().min() {
        return Err(format!("the storage {storage} is missing").into());
    }
    Ok(checkpoint(path, tensors, taken))
}

fn by_storage(views: &[(String, View)]) -> HashMap<&str, Vec<(&str, &View)>> {
    let mut storages: HashMap<&str, Vec<(&str, &View)>> = HashMap::new();
    // The last of two entries with the same name counts, as in Python.
    let last: HashMap<&str, &View> = views.iter().map(|(name, view)| (name.as_str(), view)).collect();
    for (name, view) in last {
        storages.entry(&view.storage).or_default().push((name, view));
    }
    storages
}

fn checkpoint(path: &Path, tensors: HashMap<String, Tensor>, taken: Taken) -> Checkpoint {
    Checkpoint { path: path.to_owned(), tensors, metadata: HashMap::new(), taken }
}
