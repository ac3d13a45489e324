//! The mask drawn on a frame, as the element reports it in its custom meta.

use image::GrayImage;

/// Name of the meta.
const MASK_META: &str = "GstAutoSamMaskMeta";

/// A mask of `width × height` cells, stretched over the frame and moved by `shift` of its pixels.
pub struct ShownMask {
    pub width: usize,
    pub height: usize,
    pub shift: (i64, i64),
    /// 0 or 255.
    pub cells: Vec<u8>,
}

impl ShownMask {
    /// Reads the mask of `buffer`; `None` if nothing is drawn on it.
    pub fn of(buffer: &gst::BufferRef) -> Option<Self> {
        let meta = gst::meta::CustomMeta::from_buffer(buffer, MASK_META).ok()?;
        let s = meta.structure();
        let number = |name| s.get::<i32>(name).ok();
        let (width, height) = (number("width")?, number("height")?);
        let (width, height) = (usize::try_from(width).ok()?, usize::try_from(height).ok()?);
        let shift = (number("x-shift").unwrap_or(0).into(), number("y-shift").unwrap_or(0).into());
        let mask = s.get::<gst::Buffer>("mask").ok()?;
        let mask = mask.map_readable().ok()?;
        (mask.len() == width * height).then(|| Self { width, height, shift, cells: mask.to_vec() })
    }

    fn covers(&self, x: u32, y: u32, frame: (u32, u32)) -> bool {
        let cell = |at: u32, shift: i64, side: u32, count: usize| {
            let at = i64::from(at) - shift;
            (0..i64::from(side)).contains(&at).then(|| at as usize * count / side as usize)
        };
        let (x, y) =
            (cell(x, self.shift.0, frame.0, self.width), cell(y, self.shift.1, frame.1, self.height));
        matches!((x, y), (Some(x), Some(y)) if self.cells[y * self.width + x] > 0)
    }
}

/// Only every `STEP`th pixel in both directions is compared, because this runs on the streaming thread.
const STEP: usize = 4;

/// Intersection over union of the shown mask and `truth`, which has the frame's size; `None` if `truth` has no polyp.
pub fn iou(shown: Option<&ShownMask>, truth: &GrayImage) -> Option<f64> {
    let (width, height) = truth.dimensions();
    let (mut both, mut any, mut polyp) = (0u64, 0u64, false);
    for (y, x) in (0..height).step_by(STEP).flat_map(|y| (0..width).step_by(STEP).map(move |x| (y, x))) {
        let wanted = truth.get_pixel(x, y).0[0] > 127;
        let drawn = shown.is_some_and(|s| s.covers(x, y, (width, height)));
        polyp |= wanted;
        both += u64::from(wanted && drawn);
        any += u64::from(wanted || drawn);
    }
    polyp.then(|| both as f64 / any as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_mask_is_compared_at_its_new_position() {
        // A mask of 8 x 4 cells of 16 pixels, the left half set; the truth is the left half 32 pixels farther right.
        let cells = (0..32).map(|i| if i % 8 < 4 { 255 } else { 0 }).collect();
        let mut shown = ShownMask { width: 8, height: 4, shift: (32, 0), cells };
        let truth =
            GrayImage::from_fn(128, 64, |x, _| image::Luma([if (32..96).contains(&x) { 255 } else { 0 }]));
        assert_eq!(iou(Some(&shown), &truth), Some(1.0));
        shown.shift = (0, 0);
        assert_eq!(iou(Some(&shown), &truth), Some(1.0 / 3.0));
        shown.shift = (500, -500);
        assert_eq!(iou(Some(&shown), &truth), Some(0.0));
        assert_eq!(iou(None, &truth), Some(0.0));
        assert_eq!(iou(Some(&shown), &GrayImage::new(128, 64)), None);
    }
}
