//! What a kernel of a CPU computes, apart from where its operands lie and where the result goes: a tensor of its own, or memory
//! that stays ([`super::plan`]).

use super::cpu::{unwritten, written};
use super::plan;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor};
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::sync::RwLockReadGuard;

/// An operation on contiguous f32 tensors.
///
/// # Safety
/// [`Self::compute`] writes every element of its result, or fails.
pub(super) unsafe trait Forward: Send + Sync {
    /// Of the result.
    fn shape(&self, args: Args) -> Result<Shape>;

    /// Into `out`, as long as [`Self::shape`] says. Takes no memory, once it has run with arguments of these shapes.
    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()>;
}

/// The operands of an operation.
#[derive(Clone, Copy)]
pub(super) enum Args<'a> {
    Tensors(&'a [&'a Tensor]),
    Storages(&'a [(&'a CpuStorage, &'a Layout)]),
    Planned(plan::Operands<'a>),
}

impl<'a> Args<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::Tensors(all) => all.len(),
            Self::Storages(all) => all.len(),
            Self::Planned(all) => all.len(),
        }
    }

    pub fn dims(self, i: usize) -> &'a [usize] {
        match self {
            Self::Tensors(all) => all[i].dims(),
            Self::Storages(all) => all[i].1.dims(),
            Self::Planned(all) => all.dims(i),
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
            Self::Planned(all) => all.get(i),
        }
    }
}

/// The elements of a contiguous f32 tensor, held for reading.
pub(super) struct Elements<'a> {
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

/// The result of `op` as a tensor, without a gradient; noted where a [`plan`] is recorded.
pub(super) fn apply(op: impl Forward + 'static, args: &[&Tensor]) -> Result<Tensor> {
    plan::noted(op, args, |op| {
        let (values, shape) = fresh(op, Args::Tensors(args))?;
        Tensor::from_vec(values, shape, &Device::Cpu)
    })
}

/// The result of `op` as candle's operations give theirs.
pub(super) fn in_storage(op: &impl Forward, args: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
    let (values, shape) = fresh(op, Args::Storages(args))?;
    Ok((CpuStorage::F32(values), shape))
}

fn fresh(op: &impl Forward, args: Args) -> Result<(Vec<f32>, Shape)> {
    let shape = op.shape(args)?;
    let mut out = unwritten(shape.elem_count());
    op.compute(args, &mut out)?;
    // SAFETY: what `Forward` promises.
    Ok((unsafe { written(out) }, shape))
}

/// `len` floats that `write` writes.
///
/// # Safety
/// It writes all of them.
pub(super) unsafe fn filled(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut out = unwritten(len);
    write(&mut out);
    // SAFETY: by the function's own condition.
    unsafe { written(out) }
}
