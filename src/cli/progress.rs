//! Progress bars. They do not appear if standard error is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// `bar` with a template of indicatif's.
pub fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A bar over `count` units, followed by `text`, such as `images  {eta} left`.
pub fn counting(count: u64, text: &str) -> ProgressBar {
    styled(ProgressBar::new(count), &format!("{{bar:32}} {{pos}}/{{len}} {text}"))
}

/// A bar over frames with their rate; without the time left if their number is not known.
pub fn frames(count: Option<u64>) -> ProgressBar {
    match count {
        Some(count) => counting(count, "frames  {per_sec}  {eta} left"),
        None => styled(ProgressBar::new_spinner(), "{spinner} {pos} frames  {per_sec}"),
    }
}
