//! Finds which tensors a model loads by building it without weights.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use parking_lot::Mutex;
use std::sync::Arc;

/// Names and shapes in the order in which a model loads them.
pub type Shapes = Vec<(String, Vec<usize>)>;

struct Recorder(Arc<Mutex<Shapes>>);

impl SimpleBackend for Recorder {
    fn get(&self, s: Shape, name: &str, _: candle_nn::Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let mut seen = self.0.lock();
        if !seen.iter().any(|(n, _)| n == name) {
            seen.push((name.to_owned(), s.dims().to_vec()));
        }
        Tensor::zeros(s, dtype, dev)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: a model must specify the shape of each tensor that it loads")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// The tensors that `build` loads.
pub fn shapes_of<T>(build: impl FnOnce(VarBuilder) -> Result<T>) -> Result<Shapes> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    build(VarBuilder::from_backend(Box::new(Recorder(seen.clone())), DType::F32, Device::Cpu))?;
    let shapes = std::mem::take(&mut *seen.lock());
    Ok(shapes)
}
