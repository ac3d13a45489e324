//! Opens another model beside the working one.

use super::Opener;
use super::segmenter::Segmenter;
use super::worker::guarded;
use crate::{Error, Result};
use crossbeam_channel::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Hears once whether the new model works or why the old one stays.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// An opened model on its way to the worker.
pub(super) struct Model {
    pub segmenter: Box<dyn Segmenter>,
    /// Opens it anew after a failure.
    pub open: Opener,
    pub done: Done,
}

/// One thread at most opens models, the newest that was asked for; it ends when there is nothing to open.
pub(super) struct Reloader {
    state: Mutex<State>,
    models: Sender<Model>,
}

#[derive(Default)]
struct State {
    asked: Option<(Opener, Done)>,
    working: bool,
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

impl Reloader {
    pub fn new(models: Sender<Model>) -> Self {
        Self { state: Mutex::default(), models }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn replace(self: &Arc<Self>, open: Opener, done: Done) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            return done(Err(Error::invalid("the engine has ended")));
        }
        let overtaken = state.asked.replace((open, done));
        let mut failed = None;
        if !state.working {
            // The one before has nothing left to do.
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
            done(Err(Error::invalid("another model was set before this one was open")));
        }
        if let Some((done, e)) = failed {
            done(Err(Error::invalid(format!("cannot start a thread to open the model: {e}"))));
        }
    }

    fn run(&self) {
        loop {
            let asked = {
                let mut state = self.state();
                let asked = state.asked.take();
                state.working = asked.is_some();
                asked
            };
            let Some((mut open, done)) = asked else { return };
            match guarded(&mut open) {
                Ok(segmenter) => {
                    if let Err(lost) = self.models.send(Model { segmenter, open, done }) {
                        (lost.into_inner().done)(Err(Error::invalid("the engine has ended")));
                    }
                }
                Err(e) => done(Err(e)),
            }
        }
    }

    /// Opens nothing more and waits for what is being opened. The worker has ended by now.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let (asked, thread) = (state.asked.take(), state.thread.take());
        drop(state);
        if let Some((_, done)) = asked {
            done(Err(Error::invalid("the engine has ended")));
        }
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}
