//! A product of rows of bytes with weights, a 1x1 convolution of `[N, H, W, C]`.

use super::{Isa, Quantised, Requantise};
use crate::ByteScale;

/// Output channels of a panel of weights.
pub(super) const PANEL: usize = 16;
/// Inputs whose products one instruction sums.
pub(super) const DEPTH: usize = 4;

/// Weights `[N, K]` and the requantisation of sums.
pub(crate) struct Product {
    pub isa: Isa,
    /// Number of inputs, a multiple of [`DEPTH`].
    pub k: usize,
    /// Number of outputs.
    pub n: usize,
    /// `[panels, K / 4, 16 outputs, 4 inputs]`; outputs beyond N are 0.
    pub panels: Vec<i8>,
    /// As long as all panels.
    pub requantise: Requantise,
    /// Factor of a residual byte, added to the scaled sum in units of output bytes; see [`Self::with_residual`].
    pub residual: f32,
}

impl Product {
    /// Quantises and packs weights `[N, K]` and bias `[N]`.
    pub fn new(isa: Isa, weights: &[f32], bias: &[f32], from: ByteScale, to: ByteScale) -> Self {
        let (n, k) = (bias.len(), weights.len() / bias.len());
        assert!(k.is_multiple_of(DEPTH), "{k} inputs");
        let Quantised { weights, mut requantise } = Quantised::of(weights, bias, from, to);
        let all = n.next_multiple_of(PANEL);
        requantise.scale.resize(all, 0.0);
        requantise.shift.resize(all, 0.0);
        let mut panels = vec![0i8; all * k];
        for (o, row) in weights.chunks_exact(k).enumerate() {
            for (i, w) in row.iter().enumerate() {
                let panel = o / PANEL * k / DEPTH + i / DEPTH;
                panels[(panel * PANEL + o % PANEL) * DEPTH + i % DEPTH] = *w;
            }
        }
        Self { isa, k, n, panels, requantise, residual: 0.0 }
    }

    /// Makes the product add residual bytes of scale `residual` to results of scale `to`.
    #[must_use]
    pub fn with_residual(mut self, residual: ByteScale, to: ByteScale) -> Self {
        self.residual = residual.step / to.step;
        let shift = self.residual * residual.zero;
        self.requantise.shift.iter_mut().for_each(|s| *s -= shift);
        self
    }
}
