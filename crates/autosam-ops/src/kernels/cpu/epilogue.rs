//! Epilogue that kernels apply to their results while these are in cache. It has no backward: `functional` uses it only
//! if no gradient is requested.

use super::common::simd;
use crate::Activation;
use crate::runtime::operands::Elements;
use candle_core::{Result, Tensor};

/// Bias and activation that a kernel applies to its result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epilogue {
    /// `[channels]`.
    pub bias: Option<Tensor>,
    pub activation: Option<Activation>,
}

impl Epilogue {
    pub fn new(bias: Option<&Tensor>, activation: Option<Activation>) -> Self {
        Self { bias: bias.cloned(), activation }
    }

    /// Prepares the epilogue; `None` if it does nothing.
    pub fn per_channel(&self, channels: usize) -> Result<Option<ChannelEpilogue<'_>>> {
        if self.bias.is_none() && self.activation.is_none() {
            return Ok(None);
        }
        let bias = self.bias.as_ref().map(Elements::of).transpose()?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != channels) {
            candle_core::bail!("a bias of {} values for {channels} channels", bias.len());
        }
        Ok(Some(ChannelEpilogue { bias, activation: self.activation }))
    }
}

/// See [`Epilogue::per_channel`].
pub(crate) struct ChannelEpilogue<'a> {
    bias: Option<Elements<'a>>,
    activation: Option<Activation>,
}

impl ChannelEpilogue<'_> {
    /// Applies the epilogue to pixels of one channel.
    #[inline(always)]
    pub fn channel(&self, channel: usize, pixels: &mut [f32]) {
        Activation::apply_shifted(
            self.activation,
            pixels,
            self.bias.as_ref().map_or(0.0, |bias| bias[channel]),
        );
    }

    /// Applies the epilogue to rows `[.., channels]`.
    #[inline(always)]
    pub fn rows(&self, rows: &mut [f32]) {
        let bias = self.bias.as_deref().unwrap_or_default();
        epilogue_rows(rows, bias, self.activation);
    }
}

/// Adds a bias, unless it is empty, to rows of its length, and applies an activation.
#[inline(always)]
pub(crate) fn epilogue_rows(rows: &mut [f32], bias: &[f32], activation: Option<Activation>) {
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
