//! Copies between arrangements: windows of a grid, channels side by side.

use super::cpu::{Elements, Shared, copied, handles, shaped_as, slice, unwritten, written};
use super::tape;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// `[N, H, W, C]` → windows `[N·wh·ww, w·w, C]`, padded with zeros below and to the right.
pub fn partition(x: &Tensor, window: usize) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let windows = Windows { window, n, h, w, c };
    if (h, w) == (window, window) {
        return tape::reshape(x, windows.inside());
    }
    if handles(&[x]) {
        return tape::apply1(&x.contiguous()?, Partition(windows));
    }
    #[cfg(feature = "cuda")]
    if super::cuda::copies_windows(x, c) {
        let op = super::cuda::Windows { grid: [n, h, w, c], side: window, together: false };
        return x.contiguous()?.apply_op1_no_bwd(&op);
    }
    let (rows, cols) = (h.div_ceil(window), w.div_ceil(window));
    let x = x.pad_with_zeros(1, 0, rows * window - h)?.pad_with_zeros(2, 0, cols * window - w)?;
    x.reshape((n, rows, window, cols, window * c))?.transpose(2, 3)?.contiguous()?.reshape(windows.inside())
}

/// The inverse of [`partition`] for a grid of `h × w`.
pub fn unpartition(x: &Tensor, window: usize, h: usize, w: usize) -> Result<Tensor> {
    let (rows, cols) = (h.div_ceil(window), w.div_ceil(window));
    let (b, _, c) = x.dims3()?;
    let n = b / (rows * cols);
    if (h, w) == (window, window) {
        return tape::reshape(x, (n, h, w, c));
    }
    if handles(&[x]) {
        return tape::apply1(&x.contiguous()?, Unpartition(Windows { window, n, h, w, c }));
    }
    #[cfg(feature = "cuda")]
    if super::cuda::copies_windows(x, c) {
        let op = super::cuda::Windows { grid: [n, h, w, c], side: window, together: true };
        return x.contiguous()?.apply_op1_no_bwd(&op);
    }
    x.reshape((n, rows, cols, window, window * c))?
        .transpose(2, 3)?
        .contiguous()?
        .reshape((n, rows * window, cols * window, c))?
        .narrow(1, 0, h)?
        .narrow(2, 0, w)?
        .contiguous()
}

/// A grid `[n, h, w, c]` and its windows.
#[derive(Debug, Clone, Copy)]
struct Windows {
    window: usize,
    n: usize,
    h: usize,
    w: usize,
    c: usize,
}

impl Windows {
    fn grid(&self) -> (usize, usize, usize, usize) {
        (self.n, self.h, self.w, self.c)
    }

    fn inside(&self) -> (usize, usize, usize) {
        let (rows, cols) = (self.h.div_ceil(self.window), self.w.div_ceil(self.window));
        (self.n * rows * cols, self.window * self.window, self.c)
    }

    /// Calls `f(first element in the grid, first element in the windows, elements)` for every line of every window, the
    /// grid's rows in parallel.
    fn lines(&self, f: impl Fn(usize, usize, usize) + Sync) {
        let Self { window, h, w, c, .. } = *self;
        let (rows, cols) = (h.div_ceil(window), w.div_ceil(window));
        (0..self.n * h).into_par_iter().with_min_len(8).for_each(|line| {
            let (image, y) = (line / h, line % h);
            for col in 0..cols {
                let cell = ((image * rows + y / window) * cols + col) * window + y % window;
                f((line * w + col * window) * c, cell * window * c, window.min(w - col * window) * c);
            }
        });
    }

    fn take_apart(&self, x: &[f32]) -> Vec<f32> {
        let (b, t, c) = self.inside();
        // Zeros where a window reaches beyond the grid.
        let mut out = vec![0f32; b * t * c];
        let shared = Shared::new(&mut out);
        // SAFETY: no line of the windows is written twice.
        self.lines(|from, to, len| unsafe { copy(&x[from..from + len], shared.at(to)) });
        out
    }

    fn put_together(&self, x: &[f32]) -> Vec<f32> {
        let mut out = unwritten(self.n * self.h * self.w * self.c);
        let shared = Shared::unwritten(&mut out);
        // SAFETY: every line of the grid is written once, which are all there is.
        self.lines(|to, from, len| unsafe { copy(&x[from..from + len], shared.at(to)) });
        unsafe { written(out) }
    }
}

/// # Safety
/// `to` points to as many floats, which no one else has.
unsafe fn copy(from: &[f32], to: *mut f32) {
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
}

struct Partition(Windows);

impl CustomOp1 for Partition {
    fn name(&self) -> &'static str {
        "autosam-partition"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.0.take_apart(slice(s, l)?)), Shape::from(self.0.inside())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(shaped_as(self.0.put_together(&Elements::of(&grad.contiguous()?)?), x)?))
    }
}

struct Unpartition(Windows);

impl CustomOp1 for Unpartition {
    fn name(&self) -> &'static str {
        "autosam-unpartition"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.0.put_together(slice(s, l)?)), Shape::from(self.0.grid())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(shaped_as(self.0.take_apart(&Elements::of(&grad.contiguous()?)?), x)?))
    }
}

/// Joins `[N, C, H, W]` along the channels.
pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
    // candle's own join is as good, but its gradients are read element by element.
    if !handles(parts) || !parts.iter().any(|t| t.track_op()) {
        return Tensor::cat(parts, 1);
    }
    let whole = |t: &Tensor| t.contiguous();
    match parts {
        [] => candle_core::bail!("nothing to join"),
        [one] => Ok((*one).clone()),
        [a, b] => tape::apply2(&whole(a)?, &whole(b)?, Concat),
        [a, b, c] => tape::apply3(&whole(a)?, &whole(b)?, &whole(c)?, Concat),
        many => {
            let joined = many.chunks(3).map(concat).collect::<Result<Vec<_>>>()?;
            concat(&joined.iter().collect::<Vec<_>>())
        }
    }
}

/// Joins what lies side by side in each image.
struct Concat;

impl Concat {
    fn forward<const N: usize>(parts: [(&[f32], &Layout); N]) -> Result<(CpuStorage, Shape)> {
        let (n, _, h, w) = parts[0].1.shape().dims4()?;
        let mut channels = 0;
        for (_, l) in parts {
            if (l.dims()[0], l.dims()[2], l.dims()[3]) != (n, h, w) {
                candle_core::bail!("concat: {:?} beside {:?}", l.dims(), parts[0].1.dims());
            }
            channels += l.dims()[1];
        }
        let mut out = unwritten(n * channels * h * w);
        if !out.is_empty() {
            out.par_chunks_mut(channels * h * w).enumerate().for_each(|(image, out)| {
                let mut at = 0;
                for (x, l) in parts {
                    let size = l.dims()[1] * h * w;
                    copied(&x[image * size..][..size], &mut out[at..at + size]);
                    at += size;
                }
            });
        }
        // SAFETY: the parts' channels are all there are.
        let out = unsafe { written(out) };
        Ok((CpuStorage::F32(out), Shape::from((n, channels, h, w))))
    }

    fn backward<const N: usize>(parts: [&Tensor; N], grad: &Tensor) -> Result<[Option<Tensor>; N]> {
        let grad = grad.contiguous()?;
        let stride = grad.elem_count() / grad.dim(0)?.max(1);
        let all = Elements::of(&grad)?;
        let mut at = 0;
        let mut out = [const { None }; N];
        for (part, out) in parts.iter().zip(&mut out) {
            let size = part.elem_count() / part.dim(0)?.max(1);
            if part.track_op() {
                let mut own = unwritten(part.elem_count());
                own.par_chunks_mut(size.max(1)).enumerate().for_each(|(image, own)| {
                    copied(&all[image * stride + at..][..size], own);
                });
                // SAFETY: every image was written.
                *out = Some(shaped_as(unsafe { written(own) }, part)?);
            }
            at += size;
        }
        Ok(out)
    }
}

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        "autosam-concat"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::forward([(slice(s1, l1)?, l1), (slice(s2, l2)?, l2)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = Self::backward([a, b], grad)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Concat {
    fn name(&self) -> &'static str {
        "autosam-concat"
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
        Self::forward([(slice(s1, l1)?, l1), (slice(s2, l2)?, l2), (slice(s3, l3)?, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = Self::backward([a, b, c], grad)?;
        Ok((a, b, c))
    }
}
