//! Tests of [`super::Trainer`] that access its internals.

use super::*;
use crate::train::config::SamKind;
use crate::train::objects::ObjectMix;
use crate::train::prompts::PromptMix;
use autosam_frame::map::ModelInput;

/// Two images, each with a disc at a different position.
fn batch(size: usize) -> Batch {
    let (mut samples, mut masks) = (Vec::new(), Vec::new());
    for (cx, cy) in [(0.3, 0.6), (0.7, 0.4)] {
        let inside = |i: usize| {
            let (x, y) = ((i % size) as f32 / size as f32, (i / size) as f32 / size as f32);
            (x - cx).hypot(y - cy) < 0.2
        };
        let pixel = |i: usize| if inside(i) { [200, 120, 110] } else { [90 + (i % 17) as u8, 40, 50] };
        samples.push(ModelInput {
            width: size,
            height: size,
            rgb: (0..size * size).flat_map(pixel).collect(),
        });
        masks.push((0..size * size).map(|i| if inside(i) { 255 } else { 0 }).collect());
    }
    Batch { samples, masks, ids: vec!["a".into(), "b".into()] }
}

fn only(kind: &str) -> PromptMix {
    let one = |k| if k == kind { 1.0 } else { 0.0 };
    PromptMix { none: one("none"), point: one("point"), bbox: one("bbox"), mask: one("mask") }
}

/// In f16, which a CPU supports too; a GPU uses bf16 through the same casts.
#[test]
fn a_16_bit_step_has_the_loss_and_gradients_of_an_f32_step() {
    let (stage, sam) = (Stage::Sam, SamKind::Tiny);
    let config = TrainConfig { stage, sam, prompts: only("point"), ..TrainConfig::default() };
    let trainer = Trainer::new(&config, None, &Device::Cpu).unwrap();
    let batch = batch(trainer.image_size());
    let name = "image_encoder.layers.1.blocks.0.mlp.fc1.weight";
    let step = |dtype| {
        let loss = ops::autocast(dtype, || trainer.loss(&batch, 0)).unwrap().total().unwrap();
        // Scaled, because f16, unlike bf16, would lose small gradients.
        let grads = (&loss * 4096.0).unwrap().backward().unwrap();
        let grad = grads.get(&trainer.params.trained()[name]).unwrap().flatten_all().unwrap();
        (loss.to_scalar::<f32>().unwrap(), grad.to_vec1::<f32>().unwrap())
    };
    let ((a, ga), (b, gb)) = (step(None), step(Some(DType::F16)));
    assert!(a != b && (a / b - 1.0).abs() < 2e-3, "{a} and {b}");
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    let difference = norm(&mut ga.iter().zip(&gb).map(|(a, b)| a - b));
    let size = norm(&mut ga.iter().copied());
    assert!(difference < 0.05 * size, "{difference} of {size}");
}

/// For a SAM's weights the slope of the loss along the gradient equals the gradient's norm. (The goldens of a frozen
/// SAM do not cover gradients of weights.)
#[test]
fn sam_s_gradients_equal_the_slopes_of_the_loss() {
    for kind in ["none", "mask"] {
        let (stage, sam) = (Stage::Sam, SamKind::Tiny);
        let prompts = only(kind);
        // The IoU head's target jumps with each pixel of the mask, so its loss has no slope.
        let overlap_weight = 0.0;
        let objects = ObjectMix { labelled: 1.0, shape: 0.0, region: 0.0, nothing: 0.0 };
        let rest = TrainConfig { objects, overlap_weight, batch: 2, ..TrainConfig::default() };
        let config = TrainConfig { stage, sam, prompts, ..rest };
        let trainer = Trainer::new(&config, None, &Device::Cpu).unwrap();
        // Training starts with small masks and therefore small gradients; ten times larger ones exceed the rounding
        // error.
        let last = &trainer.params.trained()["mask_decoder.output_hypernetworks_mlps.0.layers.2.weight"];
        last.set(&(last.as_detached_tensor() * 10.0).unwrap()).unwrap();
        let batch = batch(trainer.image_size());
        let total = || {
            let loss = trainer.loss(&batch, 0).unwrap().total().unwrap();
            (f64::from(loss.to_scalar::<f32>().unwrap()), loss)
        };
        let grads = total().1.backward().unwrap();
        let mut checked = 0;
        // A prime stride covers every kind of layer in a fraction of the time.
        for (name, var) in trainer.params.trained().iter().step_by(17) {
            let Some(grad) = grads.get(var) else { continue };
            let norm = f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            // Smaller gradients are lost in the loss's rounding error.
            if norm < 0.02 {
                continue;
            }
            let theta = var.as_detached_tensor().copy().unwrap();
            let step = 2e-3 / norm;
            let at = |sign: f64| {
                var.set(&(&theta + (grad * (sign * step / norm)).unwrap()).unwrap()).unwrap();
                total().0
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            var.set(&theta).unwrap();
            assert!(
                (slope / norm - 1.0).abs() < 0.1,
                "{kind} {name}: gradient {norm:.3e}, slope {slope:.3e}"
            );
            checked += 1;
        }
        assert!(checked >= 5, "{kind}: {checked} tensors have a gradient worth checking");
    }
}
