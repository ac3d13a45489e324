//! Posts messages and emits signals on a thread of its own, so that no handler of the application can delay video or
//! inference.

use super::AutoSam;
use crossbeam_channel::{Receiver, Sender, bounded};
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use std::thread::JoinHandle;

/// Maximum number of notices that wait for a slow application; further ones are dropped.
const MAX_WAITING: usize = 64;

pub enum Notice {
    /// A detection or the outcome of a prompt, posted as a bus message and emitted as the signal of this name.
    Detection(&'static str, gst::Structure),
    /// A model set while playing: its path, and the error if it cannot be loaded.
    Updated(Option<String>, Option<String>),
    Overload(gst::Structure),
    /// The latency has changed.
    Latency,
    /// The statistics are due.
    Stats,
    /// A frame or its caps cannot be used.
    Warning(String),
    /// A property's value cannot take effect.
    Setting(String),
}

/// Sender of notices; it never blocks.
#[derive(Clone)]
pub struct Notices(Sender<Notice>);

impl Notices {
    pub fn send(&self, notice: Notice) {
        if self.0.try_send(notice).is_err() {
            gst::warning!(super::CAT, "the application handles messages too slowly; a message is dropped");
        }
    }
}

/// The notifying thread. Dropping it waits until all notices are delivered.
pub struct Notifier {
    notices: Option<Notices>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    pub fn start(element: &AutoSam) -> std::io::Result<Self> {
        let (sender, receiver) = bounded(MAX_WAITING);
        let element = element.downgrade();
        let thread = std::thread::Builder::new()
            .name("autosam-notices".into())
            .spawn(move || run(&element, &receiver))?;
        Ok(Self { notices: Some(Notices(sender)), thread: Some(thread) })
    }

    pub fn notices(&self) -> Option<&Notices> {
        self.notices.as_ref()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.notices = None;
        if let Some(thread) = self.thread.take()
            // A handler that stops the element does so on this very thread, which then ends by itself.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn run(element: &glib::WeakRef<AutoSam>, notices: &Receiver<Notice>) {
    while let Ok(notice) = notices.recv() {
        let Some(element) = element.upgrade() else { return };
        match notice {
            Notice::Detection(signal, structure) => {
                post(&element, structure.clone());
                element.emit_by_name::<()>(signal, &[&structure]);
            }
            Notice::Updated(location, error) => {
                let (location, error) = (location.unwrap_or_default(), error.unwrap_or_default());
                let structure = gst::Structure::builder("application/x-autosam-model-updated")
                    .field("location", &location)
                    .field("success", error.is_empty())
                    .field("error", &error)
                    .build();
                post(&element, structure);
                element.emit_by_name::<()>("model-updated", &[&location, &error.is_empty(), &error]);
            }
            Notice::Overload(structure) => post(&element, structure),
            Notice::Latency => {
                if element.post_message(gst::message::Latency::builder().src(&element).build()).is_err() {
                    gst::debug!(super::CAT, obj = element, "the element has no bus; the message is dropped");
                }
            }
            Notice::Stats => post(&element, element.imp().stats()),
            Notice::Warning(text) => gst::element_warning!(element, gst::StreamError::Format, ("{text}")),
            Notice::Setting(text) => gst::element_warning!(element, gst::LibraryError::Settings, ("{text}")),
        }
    }
}

pub fn post(element: &AutoSam, structure: gst::Structure) {
    let message = gst::message::Element::builder(structure).src(element).build();
    if element.post_message(message).is_err() {
        gst::debug!(super::CAT, obj = element, "the element has no bus; the message is dropped");
    }
}
