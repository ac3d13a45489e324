//! Reads and writes the numbers of weight files in pieces: memory holds each tensor once and no copy of the file.

use super::pickle::Result;
use candle_core::{CpuStorage, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};
use std::collections::HashMap;
use std::io::{Read, Write};

/// Bytes converted at a time.
const PIECE: usize = 1 << 16;

/// Maximum total size of overlapping tensors, as a multiple of their storage's size.
const OVERLAP: usize = 8;

/// Number format of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Numbers {
    pub(super) fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

/// Location of a tensor in a storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub storage: String,
    pub numbers: Numbers,
    /// Its first byte.
    pub byte: usize,
    pub shape: Vec<usize>,
    /// Strides in elements.
    pub stride: Vec<usize>,
}

impl View {
    /// Number of storage elements from the tensor's first to its last, and the tensor's number of elements.
    fn extent(&self) -> Option<(usize, usize)> {
        let count = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        if count == 0 {
            return Some((0, 0));
        }
        let mut last = 0usize;
        for (size, stride) in self.shape.iter().zip(&self.stride) {
            last = last.checked_add((size - 1).checked_mul(*stride)?)?;
        }
        Some((last.checked_add(1)?, count))
    }

    /// Whether elements are repeated by a stride of 0.
    pub(super) fn repeats(&self) -> bool {
        self.extent().is_some_and(|(extent, count)| count > extent)
    }

    fn contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.iter().zip(&self.stride).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected = expected.saturating_mul(*size);
            fits
        })
    }

    /// Its range of bytes in the storage.
    fn range(&self) -> Option<(usize, usize)> {
        let (extent, _) = self.extent()?;
        Some((self.byte, self.byte.checked_add(extent.checked_mul(self.numbers.width())?)?))
    }

    /// Reads the tensor from `reader`, which is positioned at its first element. `limit` bounds the memory allocated in
    /// advance.
    fn read(&self, reader: &mut dyn Read, limit: usize) -> Result<Tensor> {
        match self.numbers {
            Numbers::F64 => self.tensor(reader, limit, f64::from_le_bytes),
            Numbers::F32 => self.tensor(reader, limit, f32::from_le_bytes),
            Numbers::F16 => self.tensor(reader, limit, f16::from_le_bytes),
            Numbers::Bf16 => self.tensor(reader, limit, bf16::from_le_bytes),
            Numbers::I64 => self.tensor(reader, limit, i64::from_le_bytes),
            Numbers::I32 => self.tensor(reader, limit, i32::from_le_bytes),
            Numbers::I16 => self.tensor(reader, limit, i16::from_le_bytes),
            Numbers::I8 => self.tensor(reader, limit, |b| i16::from(i8::from_le_bytes(b))),
            Numbers::U8 => self.tensor(reader, limit, |[b]: [u8; 1]| b),
            Numbers::Bool => self.tensor(reader, limit, |[b]: [u8; 1]| u8::from(b != 0)),
        }
    }

    fn tensor<T: WithDType, const N: usize>(
        &self,
        reader: &mut dyn Read,
        limit: usize,
        number: fn([u8; N]) -> T,
    ) -> Result<Tensor> {
        let (extent, count) = self.extent().ok_or("its size overflows")?;
        let mut values = Vec::new();
        values.try_reserve_exact(extent.min(limit / N)).map_err(|e| e.to_string())?;
        let mut piece = vec![0; PIECE.min(extent * N)];
        while values.len() < extent {
            let bytes = PIECE.min((extent - values.len()) * N);
            let piece = &mut piece[..bytes];
            reader.read_exact(piece).map_err(|e| e.to_string())?;
            values.extend(piece.as_chunks::<N>().0.iter().map(|b| number(*b)));
        }
        if !self.contiguous() {
            values = self.gathered(&values, count);
        }
        Tensor::from_vec(values, self.shape.as_slice(), &Device::Cpu).map_err(|e| e.to_string())
    }

    /// The elements in row-major order.
    fn gathered<T: Copy>(&self, values: &[T], count: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(count);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let at: usize = index.iter().zip(&self.stride).map(|(i, s)| i * s).sum();
            out.push(values[at]);
            for (i, size) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        out
    }
}

/// Reads the tensors of one storage into `tensors`. `reader` is positioned at the storage's first byte and is read
/// once, sequentially. The storage, named `label` in messages, has `bytes` bytes. `limit` bounds the memory allocated
/// in advance.
pub(super) fn read_storage(
    mut views: Vec<(&str, &View)>,
    (label, bytes): (&str, u64),
    reader: &mut dyn Read,
    limit: usize,
    tensors: &mut HashMap<String, Tensor>,
) -> Result<()> {
    views.sort_by_key(|(_, view)| view.byte);
    let mut ranges = Vec::new();
    for (name, view) in &views {
        let (start, end) = view.range().ok_or_else(|| format!("{name}: its size overflows"))?;
        if end as u64 > bytes {
            return Err(format!("{name}: needs {end} bytes of {label}, which has {bytes}"));
        }
        ranges.push((start, end));
    }
    let overlap = (1..views.len()).any(|i| ranges[i].0 < ranges[i - 1].1 && views[i].1 != views[i - 1].1);
    if overlap {
        let whole: usize = ranges.iter().map(|(start, end)| end - start).fold(0, usize::saturating_add);
        if whole as u64 > bytes.saturating_mul(OVERLAP as u64) {
            return Err(format!("{label}: its tensors overlap too often"));
        }
        let mut storage = Vec::new();
        reader.take(bytes).read_to_end(&mut storage).map_err(|e| e.to_string())?;
        for ((name, view), (start, end)) in views.iter().zip(ranges) {
            let mut part = storage.get(start..end).ok_or_else(|| format!("{name}: {label} ends early"))?;
            let tensor = view.read(&mut part, limit).map_err(|e| format!("{name}: {e}"))?;
            tensors.insert((*name).to_owned(), tensor);
        }
        return Ok(());
    }
    let mut position = 0;
    let mut before: Option<(&View, Tensor)> = None;
    for ((name, view), (start, end)) in views.into_iter().zip(ranges) {
        let tensor = match before {
            // Tied weights: one tensor under two names.
            Some((same, tensor)) if same == view => tensor,
            _ => {
                skip(reader, (start - position) as u64).map_err(|e| format!("{name}: {e}"))?;
                position = end;
                view.read(reader, limit).map_err(|e| format!("{name}: {label}: {e}"))?
            }
        };
        tensors.insert(name.to_owned(), tensor.clone());
        before = Some((view, tensor));
    }
    Ok(())
}

/// Skips `count` bytes.
fn skip(reader: &mut dyn Read, count: u64) -> Result<()> {
    std::io::copy(&mut reader.take(count), &mut std::io::sink()).map_err(|e| e.to_string())?;
    Ok(())
}

/// Writes the numbers of `tensor`, which is on the CPU, little-endian and row by row.
pub(super) fn write(tensor: &Tensor, out: &mut dyn Write) -> candle_core::Result<()> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("a tensor to write is not on the CPU") };
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    match storage {
        CpuStorage::U8(v) => out.write_all(&v[range])?,
        CpuStorage::U32(v) => write_numbers(&v[range], u32::to_le_bytes, out)?,
        CpuStorage::I16(v) => write_numbers(&v[range], i16::to_le_bytes, out)?,
        CpuStorage::I32(v) => write_numbers(&v[range], i32::to_le_bytes, out)?,
        CpuStorage::I64(v) => write_numbers(&v[range], i64::to_le_bytes, out)?,
        CpuStorage::BF16(v) => write_numbers(&v[range], bf16::to_le_bytes, out)?,
        CpuStorage::F16(v) => write_numbers(&v[range], f16::to_le_bytes, out)?,
        CpuStorage::F32(v) => write_numbers(&v[range], f32::to_le_bytes, out)?,
        CpuStorage::F64(v) => write_numbers(&v[range], f64::to_le_bytes, out)?,
        _ => candle_core::bail!("cannot write a tensor of the type {:?}", tensor.dtype()),
    }
    Ok(())
}

fn write_numbers<T: Copy, const N: usize>(
    values: &[T],
    bytes: fn(T) -> [u8; N],
    out: &mut dyn Write,
) -> std::io::Result<()> {
    values.chunks(PIECE / N).try_for_each(|piece| {
        let piece: Vec<[u8; N]> = piece.iter().map(|v| bytes(*v)).collect();
        out.write_all(piece.as_flattened())
    })
}
