//! Accumulates gradients of this crate's operations outside candle's backward pass. candle's backward adds every
//! gradient of a tensor, including the first, to a tensor of zeros on one thread, which takes a sixth of a training
//! step. Inside [`taped`] the first gradient is used as it is, and further ones are added on all threads.
//!
//! candle still orders the backward pass. It orders *tokens*, tensors of one element that represent the results of
//! operations; the gradients themselves pass from [`Record`] to [`Record`]. Tensors from candle's own operations and
//! variables enter the tape through [`Entered`], and results used by candle's operations leave it through [`Computed`],
//! so that both kinds of operations can be mixed freely.

use super::op::Op;
use crate::kernels::cpu::add::Add;
use crate::runtime::capture;
use crate::runtime::kernel::{Differentiable, Gradients, Kernel, in_storage};
use crate::runtime::operands::Args;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, TensorId};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

thread_local! {
    static TAPE: RefCell<Option<HashMap<TensorId, Place>>> = const { RefCell::new(None) };
}

/// Runs `f`, which computes a loss on this thread. Its gradients equal those of candle's backward except for the order
/// of sums.
pub fn taped<R>(f: impl FnOnce() -> R) -> R {
    /// Restores the previous state, also after a panic.
    struct Before(Option<HashMap<TensorId, Place>>);
    impl Drop for Before {
        fn drop(&mut self) {
            TAPE.set(self.0.take());
        }
    }
    let _before = Before(TAPE.replace(Some(HashMap::new())));
    f()
}

/// Applies `op` to up to three tensors, tracked if one of them is; without gradients, to any number that `op` accepts.
pub(crate) fn apply<K: Kernel + Differentiable + 'static>(op: K, args: &[&Tensor]) -> Result<Tensor> {
    if !args.iter().any(|x| x.track_op()) {
        return capture::apply(op, args);
    }
    if records(args) {
        return record(op, args);
    }
    match args {
        [x] => x.apply_op1(Op(op)),
        [a, b] => a.apply_op2(b, Op(op)),
        [a, b, c] => a.apply_op3(b, c, Op(op)),
        _ => candle_core::bail!("{}: gradients are not supported for {} operands", op.name(), args.len()),
    }
}

/// Reshapes `x`, as [`Tensor::reshape`].
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let y = x.reshape(shape.into())?;
    if let Some(place) = Place::known(x)
        && y.id() != x.id()
    {
        let (record, token) = Record::of(Arc::new(Reshaped), &[x], &[Some(place)])?;
        record.keep(&y, token);
    }
    Ok(y)
}

/// Whether an operation on `args` must be recorded.
fn records(args: &[&Tensor]) -> bool {
    args.iter().any(|x| x.track_op())
        && args.iter().all(|x| x.device().is_cpu())
        && TAPE.with_borrow(Option::is_some)
}

fn record<K: Kernel + Differentiable + 'static>(op: K, args: &[&Tensor]) -> Result<Tensor> {
    let places = args.iter().map(|x| Place::of(x)).collect::<Result<Vec<_>>>()?;
    let op = Arc::new(op);
    let (record, token) = Record::of(op.clone(), args, &places)?;
    let y = token.apply_op1(Computed { op, record: record.clone() })?;
    record.keep(&y, token);
    Ok(y)
}

/// The accumulator of a tensor's gradient, and the token that represents the tensor in candle's graph.
#[derive(Clone)]
struct Place {
    token: Tensor,
    sum: Sum,
}

impl Place {
    /// `None` if `x` has no gradient.
    fn of(x: &Tensor) -> Result<Option<Self>> {
        if !x.track_op() {
            return Ok(None);
        }
        if let Some(known) = Self::known(x) {
            return Ok(Some(known));
        }
        let sum = Sum::default();
        let place = Self { token: x.apply_op1(Entered(sum.clone()))?, sum };
        place.clone().put(x);
        Ok(Some(place))
    }

    /// The place of a tensor that is already on the tape.
    fn known(x: &Tensor) -> Option<Self> {
        TAPE.with_borrow(|tape| tape.as_ref()?.get(&x.id()).cloned())
    }

    fn put(self, x: &Tensor) {
        TAPE.with_borrow_mut(|tape| {
            if let Some(tape) = tape {
                tape.insert(x.id(), self);
            }
        });
    }
}

/// The accumulated gradient of a tensor.
#[derive(Clone, Default)]
struct Sum(Arc<Mutex<Option<Tensor>>>);

impl Sum {
    fn add(&self, gradient: &Tensor) -> Result<()> {
        let gradient = gradient.detach();
        let mut sum = self.0.lock();
        *sum = Some(match sum.take() {
            None => gradient,
            Some(before) => capture::apply(Add, &[&before.contiguous()?, &gradient.contiguous()?])?,
        });
        Ok(())
    }

    fn take(&self) -> Option<Tensor> {
        self.0.lock().take()
    }
}

/// A recorded operation.
struct Record {
    op: Arc<dyn Differentiable>,
    args: Vec<Tensor>,
    /// Gradients of the arguments.
    sums: Vec<Option<Sum>>,
    /// The result, detached, because its history leads to this record.
    result: OnceLock<Tensor>,
    /// Gradient of the result.
    sum: Sum,
}

impl Record {
    /// A record for up to three arguments with these places, and its token.
    fn of(
        op: Arc<dyn Differentiable>,
        args: &[&Tensor],
        places: &[Option<Place>],
    ) -> Result<(Arc<Self>, Tensor)> {
        let record = Arc::new(Self {
            op,
            args: args.iter().map(|x| (*x).clone()).collect(),
            sums: places.iter().map(|p| Some(p.as_ref()?.sum.clone())).collect(),
            result: OnceLock::new(),
            sum: Sum::default(),
        });
        let none = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let token = |i: usize| places.get(i).and_then(Option::as_ref).map_or(&none, |p| &p.token);
        let token = token(0).apply_op3(token(1), token(2), Token(record.clone()))?;
        Ok((record, token))
    }

    fn args(&self) -> Vec<&Tensor> {
        self.args.iter().collect()
    }

    fn keep(&self, result: &Tensor, token: Tensor) {
        // Set once, because a record has one result.
        let _ = self.result.set(result.detach());
        Place { token, sum: self.sum.clone() }.put(result);
    }

    fn backward(&self) -> Result<()> {
        let (Some(gradient), Some(result)) = (self.sum.take(), self.result.get()) else { return Ok(()) };
        let gradients = self.op.backward(&self.args(), result, &gradient.contiguous()?)?;
        for (sum, gradient) in self.sums.iter().zip(gradients) {
            if let (Some(sum), Some(gradient)) = (sum, gradient) {
                sum.add(&gradient)?;
            }
        }
        Ok(())
    }
}

/// Represents a result; its operands are the tokens of the operation's arguments.
struct Token(Arc<Record>);

fn one_element() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

impl CustomOp3 for Token {
    fn name(&self) -> &'static str {
        "autosam-token"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(one_element())
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.0.backward()?;
        // A placeholder gradient, because candle requires one for the next operation that it visits.
        let token = |t: &Tensor| t.track_op().then(|| t.detach());
        Ok((token(a), token(b), token(c)))
    }
}

/// A result for use outside the tape; its operand is the result's token.
struct Computed<K> {
    op: Arc<K>,
    record: Arc<Record>,
}

impl<K: Kernel> CustomOp1 for Computed<K> {
    fn name(&self) -> &'static str {
        "autosam-computed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        in_storage(&*self.op, Args::Tensors(&self.record.args()))
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.record.sum.add(gradient)?;
        Ok(Some(token.detach()))
    }
}

/// The token of a tensor that was not computed by a record.
struct Entered(Sum);

impl CustomOp1 for Entered {
    fn name(&self) -> &'static str {
        "autosam-entered"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(one_element())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match self.0.take() {
            Some(gradient) => gradient,
            None => x.zeros_like()?,
        }))
    }
}

struct Reshaped;

impl Differentiable for Reshaped {
    fn name(&self) -> &'static str {
        "autosam-reshape"
    }

    fn backward(&self, args: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        Ok([Some(grad.reshape(args[0].shape())?), None, None])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{self as ops, Activation};
    use candle_core::Var;
    use std::mem::MaybeUninit;

    fn numbers(shape: &[usize], seed: usize) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 13) % 29) as f32 / 29.0 - 0.4).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Mixes this crate's operations with candle's: results used several times by both, a variable used twice, and an
    /// argument without a gradient.
    fn loss([x, w, bias, gain]: &[Var; 4]) -> Tensor {
        let fixed = numbers(&[2, 4, 6, 6], 5);
        let y = ops::conv2d_then(x, w, Some(bias), ops::Conv2d { padding: 1, ..Default::default() }, None)
            .unwrap();
        let y = ops::activate(&y, Activation::Relu6).unwrap();
        let y = ops::add(&y, &fixed).unwrap();
        let z = ops::concat(&[&y, x, &y]).unwrap();
        let wide = Tensor::cat(&[w.as_tensor(), w, w], 1).unwrap();
        let z = ops::conv2d(&z, &wide, None, ops::Conv2d { padding: 1, ..Default::default() }).unwrap();
        let z = ops::add(&z, &z).unwrap();
        let rows = ops::reshape(&ops::channels_last(&z).unwrap(), (2, 36, 4)).unwrap();
        let normed = ops::layer_norm(&rows, gain, bias, 1e-5).unwrap();
        let direct = (rows.sqr().unwrap().mean_all().unwrap() + y.mean_all().unwrap()).unwrap();
        let unused = ops::gelu(&y).unwrap();
        drop(unused);
        let mixed = ops::linear(&normed, &gain.reshape((1, 4)).unwrap(), None).unwrap();
        (ops::softmax(&ops::reshape(&mixed, (2, 36)).unwrap()).unwrap().sqr().unwrap().sum_all().unwrap()
            + direct)
            .unwrap()
    }

    #[test]
    fn gradients_equal_candle_s() {
        let vars = [numbers(&[2, 4, 6, 6], 1), numbers(&[4, 4, 3, 3], 2), numbers(&[4], 3), numbers(&[4], 4)]
            .map(|t| Var::from_tensor(&t).unwrap());
        let without = loss(&vars);
        let with = taped(|| loss(&vars));
        let value = |t: &Tensor| t.to_scalar::<f32>().unwrap();
        assert_eq!(value(&with), value(&without));
        let (a, b) = (without.backward().unwrap(), with.backward().unwrap());
        for var in &vars {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (a, b) = (flat(a.get(var).unwrap()), flat(b.get(var).unwrap()));
            let size = a.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(size > 0.0);
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() <= 1e-5 * size, "{a} without a tape, {b} with");
            }
        }
    }

    #[test]
    fn operations_are_recorded_only_inside_taped_and_freed_after() {
        let x = Var::from_tensor(&numbers(&[2, 3], 1)).unwrap();
        assert!(!records(&[&x]));
        taped(|| {
            assert!(records(&[&x]) && !records(&[&x.as_detached_tensor()]));
            assert_eq!(ops::gelu(&x).unwrap().dims(), [2, 3]);
        });
        assert!(!records(&[&x]));
        TAPE.with_borrow(|tape| assert!(tape.is_none()));
    }

    #[test]
    fn graphs_are_freed() {
        let x = Var::from_tensor(&numbers(&[2, 4], 1)).unwrap();
        let (weak, loss) = taped(|| {
            let y = ops::gelu(&x).unwrap();
            let kept = Arc::new(());
            let weak = Arc::downgrade(&kept);
            let z = apply(Witness(kept), &[&y]).unwrap();
            (weak, ops::softmax(&z).unwrap().sqr().unwrap().sum_all().unwrap())
        });
        loss.backward().unwrap();
        assert!(weak.upgrade().is_some());
        drop(loss);
        assert!(weak.upgrade().is_none());
    }

    /// The same, with a value whose drop can be observed.
    struct Witness(#[expect(dead_code, reason = "held")] Arc<()>);

    // SAFETY: a copy.
    unsafe impl Kernel for Witness {
        fn shape(&self, args: Args) -> Result<Shape> {
            Ok(Shape::from(args.dims(0)))
        }

        fn compute(&self, args: Args, out: &mut [MaybeUninit<f32>]) -> Result<()> {
            crate::runtime::memory::copied(&args.get(0)?, out);
            Ok(())
        }
    }

    impl Differentiable for Witness {
        fn name(&self) -> &'static str {
            "witness"
        }

        fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Gradients> {
            Ok([Some(grad.clone()), None, None])
        }
    }
}
