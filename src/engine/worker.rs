//! The thread that makes masks.

use super::mask::Mask;
use super::reload::Model;
use super::segmenter::{ProbMap, Sample, Segmenter};
use super::temporal::TemporalFilter;
use super::{Detection, Event, Input, Job, Listener, Opener, Shared, motion};
use crate::frame::Luma;
use crate::frame::sample::Columns;
use crate::overlay::Mark;
use crate::priority;
use crate::{Error, Result};
use crossbeam_channel::{Receiver, Sender, select};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest pause between two attempts to open a failing model.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    models: Receiver<Model>,
    recycle: Sender<Input>,
    /// `None` until there is a model to open.
    open: Option<Opener>,
    listener: Listener,
    segmenter: Option<Box<dyn Segmenter>>,
    /// Ends what the picture's thread began.
    columns: Columns,
    sample: Sample,
    /// How long to leave a failing model alone.
    pause: Duration,
    retry_at: Option<Instant>,
    filter: TemporalFilter,
    /// What the filter has last seen.
    generation: u64,
    luma: Option<Arc<Luma>>,
}

/// Why a frame that is waited for has no mask.
pub(super) enum Refusal {
    Failed(Error),
    /// Its sample is for a model that is no longer there.
    OtherSize,
}

impl Refusal {
    pub fn into_error(self) -> Error {
        match self {
            Self::Failed(e) => e,
            Self::OtherSize => Error::invalid("the model was replaced by one of another size"),
        }
    }
}

enum Failure {
    New(Error),
    /// Not tried: the pause after a failure is not over.
    Resting,
    OtherSize,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        jobs: Receiver<Job>,
        models: Receiver<Model>,
        recycle: Sender<Input>,
        open: Option<Opener>,
        listener: Listener,
    ) -> Self {
        Self {
            shared,
            jobs,
            models,
            recycle,
            open,
            listener,
            segmenter: None,
            columns: Columns::default(),
            sample: Sample::default(),
            pause: SHORTEST_PAUSE,
            retry_at: None,
            filter: TemporalFilter::default(),
            generation: 0,
            luma: None,
        }
    }

    pub fn run(mut self, ready: Sender<Result<()>>) {
        priority::stand_back();
        let opened = if self.open.is_some() { self.reopen() } else { Ok(()) };
        let failed = opened.is_err();
        let _ = ready.send(opened);
        drop(ready);
        if failed {
            return;
        }
        loop {
            select! {
                recv(self.models) -> model => match model {
                    Ok(model) => self.adopt(model),
                    Err(_) => return,
                },
                recv(self.jobs) -> job => match job {
                    Ok(job) => {
                        // A model that is ready comes before the frame.
                        while let Ok(model) = self.models.try_recv() {
                            self.adopt(model);
                        }
                        self.work(job);
                    }
                    Err(_) => return,
                },
            }
        }
    }

    fn adopt(&mut self, model: Model) {
        let Model { segmenter, open, done } = model;
        self.shared.fits(segmenter.as_ref());
        let old = self.segmenter.replace(segmenter);
        self.open = Some(open);
        (self.pause, self.retry_at) = (SHORTEST_PAUSE, None);
        self.filter.reset();
        if guarded(|| {
            drop(old);
            done(Ok(()));
            Ok(())
        })
        .is_err()
        {
            tracing::error!("a panic while changing over to another model");
        }
    }

    fn reopen(&mut self) -> Result<()> {
        self.segmenter = None;
        let Some(open) = &mut self.open else { return Err(Error::invalid("there is no model")) };
        let segmenter = guarded(open)?;
        self.shared.fits(segmenter.as_ref());
        self.segmenter = Some(segmenter);
        Ok(())
    }

    fn work(&mut self, job: Job) {
        let since = self.shared.now();
        self.shared.busy_since.store(since.saturating_add(1), Ordering::Release);
        if self.make(job) {
            let usual = &self.shared.usually_busy;
            let (this, before) = (self.shared.now().saturating_sub(since), usual.load(Ordering::Acquire));
            // Over the last few; one that took long for another reason says little of the next.
            let next = if before == 0 { this } else { (3 * before + this.min(2 * before)) / 4 };
            usual.store(next, Ordering::Release);
        }
        self.shared.busy_since.store(0, Ordering::Release);
    }

    /// True where there is a mask.
    fn make(&mut self, mut job: Job) -> bool {
        let result = self.infer(&job.input);
        let _ = self.recycle.try_send(std::mem::take(&mut job.input));
        // The thread must outlive whatever a map holds: a frame may be waited for.
        let result = result.and_then(|map| {
            guarded(|| Ok(Arc::new(self.detection(&job, map)))).map_err(|e| {
                self.filter.reset();
                Failure::New(e)
            })
        });
        let refusal = match result {
            Ok(detection) => {
                if job.generation == self.shared.generation.load(Ordering::Acquire) {
                    self.tell(Event::Detected(detection.clone()));
                    self.shared.latest.store(Some(detection.clone()));
                }
                // Last, so that who sees the count sees the mask.
                self.shared.figures.inferred.add_one();
                if let Some(reply) = job.reply {
                    let _ = reply.send(Ok(detection));
                }
                return true;
            }
            Err(Failure::OtherSize) => {
                // Who waits for it offers it again.
                if job.reply.is_none() {
                    self.shared.figures.skipped.add_one();
                }
                Refusal::OtherSize
            }
            Err(Failure::Resting) => {
                self.shared.figures.skipped.add_one();
                Refusal::Failed(Error::invalid("the model failed and rests before it is opened anew"))
            }
            Err(Failure::New(e)) => {
                self.shared.figures.errors.add_one();
                // A mask that no longer follows the picture is worse than none.
                self.shared.latest.store(None);
                let text = e.to_string();
                self.tell(Event::Failed(e));
                Refusal::Failed(Error::invalid(text))
            }
        };
        if let Some(reply) = job.reply {
            let _ = reply.send(Err(refusal));
        }
        false
    }

    /// From a map to what is shown of it.
    #[tracing::instrument(level = "trace", skip_all, name = "mask")]
    fn detection(&mut self, job: &Job, map: ProbMap) -> Detection {
        let settings = **self.shared.settings.load();
        let (width, height) = job.size;
        let mut map = map.embedded(job.area, width, height);
        let cut = match (&self.luma, &job.luma) {
            (Some(before), Some(now)) => motion::shift(before, now, motion::Extent::WHOLE).is_none(),
            _ => false,
        };
        if cut || self.generation != job.generation {
            self.filter.reset();
        }
        (self.generation, self.luma) = (job.generation, job.luma.clone());
        self.filter.apply(&mut map, job.index, settings.mask.threshold, &settings.temporal);
        let mask = Mask::new(map, &settings.mask);
        let mark = Mark::new(&mask, width, height, settings.overlay, settings.line);
        let luma = settings.motion.then(|| job.luma.clone()).flatten();
        Detection { mask, mark, pts: job.pts, sampled: job.sampled, luma, generation: job.generation }
    }

    #[tracing::instrument(level = "trace", skip_all)]
    fn infer(&mut self, input: &Input) -> std::result::Result<ProbMap, Failure> {
        if self.segmenter.is_none() {
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return Err(Failure::Resting);
            }
            if let Err(e) = self.reopen() {
                self.rest();
                return Err(Failure::New(e));
            }
            self.shared.figures.restarts.add_one();
            self.tell(Event::Recovered);
        }
        let Some(segmenter) = &mut self.segmenter else { return Err(Failure::Resting) };
        let size = match input {
            Input::Lowered(lowered) => lowered.size(),
            Input::Sample(sample) => sample.width.max(sample.height),
        };
        if size != segmenter.input_size() {
            return Err(Failure::OtherSize);
        }
        let mut map = ProbMap::default();
        let begin = Instant::now();
        let (columns, own) = (&mut self.columns, &mut self.sample);
        let segment = || match input {
            Input::Lowered(lowered) => {
                columns.sample(lowered, own);
                segmenter.segment(own, &mut map)
            }
            Input::Sample(sample) => segmenter.segment(sample, &mut map),
        };
        match guarded(segment) {
            Ok(()) => {
                self.shared.figures.inference.record(begin.elapsed());
                self.pause = SHORTEST_PAUSE;
                Ok(map)
            }
            Err(e) => {
                // Its state is unknown after a panic, and a device that failed has lost its memory.
                let broken = self.segmenter.take();
                if guarded(|| {
                    drop(broken);
                    Ok(())
                })
                .is_err()
                {
                    tracing::error!("the failed model panicked again as it was dropped");
                }
                self.filter.reset();
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

/// Runs `f`; a panic becomes an error with its message.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
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
