//! A video filter in place: samples each picture for the engine, draws its latest mask.

use super::mask_pad::{MaskPad, Picture};
use super::meta::{Attacher, pixels};
use super::notify::{Notice, Notices, Notifier, post};
use super::properties;
use super::settings::{OnError, Settings, SyncMode};
use autosam::engine::segmenter::Segmenter;
use autosam::engine::{Control, Engine, Event, Latency, Listener, Opener, Shown};
use autosam::frame::{ColorMatrix, FrameInfo, FrameMut, PixelFormat, PlaneMut};
use autosam::priority::Urgent;
use autosam::process;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("autosam", gst::DebugColorFlags::empty(), Some("Polyp masks on live video"))
});

/// What exists between READY and PAUSED only.
#[derive(Default)]
struct State {
    engine: Option<Engine>,
    notices: Option<Notices>,
    video: Option<(gst_video::VideoInfo, FrameInfo)>,
    /// Pictures since the start, for `inference-interval`.
    count: u64,
    /// When `max-inference-rate` allows the next inference, in ns of timestamps.
    due_at: u64,
    /// The picture on which the present detection began.
    detected: Option<Began>,
    overloaded: bool,
    /// A picture that cannot be used has been told of, and none that can came since.
    complained: bool,
    told: Option<Instant>,
    urgent: Option<Urgent>,
    /// The `realtime-priority` that the system refused.
    refused: u8,
    attacher: Attacher,
}

struct Began {
    pts: Option<gst::ClockTime>,
    pictures: u64,
}

type TestOpener = dyn Fn(Option<&Path>) -> autosam::Result<Box<dyn Segmenter>> + Send + Sync;

#[derive(Default)]
pub struct AutoSam {
    settings: Mutex<Settings>,
    /// Held while a picture is being worked on.
    state: Mutex<State>,
    /// The engine's other half, for properties and events: they must not wait for a picture.
    control: Mutex<Option<Control>>,
    notifier: Mutex<Option<Notifier>>,
    mask: Mutex<Option<MaskPad>>,
    /// Set by the worker where `on-error=fail`: the next picture ends the stream.
    failed: Arc<AtomicBool>,
    opener: Mutex<Option<Arc<TestOpener>>>,
    /// Of this plugin's code on the pictures' thread, since the element was made.
    allocations: AtomicU64,
}

/// What is locked here is whole at any time, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AutoSam {
    fn control(&self) -> Option<Control> {
        lock(&self.control).clone()
    }

    fn mask(&self) -> Option<MaskPad> {
        lock(&self.mask).clone()
    }

    /// Present while the element runs.
    fn notices(&self) -> Option<Notices> {
        lock(&self.notifier).as_ref().and_then(Notifier::notices).cloned()
    }

    pub fn set_opener(&self, opener: Arc<TestOpener>) {
        *lock(&self.opener) = Some(opener);
    }

    fn opener(&self, settings: &Settings) -> Opener {
        let (location, options) = (settings.model_location.clone(), settings.model());
        match lock(&self.opener).clone() {
            Some(open) => Box::new(move || open(location.as_deref())),
            None => Box::new(move || autosam::model::open(location.as_deref(), &options)),
        }
    }

    fn listener(&self) -> Listener {
        let (element, failed) = (self.obj().downgrade(), self.failed.clone());
        Box::new(move |event| {
            let Some(element) = element.upgrade() else { return };
            match event {
                Event::Detected(_) => {}
                Event::Recovered => gst::info!(CAT, obj = element, "the model is open again"),
                Event::Failed(e) if lock(&element.imp().settings).on_error == OnError::Fail => {
                    failed.store(true, Ordering::Relaxed);
                    gst::element_error!(element, gst::LibraryError::Failed, ("Inference failed"), ["{e}"]);
                }
                Event::Failed(e) => {
                    gst::element_warning!(
                        element,
                        gst::LibraryError::Failed,
                        ("Inference failed; the picture goes on without masks"),
                        ["{e}"]
                    );
                }
            }
        })
    }

    /// Opens another model beside the present one, while the element runs.
    fn replace_model(&self, settings: &Settings) {
        let (Some(control), Some(notices)) = (self.control(), self.notices()) else { return };
        let location = settings.location();
        control.replace(
            self.opener(settings),
            Box::new(move |result| {
                notices.leave(Notice::Updated(location, result.err().map(|e| e.to_string())));
            }),
        );
    }

    /// Offers the picture to the network, finds the mask that belongs on it, and draws it.
    fn work(&self, state: &mut State, settings: &Settings, buffer: &mut gst::BufferRef) -> Option<Shown> {
        let pts = buffer.pts().map(gst::ClockTime::nseconds);
        let due = state.due(settings, pts);
        let (Some(engine), Some((video, info))) = (&mut state.engine, &state.video) else { return None };
        let mut frame = match gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, video) {
            Ok(frame) => frame,
            Err(_) => {
                state.complain(format!("A buffer is no {} picture and passes as it is", describe(video)));
                return None;
            }
        };
        let strides =
            [0, 1, 2].map(|p| frame.plane_stride().get(p).map_or(0, |s| usize::try_from(*s).unwrap_or(0)));
        let [a, b, c, _] = frame.planes_data_mut();
        let plane = |data, p: usize| PlaneMut { data, stride: strides[p] };
        let mut picture = match FrameMut::new(*info, [plane(a, 0), plane(b, 1), plane(c, 2)]) {
            Ok(picture) => picture,
            Err(e) => {
                state.complain(e.to_string());
                return None;
            }
        };
        state.complained = false;
        let shown = if settings.sync_mode == SyncMode::FrameAccurate && due {
            // The worker has told the bus where it failed.
            let own = engine.segment(&picture.as_frame(), pts).ok();
            own.map(|detection| Shown { detection, shift: (0, 0) })
        } else {
            if !due {
                engine.skip();
            } else if let Err(e) = engine.offer(&picture.as_frame(), pts) {
                gst::warning!(CAT, imp = self, "{e}");
            }
            let lasting = |s: &Shown| {
                settings.sync_mode == SyncMode::FrameAccurate
                    || settings.expire_overlay.is_zero()
                    || s.detection.sampled.elapsed() <= settings.patience()
            };
            engine.show(&picture.as_frame()).filter(lasting)
        }?;
        if !shown.detection.mark.is_empty() {
            shown.detection.mark.draw_at(&mut picture, &settings.style(), shown.shift);
            engine.record_annotation_delay(shown.detection.sampled.elapsed());
        }
        Some(shown)
    }

    pub fn stats(&self) -> gst::Structure {
        let stats = self.control().map(|c| c.stats()).unwrap_or_default();
        let mut s = gst::Structure::builder("application/x-autosam-stats")
            .field("frames", stats.frames)
            .field("inferred", stats.inferred)
            .field("skipped", stats.skipped)
            .field("errors", stats.errors)
            .field("restarts", stats.restarts)
            .field("pending", stats.pending)
            .field("allocations", self.allocations.load(Ordering::Relaxed))
            .build();
        let mut add = |name: &str, l: &Latency| {
            s.set(format!("{name}-last"), l.last.as_nanos() as u64);
            s.set(format!("{name}-mean"), l.mean.as_nanos() as u64);
            s.set(format!("{name}-max"), l.max.as_nanos() as u64);
        };
        add("inference", &stats.inference);
        add("video-delay", &stats.video_delay);
        add("annotation-delay", &stats.annotation_delay);
        s
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
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(|| {
            let detection = |name: &'static str| {
                glib::subclass::Signal::builder(name).param_types([gst::Structure::static_type()]).build()
            };
            vec![
                detection("detection-started"),
                detection("detection-ended"),
                glib::subclass::Signal::builder("model-updated")
                    .param_types([String::static_type(), bool::static_type(), String::static_type()])
                    .build(),
            ]
        });
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
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
                // What was seen before the pause must not come back after it.
                control.flush();
            }
        }
        if pspec.name() == "model-location" {
            self.replace_model(&settings);
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" { self.stats().to_value() } else { lock(&self.settings).get(pspec.name()) }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // The base class would drop late pictures. Here only inference is skipped.
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
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let formats = PixelFormat::ALL.map(|f| gst_video::VideoFormat::from_string(f.name()));
            const MOST_SIDE: i32 = autosam::frame::sample::MOST_SIDE as i32;
            let caps = gst_video::VideoCapsBuilder::new()
                .format_list(formats)
                .width_range(1..=MOST_SIDE)
                .height_range(1..=MOST_SIDE);
            let caps = caps.build();
            let mask = gst_video::VideoCapsBuilder::new()
                .format(gst_video::VideoFormat::Gray8)
                .width_range(1..=MOST_SIDE)
                .height_range(1..=MOST_SIDE)
                .build();
            [
                ("sink", gst::PadDirection::Sink, gst::PadPresence::Always, caps.clone()),
                ("src", gst::PadDirection::Src, gst::PadPresence::Always, caps),
                ("mask", gst::PadDirection::Src, gst::PadPresence::Request, mask),
            ]
            .into_iter()
            .filter_map(|(name, direction, presence, caps)| {
                gst::PadTemplate::new(name, direction, presence, &caps).ok()
            })
            .collect()
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        if self.mask().is_some() {
            gst::warning!(CAT, imp = self, "there is one mask pad, and it is taken");
            return None;
        }
        let mask = MaskPad::new(template);
        let element = self.obj();
        if element.current_state() >= gst::State::Paused && mask.pad.set_active(true).is_err() {
            return None;
        }
        // Nothing is locked here: applications hear of the pad. Of two requests at a time the name lets one pass.
        element.add_pad(&mask.pad).ok()?;
        // Asked for in mid-stream: what the stream is was said before.
        element.static_pad("sink")?.sticky_events_foreach(|event| {
            mask.event(event);
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        *lock(&self.mask) = Some(mask.clone());
        Some(mask.pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        // Pictures stop going there first; the lock must not be held while the task ends.
        lock(&self.mask).take_if(|m| m.pad == *pad);
        let _ = pad.set_active(false);
        let _ = self.obj().remove_pad(pad);
    }
}

impl BaseTransformImpl for AutoSam {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        // Before the engine, whose figures are told from its start on.
        if let Err(e) = autosam::serve::metrics::serve_from_environment() {
            gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{e}"));
        }
        let settings = lock(&self.settings).clone();
        self.failed.store(false, Ordering::Relaxed);
        let mut engine = Engine::start(self.opener(&settings), settings.engine(), self.listener());
        if let (Err(e), OnError::Passthrough) = (&engine, settings.on_error) {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::OpenRead,
                ("The model cannot be opened; the picture goes on without masks: {e}")
            );
            engine = Engine::without_model(settings.engine(), self.listener());
        }
        let engine = engine.map_err(|e| {
            gst::error_msg!(gst::ResourceError::OpenRead, ("The model cannot be opened: {e}"))
        })?;
        let notifier = Notifier::start(&self.obj()).map_err(|e| {
            gst::error_msg!(gst::CoreError::Thread, ("Cannot start a thread for messages: {e}"))
        })?;
        let notices = notifier.notices().cloned();
        *lock(&self.notifier) = Some(notifier);
        *lock(&self.control) = Some(engine.control().clone());
        *lock(&self.state) = State { engine: Some(engine), notices, ..State::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // `control` stays: the statistics can be read until the next start.
        let mut state = std::mem::take(&mut *lock(&self.state));
        state.ended(None);
        drop(state);
        let notifier = lock(&self.notifier).take();
        drop(notifier);
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        // A seek or another stream: old masks do not belong to what comes.
        if matches!(event.view(), EventView::FlushStop(_) | EventView::StreamStart(_))
            && let Some(control) = self.control()
        {
            control.flush();
        }
        if matches!(event.view(), EventView::Eos(_)) {
            // `gst-launch-1.0 -m` shows it.
            post(&self.obj(), self.stats());
        }
        if let Some(mask) = self.mask() {
            mask.event(&event);
        }
        self.parent_sink_event(event)
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (begin, allocations) = (Instant::now(), process::allocations());
        if self.failed.load(Ordering::Relaxed) {
            return Err(gst::FlowError::Error);
        }
        self.sync(buffer.pts());
        let settings = lock(&self.settings).clone();
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.hurry(settings.realtime_priority);
        let shown = if settings.enabled { self.work(state, &settings, buffer) } else { None };
        let size = state.video.as_ref().map_or((0, 0), |(_, info)| (info.width, info.height));
        if settings.attach_meta
            && let Some(shown) = &shown
        {
            state.attacher.attach(buffer, shown, size.0, size.1);
        }
        state.tell(shown.as_ref(), &settings, buffer.pts(), size);
        if let Some(mask) = self.mask()
            && size.0 > 0
        {
            let (pts, duration) = (buffer.pts(), buffer.duration());
            mask.push(Picture { shown, pts, duration, width: size.0, height: size.1 });
        }
        if let (Some(engine), true) = (&state.engine, settings.enabled) {
            engine.record_video_delay(begin.elapsed());
        }
        self.allocations.fetch_add(process::allocations() - allocations, Ordering::Relaxed);
        Ok(gst::FlowSuccess::Ok)
    }
}

impl AutoSam {
    /// Sets properties that a controller moves to what they are at this picture.
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

impl State {
    /// Whether the network should see this picture.
    fn due(&mut self, settings: &Settings, pts: Option<u64>) -> bool {
        let due = self.count.is_multiple_of(u64::from(settings.inference_interval));
        self.count += 1;
        if settings.max_inference_rate <= 0.0 || settings.sync_mode == SyncMode::FrameAccurate {
            return due;
        }
        let Some(now) = pts else { return due };
        let period = (1e9 / settings.max_inference_rate) as u64;
        // Timestamps may jump: one far before the time that was set begins anew.
        if !due || (now < self.due_at && self.due_at - now <= period) {
            return false;
        }
        self.due_at = self.due_at.saturating_add(period);
        if self.due_at <= now || self.due_at - now > period {
            self.due_at = now.saturating_add(period);
        }
        true
    }

    /// Gives the thread that brought this picture the real-time priority `level`; 0: as it was.
    fn hurry(&mut self, level: u8) {
        let done = match &self.urgent {
            Some(urgent) => urgent.level() == level && urgent.is_here(),
            None => level == 0 || level == self.refused,
        };
        if done {
            return;
        }
        self.urgent = None;
        if level > 0 {
            match Urgent::this_thread(level) {
                Ok(urgent) => self.urgent = Some(urgent),
                Err(e) => {
                    self.refused = level;
                    self.leave(Notice::Setting(e.to_string()));
                }
            }
        }
    }

    fn leave(&self, notice: Notice) {
        if let Some(notices) = &self.notices {
            notices.leave(notice);
        }
    }

    fn complain(&mut self, text: String) {
        if !self.complained {
            self.complained = true;
            self.leave(Notice::Warning(text));
        }
    }

    /// What changed with this picture.
    fn tell(
        &mut self,
        shown: Option<&Shown>,
        settings: &Settings,
        pts: Option<gst::ClockTime>,
        (width, height): (usize, usize),
    ) {
        match (shown.and_then(|s| s.detection.mask.regions.first().zip(Some(s))), &mut self.detected) {
            (Some((largest, shown)), None) => {
                self.detected = Some(Began { pts, pictures: 1 });
                let (x, y, w, h) = pixels(largest, shown.shift, width, height);
                let structure = gst::Structure::builder("application/x-autosam-detection-started")
                    .field("timestamp", pts)
                    .field("confidence", f64::from(largest.confidence))
                    .field("regions", shown.detection.mask.regions.len() as u32)
                    .field("x", x)
                    .field("y", y)
                    .field("width", w)
                    .field("height", h)
                    .build();
                self.leave(Notice::Detection("detection-started", structure));
            }
            (Some(_), Some(began)) => began.pictures += 1,
            (None, Some(_)) => self.ended(pts),
            (None, None) => {}
        }
        if let Some(engine) = &self.engine {
            let (patience, busy) = (settings.patience(), engine.control().busy());
            let late = busy.is_some_and(|b| b > patience);
            // It is over once an inference was in time.
            let over = || !late && engine.control().stats().inference.last <= patience;
            if late != self.overloaded && (late || over()) {
                self.overloaded = late;
                let structure = gst::Structure::builder("application/x-autosam-overload")
                    .field("active", late)
                    .field("busy", busy.unwrap_or(Duration::ZERO).as_nanos() as u64)
                    .build();
                self.leave(Notice::Overload(structure));
            }
        }
        let interval = Duration::from_nanos(settings.stats_interval.nseconds());
        if !interval.is_zero() && self.told.get_or_insert_with(Instant::now).elapsed() >= interval {
            self.told = Some(Instant::now());
            self.leave(Notice::Stats);
        }
    }

    /// Tells that nothing is shown any more, where something was.
    fn ended(&mut self, pts: Option<gst::ClockTime>) {
        if let Some(began) = self.detected.take() {
            let structure = gst::Structure::builder("application/x-autosam-detection-ended")
                .field("timestamp", pts)
                .field("began", began.pts)
                .field("pictures", began.pictures)
                .build();
            self.leave(Notice::Detection("detection-ended", structure));
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
        let mut state = lock(&self.state);
        state.video = frame_info(in_info).map(|info| (in_info.clone(), info));
        if let Some(engine) = &state.engine {
            engine.control().flush();
        }
        Ok(())
    }
}

fn describe(info: &gst_video::VideoInfo) -> String {
    format!("{}x{} {}", info.width(), info.height(), info.format())
}

fn frame_info(info: &gst_video::VideoInfo) -> Option<FrameInfo> {
    let format = PixelFormat::ALL.into_iter().find(|f| f.name() == info.format().to_str())?;
    let color = info.colorimetry();
    Some(FrameInfo {
        format,
        width: info.width() as usize,
        height: info.height() as usize,
        matrix: match color.matrix() {
            gst_video::VideoColorMatrix::Bt709 => ColorMatrix::Bt709,
            _ => ColorMatrix::Bt601,
        },
        full_range: color.range() == gst_video::VideoColorRange::Range0_255,
    })
}
