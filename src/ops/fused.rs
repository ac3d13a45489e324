//! What kernels do to their results while these are in cache, without a backward: the functions of [`super`] take it only where no
//! gradient is asked for. And a sum.

use super::cpu::{GRAIN, simd};
use super::forward::{Args, Elements, Forward, in_storage};
use super::pointwise::Activation;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

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
    pub fn per_channel(&self, channels: usize) -> Result<Option<ChannelFinish<'_>>> {
        if self.bias.is_none() && self.activation.is_none() {
            return Ok(None);
        }
        let bias = self.bias.as_ref().map(Elements::of).transpose()?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != channels) {
            candle_core::bail!("a bias of {} numbers for {channels} channels", bias.len());
        }
        Ok(Some(ChannelFinish { bias, activation: self.activation }))
    }
}

/// See [`Finish::per_channel`].
pub(super) struct ChannelFinish<'a> {
    bias: Option<Elements<'a>>,
    activation: Option<Activation>,
}

impl ChannelFinish<'_> {
    /// Finishes pixels of one channel.
    #[inline(always)]
    pub fn channel(&self, channel: usize, pixels: &mut [f32]) {
        Activation::apply_shifted(
            self.activation,
            pixels,
            self.bias.as_ref().map_or(0.0, |bias| bias[channel]),
        );
    }

    /// Finishes positions `[.., channels]`.
    #[inline(always)]
    pub fn rows(&self, rows: &mut [f32]) {
        let bias = self.bias.as_deref().unwrap_or_default();
        finish_rows(rows, bias, self.activation);
    }
}

/// Adds a bias, where it is not empty, to rows as long as it, and applies an activation.
#[inline(always)]
pub(super) fn finish_rows(rows: &mut [f32], bias: &[f32], activation: Option<Activation>) {
    simd(
        #[inline(always)]
        || {
            if !bias.is_empty() {
                for row in rows.chunks_exact_mut(bias.len()) {
                    for (v, b) in row.iter_mut().zip(bias) {
                        *v += b;
                    }
                }
            }
            if activation.is_some() {
                Activation::apply_shifted(activation, rows, 0.0);
            }
        },
    );
}

/// Sum of two tensors of one shape; or the second's one image is added to each of the first's.
pub(super) struct Add;

// SAFETY: the second's elements, again and again, meet all of the first's.
unsafe impl Forward for Add {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (a, b) = (args.dims(0), args.dims(1));
        let per_image = |dims: &[usize]| dims.get(1..).map(<[usize]>::to_vec);
        if a != b && (b.first() != Some(&1) || per_image(a) != per_image(b)) {
            candle_core::bail!("add: {a:?} and {b:?}");
        }
        Ok(Shape::from(a))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let (a, b) = (args.get(0)?, args.get(1)?);
        if b.is_empty() {
            return Ok(());
        }
        for (out, a) in out.chunks_exact_mut(b.len()).zip(a.chunks_exact(b.len())) {
            let parts = out.par_chunks_mut(GRAIN).zip(a.par_chunks(GRAIN)).zip(b.par_chunks(GRAIN));
            parts.with_min_len(2).for_each(|((out, a), b)| {
                simd(
                    #[inline(always)]
                    || {
                        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
                            o.write(a + b);
                        }
                    },
                )
            });
        }
        Ok(())
    }
}

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
        in_storage(self, &[(s1, l1), (s2, l2)])
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
