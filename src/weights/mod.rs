//! Weight files: `.safetensors`, and PyTorch's `.pth`/`.pt` state dicts and modules (zip and pickle, read without
//! running any code). Errors name the file, the tensor and the way out.

#[cfg(feature = "fetch")]
pub mod fetch;
pub mod known;
mod pickle;
pub mod recorder;

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
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
}

impl Checkpoint {
    pub fn shapes(&self) -> HashMap<String, Vec<usize>> {
        self.tensors.iter().map(|(n, t)| (n.clone(), t.dims().to_vec())).collect()
    }

    /// Compares names and shapes with what a model loads.
    ///
    /// # Errors
    /// One that lists missing, extra and misshapen tensors (ten at most, then how many more). PyTorch's
    /// `num_batches_tracked` counters may be there or not.
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
            if !expected.contains_key(name.as_str()) && !name.ends_with("num_batches_tracked") {
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

    /// Names of tensors that hold a NaN or an infinity.
    pub fn not_finite(&self) -> Result<Vec<String>> {
        let mut bad = Vec::new();
        for (name, t) in &self.tensors {
            if t.dtype().is_float() {
                let sum = t.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
                if !sum.is_finite() {
                    bad.push(name.clone());
                }
            }
        }
        bad.sort();
        Ok(bad)
    }
}

/// The mean of the tensors of several files of one kind, under the first one's name and metadata ("model soups", arXiv 2203.05482):
/// of trainings that began from the same weights it is often better than each. `shares` are what each counts for, whatever their
/// sum. Whole numbers are the first file's.
///
/// # Errors
/// Where a tensor is not in all files, with one shape; without a share above 0 for each file.
pub fn average(files: &[Checkpoint], shares: &[f64]) -> Result<Checkpoint> {
    let Some((first, others)) = files.split_first() else {
        return Err(Error::invalid("an average needs a file"));
    };
    if shares.len() != files.len() || !shares.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(Error::invalid(format!(
            "{} files need as many shares above 0, not {shares:?}",
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

/// Reads a weight file of either kind.
///
/// # Errors
/// Missing, empty, truncated, a text file, of another kind: what it is and what to do.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_dir() {
        return Err(Error::weights(path, "this is a folder; name the weight file in it"));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    load_bytes(path, &bytes)
}

/// [`load`] for bytes in memory; `path` is what messages call them.
pub fn load_bytes(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    if bytes.is_empty() {
        return Err(Error::weights(path, "the file is empty; copy or download it again"));
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return load_pickle(path);
    }
    if bytes.starts_with(b"PK") || bytes.starts_with(b"\x80\x02") {
        return Err(Error::weights(
            path,
            "a PyTorch file of the old kind or a damaged one; save it again with torch.save(model.state_dict(), …) of PyTorch 1.6 or later",
        ));
    }
    let looks_like_text = bytes.iter().take(64).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    if looks_like_text {
        return Err(Error::weights(
            path,
            "this is a text file, not weights; expected .safetensors, .pth or .pt",
        ));
    }
    load_safetensors(path, bytes)
}

fn load_safetensors(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    let damaged = |reason: String| {
        Error::weights(
            path,
            format!(
                "not a usable safetensors file ({reason}); it may be cut short: copy or download it again"
            ),
        )
    };
    // The parser checks that the header fits the file and that every tensor lies inside it.
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).map_err(|e| damaged(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::BF16,
            safetensors::Dtype::F64 => DType::F64,
            safetensors::Dtype::I64 => DType::I64,
            other => {
                return Err(damaged(format!(
                    "tensor {name} has the type {other:?}, expected F32, F16 or BF16"
                )));
            }
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(Checkpoint { path: path.to_owned(), tensors, metadata })
}

/// A zip with a pickled state dict, at its top or below `model` or `state_dict`, or with a whole module.
fn load_pickle(path: &Path) -> Result<Checkpoint> {
    let damaged = |reason: String| {
        Error::weights(
            path,
            format!("not a usable PyTorch file ({reason}); it may be cut short: copy or download it again"),
        )
    };
    let tensors = pickle::read(path).map_err(damaged)?;
    if tensors.is_empty() {
        return Err(damaged("it holds no tensor".into()));
    }
    Ok(Checkpoint { path: path.to_owned(), tensors, metadata: HashMap::new() })
}

/// Writes a safetensors file beside `path` and renames it, so that a full disk or a crash leaves what was
/// there. Float tensors are written as `dtype`, others as they are.
pub fn save_safetensors(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    metadata: &HashMap<String, String>,
    dtype: Dtype,
) -> Result<()> {
    let mut converted = BTreeMap::new();
    for (name, t) in tensors {
        let t = if t.dtype().is_float() { t.to_dtype(dtype.candle())? } else { t.clone() };
        converted.insert(name.clone(), t.to_device(&Device::Cpu)?.contiguous()?);
    }
    let bytes = safetensors::serialize(converted.iter(), Some(metadata.clone()))
        .map_err(|e| Error::weights(path, e.to_string()))?;
    crate::error::write_atomically(path, &bytes)
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
