//! Interprets a buffer's bytes by its caps.

use autosam_frame::{ColorMatrix, Frame, FrameInfo, FrameMut, PixelFormat};
use gst_video::VideoInterlaceMode;
use std::time::Duration;

const MOST_SIDE: i32 = autosam_frame::resize::MOST_SIDE as i32;

/// Frame layout of the negotiated caps.
pub struct Input {
    pub video: gst_video::VideoInfo,
    pub info: FrameInfo,
}

impl Input {
    /// # Errors
    /// A description of what is wrong with the caps and how to fix it.
    pub fn new(video: &gst_video::VideoInfo) -> Result<Self, String> {
        let name = video.format().to_str();
        let Some(format) = PixelFormat::ALL.into_iter().find(|f| f.name() == name) else {
            return Err(format!("Frames in {name} pass unchanged; put videoconvert before autosam"));
        };
        if matches!(video.interlace_mode(), VideoInterlaceMode::Fields | VideoInterlaceMode::Alternate) {
            return Err(
                "Fields in separate buffers pass unchanged; put deinterlace before autosam".to_owned()
            );
        }
        let color = video.colorimetry();
        let side = |v: i32| u32::try_from(v).unwrap_or(1).max(1);
        let info = FrameInfo {
            matrix: match color.matrix() {
                gst_video::VideoColorMatrix::Bt709 => ColorMatrix::Bt709,
                _ => ColorMatrix::Bt601,
            },
            full_range: color.range() == gst_video::VideoColorRange::Range0_255,
            pixel_aspect: (side(video.par().numer()), side(video.par().denom())),
            ..FrameInfo::new(format, video.width() as usize, video.height() as usize)
        };
        Ok(Self { video: video.clone(), info })
    }

    /// Whether this buffer holds two fields of different times.
    pub fn has_fields(&self, buffer: &gst::BufferRef) -> bool {
        use gst_video::prelude::VideoBufferExt;
        match self.video.interlace_mode() {
            VideoInterlaceMode::Interleaved => true,
            VideoInterlaceMode::Mixed => {
                buffer.video_flags().contains(gst_video::VideoBufferFlags::INTERLACED)
            }
            _ => false,
        }
    }

    /// Time between two buffers; `None` for a variable rate.
    pub fn interval(&self) -> Option<Duration> {
        let fps = self.video.fps();
        (fps.numer() > 0).then(|| Duration::from_secs_f64(f64::from(fps.denom()) / f64::from(fps.numer())))
    }

    /// Size and format, for messages.
    pub fn describe(&self) -> String {
        format!("{}x{} {}", self.info.width, self.info.height, self.info.format.name())
    }
}

/// Pad templates with all supported formats.
pub fn templates() -> Vec<gst::PadTemplate> {
    let formats = |formats: &[PixelFormat]| {
        gst_video::VideoCapsBuilder::new()
            .format_list(formats.iter().map(|f| gst_video::VideoFormat::from_string(f.name())))
            .width_range(1..=MOST_SIDE)
            .height_range(1..=MOST_SIDE)
            .build()
    };
    let (video, mask) = (formats(&PixelFormat::ALL), formats(&[PixelFormat::Gray8]));
    [
        ("sink", gst::PadDirection::Sink, gst::PadPresence::Always, &video),
        ("src", gst::PadDirection::Src, gst::PadPresence::Always, &video),
        ("mask", gst::PadDirection::Src, gst::PadPresence::Request, &mask),
    ]
    .into_iter()
    .filter_map(|(name, direction, presence, caps)| {
        gst::PadTemplate::new(name, direction, presence, caps).ok()
    })
    .collect()
}

/// The part of `frame` that the network sees: the whole frame, or the upper of two fields.
pub fn seen<'a>(frame: &'a FrameMut, fields: bool) -> Frame<'a> {
    let frame = frame.as_frame();
    if fields { frame.top_field() } else { frame }
}
