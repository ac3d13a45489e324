//! Weight files: `.safetensors`, and PyTorch's `.pth`/`.pt` state dicts and modules in both file formats, plain or
//! inside a wheel. No code in them is run. Errors name the file, the tensor and a remedy.

#[cfg(feature = "fetch")]
pub mod fetch;
pub mod init;
mod pickle;
pub mod published;
mod pytorch;
pub mod recorder;
mod safetensors;
mod state;
mod taken;
mod values;

pub use safetensors::save_safetensors;
pub use taken::Taken;

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Number of faults that an error lists before it counts the rest.
const LISTED: usize = 10;

/// Number format of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// The number format of a file's floats if they share one, otherwise f32.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let mut floats = checkpoint.tensors.values().map(Tensor::dtype).filter(DType::is_float);
        let first = floats.next();
        match first.filter(|first| floats.all(|d| d == *first)) {
            Some(DType::F16) => Self::F16,
            Some(DType::BF16) => Self::Bf16,
            _ => Self::F32,
        }
    }

    fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Tensors and metadata of one file, on the CPU.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The file's path, for messages.
    pub path: PathBuf,
    pub tensors: HashMap<String, Tensor>,
    /// Safetensors' `__metadata__`; empty for PyTorch's files.
    pub metadata: HashMap<String, String>,
    /// Which of the file's tensors were taken.
    pub taken: Taken,
}

/// Why a file cannot be read.
enum Fault {
    /// Its bytes are damaged.
    Damaged(String),
    /// It is intact but not usable.
    Unusable(String),
    /// The error of a file inside it.
    Inner(Error),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Inner(error)
    }
}

impl Fault {
    /// The error for the file at `path` of format `kind`.
    fn at(self, path: &Path, kind: &str) -> Error {
        match self {
            Self::Damaged(reason) => Error::weights(
                path,
                format!(
                    "not a usable {kind} file ({reason}); it may be cut short: copy or download it again"
                ),
            ),
            Self::Unusable(reason) => Error::weights(path, reason),
            Self::Inner(error) => error,
        }
    }
}

impl Checkpoint {
    pub fn shapes(&self) -> HashMap<String, Vec<usize>> {
        self.tensors.iter().map(|(n, t)| (n.clone(), t.dims().to_vec())).collect()
    }

    /// Compares names and shapes with those that a model loads.
    ///
    /// # Errors
    /// Lists missing, extra and misshapen tensors (at most ten, then the number of further ones). Integer tensors
    /// (masks, indices, PyTorch's `num_batches_tracked`) are not weights and may be missing or extra.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let expected: BTreeMap<&str, &[usize]> =
            expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let mut faults = Vec::new();
        for (name, shape) in &expected {
            match self.tensors.get(*name) {
                None => faults.push(format!("missing {name} {shape:?}")),
                Some(t) if t.dims() != *shape => {
                    faults.push(format!("{name}: expected {shape:?}, found {:?}", t.dims()));
                }
                Some(_) => {}
            }
        }
        let found: BTreeMap<&String, &Tensor> = self.tensors.iter().collect();
        for (name, tensor) in found {
            let weight = tensor.dtype().is_float() && !name.ends_with("num_batches_tracked");
            if weight && !expected.contains_key(name.as_str()) {
                faults.push(format!("unexpected {name} {:?}", tensor.dims()));
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        let more = faults.len().saturating_sub(LISTED);
        let mut text = format!("{} tensors do not fit this model: ", faults.len());
        text.push_str(&faults[..faults.len().min(LISTED)].join("; "));
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        Err(Error::weights(&self.path, text))
    }

    /// Writes the checkpoint as safetensors in its own number format ([`Dtype::of`]); see [`save_safetensors`].
    pub fn save(&self, path: &Path) -> Result<()> {
        save_safetensors(path, &self.tensors, &self.metadata, Dtype::of(self))
    }

    /// Fails if weights contain a NaN or an infinity, because such a model would silently find no polyp.
    ///
    /// # Errors
    /// With the path and the first such tensor.
    pub fn check_finite(&self) -> Result<()> {
        let bad = self.not_finite()?;
        let Some(first) = bad.first() else { return Ok(()) };
        let reason = format!(
            "{} tensors hold values that are not finite, the first is {first}; use weights from before the training failed, or copy the file again",
            bad.len()
        );
        Err(Error::weights(&self.path, reason))
    }

    /// Names of tensors that hold a NaN or an infinity.
    fn not_finite(&self) -> Result<Vec<String>> {
        let mut bad = Vec::new();
        for (name, t) in &self.tensors {
            if !is_finite(t)? {
                bad.push(name.clone());
            }
        }
        bad.sort();
        Ok(bad)
    }
}

/// False for a tensor that holds a NaN or an infinity.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    if !tensor.dtype().is_float() {
        return Ok(true);
    }
    Ok(tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite())
}

/// Averages the tensors of several checkpoints of the same model ("model soups", arXiv 2203.05482), with the first
/// one's path and metadata. For trainings from the same initial weights the average is often better than each. `shares`
/// are relative weights with any sum. Integer tensors are the first file's.
///
/// # Errors
/// If a tensor is not in all files with the same shape, or a file has no share above 0.
pub fn average(files: &[Checkpoint], shares: &[f64]) -> Result<Checkpoint> {
    let Some((first, others)) = files.split_first() else {
        return Err(Error::invalid("an average needs at least one file"));
    };
    if shares.len() != files.len() || !shares.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(Error::invalid(format!(
            "{} files need as many weights above 0, not {shares:?}",
            files.len()
        )));
    }
    let whole: f64 = shares.iter().sum();
    let shapes: Vec<(String, Vec<usize>)> = first.shapes().into_iter().collect();
    let mut mean = first.clone();
    for other in others {
        other.check(&shapes)?;
    }
    for (name, tensor) in &mut mean.tensors {
        let dtype = tensor.dtype();
        if !dtype.is_float() {
            continue;
        }
        let mut sum = (tensor.to_dtype(DType::F64)? * shares[0])?;
        for (other, share) in others.iter().zip(&shares[1..]) {
            // Always present after `check`.
            if let Some(t) = other.tensors.get(name) {
                sum = (sum + (t.to_dtype(DType::F64)? * *share)?)?;
            }
        }
        *tensor = (sum / whole)?.to_dtype(dtype)?;
    }
    Ok(mean)
}

/// Reads a weight file of any supported format. From a training script's checkpoint it takes the model, and logs and
/// stores what it took ([`Checkpoint::taken`]).
///
/// # Errors
/// If the file is missing, empty, truncated, a text file or of another format. The message says what it is and what to
/// do.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let checkpoint = load_part(path, None)?;
    if !checkpoint.taken.is_plain() {
        tracing::warn!("{}: {} tensors, {}", path.display(), checkpoint.tensors.len(), checkpoint.taken);
    }
    Ok(checkpoint)
}

/// [`load`] for the part `key` of a file with several, such as `ema` in addition to `model`, or for the tensors whose
/// names begin with `key`. It logs nothing; the caller prints [`Checkpoint::taken`].
pub fn load_part(path: &Path, key: Option<&str>) -> Result<Checkpoint> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_dir() {
        return Err(Error::weights(path, "this is a folder; name the weight file in it"));
    }
    if let Some(what) = in_parts(path) {
        let join = "join its parts into one file first (docs/howto/weights.md has the script)";
        return Err(Error::weights(path, format!("this is {what} of a checkpoint in several files: {join}")));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let checkpoint = read(path, BufReader::with_capacity(1 << 16, file), key, false)?;
    if checkpoint.tensors.is_empty() && checkpoint.taken.left_out.is_empty() {
        return Err(Error::weights(path, "it holds no tensor; expected the weights of a model"));
    }
    Ok(checkpoint)
}

/// Describes the file if it belongs to a checkpoint in several files (`model-00001-of-00002.safetensors`,
/// `model.safetensors.index.json`). A single part would otherwise be mistaken for the whole model.
fn in_parts(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    if name.ends_with(".index.json") {
        return Some("the index".to_owned());
    }
    let (front, total) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (_, part) = front.rsplit_once('-')?;
    let (part, total) = (part.parse::<u32>().ok()?, total.parse::<u32>().ok()?);
    (total > 1).then(|| format!("part {part} of {total}"))
}

/// The program that unpacks a compressed file, recognised by its first bytes.
fn unpacker(head: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b], "gunzip"),
        (b"BZh", "bunzip2"),
        (b"\xfd7zXZ", "unxz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
    ];
    kinds.iter().find(|(begin, _)| head.starts_with(begin)).map(|(_, program)| *program)
}

/// [`load`] for bytes in memory; `path` is their name in messages.
pub fn load_bytes(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    read(path, Cursor::new(bytes), None, false)
}

/// Reads the part `key` of a weight file. `inner`: the file is a member of an archive.
fn read(path: &Path, mut reader: impl BufRead + Seek, key: Option<&str>, inner: bool) -> Result<Checkpoint> {
    let failed = |e| Error::io(path, e);
    let length = reader.seek(SeekFrom::End(0)).map_err(failed)?;
    reader.rewind().map_err(failed)?;
    let mut head = Vec::new();
    (&mut reader).take(64).read_to_end(&mut head).map_err(failed)?;
    reader.rewind().map_err(failed)?;
    // Checked first, because the header length of a safetensors file may look like another format's first bytes.
    if head.get(8) == Some(&b'{') {
        return safetensors::read(path, reader, length, key).map_err(|fault| fault.at(path, "safetensors"));
    }
    if head.starts_with(b"PK\x03\x04") {
        return pytorch::read_zip(path, reader, length, key, inner)
            .map_err(|fault| fault.at(path, "PyTorch"));
    }
    if matches!(*head, [0x80, 2..=5, ..]) {
        return pytorch::read_old(path, reader, length, key).map_err(|fault| fault.at(path, "PyTorch"));
    }
    if let Some(program) = unpacker(&head) {
        let unpack = format!("the file is compressed: `{program} '{}'` unpacks it", path.display());
        return Err(Error::weights(path, unpack));
    }
    Err(Error::weights(
        path,
        if head.is_empty() {
            "the file is empty; copy or download it again"
        } else if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
            "this is a text file, not weights (a web page, or a pointer of Git LFS?): download the .safetensors, .pth or .pt file itself"
        } else {
            "not a weight file, or a damaged one; expected .safetensors, .pth or .pt: copy or download it again"
        },
    ))
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file in hexadecimal; the file is read in pieces.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut piece).map_err(|e| Error::io(path, e))?;
        if count == 0 {
            return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        hash.update(&piece[..count]);
    }
}
