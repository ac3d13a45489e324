//! State and messages shared by the streaming thread, the worker and other threads.

use super::segmenter::Segmenter;
use super::stats::Counters;
use super::{Detection, Error, Settings};
use arc_swap::{ArcSwap, ArcSwapOption};
use autosam_frame::map::ModelInput;
use autosam_frame::resize::{InputSize, RowsResized};
use autosam_frame::{Luma, Rect};
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Why a frame with a waiting caller has no mask.
pub(super) enum Refusal {
    Failed(Error),
    /// Its input was prepared for a model that was replaced.
    OtherSize,
}

impl Refusal {
    pub fn into_error(self) -> Error {
        match self {
            Self::Failed(e) => e,
            Self::OtherSize => Error::engine("the model was replaced by one with another input size"),
        }
    }
}

/// A frame, resized partly or completely to the model's size. If the model runs on the CPU, the worker completes the resizing, so that
/// the frame passes sooner. If it runs on a GPU, the streaming thread does all of it to relieve the worker.
pub(super) enum Input {
    RowsResized(RowsResized),
    Whole(ModelInput),
}

impl Default for Input {
    fn default() -> Self {
        Self::RowsResized(RowsResized::default())
    }
}

/// The object's mask as published to the streaming thread.
pub(super) struct Pointed {
    pub detection: Arc<Detection>,
    pub epoch: u64,
}

pub(super) struct Job {
    pub input: Input,
    pub size: (usize, usize),
    /// The part of the frame that the input shows.
    pub area: Rect,
    pub luma: Option<Arc<Luma>>,
    pub pts: Option<u64>,
    /// Index of the frame, including skipped ones.
    pub index: u64,
    pub resized_at: Instant,
    pub generation: u64,
    pub reply: Option<Sender<std::result::Result<Arc<Detection>, Refusal>>>,
}

pub(super) struct Shared {
    pub latest: ArcSwapOption<Detection>,
    /// The object that a person pointed at.
    pub pointed: ArcSwapOption<Pointed>,
    /// Whether the worker follows an object, so that frames need small copies.
    pub prompting: AtomicBool,
    /// Number of calls to [`Control::clear_prompts`]. Results of earlier prompts are not shown.
    pub prompt_epoch: AtomicU64,
    pub settings: ArcSwap<Settings>,
    /// Results of older generations (before a flush, a seek or new caps) are not shown.
    pub generation: AtomicU64,
    /// See [`Segmenter::input_size`]; none if no model is loaded.
    pub input_size: ArcSwapOption<InputSize>,
    /// See [`Segmenter::runs_on_gpu`].
    pub spare_cpu: AtomicBool,
    /// When the worker began its current frame, in ns after `start`, plus 1; 0 if it is idle.
    pub busy_since: AtomicU64,
    /// Typical time per frame of the worker in ns; 0 if unknown.
    pub usually_busy: AtomicU64,
    pub start: Instant,
    pub counters: Counters,
}

impl Shared {
    pub fn new(settings: Settings) -> Self {
        Self {
            latest: ArcSwapOption::empty(),
            pointed: ArcSwapOption::empty(),
            prompting: AtomicBool::new(false),
            prompt_epoch: AtomicU64::new(0),
            settings: ArcSwap::from_pointee(settings),
            generation: AtomicU64::new(0),
            input_size: ArcSwapOption::empty(),
            spare_cpu: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            usually_busy: AtomicU64::new(0),
            start: Instant::now(),
            counters: Counters::new(),
        }
    }

    /// Current time in ns after `start`.
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn input_size(&self) -> Option<InputSize> {
        self.input_size.load().as_deref().copied()
    }

    /// Stores the input size and device of `segmenter`.
    pub fn fits(&self, segmenter: &dyn Segmenter) {
        self.input_size.store(Some(Arc::new(segmenter.input_size())));
        self.spare_cpu.store(segmenter.runs_on_gpu(), Ordering::Release);
    }
}
