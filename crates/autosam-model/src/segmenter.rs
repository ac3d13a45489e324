//! Opens models for the engine as a [`Segmenter`]. Models opened from the same file share their weights.

use crate::arithmetic::Arithmetic;
use crate::autosam::AutoSam;
use crate::network::Network;
use crate::options::ModelOptions;
use crate::predictor::{Predictor, PredictorOptions};
use crate::weights::Checkpoint;
use crate::{Error, Precision, Result, checkpoint};
use autosam_engine::segmenter::{ObjectPrompt, Segmenter};
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::resize::InputSize;
use autosam_ops as ops;
use candle_core::{Device, DeviceLocation, Tensor};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// Key of an open model. A file that was replaced since counts as a different one.
#[derive(Debug, PartialEq)]
struct Origin {
    file: Option<(PathBuf, SystemTime, u64)>,
    device: DeviceLocation,
    precision: Precision,
}

impl Origin {
    fn of(location: Option<&Path>, device: &Device, precision: Precision) -> Result<Self> {
        let file = location.map(|path| {
            let whole = path.canonicalize()?;
            let data = whole.metadata()?;
            Ok((whole, data.modified()?, data.len()))
        });
        let file = file.transpose().map_err(|e| Error::io(location.unwrap_or(Path::new("")), e))?;
        Ok(Self { file, device: device.location(), precision })
    }
}

/// A model and its number formats.
#[derive(Debug)]
struct Opened {
    model: AutoSam,
    arithmetic: Arithmetic,
}

impl Opened {
    fn new(checkpoint: &Checkpoint, device: &Device, precision: Precision) -> Result<Arc<Self>> {
        let (model, arithmetic) = AutoSam::with_precision(checkpoint, device, precision)?;
        Ok(Arc::new(Self { model, arithmetic }))
    }
}

impl Network for Opened {
    fn input_size(&self) -> InputSize {
        self.model.input_size()
    }
    fn device(&self) -> &Device {
        self.model.device()
    }
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.model.logits(x)
    }
    fn logits_with_object(&self, x: &Tensor, prompt: &ObjectPrompt) -> Result<(Tensor, Tensor)> {
        self.model.logits_with_object(x, prompt)
    }
}

/// The model of `location` on `device` for `precision`. The process holds one copy of its weights as long as it is in
/// use.
fn shared(location: Option<&Path>, device: &Device, precision: Precision) -> Result<Arc<Opened>> {
    static OPEN: Mutex<Vec<(Origin, Weak<Opened>)>> = Mutex::new(Vec::new());
    let origin = Origin::of(location, device, precision)?;
    // Held while loading, so that two threads that open the same model load it once. A panic here leaves the list
    // intact.
    let mut open = OPEN.lock();
    open.retain(|(_, model)| model.strong_count() > 0);
    if let Some(model) = open.iter().find(|(o, _)| *o == origin).and_then(|(_, model)| model.upgrade()) {
        return Ok(model);
    }
    let model = Opened::new(&checkpoint(location)?, device, precision)?;
    open.push((origin, Arc::downgrade(&model)));
    Ok(model)
}

/// Opens the weights at `location`, or the shipped model for `None`, for the engine. Models opened from the same file
/// on the same device share their weights.
pub fn open(location: Option<&Path>, options: &ModelOptions) -> Result<Box<dyn Segmenter>> {
    let device = options.device.resolve()?;
    let model = shared(location, &device, options.precision)?;
    Ok(Box::new(AutoSamSegmenter::new(model, options)))
}

/// [`open`] for weights in memory, which are not shared.
pub fn open_checkpoint(checkpoint: &Checkpoint, options: &ModelOptions) -> Result<Box<dyn Segmenter>> {
    let device = options.device.resolve()?;
    let model = Opened::new(checkpoint, &device, options.precision)?;
    Ok(Box::new(AutoSamSegmenter::new(model, options)))
}

/// Adapts an [`AutoSam`] to the engine.
struct AutoSamSegmenter(Predictor<Arc<Opened>>);

impl AutoSamSegmenter {
    fn new(model: Arc<Opened>, options: &ModelOptions) -> Self {
        let ModelOptions { mask_mode, flips, .. } = *options;
        let products = model.arithmetic.products;
        Self(Predictor::replaying(model, PredictorOptions { mask_mode, flips, products }))
    }
}

impl Segmenter for AutoSamSegmenter {
    fn input_size(&self) -> InputSize {
        self.0.network().input_size()
    }

    fn runs_on_gpu(&self) -> bool {
        !self.0.network().device().is_cpu()
    }

    fn on_each_thread(&self, f: &(dyn Fn() + Sync)) {
        ops::on_each_thread(f);
    }

    fn segment(&mut self, sample: &ModelInput, out: &mut ProbMap) -> Result<()> {
        self.0.segment(sample, out)
    }

    fn takes_prompts(&self) -> bool {
        true
    }

    fn segment_object(
        &mut self,
        sample: &ModelInput,
        prompt: &ObjectPrompt,
        out: &mut ProbMap,
        object: &mut ProbMap,
    ) -> Result<()> {
        (*out, *object) = self.0.segment_object(sample, prompt)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SHIPPED;
    #[cfg(feature = "cuda")]
    use crate::{DeviceChoice, Flips, ModelConfig};

    /// Eager and replayed, in f32 and in 16 bits.
    #[cfg(feature = "cuda")]
    #[test]
    fn gpu_masks_equal_cpu_masks() {
        let side = ModelConfig::of(&checkpoint(None).unwrap()).unwrap().sam.image_size;
        let (width, height) = (side, side - 60);
        let sample = |centre: f32| crate::testing::lesion(width, height, [centre, 80.0, 45.0]);
        let answer = |device, precision, flips, centres: &[f32]| -> Result<Vec<Vec<u8>>> {
            let options = ModelOptions { device, precision, flips, ..ModelOptions::default() };
            let mut segmenter = open(None, &options)?;
            let mut map = ProbMap::default();
            let mut of =
                |centre: &f32| segmenter.segment(&sample(*centre), &mut map).map(|()| map.data.clone());
            centres.iter().map(&mut of).collect()
        };
        let recorded = |precision| {
            let options =
                ModelOptions { device: DeviceChoice::Cuda(0), precision, ..ModelOptions::default() };
            let device = options.device.resolve().unwrap();
            let model = Opened::new(&checkpoint(None).unwrap(), &device, precision).unwrap();
            let mut segmenter = AutoSamSegmenter::new(model, &options);
            (0..4).for_each(|_| segmenter.segment(&sample(90.0), &mut ProbMap::default()).unwrap());
            segmenter.0.replays()
        };
        let centres = [90.0, 120.0, 150.0, 180.0, 90.0];
        for flips in [Flips::One, Flips::Two] {
            let expected = answer(DeviceChoice::Cpu, Precision::F32, flips, &centres).unwrap();
            for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
                let found = match answer(DeviceChoice::Cuda(0), precision, flips, &centres) {
                    Ok(found) => found,
                    Err(e) => return eprintln!("SKIPPED: {e}"),
                };
                for (a, b) in found.iter().zip(&expected) {
                    let (mut both, mut sum) = (0, 0);
                    for (a, b) in a.iter().zip(b) {
                        both += usize::from(*a > 127 && *b > 127);
                        sum += usize::from(*a > 127) + usize::from(*b > 127);
                        assert!(precision != Precision::F32 || a.abs_diff(*b) <= 2, "{flips:?}: {a}, {b}");
                    }
                    let dice = 2.0 * both as f64 / sum as f64;
                    assert!(sum > 1000 && dice >= 0.995, "{precision:?}, {flips:?}: Dice {dice:.4}");
                }
                assert_eq!(found[0], found[4], "{precision:?}: eager and replayed");
                assert!(flips != Flips::One || recorded(precision), "{precision:?}: not recorded");
            }
        }
    }

    #[test]
    fn open_models_share_weights() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, SHIPPED).unwrap();
        let copy = dir.path().join("copy.safetensors");
        std::fs::write(&copy, SHIPPED).unwrap();
        let open = |path: &Path| shared(Some(path), &Device::Cpu, Precision::F32).unwrap();
        let (first, second, other) = (open(&path), open(&path), open(&copy));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        // An unused model is freed, and a changed file is opened again.
        let gone = Arc::downgrade(&other);
        drop(other);
        assert!(gone.upgrade().is_none());
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(!Arc::ptr_eq(&first, &open(&path)));
        let text =
            shared(Some(&dir.path().join("nowhere")), &Device::Cpu, Precision::F32).unwrap_err().to_string();
        assert!(text.contains("nowhere"), "{text}");
    }
}
