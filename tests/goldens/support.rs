//! The deterministic tensors with which the goldens' models were filled, and the goldens' files.
//!
//! `u(name, i) = (splitmix64(fnv1a64(name) + i) >> 40) / 2^24`; see the goldens' `deterministic.py`.
#![allow(dead_code)] // each golden uses its own part

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Written out like the rest of this file, so that the goldens do not depend on the code that they test.
fn fnv1a64(s: &str) -> u64 {
    s.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// `n` uniform values in [0, 1).
pub fn u(name: &str, n: usize) -> Vec<f32> {
    let start = fnv1a64(name);
    (0..n as u64)
        .map(|i| {
            let mut z = start.wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            ((z >> 40) as f64 / f64::from(1 << 24)) as f32
        })
        .collect()
}

/// `2u - 1` in `shape`.
pub fn signed(name: &str, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let v: Vec<f32> = u(name, n).into_iter().map(|x| 2.0 * x - 1.0).collect();
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
}

/// The parameter `name` (prefix and state-dict name) of a model.
pub fn param(name: &str, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    if name.ends_with("num_batches_tracked") {
        return Tensor::zeros(shape, DType::I64, &Device::Cpu).unwrap();
    }
    let scale = (3.0 / (n as f64 / *shape.first().unwrap_or(&1) as f64)).sqrt();
    let v: Vec<f32> = u(name, n)
        .into_iter()
        .map(|u| {
            let v = 2.0 * f64::from(u) - 1.0;
            (if name.ends_with("running_mean") {
                0.1 * v
            } else if name.ends_with("running_var") {
                1.0 + 0.5 * v
            } else if shape.len() <= 1 {
                if name.ends_with("weight") { 1.0 + 0.1 * v } else { 0.05 * v }
            } else {
                v * scale
            }) as f32
        })
        .collect();
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
}

/// `h × w × 3` pixels, 0 to 255.
pub fn image(name: &str, h: usize, w: usize) -> Vec<u8> {
    u(name, h * w * 3).into_iter().map(|u| (f64::from(u) * 256.0).floor() as u8).collect()
}

/// One golden file: its tensors (f32) and its metadata.
pub struct Golden {
    pub path: PathBuf,
    pub tensors: HashMap<String, Tensor>,
    pub metadata: HashMap<String, String>,
}

impl Golden {
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.path.display()))
    }
    pub fn meta(&self, name: &str) -> &str {
        self.metadata.get(name).unwrap_or_else(|| panic!("{}: no metadata {name}", self.path.display()))
    }
    pub fn prefix(&self) -> &str {
        self.meta("prefix")
    }
}

/// The folders with goldens, in order of preference.
pub fn folders() -> Vec<PathBuf> {
    if let Ok(dir) = std::env::var("AUTOSAM_GOLDENS") {
        return vec![dir.into()];
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    vec![root.join("tests/data/goldens"), root.join("../shared/goldens")]
}

/// Every golden whose file name starts with `start`, each once (the first folder that has it wins).
/// Prints a note if there is none.
pub fn goldens(start: &str) -> Vec<Golden> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in folders() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = paths.iter().any(|p| p.file_name() == path.file_name());
            if name.starts_with(start) && name.ends_with(".safetensors") && !known {
                paths.push(path);
            }
        }
    }
    paths.sort();
    if paths.is_empty() {
        eprintln!("SKIPPED: no golden {start}*.safetensors in {:?}; set AUTOSAM_GOLDENS", folders());
    }
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Golden {
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap_or_default();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    Golden { path, tensors, metadata }
}

/// ‖out − expected‖ / ‖expected‖ in f64.
pub fn relative_error(out: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(out.dims(), expected.dims());
    let v = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (v(out), v(expected));
    let diff: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    if norm == 0.0 { diff.sqrt() } else { (diff / norm).sqrt() }
}

/// Asserts the relative error and prints it as a row for docs/goldens.md (`cargo test -- --nocapture`).
pub fn check(golden: &Golden, what: &str, out: &Tensor, expected: &Tensor, bar: f64) {
    let error = relative_error(out, expected);
    let file = golden.path.file_stem().unwrap().to_string_lossy();
    println!("| {file} | {what} | {error:.1e} | {bar:.0e} |");
    assert!(error < bar, "{file}: {what}: relative error {error:.2e}, bar {bar:.0e}");
}
