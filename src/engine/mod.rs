//! Runs a segmenter beside a live picture, or over files one frame after another.
//!
//! [`Engine::offer`] never waits: it samples the frame to the network's size and leaves it in a queue of one,
//! where a newer frame takes an older one's place. A worker thread makes masks; [`Engine::show`] tells the last
//! one and where the picture has moved it to. [`Engine::segment`] waits for the frame's own mask. A panic or an
//! error in the model stops neither: it is counted and told, and the worker opens the model anew after a pause
//! that grows. [`Control::replace`] opens another model beside and changes over between two frames.

pub mod flow;
pub mod mask;
pub mod motion;
mod reload;
pub mod segmenter;
mod stats;
pub mod temporal;
#[cfg(test)]
mod tests;
mod worker;

pub use reload::Done;
pub use stats::{Latency, Stats};

use crate::frame::region::{Finder, Region};
use crate::frame::sample::{Lowered, Sampler};
use crate::frame::{Frame, Luma, Rect};
use crate::overlay::{Mark, OverlayMode};
use crate::{Error, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use mask::{Mask, MaskSettings};
use reload::Reloader;
use segmenter::{Sample, Segmenter};
use stats::Figures;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use temporal::TemporalSettings;
use worker::{Refusal, Worker};

/// What becomes of frames and probabilities, up to the prepared mark. Read anew for each frame.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    pub mask: MaskSettings,
    pub overlay: OverlayMode,
    /// Width of outlines and boxes in pixels; 0 is about a 400th of the picture.
    pub line: usize,
    /// Off by default.
    pub temporal: TemporalSettings,
    /// Masks follow the picture between two inferences ([`motion`]).
    pub motion: bool,
    /// What the network sees.
    pub region: Region,
}

/// One frame's result.
#[derive(Debug, Clone)]
pub struct Detection {
    pub mask: Mask,
    /// Ready to draw on frames of the size that was offered.
    pub mark: Mark,
    /// The frame's timestamp as its giver counts them.
    pub pts: Option<u64>,
    /// When the frame was sampled.
    pub sampled: Instant,
    /// A small copy of the frame, where motion is followed.
    luma: Option<Arc<Luma>>,
    generation: u64,
}

/// A mask for the picture at hand.
#[derive(Debug, Clone)]
pub struct Shown {
    pub detection: Arc<Detection>,
    /// How far the picture has moved since the mask's own frame, in pixels right and down.
    pub shift: (isize, isize),
}

/// What the worker has to tell; called on its thread.
#[derive(Debug)]
pub enum Event {
    /// A frame's result, just before [`Engine::latest`] gives it.
    Detected(Arc<Detection>),
    /// Inference failed or panicked; the picture goes on without new masks.
    Failed(Error),
    /// The model was opened anew after a failure.
    Recovered,
}

/// Makes a model; called on the worker's thread, again after a failure.
pub type Opener = Box<dyn FnMut() -> Result<Box<dyn Segmenter>> + Send>;
pub type Listener = Box<dyn Fn(Event) + Send>;

/// A frame on its way to the model's size. Where the model takes the CPU, the worker does what needs the frame no more, so that the
/// picture goes on sooner; where it has a GPU, the worker is spared.
enum Input {
    Lowered(Lowered),
    Sample(Sample),
}

impl Default for Input {
    fn default() -> Self {
        Self::Lowered(Lowered::default())
    }
}

struct Job {
    input: Input,
    size: (usize, usize),
    /// What the input shows of the frame.
    area: Rect,
    luma: Option<Arc<Luma>>,
    pts: Option<u64>,
    /// Number of the frame, skipped ones counted.
    index: u64,
    sampled: Instant,
    generation: u64,
    reply: Option<Sender<std::result::Result<Arc<Detection>, Refusal>>>,
}

struct Shared {
    latest: ArcSwapOption<Detection>,
    settings: ArcSwap<Settings>,
    /// Results of older generations are not shown: flush, seek, caps change.
    generation: AtomicU64,
    /// Longest side of the model's input in pixels; 0 while there is no model.
    input_size: AtomicUsize,
    /// See [`Segmenter::spares_the_cpu`].
    spare_cpu: AtomicBool,
    /// When the worker began with the frame in its hands, in ns after `start`, plus 1; 0 while it has none.
    busy_since: AtomicU64,
    /// How long the worker usually has a frame, in ns; 0 while that is not known.
    usually_busy: AtomicU64,
    start: Instant,
    figures: Figures,
}

impl Shared {
    /// In ns after `start`.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes what frames `segmenter` takes.
    fn fits(&self, segmenter: &dyn Segmenter) {
        self.input_size.store(segmenter.input_size(), Ordering::Release);
        self.spare_cpu.store(segmenter.spares_the_cpu(), Ordering::Release);
    }
}

/// See the module's description. Dropping it ends the worker after the frame in its hands.
pub struct Engine {
    control: Control,
    sampler: Sampler,
    /// Makes the small copies for [`motion`] and [`Finder`].
    small: Sampler,
    /// The small copy of the frame at hand, once it is made.
    luma: Option<Arc<Luma>>,
    finder: Finder,
    generation: u64,
    index: u64,
    /// When the frame at hand came, and how long after the one before.
    began: Option<Instant>,
    interval: Duration,
    /// `None` only while being dropped.
    queue: Option<Sender<Job>>,
    spare: Receiver<Input>,
    worker: Option<JoinHandle<()>>,
}

/// A frame on its way ([`Engine::begin`]).
pub struct Pending(Receiver<std::result::Result<Arc<Detection>, Refusal>>);

impl Pending {
    /// The frame's mask; waits for it.
    ///
    /// # Errors
    /// The model's, or that the frame was left out: by a flush, or because the model was replaced by one of another size.
    pub fn wait(self) -> Result<Arc<Detection>> {
        self.answer().map_err(Refusal::into_error)
    }

    fn answer(self) -> std::result::Result<Arc<Detection>, Refusal> {
        let dropped = || Refusal::Failed(Error::invalid("the frame was dropped by a flush"));
        self.0.recv().unwrap_or_else(|_| Err(dropped()))
    }
}

/// The part of an engine that other threads may hold and that never waits, also while a frame is being segmented.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    reloader: Arc<Reloader>,
    /// The worker's end of the queue, to take back a frame that a newer one replaces.
    waiting: Receiver<Job>,
    recycle: Sender<Input>,
}

impl Control {
    /// Takes effect with the next frame that the worker begins.
    pub fn set(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
    }

    /// Opens another model on a thread of its own and changes over to it between two frames; the present one works on until
    /// then, and stays where the new one does not open. `done` hears which, on another thread. Of models set faster than they
    /// open, those overtaken are told so.
    pub fn replace(&self, open: Opener, done: Done) {
        self.reloader.replace(open, done);
    }

    /// Forgets all masks and waiting frames: after a flush, a seek, another picture size.
    pub fn flush(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.latest.store(None);
        self.take_back();
    }

    pub fn stats(&self) -> Stats {
        self.shared.figures.snapshot()
    }

    /// For how long the worker has had the frame in its hands; `None` while it has none.
    pub fn busy(&self) -> Option<Duration> {
        let since = self.shared.busy_since.load(Ordering::Acquire).checked_sub(1)?;
        Some(Duration::from_nanos(self.shared.now().saturating_sub(since)))
    }

    /// Takes the waiting frame out of the queue. One that somebody waits for stays his to hear of: its reply is dropped.
    fn take_back(&self) {
        if let Ok(job) = self.waiting.try_recv() {
            self.shared.figures.skipped.add_one();
            let _ = self.recycle.try_send(job.input);
        }
    }
}

impl Engine {
    /// Opens the model on a new worker thread and waits until it is ready.
    ///
    /// # Errors
    /// The opener's, or that no thread could be made.
    pub fn start(open: Opener, settings: Settings, listener: Listener) -> Result<Self> {
        Self::with(Some(open), settings, listener)
    }

    /// An engine that gives no masks until [`Control::replace`] brings a model.
    ///
    /// # Errors
    /// That no thread could be made.
    pub fn without_model(settings: Settings, listener: Listener) -> Result<Self> {
        Self::with(None, settings, listener)
    }

    fn with(open: Option<Opener>, settings: Settings, listener: Listener) -> Result<Self> {
        let shared = Arc::new(Shared {
            latest: ArcSwapOption::empty(),
            settings: ArcSwap::from_pointee(settings),
            generation: AtomicU64::new(0),
            input_size: AtomicUsize::new(0),
            spare_cpu: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            usually_busy: AtomicU64::new(0),
            start: Instant::now(),
            figures: Figures::new(),
        });
        let (queue, waiting) = bounded(1);
        // One input in the queue, one with the worker, one being filled.
        let (recycle, spare) = bounded(3);
        let (models, loaded) = bounded(1);
        let (ready, opened) = bounded(1);
        let worker = Worker::new(shared.clone(), waiting.clone(), loaded, recycle.clone(), open, listener);
        let worker = std::thread::Builder::new()
            .name("autosam-worker".into())
            .spawn(move || worker.run(ready))
            .map_err(|e| Error::invalid(format!("cannot start the worker thread: {e}")))?;
        match opened.recv() {
            Ok(result) => result?,
            Err(_) => return Err(Error::invalid("the worker thread ended while opening the model")),
        }
        let control = Control { shared, reloader: Arc::new(Reloader::new(models)), waiting, recycle };
        Ok(Self {
            sampler: Sampler::new(control.shared.input_size.load(Ordering::Acquire)),
            control,
            small: Sampler::new(motion::SIDE),
            luma: None,
            finder: Finder::default(),
            generation: 0,
            index: 0,
            began: None,
            interval: Duration::MAX,
            queue: Some(queue),
            spare,
            worker: Some(worker),
        })
    }

    /// Longest side of the network's input in pixels; 0 where there is no model.
    pub fn input_size(&self) -> usize {
        self.control.shared.input_size.load(Ordering::Acquire)
    }

    /// For other threads.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Leaves `frame` for the worker, in place of one that still waits; passes it over where its mask would be old by waiting.
    /// Never waits itself.
    ///
    /// # Errors
    /// For a frame that cannot be sampled, or where the worker is gone.
    pub fn offer(&mut self, frame: &Frame, pts: Option<u64>) -> Result<()> {
        self.next();
        if self.input_size() == 0 {
            self.control.shared.figures.skipped.add_one();
            return Ok(());
        }
        let usual = Duration::from_nanos(self.control.shared.usually_busy.load(Ordering::Acquire));
        if waits_too_long(self.control.busy(), usual, self.interval) {
            self.control.shared.figures.skipped.add_one();
            return Ok(());
        }
        let mut job = self.job(frame, pts).inspect_err(|_| self.control.shared.figures.errors.add_one())?;
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

    /// Counts a frame that passes without inference because its giver wants it so.
    pub fn skip(&mut self) {
        self.next();
        self.control.shared.figures.skipped.add_one();
    }

    /// The mask of this very frame; waits for it.
    pub fn segment(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Arc<Detection>> {
        self.next();
        loop {
            match self.send(frame, pts)?.answer() {
                // The model was replaced by one of another size in the meantime.
                Err(Refusal::OtherSize) => {}
                answer => return answer.map_err(Refusal::into_error),
            }
        }
    }

    /// Sends this very frame to the worker, to be waited for later: while the worker makes its mask, the next one may be read and
    /// sent. Waits where the worker has not taken the one before it.
    pub fn begin(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Pending> {
        self.next();
        self.send(frame, pts)
    }

    fn send(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Pending> {
        if self.input_size() == 0 {
            self.control.shared.figures.skipped.add_one();
            return Err(Error::invalid("there is no model"));
        }
        let mut job = self.job(frame, pts).inspect_err(|_| self.control.shared.figures.errors.add_one())?;
        let (reply, answer) = bounded(1);
        job.reply = Some(reply);
        match &self.queue {
            Some(queue) if queue.send(job).is_ok() => Ok(Pending(answer)),
            _ => Err(self.lost()),
        }
    }

    /// Begins with another frame.
    fn next(&mut self) {
        self.control.shared.figures.frames.add_one();
        self.index += 1;
        self.luma = None;
        let now = Instant::now();
        self.interval = self.began.map_or(Duration::MAX, |before| now - before);
        self.began = Some(now);
        let generation = self.control.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.finder = Finder::default();
        }
    }

    #[tracing::instrument(level = "trace", skip_all, name = "sample")]
    fn job(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Job> {
        let (width, height) = (frame.info.width, frame.info.height);
        let sampled = Instant::now();
        let settings = **self.control.shared.settings.load();
        if settings.motion || settings.temporal != TemporalSettings::default() {
            self.look(frame)?;
        }
        let area = match settings.region {
            Region::Full => Rect::whole(width, height),
            Region::Rect(part) => part.within(width, height),
            Region::Auto => {
                if self.finder.due() {
                    let luma = self.look(frame)?;
                    self.finder.look(&luma, width, height);
                }
                self.finder.current().unwrap_or(Rect::whole(width, height)).within(width, height)
            }
        };
        let size = self.input_size();
        if self.sampler.size() != size {
            self.sampler = Sampler::new(size);
        }
        let spare_cpu = self.control.shared.spare_cpu.load(Ordering::Acquire);
        self.sampler.spread(spare_cpu);
        let mut input = match (self.spare.try_recv().unwrap_or_default(), spare_cpu) {
            (Input::Lowered(_), true) => Input::Sample(Sample::default()),
            (Input::Sample(_), false) => Input::Lowered(Lowered::default()),
            (input, _) => input,
        };
        let part = frame.crop(area);
        let made = match &mut input {
            Input::Lowered(lowered) => self.sampler.lower(&part, lowered),
            Input::Sample(sample) => self.sampler.sample(&part, sample),
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
            sampled,
            generation: self.generation,
            reply: None,
        })
    }

    /// The small copy of the frame at hand.
    fn look(&mut self, frame: &Frame) -> Result<Arc<Luma>> {
        if let Some(luma) = &self.luma {
            return Ok(luma.clone());
        }
        let mut luma = Luma::default();
        self.small.luma(frame, &mut luma)?;
        Ok(self.luma.insert(Arc::new(luma)).clone())
    }

    fn lost(&self) -> Error {
        Error::invalid("the worker thread has ended")
    }

    /// The last result of the present generation.
    pub fn latest(&self) -> Option<Arc<Detection>> {
        let generation = self.control.shared.generation.load(Ordering::Acquire);
        self.control.shared.latest.load_full().filter(|d| d.generation == generation)
    }

    /// The last result as it belongs on `frame`, which is the one just offered or skipped: moved along with the picture where
    /// [`Settings::motion`] asks for it. `None` where there is none, or where the picture is another scene by now.
    #[tracing::instrument(level = "trace", skip_all)]
    pub fn show(&mut self, frame: &Frame) -> Option<Shown> {
        let detection = self.latest()?;
        let follow = self.control.shared.settings.load().motion && !detection.mask.regions.is_empty();
        let (Some(before), true) = (detection.luma.clone(), follow) else {
            return Some(Shown { detection, shift: (0, 0) });
        };
        let now = self.look(frame).ok()?;
        let (dx, dy) = motion::shift(&before, &now, motion::Extent::of(&detection.mask.regions))?;
        let pixels = |part: f32, side: usize| (part * side as f32).round() as isize;
        let shift = (pixels(dx, frame.info.width), pixels(dy, frame.info.height));
        Some(Shown { detection, shift })
    }

    /// Notes what was added to a picture's way.
    pub fn record_video_delay(&self, delay: Duration) {
        self.control.shared.figures.video_delay.record(delay);
    }

    /// Notes the age of a mask that was drawn.
    pub fn record_annotation_delay(&self, age: Duration) {
        self.control.shared.figures.annotation_delay.record(age);
    }
}

/// True of a frame whose mask would be drawn later after it was taken than that of a frame which finds the worker free: masks are
/// drawn when a frame comes, so that waiting for a newer one makes no mask older, and spares the CPU the frames between. `busy` tells
/// for how long the worker has had a frame, `usual` how long it has one, `interval` how far frames are apart.
fn waits_too_long(busy: Option<Duration>, usual: Duration, interval: Duration) -> bool {
    let Some(rest) = busy.and_then(|busy| usual.checked_sub(busy)) else { return false };
    if rest.is_zero() || interval.is_zero() || interval >= usual.saturating_add(rest) {
        return false;
    }
    let frames = usual.as_nanos().div_ceil(interval.as_nanos());
    // An eighth of an interval to spare: neither frames nor masks come by the clock.
    (usual + rest + interval / 8).as_nanos() > frames * interval.as_nanos()
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue = None;
        // What waits would only delay the end.
        while let Ok(job) = self.control.waiting.try_recv() {
            drop(job);
        }
        if let Some(worker) = self.worker.take() {
            // It catches panics itself; there is nobody to tell of another.
            let _ = worker.join();
        }
        self.control.reloader.close();
    }
}
