//! Fits the minimum predicted overlap of a mask ([`Presence`]): the lowest value at which few enough polyp-free frames
//! keep an overlay. It is fitted on frames that the model was not trained on.

use crate::data::Dataset;
use autosam_frame::mask::MaskSettings;
use autosam_frame::region::CropMode;
use autosam_frame::resize::Resizer;
use autosam_frame::{Error, Result};
use autosam_model::weights::Checkpoint;
use autosam_model::{AutoSam, ModelConfig, Presence};
use autosam_ops as ops;
use candle_core::Device;

/// Reduction of the logits per unit of overlap below the minimum: a mask of logit 4 vanishes 0.2 below it.
const SLOPE: f32 = 20.0;

/// Data of one frame for the fit.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    /// The predicted overlap.
    overlap: f32,
    /// The largest logit.
    peak: f32,
    polyp: bool,
}

impl Evidence {
    /// The largest `least` at which the frame keeps an overlay, which needs a logit of `needed`; `None` if it has no
    /// overlay in any case.
    fn most(&self, needed: f32) -> Option<f32> {
        (self.peak > needed).then(|| self.overlap + (self.peak - needed) / SLOPE)
    }
}

/// Result of [`fit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fitted {
    /// `None` if few enough polyp-free frames have an overlay without it.
    pub presence: Option<Presence>,
    /// Number of polyp-free frames in total, with an overlay before, and after.
    pub polyp_free: [usize; 3],
    /// Number of frames with a polyp in total, with an overlay before, and after.
    pub polyps: [usize; 3],
}

/// Fits a model's presence and stores it in its `checkpoint`: at most the fraction `alarms` of the sets' polyp-free
/// frames keeps an overlay. `tick` is called for every frame.
///
/// # Errors
/// If the file contains no model, frames cannot be read, or no frame is polyp-free.
pub fn fit(
    checkpoint: &mut Checkpoint,
    device: &Device,
    sets: &[Dataset],
    roi: CropMode,
    alarms: f64,
    mut tick: impl FnMut(),
) -> Result<Fitted> {
    let mut config = ModelConfig::of(checkpoint)?;
    config.presence = None;
    config.note(checkpoint)?;
    let model = AutoSam::from_checkpoint(checkpoint, device)?;
    let mut resizer = Resizer::new(model.input_size());
    let mut frames = Vec::new();
    for item in sets.iter().flat_map(|set| &set.items) {
        let (sample, mask) = item.model_input(roi, &mut resizer)?;
        let x = model.preprocess(&[sample])?;
        let (embeddings, prompt) = (model.embed(&x)?, model.dense_prompt(&x, false)?);
        let (_, overlap) = model.decode_with_overlap(&embeddings, &prompt)?;
        let size = model.image_size();
        let logits = ops::resize_bilinear(&model.decode(&embeddings, &prompt)?, size, size, false)?;
        frames.push(Evidence {
            overlap: overlap.flatten_all()?.to_vec1::<f32>()?[0],
            peak: logits.flatten_all()?.max(0)?.to_scalar::<f32>()?,
            polyp: mask.iter().any(|t| *t > 127),
        });
        tick();
    }
    if frames.iter().all(|f| f.polyp) {
        return Err(Error::invalid("no polyp-free frame to fit presence on: add a set that has some"));
    }
    let fitted = lowest(&frames, alarms);
    config.presence = fitted.presence;
    config.note(checkpoint)?;
    Ok(fitted)
}

/// The lowest [`Presence::least`] at which at most the fraction `alarms` of the polyp-free frames keeps an overlay.
fn lowest(frames: &[Evidence], alarms: f64) -> Fitted {
    let settings = MaskSettings::default();
    let certain = f64::from(settings.threshold + settings.hysteresis);
    let needed = (certain / (1.0 - certain)).ln() as f32;
    let of = |polyp: bool| frames.iter().filter(move |f| f.polyp == polyp);
    let mut kept: Vec<f32> = of(false).filter_map(|f| f.most(needed)).collect();
    kept.sort_by(|a, b| b.total_cmp(a));
    let allowed = (alarms * of(false).count() as f64).floor() as usize;
    // Slightly above the value of the first frame that must lose its overlay, because of rounding.
    let presence = kept.get(allowed).map(|most| Presence { least: most + 1e-4, slope: SLOPE });
    let counts = |polyp: bool| {
        let after = |most: f32| presence.is_none_or(|p| p.least <= most);
        let kept = || of(polyp).filter_map(|f| f.most(needed));
        [of(polyp).count(), kept().count(), kept().filter(|most| after(*most)).count()]
    };
    Fitted { presence, polyp_free: counts(false), polyps: counts(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(overlap: f32, peak: f32, polyp: bool) -> Evidence {
        Evidence { overlap, peak, polyp }
    }

    #[test]
    fn the_allowed_fraction_of_polyp_free_frames_keeps_an_overlay() {
        let mut frames: Vec<_> = (0..10).map(|i| frame(i as f32 / 10.0, 4.0, false)).collect();
        // No overlay in any case, whatever overlap is predicted.
        frames.extend([frame(0.95, -3.0, false), frame(0.99, -3.0, false)]);
        frames.extend([frame(0.97, 6.0, true), frame(0.3, 6.0, true), frame(0.9, -1.0, true)]);
        let found = lowest(&frames, 2.0 / 12.0);
        assert_eq!((found.polyp_free, found.polyps), ([12, 10, 2], [3, 2, 1]));
        let least = found.presence.unwrap().least;
        assert!((0.7..0.95).contains(&least), "{least}");
        assert_eq!(lowest(&frames, 0.9).presence, None, "few enough without it");
        let none = lowest(&frames, 0.0);
        assert_eq!((none.polyp_free[2], none.polyps[2]), (0, 1));
    }
}
