//! Inputs of a run other than its configuration. A run must not be resumed with other data or another SAM.

use super::Job;
use crate::Result;
use crate::data::Fingerprint;
use autosam_model::weights;
use serde::{Deserialize, Serialize};

/// Fingerprints of inputs that a checkpoint does not contain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// SHA-256 of the weights that are not trained.
    pub sam: String,
    /// SHA-256 of the teacher's file.
    pub teacher: Option<String>,
    /// The data sets trained on, with their weights, in order.
    pub data: Vec<(Fingerprint, f32)>,
}

impl Origin {
    /// The origin of `job`, whose frozen weights have the fingerprint `sam`.
    ///
    /// # Errors
    /// If the teacher's file cannot be read.
    pub fn of(job: &Job, sam: String) -> Result<Self> {
        Ok(Self {
            sam,
            teacher: job.teacher.as_deref().map(weights::sha256_of).transpose()?,
            data: job.train.iter().map(|(set, weight)| (set.fingerprint(), *weight)).collect(),
        })
    }

    /// Describes the differences from `now`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.sam != now.sam {
            found.push("the frozen weights (--sam) differ".to_owned());
        }
        if self.teacher != now.teacher {
            found.push(match (&self.teacher, &now.teacher) {
                (Some(_), None) => "it had a teacher (--teacher)".to_owned(),
                (None, Some(_)) => "it had no teacher (--teacher)".to_owned(),
                _ => "the teacher (--teacher) differs".to_owned(),
            });
        }
        if self.data.len() != now.data.len() {
            let names = |all: &[(Fingerprint, f32)]| {
                all.iter().map(|(f, _)| f.name.as_str()).collect::<Vec<_>>().join(", ")
            };
            found.push(format!("it was trained on {}, not on {}", names(&self.data), names(&now.data)));
            return found;
        }
        for ((old, weight), (new, now_weight)) in self.data.iter().zip(&now.data) {
            if old.sha256 != new.sha256 {
                let more = match old.images == new.images {
                    true => "different files, or files read differently".to_owned(),
                    false => format!("{} images then, {} now", old.images, new.images),
                };
                found.push(format!("the data set {} has changed: {more}", new.name));
            }
            if weight != now_weight {
                found.push(format!("the weight of {} was {weight}, not {now_weight}", new.name));
            }
        }
        found
    }
}
