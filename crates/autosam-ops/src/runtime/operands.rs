//! Operands of a kernel, stored in tensors, in candle's storages, or in the buffers of a replayed graph.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, StorageRef, Tensor};
use parking_lot::{RwLock, RwLockReadGuard};
use std::ops::{Deref, Range};

/// The operands of an operation.
#[derive(Clone, Copy)]
pub(crate) enum Args<'a> {
    Tensors(&'a [&'a Tensor]),
    Storages(&'a [(&'a CpuStorage, &'a Layout)]),
    Replayed(Replayed<'a>),
}

impl<'a> Args<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::Tensors(all) => all.len(),
            Self::Storages(all) => all.len(),
            Self::Replayed(all) => all.len(),
        }
    }

    pub fn dims(self, i: usize) -> &'a [usize] {
        match self {
            Self::Tensors(all) => all[i].dims(),
            Self::Storages(all) => all[i].1.dims(),
            Self::Replayed(all) => all.dims(i),
        }
    }

    /// The elements of operand `i`, held for reading.
    pub fn get(self, i: usize) -> Result<Elements<'a>> {
        match self {
            Self::Tensors(all) => Elements::of(all[i]),
            Self::Storages(all) => {
                let (storage, layout) = all[i];
                Elements::within(Held::Storage(storage), layout)
            }
            Self::Replayed(all) => all.get(i),
        }
    }
}

/// The elements of a contiguous f32 tensor, held for reading.
pub(crate) struct Elements<'a> {
    held: Held<'a>,
    range: Range<usize>,
}

enum Held<'a> {
    Tensor(StorageRef<'a>),
    Storage(&'a CpuStorage),
    Buffer(RwLockReadGuard<'a, Vec<f32>>),
}

impl<'a> Elements<'a> {
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        Self::within(Held::Tensor(storage), layout)
    }

    pub fn of_buffer(buffer: RwLockReadGuard<'a, Vec<f32>>, range: Range<usize>) -> Self {
        Self { held: Held::Buffer(buffer), range }
    }

    fn within(held: Held<'a>, layout: &Layout) -> Result<Self> {
        let floats = match &held {
            Held::Tensor(storage) => matches!(&**storage, Storage::Cpu(CpuStorage::F32(_))),
            Held::Storage(storage) => matches!(storage, CpuStorage::F32(_)),
            Held::Buffer(_) => true,
        };
        match layout.contiguous_offsets() {
            Some((from, to)) if floats => Ok(Self { held, range: from..to }),
            _ => candle_core::bail!("a kernel needs a contiguous f32 tensor on the CPU, not {layout:?}"),
        }
    }
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let all = match &self.held {
            Held::Tensor(storage) => match &**storage {
                Storage::Cpu(CpuStorage::F32(all)) => all,
                _ => unreachable!("`within` takes no other"),
            },
            Held::Storage(CpuStorage::F32(all)) => all,
            Held::Storage(_) => unreachable!("`within` takes no other"),
            Held::Buffer(all) => &**all,
        };
        &all[self.range.clone()]
    }
}

/// The arguments of a replayed operation.
#[derive(Clone, Copy)]
pub(crate) struct Replayed<'a> {
    pub operands: &'a [Operand],
    pub buffers: &'a [RwLock<Vec<f32>>],
}

impl<'a> Replayed<'a> {
    pub fn len(self) -> usize {
        self.operands.len()
    }

    pub fn dims(self, i: usize) -> &'a [usize] {
        self.operands[i].shape.dims()
    }

    pub fn get(self, i: usize) -> Result<Elements<'a>> {
        let Operand { place, shape } = &self.operands[i];
        match place {
            Place::Constant(tensor) => Elements::of(tensor),
            Place::Value(buffer, first) => {
                let held = self.buffers[*buffer].read();
                Ok(Elements::of_buffer(held, *first..*first + shape.elem_count()))
            }
        }
    }
}

/// An argument of an operation.
pub(crate) struct Operand {
    pub place: Place,
    pub shape: Shape,
}

pub(crate) enum Place {
    Constant(Tensor),
    /// The value (later its buffer), and the first element.
    Value(usize, usize),
}
