//! Labels a clip: a person's changes one by one, and propagation on a thread of its own. Each change is on disk before it is
//! answered.

use super::export::{self, Exported};
use super::frames::Frames;
use super::objects::{Before, Found, Objects, explain};
use super::session::{Label, Labels, Session};
use super::store::Store;
use crate::archive::rle;
use crate::pointing::Pointing;
use crate::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A change that is not made, and why, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

type Changed<T = ()> = std::result::Result<T, Refused>;

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// What propagation does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Propagation {
    pub running: bool,
    /// The last frame that got a mask, or the frame it began at.
    pub frame: u64,
    /// Why it ended, once it has.
    pub ended: Option<String>,
}

struct State {
    session: Session,
    store: Store,
    propagation: Propagation,
    /// Counts changes of labels and of propagation, so that a page knows when to draw.
    version: u64,
    /// Whether the data set has all labels.
    saved: bool,
}

impl State {
    fn write(&mut self) -> Result<()> {
        self.version += 1;
        self.saved = false;
        self.store.save(self.session.labels())
    }
}

/// A clip that is being labelled. Methods may be called from any thread.
pub struct Labeller {
    frames: Frames,
    /// Locked before `state` by everything that changes labels.
    objects: Mutex<Objects>,
    state: Mutex<State>,
    stop: AtomicBool,
}

/// A copy of what a page shows.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub labels: Labels,
    pub propagation: Propagation,
    pub undoable: usize,
    pub version: u64,
    pub saved: bool,
}

impl Labeller {
    /// Goes on with the `labels` of `store`.
    pub fn new(frames: Frames, objects: Objects, store: Store, labels: Labels) -> Self {
        let saved = labels.is_empty();
        let session = Session::new(labels);
        let state = State { session, store, propagation: Propagation::default(), version: 0, saved };
        Self { frames, objects: Mutex::new(objects), state: Mutex::new(state), stop: AtomicBool::new(false) }
    }

    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        Snapshot {
            labels: state.session.labels().clone(),
            propagation: state.propagation.clone(),
            undoable: state.session.undoable(),
            version: state.version,
            saved: state.saved,
        }
    }

    /// The mask of `frame`, 255 on the polyp; `None` without a label or without a polyp.
    pub fn mask(&self, frame: u64) -> Option<Vec<u8>> {
        let state = self.state.lock();
        self.decoded(state.session.label(frame)?)
    }

    fn decoded(&self, label: &Label) -> Option<Vec<u8>> {
        let (w, h) = self.frames.size();
        rle::mask(label.mask.as_deref()?, w as usize, h as usize)
    }

    fn encoded(&self, found: &Found) -> String {
        let (w, h) = self.frames.size();
        rle::compressed(&rle::runs(&found.mask, w as usize, h as usize))
    }

    /// The lock that a change needs.
    ///
    /// # Errors
    /// If propagation runs, or `frame` is not loaded.
    fn changing(&self, frame: Option<u64>) -> Changed<MutexGuard<'_, Objects>> {
        if frame.is_some_and(|frame| !self.frames.numbers().contains(&frame)) {
            return Err(Refused("there is no such frame".into()));
        }
        let running = || Refused("propagation runs: stop it first".into());
        if self.state.lock().propagation.running {
            return Err(running());
        }
        let objects = self.objects.lock();
        // It may have begun while this thread waited.
        if self.state.lock().propagation.running { Err(running()) } else { Ok(objects) }
    }

    /// Makes a change of the session and writes it.
    fn change<T>(&self, frame: Option<u64>, change: impl FnOnce(&mut Session) -> Changed<T>) -> Changed<T> {
        let _objects = self.changing(frame)?;
        let mut state = self.state.lock();
        let changed = change(&mut state.session)?;
        state.write()?;
        Ok(changed)
    }

    /// Adds a prompt to `frame`; its mask is corrected, or made if it has none. A box makes it again.
    ///
    /// # Errors
    /// Why the frame has no new mask; it then stays as it is.
    pub fn prompt(&self, frame: u64, pointing: Pointing) -> Changed {
        if pointing == Pointing::Clear {
            return self.clear(frame);
        }
        let mut objects = self.changing(Some(frame))?;
        let before = match (pointing, self.state.lock().session.label(frame)) {
            (Pointing::Point { .. }, Some(label)) => {
                Before { mask: self.decoded(label), prompts: label.prompts.clone() }
            }
            _ => Before::default(),
        };
        let rgb = self.frames.rgb(frame)?;
        let found = match objects.ask(&rgb, self.frames.pixel_aspect(), &before, Some(pointing))? {
            Ok(found) => found,
            Err("lost") => return Err(Refused(explain("nothing-found", frame)?)),
            Err(reason) => return Err(Refused(explain(reason, frame)?)),
        };
        let prompts = before.prompts.into_iter().chain([pointing]).collect();
        let mask = self.encoded(&found);
        let mut state = self.state.lock();
        state.session.set_manual(frame, prompts, mask, found.confidence);
        Ok(state.write()?)
    }

    /// Labels `frame` as polyp-free.
    ///
    /// # Errors
    /// If propagation runs, the frame is not loaded, or the session cannot be written; this holds for the other changes too.
    pub fn set_empty(&self, frame: u64) -> Changed {
        self.change(Some(frame), |session| {
            session.set_empty(frame);
            Ok(())
        })
    }

    pub fn clear(&self, frame: u64) -> Changed {
        self.change(Some(frame), |session| {
            session.clear(frame).then_some(()).ok_or_else(|| Refused("this frame has no label".into()))
        })
    }

    /// Accepts the propagated mask of `frame`, or those of all loaded frames, and returns their number.
    pub fn accept(&self, frame: Option<u64>) -> Changed<usize> {
        let all = self.frames.numbers();
        let (first, last) = frame.map_or((all.start, all.end.saturating_sub(1)), |frame| (frame, frame));
        self.change(frame, |session| match session.accept(first..=last) {
            0 => Err(Refused("no propagated mask waits for acceptance here".into())),
            count => Ok(count),
        })
    }

    /// Takes the last change back and returns its first frame.
    pub fn undo(&self) -> Changed<u64> {
        self.change(None, |session| session.undo().ok_or_else(|| Refused("nothing to undo".into())))
    }

    /// Starts to propagate the mask of `frame` forward.
    ///
    /// # Errors
    /// If the frame has no mask, or propagation runs already.
    pub fn propagate(self: &Arc<Self>, frame: u64) -> Changed {
        let objects = self.changing(Some(frame))?;
        let label = self.state.lock().session.label(frame).cloned();
        let label = label.filter(|label| label.mask.is_some());
        let label = label.ok_or_else(|| Refused("click a polyp on this frame first".into()))?;
        let mut state = self.state.lock();
        state.propagation = Propagation { running: true, frame, ended: None };
        state.session.begin_propagation();
        state.version += 1;
        self.stop.store(false, Ordering::Release);
        let labeller = self.clone();
        let spawned = std::thread::Builder::new().name("autosam-propagate".into()).spawn(move || {
            let objects = labeller.objects.lock();
            let run = || labeller.run(objects, frame, &label);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                .unwrap_or_else(|_| Err(Error::engine("propagation failed: see the terminal")));
            labeller.end(ended.unwrap_or_else(|e| e.to_string()));
        });
        drop((state, objects));
        if let Err(e) = spawned {
            self.end(String::new());
            return Err(Refused(format!("cannot start a thread: {e}")));
        }
        Ok(())
    }

    /// Asks propagation to stop after its current frame.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Stops propagation and waits for its end.
    pub fn finish(&self) {
        self.stop();
        while self.state.lock().propagation.running {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn end(&self, reason: String) {
        let mut state = self.state.lock();
        state.session.end_propagation();
        state.propagation.running = false;
        state.propagation.ended = Some(reason);
        state.version += 1;
    }

    /// Propagates the mask of `label` on frame `start`; returns why it ended.
    fn run(&self, mut objects: MutexGuard<Objects>, start: u64, label: &Label) -> Result<String> {
        let aspect = self.frames.pixel_aspect();
        let before = Before { mask: self.decoded(label), prompts: label.prompts.clone() };
        if let Err(reason) = objects.ask(&self.frames.rgb(start)?, aspect, &before, None)? {
            return explain(reason, start);
        }
        for frame in start + 1..self.frames.numbers().end {
            if self.stop.load(Ordering::Acquire) {
                return Ok(format!("stopped before frame {frame}"));
            }
            if self.state.lock().session.label(frame).is_some_and(Label::is_final) {
                return Ok(format!("frame {frame} is labelled already"));
            }
            let found = match objects.follow(&self.frames.rgb(frame)?, aspect)? {
                Ok(found) => found,
                Err(reason) => return explain(reason, frame),
            };
            let mask = self.encoded(&found);
            let mut state = self.state.lock();
            if !state.session.propagate(frame, mask, found.confidence) {
                return Ok(format!("frame {frame} is labelled already"));
            }
            state.propagation.frame = frame;
            state.write()?;
        }
        Ok("the last loaded frame is reached".into())
    }

    /// Writes the data set.
    ///
    /// # Errors
    /// If propagation runs, or a file cannot be written.
    pub fn save(&self) -> Changed<Exported> {
        let _objects = self.changing(None)?;
        let state = self.state.lock();
        let (labels, dir, clip) =
            (state.session.labels().clone(), state.store.dir().to_owned(), state.store.clip().clone());
        drop(state);
        let exported = export::write(&dir, &clip, &self.frames, &labels)?;
        let mut state = self.state.lock();
        state.saved = true;
        state.version += 1;
        Ok(exported)
    }
}
