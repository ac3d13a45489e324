//! A person's prompt as a page sends it, for the monitor and for labelling. `pointer.js` is its other half, in the browser.

use crate::engine::Prompt;
use std::fmt;
use std::str::FromStr;

/// The script that turns clicks, taps and drags on an element into the queries that [`Pointing`] parses.
pub(crate) const SCRIPT: &str = include_str!("pointer.js");

/// A viewer's prompt. Positions are fractions of the frame, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointing {
    Point {
        x: f64,
        y: f64,
        foreground: bool,
    },
    Box {
        left: f64,
        top: f64,
        right: f64,
        bottom: f64,
    },
    /// Removes all prompts.
    Clear,
}

impl Pointing {
    /// Parses `point=X,Y`, `background=X,Y`, `box=LEFT,TOP,RIGHT,BOTTOM` or `clear`; `None` for anything else, including
    /// positions outside the frame.
    pub fn parse(query: &str) -> Option<Self> {
        if query == "clear" {
            return Some(Self::Clear);
        }
        let (kind, places) = query.split_once('=')?;
        let places: Vec<f64> = places.split(',').map(|place| place.parse().ok()).collect::<Option<_>>()?;
        if !places.iter().all(|place| (0.0..=1.0).contains(place)) {
            return None;
        }
        match (kind, &places[..]) {
            ("point" | "background", &[x, y]) => Some(Self::Point { x, y, foreground: kind == "point" }),
            ("box", &[left, top, right, bottom]) if left < right && top < bottom => {
                Some(Self::Box { left, top, right, bottom })
            }
            _ => None,
        }
    }

    /// The engine's prompt; `None` for [`Self::Clear`].
    pub fn prompt(self) -> Option<Prompt> {
        match self {
            Self::Point { x, y, foreground } => Some(Prompt::Point { x: x as f32, y: y as f32, foreground }),
            Self::Box { left, top, right, bottom } => Some(Prompt::Box {
                left: left as f32,
                top: top as f32,
                right: right as f32,
                bottom: bottom as f32,
            }),
            Self::Clear => None,
        }
    }
}

/// The query that [`Pointing::parse`] reads.
impl fmt::Display for Pointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Point { x, y, foreground: true } => write!(f, "point={x},{y}"),
            Self::Point { x, y, foreground: false } => write!(f, "background={x},{y}"),
            Self::Box { left, top, right, bottom } => write!(f, "box={left},{top},{right},{bottom}"),
            Self::Clear => f.write_str("clear"),
        }
    }
}

impl FromStr for Pointing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("{text:?} is not a prompt"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positions_within_the_frame_are_parsed_as_prompts() {
        let point = |foreground| Some(Pointing::Point { x: 0.5, y: 0.25, foreground });
        assert_eq!(Pointing::parse("point=0.5,0.25"), point(true));
        assert_eq!(Pointing::parse("background=0.5,0.25"), point(false));
        let bounds = Pointing::Box { left: 0.0, top: 0.1, right: 1.0, bottom: 0.2 };
        assert_eq!(Pointing::parse("box=0,0.1,1,0.2"), Some(bounds));
        assert_eq!(Pointing::parse("clear"), Some(Pointing::Clear));
        for bad in [
            "",
            "point",
            "point=",
            "point=1",
            "point=0.5,0.5,0.5",
            "point=1.5,0",
            "point=-1,0",
            "point=NaN,0",
            "point=inf,0",
            "box=0,0,0,1",
            "box=0.5,0.5,0.4,0.9",
            "clear=1",
            "name=0,0",
        ] {
            assert_eq!(Pointing::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn prompts_are_written_as_they_are_read() {
        for text in ["point=0.5,0.25", "background=0.125,1", "box=0,0.1,1,0.2", "clear"] {
            assert_eq!(Pointing::parse(text).unwrap().to_string(), text);
        }
    }
}
