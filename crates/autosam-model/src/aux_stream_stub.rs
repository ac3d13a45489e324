//! Stub for a GPU's second stream in a build without CUDA. Signatures and meaning are those of `aux_stream.rs`.

use crate::Result;
use candle_core::{Device, Tensor};

/// Uninhabited.
#[derive(Debug)]
pub(super) enum AuxStream {}

/// Uninhabited.
pub(super) enum Pending {}

impl AuxStream {
    pub fn of(_: &Device) -> Result<Option<Self>> {
        Ok(None)
    }

    pub fn device(&self) -> &Device {
        match *self {}
    }

    pub fn begin(&self, _: &Tensor, _: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Pending> {
        match *self {}
    }
}

impl Pending {
    pub fn join(self) -> Result<Tensor> {
        match self {}
    }
}
