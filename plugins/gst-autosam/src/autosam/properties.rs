//! Property specifications, and the conversion between property values and [`Settings`].

use super::settings::{Device, MotionCompensation, OnError, OverlayMode, Precision, Settings, SyncMode};
use gst::glib;
use gst::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

/// All properties, in the order in which they are listed.
pub fn specs() -> &'static [glib::ParamSpec] {
    static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
        let d = Settings::default();
        [model(&d), masks(&d), overlay(&d), inference(&d), pipeline(&d)].concat()
    });
    &SPECS
}

/// A property between 0 and 1.
fn fraction(name: &'static str, nick: &'static str, blurb: &'static str, default: f32) -> glib::ParamSpec {
    glib::ParamSpecFloat::builder(name)
        .nick(nick)
        .blurb(blurb)
        .minimum(0.0)
        .maximum(1.0)
        .default_value(default)
        .mutable_playing()
        .controllable()
        .build()
}

/// Properties of the model and of where it runs.
fn model(d: &Settings) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecString::builder("model-location")
            .nick("Model location")
            .blurb("Path of weights made by `autosam-video train`; the built-in model if unset")
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("device", d.device)
            .nick("Device")
            .blurb("Processor that runs the network")
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt::builder("device-id")
            .nick("Device number")
            .blurb("Index of the GPU for device=cuda")
            .default_value(d.device_id)
            .mutable_ready()
            .build(),
        glib::ParamSpecEnum::builder_with_default("precision", d.precision)
            .nick("Precision")
            .blurb("Number format of inference: f32; f16 or bf16 on a GPU; int8 on a CPU")
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt::builder("views")
            .nick("Views")
            .blurb("Test-time augmentation: number of flipped copies of each frame to average (1, 2 or 4)")
            .minimum(1)
            .maximum(4)
            .default_value(d.views.count())
            .mutable_ready()
            .build(),
    ]
}

/// Properties of how masks are made from the network's probabilities.
fn masks(d: &Settings) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecEnum::builder_with_default("sync-mode", d.sync_mode)
            .nick("Synchronisation")
            .blurb(
                "Whether each frame waits for its own mask (frame-accurate) or shows the latest one (async)",
            )
            .mutable_playing()
            .build(),
        fraction("threshold", "Threshold", "Minimum probability of a polyp pixel", d.threshold),
        fraction(
            "hysteresis",
            "Hysteresis",
            "Margin above the threshold that a region must reach once before it is shown",
            d.hysteresis,
        ),
        fraction(
            "smoothing",
            "Smoothing",
            "Weight of earlier masks in each new one (async only)",
            d.smoothing,
        ),
        glib::ParamSpecUInt::builder("hold-off")
            .nick("Hold-off")
            .blurb("Number of frames a region must last before it is shown (async only); 1 shows it at once")
            .minimum(1)
            .default_value(d.hold_off)
            .mutable_playing()
            .controllable()
            .build(),
        fraction(
            "min-area",
            "Minimum area",
            "Minimum size of a region as a fraction of the frame; smaller regions are ignored",
            d.min_area,
        ),
    ]
}

/// Properties of how masks are drawn.
fn overlay(d: &Settings) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecEnum::builder_with_default("overlay-mode", d.overlay_mode)
            .nick("Overlay")
            .blurb("Style of the overlay")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("color")
            .nick("Colour")
            .blurb("Colour of the overlay as ARGB (alpha is ignored; see opacity)")
            .default_value(d.color)
            .mutable_playing()
            .controllable()
            .build(),
        glib::ParamSpecUInt::builder("prompt-color")
            .nick("Prompt colour")
            .blurb("Colour of the overlay of the object that a person pointed at, as ARGB (alpha is ignored)")
            .default_value(d.prompt_color)
            .mutable_playing()
            .controllable()
            .build(),
        fraction("opacity", "Opacity", "Opacity of the tinted area; lines are opaque", d.opacity),
        glib::ParamSpecUInt::builder("contour-width")
            .nick("Contour width")
            .blurb("Width of outlines and boxes in pixels, rounded up to an even number; 0 derives it from the frame size")
            .maximum(256)
            .default_value(d.contour_width)
            .mutable_playing()
            .controllable()
            .build(),
        glib::ParamSpecUInt64::builder("expire-overlay")
            .nick("Expiry")
            .blurb("Maximum age in ns of a mask that is drawn (async only); 0 means no limit")
            .default_value(d.expire_overlay.nseconds())
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("motion-compensation", d.motion_compensation)
            .nick("Motion compensation")
            .blurb("Whether masks follow the tissue between two inferences (async only)")
            .mutable_playing()
            .build(),
    ]
}

/// Properties of what is inferred, and how often.
fn inference(d: &Settings) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecString::builder("roi")
            .nick("Region of interest")
            .blurb("Part of the frame that the network sees: full, auto (the endoscope's image) or X,Y,WIDTH,HEIGHT in pixels")
            .default_value(Some(d.roi.to_string().as_str()))
            .mutable_playing()
            .build(),
        glib::ParamSpecBoolean::builder("enabled")
            .nick("Enabled")
            .blurb("Whether masks are computed and drawn; if false, frames pass unchanged and no inference runs")
            .default_value(d.enabled)
            .mutable_playing()
            .controllable()
            .build(),
        glib::ParamSpecUInt::builder("inference-interval")
            .nick("Inference interval")
            .blurb("Minimum distance between two inferences in frames; N infers at most every Nth frame")
            .minimum(1)
            .default_value(d.inference_interval)
            .mutable_playing()
            .build(),
        glib::ParamSpecDouble::builder("max-inference-rate")
            .nick("Maximum inference rate")
            .blurb("Maximum number of inferences per second; 0 means no limit")
            .minimum(0.0)
            .maximum(1000.0)
            .default_value(d.max_inference_rate)
            .mutable_playing()
            .build(),
    ]
}

/// Properties of what the element does besides masks: metadata, errors, its thread and statistics.
fn pipeline(d: &Settings) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecBoolean::builder("attach-meta")
            .nick("Attach metadata")
            .blurb("Whether to attach regions as GstVideoRegionOfInterestMeta and the mask as custom meta GstAutoSamMaskMeta")
            .default_value(d.attach_meta)
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("on-error", d.on_error)
            .nick("On error")
            .blurb("Reaction if the model cannot be loaded or inference fails")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("realtime-priority")
            .nick("Real-time priority")
            .blurb("Real-time priority of the streaming thread (SCHED_RR, 1 to 99), if the OS permits; 0 leaves it unchanged")
            .maximum(99)
            .default_value(d.realtime_priority.into())
            .mutable_playing()
            .build(),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb("Statistics: number of frames seen, inferred and skipped; inference time, video delay and annotation delay in ns")
            .read_only()
            .build(),
        glib::ParamSpecUInt64::builder("stats-interval")
            .nick("Statistics interval")
            .blurb("Interval in ns between messages with the statistics; 0 posts them only at the end of the stream")
            .default_value(d.stats_interval.nseconds())
            .mutable_playing()
            .build(),
    ]
}

impl Settings {
    /// Sets a property's value, whose type and range GObject has checked.
    ///
    /// # Errors
    /// A description of what is wrong with the value; the setting is then unchanged.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> Result<(), String> {
        match name {
            "model-location" => {
                let location = value.get::<Option<String>>().unwrap_or_default();
                self.model_location = location.map(|l| Path::new(&l).into());
            }
            "device" => self.device = value.get::<Device>().unwrap_or_default(),
            "device-id" => self.device_id = value.get().unwrap_or_default(),
            "precision" => self.precision = value.get::<Precision>().unwrap_or_default(),
            "views" => {
                let count = value.get::<u32>().unwrap_or_default().to_string();
                self.views = count.parse().map_err(|e: autosam_frame::Error| e.to_string())?;
            }
            "sync-mode" => self.sync_mode = value.get::<SyncMode>().unwrap_or_default(),
            "threshold" => self.threshold = value.get().unwrap_or_default(),
            "hysteresis" => self.hysteresis = value.get().unwrap_or_default(),
            "smoothing" => self.smoothing = value.get().unwrap_or_default(),
            "hold-off" => self.hold_off = value.get().unwrap_or(1),
            "min-area" => self.min_area = value.get().unwrap_or_default(),
            "overlay-mode" => self.overlay_mode = value.get::<OverlayMode>().unwrap_or_default(),
            "color" => self.color = value.get().unwrap_or_default(),
            "prompt-color" => self.prompt_color = value.get().unwrap_or_default(),
            "opacity" => self.opacity = value.get().unwrap_or_default(),
            "contour-width" => self.contour_width = value.get().unwrap_or_default(),
            "expire-overlay" => {
                self.expire_overlay = gst::ClockTime::from_nseconds(value.get().unwrap_or_default());
            }
            "motion-compensation" => {
                self.motion_compensation = value.get::<MotionCompensation>().unwrap_or_default();
            }
            "roi" => {
                let text = value.get::<Option<String>>().unwrap_or_default();
                self.roi = match text {
                    Some(text) => text.parse().map_err(|e: autosam_frame::Error| e.to_string())?,
                    None => Settings::default().roi,
                };
            }
            "enabled" => self.enabled = value.get().unwrap_or_default(),
            "inference-interval" => self.inference_interval = value.get().unwrap_or(1),
            "max-inference-rate" => self.max_inference_rate = value.get().unwrap_or_default(),
            "attach-meta" => self.attach_meta = value.get().unwrap_or_default(),
            "on-error" => self.on_error = value.get::<OnError>().unwrap_or_default(),
            "realtime-priority" => {
                let level = value.get::<u32>().unwrap_or_default();
                self.realtime_priority = u8::try_from(level).unwrap_or_default();
            }
            "stats-interval" => {
                self.stats_interval = gst::ClockTime::from_nseconds(value.get().unwrap_or_default());
            }
            _ => {}
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> glib::Value {
        match name {
            "model-location" => self.location().to_value(),
            "device" => self.device.to_value(),
            "device-id" => self.device_id.to_value(),
            "precision" => self.precision.to_value(),
            "views" => self.views.count().to_value(),
            "sync-mode" => self.sync_mode.to_value(),
            "threshold" => self.threshold.to_value(),
            "hysteresis" => self.hysteresis.to_value(),
            "smoothing" => self.smoothing.to_value(),
            "hold-off" => self.hold_off.to_value(),
            "min-area" => self.min_area.to_value(),
            "overlay-mode" => self.overlay_mode.to_value(),
            "color" => self.color.to_value(),
            "prompt-color" => self.prompt_color.to_value(),
            "opacity" => self.opacity.to_value(),
            "contour-width" => self.contour_width.to_value(),
            "expire-overlay" => self.expire_overlay.nseconds().to_value(),
            "motion-compensation" => self.motion_compensation.to_value(),
            "roi" => self.roi.to_string().to_value(),
            "enabled" => self.enabled.to_value(),
            "inference-interval" => self.inference_interval.to_value(),
            "max-inference-rate" => self.max_inference_rate.to_value(),
            "attach-meta" => self.attach_meta.to_value(),
            "on-error" => self.on_error.to_value(),
            "realtime-priority" => u32::from(self.realtime_priority).to_value(),
            "stats-interval" => self.stats_interval.nseconds().to_value(),
            name => unreachable!("no property {name}"),
        }
    }

    /// The model's path as text.
    pub fn location(&self) -> Option<String> {
        self.model_location.as_deref().map(|l| l.to_string_lossy().into_owned())
    }
}
