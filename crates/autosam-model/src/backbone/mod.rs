//! Networks pretrained on ImageNet, and a feature pyramid that combines their features at a fine stride.

mod efficientnet_lite;
mod pyramid;

/// SAM's normalisation, applied to each channel's bytes before any network: subtract this, …
pub const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// … then divide by this.
pub const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

pub use efficientnet_lite::{EfficientNetLite, EfficientNetLiteConfig, Observer};
pub use pyramid::{Pyramid, PyramidConfig};
