//! Runs a segmenter beside a live picture, or over files one frame after another.
//!
//! [`Engine::offer`] never waits: it samples the frame to the network's size and leaves it in a queue of one,
//! where a newer frame takes an older one's place. A worker thread makes masks; [`Engine::latest`] reads the last
//! one. [`Engine::segment`] waits for the frame's own mask. A panic or an error in the model stops neither:
//! it is counted and told, and the worker opens the model anew after a pause that grows.

pub mod mask;
pub mod segmenter;
mod stats;

pub use stats::{Latency, Stats};

use crate::frame::Frame;
use crate::frame::sample::Sampler;
use crate::overlay::{Mark, OverlayMode};
use crate::{Error, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use mask::{Mask, MaskSettings};
use segmenter::{ProbMap, Sample, Segmenter};
use stats::Figures;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What becomes of probabilities, up to the prepared mark. Read by the worker for each frame.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    pub mask: MaskSettings,
    pub overlay: OverlayMode,
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
    generation: u64,
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

/// Longest pause between two attempts to open a failing model.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

struct Job {
    sample: Sample,
    size: (usize, usize),
    pts: Option<u64>,
    sampled: Instant,
    generation: u64,
    reply: Option<Sender<Result<Arc<Detection>>>>,
}

struct Shared {
    latest: ArcSwapOption<Detection>,
    settings: ArcSwap<Settings>,
    /// Results of older generations are not shown: flush, seek, caps change.
    generation: AtomicU64,
    figures: Figures,
}

/// See the module's description. Dropping it ends the worker after the frame in its hands.
pub struct Engine {
    control: Control,
    sampler: Sampler,
    /// `None` only while being dropped.
    queue: Option<Sender<Job>>,
    spare: Receiver<Sample>,
    worker: Option<JoinHandle<()>>,
}

/// The part of an engine that other threads may hold and that never waits, also while a frame is being segmented.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    /// The worker's end of the queue, to take back a frame that a newer one replaces.
    waiting: Receiver<Job>,
    recycle: Sender<Sample>,
}

impl Control {
    /// Takes effect with the next frame that the worker begins.
    pub fn set(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
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

    /// Takes the waiting frame out of the queue. One that somebody waits for stays his to hear of: its reply is dropped.
    fn take_back(&self) {
        if let Ok(job) = self.waiting.try_recv() {
            self.shared.figures.skipped.add_one();
            let _ = self.recycle.try_send(job.sample);
        }
    }
}

impl Engine {
    /// Opens the model on a new worker thread and waits until it is ready.
    ///
    /// # Errors
    /// The opener's, or that no thread could be made.
    pub fn start(open: Opener, settings: Settings, listener: Listener) -> Result<Self> {
        let shared = Arc::new(Shared {
            latest: ArcSwapOption::empty(),
            settings: ArcSwap::from_pointee(settings),
            generation: AtomicU64::new(0),
            figures: Figures::new(),
        });
        let (queue, waiting) = bounded(1);
        // One sample in the queue, one with the worker, one being filled.
        let (recycle, spare) = bounded(3);
        let (ready, opened) = bounded(1);
        let worker = Worker {
            shared: shared.clone(),
            jobs: waiting.clone(),
            recycle: recycle.clone(),
            open,
            listener,
            segmenter: None,
            pause: SHORTEST_PAUSE,
            retry_at: None,
        };
        let worker = std::thread::Builder::new()
            .name("autosam-worker".into())
            .spawn(move || worker.run(ready))
            .map_err(|e| Error::invalid(format!("cannot start the worker thread: {e}")))?;
        let size = match opened.recv() {
            Ok(size) => size?,
            Err(_) => return Err(Error::invalid("the worker thread ended while opening the model")),
        };
        let control = Control { shared, waiting, recycle };
        Ok(Self { control, sampler: Sampler::new(size), queue: Some(queue), spare, worker: Some(worker) })
    }

    /// Longest side of the network's input in pixels.
    pub fn input_size(&self) -> usize {
        self.sampler.size()
    }

    /// For other threads.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Leaves `frame` for the worker, in place of one that still waits. Never waits itself.
    ///
    /// # Errors
    /// For a frame that cannot be sampled, or where the worker is gone.
    pub fn offer(&mut self, frame: &Frame, pts: Option<u64>) -> Result<()> {
        self.control.shared.figures.frames.add_one();
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
    pub fn skip(&self) {
        self.control.shared.figures.frames.add_one();
        self.control.shared.figures.skipped.add_one();
    }

    /// The mask of this very frame; waits for it.
    pub fn segment(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Arc<Detection>> {
        self.control.shared.figures.frames.add_one();
        let mut job = self.job(frame, pts).inspect_err(|_| self.control.shared.figures.errors.add_one())?;
        let (reply, answer) = bounded(1);
        job.reply = Some(reply);
        let sent = self.queue.as_ref().is_some_and(|q| q.send(job).is_ok());
        if !sent {
            return Err(self.lost());
        }
        answer.recv().unwrap_or_else(|_| Err(Error::invalid("the frame was dropped by a flush")))
    }

    fn job(&mut self, frame: &Frame, pts: Option<u64>) -> Result<Job> {
        let mut sample = self.spare.try_recv().unwrap_or_default();
        let sampled = Instant::now();
        if let Err(e) = self.sampler.sample(frame, &mut sample) {
            let _ = self.control.recycle.try_send(sample);
            return Err(e);
        }
        let generation = self.control.shared.generation.load(Ordering::Acquire);
        Ok(Job { sample, size: (frame.info.width, frame.info.height), pts, sampled, generation, reply: None })
    }

    fn lost(&self) -> Error {
        Error::invalid("the worker thread has ended")
    }

    /// The last result of the present generation.
    pub fn latest(&self) -> Option<Arc<Detection>> {
        let generation = self.control.shared.generation.load(Ordering::Acquire);
        self.control.shared.latest.load_full().filter(|d| d.generation == generation)
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
    }
}

struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    recycle: Sender<Sample>,
    open: Opener,
    listener: Listener,
    segmenter: Option<Box<dyn Segmenter>>,
    /// How long to leave a failing model alone.
    pause: Duration,
    retry_at: Option<Instant>,
}

impl Worker {
    fn run(mut self, ready: Sender<Result<usize>>) {
        let opened = self.reopen();
        let failed = opened.is_err();
        let _ = ready.send(opened);
        drop(ready);
        if failed {
            return;
        }
        while let Ok(job) = self.jobs.recv() {
            self.work(job);
        }
    }

    fn reopen(&mut self) -> Result<usize> {
        self.segmenter = None;
        let segmenter = guarded(|| (self.open)())?;
        let size = segmenter.input_size();
        self.segmenter = Some(segmenter);
        Ok(size)
    }

    fn work(&mut self, job: Job) {
        let Job { sample, size, pts, sampled, generation, reply } = job;
        let result = self.infer(&sample);
        let _ = self.recycle.try_send(sample);
        let result = result.and_then(|map| {
            let settings = **self.shared.settings.load();
            // The thread must outlive whatever a map holds: a frame may be waited for.
            guarded(|| {
                let mask = Mask::new(map, &settings.mask);
                let mark = Mark::new(&mask, size.0, size.1, settings.overlay);
                Ok(Arc::new(Detection { mask, mark, pts, sampled, generation }))
            })
            .map_err(Failure::New)
        });
        match result {
            Ok(detection) => {
                self.shared.figures.inferred.add_one();
                if generation == self.shared.generation.load(Ordering::Acquire) {
                    self.tell(Event::Detected(detection.clone()));
                    self.shared.latest.store(Some(detection.clone()));
                }
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(detection));
                }
            }
            Err(Failure::Resting(e)) => {
                self.shared.figures.skipped.add_one();
                if let Some(reply) = reply {
                    let _ = reply.send(Err(e));
                }
            }
            Err(Failure::New(e)) => {
                self.shared.figures.errors.add_one();
                // A mask that no longer follows the picture is worse than none.
                self.shared.latest.store(None);
                let text = e.to_string();
                self.tell(Event::Failed(e));
                if let Some(reply) = reply {
                    let _ = reply.send(Err(Error::invalid(text)));
                }
            }
        }
    }

    fn infer(&mut self, sample: &Sample) -> std::result::Result<ProbMap, Failure> {
        if self.segmenter.is_none() {
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return Err(Failure::Resting(Error::invalid(
                    "the model failed and rests before it is opened anew",
                )));
            }
            if let Err(e) = self.reopen() {
                self.rest();
                return Err(Failure::New(e));
            }
            self.shared.figures.restarts.add_one();
            self.tell(Event::Recovered);
        }
        let Some(segmenter) = &mut self.segmenter else {
            return Err(Failure::New(Error::invalid("no model")));
        };
        let mut map = ProbMap::default();
        let begin = Instant::now();
        match guarded(|| segmenter.segment(sample, &mut map)) {
            Ok(()) => {
                self.shared.figures.inference.record(begin.elapsed());
                self.pause = SHORTEST_PAUSE;
                Ok(map)
            }
            Err(e) => {
                // Its state is unknown after a panic, and a device that failed has lost its memory.
                self.segmenter = None;
                self.rest();
                Err(Failure::New(e))
            }
        }
    }

    fn rest(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }

    fn tell(&self, event: Event) {
        if catch_unwind(AssertUnwindSafe(|| (self.listener)(event))).is_err() {
            tracing::error!("the engine's listener panicked");
        }
    }
}

enum Failure {
    New(Error),
    /// Not tried: the pause after a failure is not over.
    Resting(Error),
}

/// Runs `f`; a panic becomes an error with its message.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(Error::invalid(panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    format!("the model panicked: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;
    use std::sync::Mutex;

    type Script = Box<dyn FnMut(&Sample) -> Result<u8> + Send>;

    /// Answers with a flat map of what its script says.
    struct Scripted(Script);

    impl Segmenter for Scripted {
        fn input_size(&self) -> usize {
            16
        }
        fn segment(&mut self, sample: &Sample, out: &mut ProbMap) -> Result<()> {
            let value = (self.0)(sample)?;
            *out = ProbMap {
                width: sample.width,
                height: sample.height,
                data: vec![value; sample.width * sample.height],
            };
            Ok(())
        }
    }

    fn engine(mut make: impl FnMut() -> Script + Send + 'static) -> (Engine, Arc<Mutex<Vec<String>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = told.clone();
        let listener = move |event| {
            hears.lock().unwrap().push(match event {
                Event::Detected(d) => format!("detected {:?}", d.pts),
                Event::Failed(e) => format!("failed: {e}"),
                Event::Recovered => "recovered".to_owned(),
            });
        };
        let opener: Opener = Box::new(move || Ok(Box::new(Scripted(make()))));
        (Engine::start(opener, Settings::default(), Box::new(listener)).unwrap(), told)
    }

    fn frame(value: u8) -> RgbImage {
        RgbImage::from_pixel(32, 20, image::Rgb([value; 3]))
    }

    #[test]
    fn a_frame_gets_its_own_mask() {
        let (mut engine, _) = engine(|| Box::new(|s| Ok(s.rgb[0])));
        for value in [0, 200, 90] {
            let image = frame(value);
            let d = engine.segment(&Frame::rgb_image(&image), Some(7)).unwrap();
            assert_eq!((d.mask.map.width, d.mask.map.height, d.mask.map.data[0]), (16, 10, value));
            assert_eq!(d.mask.regions.len(), usize::from(value >= 128));
            assert_eq!(d.pts, Some(7));
        }
        let stats = engine.control().stats();
        assert_eq!((stats.frames, stats.inferred, stats.skipped, stats.pending), (3, 3, 0, 0));
    }

    /// A model that waits for a token before each answer.
    fn gated() -> (Engine, Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (go, gate) = bounded::<()>(10);
        let (engine, told) = engine(move || {
            let gate = gate.clone();
            Box::new(move |s| {
                let _ = gate.recv();
                Ok(s.rgb[0])
            })
        });
        (engine, go, told)
    }

    fn wait(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_newest_frame_wins_and_the_others_are_counted() {
        let (mut engine, go, told) = gated();
        engine.offer(&Frame::rgb_image(&frame(1)), Some(0)).unwrap();
        wait(|| engine.control.waiting.is_empty()); // the worker holds frame 0
        for i in 1..=8 {
            engine.offer(&Frame::rgb_image(&frame(200)), Some(i)).unwrap();
        }
        assert_eq!(engine.control().stats().skipped, 7);
        go.send(()).unwrap();
        go.send(()).unwrap();
        wait(|| engine.control().stats().inferred == 2);
        assert_eq!(*told.lock().unwrap(), ["detected Some(0)", "detected Some(8)"]);
        wait(|| engine.latest().is_some_and(|d| d.pts == Some(8)));
        let s = engine.control().stats();
        assert_eq!(s.frames, s.inferred + s.skipped + s.errors);
    }

    #[test]
    fn a_flush_forgets_masks_and_frames() {
        let (mut engine, go, _) = gated();
        go.send(()).unwrap();
        engine.segment(&Frame::rgb_image(&frame(200)), None).unwrap();
        assert!(engine.latest().is_some());
        engine.offer(&Frame::rgb_image(&frame(200)), Some(1)).unwrap();
        wait(|| engine.control.waiting.is_empty());
        engine.offer(&Frame::rgb_image(&frame(200)), Some(2)).unwrap();
        engine.control().flush();
        assert!(engine.latest().is_none());
        go.send(()).unwrap();
        wait(|| engine.control().stats().inferred == 2);
        assert!(engine.latest().is_none(), "a mask from before the flush came back");
        assert_eq!(engine.control().stats().skipped, 1);
    }

    #[test]
    fn a_panic_is_told_and_the_model_comes_back() {
        let mut opened = 0;
        let (mut engine, told) = engine(move || {
            opened += 1;
            let first = opened == 1;
            Box::new(move |s| {
                assert!(!first, "boom");
                Ok(s.rgb[0])
            })
        });
        let image = frame(200);
        let text = engine.segment(&Frame::rgb_image(&image), None).unwrap_err().to_string();
        assert!(text.contains("panicked: boom"), "{text}");
        let text = engine.segment(&Frame::rgb_image(&image), None).unwrap_err().to_string();
        assert!(text.contains("rests"), "{text}");
        std::thread::sleep(SHORTEST_PAUSE);
        engine.segment(&Frame::rgb_image(&image), None).unwrap();
        let told = told.lock().unwrap();
        assert!(told[0].starts_with("failed: the model panicked: boom"), "{told:?}");
        assert_eq!(told[1..], ["recovered", "detected None"]);
        let s = engine.control().stats();
        assert_eq!((s.frames, s.inferred, s.skipped, s.errors, s.restarts), (3, 1, 1, 1, 1));
    }

    #[test]
    fn a_model_that_does_not_open_is_an_error_at_once() {
        let opener: Opener = Box::new(|| Err(Error::weights("x.safetensors", "truncated")));
        let result = Engine::start(opener, Settings::default(), Box::new(|_| ()));
        assert!(result.err().unwrap().to_string().contains("x.safetensors: truncated"));
    }

    #[test]
    fn samples_are_reused() {
        let (mut engine, _) = engine(|| Box::new(|s| Ok(s.rgb[0])));
        for _ in 0..20 {
            engine.segment(&Frame::rgb_image(&frame(9)), None).unwrap();
        }
        assert!(engine.spare.len() <= 1, "{} samples for one frame at a time", engine.spare.len());
    }
}
