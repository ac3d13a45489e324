//! The live pipeline equivalent to `run` on a file.

use super::Args;
use crate::cli::args::{MaskModeArg, PrecisionArg};
use autosam::model::DeviceChoice;
use autosam::video::{UPRIGHT, is_uri};
use clap::ValueEnum;

/// The `gst-launch-1.0` line that produces the same masks as `args`; `None` if there is none. `%` and quotes in names are
/// not escaped.
pub fn line(args: &Args) -> Option<String> {
    if !matches!(args.mask_mode, MaskModeArg::Sigmoid) || args.track > 1 {
        return None;
    }
    let source = if is_uri(&args.input) {
        format!("uridecodebin uri=\"{}\"", args.input)
    } else {
        format!("filesrc location=\"{}\" ! decodebin", args.input)
    };
    let mut element = format!(
        "autosam sync-mode=frame-accurate threshold={} hysteresis={} min-area={} roi={} views={}",
        args.threshold,
        args.mask_mode.hysteresis(args.hysteresis),
        args.min_area,
        args.roi,
        args.network.views.count()
    );
    match args.network.device {
        DeviceChoice::Auto => {}
        DeviceChoice::Cpu => element += " device=cpu",
        DeviceChoice::Cuda(id) => element += &format!(" device=cuda device-id={id}"),
    }
    for (name, value) in [
        (
            "precision",
            Some(args.network.precision).filter(|p| !matches!(p, PrecisionArg::F32)).and_then(name_of),
        ),
        ("overlay-mode", name_of(args.overlay)),
        ("model-location", args.network.model.as_ref().map(|m| format!("\"{}\"", m.display()))),
    ] {
        if let Some(value) = value {
            element += &format!(" {name}={value}");
        }
    }
    // Brackets would be interpreted by a shell.
    let upright = UPRIGHT.replace("video/x-raw,format=", "'video/x-raw,format=").replace("} !", "}' !");
    Some(format!(
        "gst-launch-1.0 {source} ! {upright} ! videoconvert ! {element} ! videoconvert ! autovideosink"
    ))
}

/// A flag's value as typed; the element uses the same names.
fn name_of(value: impl ValueEnum) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}
