//! Executors: how an inference is run. [`eager`] launches one operation after another and takes any number of inputs. [`plan`] (CPU) and
//! [`cuda_graph`] capture an inference of one input once and replay it.

#[cfg_attr(not(feature = "cuda"), path = "cuda_graph_stub.rs")]
mod cuda_graph;
mod eager;
mod inference;
mod plan;
mod warm_up;

pub(crate) use inference::Inference;

use crate::Result;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_ops as ops;
use candle_core::Device;
use parking_lot::Mutex;

/// Runs inferences of one network, always with the same settings.
#[derive(Default)]
pub(crate) enum Executor {
    #[default]
    Eager,
    Plan(plan::Plan),
    CudaGraph(cuda_graph::CudaGraphExecutor),
}

impl Executor {
    /// The fastest one for inferences of one input on `device`, each averaged over `flips` images.
    pub fn fastest(device: &Device, flips: u32) -> Self {
        match device {
            Device::Cpu => Self::Plan(plan::Plan::default()),
            Device::Cuda(_) if flips == 1 => Self::CudaGraph(cuda_graph::CudaGraphExecutor::default()),
            _ => Self::Eager,
        }
    }

    /// Whether a captured graph is replayed.
    pub fn replays(&self) -> bool {
        match self {
            Self::Eager => false,
            Self::Plan(plan) => plan.replays(),
            Self::CudaGraph(graph) => graph.replays(),
        }
    }

    /// Writes the probability map of `sample` to `out`.
    pub fn run(&mut self, inference: &Inference, sample: &ModelInput, out: &mut ProbMap) -> Result<()> {
        match self {
            Self::Eager => eager::run(inference, sample, out),
            Self::Plan(plan) => plan.run(inference, sample, out),
            Self::CudaGraph(graph) => graph.run(inference, sample, out),
        }
    }
}

/// A GPU's stream runs one inference at a time, because a capture would include another inference's operations.
static GPU_TURN: Mutex<()> = Mutex::new(());

/// Runs `f` as inferences on `device` are run: in the thread pool on a CPU, otherwise exclusively on this thread.
pub(crate) fn on_device<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() {
        return ops::in_pool(f);
    }
    let _turn = GPU_TURN.lock();
    f()
}
