//! From a sample's bytes to the network's input, and from its logits to a map's bytes.

use super::MaskMode;
use crate::engine::segmenter::{ProbMap, Sample};
use crate::ops;
use crate::train::losses::min_max;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// SAM's pixel mean and standard deviation, RGB, for values of 0 to 255.
const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// Normalises by SAM's mean and standard deviation and pads with zeros below and to the right:
/// samples whose longest side is the image size → `[N, 3, S, S]`.
pub fn preprocess(samples: &[Sample], size: usize, device: &Device) -> Result<Tensor> {
    for sample in samples {
        if sample.width > size || sample.height > size || sample.rgb.len() != 3 * sample.width * sample.height
        {
            return Err(Error::invalid(format!(
                "a {}x{} sample of {} bytes does not fit a network of {size} px",
                sample.width,
                sample.height,
                sample.rgb.len()
            )));
        }
    }
    Ok(if device.is_cpu() { normalise(samples, size)? } else { upload(samples, size, device)? })
}

/// [`preprocess`] on a CPU, in one pass.
fn normalise(samples: &[Sample], size: usize) -> candle_core::Result<Tensor> {
    let s = size;
    let mut data = vec![0f32; samples.len() * 3 * s * s];
    for (sample, out) in samples.iter().zip(data.chunks_exact_mut(3 * s * s)) {
        for (c, plane) in out.chunks_exact_mut(s * s).enumerate() {
            let (scale, shift) = (1.0 / PIXEL_STD[c], -PIXEL_MEAN[c] / PIXEL_STD[c]);
            for (row, line) in sample.rgb.chunks_exact(3 * sample.width).zip(plane.chunks_exact_mut(s)) {
                for (v, px) in line.iter_mut().zip(row.chunks_exact(3)) {
                    *v = f32::from(px[c]) * scale + shift;
                }
            }
        }
    }
    Tensor::from_vec(data, (samples.len(), 3, s, s), &Device::Cpu)
}

/// [`preprocess`] on a GPU: bytes go over, a quarter of what floats would be, and become floats there.
fn upload(samples: &[Sample], size: usize, device: &Device) -> candle_core::Result<Tensor> {
    let images = samples.iter().map(|sample| {
        normalise_bytes(&Tensor::from_slice(&sample.rgb, (sample.height, sample.width, 3), device)?, size)
    });
    Tensor::cat(&images.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// [`preprocess`] of one picture's bytes `[H, W, 3]`, where they are.
pub(super) fn normalise_bytes(rgb: &Tensor, size: usize) -> candle_core::Result<Tensor> {
    let shift = std::array::from_fn(|c| -PIXEL_MEAN[c] / PIXEL_STD[c]);
    ops::normalised(rgb, size, PIXEL_STD.map(|std| 1.0 / std), shift)
}

/// Probability maps of the samples that gave `logits [N, 1, 4g, 4g]`: enlarged to the network's `size`
/// (bilinear) and cropped to each sample.
pub fn probabilities(
    logits: &Tensor,
    samples: &[Sample],
    size: usize,
    mode: MaskMode,
) -> Result<Vec<ProbMap>> {
    let all = probability_bytes(logits, size, mode)?.flatten_all()?.to_vec1::<u8>()?;
    Ok(samples
        .iter()
        .zip(all.chunks_exact(size * size))
        .map(|(sample, p)| cropped(p, size, sample))
        .collect())
}

/// Probabilities of `logits [N, 1, 4g, 4g]`, `[N, 1, size, size]`, 255 for 1. Rounded to bytes where they are: what comes over from a
/// GPU is a quarter of the floats.
pub(super) fn probability_bytes(logits: &Tensor, size: usize, mode: MaskMode) -> candle_core::Result<Tensor> {
    match mode {
        MaskMode::Sigmoid => ops::probability_bytes(logits, size),
        MaskMode::MinMax => {
            let p = ops::resize_bilinear(&min_max(logits)?, size, size, false)?;
            p.affine(255.0, 0.5)?.to_dtype(DType::U8)
        }
    }
}

/// The part of a map `p`, `size` pixels a side, that belongs to `sample`.
pub(super) fn cropped(p: &[u8], size: usize, sample: &Sample) -> ProbMap {
    let mut data = Vec::with_capacity(sample.width * sample.height);
    for row in p.chunks_exact(size).take(sample.height) {
        data.extend_from_slice(&row[..sample.width]);
    }
    ProbMap { width: sample.width, height: sample.height, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_makes_of_bytes_is_what_the_cpu_makes() {
        let sample = |width: usize, height: usize| {
            let rgb = (0..3 * width * height).map(|i| (i * 7 % 256) as u8).collect();
            Sample { width, height, rgb }
        };
        let samples = [sample(16, 9), sample(5, 16), sample(16, 16)];
        let values = |t: Tensor| (t.dims().to_vec(), t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let there = values(upload(&samples, 16, &Device::Cpu).unwrap());
        assert_eq!(there, values(normalise(&samples, 16).unwrap()));
        assert_eq!(there.0, [3, 3, 16, 16]);
    }
}
