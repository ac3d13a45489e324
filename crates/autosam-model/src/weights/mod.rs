//! Weight files: `.safetensors`, and PyTorch's `.pth`/`.pt` state dicts and modules of either kind, by themselves or in a
//! wheel, read without running any code. Errors name the file, the tensor and the way out.

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

/// How many faults an error lists before it counts the rest.
const LISTED: usize = 10;

/// Number format of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// That of a file's floats, where it has one for all; f32 where not.
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
    /// Where it came from, for messages.
    pub path: PathBuf,
    pub tensors: HashMap<String, Tensor>,
    /// Safetensors' `__metadata__`; empty for PyTorch's files.
    pub metadata: HashMap<String, String>,
    /// Which of the file's tensors these are.
    pub taken: Taken,
}

/// Why a file is not read.
enum Fault {
    /// Its bytes are not what they should be.
    Damaged(String),
    /// It is whole, and not what is wanted.
    Unusable(String),
    /// What a file inside it is faulted for.
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
    /// The error for the file at `path`, of the kind that was read.
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

    /// Compares names and shapes with what a model loads.
    ///
    /// # Errors
    /// One that lists missing, extra and misshapen tensors (ten at most, then how many more). Whole numbers (masks, indices,
    /// PyTorch's `num_batches_tracked`) may be there or not: they are no weights.
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

    /// Writes it as safetensors in its own number format ([`Dtype::of`]); see [`save_safetensors`].
    pub fn save(&self, path: &Path) -> Result<()> {
        save_safetensors(path, &self.tensors, &self.metadata, Dtype::of(self))
    }

    /// Fails for weights with a NaN or an infinity: a model of such would find no polyp, without a word.
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

/// The mean of the tensors of several files of one kind, under the first one's name and metadata ("model soups", arXiv 2203.05482):
/// of trainings that began from the same weights it is often better than each. `shares` are what each counts for, whatever their
/// sum. Whole numbers are the first file's.
///
/// # Errors
/// Where a tensor is not in all files, with one shape; without a share above 0 for each file.
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
            // `check` has found it.
            if let Some(t) = other.tensors.get(name) {
                sum = (sum + (t.to_dtype(DType::F64)? * *share)?)?;
            }
        }
        *tensor = (sum / whole)?.to_dtype(dtype)?;
    }
    Ok(mean)
}

/// Reads a weight file of any kind. Of a training script's file it takes the model, and logs and keeps what it took
/// ([`Checkpoint::taken`]).
///
/// # Errors
/// Missing, empty, truncated, a text file, of another kind: what it is and what to do.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let checkpoint = load_part(path, None)?;
    if !checkpoint.taken.is_plain() {
        tracing::warn!("{}: {} tensors, {}", path.display(), checkpoint.tensors.len(), checkpoint.taken);
    }
    Ok(checkpoint)
}

/// [`load`] of the part `key` of a file that holds several, such as `ema` beside `model`, or of the tensors whose names
/// begin with `key`. It logs nothing: whoever calls it prints [`Checkpoint::taken`].
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

/// What the file is if its checkpoint is in several files: `model-00001-of-00002.safetensors`, `model.safetensors.index.json`. By
/// itself a part would be taken for the whole model.
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

/// How to unpack a file that is compressed as a whole, by its first bytes.
fn unpacker(head: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b], "gunzip"),
        (b"BZh", "bunzip2"),
        (b"\xfd7zXZ", "unxz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
    ];
    kinds.iter().find(|(begin, _)| head.starts_with(begin)).map(|(_, program)| *program)
}

/// [`load`] for bytes in memory; `path` is what messages call them.
pub fn load_bytes(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    read(path, Cursor::new(bytes), None, false)
}

/// Reads a weight file, of which `key` names a part. `inner`: it lies in an archive.
fn read(path: &Path, mut reader: impl BufRead + Seek, key: Option<&str>, inner: bool) -> Result<Checkpoint> {
    let failed = |e| Error::io(path, e);
    let length = reader.seek(SeekFrom::End(0)).map_err(failed)?;
    reader.rewind().map_err(failed)?;
    let mut head = Vec::new();
    (&mut reader).take(64).read_to_end(&mut head).map_err(failed)?;
    reader.rewind().map_err(failed)?;
    // A safetensors header may be as long as another kind's first bytes say: it is looked for first.
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

/// SHA-256 of a file in hexadecimal, read in pieces.
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
