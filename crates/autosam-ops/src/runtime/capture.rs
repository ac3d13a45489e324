//! Captures a network's operations once and replays them in fixed memory, as a CUDA graph does on a GPU. candle
//! allocates memory for every result; a replay allocates nothing.
//!
//! During capture every operation that goes through [`apply`] adds itself, its operands and its result to the trace. An
//! operand that was not computed by a traced operation is a constant, such as a weight. Operations that use candle
//! directly are invisible to the trace and would also be frozen as constants. Therefore [`CapturedGraph::capture`]
//! compares a replay with a different input bit by bit with the network itself.

use super::kernel::{Kernel, eager};
use super::operands::{Args, Elements, Operand, Place, Replayed};
use candle_core::{Device, Result, Shape, Tensor};
use parking_lot::RwLock;
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// The trace so far. Values are numbered in order of appearance; 0 is the input.
#[derive(Default)]
struct Trace {
    steps: Vec<Step>,
    /// Number of elements of each value.
    lengths: Vec<usize>,
    /// Values by the address of their tensor's memory.
    values: HashMap<usize, usize>,
}

enum Step {
    One(One),
    /// Two sequences that run concurrently.
    Both([Vec<Step>; 2]),
}

/// A single operation.
struct One {
    op: Box<dyn Kernel>,
    args: Vec<Operand>,
    /// Number of the result's value; after planning, of its buffer.
    to: usize,
    len: usize,
}

/// Address of a tensor's memory, and offset of its first element. `None` if it has no memory or is not f32.
fn place(x: &Tensor) -> Option<(usize, usize)> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(candle_core::CpuStorage::F32(all)) if !all.is_empty() => {
            Some((all.as_ptr().addr(), layout.start_offset()))
        }
        _ => None,
    }
}

impl Trace {
    fn operand(&self, x: &Tensor) -> Operand {
        let value = place(x).and_then(|(memory, first)| Some((*self.values.get(&memory)?, first)));
        let place = match value {
            Some((value, first)) => Place::Value(value, first),
            None => Place::Constant(x.clone()),
        };
        Operand { place, shape: x.shape().clone() }
    }

    /// Registers `x` as a new value.
    fn value(&mut self, x: &Tensor) -> usize {
        let value = self.lengths.len();
        self.lengths.push(x.elem_count());
        if let Some((memory, _)) = place(x) {
            self.values.insert(memory, value);
        }
        value
    }

    fn add(&mut self, op: impl Kernel + 'static, args: &[&Tensor], result: &Tensor) {
        let args: Vec<Operand> = args.iter().map(|x| self.operand(x)).collect();
        if args.iter().all(|arg| matches!(arg.place, Place::Constant(_))) {
            // A result of constants is a constant; its memory may have belonged to a value before.
            if let Some((memory, _)) = place(result) {
                self.values.remove(&memory);
            }
            return;
        }
        let (to, len) = (self.value(result), result.elem_count());
        self.steps.push(Step::One(One { op: Box::new(op), args, to, len }));
    }
}

/// The result of `op` as a tensor, without a gradient; traced if this thread captures a graph.
pub(crate) fn apply(op: impl Kernel + 'static, args: &[&Tensor]) -> Result<Tensor> {
    // The trace is removed during the call, because a thread that waits for a parallel loop may execute other work,
    // possibly of another network.
    let trace = TRACE.take();
    let result = eager(&op, args)?;
    if let Some(mut trace) = trace {
        trace.add(op, args, &result);
        TRACE.set(Some(trace));
    }
    Ok(result)
}

/// Computes both results in parallel.
pub fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let Some(mut before) = go_on_with(Vec::new()) else { return rayon::join(a, b) };
    let a = a();
    let first = go_on_with(Vec::new()).unwrap_or_default();
    let b = b();
    let second = go_on_with(Vec::new()).unwrap_or_default();
    before.push(Step::Both([first, second]));
    go_on_with(before);
    (a, b)
}

/// Replaces the steps of this thread's trace, if it has one, with `steps` and returns the previous ones.
fn go_on_with(steps: Vec<Step>) -> Option<Vec<Step>> {
    TRACE.with_borrow_mut(|r| r.as_mut().map(|r| std::mem::replace(&mut r.steps, steps)))
}

/// A captured network with one f32 input and one f32 result.
pub struct CapturedGraph {
    steps: Vec<Step>,
    buffers: Vec<RwLock<Vec<f32>>>,
    input: (usize, usize),
    output: (usize, usize),
}

impl CapturedGraph {
    /// Captures `network` on an input of `shape`.
    ///
    /// # Errors
    /// If `network` fails, or if a replay does not reproduce its result.
    pub fn capture(shape: impl Into<Shape>, network: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let shape = shape.into();
        let input = Tensor::from_vec(noise(shape.elem_count(), 1), &shape, &Device::Cpu)?;
        let (output, trace) = traced(&input, &network)?;
        let made = trace.filter(|_| output.is_contiguous()).map(|r| (r.operand(&output), r));
        let Some((Operand { place: Place::Value(value, 0), .. }, trace)) = made else {
            candle_core::bail!("the last operation was not traced");
        };
        let mut graph = Self::of(trace, value);
        drop((input, output));
        let other = Tensor::from_vec(noise(shape.elem_count(), 2), &shape, &Device::Cpu)?;
        let expected = network(&other)?.contiguous()?;
        let (other, expected) = (Elements::of(&other)?, Elements::of(&expected)?);
        let same = graph.run(
            |input| input.copy_from_slice(&other),
            |found| {
                found.len() == expected.len()
                    && found.iter().zip(&*expected).all(|(a, b)| a.to_bits() == b.to_bits())
            },
        )?;
        if !same {
            candle_core::bail!("not every operation was traced");
        }
        Ok(graph)
    }

    fn of(trace: Trace, output: usize) -> Self {
        let Trace { mut steps, lengths, .. } = trace;
        let values = lengths.len();
        let mut arena =
            Arena { buffers: vec![0; values], sizes: Vec::new(), last: vec![None; values], at: 0 };
        arena.find_last_uses(&steps);
        arena.last[output] = Some(usize::MAX);
        arena.at = 0;
        let mut free = Vec::new();
        arena.give(0, lengths[0], &mut free);
        arena.plan(&mut steps, 0, &mut free);
        Self {
            steps,
            buffers: arena.sizes.iter().map(|size| RwLock::new(vec![0f32; *size])).collect(),
            input: (arena.buffers[0], lengths[0]),
            output: (arena.buffers[output], lengths[output]),
        }
    }

    /// Calls `fill` with the input buffer, replays, and calls `read` with the result.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn run<R>(&mut self, fill: impl FnOnce(&mut [f32]), read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let (buffer, len) = self.input;
        fill(&mut self.buffers[buffer].get_mut()[..len]);
        replay(&self.steps, &self.buffers)?;
        let (buffer, len) = self.output;
        Ok(read(&self.buffers[buffer].get_mut()[..len]))
    }

    /// Size of the fixed memory in bytes.
    pub fn memory(&self) -> usize {
        let lengths = self.buffers.iter().map(|b| b.read().len());
        lengths.sum::<usize>() * size_of::<f32>()
    }
}

/// The result of `network` and its trace; `None` if the trace was lost.
fn traced(input: &Tensor, network: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(Tensor, Option<Trace>)> {
    /// Restores the previous state, also after a panic.
    struct Before(Option<Trace>);
    impl Drop for Before {
        fn drop(&mut self) {
            TRACE.set(self.0.take());
        }
    }
    let mut trace = Trace::default();
    trace.value(input);
    let _before = Before(TRACE.replace(Some(trace)));
    let output = network(input)?;
    Ok((output, TRACE.take()))
}

/// Numbers in [-1, 1).
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mixed = |i: u32| (i ^ seed).wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
    (0..n as u32).map(|i| mixed(i) as f32 / 2f32.powi(31) - 1.0).collect()
}

fn replay(steps: &[Step], buffers: &[RwLock<Vec<f32>>]) -> Result<()> {
    for step in steps {
        match step {
            Step::One(one) => {
                let mut out = buffers[one.to].write();
                let out = &mut out[..one.len];
                // SAFETY: the types have the same layout, and operations write only floats.
                let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
                one.op.compute(Args::Replayed(Replayed { operands: &one.args, buffers }), out)?;
            }
            Step::Both([a, b]) => {
                let (a, b) = rayon::join(|| replay(a, buffers), || replay(b, buffers));
                a.and(b)?;
            }
        }
    }
    Ok(())
}

/// Assigns buffers to values. A buffer whose value is no longer read is reused.
struct Arena {
    /// Buffer of each value.
    buffers: Vec<usize>,
    /// Size of each buffer in floats.
    sizes: Vec<usize>,
    /// Number of the step that reads each value last.
    last: Vec<Option<usize>>,
    /// Number of steps so far.
    at: usize,
}

impl Arena {
    fn find_last_uses(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::One(one) => {
                    for arg in &one.args {
                        if let Place::Value(value, _) = arg.place {
                            self.last[value] = Some(self.at);
                        }
                    }
                    self.at += 1;
                }
                Step::Both(both) => both.iter().for_each(|steps| self.find_last_uses(steps)),
            }
        }
    }

    /// Assigns a buffer to a value: the smallest free one that is large enough, or else the largest free one, enlarged.
    fn give(&mut self, value: usize, len: usize, free: &mut Vec<usize>) -> usize {
        let size = |i: &usize| self.sizes[free[*i]];
        let enough = (0..free.len()).filter(|i| size(i) >= len).min_by_key(size);
        let buffer = match enough.or_else(|| (0..free.len()).max_by_key(size)) {
            Some(i) => free.swap_remove(i),
            None => {
                self.sizes.push(0);
                self.sizes.len() - 1
            }
        };
        self.sizes[buffer] = self.sizes[buffer].max(len);
        self.buffers[value] = buffer;
        buffer
    }

    /// Replaces values by buffers, starting with the `free` ones. `own` is the first value computed by these steps.
    /// Earlier values that are last read here are returned and not reused, because concurrent steps may still read
    /// them.
    fn plan(&mut self, steps: &mut [Step], own: usize, free: &mut Vec<usize>) -> Vec<usize> {
        let mut done = Vec::new();
        let mut others = Vec::new();
        for step in steps {
            match step {
                Step::One(one) => {
                    let value = one.to;
                    one.to = self.give(value, one.len, free);
                    for arg in &mut one.args {
                        if let Place::Value(read, _) = &mut arg.place {
                            if self.last[*read] == Some(self.at) {
                                done.push(*read);
                                self.last[*read] = None;
                            }
                            *read = self.buffers[*read];
                        }
                    }
                    if self.last[value].is_none() {
                        done.push(value);
                    }
                    self.at += 1;
                }
                Step::Both([a, b]) => {
                    // One sequence uses the free buffers, the other one new buffers, so that they never share one.
                    let mut apart = Vec::new();
                    let [own_a, own_b] = [&*a, &*b].map(|steps| first_value(steps).unwrap_or(usize::MAX));
                    done.extend(self.plan(a, own_a, free));
                    done.extend(self.plan(b, own_b, &mut apart));
                    free.append(&mut apart);
                }
            }
            for value in done.drain(..) {
                if value >= own { free.push(self.buffers[value]) } else { others.push(value) }
            }
        }
        others
    }
}

/// The first value computed by `steps`.
fn first_value(steps: &[Step]) -> Option<usize> {
    steps.iter().find_map(|step| match step {
        Step::One(one) => Some(one.to),
        Step::Both(both) => both.iter().find_map(|steps| first_value(steps)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{self as ops, Activation};
    use proptest::prelude::*;

    /// An operation of a random network on the existing values, by number.
    #[derive(Debug, Clone)]
    enum Make {
        Sum(usize, usize),
        Gelu(usize),
        /// Adds a constant computed from constants.
        Shifted(usize),
        /// A view of the first channel, concatenated with another value and summed.
        Joined(usize, usize),
        Both(Vec<Make>, Vec<Make>),
    }

    fn makes() -> impl Strategy<Value = Vec<Make>> {
        let leaf = prop_oneof![
            (0..9usize, 0..9usize).prop_map(|(a, b)| Make::Sum(a, b)),
            (0..9usize).prop_map(Make::Gelu),
            (0..9usize).prop_map(Make::Shifted),
            (0..9usize, 0..9usize).prop_map(|(a, b)| Make::Joined(a, b)),
        ];
        let leaf = leaf.prop_recursive(2, 24, 5, |inner| {
            let some = || prop::collection::vec(inner.clone(), 1..5);
            (some(), some()).prop_map(|(a, b)| Make::Both(a, b))
        });
        prop::collection::vec(leaf, 1..12)
    }

    /// Extends the tensors `there` by those that `makes` compute, `[1, 2, 3, 3]` each.
    fn made(makes: &[Make], mut there: Vec<Tensor>, weights: &Tensor) -> Result<Vec<Tensor>> {
        let before = there.len();
        for make in makes {
            let at = |i: &usize| &there[there.len() - 1 - i % there.len()];
            let new = match make {
                Make::Sum(a, b) => vec![ops::add(at(a), at(b))?],
                Make::Gelu(a) => vec![ops::gelu(at(a))?],
                Make::Shifted(a) => vec![ops::add(at(a), &ops::activate(weights, Activation::Tanh)?)?],
                Make::Joined(a, b) => {
                    let all = ops::concat(&[at(a), &at(b).narrow(1, 1, 1)?, &at(a).narrow(1, 0, 1)?])?;
                    vec![ops::add(&all.narrow(1, 0, 2)?, &all.narrow(1, 2, 2)?)?]
                }
                Make::Both(a, b) => {
                    let (a, b) = join(|| made(a, there.clone(), weights), || made(b, there.clone(), weights));
                    let (a, b) = (a?, b?);
                    [a.last(), b.last()].into_iter().flatten().cloned().collect()
                }
            };
            there.extend(new);
        }
        Ok(there.split_off(before))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_replay_equals_the_network(makes in makes()) {
            let weights = Tensor::from_vec(noise(18, 7), (1, 2, 3, 3), &Device::Cpu).unwrap();
            let network = |x: &Tensor| {
                let all = made(&makes, vec![x.clone()], &weights)?;
                // Keeps values small.
                ops::activate(all.last().unwrap_or(x), Activation::Tanh)
            };
            let mut graph = CapturedGraph::capture((1, 2, 3, 3), network).unwrap();
            for seed in 3..6 {
                let x = noise(18, seed);
                let expected = network(&Tensor::from_slice(&x, (1, 2, 3, 3), &Device::Cpu).unwrap()).unwrap();
                let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                graph.run(|input| input.copy_from_slice(&x), |found| assert_eq!(found, expected)).unwrap();
            }
        }
    }

    #[test]
    fn captured_graphs_reuse_memory() {
        let network = |x: &Tensor| (0..50).try_fold(x.clone(), |x, _| ops::gelu(&x));
        let graph = CapturedGraph::capture((1, 1000), network).unwrap();
        assert_eq!(graph.memory(), 2 * 4000);
    }

    #[test]
    fn untraced_operations_are_detected() {
        let network = |x: &Tensor| ops::add(&ops::gelu(x)?, &(ops::gelu(x)? * 2.0)?);
        let text = CapturedGraph::capture((1, 8), network).err().unwrap().to_string();
        assert!(text.contains("not every operation was traced"), "{text}");
        let text = CapturedGraph::capture((1, 8), |x| ops::gelu(x)? * 2.0).err().unwrap().to_string();
        assert!(text.contains("the last operation was not traced"), "{text}");
        let text =
            CapturedGraph::capture((1, 8), |_| candle_core::bail!("of its own")).err().unwrap().to_string();
        assert!(text.contains("of its own"), "{text}");
        let panics =
            || CapturedGraph::capture((1, 8), |x| ops::gelu(x).map(|_| panic!("of its own"))).map(drop);
        assert!(std::panic::catch_unwind(panics).is_err());
        TRACE.with_borrow(|trace| assert!(trace.is_none()));
    }
}
