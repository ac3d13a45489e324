//! The engine's interface to a model: RGB of the network's size in, probabilities out, without tensors.

use crate::{Error, Result};
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::resize::InputSize;

/// A prompt for one object in a frame. Coordinates are pixels of the model's input, whose centres are whole numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObjectPrompt {
    pub points: Vec<ObjectPoint>,
    /// A box around it: left, top, right, bottom.
    pub bounds: Option<[f32; 4]>,
    /// Its expected mask from an earlier frame: probabilities at the input's size.
    pub mask: Option<ProbMap>,
}

/// A point on the object or, if not `foreground`, on the background.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObjectPoint {
    pub x: f32,
    pub y: f32,
    pub foreground: bool,
}

/// A segmentation model.
pub trait Segmenter: Send {
    /// Size of its input, and how frames are fitted into it.
    fn input_size(&self) -> InputSize;
    /// Whether it computes on a GPU, so that the CPU is free to resize frames.
    fn runs_on_gpu(&self) -> bool {
        false
    }
    /// Runs `f` on each of the model's compute threads; the engine uses it to lower their priority.
    fn on_each_thread(&self, _f: &(dyn Fn() + Sync)) {}
    /// Computes the probabilities of one input; `out` is reused between calls.
    fn segment(&mut self, input: &ModelInput, out: &mut ProbMap) -> Result<()>;
    /// Whether [`Self::segment_object`] works.
    fn takes_prompts(&self) -> bool {
        false
    }
    /// As [`Self::segment`]; also writes the probabilities of the object of `prompt`, at the same size, to `object`.
    ///
    /// # Errors
    /// The network's errors, and if the model does not support prompts.
    fn segment_object(
        &mut self,
        _input: &ModelInput,
        _prompt: &ObjectPrompt,
        _out: &mut ProbMap,
        _object: &mut ProbMap,
    ) -> Result<()> {
        Err(Error::invalid("this model takes no prompts"))
    }
}
