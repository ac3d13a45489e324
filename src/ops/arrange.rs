//! Copies between arrangements: windows of a grid, channels side by side.

use super::cpu::{Shared, copied, handles, shaped_as, unwritten, written};
use super::forward::{Args, Elements, Forward, apply, filled, in_storage};
use super::tape;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

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

    /// The windows of a grid, all of `out`.
    fn take_apart(&self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let (b, t, c) = self.inside();
        assert_eq!(out.len(), b * t * c);
        if b * t != self.n * self.h * self.w {
            // Where a window reaches beyond the grid.
            out.fill(MaybeUninit::new(0.0));
        }
        let shared = Shared::unwritten(out);
        // SAFETY: no line of the windows is written twice.
        self.lines(|from, to, len| unsafe { copy(&x[from..from + len], shared.at(to)) });
    }

    /// The grid of windows, all of `out`.
    fn put_together(&self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        assert_eq!(out.len(), self.n * self.h * self.w * self.c);
        let shared = Shared::unwritten(out);
        // SAFETY: every line of the grid is written once, which are all there is.
        self.lines(|to, from, len| unsafe { copy(&x[from..from + len], shared.at(to)) });
    }
}

/// # Safety
/// `to` points to as many floats, which no one else has.
unsafe fn copy(from: &[f32], to: *mut f32) {
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
}

struct Partition(Windows);

// SAFETY: `take_apart` writes all.
unsafe impl Forward for Partition {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (from, to) = (self.0.grid(), self.0.inside());
        if Shape::from(from).dims() != args.dims(0) {
            candle_core::bail!("windows: expected {from:?}, found {:?}", args.dims(0));
        }
        Ok(Shape::from(to))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        self.0.take_apart(&args.get(0)?, out);
        Ok(())
    }
}

impl CustomOp1 for Partition {
    fn name(&self) -> &'static str {
        "autosam-partition"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        in_storage(self, &[(s, l)])
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let grad = Elements::of(&grad)?;
        // SAFETY: `put_together` writes all.
        let dx = unsafe { filled(x.elem_count(), |out| self.0.put_together(&grad, out)) };
        Ok(Some(shaped_as(dx, x)?))
    }
}

struct Unpartition(Windows);

// SAFETY: `put_together` writes all.
unsafe impl Forward for Unpartition {
    fn shape(&self, args: Args) -> Result<Shape> {
        let (from, to) = (self.0.inside(), self.0.grid());
        if Shape::from(from).dims() != args.dims(0) {
            candle_core::bail!("windows: expected {from:?}, found {:?}", args.dims(0));
        }
        Ok(Shape::from(to))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        self.0.put_together(&args.get(0)?, out);
        Ok(())
    }
}

impl CustomOp1 for Unpartition {
    fn name(&self) -> &'static str {
        "autosam-unpartition"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        in_storage(self, &[(s, l)])
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let grad = Elements::of(&grad)?;
        // SAFETY: `take_apart` writes all.
        let dx = unsafe { filled(x.elem_count(), |out| self.0.take_apart(&grad, out)) };
        Ok(Some(shaped_as(dx, x)?))
    }
}

/// Joins `[N, C, H, W]` along the channels.
pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
    if !handles(parts) {
        return Tensor::cat(parts, 1);
    }
    if !parts.is_empty() && !parts.iter().any(|t| t.track_op()) {
        let whole = parts.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
        return apply(Concat, &whole.iter().collect::<Vec<_>>());
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

// SAFETY: the parts' channels are all there are.
unsafe impl Forward for Concat {
    fn shape(&self, args: Args) -> Result<Shape> {
        let &[n, _, h, w] = args.dims(0) else {
            candle_core::bail!("concat: expected [N, C, H, W], found {:?}", args.dims(0))
        };
        let mut channels = 0;
        for i in 0..args.len() {
            match args.dims(i) {
                &[m, c, y, x] if (m, y, x) == (n, h, w) => channels += c,
                other => candle_core::bail!("concat: {other:?} beside {:?}", args.dims(0)),
            }
        }
        Ok(Shape::from((n, channels, h, w)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let per_image = out.len() / args.dims(0)[0].max(1);
        let mut at = 0;
        for i in 0..args.len() {
            let part = args.get(i)?;
            let size = args.dims(i)[1..].iter().product::<usize>();
            if size > 0 {
                let images = out.par_chunks_mut(per_image).zip(part.par_chunks(size));
                images.for_each(|(out, part)| _ = copied(part, &mut out[at..at + size]));
            }
            at += size;
        }
        Ok(())
    }
}

impl Concat {
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
        in_storage(self, &[(s1, l1), (s2, l2)])
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
        in_storage(self, &[(s1, l1), (s2, l2), (s3, l3)])
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

/// Token `i` of each image: `[N, T, C]` → `[N, C]`.
pub fn token(x: &Tensor, i: usize) -> Result<Tensor> {
    if handles(&[x]) && !x.track_op() {
        return apply(Token(i), &[&x.contiguous()?]);
    }
    x.narrow(1, i, 1)?.squeeze(1)
}

struct Token(usize);

// SAFETY: every image has its token.
unsafe impl Forward for Token {
    fn shape(&self, args: Args) -> Result<Shape> {
        match args.dims(0) {
            &[n, t, c] if self.0 < t => Ok(Shape::from((n, c))),
            other => candle_core::bail!("token {} of {other:?}", self.0),
        }
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let &[_, t, c] = args.dims(0) else { return Ok(()) };
        let x = args.get(0)?;
        for (out, tokens) in out.chunks_exact_mut(c.max(1)).zip(x.chunks_exact((t * c).max(1))) {
            copied(&tokens[self.0 * c..][..c], out);
        }
        Ok(())
    }
}
