//! Kernels of inference: what training does in several passes, in one, while the numbers are in cache. None has a
//! backward; the functions of [`super`] take them only where no gradient is asked for.

use super::cpu::{GRAIN, Shared, simd, slice};
use super::gemm::{Matrix, gemm, scratch};
use super::pointwise::{Activation, softmax_row};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
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

    /// Finishes all channels of one position.
    #[inline(always)]
    fn row(&self, row: &mut [f32]) {
        for (v, b) in row.iter_mut().zip(&self.bias) {
            *v += b;
        }
        if self.activation.is_some() {
            Activation::apply_shifted(self.activation, row, 0.0);
        }
    }
}

/// Products below this many multiplications stay on one thread: handing over costs more.
const SERIAL: usize = 1 << 20;

/// `x [rows, I]` · `w [O, I]`ᵀ, finished.
pub(super) struct Linear {
    pub finish: Finish,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "autosam-linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(s1, l1)?, slice(s2, l2)?);
        let ((rows, i), (o, wi)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if i != wi {
            candle_core::bail!("linear: {i} inputs for weights of {wi}");
        }
        let finish = self.finish.per_channel(o)?;
        let mut out = vec![0f32; rows * o];
        let parts = if rows * i * o < SERIAL { 1 } else { 2 * rayon::current_num_threads() };
        let block = rows.div_ceil(parts).max(8);
        out.par_chunks_mut(block * o).zip(x.par_chunks(block * i)).for_each(|(out, x)| {
            let a = Matrix { data: x.as_ptr(), rows: i as isize, cols: 1 };
            let b = Matrix { data: w.as_ptr(), rows: 1, cols: i as isize };
            // SAFETY: the slices are as long as the products are.
            unsafe { gemm(x.len() / i, o, i, out.as_mut_ptr(), o as isize, false, 1.0, a, b) };
            if let Some(finish) = &finish {
                simd(
                    #[inline(always)]
                    || {
                        for row in out.chunks_exact_mut(o) {
                            finish.row(row);
                        }
                    },
                );
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((rows, o))))
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

/// `softmax(scale · q kᵀ + bias) v` for every head, from strided views `[B, tokens, heads, d]`.
pub(super) struct Attention {
    pub scale: f32,
    /// `[heads, tokens of q, tokens of k]`.
    pub bias: Option<Tensor>,
}

/// Query rows of a task.
const QUERIES: usize = 64;

/// A view `[B, tokens, heads, d]` whose last dimension is dense.
struct Heads<'a> {
    data: &'a [f32],
    batch: usize,
    token: usize,
    head: usize,
}

impl<'a> Heads<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let &[batch, token, head, 1] = layout.stride() else {
            candle_core::bail!("attention needs [B, T, H, d] with d dense, not {layout:?}")
        };
        Ok(Self { data: &storage.as_slice::<f32>()?[layout.start_offset()..], batch, token, head })
    }

    /// Tokens from `token` on of one head, `[tokens, d]`.
    fn rows(&self, batch: usize, head: usize, token: usize) -> Matrix {
        let at = batch * self.batch + head * self.head + token * self.token;
        Matrix { data: self.data[at..].as_ptr(), rows: self.token as isize, cols: 1 }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "autosam-attention"
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
        let (batch, tokens, heads, d) = l1.shape().dims4()?;
        let keys = l2.dims()[1];
        if l2.dims() != [batch, keys, heads, d] || l3.dims() != l2.dims() {
            candle_core::bail!("attention: q {:?}, k {:?}, v {:?}", l1.dims(), l2.dims(), l3.dims());
        }
        let (q, k, v) = (Heads::of(s1, l1)?, Heads::of(s2, l2)?, Heads::of(s3, l3)?);
        let bias = match &self.bias {
            Some(bias) if bias.dims() != [heads, tokens, keys] => {
                candle_core::bail!(
                    "attention: a bias of {:?} for {heads} heads, {tokens} x {keys}",
                    bias.dims()
                )
            }
            Some(bias) => Some(bias.contiguous()?),
            None => None,
        };
        let held = bias.as_ref().map(Tensor::storage_and_layout);
        let bias: Option<&[f32]> = match &held {
            Some((storage, layout)) => match &**storage {
                candle_core::Storage::Cpu(storage) => Some(slice(storage, layout)?),
                _ => candle_core::bail!("attention: the bias is not on the CPU"),
            },
            None => None,
        };
        let mut out = vec![0f32; batch * tokens * heads * d];
        let shared = Shared::new(&mut out);
        let chunks = tokens.div_ceil(QUERIES);
        let run = |task: usize| {
            let (chunk, head, image) = (task % chunks, task / chunks % heads, task / chunks / heads);
            let first = chunk * QUERIES;
            let rows = QUERIES.min(tokens - first);
            scratch(rows * keys, |scores| {
                let transposed = k.rows(image, head, 0);
                let transposed = Matrix { rows: 1, cols: transposed.rows, ..transposed };
                // SAFETY: the buffer holds rows × keys; a task writes its own rows of its own head of the result.
                unsafe {
                    let dst = scores.as_mut_ptr();
                    let a = q.rows(image, head, first);
                    gemm(rows, keys, d, dst, keys as isize, false, self.scale, a, transposed);
                }
                simd(
                    #[inline(always)]
                    || {
                        if let Some(bias) = bias {
                            let bias = &bias[(head * tokens + first) * keys..][..rows * keys];
                            for (s, b) in scores.iter_mut().zip(bias) {
                                *s += b;
                            }
                        }
                        for row in scores.chunks_exact_mut(keys) {
                            softmax_row(row);
                        }
                    },
                );
                unsafe {
                    let a = Matrix { data: scores.as_ptr(), rows: keys as isize, cols: 1 };
                    let dst = shared.at(((image * tokens + first) * heads + head) * d);
                    gemm(rows, d, keys, dst, (heads * d) as isize, false, 1.0, a, v.rows(image, head, 0));
                }
            });
        };
        let tasks = batch * heads * chunks;
        if tasks * QUERIES.min(tokens) * keys * d < SERIAL {
            (0..tasks).for_each(run);
        } else {
            (0..tasks).into_par_iter().for_each(run);
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, tokens, heads * d))))
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
