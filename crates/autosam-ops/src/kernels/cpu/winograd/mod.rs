//! 3x3 convolutions of stride 1 by Winograd's minimal filtering, F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): tiles
//! of 2x2 outputs take 16 products per pair of channels instead of 36, and write 4 floats per pixel instead of the 9 of
//! unfolding. Its constants are multiples of one half, so f32 loses almost no precision.
//!
//! A tile `d` of 4x4 inputs becomes `V = Bᵀ d B`, a kernel `U = G g Gᵀ`; of the 16 products over channels `M = U V`,
//! summed, the output is `Aᵀ M A`. The gradient of the kernel is the adjoint: `Gᵀ ((A dY Aᵀ) Vᵀ) G`.

mod tiles;

use super::common::{simd, sum_over_images};
use super::epilogue::{ChannelEpilogue, Epilogue};
use super::gemm::{MatRef, gemm, scratch};
use crate::Conv2d;
use crate::runtime::kernel::Kernel;
use crate::runtime::memory::Shared;
use crate::runtime::memory::filled;
use crate::runtime::operands::Args;
use candle_core::{Result, Shape};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use tiles::{LANES, Lanes, Parted, Tiles, add, join, load, neg, sub};

/// Values per transformed tile.
pub(crate) const POINTS: usize = 16;
/// Floats of transformed tiles that a task holds at a time; a share of the last-level cache. Larger blocks are faster,
/// because kernels are packed once per block.
const BLOCK: usize = 2 * 1024 * 1024;
/// Minimum number of tiles for which the transform pays off.
const FEW: usize = 16;
/// Channels that a thread processes at a time.
const CHANNELS: usize = 8;

/// Whether a convolution with kernels of this shape can use Winograd's filtering.
pub(crate) fn applies(kernels: &[usize], cfg: Conv2d) -> bool {
    matches!(kernels, [_, _, 3, 3]) && cfg == Conv2d { padding: 1, ..Conv2d::default() }
}

/// Whether images `[N, C, H, W]` have enough tiles for the transform to pay off.
pub(crate) fn pays(x: &[usize]) -> bool {
    matches!(*x, [n, _, h, w] if n * h.div_ceil(2) * w.div_ceil(2) >= FEW)
}

/// Kernels `[O, C, 3, 3]` → `G g Gᵀ`, `[16, O, C]`.
pub(crate) fn transformed(kernels: &[f32], o: usize, c: usize) -> Vec<f32> {
    transform_kernels(kernels, o * c, |kernel| kernel, |g| *g)
}

/// Transformed kernels `[16, C, O]` of the convolution that maps the output's gradient to the input's, from kernels
/// `[O, C, 3, 3]`.
fn transformed_back(kernels: &[f32], o: usize, c: usize) -> Vec<f32> {
    let rotated = |g: &[f32; 9]| std::array::from_fn(|i| g[8 - i]);
    transform_kernels(kernels, o * c, |kernel| kernel % c * o + kernel / c, rotated)
}

/// Applies `rotated` to each of `count` kernels and transforms the result to column `place` of `[16, count]`.
fn transform_kernels(
    kernels: &[f32],
    count: usize,
    place: impl Fn(usize) -> usize + Sync,
    rotated: impl Fn(&[f32; 9]) -> [f32; 9] + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; POINTS * count];
    let shared = Shared::new(&mut out);
    let (kernels, _) = kernels.as_chunks::<9>();
    kernels.par_iter().enumerate().with_min_len(4096).for_each(|(kernel, g)| {
        let g = rotated(g);
        let column = place(kernel);
        let spread = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
        let rows: [[f32; 4]; 3] = std::array::from_fn(|i| spread([g[3 * i], g[3 * i + 1], g[3 * i + 2]]));
        let columns: [[f32; 4]; 4] = std::array::from_fn(|j| spread(rows.map(|row| row[j])));
        for point in 0..POINTS {
            // SAFETY: each kernel has its own column.
            unsafe { *shared.at(point * count + column) = columns[point % 4][point / 4] };
        }
    });
    out
}

/// Sizes of a convolution of `[n, c, h, w]` to `[n, o, h, w]` with padding 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Winograd {
    pub n: usize,
    pub c: usize,
    pub o: usize,
    pub h: usize,
    pub w: usize,
}

impl Winograd {
    /// Tiles in a row.
    fn across(&self) -> usize {
        self.w.div_ceil(2)
    }

    /// Rows of tiles in an image.
    fn down(&self) -> usize {
        self.h.div_ceil(2)
    }

    /// Rows of tiles that fit a block.
    fn block(&self) -> usize {
        (BLOCK / (POINTS * (self.c + self.o) * self.across())).clamp(1, self.down())
    }

    /// Number of blocks of an image, of sizes as equal as possible.
    fn blocks(&self) -> usize {
        self.down().div_ceil(self.block())
    }

    /// First row of tiles of block `b` of an image, and their number.
    fn rows(&self, b: usize) -> (usize, usize) {
        let start = |b: usize| b * self.down() / self.blocks();
        (start(b), start(b + 1) - start(b))
    }

    /// Floats between channels of transformed tiles, including room for the values that [`Lanes`] write beyond the last
    /// tile.
    fn pitch(&self, rows: usize) -> usize {
        rows * self.across() + LANES
    }

    /// Calls `f` with rows of zeros.
    fn parted<const N: usize>(&self, f: impl FnOnce([Parted; N])) {
        let len = self.across().next_multiple_of(LANES) + LANES;
        scratch(2 * N * len, |buffer| {
            buffer.fill(0.0);
            let mut halves = buffer.chunks_exact_mut(len);
            let mut half = || halves.next().unwrap_or_default();
            f(std::array::from_fn(|_| Parted { even: half(), odd: half() }));
        });
    }

    /// `x [N, C, H, W]` and `u [16, O, C]` of [`transformed`] → all of `out [N, O, H, W]`, with the epilogue.
    pub fn forward(
        &self,
        x: &[f32],
        u: &[f32],
        epilogue: Option<&ChannelEpilogue>,
        out: &mut [MaybeUninit<f32>],
    ) {
        assert_eq!(out.len(), self.n * self.o * self.h * self.w);
        let shared = Shared::uninit(out);
        let tasks = self.n * self.blocks();
        // Few blocks are parallelised step by step; many blocks each as a whole.
        let inside = tasks < 2 * rayon::current_num_threads();
        each(!inside, tasks, |task| {
            let (image, (row, rows)) = (task / self.blocks(), self.rows(task % self.blocks()));
            let pitch = self.pitch(rows);
            let tiles = rows * self.across();
            let size = self.h * self.w;
            let planes = &x[image * self.c * size..][..self.c * size];
            scratch(POINTS * (self.c + self.o) * pitch, |buffer| {
                let (v, m) = buffer.split_at_mut(POINTS * self.c * pitch);
                self.transform_inputs(planes, row, rows, v, inside);
                let (v, m) = (&*v, Shared::new(m));
                each(inside, POINTS, |point| {
                    let a = MatRef {
                        data: u[point * self.o * self.c..].as_ptr(),
                        row_stride: self.c as isize,
                        col_stride: 1,
                    };
                    let b = MatRef {
                        data: v[point * self.c * pitch..].as_ptr(),
                        row_stride: pitch as isize,
                        col_stride: 1,
                    };
                    // SAFETY: a point has its own o × pitch floats.
                    unsafe {
                        let dst = m.at(point * self.o * pitch);
                        gemm(self.o, tiles, self.c, dst, pitch as isize, false, 1.0, a, b);
                    }
                });
                let with_epilogue = |part: usize, [mut upper, mut lower]: [Parted; 2]| {
                    for channel in part * CHANNELS..((part + 1) * CHANNELS).min(self.o) {
                        let tiles = Tiles { shared: m, first: channel * pitch, stride: self.o * pitch };
                        // SAFETY: each task writes its own rows of each channel's plane.
                        let plane = unsafe { shared.at((image * self.o + channel) * size) };
                        simd(
                            #[inline(always)]
                            || {
                                for r in 0..rows {
                                    let y = 2 * (row + r);
                                    self.output(tiles, r * self.across(), &mut upper, &mut lower);
                                    for (y, parted) in [(y, &upper), (y + 1, &lower)] {
                                        if y < self.h {
                                            // SAFETY: as above; row y lies inside the plane.
                                            let line = unsafe {
                                                std::slice::from_raw_parts_mut(plane.add(y * self.w), self.w)
                                            };
                                            join(parted, line);
                                            if let Some(epilogue) = epilogue {
                                                epilogue.channel(channel, line);
                                            }
                                        }
                                    }
                                }
                            },
                        );
                    }
                };
                each(inside, self.o.div_ceil(CHANNELS), |part| self.parted(|rows| with_epilogue(part, rows)));
            });
        });
    }

    /// Gradient of the input, from the output's gradient and the kernels `[O, C, 3, 3]`.
    pub fn grad_input(&self, grad: &[f32], kernels: &[f32]) -> Vec<f32> {
        let back = Self { c: self.o, o: self.c, ..*self };
        let kernels = transformed_back(kernels, self.o, self.c);
        // SAFETY: `forward` writes all.
        unsafe { filled(self.n * self.c * self.h * self.w, |out| back.forward(grad, &kernels, None, out)) }
    }

    /// Gradient of the kernels, `[O, C, 3, 3]`, from the input and the output's gradient.
    pub fn grad_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let size = self.h * self.w;
        let du = sum_over_images(self.n, POINTS * self.o * self.c, |image, du| {
            let planes = &x[image * self.c * size..][..self.c * size];
            let grad = &grad[image * self.o * size..][..self.o * size];
            for block in 0..self.blocks() {
                self.add_grad_weight(planes, grad, self.rows(block), du);
            }
        });
        let mut dw = vec![0f32; self.o * self.c * 9];
        let (kernels, _) = dw.as_chunks_mut::<9>();
        kernels.par_iter_mut().enumerate().with_min_len(4096).for_each(|(kernel, dw)| {
            let gather = |[a, b, c, d]: [f32; 4]| [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d];
            let at = |i: usize, j: usize| du[(4 * i + j) * self.o * self.c + kernel];
            let columns: [[f32; 3]; 4] = std::array::from_fn(|j| gather(std::array::from_fn(|i| at(i, j))));
            for i in 0..3 {
                dw[3 * i..][..3].copy_from_slice(&gather(columns.map(|column| column[i])));
            }
        });
        dw
    }

    /// Adds one block's part of the transformed kernels' gradient, `[16, O, C]`.
    fn add_grad_weight(&self, planes: &[f32], grad: &[f32], (row, rows): (usize, usize), du: &mut [f32]) {
        let pitch = self.pitch(rows);
        scratch(POINTS * (self.c + self.o) * pitch, |buffer| {
            let (v, m) = buffer.split_at_mut(POINTS * self.c * pitch);
            self.transform_inputs(planes, row, rows, v, false);
            self.transform_gradients(grad, row, rows, m);
            for (point, du) in du.chunks_exact_mut(self.o * self.c).enumerate() {
                let a = MatRef {
                    data: m[point * self.o * pitch..].as_ptr(),
                    row_stride: pitch as isize,
                    col_stride: 1,
                };
                let b = MatRef {
                    data: v[point * self.c * pitch..].as_ptr(),
                    row_stride: 1,
                    col_stride: pitch as isize,
                };
                // SAFETY: o × c floats of this point.
                unsafe {
                    let tiles = rows * self.across();
                    gemm(self.o, self.c, tiles, du.as_mut_ptr(), self.c as isize, true, 1.0, a, b);
                }
            }
        });
    }

    /// `Bᵀ d B` of the tiles of `rows` rows from `row` on: `[16, C, pitch]`.
    fn transform_inputs(&self, planes: &[f32], row: usize, rows: usize, v: &mut [f32], parallel: bool) {
        let pitch = self.pitch(rows);
        let shared = Shared::new(v);
        // The four rows of inputs that a row of tiles reads; it shares two with the next.
        let transformed = |part: usize, mut window: [Parted; 4]| {
            for channel in part * CHANNELS..((part + 1) * CHANNELS).min(self.c) {
                let plane = &planes[channel * self.h * self.w..][..self.h * self.w];
                let tiles = Tiles { shared, first: channel * pitch, stride: self.c * pitch };
                simd(
                    #[inline(always)]
                    || {
                        for r in 0..rows {
                            let y = 2 * (row + r);
                            let fresh = if r == 0 { 0 } else { 2 };
                            if fresh == 2 {
                                window.rotate_left(2);
                            }
                            for (i, parted) in window.iter_mut().enumerate().skip(fresh) {
                                self.part_padded(plane, (y + i).wrapping_sub(1), parted);
                            }
                            self.input(&window, tiles, r * self.across());
                        }
                    },
                );
            }
        };
        each(parallel, self.c.div_ceil(CHANNELS), |part| self.parted(|window| transformed(part, window)));
    }

    /// `A dY Aᵀ` of the tiles of `rows` rows from `row` on: `[16, O, pitch]`.
    fn transform_gradients(&self, grad: &[f32], row: usize, rows: usize, m: &mut [f32]) {
        let pitch = self.pitch(rows);
        let shared = Shared::new(m);
        self.parted(|[mut upper, mut lower]| {
            for channel in 0..self.o {
                let plane = &grad[channel * self.h * self.w..][..self.h * self.w];
                let tiles = Tiles { shared, first: channel * pitch, stride: self.o * pitch };
                simd(
                    #[inline(always)]
                    || {
                        for r in 0..rows {
                            let y = 2 * (row + r);
                            self.part(plane, y, &mut upper);
                            self.part(plane, y + 1, &mut lower);
                            self.gradient(&upper, &lower, tiles, r * self.across());
                        }
                    },
                );
            }
        });
    }

    /// Splits row `y` of a plane into even and odd columns, zeros beyond it.
    #[inline(always)]
    fn part(&self, plane: &[f32], y: usize, to: &mut Parted) {
        let across = self.across();
        if y >= self.h {
            to.even[..across].fill(0.0);
            to.odd[..across].fill(0.0);
            return;
        }
        let (pairs, rest) = plane[y * self.w..][..self.w].as_chunks::<2>();
        for ((pair, even), odd) in pairs.iter().zip(&mut *to.even).zip(&mut *to.odd) {
            (*even, *odd) = (pair[0], pair[1]);
        }
        if let [last] = rest {
            (to.even[across - 1], to.odd[across - 1]) = (*last, 0.0);
        }
    }

    /// The same after a column of zeros.
    #[inline(always)]
    fn part_padded(&self, plane: &[f32], y: usize, to: &mut Parted) {
        let across = self.across();
        if y >= self.h {
            to.even[..=across].fill(0.0);
            to.odd[..=across].fill(0.0);
            return;
        }
        let (pairs, rest) = plane[y * self.w..][..self.w].as_chunks::<2>();
        to.even[0] = 0.0;
        for ((pair, even), odd) in pairs.iter().zip(&mut to.even[1..]).zip(&mut *to.odd) {
            (*odd, *even) = (pair[0], pair[1]);
        }
        if let [last] = rest {
            (to.odd[across - 1], to.even[across]) = (*last, 0.0);
        }
        to.odd[across] = 0.0;
    }

    #[inline(always)]
    fn input(&self, window: &[Parted; 4], tiles: Tiles, first: usize) {
        for t in (0..self.across()).step_by(LANES) {
            // Columns 0 to 3 of the tiles, of each of the four rows.
            let column = |row: &Parted| {
                [load(row.even, t), load(row.odd, t), load(row.even, t + 1), load(row.odd, t + 1)]
            };
            let [a, b, c, d] =
                [column(&window[0]), column(&window[1]), column(&window[2]), column(&window[3])];
            let row = |i: usize, f: fn(Lanes, Lanes) -> Lanes, p: &[Lanes; 4], q: &[Lanes; 4]| {
                let [s, t0, u, w]: [Lanes; 4] = std::array::from_fn(|j| f(p[j], q[j]));
                let out = [sub(s, u), add(t0, u), sub(u, t0), sub(t0, w)];
                for (j, lanes) in out.into_iter().enumerate() {
                    // SAFETY: tiles from `first + t` on belong to this row, are written later, or are padding of the pitch.
                    unsafe { tiles.put(4 * i + j, first + t, lanes) };
                }
            };
            row(0, sub, &a, &c);
            row(1, add, &b, &c);
            row(2, sub, &c, &b);
            row(3, sub, &b, &d);
        }
    }

    #[inline(always)]
    fn output(&self, tiles: Tiles, first: usize, upper: &mut Parted, lower: &mut Parted) {
        for t in (0..self.across()).step_by(LANES) {
            let row = |i: usize| {
                // SAFETY: the products are done, and the pitch leaves room after the last tile.
                let [a, b, c, d]: [Lanes; 4] =
                    std::array::from_fn(|j| unsafe { tiles.get(4 * i + j, first + t) });
                (add(add(a, b), c), sub(sub(b, c), d))
            };
            let [(a, e), (b, f), (c, g), (d, h)] = [row(0), row(1), row(2), row(3)];
            upper.even[t..t + LANES].copy_from_slice(&add(add(a, b), c));
            upper.odd[t..t + LANES].copy_from_slice(&add(add(e, f), g));
            lower.even[t..t + LANES].copy_from_slice(&sub(sub(b, c), d));
            lower.odd[t..t + LANES].copy_from_slice(&sub(sub(f, g), h));
        }
    }

    #[inline(always)]
    fn gradient(&self, upper: &Parted, lower: &Parted, tiles: Tiles, first: usize) {
        for t in (0..self.across()).step_by(LANES) {
            let row = |i: usize, even: Lanes, odd: Lanes| {
                let out = [even, add(even, odd), sub(even, odd), neg(odd)];
                for (j, lanes) in out.into_iter().enumerate() {
                    // SAFETY: as in `input`.
                    unsafe { tiles.put(4 * i + j, first + t, lanes) };
                }
            };
            let (a, b) = (load(upper.even, t), load(upper.odd, t));
            let (c, d) = (load(lower.even, t), load(lower.odd, t));
            row(0, a, b);
            row(1, add(a, c), add(b, d));
            row(2, sub(a, c), sub(b, d));
            row(3, neg(c), neg(d));
        }
    }
}

/// The convolution of `x [N, C, H, W]` with transformed kernels `[16, O, C]`; for inference.
pub(crate) struct Transformed {
    pub epilogue: Epilogue,
}

impl Winograd {
    fn of(args: Args) -> Result<Self> {
        match (args.dims(0), args.dims(1)) {
            (&[n, c, h, w], &[POINTS, o, ci]) if c == ci => Ok(Self { n, c, o, h, w }),
            (x, u) => candle_core::bail!("expected [N, C, H, W] and [16, O, C], found {x:?} and {u:?}"),
        }
    }
}

// SAFETY: tasks cover every row of every plane.
unsafe impl Kernel for Transformed {
    fn shape(&self, args: Args) -> Result<Shape> {
        let Winograd { n, o, h, w, .. } = Winograd::of(args)?;
        Ok(Shape::from((n, o, h, w)))
    }

    fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
        let g = Winograd::of(args)?;
        g.forward(&args.get(0)?, &args.get(1)?, self.epilogue.per_channel(g.o)?.as_ref(), out);
        Ok(())
    }
}

/// Calls `f` for `0..n`, on all threads or on this one.
fn each(parallel: bool, n: usize, f: impl Fn(usize) + Sync + Send) {
    match parallel {
        true => (0..n).into_par_iter().for_each(f),
        false => (0..n).for_each(f),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::conv::Geometry;
    use crate::runtime::capture::noise;

    fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
        let scale = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(ours.len() == theirs.len() && worst < 4e-6 * scale, "{what}: {worst} of {scale}");
    }

    #[test]
    fn forward_and_gradients_are_those_of_the_unfolded_product() {
        // Odd sizes, a single channel, widths around the number of lanes, several blocks.
        for (n, c, o, h, w) in
            [(1, 1, 1, 1, 1), (2, 3, 5, 7, 9), (1, 40, 24, 33, 47), (3, 9, 17, 16, 16), (1, 64, 200, 90, 88)]
        {
            let win = Winograd { n, c, o, h, w };
            let unfolded =
                Geometry::of(&[n, c, h, w], &[o, c, 3, 3], Conv2d { padding: 1, ..Conv2d::default() })
                    .unwrap();
            let (x, kernels, grad) = (noise(n * c * h * w, 1), noise(o * c * 9, 2), noise(n * o * h * w, 3));
            let shape = format!("{win:?}");
            let result = |f: &dyn Fn(&mut [MaybeUninit<f32>])| unsafe { filled(n * o * h * w, f) };
            let forward = result(&|out| win.forward(&x, &transformed(&kernels, o, c), None, out));
            let by_products = result(&|out| unfolded.forward_unfolded(&x, &kernels, None, out));
            assert_close(&shape, &forward, &by_products);
            assert_close(
                &shape,
                &win.grad_input(&grad, &kernels),
                &unfolded.grad_input_unfolded(&grad, &kernels),
            );
            assert_close(&shape, &win.grad_weight(&x, &grad), &unfolded.grad_weight_unfolded(&x, &grad));
        }
    }
}
