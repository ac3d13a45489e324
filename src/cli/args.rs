//! Flags, parsers of their values and the Ctrl-C flag that several commands share.

use anyhow::Context;
use autosam::engine::mask::MaskSettings;
use autosam::model::{DeviceChoice, Flips, MaskMode, Precision};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The network, and how it is run.
#[derive(clap::Args)]
pub struct Network {
    /// Weights made by `train` [default: the built-in model]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Processor: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    pub device: DeviceChoice,
    /// Number format of inference: f32; f16 or bf16 on a GPU; int8 on a CPU, for models of `models quantize`; auto is int8 if the
    /// model and the CPU support it, else f32
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,
    /// Test-time augmentation: number of flipped copies of each frame to average (1, 2 or 4); more accurate at a proportional
    /// cost
    #[arg(long, value_name = "N", default_value = "1")]
    pub views: Flips,
}

/// Conversion of logits to probabilities.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum MaskModeArg {
    Sigmoid,
    Minmax,
}

impl MaskModeArg {
    pub fn mode(self) -> MaskMode {
        match self {
            Self::Sigmoid => MaskMode::Sigmoid,
            Self::Minmax => MaskMode::MinMax,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Minmax => "minmax",
        }
    }

    /// [`MaskSettings::hysteresis`] as given, otherwise the mode's default: the paper's masks use only the threshold.
    pub fn hysteresis(self, given: Option<f32>) -> f32 {
        given.unwrap_or(match self {
            Self::Sigmoid => MaskSettings::default().hysteresis,
            Self::Minmax => 0.0,
        })
    }
}

/// See [`Precision`].
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum PrecisionArg {
    F32,
    F16,
    Bf16,
    Int8,
    Auto,
}

impl PrecisionArg {
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
            Self::Int8 => Precision::Int8,
            Self::Auto => Precision::Auto,
        }
    }
}

pub fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| format!("unknown device {text:?}: expected auto, cpu, cuda or cuda:N")),
    }
}

pub fn parse_part(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| format!("invalid number {text:?}"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(format!("{text} is not between 0 and 1")) }
}

pub fn parse_property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(n, v)| (n.to_owned(), v.to_owned())).ok_or_else(|| format!("{text:?}: expected NAME=VALUE"))
}

/// The parser of WIDTHxHEIGHT, both within `limits`. Its error shows `example`.
pub fn size_parser(
    limits: RangeInclusive<u32>,
    example: &'static str,
) -> impl Fn(&str) -> Result<(u32, u32), String> + Clone + Send + Sync + 'static {
    move |text| {
        let size = text.split_once(['x', 'X']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let (width, height) =
            size.ok_or_else(|| format!("invalid size {text:?}: expected WIDTHxHEIGHT, e.g. {example}"))?;
        if limits.contains(&width) && limits.contains(&height) {
            Ok((width, height))
        } else {
            Err(format!("{text}: width and height must be within {} and {}", limits.start(), limits.end()))
        }
    }
}

/// A flag that Ctrl-C and SIGTERM set.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot install the Ctrl-C handler")?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::size_parser;

    #[test]
    fn sizes_are_two_numbers_within_the_limits() {
        let parse = size_parser(32..=4096, "640x512");
        assert_eq!(parse("640x512"), Ok((640, 512)));
        assert_eq!(parse("32X4096"), Ok((32, 4096)));
        for text in ["640", "640x", "x512", "axb", "-640x512", "640x512x3", ""] {
            assert!(parse(text).unwrap_err().contains("expected WIDTHxHEIGHT, e.g. 640x512"), "{text}");
        }
        for text in ["31x512", "640x4097"] {
            assert!(parse(text).unwrap_err().contains("must be within 32 and 4096"), "{text}");
        }
    }
}
