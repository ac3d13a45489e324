//! A video filter in place: samples each picture for the engine, draws its latest mask.

use super::settings::{Device, OnError, OverlayMode, Settings, SyncMode};
use autosam::engine::{Control, Detection, Engine, Event, Latency};
use autosam::frame::{ColorMatrix, FrameInfo, FrameMut, PixelFormat, PlaneMut};
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("autosam", gst::DebugColorFlags::empty(), Some("Polyp masks on live video"))
});

/// What exists between READY and PAUSED only.
#[derive(Default)]
struct State {
    /// `None` where the model did not open and pictures pass as they are.
    engine: Option<Engine>,
    info: Option<FrameInfo>,
    /// Pictures since the start, for `inference-interval`.
    count: u64,
}

#[derive(Default)]
pub struct AutoSam {
    settings: Mutex<Settings>,
    /// Held while a picture is being worked on.
    state: Mutex<State>,
    /// The engine's other half, for properties and events: they must not wait for a picture.
    control: Mutex<Option<Control>>,
    /// Set by the worker where `on-error=fail`: the next picture ends the stream.
    failed: Arc<AtomicBool>,
}

impl AutoSam {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        // Settings are plain values: after a panic they are still whole.
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> Option<Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open(&self, settings: &Settings) -> autosam::Result<Engine> {
        let (location, options) = (settings.model_location.clone(), settings.model());
        let opener = Box::new(move || autosam::model::open(location.as_deref(), &options));
        let (element, failed) = (self.obj().downgrade(), self.failed.clone());
        let listener = move |event| {
            let Some(element) = element.upgrade() else { return };
            match event {
                Event::Detected(_) => {}
                Event::Recovered => gst::info!(CAT, obj = element, "the model is open again"),
                Event::Failed(e) if element.imp().settings().on_error == OnError::Fail => {
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
        };
        Engine::start(opener, settings.engine(), Box::new(listener))
    }

    fn stats(&self) -> gst::Structure {
        let stats = self.control().map(|c| c.stats()).unwrap_or_default();
        let mut s = gst::Structure::builder("application/x-autosam-stats")
            .field("frames", stats.frames)
            .field("inferred", stats.inferred)
            .field("skipped", stats.skipped)
            .field("errors", stats.errors)
            .field("restarts", stats.restarts)
            .field("pending", stats.pending)
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
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let d = Settings::default();
            vec![
                glib::ParamSpecString::builder("model-location")
                    .nick("Model location")
                    .blurb("Weights made by `autosam-video train`; without, the model that comes with the plugin")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("device", d.device)
                    .nick("Device")
                    .blurb("Where the network runs")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("device-id")
                    .nick("Device number")
                    .blurb("Which GPU, with device=cuda")
                    .default_value(d.device_id)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("sync-mode", d.sync_mode)
                    .nick("Synchronisation")
                    .blurb("Whether pictures wait for their own masks")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("threshold")
                    .nick("Threshold")
                    .blurb("Probability from which a pixel is marked")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(d.threshold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("overlay-mode", d.overlay_mode)
                    .nick("Overlay")
                    .blurb("What is drawn")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("color")
                    .nick("Colour")
                    .blurb("Of the mark, ARGB (alpha is not used; see opacity)")
                    .default_value(d.color)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("opacity")
                    .nick("Opacity")
                    .blurb("Of the tinted area; lines are opaque")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(d.opacity)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt64::builder("expire-overlay")
                    .nick("Expiry")
                    .blurb("Age in ns from which a mask is no longer drawn with sync-mode=async; 0 is never")
                    .default_value(d.expire_overlay.nseconds())
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("min-area")
                    .nick("Smallest area")
                    .blurb("Regions smaller than this part of the picture are left out")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(d.min_area)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("enabled")
                    .nick("Enabled")
                    .blurb("Off: pictures pass untouched and the network rests")
                    .default_value(d.enabled)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("inference-interval")
                    .nick("Inference interval")
                    .blurb("The network sees every Nth picture at most")
                    .minimum(1)
                    .default_value(d.inference_interval)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("on-error", d.on_error)
                    .nick("On error")
                    .blurb("What happens where the model does not open or fails")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("Pictures seen, inferred, skipped; inference, video delay and annotation delay in ns")
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings();
        // GObject has checked type and range.
        match pspec.name() {
            "model-location" => {
                settings.model_location = value.get::<Option<String>>().unwrap_or(None).map(Into::into);
            }
            "device" => settings.device = value.get::<Device>().unwrap_or_default(),
            "device-id" => settings.device_id = value.get().unwrap_or_default(),
            "sync-mode" => settings.sync_mode = value.get::<SyncMode>().unwrap_or_default(),
            "threshold" => settings.threshold = value.get().unwrap_or_default(),
            "overlay-mode" => settings.overlay_mode = value.get::<OverlayMode>().unwrap_or_default(),
            "color" => settings.color = value.get().unwrap_or_default(),
            "opacity" => settings.opacity = value.get().unwrap_or_default(),
            "expire-overlay" => {
                settings.expire_overlay = gst::ClockTime::from_nseconds(value.get().unwrap_or_default());
            }
            "min-area" => settings.min_area = value.get().unwrap_or_default(),
            "enabled" => settings.enabled = value.get().unwrap_or_default(),
            "inference-interval" => settings.inference_interval = value.get().unwrap_or(1),
            "on-error" => settings.on_error = value.get::<OnError>().unwrap_or_default(),
            _ => {}
        }
        if let Some(control) = self.control() {
            control.set(settings.engine());
            if !settings.enabled {
                // What was seen before the pause must not come back after it.
                control.flush();
            }
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        let s = self.settings();
        match pspec.name() {
            "model-location" => s.model_location.as_deref().map(Path::to_string_lossy).as_deref().to_value(),
            "device" => s.device.to_value(),
            "device-id" => s.device_id.to_value(),
            "sync-mode" => s.sync_mode.to_value(),
            "threshold" => s.threshold.to_value(),
            "overlay-mode" => s.overlay_mode.to_value(),
            "color" => s.color.to_value(),
            "opacity" => s.opacity.to_value(),
            "expire-overlay" => s.expire_overlay.nseconds().to_value(),
            "min-area" => s.min_area.to_value(),
            "enabled" => s.enabled.to_value(),
            "inference-interval" => s.inference_interval.to_value(),
            "on-error" => s.on_error.to_value(),
            name => unreachable!("no property {name}"),
        }
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
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .filter_map(|(name, direction)| {
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
                })
                .collect()
        });
        &TEMPLATES
    }
}

impl BaseTransformImpl for AutoSam {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings().clone();
        self.failed.store(false, Ordering::Relaxed);
        let engine = match self.open(&settings) {
            Ok(engine) => Some(engine),
            Err(e) if settings.on_error == OnError::Fail => {
                return Err(gst::error_msg!(
                    gst::ResourceError::OpenRead,
                    ("The model cannot be opened: {e}")
                ));
            }
            Err(e) => {
                gst::element_imp_warning!(
                    self,
                    gst::ResourceError::OpenRead,
                    ("The model cannot be opened; the picture goes on without masks: {e}")
                );
                None
            }
        };
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) =
            engine.as_ref().map(|e| e.control().clone());
        *self.state() = State { engine, ..State::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // `control` stays: the statistics can be read until the next start.
        *self.state() = State::default();
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
            let message = gst::message::Element::builder(self.stats()).src(&*self.obj()).build();
            if self.obj().post_message(message).is_err() {
                gst::debug!(CAT, imp = self, "no bus to take the statistics");
            }
        }
        self.parent_sink_event(event)
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
        let mut state = self.state();
        state.info = frame_info(in_info);
        if let Some(engine) = &state.engine {
            engine.control().flush();
        }
        Ok(())
    }

    fn transform_frame_ip(
        &self,
        frame: &mut gst_video::VideoFrameRef<&mut gst::BufferRef>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let begin = Instant::now();
        if self.failed.load(Ordering::Relaxed) {
            return Err(gst::FlowError::Error);
        }
        let settings = self.settings().clone();
        if !settings.enabled {
            return Ok(gst::FlowSuccess::Ok);
        }
        let mut state = self.state();
        let State { engine: Some(engine), info: Some(info), count } = &mut *state else {
            return Ok(gst::FlowSuccess::Ok);
        };
        let due = count.is_multiple_of(u64::from(settings.inference_interval));
        *count += 1;
        let pts = frame.buffer().pts().map(gst::ClockTime::nseconds);
        let strides =
            [0, 1, 2].map(|p| frame.plane_stride().get(p).map_or(0, |s| usize::try_from(*s).unwrap_or(0)));
        let [a, b, c, _] = frame.planes_data_mut();
        let plane = |data, p: usize| PlaneMut { data, stride: strides[p] };
        let mut picture = match FrameMut::new(*info, [plane(a, 0), plane(b, 1), plane(c, 2)]) {
            Ok(picture) => picture,
            Err(e) => {
                gst::element_imp_warning!(self, gst::StreamError::Format, ("{e}"));
                return Ok(gst::FlowSuccess::Ok);
            }
        };
        let detection = if settings.sync_mode == SyncMode::FrameAccurate && due {
            // The worker has told the bus where it failed.
            engine.segment(&picture.as_frame(), pts).ok()
        } else {
            if due {
                if let Err(e) = engine.offer(&picture.as_frame(), pts) {
                    gst::warning!(CAT, imp = self, "{e}");
                }
            } else {
                engine.skip();
            }
            let lasting = |d: &Arc<Detection>| {
                let age = d.sampled.elapsed().as_nanos();
                settings.expire_overlay.is_zero() || age <= u128::from(settings.expire_overlay.nseconds())
            };
            let current = engine.latest();
            if settings.sync_mode == SyncMode::Async { current.filter(lasting) } else { current }
        };
        if let Some(detection) = detection
            && !detection.mark.is_empty()
        {
            detection.mark.draw(&mut picture, &settings.style());
            engine.record_annotation_delay(detection.sampled.elapsed());
        }
        engine.record_video_delay(begin.elapsed());
        Ok(gst::FlowSuccess::Ok)
    }
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
