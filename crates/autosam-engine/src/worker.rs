//! The worker thread, which computes masks.

use super::guard::{guarded, opened};
use super::prompt::{Queued, Tracker};
use super::reload::Model;
use super::shared::{Input, Job, Refusal, Shared};
use super::{Detection, Event, EventHandler, ModelFactory, Motion, motion};
use crate::overlay::Overlay;
use crate::priority;
use crate::segmenter::Segmenter;
use crate::{Error, Result};
use autosam_frame::Luma;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::mask::Mask;
use autosam_frame::motion::Scene;
use autosam_frame::resize::ColumnResizer;
use autosam_frame::temporal::TemporalFilter;
use crossbeam_channel::{Receiver, Sender, select};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest pause between two attempts to load a failing model.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    models: Receiver<Model>,
    recycle: Sender<Input>,
    /// `None` until a model is set.
    open: Option<ModelFactory>,
    handler: EventHandler,
    segmenter: Option<Box<dyn Segmenter>>,
    /// Completes the resizing that the streaming thread began.
    columns: ColumnResizer,
    model_input: ModelInput,
    /// Pause before the next attempt to load a failing model, and before the first one.
    pause: Duration,
    first_pause: Duration,
    retry_at: Option<Instant>,
    filter: TemporalFilter,
    /// The last map of the temporal filter's current scene.
    generation: u64,
    luma: Option<Arc<Luma>>,
    /// The object that a person pointed at.
    tracker: Tracker,
}

/// The worker's inputs, and the channel that returns used buffers.
pub(super) struct Inbox {
    pub jobs: Receiver<Job>,
    pub models: Receiver<Model>,
    pub prompts: Receiver<Queued>,
    pub recycle: Sender<Input>,
}

/// Probability maps of polyps and of the object that a person pointed at.
type Maps = (ProbMap, Option<ProbMap>);

enum Failure {
    New(Error),
    /// Not attempted: the pause after a failure is not over.
    Resting,
    OtherSize,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        first_pause: Duration,
        open: Option<ModelFactory>,
        handler: EventHandler,
        inbox: Inbox,
    ) -> Self {
        let Inbox { jobs, models, prompts, recycle } = inbox;
        Self {
            shared,
            jobs,
            models,
            recycle,
            open,
            handler,
            segmenter: None,
            columns: ColumnResizer::default(),
            model_input: ModelInput::default(),
            pause: first_pause,
            first_pause,
            retry_at: None,
            filter: TemporalFilter::default(),
            generation: 0,
            luma: None,
            tracker: Tracker::new(prompts),
        }
    }

    pub fn run(mut self, ready: Sender<Result<()>>) {
        priority::lower_thread_priority();
        priority::name_common_threads();
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
                        // A new model that is ready is installed before the frame is processed.
                        while let Ok(model) = self.models.try_recv() {
                            self.adopt(model);
                        }
                        self.process_job(job);
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
        (self.pause, self.retry_at) = (self.first_pause, None);
        self.filter.reset();
        if guarded(|| {
            drop(old);
            done(Ok(()));
            Ok(())
        })
        .is_err()
        {
            tracing::error!("a panic while switching to another model");
        }
    }

    fn reopen(&mut self) -> Result<()> {
        self.segmenter = None;
        let Some(open) = &mut self.open else { return Err(Error::engine("no model is loaded")) };
        let segmenter = guarded(|| opened(open))?;
        self.shared.fits(segmenter.as_ref());
        self.segmenter = Some(segmenter);
        Ok(())
    }

    fn process_job(&mut self, mut job: Job) {
        let since = self.shared.now();
        self.shared.busy_since.store(since.saturating_add(1), Ordering::Release);
        let reply = job.reply.take();
        let result = self.infer_and_publish(job, reply.is_some());
        if result.is_ok() {
            let usual = &self.shared.usually_busy;
            let (this, before) = (self.shared.now().saturating_sub(since), usual.load(Ordering::Acquire));
            // A running average, because a single slow frame says little about the next.
            let next = if before == 0 { this } else { (3 * before + this.min(2 * before)) / 4 };
            usual.store(next, Ordering::Release);
        }
        self.shared.busy_since.store(0, Ordering::Release);
        if result.is_ok() {
            // Counted last, so that a caller that sees the count also sees the mask and an idle worker.
            self.shared.counters.inferred.add_one();
        }
        if let Some(reply) = reply {
            let _ = reply.send(result);
        }
    }

    /// Computes the mask of `job` and publishes it as the latest one; `awaited`: a caller waits for it.
    fn infer_and_publish(
        &mut self,
        mut job: Job,
        awaited: bool,
    ) -> std::result::Result<Arc<Detection>, Refusal> {
        let result = self.infer(&job);
        let _ = self.recycle.try_send(std::mem::take(&mut job.input));
        // The thread must survive any map: a caller may wait for the frame.
        let result = result.and_then(|maps| {
            guarded(|| Ok(Arc::new(self.postprocess(&job, maps)))).map_err(|e| {
                self.filter.reset();
                Failure::New(e)
            })
        });
        if matches!(result, Err(Failure::New(_))) {
            self.tracker.end("failed");
        }
        self.publish_object();
        match result {
            Ok(detection) => {
                if job.generation == self.shared.generation.load(Ordering::Acquire) {
                    self.notify(Event::Detected(detection.clone()));
                    self.shared.latest.store(Some(detection.clone()));
                }
                Ok(detection)
            }
            Err(Failure::OtherSize) => {
                // The waiting caller resubmits the frame.
                if !awaited {
                    self.shared.counters.skipped.add_one();
                }
                Err(Refusal::OtherSize)
            }
            Err(Failure::Resting) => {
                self.shared.counters.skipped.add_one();
                Err(Refusal::Failed(Error::engine(
                    "inference is paused after a failure; the model will be reloaded shortly",
                )))
            }
            Err(Failure::New(e)) => {
                self.shared.counters.errors.add_one();
                // A mask that no longer follows the video is worse than none.
                self.shared.latest.store(None);
                let text = e.to_string();
                self.notify(Event::Failed(e));
                Err(Refusal::Failed(Error::engine(text)))
            }
        }
    }

    /// Turns a probability map into a detection.
    #[tracing::instrument(level = "trace", skip_all, name = "mask")]
    fn postprocess(&mut self, job: &Job, (map, object): Maps) -> Detection {
        let settings = **self.shared.settings.load();
        if let Some(object) = object {
            self.tracker.settle(job, object, &map, &settings);
        }
        let (width, height) = job.size;
        let mut map = map.embedded(job.area, width, height);
        let scene_change = match (&self.luma, &job.luma) {
            (Some(before), Some(now)) => !motion::same_scene(before, now),
            _ => false,
        };
        if scene_change || self.generation != job.generation {
            self.filter.reset();
        }
        (self.generation, self.luma) = (job.generation, job.luma.clone());
        self.filter.apply(&mut map, job.index, settings.mask.threshold, &settings.temporal);
        let mask = Mask::new(map, &settings.mask);
        let overlay = Overlay::new(&mask, width, height, settings.overlay, settings.line);
        let follows = settings.motion != Motion::Off && !mask.regions.is_empty();
        let scene = job.luma.clone().filter(|_| follows).map(|luma| Arc::new(Scene::new(luma)));
        Detection {
            mask,
            overlay,
            pts: job.pts,
            resized_at: job.resized_at,
            prompt: None,
            scene,
            index: job.index,
            generation: job.generation,
        }
    }

    #[tracing::instrument(level = "trace", skip_all)]
    fn infer(&mut self, job: &Job) -> std::result::Result<Maps, Failure> {
        if self.segmenter.is_none() {
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return Err(Failure::Resting);
            }
            if let Err(e) = self.reopen() {
                self.rest();
                return Err(Failure::New(e));
            }
            self.shared.counters.restarts.add_one();
            self.notify(Event::Recovered);
        }
        let Some(segmenter) = &mut self.segmenter else { return Err(Failure::Resting) };
        let input = &job.input;
        let size = match input {
            Input::RowsResized(rows) => rows.size(),
            Input::Whole(model_input) => (model_input.width, model_input.height),
        };
        if !segmenter.input_size().takes(size.0, size.1) {
            return Err(Failure::OtherSize);
        }
        let (mut map, mut object) = (ProbMap::default(), None);
        let begin = Instant::now();
        let (columns, own, tracker) = (&mut self.columns, &mut self.model_input, &mut self.tracker);
        let shared = &self.shared;
        let segment = || {
            let model_input = match input {
                Input::RowsResized(rows) => {
                    columns.resize(rows, own);
                    &*own
                }
                Input::Whole(model_input) => model_input,
            };
            match tracker.ask(job, shared, (model_input.width, model_input.height), segmenter.takes_prompts())
            {
                Some(prompt) => {
                    let found = object.insert(ProbMap::default());
                    segmenter.segment_object(model_input, &prompt, &mut map, found)
                }
                None => segmenter.segment(model_input, &mut map),
            }
        };
        match guarded(segment) {
            Ok(()) => {
                self.shared.counters.inference.record(begin.elapsed());
                self.pause = self.first_pause;
                Ok((map, object))
            }
            Err(e) => {
                // After a panic the model's state is unknown, and a failed device has lost its memory.
                let broken = self.segmenter.take();
                if guarded(|| {
                    drop(broken);
                    Ok(())
                })
                .is_err()
                {
                    tracing::error!("the failed model panicked again when it was dropped");
                }
                self.filter.reset();
                self.rest();
                Err(Failure::New(e))
            }
        }
    }

    /// Publishes the object's mask and reports the outcome of prompts.
    fn publish_object(&mut self) {
        let Self { tracker, shared, handler, .. } = self;
        tracker.publish(shared, |event| notify(handler, event));
    }

    fn rest(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }

    fn notify(&self, event: Event) {
        notify(&self.handler, event);
    }
}

fn notify(handler: &EventHandler, event: Event) {
    if catch_unwind(AssertUnwindSafe(|| handler(event))).is_err() {
        tracing::error!("the engine's event handler panicked");
    }
}
