//! Fits a small SAM, then the generator through it: losses, parameters, the loop, checkpoints.

pub mod losses;
pub mod optimizer;
pub mod params;
