//! AutoSAM's loss: binary cross-entropy plus Dice, on SAM's low-resolution mask (arXiv 2306.06370, §3).

use super::config::Target;
use autosam_model::MaskMode;
use autosam_ops::min_max;
use candle_core::{DType, Device, Result, Tensor};

/// Smoothing in numerator and denominator of the Dice loss, as published.
const DICE_SMOOTH: f64 = 1.0;

/// The two terms, each a differentiable scalar.
#[derive(Debug, Clone)]
pub struct Loss {
    pub bce: Tensor,
    pub dice: Tensor,
    /// Weighted sum of the terms added to the published loss.
    pub auxiliary: Option<Tensor>,
}

impl Loss {
    /// `L_BCE + L_Dice`, and the auxiliary terms.
    pub fn total(&self) -> Result<Tensor> {
        let published = (&self.bce + &self.dice)?;
        match &self.auxiliary {
            Some(term) => published + term,
            None => Ok(published),
        }
    }

    /// Adds `weight` times `term`, a scalar.
    pub fn add(&mut self, term: &Tensor, weight: f64) -> Result<()> {
        let term = (term * weight)?;
        self.auxiliary = Some(match self.auxiliary.take() {
            Some(sum) => (sum + term)?,
            None => term,
        });
        Ok(())
    }
}

/// Loss of `logits [N, 1, H, W]` against `target [N, 1, H, W]` in [0, 1].
///
/// [`MaskMode::MinMax`] is the published recipe (logits stretched to [0, 1] per image, then used as probabilities);
/// [`MaskMode::Sigmoid`] supports empty masks.
pub fn segmentation_loss(logits: &Tensor, target: &Tensor, mode: MaskMode) -> Result<Loss> {
    match mode {
        MaskMode::Sigmoid => {
            let bce = bce_with_logits(logits, target)?.mean_all()?;
            Ok(Loss { bce, dice: dice_loss(&candle_nn::ops::sigmoid(logits)?, target)?, auxiliary: None })
        }
        MaskMode::MinMax => {
            let p = min_max(logits)?;
            Ok(Loss { bce: binary_cross_entropy(&p, target)?, dice: dice_loss(&p, target)?, auxiliary: None })
        }
    }
}

/// Mean squared error of `said [N, 1]`, the overlaps that SAM's IoU head predicts for the masks `logits [N, 1, H, W]`,
/// as in SAM's own training (arXiv 2304.02643, appendix A). The truth is the overlap of the mask at threshold 0 with
/// `target`, or 0 if `target` is empty.
pub fn overlap_loss(said: &Tensor, logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let rows = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>();
    let truth: Vec<f32> = rows(logits)?
        .iter()
        .zip(&rows(target)?)
        .map(|(logits, target)| {
            let (mut both, mut either) = (0u32, 0u32);
            for (l, t) in logits.iter().zip(target) {
                let (l, t) = (*l > 0.0, *t > 0.5);
                both += u32::from(l && t);
                either += u32::from(l || t);
            }
            both as f32 / either.max(1) as f32
        })
        .collect();
    let truth = Tensor::from_vec(truth, said.shape(), said.device())?;
    (said.to_dtype(DType::F32)? - truth)?.sqr()?.mean_all()
}

/// Elementwise `max(x, 0) - x·y + ln(1 + e^-|x|)`, stable for any logit.
pub fn bce_with_logits(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let soft = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    (x.relu()? - x.mul(y)?)? + soft
}

/// Mean cross-entropy of probabilities as `torch.nn.functional.binary_cross_entropy`: logarithms are clamped to at
/// least -100, and the gradient is `(p - y) / max(p (1 - p), 1e-12)`. So exact 0 and 1 (one pixel each per image after
/// min-max) have large gradients, while autograd through the logarithm gives none.
fn binary_cross_entropy(p: &Tensor, y: &Tensor) -> Result<Tensor> {
    let count = p.elem_count() as f64;
    let q = p.detach();
    let not_q = q.affine(-1.0, 1.0)?;
    let log = |t: &Tensor| t.log()?.maximum(-100.0);
    let value = (y.mul(&log(&q)?)? + y.affine(-1.0, 1.0)?.mul(&log(&not_q)?)?)?.mean_all()?.neg()?;
    let slope = ((&q - y)?.div(&q.mul(&not_q)?.maximum(1e-12)?)? / count)?;
    // Contributes 0 to the value and `slope` to the gradient.
    let carrier = p.mul(&slope.detach())?.sum_all()?;
    value.detach() + (&carrier - carrier.detach())?
}

/// `1 - mean((tp + 1) / (tp + fn/2 + fp/2 + 1))` over the batch.
fn dice_loss(p: &Tensor, y: &Tensor) -> Result<Tensor> {
    let sum = |t: Tensor| t.flatten_from(1)?.sum(1);
    let tp = sum(p.mul(y)?)?;
    let fn_ = (sum(y.clone())? - &tp)?;
    let fp = (sum(p.clone())? - &tp)?;
    let denominator = ((&tp + ((fn_ + fp)? * 0.5)?)? + DICE_SMOOTH)?;
    (tp + DICE_SMOOTH)?.div(&denominator)?.mean_all()?.affine(-1.0, 1.0)
}

/// `size × size` masks (0 or 255) → `[N, 1, low, low]` in [0, 1].
pub(super) fn low_resolution_target(
    masks: &[Vec<u8>],
    size: usize,
    low: usize,
    target: Target,
    device: &Device,
) -> Result<Tensor> {
    let step = size / low;
    let reach = match target {
        Target::Area => step,
        // As torch.nn.functional.interpolate: the first pixel of each cell.
        Target::Nearest => 1,
    };
    let scale = 1.0 / (reach * reach * 255) as f32;
    let cell = |mask: &[u8], x: usize, y: usize| {
        let rows = (y * step..).take(reach).map(|y| &mask[y * size + x * step..][..reach]);
        rows.flatten().map(|p| u32::from(*p)).sum::<u32>() as f32 * scale
    };
    let out: Vec<f32> =
        masks.iter().flat_map(|mask| (0..low * low).map(move |i| cell(mask, i % low, i / low))).collect();
    Tensor::from_vec(out, (masks.len(), 1, low, low), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn image(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (1, 1, 2, values.len() / 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_perfect_mask_has_a_low_loss_and_its_inverse_a_high_one() {
        let target = image(&[1.0, 0.0, 1.0, 0.0]);
        let good =
            segmentation_loss(&image(&[20.0, -20.0, 20.0, -20.0]), &target, MaskMode::Sigmoid).unwrap();
        let bad = segmentation_loss(&image(&[-20.0, 20.0, -20.0, 20.0]), &target, MaskMode::Sigmoid).unwrap();
        let value = |l: Loss| l.total().unwrap().to_scalar::<f32>().unwrap();
        assert!(value(good) < 1e-5);
        assert!(value(bad) > 20.0);
    }

    #[test]
    fn an_empty_mask_minimises_the_loss_of_an_empty_target() {
        let empty = image(&[0.0; 4]);
        let dice = |logit: f32| {
            let l = segmentation_loss(&image(&[logit; 4]), &empty, MaskMode::Sigmoid).unwrap();
            l.dice.to_scalar::<f32>().unwrap()
        };
        assert!(dice(-20.0) < 1e-5);
        assert!(dice(20.0) > 0.6);
    }

    #[test]
    fn min_max_spans_zero_to_one_per_image() {
        let x = Tensor::from_slice(&[0f32, 5.0, 10.0, 2.0, 2.0, 2.0], (2, 1, 1, 3), &Device::Cpu).unwrap();
        let y = min_max(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0] == 0.0 && (y[1] - 0.5).abs() < 1e-6 && (y[2] - 1.0).abs() < 1e-6);
        assert_eq!(&y[3..], &[0.0; 3]);
    }

    #[test]
    fn gradients_are_finite_where_probabilities_saturate() {
        let x = candle_core::Var::from_tensor(&image(&[-3.0, 0.5, 1.0, 9.0])).unwrap();
        let loss = segmentation_loss(&x, &image(&[1.0, 0.0, 1.0, 0.0]), MaskMode::MinMax).unwrap();
        let grads = loss.total().unwrap().backward().unwrap();
        let g = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(g.iter().all(|g| g.is_finite()), "{g:?}");
    }

    #[test]
    fn a_target_cell_is_its_foreground_fraction_or_its_first_pixel() {
        // 4 x 4 pixels for 2 x 2 cells.
        let mask = vec![255, 0, 0, 255, 255, 255, 0, 0, 0, 0, 255, 255, 0, 255, 255, 255];
        let target = |kind| {
            let t = low_resolution_target(std::slice::from_ref(&mask), 4, 2, kind, &Device::Cpu).unwrap();
            let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(|v| (v * 100.0).round() / 100.0).collect::<Vec<_>>()
        };
        assert_eq!(target(Target::Area), [0.75, 0.25, 0.25, 1.0]);
        assert_eq!(target(Target::Nearest), [1.0, 0.0, 0.0, 1.0]);
    }
}
