//! Reads and writes safetensors files tensor by tensor, without a copy of the whole file in memory.

use super::taken::{Taken, counted};
use super::values::{self, Numbers, View, read_storage};
use super::{Checkpoint, Dtype, Fault, is_finite};
use crate::{Error, Result};
use ::safetensors::tensor::{Metadata, TensorInfo};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::io::{BufRead, BufWriter, Read, Write};
use std::path::Path;

/// Maximum size of the header, as in the format's own library.
const LONGEST_HEADER: u64 = 100_000_000;

/// Prefix of the metadata keys that this program writes.
const OWN: &str = "autosam";

/// Reads the tensors, or the part of them that `key` names.
pub(super) fn read(
    path: &Path,
    mut reader: impl BufRead,
    length: u64,
    key: Option<&str>,
) -> std::result::Result<Checkpoint, Fault> {
    let mut count = [0; 8];
    reader.read_exact(&mut count).map_err(|e| e.to_string())?;
    let header_length = u64::from_le_bytes(count);
    if header_length > LONGEST_HEADER.min(length.saturating_sub(8)) {
        return Err(format!("its header would have {header_length} bytes, the file has {length}").into());
    }
    let mut header = Vec::new();
    (&mut reader).take(header_length).read_to_end(&mut header).map_err(|e| e.to_string())?;
    // The parser checks that tensors are contiguous in the file and that their sizes match their shapes.
    let header = parsed(&header).map_err(|e| e.to_string())?;
    let bytes = length - 8 - header_length;
    if header.data_len() as u64 != bytes {
        return Err(format!("its tensors have {} bytes, the file contains {bytes}", header.data_len()).into());
    }
    let mut metadata = header.metadata().clone().unwrap_or_default();
    let mut taken = Taken::default();
    let mut tensors = Vec::new();
    for (name, info) in header.tensors() {
        match view(info) {
            Ok(view) => tensors.push((name, view)),
            Err(reason) => taken.left_out.push((name, reason)),
        }
    }
    taken.left_out.sort();
    choose(key, &metadata, &mut tensors, &mut taken)?;
    if key.is_some() {
        // The configuration describes the whole file, not a part.
        metadata.retain(|name, _| !name.starts_with(OWN));
    }
    let views = tensors.iter().map(|(name, view)| (name.as_str(), view)).collect();
    let mut found = HashMap::new();
    let limit = usize::try_from(length).unwrap_or(usize::MAX);
    read_storage(views, ("the file", bytes), &mut reader, limit, &mut found)?;
    Ok(Checkpoint { path: path.to_owned(), tensors: found, metadata, taken })
}

/// Parses the header. Metadata values that are not text, which the format does not allow but scripts write, are kept as
/// JSON.
fn parsed(header: &[u8]) -> serde_json::Result<Metadata> {
    const NOTES: &str = "__metadata__";
    let strict = serde_json::from_slice(header);
    let Err(e) = strict else { return strict };
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header)?;
    let notes = match json.get_mut(NOTES) {
        Some(serde_json::Value::Object(notes)) => notes,
        // A list or a number has no keys.
        Some(_) => {
            json.remove(NOTES);
            return serde_json::from_value(json.into());
        }
        None => return Err(e),
    };
    for note in notes.values_mut().filter(|note| !note.is_string()) {
        *note = note.to_string().into();
    }
    serde_json::from_value(json.into())
}

/// Keeps the tensors of the part `key`, and removes wrappers' prefixes.
fn choose(
    key: Option<&str>,
    metadata: &HashMap<String, String>,
    tensors: &mut Vec<(String, View)>,
    taken: &mut Taken,
) -> std::result::Result<(), Fault> {
    if let Some(key) = key
        && !taken.only(key, tensors)
    {
        let mut tops: HashMap<&str, usize> = HashMap::new();
        for (name, _) in tensors.iter() {
            *tops.entry(name.split('.').next().unwrap_or_default()).or_default() += 1;
        }
        let mut tops: Vec<String> = tops.into_iter().map(|(top, count)| counted(top, count)).collect();
        tops.sort();
        let tops = super::taken::listed(tops.into_iter());
        return Err(Fault::Unusable(format!("it has no part {key}; its names begin with: {tops}")));
    }
    taken.unwrap(tensors, metadata.keys().any(|name| name.starts_with(OWN)));
    Ok(())
}

/// Location of a tensor's data, or why it cannot be read.
fn view(info: &TensorInfo) -> std::result::Result<View, String> {
    let numbers = match info.dtype {
        ::safetensors::Dtype::F64 => Numbers::F64,
        ::safetensors::Dtype::F32 => Numbers::F32,
        ::safetensors::Dtype::F16 => Numbers::F16,
        ::safetensors::Dtype::BF16 => Numbers::Bf16,
        ::safetensors::Dtype::I64 => Numbers::I64,
        ::safetensors::Dtype::I32 => Numbers::I32,
        ::safetensors::Dtype::I16 => Numbers::I16,
        ::safetensors::Dtype::I8 => Numbers::I8,
        ::safetensors::Dtype::U8 => Numbers::U8,
        ::safetensors::Dtype::BOOL => Numbers::Bool,
        other => return Err(format!("numbers of the type {other:?}, which is not supported")),
    };
    let shape = info.shape.clone();
    let stride = (0..shape.len()).map(|i| shape[i + 1..].iter().fold(1usize, |n, d| n.saturating_mul(*d)));
    Ok(View { storage: String::new(), numbers, byte: info.data_offsets.0, stride: stride.collect(), shape })
}

/// Writes a safetensors file to a temporary file and renames it to `path`, so that an existing file survives a full
/// disk or a crash. Float tensors are written as `dtype`, others unchanged.
pub fn save_safetensors(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    metadata: &HashMap<String, String>,
    dtype: Dtype,
) -> Result<()> {
    let written = |t: &Tensor| if t.dtype().is_float() { dtype.candle() } else { t.dtype() };
    // Wide types first, so that each tensor is aligned to its type.
    let mut sorted: Vec<(&String, &Tensor)> = tensors.iter().collect();
    sorted.sort_by_key(|(name, t)| (std::cmp::Reverse(written(t).size_in_bytes()), *name));
    let mut end = 0;
    let infos = sorted.iter().map(|(name, t)| {
        let start = end;
        end += t.elem_count() * written(t).size_in_bytes();
        let info =
            TensorInfo { dtype: written(t).into(), shape: t.dims().to_vec(), data_offsets: (start, end) };
        ((*name).clone(), info)
    });
    let header = Metadata::new(Some(metadata.clone()), infos.collect())
        .map_err(|e| Error::weights(path, e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| Error::weights(path, e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = |e| Error::io(path, e);
    autosam_frame::fs::replace(path, true, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(&header).map_err(failed)?;
        for (name, tensor) in &sorted {
            let wide = tensor.to_device(&Device::Cpu)?;
            let tensor = wide.to_dtype(written(tensor))?;
            if tensor.dtype() != wide.dtype() && !is_finite(&tensor)? && is_finite(&wide)? {
                let kind = tensor.dtype().as_str();
                return Err(Error::weights(
                    path,
                    format!("{name} has values that {kind} cannot hold; choose a wider --dtype"),
                ));
            }
            values::write(&tensor, &mut file).map_err(|e| Error::weights(path, e.to_string()))?;
        }
        file.flush().map_err(failed)
    })
}
