//! The request pad `mask`: the shown mask of every frame as GRAY8, pushed by a task of its own. Video never waits for the
//! receiver of this pad: masks that are not consumed in time are dropped.

use super::{AutoSam, latency};
use autosam_engine::{Detection, Shown};
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

/// Maximum number of queued masks; the oldest are dropped.
const MAX_WAITING: usize = 4;

/// One frame's mask, not yet rendered.
pub struct FrameMask {
    pub shown: Option<Shown>,
    pub pts: Option<gst::ClockTime>,
    pub duration: Option<gst::ClockTime>,
    pub width: usize,
    pub height: usize,
}

enum Item {
    Event(gst::Event),
    Mask(FrameMask),
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    masks: usize,
    active: bool,
    flushing: bool,
    /// Counts flushes: an item taken before a flush is not pushed after it.
    epoch: u64,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// Held while something is being pushed.
    pushing: Mutex<()>,
}

impl Queue {
    fn put(&self, item: Item) {
        let mut waiting = self.waiting.lock();
        if !waiting.active || waiting.flushing {
            return;
        }
        match &item {
            Item::Mask(_) if waiting.masks == MAX_WAITING => {
                let oldest = waiting.items.iter().position(|i| matches!(i, Item::Mask(_)));
                if let Some(oldest) = oldest {
                    waiting.items.remove(oldest);
                }
            }
            Item::Mask(_) => waiting.masks += 1,
            // Between two masks only the last event of each kind is kept, so that the queue stays short.
            Item::Event(event) => {
                let since =
                    waiting.items.iter().rposition(|i| matches!(i, Item::Mask(_))).map_or(0, |i| i + 1);
                let same = |i: &Item| matches!(i, Item::Event(e) if e.type_() == event.type_());
                if let Some(older) = waiting.items.range(since..).position(same) {
                    waiting.items.remove(since + older);
                }
            }
        }
        waiting.items.push_back(item);
        self.changed.notify_one();
    }

    /// Waits for the next item; `None` once the pad is inactive.
    fn take(&self) -> Option<(Item, u64)> {
        let mut waiting = self.waiting.lock();
        loop {
            if !waiting.active {
                return None;
            }
            if let Some(item) = waiting.items.pop_front() {
                waiting.masks -= usize::from(matches!(item, Item::Mask(_)));
                return Some((item, waiting.epoch));
            }
            self.changed.wait(&mut waiting);
        }
    }

    /// Drops queued items except events that describe the stream, which survive a flush.
    fn clear(&self, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.lock();
        waiting.items.retain(|i| matches!(i, Item::Event(e) if describes(e)));
        waiting.masks = 0;
        waiting.epoch += 1;
        change(&mut waiting);
        self.changed.notify_all();
    }
}

fn describes(event: &gst::Event) -> bool {
    matches!(event.type_(), gst::EventType::StreamStart | gst::EventType::Caps)
}

#[derive(Clone)]
pub struct MaskPad {
    pub pad: gst::Pad,
    queue: Arc<Queue>,
}

impl MaskPad {
    pub fn new(template: &gst::PadTemplate) -> Self {
        let queue = Arc::new(Queue::default());
        let mine = queue.clone();
        let pad = gst::Pad::builder_from_template(template)
            .activatemode_function(move |pad, _, mode, active| activate(pad, &mine, mode, active))
            .event_function(|pad, parent, event| match event.type_() {
                // Requests from the mask's receiver must not change or drop video frames.
                gst::EventType::Qos | gst::EventType::Reconfigure => true,
                _ => gst::Pad::event_default(pad, parent, event),
            })
            .query_function(|pad, parent, query| {
                let answered = gst::Pad::query_default(pad, parent, query);
                if let (true, Some(element)) = (answered, parent.and_then(|p| p.downcast_ref::<AutoSam>())) {
                    // Whether the source is live is recorded on the element's other pad.
                    let _live = latency::add(query, element.imp().latency());
                }
                answered
            })
            .build();
        Self { pad, queue }
    }

    /// Queues a frame's mask; never waits.
    pub fn push(&self, mask: FrameMask) {
        self.queue.put(Item::Mask(mask));
    }

    /// Forwards an event of the sink pad.
    pub fn event(&self, event: &gst::Event) {
        use gst::EventView;
        match event.view() {
            EventView::FlushStart(_) => {
                self.queue.clear(|w| w.flushing = true);
                self.pad.push_event(event.clone());
            }
            EventView::FlushStop(_) => {
                // Wait for the push that the flush interrupted before the next one may begin.
                drop(self.queue.pushing.lock());
                self.pad.push_event(event.clone());
                self.queue.clear(|w| w.flushing = false);
            }
            EventView::Caps(caps) => {
                if let Some(caps) = mask_caps(caps.caps()) {
                    let event = gst::event::Caps::builder(&caps).seqnum(event.seqnum()).build();
                    self.queue.put(Item::Event(event));
                }
            }
            EventView::StreamStart(start) => {
                let id = format!("{}/mask", start.stream_id());
                let mut builder = gst::event::StreamStart::builder(&id).seqnum(event.seqnum());
                if let Some(group) = start.group_id() {
                    builder = builder.group_id(group);
                }
                self.queue.put(Item::Event(builder.build()));
            }
            EventView::Segment(_) | EventView::Eos(_) | EventView::Gap(_) => {
                self.queue.put(Item::Event(event.clone()));
            }
            _ => {}
        }
    }
}

/// GRAY8 caps with the frame's size, rate and pixel aspect ratio.
fn mask_caps(caps: &gst::CapsRef) -> Option<gst::Caps> {
    let from = caps.structure(0)?;
    let mut to = gst::Structure::builder("video/x-raw").field("format", "GRAY8").build();
    for name in ["width", "height", "framerate", "pixel-aspect-ratio"] {
        if let Ok(value) = from.value(name) {
            to.set_value(name, value.clone());
        }
    }
    Some(gst::Caps::builder_full().structure(to).build())
}

fn activate(
    pad: &gst::Pad,
    queue: &Arc<Queue>,
    mode: gst::PadMode,
    active: bool,
) -> Result<(), gst::LoggableError> {
    if mode != gst::PadMode::Push {
        return Err(gst::loggable_error!(super::CAT, "the mask pad supports push mode only"));
    }
    queue.clear(|w| (w.active, w.flushing) = (active, false));
    if active {
        let (queue, weak) = (queue.clone(), pad.downgrade());
        let mut last = None;
        pad.start_task(move || step(&weak, &queue, &mut last))
            .map_err(|e| gst::loggable_error!(super::CAT, "{e}"))
    } else {
        pad.stop_task().map_err(|e| gst::loggable_error!(super::CAT, "{e}"))
    }
}

/// The last rendered mask, kept because many frames share one mask.
type Rendered = Option<(Option<Arc<Detection>>, (isize, isize), usize, usize, gst::Buffer)>;

/// Pushes the next item of the queue.
fn step(pad: &glib::WeakRef<gst::Pad>, queue: &Queue, last: &mut Rendered) {
    let Some(pad) = pad.upgrade() else { return };
    let Some((item, epoch)) = queue.take() else {
        // The task pauses until the pad is active again.
        let _ = pad.pause_task();
        return;
    };
    let current = || queue.waiting.lock().epoch == epoch;
    match item {
        Item::Event(event) => {
            let _pushing = queue.pushing.lock();
            if describes(&event) || current() {
                pad.push_event(event);
            }
        }
        Item::Mask(mask) => {
            let buffer = render(&mask, last);
            let _pushing = queue.pushing.lock();
            // An unlinked pad, a flush or a downstream error here must not affect the video.
            if current()
                && let Err(e) = pad.push(buffer)
            {
                gst::log!(super::CAT, obj = pad, "the mask was not accepted downstream: {e}");
            }
        }
    }
}

fn render(frame: &FrameMask, last: &mut Rendered) -> gst::Buffer {
    let (w, h) = (frame.width, frame.height);
    let detection = frame.shown.as_ref().map(|s| &s.detection).filter(|d| !d.mask.regions.is_empty());
    let shift = frame.shown.as_ref().filter(|_| detection.is_some()).map_or((0, 0), |s| s.shift);
    let same = |a: &Option<Arc<Detection>>| match (a, detection) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    let mut buffer = match last {
        Some((d, s, lw, lh, buffer)) if same(d) && (*s, *lw, *lh) == (shift, w, h) => buffer.copy(),
        _ => {
            let stride = w.next_multiple_of(4);
            let mut bytes = vec![0u8; stride * h];
            if let Some(detection) = detection {
                let mask = detection.mask.enlarge(w, h);
                for (y, row) in mask.chunks_exact(w).enumerate() {
                    let Some(to) = y.checked_add_signed(shift.1).filter(|y| *y < h) else { continue };
                    let (from, start) =
                        (shift.0.min(0).unsigned_abs().min(w), shift.0.max(0).unsigned_abs().min(w));
                    let length = w - from.max(start);
                    bytes[to * stride + start..][..length].copy_from_slice(&row[from..][..length]);
                }
            }
            let buffer = gst::Buffer::from_slice(bytes);
            *last = Some((detection.cloned(), shift, w, h, buffer.clone()));
            buffer.copy()
        }
    };
    if let Some(b) = buffer.get_mut() {
        b.set_pts(frame.pts);
        b.set_duration(frame.duration);
    }
    buffer
}
