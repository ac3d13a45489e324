//! Calls a model's code and catches its panics.

use super::ModelFactory;
use crate::segmenter::Segmenter;
use crate::{Error, Result, priority};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Loads a model with `open` and lowers the priority of its threads.
pub(super) fn opened(open: &mut ModelFactory) -> Result<Box<dyn Segmenter>> {
    let segmenter = open()?;
    segmenter.on_each_thread(&priority::lower_thread_priority);
    Ok(segmenter)
}

/// Runs `f`; a panic becomes an error with its message.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(Error::engine(panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    format!("the model panicked: {text}")
}
