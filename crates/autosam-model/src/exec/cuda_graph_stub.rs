//! Stub for CUDA graphs in a build without CUDA. Signatures and meaning are those of `cuda_graph.rs`.

use super::Inference;
use crate::Result;
use autosam_frame::map::{ModelInput, ProbMap};

#[derive(Default)]
pub(crate) struct CudaGraphExecutor {}

impl CudaGraphExecutor {
    pub fn replays(&self) -> bool {
        false
    }

    pub fn run(&mut self, inference: &Inference, sample: &ModelInput, out: &mut ProbMap) -> Result<()> {
        super::eager::run(inference, sample, out)
    }
}
