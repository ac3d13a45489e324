//! The engine's handle for other threads.

use super::prompt::{Asked, KnownObject, Prompt, Queued};
use super::reload::{Done, Reloader};
use super::shared::{Input, Job, Shared};
use super::{Error, ModelFactory, Result, Settings, Stats};
use autosam_frame::map::ProbMap;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A handle to the engine for other threads. It never waits, even while a frame is being segmented.
#[derive(Clone)]
pub struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) reloader: Arc<Reloader>,
    /// The receiving end of the queue, to remove a frame that a newer one replaces.
    pub(super) waiting: Receiver<Job>,
    pub(super) recycle: Sender<Input>,
    pub(super) prompts: Sender<Queued>,
}

impl Control {
    /// Changes the settings; they take effect with the worker's next frame.
    pub fn set(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
    }

    /// Loads another model on a separate thread and switches to it between two frames. The current model works until
    /// then, and stays if the new one cannot be loaded. `done` is called with the result on another thread. If a newer model
    /// is set before an older one is loaded, the older one's `done` gets an error.
    pub fn replace(&self, open: ModelFactory, done: Done) {
        self.reloader.replace(open, done);
    }

    /// Discards all masks and waiting frames: for a flush, a seek or a new frame size.
    pub fn flush(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.latest.store(None);
        self.shared.pointed.store(None);
        self.take_back();
    }

    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// How long the worker has been on its current frame; `None` if it is idle.
    pub fn busy(&self) -> Option<Duration> {
        let since = self.shared.busy_since.load(Ordering::Acquire).checked_sub(1)?;
        Some(Duration::from_nanos(self.shared.now().saturating_sub(since)))
    }

    /// Removes the queued frame. A caller that waits for it is notified because its reply sender is dropped.
    pub(super) fn take_back(&self) {
        if let Ok(job) = self.waiting.try_recv() {
            self.shared.counters.skipped.add_one();
            let _ = self.recycle.try_send(job.input);
        }
    }

    /// Queues `prompt` for the next frame that is inferred; never waits. [`super::PromptEvent`] reports what becomes of it.
    ///
    /// # Errors
    /// If a position is outside the frame, no model is loaded, or too many prompts are waiting.
    pub fn prompt(&self, prompt: Prompt) -> Result<()> {
        if !prompt.is_valid() {
            return Err(Error::invalid("the prompt is outside the frame, or its box is empty"));
        }
        self.queue(Asked::Prompt(prompt))
    }

    /// Follows `object` from the next frame that is inferred, on which its mask is known, instead of the current object. Prompts that
    /// are queued after it correct the mask; without one it is taken as it is. Never waits.
    ///
    /// # Errors
    /// If the mask has not as many values as pixels, no model is loaded, or too many prompts are waiting.
    pub fn follow_object(&self, object: KnownObject) -> Result<()> {
        let ProbMap { width, height, data } = &object.mask;
        if data.is_empty() || width * height != data.len() {
            return Err(Error::invalid("the object's mask is empty, or its size is wrong"));
        }
        self.queue(Asked::Known(object))
    }

    fn queue(&self, asked: Asked) -> Result<()> {
        if self.shared.input_size().is_none() {
            return Err(Error::engine("no model is loaded"));
        }
        let generation = self.shared.generation.load(Ordering::Acquire);
        let epoch = self.shared.prompt_epoch.load(Ordering::Acquire);
        self.prompts.try_send(Queued { asked, generation, epoch }).map_err(|e| match e {
            TrySendError::Full(_) => {
                Error::engine("too many prompts are waiting: frames arrive or are inferred too slowly")
            }
            TrySendError::Disconnected(_) => Error::engine("the worker thread has ended"),
        })
    }

    /// Stops following the object and discards waiting prompts. Its mask is no longer drawn.
    pub fn clear_prompts(&self) {
        self.shared.prompt_epoch.fetch_add(1, Ordering::AcqRel);
        self.shared.pointed.store(None);
    }

    /// Whether a prompt is waiting for a frame to be inferred.
    pub fn prompts_wait(&self) -> bool {
        !self.prompts.is_empty()
    }

    /// Whether the worker needs small copies of frames for prompts.
    pub(super) fn prompting(&self) -> bool {
        self.prompts_wait() || self.shared.prompting.load(Ordering::Acquire)
    }
}
