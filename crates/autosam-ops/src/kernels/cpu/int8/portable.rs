//! Plain loops for processors without byte instructions; also the reference for the other instruction sets.

use super::depthwise::DepthWise;
use super::product::{DEPTH, PANEL, Product};
use std::mem::MaybeUninit;

pub(super) fn product(p: &Product, x: &[u8], residual: Option<&[u8]>, out: &mut [MaybeUninit<u8>]) {
    for (m, (x, out)) in x.chunks_exact(p.k).zip(out.chunks_exact_mut(p.n)).enumerate() {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            let mut sums = [0i32; PANEL];
            let weights = &p.panels[panel * PANEL * p.k..][..PANEL * p.k];
            for (x, w) in x.as_chunks::<DEPTH>().0.iter().zip(weights.as_chunks::<{ PANEL * DEPTH }>().0) {
                for (sum, w) in sums.iter_mut().zip(w.as_chunks::<DEPTH>().0) {
                    *sum += (0..DEPTH).map(|i| i32::from(x[i]) * i32::from(w[i])).sum::<i32>();
                }
            }
            for (i, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                let o = panel * PANEL + i;
                let more = residual.map_or(0.0, |r| f32::from(r[m * p.n + o]) * p.residual);
                out.write(p.requantise.byte(o, sum, more));
            }
        }
    }
}

pub(super) fn depthwise(p: &DepthWise, lines: &[u8], width: usize, out: &mut [MaybeUninit<u8>]) {
    let c = p.c;
    for (ox, out) in out.chunks_exact_mut(c).enumerate() {
        for (channel, out) in out.iter_mut().enumerate() {
            let mut sum = 0i32;
            for ky in 0..p.k {
                for kx in 0..p.k {
                    let x = lines[(ky * width + ox * p.stride + kx) * c + channel];
                    sum += i32::from(x) * i32::from(p.taps[(ky * p.k + kx) * c + channel]);
                }
            }
            out.write(p.requantise.byte(channel, sum, 0.0));
        }
    }
}
