//! Metadata on buffers: regions and the mask.

use autosam_engine::{Detection, Shown};
use std::sync::Arc;

/// The custom meta that holds the mask.
pub const MASK_META: &str = "GstAutoSamMaskMeta";
/// The custom meta that holds the mask of the object that a person pointed at.
pub const PROMPT_META: &str = "GstAutoSamPromptMeta";

pub fn register() {
    for name in [MASK_META, PROMPT_META] {
        if !gst::meta::CustomMeta::is_registered(name) {
            gst::meta::CustomMeta::register(name, &[]);
        }
    }
}

/// Attaches metadata. It keeps the buffers of the last automatic and the last prompted mask for the frames that share them.
#[derive(Default)]
pub struct Attacher {
    last: [Option<(Arc<Detection>, gst::Buffer)>; 2],
}

impl Attacher {
    /// Attaches the regions of `shown`, as regions of interest of a `width × height` frame, and its mask.
    pub fn attach(&mut self, buffer: &mut gst::BufferRef, shown: &Shown, width: usize, height: usize) {
        let prompt = shown.detection.prompt;
        let label = if prompt.is_some() { "prompt" } else { "polyp" };
        for (i, region) in shown.detection.mask.regions.iter().enumerate() {
            let rect = pixels(region, shown.shift, width, height);
            let mut meta = gst_video::VideoRegionOfInterestMeta::add(buffer, label, rect);
            let id = prompt.map_or(i, |id| id as usize);
            meta.set_id(i32::try_from(id).unwrap_or(i32::MAX));
            meta.add_param(
                gst::Structure::builder("detection")
                    .field("label", label)
                    .field("confidence", f64::from(region.confidence))
                    .field("area", f64::from(region.area))
                    .build(),
            );
        }
        let mask = &shown.detection.mask;
        let last = &mut self.last[usize::from(prompt.is_some())];
        let pixels = match last {
            Some((detection, pixels)) if Arc::ptr_eq(detection, &shown.detection) => pixels.clone(),
            _ => {
                let bytes: Vec<u8> =
                    mask.map.data.iter().map(|p| if *p >= mask.level { 255 } else { 0 }).collect();
                let pixels = gst::Buffer::from_slice(bytes);
                *last = Some((shown.detection.clone(), pixels.clone()));
                pixels
            }
        };
        let name = if prompt.is_some() { PROMPT_META } else { MASK_META };
        if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, name) {
            let s = meta.mut_structure();
            if let Some(id) = prompt {
                s.set("id", id);
            }
            s.set("mask", pixels);
            s.set("width", mask.map.width as i32);
            s.set("height", mask.map.height as i32);
            s.set("x-shift", shown.shift.0 as i32);
            s.set("y-shift", shown.shift.1 as i32);
            s.set("age", shown.detection.resized_at.elapsed().as_nanos() as u64);
        }
    }
}

/// A region's box in pixels as x, y, width, height, moved by `shift` and clipped to the frame.
pub fn pixels(
    region: &autosam_frame::mask::Region,
    shift: (isize, isize),
    width: usize,
    height: usize,
) -> (u32, u32, u32, u32) {
    let side = |low: f32, high: f32, by: isize, side: usize| {
        let at = |v: f32| (v as isize + by).clamp(0, side as isize) as u32;
        let (low, high) = (at((low * side as f32).floor()), at((high * side as f32).ceil()));
        (low, high - low)
    };
    let (x, w) = side(region.left, region.right, shift.0, width);
    let (y, h) = side(region.top, region.bottom, shift.1, height);
    (x, y, w, h)
}
