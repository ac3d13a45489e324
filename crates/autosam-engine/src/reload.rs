//! Loads another model while the current one keeps working.

use super::ModelFactory;
use super::guard::{guarded, opened};
use crate::segmenter::Segmenter;
use crate::{Error, Result};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Called once with the result: the new model works, or the reason why the old one stays.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// A loaded model on its way to the worker.
pub(super) struct Model {
    pub segmenter: Box<dyn Segmenter>,
    /// Loads it again after a failure.
    pub open: ModelFactory,
    pub done: Done,
}

/// At most one thread loads models, the most recently requested one; it ends when no request is left.
pub(super) struct Reloader {
    state: Mutex<State>,
    models: Sender<Model>,
}

#[derive(Default)]
struct State {
    asked: Option<(ModelFactory, Done)>,
    working: bool,
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

impl Reloader {
    pub fn new(models: Sender<Model>) -> Self {
        Self { state: Mutex::default(), models }
    }

    pub fn replace(self: &Arc<Self>, open: ModelFactory, done: Done) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return done(Err(Error::engine("the engine has stopped")));
        }
        let overtaken = state.asked.replace((open, done));
        let mut failed = None;
        if !state.working {
            // The previous thread has finished its work.
            if let Some(thread) = state.thread.take() {
                let _ = thread.join();
            }
            let mine = self.clone();
            match std::thread::Builder::new().name("autosam-loader".into()).spawn(move || mine.run()) {
                Ok(thread) => (state.thread, state.working) = (Some(thread), true),
                Err(e) => failed = state.asked.take().map(|(_, done)| (done, e)),
            }
        }
        drop(state);
        if let Some((_, done)) = overtaken {
            done(Err(Error::engine("another model was set before this one was loaded")));
        }
        if let Some((done, e)) = failed {
            done(Err(Error::device(format!("cannot start a thread to load the model: {e}"))));
        }
    }

    fn run(&self) {
        loop {
            let asked = {
                let mut state = self.state.lock();
                let asked = state.asked.take();
                state.working = asked.is_some();
                asked
            };
            let Some((mut open, done)) = asked else { return };
            match guarded(|| opened(&mut open)) {
                Ok(segmenter) => {
                    if let Err(lost) = self.models.send(Model { segmenter, open, done }) {
                        (lost.into_inner().done)(Err(Error::engine("the engine has stopped")));
                    }
                }
                Err(e) => done(Err(e)),
            }
        }
    }

    /// Loads no further models and waits for the current load. The worker has ended before this.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let (asked, thread) = (state.asked.take(), state.thread.take());
        drop(state);
        if let Some((_, done)) = asked {
            done(Err(Error::engine("the engine has stopped")));
        }
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}
