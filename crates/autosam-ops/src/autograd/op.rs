//! Adapts this crate's kernels to candle's custom operations.

use crate::runtime::kernel::{Differentiable, Kernel, in_storage};
use crate::runtime::operands::Args;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

/// A kernel as a custom operation with one, two or three operands.
pub(super) struct Op<K>(pub K);

impl<K: Kernel + Differentiable> CustomOp1 for Op<K> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        in_storage(&self.0, Args::Storages(&[(s, l)]))
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [x, ..] = self.0.backward(&[x], result, &grad.contiguous()?)?;
        Ok(x)
    }
}

impl<K: Kernel + Differentiable> CustomOp2 for Op<K> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        in_storage(&self.0, Args::Storages(&[(s1, l1), (s2, l2)]))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b, _] = self.0.backward(&[a, b], result, &grad.contiguous()?)?;
        Ok((a, b))
    }
}

impl<K: Kernel + Differentiable> CustomOp3 for Op<K> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        in_storage(&self.0, Args::Storages(&[(s1, l1), (s2, l2), (s3, l3)]))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.0.backward(&[a, b, c], result, &grad.contiguous()?)?;
        Ok((a, b, c))
    }
}
