//! The properties: their specifications, and the way from values to [`Settings`] and back.

use super::settings::{Device, OnError, OverlayMode, Precision, Settings, SyncMode};
use gst::glib;
use gst::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

pub fn specs() -> &'static [glib::ParamSpec] {
    static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
        let d = Settings::default();
        let part = |name: &'static str, nick: &'static str, blurb: &'static str, default: f32| {
            glib::ParamSpecFloat::builder(name)
                .nick(nick)
                .blurb(blurb)
                .minimum(0.0)
                .maximum(1.0)
                .default_value(default)
                .mutable_playing()
                .controllable()
                .build()
        };
        vec![
            glib::ParamSpecString::builder("model-location")
                .nick("Model location")
                .blurb("Weights made by `autosam-video train`; without, the model that comes with the plugin")
                .mutable_playing()
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
            glib::ParamSpecEnum::builder_with_default("precision", d.precision)
                .nick("Precision")
                .blurb("Of matrix products and convolutions on a GPU; a CPU computes in f32")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("views")
                .nick("Views")
                .blurb("Mirror images of each picture that are answered, 1, 2 or 4; the mask is their mean")
                .minimum(1)
                .maximum(4)
                .default_value(d.views.count())
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("sync-mode", d.sync_mode)
                .nick("Synchronisation")
                .blurb("Whether pictures wait for their own masks")
                .mutable_playing()
                .build(),
            part("threshold", "Threshold", "Probability from which a pixel is marked", d.threshold),
            part(
                "hysteresis",
                "Hysteresis",
                "How far above the threshold a region must have been to show",
                d.hysteresis,
            ),
            part("smoothing", "Smoothing", "Weight of the masks before in each new one (async)", d.smoothing),
            glib::ParamSpecUInt::builder("hold-off")
                .nick("Hold-off")
                .blurb("Pictures that a region must last before it shows (async); 1 is at once")
                .minimum(1)
                .default_value(d.hold_off)
                .mutable_playing()
                .controllable()
                .build(),
            part(
                "min-area",
                "Smallest area",
                "Regions smaller than this part of the picture are left out",
                d.min_area,
            ),
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
                .controllable()
                .build(),
            part("opacity", "Opacity", "Of the tinted area; lines are opaque", d.opacity),
            glib::ParamSpecUInt::builder("contour-width")
                .nick("Contour width")
                .blurb("Of outlines and boxes in pixels, brought up to an even number; 0 is by the picture's size")
                .maximum(256)
                .default_value(d.contour_width)
                .mutable_playing()
                .controllable()
                .build(),
            glib::ParamSpecUInt64::builder("expire-overlay")
                .nick("Expiry")
                .blurb("Age in ns from which a mask is no longer drawn with sync-mode=async; 0 is never")
                .default_value(d.expire_overlay.nseconds())
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("motion-compensation")
                .nick("Motion compensation")
                .blurb("Masks follow the picture between two inferences (async)")
                .default_value(d.motion_compensation)
                .mutable_playing()
                .build(),
            glib::ParamSpecString::builder("roi")
                .nick("Region of interest")
                .blurb("What the network sees: full, auto (the endoscope's picture), or X,Y,WIDTH,HEIGHT in pixels")
                .default_value(Some(d.roi.to_string().as_str()))
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("enabled")
                .nick("Enabled")
                .blurb("Off: pictures pass untouched and the network rests")
                .default_value(d.enabled)
                .mutable_playing()
                .controllable()
                .build(),
            glib::ParamSpecUInt::builder("inference-interval")
                .nick("Inference interval")
                .blurb("The network sees every Nth picture at most")
                .minimum(1)
                .default_value(d.inference_interval)
                .mutable_playing()
                .build(),
            glib::ParamSpecDouble::builder("max-inference-rate")
                .nick("Most inferences")
                .blurb("Inferences a second at most; 0 is as many as there are")
                .minimum(0.0)
                .maximum(1000.0)
                .default_value(d.max_inference_rate)
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("attach-meta")
                .nick("Attach metadata")
                .blurb("Regions as GstVideoRegionOfInterestMeta, the mask as custom meta GstAutoSamMaskMeta")
                .default_value(d.attach_meta)
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("on-error", d.on_error)
                .nick("On error")
                .blurb("What happens where the model does not open or fails")
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("realtime-priority")
                .nick("Real-time priority")
                .blurb("Of the thread that brings pictures (SCHED_RR, 1 to 99), where the system permits; 0 leaves it alone")
                .maximum(99)
                .default_value(d.realtime_priority.into())
                .mutable_playing()
                .build(),
            glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                .nick("Statistics")
                .blurb("Pictures seen, inferred, skipped; inference, video delay and annotation delay in ns")
                .read_only()
                .build(),
            glib::ParamSpecUInt64::builder("stats-interval")
                .nick("Statistics interval")
                .blurb("ns between two messages with the statistics; 0 is none but at the end")
                .default_value(d.stats_interval.nseconds())
                .mutable_playing()
                .build(),
        ]
    });
    &SPECS
}

impl Settings {
    /// Takes a property's value; GObject has checked type and range.
    ///
    /// # Errors
    /// With the text of what is wrong; the setting stays as it was.
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
                self.views = count.parse().map_err(|e: autosam::Error| e.to_string())?;
            }
            "sync-mode" => self.sync_mode = value.get::<SyncMode>().unwrap_or_default(),
            "threshold" => self.threshold = value.get().unwrap_or_default(),
            "hysteresis" => self.hysteresis = value.get().unwrap_or_default(),
            "smoothing" => self.smoothing = value.get().unwrap_or_default(),
            "hold-off" => self.hold_off = value.get().unwrap_or(1),
            "min-area" => self.min_area = value.get().unwrap_or_default(),
            "overlay-mode" => self.overlay_mode = value.get::<OverlayMode>().unwrap_or_default(),
            "color" => self.color = value.get().unwrap_or_default(),
            "opacity" => self.opacity = value.get().unwrap_or_default(),
            "contour-width" => self.contour_width = value.get().unwrap_or_default(),
            "expire-overlay" => {
                self.expire_overlay = gst::ClockTime::from_nseconds(value.get().unwrap_or_default());
            }
            "motion-compensation" => self.motion_compensation = value.get().unwrap_or_default(),
            "roi" => {
                let text = value.get::<Option<String>>().unwrap_or_default();
                self.roi = match text {
                    Some(text) => text.parse().map_err(|e: autosam::Error| e.to_string())?,
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
