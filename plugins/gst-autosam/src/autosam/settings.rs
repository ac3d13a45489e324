//! Property values, separate from the element's running state.

use autosam_engine as engine;
use autosam_engine::overlay;
use autosam_frame::mask::MaskSettings;
use autosam_frame::region::CropMode;
use autosam_frame::temporal::TemporalSettings;
use autosam_model::{self as model, DeviceChoice, Flips, MaskMode, ModelOptions};
use gst::glib;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamDevice")]
#[repr(i32)]
pub enum Device {
    #[default]
    #[enum_value(
        name = "The first GPU if the build supports it and the machine has one, otherwise the CPU",
        nick = "auto"
    )]
    Auto,
    #[enum_value(name = "The CPU", nick = "cpu")]
    Cpu,
    #[enum_value(name = "The NVIDIA GPU chosen by device-id", nick = "cuda")]
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamPrecision")]
#[repr(i32)]
pub enum Precision {
    #[default]
    #[enum_value(name = "32-bit floats", nick = "f32")]
    F32,
    #[enum_value(name = "16-bit floats", nick = "f16")]
    F16,
    #[enum_value(name = "16-bit floats with the range of 32-bit floats", nick = "bf16")]
    Bf16,
    #[enum_value(name = "Bytes, on a CPU, for a model of `models quantize`", nick = "int8")]
    Int8,
    #[enum_value(name = "int8 if the model and the CPU support it, otherwise f32", nick = "auto")]
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamSyncMode")]
#[repr(i32)]
pub enum SyncMode {
    #[default]
    #[enum_value(name = "Video never waits; the latest mask is drawn", nick = "async")]
    Async,
    #[enum_value(name = "Each frame waits for its own mask (for files)", nick = "frame-accurate")]
    FrameAccurate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamOverlayMode")]
#[repr(i32)]
pub enum OverlayMode {
    #[enum_value(name = "No overlay", nick = "none")]
    None,
    #[enum_value(name = "Tinted area", nick = "mask")]
    Mask,
    #[enum_value(name = "Outline", nick = "contour")]
    Contour,
    #[default]
    #[enum_value(name = "Area and outline", nick = "mask-contour")]
    MaskContour,
    #[enum_value(name = "A box around each region", nick = "box")]
    Box,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamOnError")]
#[repr(i32)]
pub enum OnError {
    #[default]
    #[enum_value(
        name = "Video continues without masks; a warning message gives the reason",
        nick = "passthrough"
    )]
    Passthrough,
    #[enum_value(name = "An error message ends the stream", nick = "fail")]
    Fail,
}

/// The values 0 and 1 equal those of a Boolean, so that `false` and `true` keep their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamMotionCompensation")]
#[repr(i32)]
pub enum MotionCompensation {
    #[enum_value(name = "Masks stay at the position of their own frame", nick = "false")]
    False,
    #[enum_value(name = "Masks follow the tissue from the first frame after their own", nick = "true")]
    True,
    #[default]
    #[enum_value(
        name = "Masks older than a frame and a half follow the tissue; newer ones stay if the frame looks the same",
        nick = "auto"
    )]
    Auto,
}

impl MotionCompensation {
    fn engine(self) -> engine::Motion {
        match self {
            Self::False => engine::Motion::Off,
            Self::True => engine::Motion::On,
            Self::Auto => engine::Motion::Auto,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub model_location: Option<Arc<Path>>,
    pub device: Device,
    pub device_id: u32,
    pub precision: Precision,
    pub views: Flips,
    pub sync_mode: SyncMode,
    pub threshold: f32,
    pub hysteresis: f32,
    pub smoothing: f32,
    /// In frames.
    pub hold_off: u32,
    pub min_area: f32,
    pub overlay_mode: OverlayMode,
    /// ARGB; alpha is ignored.
    pub color: u32,
    /// ARGB; alpha is ignored.
    pub prompt_color: u32,
    pub opacity: f32,
    /// In pixels; 0: derived from the frame size.
    pub contour_width: u32,
    /// 0: masks do not expire.
    pub expire_overlay: gst::ClockTime,
    pub motion_compensation: MotionCompensation,
    pub roi: CropMode,
    pub enabled: bool,
    pub inference_interval: u32,
    /// Per second; 0: no limit.
    pub max_inference_rate: f64,
    pub attach_meta: bool,
    /// 0: never.
    pub stats_interval: gst::ClockTime,
    pub on_error: OnError,
    /// For the streaming thread, 1 to 99; 0: unchanged.
    pub realtime_priority: u8,
}

impl Default for Settings {
    fn default() -> Self {
        let (mask, style) = (MaskSettings::default(), overlay::Style::default());
        let live = TemporalSettings::LIVE;
        let [r, g, b] = style.color;
        Self {
            model_location: None,
            device: Device::default(),
            device_id: 0,
            precision: Precision::default(),
            views: Flips::default(),
            sync_mode: SyncMode::default(),
            threshold: mask.threshold,
            hysteresis: live.hysteresis,
            smoothing: live.smoothing,
            hold_off: live.hold_off,
            min_area: mask.min_area,
            overlay_mode: OverlayMode::default(),
            color: u32::from_be_bytes([255, r, g, b]),
            // Blue does not occur in mucosa either.
            prompt_color: 0xff00_a0ff,
            opacity: style.opacity,
            contour_width: 0,
            expire_overlay: gst::ClockTime::from_mseconds(500),
            motion_compensation: MotionCompensation::default(),
            roi: CropMode::default(),
            enabled: true,
            inference_interval: 1,
            max_inference_rate: 0.0,
            attach_meta: false,
            stats_interval: gst::ClockTime::ZERO,
            on_error: OnError::default(),
            realtime_priority: 0,
        }
    }
}

impl Settings {
    pub fn engine(&self) -> engine::Settings {
        let live = self.sync_mode == SyncMode::Async;
        let temporal = TemporalSettings {
            smoothing: self.smoothing,
            hysteresis: self.hysteresis,
            hold_off: self.hold_off,
        };
        engine::Settings {
            mask: MaskSettings {
                threshold: self.threshold,
                min_area: self.min_area,
                // In async mode the temporal filter applies hysteresis over time instead.
                hysteresis: if live { 0.0 } else { self.hysteresis },
            },
            overlay: match self.overlay_mode {
                OverlayMode::None => overlay::OverlayMode::None,
                OverlayMode::Mask => overlay::OverlayMode::Mask,
                OverlayMode::Contour => overlay::OverlayMode::Contour,
                OverlayMode::MaskContour => overlay::OverlayMode::MaskContour,
                OverlayMode::Box => overlay::OverlayMode::Box,
            },
            line: self.contour_width as usize,
            // A frame-accurate mask depends on its own frame only.
            temporal: if live { temporal } else { TemporalSettings::default() },
            motion: if live { self.motion_compensation.engine() } else { engine::Motion::Off },
            roi: self.roi,
        }
    }

    pub fn style(&self) -> overlay::Style {
        self.style_of(self.color)
    }

    /// The style of the object that a person pointed at.
    pub fn object_style(&self) -> overlay::Style {
        self.style_of(self.prompt_color)
    }

    fn style_of(&self, color: u32) -> overlay::Style {
        let [_, r, g, b] = color.to_be_bytes();
        overlay::Style { color: [r, g, b], opacity: self.opacity }
    }

    pub fn model(&self) -> ModelOptions {
        let device = match self.device {
            Device::Auto => DeviceChoice::Auto,
            Device::Cpu => DeviceChoice::Cpu,
            Device::Cuda => DeviceChoice::Cuda(self.device_id as usize),
        };
        let precision = match self.precision {
            Precision::F32 => model::Precision::F32,
            Precision::F16 => model::Precision::F16,
            Precision::Bf16 => model::Precision::Bf16,
            Precision::Int8 => model::Precision::Int8,
            Precision::Auto => model::Precision::Auto,
        };
        ModelOptions { device, precision, mask_mode: MaskMode::Sigmoid, flips: self.views }
    }

    /// Age above which a mask is not drawn, and inference time above which the worker is overloaded.
    pub fn mask_max_age(&self) -> Duration {
        match self.expire_overlay.nseconds() {
            0 => Duration::from_millis(500),
            ns => Duration::from_nanos(ns),
        }
    }
}
