//! Converts model inputs (bytes) to the network's input tensors, and logits to probability maps.

use crate::backbone::{PIXEL_MEAN, PIXEL_STD};
use crate::options::{Flips, MaskMode};
use crate::{Error, Result};
use autosam_frame::map::{Mirror, ModelInput, ProbMap};
use autosam_ops as ops;
use candle_core::{DType, Device, Tensor};

/// Normalises by SAM's mean and standard deviation and pads with zeros below and to the right: inputs whose longest
/// side is the image size → `[N, 3, S, S]`.
pub fn preprocess(samples: &[ModelInput], size: usize, device: &Device) -> Result<Tensor> {
    check(samples, size)?;
    Ok(if device.is_cpu() { normalise(samples, size)? } else { upload(samples, size, device)? })
}

/// [`preprocess`] of each input's flipped copies, one after the other.
pub(super) fn preprocess_mirrored(
    samples: &[ModelInput],
    mirrors: &[Mirror],
    size: usize,
    device: &Device,
) -> Result<Tensor> {
    let mirrored = |sample: &ModelInput| {
        let &ModelInput { width, height, ref rgb } = sample;
        let (pixels, _) = rgb.as_chunks::<3>();
        let rgb = |m: &Mirror| m.of(pixels, width).into_flattened();
        mirrors.iter().map(|m| ModelInput { width, height, rgb: rgb(m) }).collect::<Vec<_>>()
    };
    match mirrors {
        [_] => preprocess(samples, size, device),
        _ => preprocess(&samples.iter().flat_map(mirrored).collect::<Vec<_>>(), size, device),
    }
}

/// Checks that `samples` fit a network of `size`.
pub(super) fn check(samples: &[ModelInput], size: usize) -> Result<()> {
    for sample in samples {
        if sample.width > size || sample.height > size || sample.rgb.len() != 3 * sample.width * sample.height
        {
            return Err(Error::invalid(format!(
                "an input of {}x{} with {} bytes does not fit a network of {size} px",
                sample.width,
                sample.height,
                sample.rgb.len()
            )));
        }
    }
    Ok(())
}

/// [`preprocess`] on a CPU.
fn normalise(samples: &[ModelInput], size: usize) -> candle_core::Result<Tensor> {
    let mut data = vec![0f32; samples.len() * 3 * size * size];
    for (sample, out) in samples.iter().zip(data.chunks_exact_mut(3 * size * size)) {
        normalise_into(sample, Mirror { across: false, down: false }, size, out);
    }
    Tensor::from_vec(data, (samples.len(), 3, size, size), &Device::Cpu)
}

/// [`preprocess`] of a flipped input into `out [3, size, size]` in one pass.
pub(super) fn normalise_into(sample: &ModelInput, mirror: Mirror, size: usize, out: &mut [f32]) {
    let width = sample.width;
    for (c, plane) in out.chunks_exact_mut(size * size).enumerate() {
        let (scale, shift) = (1.0 / PIXEL_STD[c], -PIXEL_MEAN[c] / PIXEL_STD[c]);
        let value = |px: &[u8]| f32::from(px[c]) * scale + shift;
        for (y, line) in plane.chunks_exact_mut(size).enumerate() {
            if y >= sample.height {
                line.fill(0.0);
                continue;
            }
            let y = if mirror.down { sample.height - 1 - y } else { y };
            let row = &sample.rgb[3 * y * width..][..3 * width];
            let (pixels, padding) = line.split_at_mut(width);
            if mirror.across {
                pixels.iter_mut().zip(row.chunks_exact(3).rev()).for_each(|(v, px)| *v = value(px));
            } else {
                pixels.iter_mut().zip(row.chunks_exact(3)).for_each(|(v, px)| *v = value(px));
            }
            padding.fill(0.0);
        }
    }
}

/// [`preprocess`] on a GPU. Bytes are uploaded, a quarter of the size of floats, and converted to floats there.
fn upload(samples: &[ModelInput], size: usize, device: &Device) -> candle_core::Result<Tensor> {
    let images = samples.iter().map(|sample| {
        normalise_bytes(&Tensor::from_slice(&sample.rgb, (sample.height, sample.width, 3), device)?, size)
    });
    Tensor::cat(&images.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// [`preprocess`] of one image's bytes `[H, W, 3]`, on their device.
pub(super) fn normalise_bytes(rgb: &Tensor, size: usize) -> candle_core::Result<Tensor> {
    let shift = std::array::from_fn(|c| -PIXEL_MEAN[c] / PIXEL_STD[c]);
    ops::normalised(rgb, size, PIXEL_STD.map(|std| 1.0 / std), shift)
}

/// Probability maps of the inputs with `logits [N, 1, 4g, 4g]`: enlarged to the network's `size` (bilinear) and cropped
/// to each input.
pub fn probabilities(
    logits: &Tensor,
    samples: &[ModelInput],
    size: usize,
    mode: MaskMode,
) -> Result<Vec<ProbMap>> {
    mean_probabilities(logits, samples, size, mode, Flips::One.mirrors())
}

/// The mean of [`probabilities`] over `mirrors`; `logits` has an entry for each flip of each input.
pub(super) fn mean_probabilities(
    logits: &Tensor,
    samples: &[ModelInput],
    size: usize,
    mode: MaskMode,
    mirrors: &[Mirror],
) -> Result<Vec<ProbMap>> {
    let all = probability_bytes(logits, size, mode)?.flatten_all()?.to_vec1::<u8>()?;
    let map = |(sample, p): (&ModelInput, &[u8])| {
        let mut map = ProbMap::default();
        map_of(p, |p| p, size, sample, mirrors, &mut map);
        map
    };
    Ok(samples.iter().zip(all.chunks_exact(mirrors.len() * size * size)).map(map).collect())
}

/// Probabilities of `logits [N, 1, 4g, 4g]` as bytes `[N, 1, size, size]`, 255 for 1. They are rounded on the device,
/// so that the download from a GPU is a quarter of that of floats.
pub(super) fn probability_bytes(logits: &Tensor, size: usize, mode: MaskMode) -> candle_core::Result<Tensor> {
    match mode {
        MaskMode::Sigmoid => ops::probability_bytes(logits, size),
        MaskMode::MinMax => probability(logits, size, mode)?.affine(255.0, 0.5)?.to_dtype(DType::U8),
    }
}

/// Probabilities of `logits [N, 1, 4g, 4g]`, `[N, 1, size, size]`.
pub(super) fn probability(logits: &Tensor, size: usize, mode: MaskMode) -> candle_core::Result<Tensor> {
    match mode {
        MaskMode::Sigmoid => ops::probability(logits, size),
        MaskMode::MinMax => ops::resize_bilinear(&ops::min_max(logits)?, size, size, false),
    }
}

/// A probability as a byte, 255 for 1.
pub(super) fn byte(p: f32) -> u8 {
    (p * 255.0 + 0.5) as u8
}

/// The map of `sample`: the mean of the probabilities `p [N, size, size]` of its flipped copies, each rounded to bytes.
pub(super) fn map_of<T: Copy>(
    p: &[T],
    byte: impl Fn(T) -> u8,
    size: usize,
    sample: &ModelInput,
    mirrors: &[Mirror],
    out: &mut ProbMap,
) {
    let (width, height) = (sample.width, sample.height);
    let at = |reverse: bool, i: usize, side: usize| if reverse { side - 1 - i } else { i };
    (out.width, out.height) = (width, height);
    out.data.clear();
    for y in 0..height {
        if let [Mirror { across: false, down: false }] = mirrors {
            out.data.extend(p[y * size..][..width].iter().map(|p| byte(*p)));
            continue;
        }
        out.data.extend((0..width).map(|x| {
            let copies = p.chunks_exact(size * size).zip(mirrors);
            let bytes = copies.map(|(p, m)| byte(p[at(m.down, y, height) * size + at(m.across, x, width)]));
            let n = mirrors.len() as u16;
            ((bytes.map(u16::from).sum::<u16>() + n / 2) / n) as u8
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_preprocessing_paths_agree() {
        let sample = |width: usize, height: usize| {
            let rgb = (0..3 * width * height).map(|i| (i * 7 % 256) as u8).collect();
            ModelInput { width, height, rgb }
        };
        let samples = [sample(16, 9), sample(5, 16), sample(16, 16)];
        let values = |t: Tensor| (t.dims().to_vec(), t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let there = values(upload(&samples, 16, &Device::Cpu).unwrap());
        assert_eq!(there, values(normalise(&samples, 16).unwrap()));
        assert_eq!(there.0, [3, 3, 16, 16]);
    }
}
