//! Segment Anything.
