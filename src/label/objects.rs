//! Masks of an object that a person points at, on single frames and from frame to frame, by the engine.

use crate::engine::mask::Mask;
use crate::engine::segmenter::ProbMap;
use crate::engine::{Engine, Event, KnownObject, PromptEvent, Settings};
use crate::frame::Frame;
use crate::frame::region::CropMode;
use crate::model::{self, ModelOptions};
use crate::pointing::Pointing;
use crate::{Error, Result};
use crossbeam_channel::{Receiver, unbounded};
use image::RgbImage;
use std::path::PathBuf;

/// Probabilities inside and outside a known mask. A mask of 1 and 0 would hardly move when a person corrects it.
const KNOWN: (u8, u8) = (230, 25);
/// Most background points that the engine keeps with an object.
const MOST_BACKGROUND: usize = 8;

/// The model and how it sees frames.
#[derive(Debug, Clone)]
pub struct ObjectOptions {
    /// Weights; the shipped model if `None`.
    pub model: Option<PathBuf>,
    pub options: ModelOptions,
    /// Part of the frame that the network sees.
    pub roi: CropMode,
}

/// An object on one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// `width × height` of the frame, 255 on the object, 0 elsewhere.
    pub mask: Vec<u8>,
    /// The smaller of the mean probability within the largest region and the IoU with the automatic mask of the same frame, 0 to 1. The
    /// probability only says how sure the model is of a shape that it continues, also if it continues a wrong one.
    pub confidence: f32,
}

/// What the model knows about an object before it is asked.
#[derive(Debug, Clone, Default)]
pub struct Before {
    /// Its mask on the same frame: `width × height` bytes, above 0 on the object.
    pub mask: Option<Vec<u8>>,
    /// Prompts that led to it.
    pub prompts: Vec<Pointing>,
}

/// Answers prompts with masks.
pub struct Objects {
    engine: Engine,
    events: Receiver<&'static str>,
}

/// The reason why the model has no mask, as the engine names it.
pub type Reason = &'static str;

impl Objects {
    /// Loads the model.
    ///
    /// # Errors
    /// If it cannot be loaded, or does not answer prompts.
    pub fn open(options: &ObjectOptions) -> Result<Self> {
        let (send, events) = unbounded();
        let handler = move |event| {
            if let Event::Prompted(PromptEvent::Ended { reason, .. } | PromptEvent::Refused { reason }) =
                event
            {
                // Fails only if nobody waits for it any more.
                let _ = send.send(reason);
            }
        };
        let ObjectOptions { model: location, options, roi } = options.clone();
        let settings = Settings { roi, ..Settings::default() };
        let open = move || model::open(location.as_deref(), &options);
        let engine = Engine::start(Box::new(open), settings, Box::new(handler))?;
        Ok(Self { engine, events })
    }

    /// Asks for the object of `prompt` on a frame, given what is known before. From then on the object is followed by
    /// [`Self::follow`]. Without a prompt the known mask is taken as it is.
    ///
    /// # Errors
    /// The engine's errors. `Ok(Err)`: the reason why there is no mask.
    pub fn ask(
        &mut self,
        rgb: &RgbImage,
        pixel_aspect: (u32, u32),
        before: &Before,
        prompt: Option<Pointing>,
    ) -> Result<std::result::Result<Found, Reason>> {
        let control = self.engine.control();
        control.flush();
        let (width, height) = (rgb.width() as usize, rgb.height() as usize);
        if let Some(mask) = &before.mask {
            let data = mask.iter().map(|v| if *v > 0 { KNOWN.0 } else { KNOWN.1 }).collect();
            let mask = ProbMap { width, height, data };
            control.follow_object(KnownObject { mask, background: background(&before.prompts) })?;
        }
        if let Some(prompt) = prompt.and_then(Pointing::prompt) {
            control.prompt(prompt)?;
        }
        self.infer(rgb, pixel_aspect)
    }

    /// The object of the last call on the frame after its own.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn follow(
        &mut self,
        rgb: &RgbImage,
        pixel_aspect: (u32, u32),
    ) -> Result<std::result::Result<Found, Reason>> {
        self.infer(rgb, pixel_aspect)
    }

    fn infer(
        &mut self,
        rgb: &RgbImage,
        pixel_aspect: (u32, u32),
    ) -> Result<std::result::Result<Found, Reason>> {
        while self.events.try_recv().is_ok() {}
        let frame = Frame::rgb_image(rgb).with_pixel_aspect(pixel_aspect);
        let automatic = self.engine.segment(&frame, None)?;
        let Some(object) = self.engine.current_object(&frame) else {
            // The object of an earlier call ends with the flush, which says nothing about this one.
            let reason = self.events.try_iter().filter(|reason| *reason != "flush").last();
            return Ok(Err(reason.unwrap_or("lost")));
        };
        let mask = &object.detection.mask;
        let found = mask.enlarge(rgb.width() as usize, rgb.height() as usize);
        let Some(largest) = mask.regions.first().filter(|_| found.iter().any(|v| *v > 0)) else {
            return Ok(Err("lost"));
        };
        let confidence = largest.confidence.min(agreement(mask, &automatic.mask));
        Ok(Ok(Found { mask: found, confidence }))
    }
}

/// IoU of the object's mask with the parts of the automatic mask that touch it; 0 if none does.
fn agreement(object: &Mask, automatic: &Mask) -> f32 {
    if object.map.data.len() != automatic.map.data.len() {
        return 0.0;
    }
    let mut same = automatic.map.clone();
    same.keep(automatic.level, |at| object.map.data[at] >= object.level);
    let pairs = object.map.data.iter().zip(&same.data);
    let (both, any) = pairs.fold((0u32, 0u32), |(both, any), (a, b)| {
        let (a, b) = (*a >= object.level, *b >= automatic.level);
        (both + u32::from(a && b), any + u32::from(a || b))
    });
    both as f32 / any.max(1) as f32
}

/// The latest background points among `prompts`.
fn background(prompts: &[Pointing]) -> Vec<(f32, f32)> {
    let points = prompts.iter().rev().filter_map(|prompt| match prompt {
        Pointing::Point { x, y, foreground: false } => Some((*x as f32, *y as f32)),
        _ => None,
    });
    points.take(MOST_BACKGROUND).collect()
}

/// The engine's reason as a sentence for a person, who pointed or whose mask was propagated to `frame`.
pub fn explain(reason: Reason, frame: u64) -> Result<String> {
    Ok(match reason {
        "nothing-found" => {
            "nothing was found there: click deeper inside the polyp, or drag a box around it".into()
        }
        "no-object" => "click the polyp first; a background point only corrects a mask".into(),
        "outside-region" => "this place is outside the endoscope's image (--roi)".into(),
        "lost" => format!("the polyp was lost on frame {frame}: click it there to go on"),
        "left-frame" => format!("the polyp has left the view on frame {frame}"),
        "scene-change" => format!("the scene changes on frame {frame}"),
        "unsupported" => return Err(Error::invalid("this model takes no prompts; choose another --model")),
        other => format!("no mask on frame {frame}: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::mask::MaskSettings;

    fn mask(rows: &[&str]) -> Mask {
        let data = rows.iter().flat_map(|r| r.bytes().map(|b| if b == b'#' { 240 } else { 0 })).collect();
        Mask::new(ProbMap { width: rows[0].len(), height: rows.len(), data }, &MaskSettings::default())
    }

    #[test]
    fn only_the_part_of_the_automatic_mask_at_the_object_counts() {
        let object = mask(&["##......", "##......"]);
        assert_eq!(agreement(&object, &object), 1.0);
        assert_eq!(agreement(&object, &mask(&["####..##", "####..##"])), 0.5);
        assert_eq!(agreement(&object, &mask(&["......##", "......##"])), 0.0);
        assert_eq!(agreement(&object, &mask(&["........", "........"])), 0.0);
    }

    #[test]
    fn the_latest_background_points_delimit_an_object() {
        let point = |i: u32, foreground| Pointing::Point { x: f64::from(i) / 100.0, y: 0.5, foreground };
        let prompts: Vec<Pointing> = (0..30).map(|i| point(i, i % 2 == 0)).collect();
        let kept = background(&prompts);
        assert_eq!((kept.len(), kept[0], kept[7]), (MOST_BACKGROUND, (0.29, 0.5), (0.15, 0.5)));
    }

    #[test]
    fn reasons_name_the_frame_or_the_remedy() {
        assert!(explain("lost", 7).unwrap().contains("frame 7"));
        assert!(explain("nothing-found", 7).unwrap().contains("click"));
        assert!(explain("something-new", 7).unwrap().contains("something-new"));
        assert!(explain("unsupported", 7).unwrap_err().to_string().contains("--model"));
    }
}
