//! Kernels of inference: what training does in several passes, in one, while the numbers are in cache. None has a
//! backward; the functions of [`super`] take them only where no gradient is asked for.

use super::cpu::{GRAIN, Shared, simd, slice};
use super::gemm::{Matrix, gemm, scratch};
use super::pointwise::Activation;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
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

/// Transposed convolution whose kernels do not overlap (kernel = stride), finished.
pub(super) struct Spread {
    pub finish: Finish,
}

impl CustomOp2 for Spread {
    fn name(&self) -> &'static str {
        "autosam-spread"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(s1, l1)?, slice(s2, l2)?);
        let ((n, c, h, width), (wc, o, k, _)) = (l1.shape().dims4()?, l2.shape().dims4()?);
        if c != wc {
            candle_core::bail!("conv_transpose2d: {c} channels for weights of {wc}");
        }
        let (cells, square) = (h * width, k * k);
        let finish = self.finish.per_channel(o)?;
        let mut out = vec![0f32; n * o * cells * square];
        // Four channels a task: rows enough for the product, tasks enough for the threads.
        let group = 4.min(o);
        let groups = o.div_ceil(group);
        let shared = Shared::new(&mut out);
        (0..n * groups).into_par_iter().for_each(|task| {
            let (image, first) = (task / groups, task % groups * group);
            let channels = group.min(o - first);
            scratch(channels * square * cells, |product| {
                let a = Matrix { data: w[first * square..].as_ptr(), rows: 1, cols: (o * square) as isize };
                let b = Matrix { data: x[image * c * cells..].as_ptr(), rows: cells as isize, cols: 1 };
                // SAFETY: the buffer holds the product.
                unsafe {
                    let dst = product.as_mut_ptr();
                    gemm(channels * square, cells, c, dst, cells as isize, false, 1.0, a, b);
                }
                for (i, taps) in product.chunks_exact(square * cells).enumerate() {
                    let size = square * cells;
                    // SAFETY: every task writes the planes of its own channels.
                    let plane = unsafe {
                        std::slice::from_raw_parts_mut(shared.at((image * o + first + i) * size), size)
                    };
                    for (row, line) in plane.chunks_exact_mut(k * width).enumerate() {
                        let (y, dy) = (row / k, row % k);
                        for dx in 0..k {
                            let source = &taps[(dy * k + dx) * cells + y * width..][..width];
                            line[dx..].iter_mut().step_by(k).zip(source).for_each(|(v, s)| *v = *s);
                        }
                    }
                    if let Some(finish) = &finish {
                        simd(
                            #[inline(always)]
                            || finish.channel(first + i, plane),
                        );
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), Shape::from((n, o, h * k, width * k))))
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
        let mut out = vec![0f32; a.len()];
        out.par_chunks_mut(GRAIN).zip(a.par_chunks(GRAIN)).zip(b.par_chunks(GRAIN)).with_min_len(2).for_each(
            |((out, a), b)| {
                simd(
                    #[inline(always)]
                    || {
                        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
                            *o = a + b;
                        }
                    },
                )
            },
        );
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}

/// Bilinear resize of `[N, C, H, W]`, as [`super::resize_bilinear`].
pub(super) struct Resize {
    pub height: usize,
    pub width: usize,
    pub align_corners: bool,
}

/// The two samples that make an output, and the second's share.
pub(super) fn taps(from: usize, to: usize, align_corners: bool) -> impl Iterator<Item = (usize, usize, f32)> {
    (0..to).map(move |j| {
        let at = if align_corners {
            if to == 1 { 0.0 } else { j as f64 * (from - 1) as f64 / (to - 1) as f64 }
        } else {
            ((j as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0)
        };
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), (at - low as f64) as f32)
    })
}

impl CustomOp1 for Resize {
    fn name(&self) -> &'static str {
        "autosam-resize"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(s, l)?;
        let (n, c, h, w) = l.shape().dims4()?;
        let down: Vec<_> = taps(h, self.height, self.align_corners).collect();
        let across: Vec<_> = taps(w, self.width, self.align_corners).collect();
        let mut out = vec![0f32; n * c * self.height * self.width];
        // Half a plane a task, so that one plane still feeds two threads.
        let lines = self.height.div_ceil(2);
        let halves = self.height.div_ceil(lines);
        let shared = Shared::new(&mut out);
        (0..n * c * halves).into_par_iter().with_min_len(2 / halves.max(1)).for_each(|task| {
            let (plane, half) = (task / halves, task % halves);
            let x = &x[plane * h * w..][..h * w];
            let rows = lines.min(self.height - half * lines);
            // SAFETY: a task writes its own rows of its own plane.
            let out = unsafe {
                let at = (plane * self.height + half * lines) * self.width;
                std::slice::from_raw_parts_mut(shared.at(at), rows * self.width)
            };
            scratch(w, |blend| {
                for (out, (low, high, t)) in out.chunks_exact_mut(self.width).zip(&down[half * lines..]) {
                    let (a, b) = (&x[low * w..][..w], &x[high * w..][..w]);
                    blend.iter_mut().zip(a).zip(b).for_each(|((v, a), b)| *v = a + t * (b - a));
                    for (o, (low, high, t)) in out.iter_mut().zip(&across) {
                        *o = blend[*low] + t * (blend[*high] - blend[*low]);
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), Shape::from((n, c, self.height, self.width))))
    }
}

/// Max pooling of `[N, C, H, W]`, as [`super::max_pool2d`].
pub(super) struct MaxPool {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "autosam-max-pool"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(s, l)?;
        let (n, c, h, w) = l.shape().dims4()?;
        let size = |side: usize| (side + 2 * self.padding - self.kernel) / self.stride + 1;
        let (oh, ow) = (size(h), size(w));
        let mut out = vec![0f32; n * c * oh * ow];
        let reach = |at: usize, side: usize| {
            let from = at * self.stride;
            (from.saturating_sub(self.padding), (from + self.kernel - self.padding).min(side))
        };
        out.par_chunks_mut(oh * ow).zip(x.par_chunks(h * w)).with_min_len(2).for_each(|(out, x)| {
            scratch(w, |tallest| {
                for (y, out) in out.chunks_exact_mut(ow).enumerate() {
                    let (top, bottom) = reach(y, h);
                    tallest.copy_from_slice(&x[top * w..][..w]);
                    for row in x[top * w..bottom * w].chunks_exact(w).skip(1) {
                        tallest.iter_mut().zip(row).for_each(|(t, v)| *t = t.max(*v));
                    }
                    for (i, o) in out.iter_mut().enumerate() {
                        let (left, right) = reach(i, w);
                        *o = tallest[left..right].iter().fold(f32::MIN, |m, v| m.max(*v));
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), Shape::from((n, c, oh, ow))))
    }
}
