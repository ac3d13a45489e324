//! Networks pretrained on ImageNet, and the pyramid that makes one fine feature of their coarse ones.

mod efficientnet_lite;
mod pyramid;

/// What a byte of each channel is normalised by before any network here sees it, SAM's: less this, …
pub const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// … divided by this.
pub const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

pub use efficientnet_lite::{EfficientNetLite, EfficientNetLiteConfig, Observer};
pub use pyramid::{Pyramid, PyramidConfig};
