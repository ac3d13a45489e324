//! What a user can set, apart from what the element is doing.

use autosam::engine;
use autosam::engine::mask::MaskSettings;
use autosam::engine::temporal::TemporalSettings;
use autosam::frame::region::Region;
use autosam::model::{self, DeviceChoice, MaskMode, ModelOptions, Views};
use autosam::overlay;
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
        name = "The first GPU where the build and the machine have one, else the CPU",
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
    #[enum_value(name = "16-bit floats with the range of 32", nick = "bf16")]
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamSyncMode")]
#[repr(i32)]
pub enum SyncMode {
    #[default]
    #[enum_value(name = "The picture never waits; the latest mask is drawn", nick = "async")]
    Async,
    #[enum_value(name = "Every picture waits for its own mask (files)", nick = "frame-accurate")]
    FrameAccurate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstAutoSamOverlayMode")]
#[repr(i32)]
pub enum OverlayMode {
    #[enum_value(name = "Nothing is drawn", nick = "none")]
    None,
    #[enum_value(name = "The area, tinted", nick = "mask")]
    Mask,
    #[enum_value(name = "The outline", nick = "contour")]
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
        name = "The picture goes on without masks; a warning message says why",
        nick = "passthrough"
    )]
    Passthrough,
    #[enum_value(name = "An error message ends the stream", nick = "fail")]
    Fail,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub model_location: Option<Arc<Path>>,
    pub device: Device,
    pub device_id: u32,
    pub precision: Precision,
    pub views: Views,
    pub sync_mode: SyncMode,
    pub threshold: f32,
    pub hysteresis: f32,
    pub smoothing: f32,
    /// In pictures.
    pub hold_off: u32,
    pub min_area: f32,
    pub overlay_mode: OverlayMode,
    /// ARGB; the alpha is not used.
    pub color: u32,
    pub opacity: f32,
    /// In pixels; 0: by the picture's size.
    pub contour_width: u32,
    /// 0: masks do not age.
    pub expire_overlay: gst::ClockTime,
    pub motion_compensation: bool,
    pub roi: Region,
    pub enabled: bool,
    pub inference_interval: u32,
    /// A second; 0: as many as there are.
    pub max_inference_rate: f64,
    pub attach_meta: bool,
    /// 0: never.
    pub stats_interval: gst::ClockTime,
    pub on_error: OnError,
    /// Of the pictures' thread, 1 to 99; 0: an ordinary one.
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
            views: Views::default(),
            sync_mode: SyncMode::default(),
            threshold: mask.threshold,
            hysteresis: live.hysteresis,
            smoothing: live.smoothing,
            hold_off: live.hold_off,
            min_area: mask.min_area,
            overlay_mode: OverlayMode::default(),
            color: u32::from_be_bytes([255, r, g, b]),
            opacity: style.opacity,
            contour_width: 0,
            expire_overlay: gst::ClockTime::from_mseconds(500),
            motion_compensation: false,
            roi: Region::default(),
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
                // Live, a region that was certain once stays: that is the temporal filter's.
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
            // A frame's own mask is its own: neither the past nor the future has a part in it.
            temporal: if live { temporal } else { TemporalSettings::default() },
            motion: live && self.motion_compensation,
            region: self.roi,
        }
    }

    pub fn style(&self) -> overlay::Style {
        let [_, r, g, b] = self.color.to_be_bytes();
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
        };
        ModelOptions { device, precision, mask_mode: MaskMode::Sigmoid, views: self.views }
    }

    /// Age from which a mask is too old to be drawn, and a frame has been with the worker for too long.
    pub fn patience(&self) -> Duration {
        match self.expire_overlay.nseconds() {
            0 => Duration::from_millis(500),
            ns => Duration::from_nanos(ns),
        }
    }
}
