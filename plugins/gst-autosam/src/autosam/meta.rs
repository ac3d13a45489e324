//! Results on the buffer itself.

use autosam::engine::{Detection, Shown};
use std::sync::Arc;

/// The custom meta that holds the mask.
pub const MASK_META: &str = "GstAutoSamMaskMeta";

pub fn register() {
    if !gst::meta::CustomMeta::is_registered(MASK_META) {
        gst::meta::CustomMeta::register(MASK_META, &[]);
    }
}

/// Attaches masks; keeps the last one's buffer for the pictures that share it.
#[derive(Default)]
pub struct Attacher {
    last: Option<(Arc<Detection>, gst::Buffer)>,
}

impl Attacher {
    /// The regions of `shown` as regions of interest of a `width × height` picture, and its mask.
    pub fn attach(&mut self, buffer: &mut gst::BufferRef, shown: &Shown, width: usize, height: usize) {
        for (i, region) in shown.detection.mask.regions.iter().enumerate() {
            let rect = pixels(region, shown.shift, width, height);
            let mut meta = gst_video::VideoRegionOfInterestMeta::add(buffer, "polyp", rect);
            meta.set_id(i32::try_from(i).unwrap_or(i32::MAX));
            meta.add_param(
                gst::Structure::builder("detection")
                    .field("label", "polyp")
                    .field("confidence", f64::from(region.confidence))
                    .field("area", f64::from(region.area))
                    .build(),
            );
        }
        let mask = &shown.detection.mask;
        let pixels = match &self.last {
            Some((detection, pixels)) if Arc::ptr_eq(detection, &shown.detection) => pixels.clone(),
            _ => {
                let bytes: Vec<u8> =
                    mask.map.data.iter().map(|p| if *p >= mask.cut { 255 } else { 0 }).collect();
                let pixels = gst::Buffer::from_slice(bytes);
                self.last = Some((shown.detection.clone(), pixels.clone()));
                pixels
            }
        };
        if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, MASK_META) {
            let s = meta.mut_structure();
            s.set("mask", pixels);
            s.set("width", mask.map.width as i32);
            s.set("height", mask.map.height as i32);
            s.set("x-shift", shown.shift.0 as i32);
            s.set("y-shift", shown.shift.1 as i32);
            s.set("age", shown.detection.sampled.elapsed().as_nanos() as u64);
        }
    }
}

/// A region's box in pixels as x, y, width, height, moved by `shift` and within the picture.
pub fn pixels(
    region: &autosam::engine::mask::Region,
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
