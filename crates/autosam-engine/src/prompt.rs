//! Prompts: a person points at an object, and a promptable model segments it. The mask follows the object until it is
//! cleared or lost.
//!
//! One object is followed at a time. [`super::Control::prompt`] only queues the prompt. The worker passes it to the
//! model with the next frame that is inferred. With each later frame it prompts the model again with the object's
//! previous mask, moved along with the tissue, and a point inside that mask. So the mask is as old as the automatic
//! one, and expires and moves like it.

use super::follow::Follower;
use super::shared::{Job, Pointed, Shared};
use super::{Detection, Event, Settings};
use crate::overlay::Overlay;
use crate::segmenter::{ObjectPoint, ObjectPrompt};
use autosam_frame::map::ProbMap;
use autosam_frame::mask::{Mask, MaskSettings};
use autosam_frame::motion::{Extent, Scene};
use autosam_frame::{Luma, Rect};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Maximum number of prompts that wait for the worker; further ones are refused.
const MOST_WAITING: usize = 16;
/// Maximum number of background points kept with an object; older ones are discarded.
const MOST_BACKGROUND: usize = 8;
/// Threshold for the object's pixels, as in SAM.
const MASK: MaskSettings = MaskSettings { threshold: 0.5, min_area: 0.0, hysteresis: 0.0 };
/// Minimum IoU of an object's mask with its previous mask after motion compensation. Below, it is considered another
/// object.
const LEAST_AGREEMENT: f32 = 0.3;
/// Minimum IoU of an object's mask and the automatic mask to count as the same object.
const SAME: f32 = 0.6;
/// Maximum distance between a point and the object it refers to, in pixels of the model's input.
const REACH: f32 = 3.0;
/// Margin around the object's box, in fractions of its sides, within which a point belongs to the object.
const MARGIN: f32 = 0.25;

/// A prompt for an object. Coordinates are fractions (0 to 1) of the frame's width and height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prompt {
    /// A point on an object (`foreground`) or on the background around the current one. A foreground point on another
    /// object replaces the current one. Points that arrive before the first mask belong to one object.
    Point { x: f32, y: f32, foreground: bool },
    /// A box around an object, which replaces the current one.
    Box { left: f32, top: f32, right: f32, bottom: f32 },
}

impl Prompt {
    /// A position inside it.
    fn place(&self) -> (f32, f32) {
        match *self {
            Self::Point { x, y, .. } => (x, y),
            Self::Box { left, top, right, bottom } => ((left + right) / 2.0, (top + bottom) / 2.0),
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        let inside = |v: f32| (0.0..=1.0).contains(&v);
        match *self {
            Self::Point { x, y, .. } => inside(x) && inside(y),
            Self::Box { left, top, right, bottom } => {
                [left, top, right, bottom].into_iter().all(inside) && left < right && top < bottom
            }
        }
    }
}

/// An object whose mask on a frame is known, for example from an earlier session.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KnownObject {
    /// Its mask on the whole frame, at any size: probabilities, at least 128 inside.
    pub mask: ProbMap,
    /// Points on the background that delimit it, in fractions of the frame (0 to 1).
    pub background: Vec<(f32, f32)>,
}

/// Outcome of prompts.
#[derive(Debug, Clone)]
pub enum PromptEvent {
    /// An object has its first mask; [`Detection::prompt`] is its id.
    Started(Arc<Detection>),
    /// An object is no longer followed.
    Ended { id: u32, reason: &'static str },
    /// A prompt had no effect.
    Refused { reason: &'static str },
}

/// What waits for the worker.
pub(super) enum Asked {
    Prompt(Prompt),
    Known(KnownObject),
}

/// A prompt on its way to the worker.
pub(super) struct Queued {
    pub asked: Asked,
    pub generation: u64,
    /// See [`Shared::prompt_epoch`].
    pub epoch: u64,
}

pub(super) fn queue() -> (Sender<Queued>, Receiver<Queued>) {
    bounded(MOST_WAITING)
}

/// The object that is followed.
struct Object {
    id: u32,
    generation: u64,
    epoch: u64,
    /// Points that the model has not seen yet.
    points: Vec<Place>,
    bounds: Option<[f32; 4]>,
    /// Earlier points on the background, moved along with the tissue.
    background: Vec<(f32, f32)>,
    /// Its mask on the current frame before the first inference, of a [`KnownObject`].
    known: Option<ProbMap>,
    latest: Option<Arc<Detection>>,
    follower: Follower,
    /// The expected mask in the model's current input, if a previous mask exists.
    expected: Option<ProbMap>,
}

/// A point in fractions of the frame.
#[derive(Clone, Copy)]
struct Place {
    x: f32,
    y: f32,
    foreground: bool,
}

/// Maps between coordinates of the frame and of the model's input.
struct View {
    area: Rect,
    frame: (usize, usize),
    input: (usize, usize),
}

impl View {
    fn of(job: &Job, input: (usize, usize)) -> Self {
        Self { area: job.area, frame: job.size, input }
    }

    /// Converts to pixels of the input, whose centres are whole numbers.
    fn to_input(&self, (x, y): (f32, f32)) -> (f32, f32) {
        let side = |v: f32, frame: usize, start: usize, length: usize, input: usize| {
            (v * frame as f32 - start as f32) / length.max(1) as f32 * input as f32 - 0.5
        };
        (
            side(x, self.frame.0, self.area.left, self.area.width, self.input.0),
            side(y, self.frame.1, self.area.top, self.area.height, self.input.1),
        )
    }

    fn holds(&self, place: (f32, f32)) -> bool {
        let (x, y) = self.to_input(place);
        (-0.5..=self.input.0 as f32).contains(&x) && (-0.5..=self.input.1 as f32).contains(&y)
    }

    /// Crops `map` of the whole frame, moved by `shift` (fractions of its sides), to the input's area and size.
    fn crop(&self, map: &ProbMap, shift: (f32, f32)) -> ProbMap {
        let axis = |input: usize, start: usize, length: usize, frame: usize, map: usize, by: f32| {
            let at = move |i: usize| {
                let part =
                    (start as f32 + (i as f32 + 0.5) / input as f32 * length as f32) / frame.max(1) as f32;
                let from = ((part - by) * map as f32).floor();
                (from >= 0.0 && from < map as f32).then_some(from as usize)
            };
            (0..input).map(at).collect::<Vec<_>>()
        };
        let columns = axis(self.input.0, self.area.left, self.area.width, self.frame.0, map.width, shift.0);
        let rows = axis(self.input.1, self.area.top, self.area.height, self.frame.1, map.height, shift.1);
        let value = |x: Option<usize>, y: Option<usize>| match (x, y) {
            (Some(x), Some(y)) => map.data[y * map.width + x],
            _ => 0,
        };
        let data = rows.iter().flat_map(|y| columns.iter().map(|x| value(*x, *y))).collect();
        ProbMap { width: self.input.0, height: self.input.1, data }
    }
}

/// IoU of two masks of the same size; 1 if both are empty.
fn agreement(a: &ProbMap, b: &ProbMap) -> f32 {
    let level = MASK.level();
    let pairs = || a.data.iter().zip(&b.data).map(|(a, b)| (*a >= level, *b >= level));
    let (both, any) = (pairs().filter(|p| p.0 && p.1).count(), pairs().filter(|p| p.0 || p.1).count());
    if any == 0 { 1.0 } else { both as f32 / any as f32 }
}

impl Object {
    fn new(id: u32, queued: &Queued) -> Self {
        Self {
            id,
            generation: queued.generation,
            epoch: queued.epoch,
            points: Vec::new(),
            bounds: None,
            background: Vec::new(),
            known: None,
            latest: None,
            follower: Follower::default(),
            expected: None,
        }
    }

    /// Whether a point belongs to this object rather than to another one.
    fn is_near(&self, x: f32, y: f32) -> bool {
        let Some(latest) = &self.latest else { return true };
        let Extent { left, top, right, bottom } = Extent::of(&latest.mask.regions);
        let (across, down) = (MARGIN * (right - left), MARGIN * (bottom - top));
        (left - across..=right + across).contains(&x) && (top - down..=bottom + down).contains(&y)
    }

    /// The prompt for the model about this object in frame number `index`, whose small copy is `luma`.
    ///
    /// # Errors
    /// The reason if the object can no longer be followed.
    fn ask(
        &mut self,
        luma: &Luma,
        index: u64,
        view: &View,
    ) -> std::result::Result<ObjectPrompt, &'static str> {
        let mut prompt = ObjectPrompt::default();
        self.expected = None;
        if let Some(expected) = self.expect(luma, index, view)? {
            let (x, y) = self.inner(&expected, view).ok_or("left-frame")?;
            prompt.points.push(ObjectPoint { x: x as f32, y: y as f32, foreground: true });
            prompt.mask = Some(expected.clone());
            self.expected = Some(expected);
        }
        let background = self.background.iter().map(|(x, y)| Place { x: *x, y: *y, foreground: false });
        prompt.points.extend(background.chain(self.points.iter().copied()).map(|p| {
            let (x, y) = view.to_input((p.x, p.y));
            ObjectPoint { x, y, foreground: p.foreground }
        }));
        prompt.bounds = self.bounds.map(|[left, top, right, bottom]| {
            let ((x0, y0), (x1, y1)) = (view.to_input((left, top)), view.to_input((right, bottom)));
            let within = |v: f32, side: usize| v.clamp(0.0, side.saturating_sub(1) as f32);
            [
                within(x0, view.input.0),
                within(y0, view.input.1),
                within(x1, view.input.0),
                within(y1, view.input.1),
            ]
        });
        Ok(prompt)
    }

    /// The object's mask in the model's input as expected from its previous or known mask, if any. Moves the background points along.
    ///
    /// # Errors
    /// The reason if the object can no longer be followed.
    fn expect(
        &mut self,
        luma: &Luma,
        index: u64,
        view: &View,
    ) -> std::result::Result<Option<ProbMap>, &'static str> {
        if let Some(known) = &self.known {
            return Ok(Some(view.crop(known, (0.0, 0.0))));
        }
        let Some(latest) = &self.latest else { return Ok(None) };
        let scene = latest.scene.as_ref().ok_or("lost")?;
        let extent = Extent::of(&latest.mask.regions);
        let shift = match self.follower.shift(scene, latest.index, extent, luma, index) {
            Some(shift) => shift,
            // The tissue was not found, but the scene is the same. The object may still be near its last position;
            // [`Self::jumped`] checks that with the model's mask.
            None if scene.continues(luma) => (0.0, 0.0),
            None => return Err("scene-change"),
        };
        for (x, y) in &mut self.background {
            (*x, *y) = (*x + shift.0, *y + shift.1);
        }
        self.background.retain(|place| view.holds(*place));
        Ok(Some(view.crop(&latest.mask.map, shift)))
    }

    /// A point deep inside the object and far from background points.
    fn inner(&self, expected: &ProbMap, view: &View) -> Option<(usize, usize)> {
        let mut inside = expected.clone();
        let fresh = self.points.iter().filter(|p| !p.foreground).map(|p| (p.x, p.y));
        for place in self.background.iter().copied().chain(fresh) {
            let (x, y) = view.to_input(place);
            let (x, y) = (x.round().max(0.0) as usize, y.round().max(0.0) as usize);
            if let Some(p) = inside.data.get_mut(y * inside.width + x).filter(|_| x < expected.width) {
                *p = 0;
            }
        }
        inside.deepest(MASK.level())
    }

    /// Keeps the components of `map` (in the model's input) that belong to the object.
    fn parts(&self, mut map: ProbMap, view: &View) -> ProbMap {
        let level = MASK.level();
        let points: Vec<_> =
            self.points.iter().filter(|p| p.foreground).map(|p| view.to_input((p.x, p.y))).collect();
        let bounds = self
            .bounds
            .map(|[left, top, right, bottom]| (view.to_input((left, top)), view.to_input((right, bottom))));
        let (width, expected) = (map.width, self.expected.as_ref());
        map.keep(level, |at| {
            let (x, y) = ((at % width) as f32, (at / width) as f32);
            expected.is_some_and(|e| e.data[at] >= level)
                || points.iter().any(|p| (p.0 - x).hypot(p.1 - y) <= REACH)
                || bounds
                    .is_some_and(|(from, to)| (from.0..=to.0).contains(&x) && (from.1..=to.1).contains(&y))
        });
        map
    }

    /// Averages `map` with the part of the `automatic` map that shows the same object, if any, because a mask that is
    /// prompted only with its predecessor drifts. An object with background points is left unchanged, since the person
    /// has delimited it.
    fn confirm(&self, map: &mut ProbMap, automatic: &ProbMap) {
        let corrected = !self.background.is_empty() || self.points.iter().any(|p| !p.foreground);
        if corrected || automatic.data.len() != map.data.len() {
            return;
        }
        let level = MASK.level();
        let mut same = automatic.clone();
        same.keep(level, |at| map.data[at] >= level);
        if agreement(map, &same) >= SAME {
            for (own, other) in map.data.iter_mut().zip(&same.data) {
                *own = own.midpoint(*other);
            }
        }
    }

    /// Whether `map` is far from the object's previous mask although there was no new prompt.
    fn jumped(&self, map: &ProbMap) -> bool {
        let Some(expected) = self.expected.as_ref().filter(|_| self.points.is_empty()) else { return false };
        agreement(expected, map) < LEAST_AGREEMENT
    }

    /// Clears the prompts after the model has seen them.
    fn seen(&mut self) {
        self.bounds = None;
        self.background.extend(self.points.drain(..).filter(|p| !p.foreground).map(|p| (p.x, p.y)));
        let older = self.background.len().saturating_sub(MOST_BACKGROUND);
        self.background.drain(..older);
    }
}

/// Follows the object on the worker thread.
pub(super) struct Tracker {
    prompts: Receiver<Queued>,
    object: Option<Object>,
    last_id: u32,
    events: Vec<PromptEvent>,
}

impl Tracker {
    pub fn new(prompts: Receiver<Queued>) -> Self {
        Self { prompts, object: None, last_id: 0, events: Vec::new() }
    }

    /// The prompt for the model in `job`, whose input has the size `input`; `None` if no object is followed.
    pub fn ask(
        &mut self,
        job: &Job,
        shared: &Shared,
        input: (usize, usize),
        takes_prompts: bool,
    ) -> Option<ObjectPrompt> {
        if self.object.is_none() && self.prompts.is_empty() {
            return None;
        }
        // A frame submitted before the first prompt has none.
        let luma = job.luma.as_ref()?;
        let view = View::of(job, input);
        let epoch = shared.prompt_epoch.load(Ordering::Acquire);
        match &self.object {
            Some(object) if object.generation != job.generation => self.end("flush"),
            Some(object) if object.epoch != epoch => self.end("cleared"),
            Some(_) if !takes_prompts => self.end("unsupported"),
            _ => {}
        }
        while let Ok(queued) = self.prompts.try_recv() {
            if queued.generation != job.generation {
                self.refuse("flush");
            } else if queued.epoch == epoch {
                self.take(&queued, &view, takes_prompts);
            }
        }
        shared.prompting.store(self.object.is_some(), Ordering::Release);
        match self.object.as_mut()?.ask(luma, job.index, &view) {
            Ok(prompt) => Some(prompt),
            Err(reason) => {
                self.end(reason);
                None
            }
        }
    }

    fn take(&mut self, queued: &Queued, view: &View, takes_prompts: bool) {
        if !takes_prompts {
            return self.refuse("unsupported");
        }
        let prompt = match &queued.asked {
            Asked::Prompt(prompt) => *prompt,
            Asked::Known(known) => {
                let object = self.begin(queued);
                (object.known, object.background) = (Some(known.mask.clone()), known.background.clone());
                return;
            }
        };
        if !view.holds(prompt.place()) {
            return self.refuse("outside-region");
        }
        match prompt {
            Prompt::Point { x, y, foreground } => {
                let mine = self.object.as_ref().is_some_and(|o| !foreground || o.is_near(x, y));
                if !mine && !foreground {
                    return self.refuse("no-object");
                }
                let object = if mine { self.object.as_mut() } else { Some(self.begin(queued)) };
                if let Some(object) = object {
                    object.points.push(Place { x, y, foreground });
                }
            }
            Prompt::Box { left, top, right, bottom } => {
                self.begin(queued).bounds = Some([left, top, right, bottom]);
            }
        }
    }

    fn begin(&mut self, queued: &Queued) -> &mut Object {
        self.end("replaced");
        self.last_id += 1;
        self.object.insert(Object::new(self.last_id, queued))
    }

    /// Processes the model's map of the object in `job`, with the `automatic` map of the same frame.
    pub fn settle(&mut self, job: &Job, map: ProbMap, automatic: &ProbMap, settings: &Settings) {
        let Some(object) = &mut self.object else { return };
        let view = View::of(job, (map.width, map.height));
        let mut map = object.parts(map, &view);
        match &object.expected {
            // A known mask without a new prompt is taken as it is.
            Some(known) if object.known.is_some() && object.points.is_empty() => map = known.clone(),
            _ => object.confirm(&mut map, automatic),
        }
        let jumped = object.jumped(&map);
        let (width, height) = job.size;
        let mask = Mask::new(map.embedded(job.area, width, height), &MASK);
        if mask.regions.is_empty() || jumped {
            let reason = if object.latest.is_some() { "lost" } else { "nothing-found" };
            return self.end(reason);
        }
        object.seen();
        object.known = None;
        let overlay = Overlay::new(&mask, width, height, settings.overlay, settings.line);
        let detection = Arc::new(Detection {
            mask,
            overlay,
            pts: job.pts,
            resized_at: job.resized_at,
            prompt: Some(object.id),
            scene: job.luma.clone().map(|luma| Arc::new(Scene::new(luma))),
            index: job.index,
            generation: job.generation,
        });
        if object.latest.replace(detection.clone()).is_none() {
            self.events.push(PromptEvent::Started(detection));
        }
    }

    /// Stops following.
    pub fn end(&mut self, reason: &'static str) {
        match self.object.take() {
            Some(Object { id, latest: Some(_), .. }) => self.events.push(PromptEvent::Ended { id, reason }),
            // The object never had a mask.
            Some(_) => self.refuse(reason),
            None => {}
        }
    }

    fn refuse(&mut self, reason: &'static str) {
        self.events.push(PromptEvent::Refused { reason });
    }

    /// Publishes the object's mask to the streaming thread and passes the events since the last call to `notify`.
    pub fn publish(&mut self, shared: &Shared, mut notify: impl FnMut(Event)) {
        let object = self.object.as_ref();
        shared.prompting.store(object.is_some(), Ordering::Release);
        let pointed = object.and_then(|o| Some(Pointed { detection: o.latest.clone()?, epoch: o.epoch }));
        if pointed.is_some() || shared.pointed.load().is_some() {
            shared.pointed.store(pointed.map(Arc::new));
        }
        self.events.drain(..).for_each(|event| notify(Event::Prompted(event)));
    }
}
