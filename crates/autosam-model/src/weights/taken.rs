//! Which tensors of a file are used if it contains more than one model, and under which names.

use std::fmt;

/// Keys under which training scripts store a state dict, in order of preference.
pub(super) const HOLDERS: [&str; 18] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "ema",
    "model_ema",
    "ema_model",
    "params_ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema_state_dict",
    "teacher",
    "student",
];

/// Names of modules that only wrap the model. Their prefix is removed if all tensors share it.
const WRAPPERS: [&str; 14] = [
    "module",
    "model",
    "net",
    "network",
    "state_dict",
    "ema",
    "model_ema",
    "ema_model",
    "teacher",
    "student",
    "sam",
    "sam_model",
    "_orig_mod",
    "_fsdp_wrapped_module",
];

/// Prefixes that PyTorch adds to names written by this program.
const AROUND_OURS: [&str; 2] = ["module", "_orig_mod"];

/// Counters that weight averaging stores in addition to the wrapped model.
const COUNTERS: [&str; 2] = ["n_averaged", "num_updates"];

/// Number of names that a message lists before it counts the rest.
const LISTED: usize = 10;

/// The part of a weight file that was used, and what was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// The key of the part, such as `state_dict` or `state_dict.model`; `None` if the tensors are at the top level.
    pub part: Option<String>,
    /// Prefix removed from every name.
    pub prefix: String,
    /// Other parts with tensors, each with its number of tensors.
    pub others: Vec<(String, usize)>,
    /// Tensors of the part that were left out, each with the reason.
    pub left_out: Vec<(String, String)>,
}

impl Taken {
    /// Whether all of the file's tensors were used under their own names.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Removes the wrappers' prefix that all `tensors` except the file's counters share. Counters are left out. `ours`:
    /// the names were written by this program, and contain parts such as `sam` that are not wrappers.
    pub(super) fn unwrap<T>(&mut self, tensors: &mut Vec<(String, T)>, ours: bool) {
        let wrappers = if ours { &AROUND_OURS[..] } else { &WRAPPERS };
        let counter = |name: &str| COUNTERS.contains(&name);
        loop {
            let mut models = tensors.iter().map(|(name, _)| name.as_str()).filter(|name| !counter(name));
            let Some(first) = models.next().and_then(|name| Some(name.split_once('.')?.0)) else { return };
            let wrapped = |name: &str| name.strip_prefix(first).is_some_and(|rest| rest.starts_with('.'));
            if !wrappers.contains(&first) || !models.all(wrapped) {
                return;
            }
            let prefix = format!("{first}.");
            tensors.retain(|(name, _)| {
                let counts = counter(name);
                if counts {
                    self.left_out.push((name.clone(), "a counter of the average".into()));
                }
                !counts
            });
            tensors.iter_mut().for_each(|(name, _)| drop(name.drain(..prefix.len())));
            self.prefix += &prefix;
        }
    }

    /// Keeps only the `tensors` whose names begin with `key` and a dot, and removes both; false if none do.
    pub(super) fn only<T>(&mut self, key: &str, tensors: &mut Vec<(String, T)>) -> bool {
        let rest = |name: &str| Some(name.strip_prefix(key)?.strip_prefix('.')?.to_owned());
        if !tensors.iter().any(|(name, _)| rest(name).is_some()) {
            return false;
        }
        let before = tensors.len();
        tensors.retain_mut(|(name, _)| rest(name).map(|rest| *name = rest).is_some());
        self.left_out.retain_mut(|(name, _)| rest(name).map(|rest| *name = rest).is_some());
        let part = self.part.take();
        if before > tensors.len() {
            self.others.insert(0, (part.clone().unwrap_or_default(), before - tensors.len()));
        }
        self.part = Some(joined(part.as_deref().unwrap_or_default(), key));
        true
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            Some(part) => write!(f, "taken from {part}")?,
            None => write!(f, "taken from the top level")?,
        }
        if !self.prefix.is_empty() {
            write!(f, ", without the prefix {}", self.prefix)?;
        }
        if !self.others.is_empty() {
            write!(
                f,
                "; not taken: {}",
                listed(self.others.iter().map(|(part, count)| counted(part, *count)))
            )?;
        }
        if !self.left_out.is_empty() {
            let all = self.left_out.iter().map(|(name, reason)| format!("{name} ({reason})"));
            write!(f, "; left out: {}", listed(all))?;
        }
        Ok(())
    }
}

/// A part's name and its number of tensors.
pub(super) fn counted(part: &str, count: usize) -> String {
    let part = if part.is_empty() { "the top level" } else { part };
    format!("{part} ({count} tensor{})", if count == 1 { "" } else { "s" })
}

/// Lists at most ten `names` in a line.
pub(super) fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let text = names.take(LISTED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

/// The path of `key` within `part`.
pub(super) fn joined(part: &str, key: &str) -> String {
    if part.is_empty() { key.to_owned() } else { format!("{part}.{key}") }
}
