//! What kernels do to their results while these are in cache, without a backward: the functions of [`super`] take it only where no
//! gradient is asked for. And a sum.

use super::cpu::{GRAIN, simd, slice, unwritten, written};
use super::pointwise::Activation;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// What a kernel does to its result: add a bias, apply an activation.
#[derive(Debug, Clone, Default)]
pub(super) struct Finish {
    /// `[channels]`.
    pub bias: Option<Tensor>,
    pub activation: Option<Activation>,
}

impl Finish {
    pub fn new(bias: Option<&Tensor>, activation: Option<Activation>) -> Self {
        Self { bias: bias.cloned(), activation }
    }

    /// Ready for use; `None` where there is nothing to do.
    pub fn per_channel(&self, channels: usize) -> Result<Option<ChannelFinish>> {
        let bias = match &self.bias {
            Some(bias) => bias.to_vec1::<f32>()?,
            None if self.activation.is_some() => vec![0.0; channels],
            None => return Ok(None),
        };
        if bias.len() != channels {
            candle_core::bail!("a bias of {} numbers for {channels} channels", bias.len());
        }
        Ok(Some(ChannelFinish { bias, activation: self.activation }))
    }
}

/// See [`Finish::per_channel`].
pub(super) struct ChannelFinish {
    bias: Vec<f32>,
    activation: Option<Activation>,
}

impl ChannelFinish {
    /// Finishes pixels of one channel.
    #[inline(always)]
    pub fn channel(&self, channel: usize, pixels: &mut [f32]) {
        Activation::apply_shifted(self.activation, pixels, self.bias[channel]);
    }

    /// Finishes positions `[.., channels]`.
    #[inline(always)]
    pub fn rows(&self, rows: &mut [f32]) {
        simd(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(self.bias.len()) {
                    for (v, b) in row.iter_mut().zip(&self.bias) {
                        *v += b;
                    }
                }
                if self.activation.is_some() {
                    Activation::apply_shifted(self.activation, rows, 0.0);
                }
            },
        );
    }
}

/// Sum of two tensors of one shape.
pub(super) struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "autosam-add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slice(s1, l1)?, slice(s2, l2)?);
        if a.len() != b.len() {
            candle_core::bail!("add: {:?} and {:?}", l1.dims(), l2.dims());
        }
        let mut out = unwritten(a.len());
        out.par_chunks_mut(GRAIN).zip(a.par_chunks(GRAIN)).zip(b.par_chunks(GRAIN)).with_min_len(2).for_each(
            |((out, a), b)| {
                simd(
                    #[inline(always)]
                    || {
                        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
                            o.write(a + b);
                        }
                    },
                )
            },
        );
        // SAFETY: every element was written; the operands are of one length.
        let out = unsafe { written(out) };
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}
