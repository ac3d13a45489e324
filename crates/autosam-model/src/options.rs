//! Options of inference.

use crate::{DeviceChoice, Error, Precision, Result};
use autosam_frame::map::Mirror;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskMode {
    /// `sigmoid(logit)`: an image without a polyp gets no mask. For live video.
    #[default]
    Sigmoid,
    /// Logits stretched to [0, 1] per image, as in the paper: every image gets a foreground.
    MinMax,
}

/// Test-time augmentation: the number of flipped copies of a frame whose probabilities are averaged. Each costs as much as
/// the frame itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flips {
    /// Only the frame itself.
    #[default]
    One,
    /// Also flipped left to right.
    Two,
    /// Also both of these flipped top to bottom.
    Four,
}

impl FromStr for Flips {
    type Err = Error;

    /// `1`, `2` or `4`.
    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "1" => Ok(Self::One),
            "2" => Ok(Self::Two),
            "4" => Ok(Self::Four),
            _ => Err(Error::invalid(format!("invalid views {text:?}: expected 1, 2 or 4"))),
        }
    }
}

impl Flips {
    /// 1, 2 or 4.
    pub fn count(self) -> u32 {
        self.mirrors().len() as u32
    }

    /// The flips; the first is the identity.
    pub(crate) fn mirrors(self) -> &'static [Mirror] {
        const ALL: [Mirror; 4] = [
            Mirror { across: false, down: false },
            Mirror { across: true, down: false },
            Mirror { across: false, down: true },
            Mirror { across: true, down: true },
        ];
        match self {
            Self::One => &ALL[..1],
            Self::Two => &ALL[..2],
            Self::Four => &ALL,
        }
    }
}

/// How [`crate::open`] opens a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelOptions {
    pub device: DeviceChoice,
    pub precision: Precision,
    pub mask_mode: MaskMode,
    pub flips: Flips,
}
