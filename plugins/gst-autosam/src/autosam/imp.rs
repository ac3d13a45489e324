//! An in-place video filter: submits each frame to the engine and draws the latest mask.

use super::CAT;
use super::drawing::{self, Drawn};
use super::input::{self, Input};
use super::latency::{self, Times};
use super::mask_pad::{FrameMask, MaskPad};
use super::notify::{Notice, Notices, Notifier, post};
use super::pointing::{self, Pointer, Request};
use super::properties;
use super::settings::{OnError, Settings, SyncMode};
use super::signals;
use super::state::State;
use super::statistics;
use autosam_engine::segmenter::Segmenter;
use autosam_engine::{Control, Engine, Event, EventHandler, ModelFactory, PromptEvent};
use autosam_host::process;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::subclass::prelude::*;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

type TestFactory = dyn Fn(Option<&Path>) -> autosam_frame::Result<Box<dyn Segmenter>> + Send + Sync;

#[derive(Default)]
pub struct AutoSam {
    settings: Mutex<Settings>,
    /// Held while a frame is being processed.
    state: Mutex<State>,
    /// Handle to the engine for properties and events, which must not wait for a frame.
    control: Mutex<Option<Control>>,
    notifier: Mutex<Option<Notifier>>,
    /// How long frames waited for their masks; never locked for long.
    times: Arc<Mutex<Times>>,
    /// Whether the source is live, by its last answer to the latency query.
    live: AtomicBool,
    mask: Mutex<Option<MaskPad>>,
    /// Never locked for long.
    pointer: Mutex<Pointer>,
    /// Set by the worker if `on-error=fail`: the next frame ends the stream.
    failed: Arc<AtomicBool>,
    test_factory: Mutex<Option<Arc<TestFactory>>>,
    /// Number of allocations by this plugin's code on the streaming thread since the element was created.
    allocations: AtomicU64,
}

impl AutoSam {
    fn control(&self) -> Option<Control> {
        self.control.lock().clone()
    }

    fn mask(&self) -> Option<MaskPad> {
        self.mask.lock().clone()
    }

    /// Present while the element runs.
    fn notices(&self) -> Option<Notices> {
        self.notifier.lock().as_ref().and_then(Notifier::notices).cloned()
    }

    pub fn set_model_factory(&self, factory: Arc<TestFactory>) {
        *self.test_factory.lock() = Some(factory);
    }

    fn model_factory(&self, settings: &Settings) -> ModelFactory {
        let (location, options) = (settings.model_location.clone(), settings.model());
        let rehearsed = (settings.sync_mode == SyncMode::FrameAccurate).then(|| self.times.clone());
        match self.test_factory.lock().clone() {
            Some(open) => Box::new(move || open(location.as_deref())),
            None => Box::new(move || {
                let mut model = autosam_model::open(location.as_deref(), &options)?;
                if let Some(times) = &rehearsed {
                    let took = latency::rehearse(model.as_mut())?;
                    times.lock().note(took);
                }
                Ok(model)
            }),
        }
    }

    /// Latency that the element adds to a live pipeline.
    pub fn latency(&self) -> gst::ClockTime {
        match self.settings.lock().sync_mode {
            SyncMode::Async => gst::ClockTime::ZERO,
            SyncMode::FrameAccurate => self.times.lock().latency(),
        }
    }

    fn event_handler(&self) -> EventHandler {
        let (element, failed) = (self.obj().downgrade(), self.failed.clone());
        Box::new(move |event| {
            let Some(element) = element.upgrade() else { return };
            match event {
                Event::Detected(_) => {}
                Event::Prompted(event) => element.imp().announce(&event),
                Event::Recovered => gst::info!(CAT, obj = element, "the model is loaded again"),
                Event::Failed(e) if element.imp().settings.lock().on_error == OnError::Fail => {
                    failed.store(true, Ordering::Relaxed);
                    gst::element_error!(element, gst::LibraryError::Failed, ("Inference failed"), ["{e}"]);
                }
                Event::Failed(e) => {
                    gst::element_warning!(
                        element,
                        gst::LibraryError::Failed,
                        ("Inference failed; video continues without masks"),
                        ["{e}"]
                    );
                }
            }
        })
    }

    /// Loads another model on its own thread while the element runs with the current one.
    fn replace_model(&self, settings: &Settings) {
        let (Some(control), Some(notices)) = (self.control(), self.notices()) else { return };
        let location = settings.location();
        control.replace(
            self.model_factory(settings),
            Box::new(move |result| {
                notices.send(Notice::Updated(location, result.err().map(|e| e.to_string())));
            }),
        );
    }

    /// Reports the outcome of a prompt.
    fn announce(&self, event: &PromptEvent) {
        let (name, structure) = pointing::announcement(event, self.pointer.lock().size);
        if let Some(notices) = self.notices() {
            notices.send(Notice::Detection(name, structure));
        }
    }

    /// [`Self::ask`] with the request that `request` derives from the pointer.
    pub fn ask_by(&self, request: impl FnOnce(&mut Pointer) -> Option<Request>) -> bool {
        let request = request(&mut self.pointer.lock());
        self.ask(request)
    }

    /// Queues a user's request and returns whether it was accepted.
    pub fn ask(&self, request: Option<Request>) -> bool {
        let refused = |reason| {
            self.announce(&PromptEvent::Refused { reason });
            false
        };
        let Some(control) = self.control().filter(|_| self.notices().is_some()) else {
            gst::warning!(CAT, imp = self, "a prompt before the element was started has no effect");
            return false;
        };
        match request {
            Some(Request::Clear) => {
                control.clear_prompts();
                true
            }
            None => refused("outside-frame"),
            Some(Request::Prompt(_)) if !self.settings.lock().enabled => refused("disabled"),
            Some(Request::Prompt(prompt)) => match control.prompt(prompt) {
                Ok(()) => true,
                Err(e) => {
                    gst::warning!(CAT, imp = self, "{e}");
                    refused(if control.prompts_wait() { "busy" } else { "no-model" })
                }
            },
        }
    }

    pub fn stats(&self) -> gst::Structure {
        let stats = self.control().map(|c| c.stats()).unwrap_or_default();
        let allocations = process::COUNTS.then(|| self.allocations.load(Ordering::Relaxed));
        statistics::structure(&stats, allocations)
    }
}

#[glib::object_subclass]
impl ObjectSubclass for AutoSam {
    const NAME: &'static str = "GstAutoSam";
    type Type = super::AutoSam;
    type ParentType = gst_video::VideoFilter;
}

impl ObjectImpl for AutoSam {
    fn properties() -> &'static [glib::ParamSpec] {
        properties::specs()
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(signals::all);
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings.lock();
        if let Err(e) = settings.set(pspec.name(), value) {
            drop(settings);
            gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{e}"));
            return;
        }
        let settings = {
            let now = settings.clone();
            drop(settings);
            now
        };
        if let Some(control) = self.control() {
            control.set(settings.engine());
            if !settings.enabled {
                // Masks from before the pause must not reappear after it.
                control.flush();
            }
        }
        match pspec.name() {
            "model-location" => self.replace_model(&settings),
            "sync-mode" => self.latency_changed(),
            _ => {}
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" { self.stats().to_value() } else { self.settings.lock().get(pspec.name()) }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // The base class would drop late frames. Here only inference is skipped.
        self.obj().set_qos(false);
    }
}

impl GstObjectImpl for AutoSam {}

impl ElementImpl for AutoSam {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "AutoSAM polyp segmentation",
                "Filter/Analyzer/Effect/Video",
                "Draws polyp masks on live endoscopy video; research use only, not a medical device",
                "The autosam-video developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(input::templates);
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        if self.mask().is_some() {
            gst::warning!(CAT, imp = self, "the mask pad was already requested; the element has only one");
            return None;
        }
        let mask = MaskPad::new(template);
        let element = self.obj();
        if element.current_state() >= gst::State::Paused && mask.pad.set_active(true).is_err() {
            return None;
        }
        // No lock is held here, since applications are notified of the pad. Of two simultaneous requests the duplicate name
        // fails.
        element.add_pad(&mask.pad).ok()?;
        // If the pad is requested in mid-stream, the events that describe the stream must be repeated.
        element.static_pad("sink")?.sticky_events_foreach(|event| {
            mask.event(event);
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        *self.mask.lock() = Some(mask.clone());
        Some(mask.pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        // Stop sending frames there first; the lock must not be held while the task ends.
        self.mask.lock().take_if(|m| m.pad == *pad);
        let _ = pad.set_active(false);
        let _ = self.obj().remove_pad(pad);
    }
}

impl BaseTransformImpl for AutoSam {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        // Before the engine starts, so that its first metrics are exported.
        if let Err(e) = autosam_host::serve::metrics::serve_from_environment() {
            gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{e}"));
        }
        let settings = self.settings.lock().clone();
        self.failed.store(false, Ordering::Relaxed);
        *self.times.lock() = Times::default();
        let mut engine =
            Engine::start(self.model_factory(&settings), settings.engine(), self.event_handler());
        if let (Err(e), OnError::Passthrough) = (&engine, settings.on_error) {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::OpenRead,
                ("Cannot load the model; video continues without masks: {e}")
            );
            engine = Engine::without_model(settings.engine(), self.event_handler());
        }
        let engine = engine
            .map_err(|e| gst::error_msg!(gst::ResourceError::OpenRead, ("Cannot load the model: {e}")))?;
        let notifier = Notifier::start(&self.obj()).map_err(|e| {
            gst::error_msg!(gst::CoreError::Thread, ("Cannot start a thread for messages: {e}"))
        })?;
        let notices = notifier.notices().cloned();
        *self.notifier.lock() = Some(notifier);
        *self.control.lock() = Some(engine.control().clone());
        *self.state.lock() = State::new(engine, notices);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // `control` stays, so that statistics can be read until the next start.
        let mut state = std::mem::take(&mut *self.state.lock());
        state.ended(None);
        drop(state);
        let notifier = self.notifier.lock().take();
        drop(notifier);
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        // After a seek or a new stream, old masks do not belong to the new frames.
        if matches!(event.view(), EventView::FlushStop(_) | EventView::StreamStart(_))
            && let Some(control) = self.control()
        {
            control.flush();
        }
        if matches!(event.view(), EventView::Eos(_)) {
            // `gst-launch-1.0 -m` prints it.
            post(&self.obj(), self.stats());
        }
        if let Some(mask) = self.mask() {
            mask.event(&event);
        }
        self.parent_sink_event(event)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        if let gst::EventView::Navigation(_) = event.view()
            && let Ok(event) = gst_video::NavigationEvent::parse(&event)
        {
            let request = self.pointer.lock().request(&event);
            if request.is_some() {
                self.ask(request);
            }
        }
        // Upstream elements may handle it too, for example a DVD menu or another `autosam`.
        self.parent_src_event(event)
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        let answered = BaseTransformImplExt::parent_query(self, direction, query);
        if answered
            && direction == gst::PadDirection::Src
            && let Some(live) = latency::add(query, self.latency())
        {
            self.live.store(live, Ordering::Relaxed);
        }
        answered
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (begin, allocations) = (Instant::now(), process::allocations());
        if self.failed.load(Ordering::Relaxed) {
            return Err(gst::FlowError::Error);
        }
        self.sync(buffer.pts());
        let settings = self.settings.lock().clone();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.apply_realtime_priority(settings.realtime_priority);
        let drawn = if settings.enabled {
            drawing::draw(&self.obj(), state, &settings, buffer)
        } else {
            Drawn::default()
        };
        let size = state.input.as_ref().map_or((0, 0), |input| (input.info.width, input.info.height));
        if settings.attach_meta {
            for shown in [&drawn.automatic, &drawn.object].into_iter().flatten() {
                state.attacher.attach(buffer, shown, size.0, size.1);
            }
        }
        state.post_changes(drawn.automatic.as_ref(), &settings, buffer.pts(), size);
        let object = drawn.object.as_ref().and_then(|s| s.detection.prompt);
        let change = (object != state.object).then(|| std::mem::replace(&mut state.object, object));
        if let Some(mask) = self.mask()
            && size.0 > 0
        {
            let (pts, duration) = (buffer.pts(), buffer.duration());
            let shown = drawn.automatic;
            mask.push(FrameMask { shown, pts, duration, width: size.0, height: size.1 });
        }
        if let (Some(engine), true) = (&state.engine, settings.enabled) {
            let took = begin.elapsed();
            engine.record_video_delay(took);
            if settings.sync_mode == SyncMode::FrameAccurate {
                self.waited(state, took);
            }
        }
        self.allocations.fetch_add(process::allocations() - allocations, Ordering::Relaxed);
        drop(guard);
        if let Some(before) = change {
            self.object_changed(before, object);
        }
        Ok(gst::FlowSuccess::Ok)
    }
}

impl AutoSam {
    /// Records how long a frame waited for its mask, and updates latency and the overload warning.
    fn waited(&self, state: &mut State, took: Duration) {
        let mut times = self.times.lock();
        let changed = times.note(took);
        let interval = state.input.as_ref().and_then(Input::interval);
        let slow = self.live.load(Ordering::Relaxed) && interval.is_some_and(|i| times.falls_behind(i));
        drop(times);
        if changed {
            self.latency_changed();
        }
        if slow {
            state.falls_behind();
        }
    }

    /// Sends an event downstream with the object that is drawn from this frame on.
    fn object_changed(&self, before: Option<u32>, now: Option<u32>) {
        let id = now.or(before).unwrap_or_default();
        let structure = gst::Structure::builder("application/x-autosam-prompt")
            .field("id", id)
            .field("shown", now.is_some())
            .build();
        self.obj().src_pad().push_event(gst::event::CustomDownstream::new(structure));
    }

    /// Asks the pipeline to query the latency again.
    fn latency_changed(&self) {
        if let Some(notices) = self.notices() {
            notices.send(Notice::Latency);
        }
    }

    /// Sets controlled properties to their values at this frame's time.
    fn sync(&self, pts: Option<gst::ClockTime>) {
        let element = self.obj();
        if !element.has_active_control_bindings() {
            return;
        }
        let segment = element.segment();
        let time = segment.downcast_ref::<gst::ClockTime>().and_then(|s| s.to_stream_time(pts));
        if let Some(time) = time
            && let Err(e) = element.sync_values(time)
        {
            gst::warning!(CAT, imp = self, "{e}");
        }
    }
}

impl VideoFilterImpl for AutoSam {
    fn set_info(
        &self,
        incaps: &gst::Caps,
        in_info: &gst_video::VideoInfo,
        outcaps: &gst::Caps,
        out_info: &gst_video::VideoInfo,
    ) -> Result<(), gst::LoggableError> {
        self.parent_set_info(incaps, in_info, outcaps, out_info)?;
        self.pointer.lock().size = (in_info.width() as usize, in_info.height() as usize);
        let mut state = self.state.lock();
        state.input = match Input::new(in_info) {
            Ok(input) => Some(input),
            Err(e) => {
                state.send(Notice::Warning(e));
                None
            }
        };
        if let Some(engine) = &state.engine {
            engine.control().flush();
        }
        Ok(())
    }
}
