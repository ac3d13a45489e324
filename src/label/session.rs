//! The labels of a clip's frames and their changes. No HTTP, no tensors, no files.

use crate::pointing::Pointing;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Changes that can be undone.
const MOST_CHANGES: usize = 200;

/// Where a frame's label comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// A person's prompts.
    Manual,
    /// The mask of an earlier frame.
    Propagated,
    /// A person saw no polyp.
    Empty,
}

/// One frame's label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    pub status: Status,
    /// Whether a person accepted a propagated mask.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
    /// In the order in which they were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "queries")]
    pub prompts: Vec<Pointing>,
    /// COCO's compressed run lengths; `None` if the frame shows no polyp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// How sure the model is, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
}

impl Label {
    /// Whether a person made or accepted it. Propagation does not replace it, and it belongs to the data set.
    pub fn is_final(&self) -> bool {
        self.accepted || self.status != Status::Propagated
    }
}

/// Labels by the frame's number in the file, from 0.
pub type Labels = BTreeMap<u64, Label>;

/// The labels before a change, for each frame that it touched.
type Change = Vec<(u64, Option<Label>)>;

/// The labels of a clip, with the changes that can be undone.
#[derive(Debug, Default)]
pub struct Session {
    labels: Labels,
    changes: VecDeque<Change>,
}

impl Session {
    /// A session that goes on with `labels`.
    pub fn new(labels: Labels) -> Self {
        Self { labels, changes: VecDeque::new() }
    }

    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    pub fn label(&self, frame: u64) -> Option<&Label> {
        self.labels.get(&frame)
    }

    /// Number of changes that [`Self::undo`] can take back.
    pub fn undoable(&self) -> usize {
        self.changes.len()
    }

    /// Labels `frame` with the mask that a person's prompts gave.
    pub fn set_manual(&mut self, frame: u64, prompts: Vec<Pointing>, mask: String, confidence: f32) {
        let (status, mask, confidence) = (Status::Manual, Some(mask), Some(confidence));
        self.change(&[frame], |_| Some(Label { status, accepted: false, prompts, mask, confidence }));
    }

    /// Labels `frame` as polyp-free.
    pub fn set_empty(&mut self, frame: u64) {
        let empty = Label {
            status: Status::Empty,
            accepted: false,
            prompts: Vec::new(),
            mask: None,
            confidence: None,
        };
        self.change(&[frame], |_| Some(empty));
    }

    /// Removes the label of `frame`. Returns whether it had one.
    pub fn clear(&mut self, frame: u64) -> bool {
        let known = self.labels.contains_key(&frame);
        if known {
            self.change(&[frame], |_| None);
        }
        known
    }

    /// Accepts the propagated masks of `frames` and returns their number; other frames stay as they are.
    pub fn accept(&mut self, frames: std::ops::RangeInclusive<u64>) -> usize {
        let waiting: Vec<u64> = self
            .labels
            .range(frames)
            .filter(|(_, label)| !label.is_final())
            .map(|(frame, _)| *frame)
            .collect();
        if waiting.is_empty() {
            return 0;
        }
        let mut change = Change::new();
        for frame in &waiting {
            if let Some(label) = self.labels.get_mut(frame) {
                change.push((*frame, Some(label.clone())));
                label.accepted = true;
            }
        }
        self.push(change);
        waiting.len()
    }

    /// Begins a propagation, which is undone as one change.
    pub fn begin_propagation(&mut self) {
        self.push(Change::new());
    }

    /// Labels `frame` with a propagated mask, as part of the last change. Returns false, and changes nothing, if the frame's
    /// label is final.
    pub fn propagate(&mut self, frame: u64, mask: String, confidence: f32) -> bool {
        if self.label(frame).is_some_and(Label::is_final) {
            return false;
        }
        let label = Label {
            status: Status::Propagated,
            accepted: false,
            prompts: Vec::new(),
            mask: Some(mask),
            confidence: Some(confidence),
        };
        let before = self.labels.insert(frame, label);
        match self.changes.back_mut() {
            // A frame that the propagation meets again keeps its first state.
            Some(change) if change.iter().all(|(known, _)| *known != frame) => change.push((frame, before)),
            Some(_) => {}
            None => self.changes.push_back(vec![(frame, before)]),
        }
        true
    }

    /// Ends a propagation; one that labelled no frame is not a change.
    pub fn end_propagation(&mut self) {
        if self.changes.back().is_some_and(Vec::is_empty) {
            self.changes.pop_back();
        }
    }

    /// Takes the last change back and returns the first frame that it touched; `None` if there is no change.
    pub fn undo(&mut self) -> Option<u64> {
        let change = self.changes.pop_back()?;
        let first = change.iter().map(|(frame, _)| *frame).min();
        for (frame, before) in change {
            match before {
                Some(label) => drop(self.labels.insert(frame, label)),
                None => drop(self.labels.remove(&frame)),
            }
        }
        first
    }

    fn change(&mut self, frames: &[u64], to: impl FnOnce(u64) -> Option<Label> + Clone) {
        let mut change = Change::new();
        for frame in frames {
            let before = match to.clone()(*frame) {
                Some(label) => self.labels.insert(*frame, label),
                None => self.labels.remove(frame),
            };
            change.push((*frame, before));
        }
        self.push(change);
    }

    fn push(&mut self, change: Change) {
        if self.changes.len() >= MOST_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }
}

/// Prompts as the queries that a page sends.
mod queries {
    use crate::pointing::Pointing;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(prompts: &[Pointing], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(prompts.iter().map(Pointing::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Pointing>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLICK: Pointing = Pointing::Point { x: 0.5, y: 0.25, foreground: true };

    fn manual(session: &mut Session, frame: u64) {
        session.set_manual(frame, vec![CLICK], format!("mask{frame}"), 0.9);
    }

    #[test]
    fn fifty_changes_are_undone_one_by_one() {
        let mut session = Session::default();
        for frame in 0..60 {
            manual(&mut session, frame);
        }
        for frame in (0..60).rev() {
            assert_eq!(session.labels().len() as u64, frame + 1);
            assert_eq!(session.undo(), Some(frame));
        }
        assert_eq!((session.undo(), session.labels().len()), (None, 0));
    }

    #[test]
    fn undo_restores_what_a_change_replaced() {
        let mut session = Session::default();
        manual(&mut session, 3);
        let before = session.labels().clone();
        session.set_empty(3);
        assert_eq!(session.label(3).unwrap().mask, None);
        assert!(session.clear(3) && !session.clear(3) && session.label(3).is_none());
        session.undo();
        assert_eq!(session.label(3).unwrap().status, Status::Empty);
        session.undo();
        assert_eq!(*session.labels(), before);
    }

    #[test]
    fn propagation_never_replaces_what_a_person_made_or_accepted() {
        let mut session = Session::default();
        manual(&mut session, 2);
        session.set_empty(3);
        session.begin_propagation();
        assert!(session.propagate(1, "a".into(), 0.5));
        session.end_propagation();
        assert_eq!(session.accept(0..=9), 1);
        let labels = session.labels().clone();
        session.begin_propagation();
        for frame in 1..=3 {
            assert!(!session.propagate(frame, "b".into(), 0.99), "{frame}");
        }
        session.end_propagation();
        assert_eq!(*session.labels(), labels);
        // A propagated mask that nobody accepted is replaced.
        session.begin_propagation();
        assert!(session.propagate(4, "a".into(), 0.5) && session.propagate(4, "b".into(), 0.5));
        assert_eq!(session.label(4).unwrap().mask.as_deref(), Some("b"));
    }

    #[test]
    fn a_propagation_is_one_change_and_an_empty_one_none() {
        let mut session = Session::default();
        manual(&mut session, 0);
        session.begin_propagation();
        for frame in 1..30 {
            assert!(session.propagate(frame, "m".into(), 0.7));
        }
        session.end_propagation();
        session.begin_propagation();
        session.end_propagation();
        assert_eq!(session.undoable(), 2);
        assert_eq!((session.undo(), session.labels().len()), (Some(1), 1));
    }

    #[test]
    fn only_waiting_masks_are_accepted_and_as_one_change() {
        let mut session = Session::default();
        manual(&mut session, 0);
        session.begin_propagation();
        (1..4).for_each(|frame| assert!(session.propagate(frame, "m".into(), 0.7)));
        assert!(!session.label(1).unwrap().is_final());
        assert_eq!((session.accept(1..=1), session.accept(0..=9), session.accept(0..=9)), (1, 2, 0));
        assert!(session.labels().values().all(Label::is_final));
        session.undo();
        assert!(session.label(1).unwrap().is_final() && !session.label(2).unwrap().is_final());
    }

    #[test]
    fn labels_are_written_as_they_are_read() {
        let mut session = Session::default();
        manual(&mut session, 7);
        session.set_empty(9);
        let text = serde_json::to_string(session.labels()).unwrap();
        assert!(text.contains("\"point=0.5,0.25\"") && text.contains("\"empty\""), "{text}");
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap(), *session.labels());
        assert!(serde_json::from_str::<Labels>(&text.replace("0.25", "7")).is_err());
    }
}
