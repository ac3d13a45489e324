//! SAM against segment-anything 1.0: `sam_*.safetensors`.

use crate::support::{self, Golden, check, goldens, param, signed, u};
use autosam::model::MaskMode;
use autosam::sam::{DecoderConfig, EncoderConfig, Prompts, Sam, SamConfig, VitConfig};
use autosam::train::losses::segmentation_loss;
use autosam::weights::recorder::shapes_of;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use std::collections::HashMap;

const OUT: f64 = 1e-4;
const GRAD: f64 = 1e-3;

fn config(golden: &Golden) -> SamConfig {
    let c: serde_json::Value = serde_json::from_str(golden.meta("config")).unwrap();
    let size = |name: &str| c[name].as_u64().unwrap_or_else(|| panic!("config.{name}")) as usize;
    SamConfig {
        image_size: size("img_size"),
        stretch: false,
        encoder: EncoderConfig::Vit(VitConfig {
            embed_dim: size("embed_dim"),
            depth: size("depth"),
            heads: size("heads"),
            global_blocks: c["glob"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap() as usize)
                .collect(),
            window: size("window"),
            mlp_ratio: 4,
        }),
        embed_channels: 256,
        decoder: DecoderConfig::default(),
    }
}

/// A SAM with the deterministic parameters.
fn filled(config: &SamConfig, prefix: &str) -> Sam {
    let shapes = shapes_of(|vb| Sam::load(config, vb)).unwrap();
    let map: HashMap<String, Tensor> =
        shapes.into_iter().map(|(n, s)| (n.clone(), param(&format!("{prefix}{n}"), &s))).collect();
    Sam::load(config, VarBuilder::from_tensors(map, DType::F32, &Device::Cpu)).unwrap()
}

/// Every `step`th channel or pixel along `dim`.
fn every(x: &Tensor, dim: usize, step: usize) -> Tensor {
    let index: Vec<u32> = (0..x.dim(dim).unwrap()).step_by(step).map(|i| i as u32).collect();
    let index = Tensor::new(index.as_slice(), &Device::Cpu).unwrap();
    x.contiguous().unwrap().index_select(&index, dim).unwrap()
}

fn pixels(x: &Tensor, step: usize) -> Tensor {
    every(&every(x, 2, step), 3, step)
}

/// The golden's image: pixel values of 0 to 255, normalised and padded.
fn image_tensor(golden: &Golden, size: usize) -> (Tensor, usize, usize) {
    let [h, w]: [usize; 2] = serde_json::from_str(golden.meta("image_h_w")).unwrap();
    let sample = autosam::engine::segmenter::ModelInput {
        width: w,
        height: h,
        rgb: support::image(&format!("{}image", golden.prefix()), h, w),
    };
    (autosam::model::preprocess(&[sample], size, &Device::Cpu).unwrap(), h, w)
}

fn outputs(golden: &Golden) {
    let (config, prefix) = (config(golden), golden.prefix());
    let sub: usize = golden.meta("subsample").parse().unwrap();
    let sam = filled(&config, prefix);
    let (s, g) = (config.image_size, config.grid());
    let (x, h, w) = image_tensor(golden, s);
    let test = |name: &str, out: &Tensor| check(golden, name, out, golden.get(name), OUT);

    let emb = sam.encode_image(&x, false).unwrap();
    test("image_embeddings", &every(&emb, 1, sub));
    let pe = sam.prompt_encoder.dense_pe().unwrap();
    test("dense_pe", &every(&pe, 1, sub));
    test("no_mask_dense", &sam.prompt_encoder.no_mask_dense().unwrap().flatten_from(1).unwrap());

    let dense = signed(&format!("{prefix}dense_prompt"), &[2, 256, g, g]);
    let first = dense.narrow(0, 0, 1).unwrap();
    let (sparse, _) = sam.prompt_encoder.forward(&Prompts::default(), 1).unwrap();
    let (low, iou) = sam.mask_decoder.forward(&emb, &pe, &sparse, &first, false).unwrap();
    test("autosam.low_res_logits", &low);
    test("autosam.iou", &iou);
    let logits = sam.mask_decoder.mask_logits(&emb, &pe, &sparse, &first).unwrap();
    assert_eq!(support::relative_error(&logits, &low), 0.0);
    let full = sam.postprocess_masks(&low, (h, w), (h * 3 / 4, w * 3 / 4)).unwrap();
    test("autosam.logits_at_original_size", &pixels(&full, 2 * sub));

    let (wf, hf) = (w as f32, h as f32);
    let coords = Tensor::new(&[[[wf * 0.5, hf * 0.4], [wf * 0.2, hf * 0.7]]], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[[1f32, 0.0]], &Device::Cpu).unwrap();
    let boxes = Tensor::new(&[[wf * 0.1, hf * 0.2, wf * 0.8, hf * 0.9]], &Device::Cpu).unwrap();
    let masks = (signed(&format!("{prefix}mask_prompt"), &[1, 1, 4 * g, 4 * g]) * 8.0).unwrap();
    for (name, prompts, multimask) in [
        ("points", Prompts { points: Some((coords, labels)), ..Default::default() }, true),
        ("box", Prompts { boxes: Some(boxes), ..Default::default() }, false),
        ("mask", Prompts { masks: Some(masks), ..Default::default() }, false),
    ] {
        let (sparse, dense) = sam.prompt_encoder.forward(&prompts, 1).unwrap();
        if name == "mask" {
            test("mask.dense", &every(&dense, 1, sub));
        } else {
            test(&format!("{name}.sparse"), &sparse);
        }
        let (low, iou) = sam.mask_decoder.forward(&emb, &pe, &sparse, &dense, multimask).unwrap();
        test(&format!("{name}.low_res_logits"), &pixels(&low, sub));
        test(&format!("{name}.iou"), &iou);
    }
    if golden.tensors.contains_key("train.grad_dense_prompt") {
        gradients(golden, &sam, &emb, &pe, &dense, g);
    }
}

/// A batch of two in one decoder call, the second image's embedding mirrored.
fn gradients(golden: &Golden, sam: &Sam, emb: &Tensor, pe: &Tensor, dense: &Tensor, g: usize) {
    let mirrored = {
        let index: Vec<u32> = (0..g as u32).rev().collect();
        emb.index_select(&Tensor::new(index.as_slice(), &Device::Cpu).unwrap(), 3).unwrap()
    };
    let emb = Tensor::cat(&[emb, &mirrored], 0).unwrap();
    let dense = Var::from_tensor(dense).unwrap();
    let (sparse, _) = sam.prompt_encoder.forward(&Prompts::default(), 2).unwrap();
    let low = sam.mask_decoder.mask_logits(&emb, pe, &sparse, &dense).unwrap();
    check(golden, "train.low_res_logits", &low, golden.get("train.low_res_logits"), OUT);
    let gt: Vec<f32> = u(&format!("{}gt", golden.prefix()), 2 * 16 * g * g)
        .into_iter()
        .map(|u| f32::from(u8::from(u > 0.7)))
        .collect();
    let gt = Tensor::from_vec(gt, (2, 1, 4 * g, 4 * g), &Device::Cpu).unwrap();
    for (name, mode) in [("train", MaskMode::MinMax), ("train_sigmoid", MaskMode::Sigmoid)] {
        let loss = segmentation_loss(&low, &gt, mode).unwrap();
        let scalar = |t: &Tensor| t.reshape(1).unwrap();
        check(golden, &format!("{name}.bce"), &scalar(&loss.bce), golden.get(&format!("{name}.bce")), OUT);
        check(golden, &format!("{name}.dice"), &scalar(&loss.dice), golden.get(&format!("{name}.dice")), OUT);
        let grads = loss.total().unwrap().backward().unwrap();
        let key = format!("{name}.grad_dense_prompt");
        check(golden, &key, grads.get(&dense).unwrap(), golden.get(&key), GRAD);
    }
}

#[test]
fn small_sams_agree_with_pytorch() {
    for golden in goldens("sam_").iter().filter(|g| config(g).image_size < 1024) {
        outputs(golden);
    }
}

/// The full ViT-B at 1024 px: some 20 s on two cores.
#[test]
fn full_size_sams_agree_with_pytorch() {
    for golden in goldens("sam_").iter().filter(|g| config(g).image_size >= 1024) {
        outputs(golden);
    }
}

/// One call with N images and N prompts gives the same results as N calls.
#[test]
fn a_batch_gives_the_same_masks_as_single_images() {
    let encoder = EncoderConfig::Vit(VitConfig {
        embed_dim: 32,
        depth: 2,
        heads: 2,
        global_blocks: vec![1],
        window: 3,
        mlp_ratio: 2,
    });
    let config = SamConfig {
        image_size: 64,
        stretch: false,
        encoder,
        embed_channels: 64,
        decoder: DecoderConfig::default(),
    };
    let sam = filled(&config, "batch/");
    let images = signed("batch/images", &[3, 3, 64, 64]);
    let points = (signed("batch/points", &[3, 2, 2]).affine(32.0, 32.0)).unwrap();
    let labels = Tensor::new(&[[1f32, 0.0], [1.0, 1.0], [0.0, -1.0]], &Device::Cpu).unwrap();
    let boxes = (signed("batch/boxes", &[3, 4]).affine(32.0, 32.0)).unwrap();
    let run = |from: usize, n: usize| {
        let part = |t: &Tensor| t.narrow(0, from, n).unwrap().contiguous().unwrap();
        let prompts =
            Prompts { points: Some((part(&points), part(&labels))), boxes: Some(part(&boxes)), masks: None };
        let (sparse, dense) = sam.prompt_encoder.forward(&prompts, n).unwrap();
        let emb = sam.encode_image(&part(&images), false).unwrap();
        sam.mask_decoder
            .forward(&emb, &sam.prompt_encoder.dense_pe().unwrap(), &sparse, &dense, true)
            .unwrap()
    };
    let (all, all_iou) = run(0, 3);
    for i in 0..3 {
        let (one, iou) = run(i, 1);
        assert!(support::relative_error(&all.narrow(0, i, 1).unwrap(), &one) < 1e-5);
        assert!(support::relative_error(&all_iou.narrow(0, i, 1).unwrap(), &iou) < 1e-5);
    }
}
