//! Transformed tiles in memory, and arithmetic on neighbouring ones.

use crate::runtime::memory::Shared;

/// Number of neighbouring tiles processed together.
pub const LANES: usize = 8;
pub type Lanes = [f32; LANES];

#[inline(always)]
pub fn load(from: &[f32], at: usize) -> Lanes {
    std::array::from_fn(|i| from[at..at + LANES][i])
}

#[inline(always)]
pub fn add(a: Lanes, b: Lanes) -> Lanes {
    std::array::from_fn(|i| a[i] + b[i])
}

#[inline(always)]
pub fn sub(a: Lanes, b: Lanes) -> Lanes {
    std::array::from_fn(|i| a[i] - b[i])
}

#[inline(always)]
pub fn neg(a: Lanes) -> Lanes {
    std::array::from_fn(|i| -a[i])
}

/// A row of tiles' inputs or outputs, even and odd columns separate, with room for a whole [`Lanes`] at the end.
pub struct Parted<'a> {
    pub even: &'a mut [f32],
    pub odd: &'a mut [f32],
}

/// Location of the transformed tiles of one channel: point p of tile t is at `first + p · stride + t`.
#[derive(Clone, Copy)]
pub struct Tiles {
    pub shared: Shared,
    pub first: usize,
    pub stride: usize,
}

impl Tiles {
    /// # Safety
    /// As [`Shared::at`], for the [`LANES`] tiles from `tile` on.
    #[inline(always)]
    pub unsafe fn put(self, point: usize, tile: usize, lanes: Lanes) {
        unsafe {
            self.shared.at(self.first + point * self.stride + tile).cast::<Lanes>().write_unaligned(lanes)
        }
    }

    /// # Safety
    /// As [`Tiles::put`]; the tiles are initialised, and nothing writes them at the same time.
    #[inline(always)]
    pub unsafe fn get(self, point: usize, tile: usize) -> Lanes {
        unsafe { self.shared.at(self.first + point * self.stride + tile).cast::<Lanes>().read_unaligned() }
    }
}

/// Interleaves even and odd columns.
#[inline(always)]
pub fn join(parted: &Parted, line: &mut [f32]) {
    let (pairs, rest) = line.as_chunks_mut::<2>();
    let across = pairs.len();
    for ((pair, even), odd) in pairs.iter_mut().zip(&*parted.even).zip(&*parted.odd) {
        *pair = [*even, *odd];
    }
    if let [last] = rest {
        *last = parted.even[across];
    }
}
