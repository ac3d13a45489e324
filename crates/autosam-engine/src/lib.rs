//! Runs a segmenter in parallel with live video, or on files one frame after another.
//!
//! [`Engine::try_submit`] never waits: it resizes the frame to the network's size and puts it into a queue of one,
//! where a newer frame replaces an older one. A worker thread computes masks. [`Engine::current_overlay`] returns the
//! latest one and how far the tissue has moved since. [`Engine::segment`] waits for the frame's own mask. A panic or an
//! error in the model stops neither thread. It is counted and reported, and the worker reloads the model after a pause
//! that grows with each failure. [`Control::replace`] loads another model on a separate thread and switches to it
//! between two frames.

#![deny(unsafe_code)]

mod control;
mod follow;
mod guard;
pub mod overlay;
mod pacing;
#[expect(unsafe_code, reason = "calls of the scheduler, see docs/unsafe.md")]
pub mod priority;
mod prompt;
#[cfg(test)]
mod prompt_tests;
mod reload;
pub mod segmenter;
mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

pub use autosam_frame::{Error, Result};
pub use control::Control;
pub use follow::Motion;
pub use prompt::{KnownObject, Prompt, PromptEvent};
pub use reload::Done;
pub use stats::{Latency, Stats};

use crate::overlay::{Overlay, OverlayMode};
use autosam_frame::map::ModelInput;
use autosam_frame::mask::{Mask, MaskSettings};
use autosam_frame::motion::{self, Scene};
use autosam_frame::region::{CropMode, Finder};
use autosam_frame::resize::{InputSize, Resizer, RowsResized};
use autosam_frame::temporal::TemporalSettings;
use autosam_frame::{Frame, Luma};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use follow::{Follower, Placement};
use pacing::should_skip_frame;
use reload::Reloader;
use segmenter::Segmenter;
use shared::{Input, Job, Refusal, Shared};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use worker::{Inbox, SHORTEST_PAUSE, Worker};

/// Settings for processing frames and probabilities, up to the prepared overlay. They are read for each frame.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    pub mask: MaskSettings,
    pub overlay: OverlayMode,
    /// Width of outlines and boxes in pixels; 0 is about a 400th of the frame.
    pub line: usize,
    /// The temporal filter, off by default.
    pub temporal: TemporalSettings,
    /// Whether masks follow the video between two inferences.
    pub motion: Motion,
    /// Part of the frame that the network sees.
    pub roi: CropMode,
}

/// One frame's result.
#[derive(Debug, Clone)]
pub struct Detection {
    pub mask: Mask,
    /// Overlay, ready to draw on frames of the submitted size.
    pub overlay: Overlay,
    /// The frame's timestamp, in the caller's clock.
    pub pts: Option<u64>,
    /// When the frame was resized.
    pub resized_at: Instant,
    /// Id of the object that a person pointed at, counted from 1; `None` for the automatic mask.
    pub prompt: Option<u32>,
    /// The scene of the mask, if the mask follows motion.
    scene: Option<Arc<Scene>>,
    /// Number of the frame, including skipped ones.
    index: u64,
    generation: u64,
}

/// A mask to draw on the current frame.
#[derive(Debug, Clone)]
pub struct Shown {
    pub detection: Arc<Detection>,
    /// How far the tissue has moved since the mask's own frame, in pixels right and down.
    pub shift: (isize, isize),
}

/// Events of the worker; handlers are called on its thread.
#[derive(Debug)]
pub enum Event {
    /// A frame's result, just before [`Engine::latest`] returns it.
    Detected(Arc<Detection>),
    /// Inference failed or panicked; video continues without new masks.
    Failed(Error),
    /// The model was reloaded after a failure.
    Recovered,
    /// What became of prompts ([`Control::prompt`]).
    Prompted(PromptEvent),
}

/// Loads a model; called on the worker's thread, again after a failure.
pub type ModelFactory = Box<dyn FnMut() -> Result<Box<dyn Segmenter>> + Send>;
pub type EventHandler = Box<dyn Fn(Event) + Send>;

/// See the crate's description. Dropping it ends the worker after its current frame.
pub struct Engine {
    control: Control,
    resizer: Resizer,
    /// Resizes frames to the small copies for [`motion`] and [`Finder`].
    small: Resizer,
    /// The small copy of the current frame, if it was already needed.
    luma: Option<Arc<Luma>>,
    finder: Finder,
    /// Small copy for [`Finder`].
    copy: ModelInput,
    follower: Follower,
    object_follower: Follower,
    generation: u64,
    index: u64,
    /// When the current frame arrived, and how long after the previous one.
    began: Option<Instant>,
    interval: Duration,
    /// `None` only while being dropped.
    queue: Option<Sender<Job>>,
    spare: Receiver<Input>,
    worker: Option<JoinHandle<()>>,
}

/// A submitted frame whose mask is not ready yet ([`Engine::submit`]).
pub struct Pending(Receiver<std::result::Result<Arc<Detection>, Refusal>>);

impl Pending {
    /// Waits for the frame's mask.
    ///
    /// # Errors
    /// The model's error, or that the frame was dropped by a flush or because the model was replaced by one with another input size.
    pub fn wait(self) -> Result<Arc<Detection>> {
        self.answer().map_err(Refusal::into_error)
    }

    fn answer(self) -> std::result::Result<Arc<Detection>, Refusal> {
        let dropped = || Refusal::Failed(Error::engine("the frame was dropped by a flush"));
        self.0.recv().unwrap_or_else(|_| Err(dropped()))
    }
}

impl Engine {
    /// Loads the model on a new worker thread and waits until it is ready.
    ///
    /// # Errors
    /// The factory's error, or that no thread could be started.
    pub fn start(open: ModelFactory, settings: Settings, handler: EventHandler) -> Result<Self> {
        Self::with(Some(open), settings, handler, SHORTEST_PAUSE)
    }

    /// An engine that computes no masks until [`Control::replace`] sets a model.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn without_model(settings: Settings, handler: EventHandler) -> Result<Self> {
        Self::with(None, settings, handler, SHORTEST_PAUSE)
    }

    /// `first_pause`: pause before a failed model is reloaded; each further failure doubles it.
    fn with(
        open: Option<ModelFactory>,
        settings: Settings,
        handler: EventHandler,
        first_pause: Duration,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::new(settings));
        let (queue, waiting) = bounded(1);
        // One input in the queue, one with the worker, one being filled.
        let (recycle, spare) = bounded(3);
        let (models, loaded) = bounded(1);
        let (ready, opened) = bounded(1);
        let (prompts, asked) = prompt::queue();
        let worker = Worker::new(
            shared.clone(),
            first_pause,
            open,
            handler,
            Inbox { jobs: waiting.clone(), models: loaded, prompts: asked, recycle: recycle.clone() },
        );
        let worker = std::thread::Builder::new()
            .name("autosam-worker".into())
            .spawn(move || worker.run(ready))
            .map_err(|e| Error::device(format!("cannot start the worker thread: {e}")))?;
        match opened.recv() {
            Ok(result) => result?,
            Err(_) => return Err(Error::engine("the worker thread ended while loading the model")),
        }
        // Without a model no frame is resized.
        let size = shared.input_size().unwrap_or(InputSize::from(1));
        let control =
            Control { shared, reloader: Arc::new(Reloader::new(models)), waiting, recycle, prompts };
        Ok(Self {
            resizer: Resizer::new(size),
            control,
            small: Resizer::new(motion::SIDE),
            luma: None,
            finder: Finder::default(),
            copy: ModelInput::default(),
            follower: Follower::default(),
            object_follower: Follower::default(),
            generation: 0,
            index: 0,
            began: None,
            interval: Duration::MAX,
            queue: Some(queue),
            spare,
            worker: Some(worker),
        })
    }

    /// Size of the network's input; none if no model is loaded.
    pub fn input_size(&self) -> Option<InputSize> {
        self.control.shared.input_size()
    }

    /// A handle for other threads.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Submits `frame` for inference and replaces one that still waits. Skips it if waiting would make its mask too
    /// old. Never blocks.
    ///
    /// # Errors
    /// If the frame cannot be resized, or the worker has ended.
    pub fn try_submit(&mut self, frame: &Frame, pts: Option<u64>) -> Result<()> {
        self.next();
        if self.input_size().is_none() {
            self.control.shared.counters.skipped.add_one();
            return Ok(());
        }
        let usual = Duration::from_nanos(self.control.shared.usually_busy.load(Ordering::Acquire));
        if should_skip_frame(self.control.busy(), usual, self.interval) {
            self.control.shared.counters.skipped.add_one();
            return Ok(());
        }
        let mut job = self.job(frame, pts).inspect_err(|_| self.control.shared.counters.errors.add_one())?;
        let Some(queue) = &self.queue else { return Ok(()) };
        loop {
            match queue.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(mine)) => {
                    job = mine;
                    self.control.take_back();
                }
                Err(TrySendError::Disconnected(_)) => return Err(self.lost()),
            }
        }
    }

    /// Counts a frame that passes without inference at the caller's request.
    pub fn skip(&mut self) {
        self.next();
        self.control.shared.counters.skipped.add_one();
    }

    /// Waits for the mask of this frame.
    pub fn segment(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Arc<Detection>> {
        self.next();
        loop {
            match self.send(frame, pts)?.answer() {
                // The model was replaced by one with another input size in the meantime.
                Err(Refusal::OtherSize) => {}
                answer => return answer.map_err(Refusal::into_error),
            }
        }
    }

    /// Waits for the mask of this frame for at most `timeout`; replaces a frame that still waits for the worker.
    ///
    /// # Errors
    /// Those of [`Self::segment`], and that the mask is not ready in time.
    pub fn segment_within(
        &mut self,
        frame: &Frame,
        pts: Option<u64>,
        timeout: Duration,
    ) -> Result<Arc<Detection>> {
        self.next();
        self.control.take_back();
        match self.send(frame, pts)?.0.recv_timeout(timeout) {
            Ok(answer) => answer.map_err(Refusal::into_error),
            Err(_) => Err(Error::engine(format!("the model gave no mask within {timeout:?}"))),
        }
    }

    /// Submits this frame for inference and returns without its mask, so that the next frame can be read in parallel.
    /// Waits if the worker has not taken the previous frame.
    pub fn submit(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Pending> {
        self.next();
        self.send(frame, pts)
    }

    fn send(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Pending> {
        if self.input_size().is_none() {
            self.control.shared.counters.skipped.add_one();
            return Err(Error::engine("no model is loaded"));
        }
        let mut job = self.job(frame, pts).inspect_err(|_| self.control.shared.counters.errors.add_one())?;
        let (reply, answer) = bounded(1);
        job.reply = Some(reply);
        match &self.queue {
            Some(queue) if queue.send(job).is_ok() => Ok(Pending(answer)),
            _ => Err(self.lost()),
        }
    }

    /// Starts a new frame.
    fn next(&mut self) {
        self.control.shared.counters.frames.add_one();
        self.index += 1;
        self.luma = None;
        let now = Instant::now();
        self.interval = self.began.map_or(Duration::MAX, |before| now - before);
        self.began = Some(now);
        let generation = self.control.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.finder = Finder::default();
            self.follower.reset();
            self.object_follower.reset();
        }
    }

    #[tracing::instrument(level = "trace", skip_all, name = "sample")]
    fn job(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Job> {
        let (width, height) = (frame.info.width, frame.info.height);
        let resized_at = Instant::now();
        let settings = **self.control.shared.settings.load();
        if settings.motion != Motion::Off
            || settings.temporal != TemporalSettings::default()
            || self.control.prompting()
        {
            self.look(frame)?;
        }
        let area = settings.roi.area(frame, || {
            if self.finder.due() {
                self.small.resize(frame, &mut self.copy)?;
                self.finder.look(&self.copy, width, height);
            }
            Ok(self.finder.current())
        })?;
        if let Some(size) = self.input_size().filter(|size| *size != self.resizer.size()) {
            self.resizer = Resizer::new(size);
        }
        let spare_cpu = self.control.shared.spare_cpu.load(Ordering::Acquire);
        self.resizer.set_parallel(spare_cpu);
        let mut input = match (self.spare.try_recv().unwrap_or_default(), spare_cpu) {
            (Input::RowsResized(_), true) => Input::Whole(ModelInput::default()),
            (Input::Whole(_), false) => Input::RowsResized(RowsResized::default()),
            (input, _) => input,
        };
        let part = frame.crop(area);
        let made = match &mut input {
            Input::RowsResized(rows) => self.resizer.resize_rows(&part, rows),
            Input::Whole(whole) => self.resizer.resize(&part, whole),
        };
        if let Err(e) = made {
            let _ = self.control.recycle.try_send(input);
            return Err(e);
        }
        Ok(Job {
            input,
            size: (width, height),
            area,
            luma: self.luma.clone(),
            pts,
            index: self.index,
            resized_at,
            generation: self.generation,
            reply: None,
        })
    }

    /// The small copy of the current frame.
    fn look(&mut self, frame: &Frame) -> Result<Arc<Luma>> {
        if let Some(luma) = &self.luma {
            return Ok(luma.clone());
        }
        let mut luma = Luma::default();
        self.small.luma(frame, &mut luma)?;
        Ok(self.luma.insert(Arc::new(luma)).clone())
    }

    fn lost(&self) -> Error {
        Error::engine("the worker thread has ended")
    }

    /// The latest result of the current generation.
    pub fn latest(&self) -> Option<Arc<Detection>> {
        let generation = self.control.shared.generation.load(Ordering::Acquire);
        self.control.shared.latest.load_full().filter(|d| d.generation == generation)
    }

    /// The latest result to draw on `frame`, which is the one just submitted or skipped; moved with the tissue if
    /// [`Settings::motion`] is on. `None` if no result exists or it cannot be followed, because the scene changed or
    /// the tissue moved beyond the search range.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn current_overlay(&mut self, frame: &Frame) -> Option<Shown> {
        let detection = self.latest()?;
        let mut follower = std::mem::take(&mut self.follower);
        let shown = self.place(frame, detection, &mut follower);
        self.follower = follower;
        shown
    }

    /// As [`Engine::current_overlay`], for the object that a person pointed at.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn current_object(&mut self, frame: &Frame) -> Option<Shown> {
        let shared = &self.control.shared;
        let pointed = shared.pointed.load_full()?;
        let (generation, epoch) =
            (shared.generation.load(Ordering::Acquire), shared.prompt_epoch.load(Ordering::Acquire));
        if pointed.detection.generation != generation || pointed.epoch != epoch {
            return None;
        }
        let mut follower = std::mem::take(&mut self.object_follower);
        let shown = self.place(frame, pointed.detection.clone(), &mut follower);
        self.object_follower = follower;
        shown
    }

    /// Places `detection` on `frame`; `None` if it cannot be followed.
    fn place(&mut self, frame: &Frame, detection: Arc<Detection>, follower: &mut Follower) -> Option<Shown> {
        let motion = self.control.shared.settings.load().motion;
        let placement = motion.placement(self.index.saturating_sub(detection.index));
        let follows = placement != Placement::Stays && !detection.mask.regions.is_empty();
        let (Some(scene), true) = (&detection.scene, follows) else {
            return Some(Shown { detection, shift: (0, 0) });
        };
        let now = self.look(frame).ok()?;
        let extent = motion::Extent::of(&detection.mask.regions);
        if placement == Placement::StaysInScene && scene.unmoved(&now, extent) {
            return Some(Shown { detection, shift: (0, 0) });
        }
        let (dx, dy) = follower.shift(scene, detection.index, extent, &now, self.index)?;
        let pixels = |part: f32, side: usize| (part * side as f32).round() as isize;
        let shift = (pixels(dx, frame.info.width), pixels(dy, frame.info.height));
        Some(Shown { detection, shift })
    }

    /// Records the delay added to a frame.
    pub fn record_video_delay(&self, delay: Duration) {
        self.control.shared.counters.video_delay.record(delay);
    }

    /// Records the age of a drawn mask.
    pub fn record_annotation_delay(&self, age: Duration) {
        self.control.shared.counters.annotation_delay.record(age);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue = None;
        // Discard queued frames so that shutdown is not delayed.
        while let Ok(job) = self.control.waiting.try_recv() {
            drop(job);
        }
        if let Some(worker) = self.worker.take() {
            // The worker catches panics itself; one that escapes cannot be reported.
            let _ = worker.join();
        }
        self.control.reloader.close();
    }
}
