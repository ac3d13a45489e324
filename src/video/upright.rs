//! Converts decoded frames to progressive and upright ones, as a monitor shows them.

use super::init;
use crate::{Error, Result};
use gst::prelude::*;

/// The elements, in the syntax of `gst-launch-1.0`.
///
/// Each input frame gives one output frame: of interlaced frames the top fields are used and the lines between them are
/// interpolated, so that a frame has the same number in the file and in the masks. `deinterlace` passes frames that it does not
/// support (10 bits, among others) unchanged, hence the list of formats.
pub const UPRIGHT: &str = "videoconvert ! video/x-raw,format={I420,YV12,NV12,NV21,Y41B,Y42B,YUY2,UYVY,YVYU,Y444,AYUV,RGB,BGR,RGBx,BGRx,xRGB,xBGR,RGBA,BGRA,ARGB,ABGR} ! deinterlace fields=top ! videoflip video-direction=auto";

/// [`UPRIGHT`] with a sink and a source pad.
///
/// # Errors
/// If GStreamer lacks one of the elements.
pub(crate) fn upright() -> Result<gst::Element> {
    init()?;
    let bin = gst::parse::bin_from_description(UPRIGHT, true).map_err(|e| {
        Error::Video(format!("{e}; apt install gstreamer1.0-plugins-base gstreamer1.0-plugins-good"))
    })?;
    Ok(bin.upcast())
}
