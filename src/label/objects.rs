//! Masks of an object that a person points at, on single frames and from frame to frame, by the engine.

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
    /// Mean probability within the largest region, 0 to 1.
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
        self.engine.segment(&frame, None)?;
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
        Ok(Ok(Found { mask: found, confidence: largest.confidence }))
    }
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
