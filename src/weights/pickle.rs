//! Reads PyTorch's `.pth`/`.pt` (zip and pickle) without running any of it: a pickle is a program, and here its
//! instructions only build a tree, in which tensors are looked for. State dicts, dicts that hold one, and whole pickled
//! modules (`torch.save(model, …)`, as AutoSAM's own scripts do), whose `_parameters`, `_buffers` and `_modules` give
//! the names that `state_dict()` would.
//!
//! A hostile file gets an error: objects live in one list and refer to each other by number, so that neither nesting
//! nor repetition makes work; every length is checked against the file before memory is taken for it.

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::ZipArchive;

/// The longest pickle that is read; SAM's largest is under 100 kB, a whole module under 10 MB.
const LONGEST: u64 = 64 << 20;

/// How deep modules may nest.
const DEEPEST: usize = 64;

/// Keys under which training scripts keep a state dict.
const HOLDERS: [&str; 3] = ["model", "state_dict", "model_state_dict"];

type Result<T> = std::result::Result<T, String>;
type Id = usize;

/// What the instructions build.
enum Node {
    Mark,
    /// Numbers that stand for nothing here, sets, arbitrary objects' arguments.
    Other,
    Int(i64),
    Text(String),
    Global(String, String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A call of `function` that nobody makes; `state` is what BUILD would have set.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
    /// A storage, by the tuple that names it.
    Storage(Id),
}

struct Tree {
    nodes: Vec<Node>,
    root: Id,
}

/// Bytes of the pickle, read front to back.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or("the pickle ends early")?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "the pickle ends early".to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let end = self.0.iter().position(|b| *b == b'\n').ok_or("the pickle ends early")?;
        let line = String::from_utf8_lossy(self.take(end)?).trim_end_matches('\r').to_owned();
        self.take(1)?;
        Ok(line)
    }

    fn text(&mut self, length: usize) -> Result<Node> {
        Ok(Node::Text(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }
}

/// The machine that Python's `pickle` defines (protocols 2 to 5, what `torch.save` uses of them).
#[derive(Default)]
struct Machine {
    nodes: Vec<Node>,
    stack: Vec<Id>,
    memo: HashMap<u32, Id>,
}

impl Machine {
    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().ok_or_else(|| "the pickle takes from an empty stack".to_owned())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| "the pickle takes from an empty stack".to_owned())
    }

    /// What lies above the last mark, which goes.
    fn above_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self
            .stack
            .iter()
            .rposition(|id| matches!(self.nodes.get(*id), Some(Node::Mark)))
            .ok_or("the pickle has no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let at = self.stack.len().checked_sub(count).ok_or("the pickle takes from an empty stack")?;
        let items = self.stack.split_off(at);
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        // Lists of other objects (subclasses of list) hold no tensor that anybody names.
        if let Some(Node::List(list)) = self.nodes.get_mut(top) {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        if let Some(Node::Dict(dict)) = self.nodes.get_mut(top) {
            dict.extend(items.chunks_exact(2).map(|p| (p[0], p[1])));
        }
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let node = match self.nodes.get(function) {
            Some(Node::Global(module, name))
                if module == "collections" && (name == "OrderedDict" || name == "defaultdict") =>
            {
                Node::Dict(Vec::new())
            }
            _ => Node::Call { function, arguments, state: None },
        };
        self.push(node);
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let (new, object) = (self.pop()?, self.top()?);
        if let Some(Node::Call { state, .. }) = self.nodes.get_mut(object) {
            *state = Some(new);
        }
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<()> {
        let id = *self.memo.get(&key).ok_or("the pickle recalls what it never kept")?;
        self.stack.push(id);
        Ok(())
    }

    fn run(mut self, pickle: &[u8]) -> Result<Tree> {
        let mut bytes = Bytes(pickle);
        loop {
            let [code] = bytes.array()?;
            match code {
                0x80 => drop(bytes.array::<1>()?),
                0x95 => drop(bytes.array::<8>()?),
                b'.' => break,
                b'(' => self.push(Node::Mark),
                b'0' => drop(self.pop()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' | 0x88 | 0x89 => self.push(Node::Other),
                b'K' => {
                    let [v] = bytes.array()?;
                    self.push(Node::Int(v.into()));
                }
                b'M' => {
                    let v = u16::from_le_bytes(bytes.array()?);
                    self.push(Node::Int(v.into()));
                }
                b'J' => {
                    let v = i32::from_le_bytes(bytes.array()?);
                    self.push(Node::Int(v.into()));
                }
                0x8a => {
                    let [length] = bytes.array()?;
                    let digits = bytes.take(length.into())?;
                    self.push(long(digits));
                }
                b'G' => {
                    bytes.array::<8>()?;
                    self.push(Node::Other);
                }
                b'X' => {
                    let length = u32::from_le_bytes(bytes.array()?);
                    let node = bytes.text(length as usize)?;
                    self.push(node);
                }
                0x8c | b'U' => {
                    let [length] = bytes.array()?;
                    let node = bytes.text(length.into())?;
                    self.push(node);
                }
                b'B' => {
                    let length = u32::from_le_bytes(bytes.array()?);
                    bytes.take(length as usize)?;
                    self.push(Node::Other);
                }
                b'C' => {
                    let [length] = bytes.array()?;
                    bytes.take(length.into())?;
                    self.push(Node::Other);
                }
                b'c' => {
                    let node = Node::Global(bytes.line()?, bytes.line()?);
                    self.push(node);
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let node = match (self.nodes.get(module), self.nodes.get(name)) {
                        (Some(Node::Text(m)), Some(Node::Text(n))) => Node::Global(m.clone(), n.clone()),
                        _ => return Err("the pickle names a class by no text".into()),
                    };
                    self.push(node);
                }
                b')' => self.push(Node::Tuple(Vec::new())),
                b't' => {
                    let items = self.above_mark()?;
                    self.push(Node::Tuple(items));
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b']' => self.push(Node::List(Vec::new())),
                b'l' => {
                    let items = self.above_mark()?;
                    self.push(Node::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.above_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b'd' => {
                    let items = self.above_mark()?;
                    self.push(Node::Dict(Vec::new()));
                    self.set(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.above_mark()?;
                    self.set(items)?;
                }
                0x8f => self.push(Node::Other),
                0x90 => drop(self.above_mark()?),
                b'R' | 0x81 => self.call()?,
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Storage(id));
                }
                b'q' => {
                    let [key] = bytes.array()?;
                    let top = self.top()?;
                    self.memo.insert(key.into(), top);
                }
                b'r' => {
                    let key = u32::from_le_bytes(bytes.array()?);
                    let top = self.top()?;
                    self.memo.insert(key, top);
                }
                0x94 => {
                    let top = self.top()?;
                    self.memo.insert(self.memo.len() as u32, top);
                }
                b'h' => {
                    let [key] = bytes.array()?;
                    self.get(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(bytes.array()?);
                    self.get(key)?;
                }
                other => {
                    return Err(format!("the pickle has an instruction {other:#04x} that is not known here"));
                }
            }
        }
        let root = self.pop()?;
        Ok(Tree { nodes: self.nodes, root })
    }
}

/// A signed little-endian number; one too long for an `i64` stands for nothing here.
fn long(digits: &[u8]) -> Node {
    if digits.len() > 8 {
        return Node::Other;
    }
    let negative = digits.last().is_some_and(|b| b & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..digits.len()].copy_from_slice(digits);
    Node::Int(i64::from_le_bytes(all))
}

/// Where a tensor's values are: a storage, and which of its elements.
#[derive(Debug, PartialEq)]
struct Found {
    storage: String,
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

/// What was found so far, and how many more entries are looked at: modules that hold each other many times over would be
/// work without end.
struct Walk {
    found: Vec<(String, Found)>,
    budget: usize,
}

impl Walk {
    fn step(&mut self) -> Result<()> {
        self.budget = self.budget.checked_sub(1).ok_or("its modules hold each other many times over")?;
        Ok(())
    }
}

impl Tree {
    fn get(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::Other)
    }

    fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Text(t) => Some(t),
            _ => None,
        }
    }

    fn items(&self, id: Id) -> Result<&[Id]> {
        match self.get(id) {
            Node::Tuple(items) | Node::List(items) => Ok(items),
            _ => Err("a tensor is described by no tuple".into()),
        }
    }

    fn count(&self, id: Id) -> Result<usize> {
        match self.get(id) {
            Node::Int(v) => usize::try_from(*v).map_err(|_| format!("a tensor has the size {v}")),
            _ => Err("a tensor's size is no number".into()),
        }
    }

    fn counts(&self, id: Id) -> Result<Vec<usize>> {
        self.items(id)?.iter().map(|i| self.count(*i)).collect()
    }

    fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The value of `key` in the dict `id`; of several the last, as Python would have it.
    fn entry(&self, id: Id, key: &str) -> Option<Id> {
        let at = self.dict(id)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key))?;
        Some(at.1)
    }

    /// Names and places of all tensors: of a state dict at the top or under a usual key, or of a whole module.
    fn tensors(&self) -> Result<Vec<(String, Found)>> {
        let held = HOLDERS.iter().filter_map(|key| self.entry(self.root, key));
        for candidate in std::iter::once(self.root).chain(held) {
            let mut walk = Walk { found: Vec::new(), budget: 8 * self.nodes.len() };
            self.module(candidate, "", DEEPEST, &mut walk)?;
            self.entries(candidate, "", &mut walk)?;
            if !walk.found.is_empty() {
                return Ok(walk.found);
            }
        }
        Ok(Vec::new())
    }

    /// Tensors of a pickled module and those inside it.
    fn module(&self, id: Id, prefix: &str, depth: usize, walk: &mut Walk) -> Result<()> {
        let Node::Call { state: Some(state), .. } = self.get(id) else { return Ok(()) };
        if depth == 0 {
            return Err(format!("modules nest deeper than {DEEPEST} at {prefix}"));
        }
        for key in ["_parameters", "_buffers"] {
            if let Some(dict) = self.entry(*state, key) {
                self.entries(dict, prefix, walk)?;
            }
        }
        if let Some(modules) = self.entry(*state, "_modules") {
            for (name, inner) in self.dict(modules).unwrap_or_default() {
                let name = self.text(*name).unwrap_or_default();
                walk.step()?;
                self.module(*inner, &format!("{prefix}{name}."), depth - 1, walk)?;
            }
        }
        Ok(())
    }

    /// The tensors that a dict holds by name.
    fn entries(&self, dict: Id, prefix: &str, walk: &mut Walk) -> Result<()> {
        for (key, value) in self.dict(dict).unwrap_or_default() {
            walk.step()?;
            let Some(name) = self.text(*key) else { continue };
            let name = format!("{prefix}{name}");
            if let Some(tensor) = self.tensor(*value, 4).map_err(|e| format!("{name}: {e}"))? {
                walk.found.push((name, tensor));
            }
        }
        Ok(())
    }

    /// The tensor that a call would rebuild; `None` for what is no tensor. `wrapped` bounds parameters of parameters.
    fn tensor(&self, id: Id, wrapped: usize) -> Result<Option<Found>> {
        let Node::Call { function, arguments, .. } = self.get(id) else { return Ok(None) };
        let Node::Global(module, name) = self.get(*function) else { return Ok(None) };
        let arguments = *arguments;
        match (module.as_str(), name.as_str()) {
            ("torch._utils", "_rebuild_parameter") if wrapped > 0 => {
                self.tensor(*self.items(arguments)?.first().ok_or("a parameter of nothing")?, wrapped - 1)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => {
                self.rebuilt(*self.items(arguments)?.get(2).ok_or("a tensor of nothing")?).map(Some)
            }
            ("torch._utils", "_rebuild_tensor_v2") => self.rebuilt(arguments).map(Some),
            _ => Ok(None),
        }
    }

    /// `(storage, offset, size, stride, …)`, the storage as `("storage", type, key, location, length)`.
    fn rebuilt(&self, arguments: Id) -> Result<Found> {
        let [storage, offset, size, stride, ..] = self.items(arguments)? else {
            return Err("too few arguments".into());
        };
        let Node::Storage(named) = self.get(*storage) else {
            return Err("a tensor without a storage".into());
        };
        let [_, kind, key, ..] = self.items(*named)? else { return Err("a storage without a name".into()) };
        let Node::Global(_, kind) = self.get(*kind) else { return Err("a storage without a type".into()) };
        let dtype = match kind.as_str() {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "ByteStorage" => DType::U8,
            other => return Err(format!("numbers of the type {other}, which is not read here")),
        };
        let found = Found {
            storage: self.text(*key).ok_or("a storage without a name")?.to_owned(),
            dtype,
            offset: self.count(*offset)?,
            shape: self.counts(*size)?,
            stride: self.counts(*stride)?,
        };
        if found.shape.len() != found.stride.len() {
            return Err("as many strides as dimensions were expected".into());
        }
        Ok(found)
    }
}

impl Found {
    /// Elements of the storage from the tensor's first to its last; the tensor's own number of elements.
    fn extent(&self) -> Option<(usize, usize)> {
        let count = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        if count == 0 {
            return Some((0, 0));
        }
        let mut last = 0usize;
        for (size, stride) in self.shape.iter().zip(&self.stride) {
            last = last.checked_add((size - 1).checked_mul(*stride)?)?;
        }
        Some((last.checked_add(1)?, count))
    }

    fn contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.iter().zip(&self.stride).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected = expected.saturating_mul(*size);
            fits
        })
    }

    /// Reads the values out of `archive`, whose files lie under `folder`.
    fn read(&self, archive: &mut ZipArchive<BufReader<File>>, folder: &str) -> Result<Tensor> {
        let (extent, count) = self.extent().ok_or("its size overflows")?;
        let width = self.dtype.size_in_bytes();
        let path = format!("{folder}/{}", self.storage);
        let mut file = archive.by_name(&path).map_err(|e| format!("{path}: {e}"))?;
        let overflow = "its size overflows";
        let (skip, length) =
            (self.offset.checked_mul(width).ok_or(overflow)?, extent.checked_mul(width).ok_or(overflow)?);
        let end = skip.checked_add(length).ok_or(overflow)?;
        // A view may repeat elements (stride 0), but never hold more than its storage.
        if end as u64 > file.size() || count > extent {
            return Err(format!("needs {end} bytes of {path}, which has {}", file.size()));
        }
        std::io::copy(&mut file.by_ref().take(skip as u64), &mut std::io::sink())
            .map_err(|e| e.to_string())?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).map_err(|e| format!("{path}: {e}"))?;
        if !self.contiguous() {
            bytes = self.gathered(&bytes, count, width);
        }
        Tensor::from_raw_buffer(&bytes, self.dtype, &self.shape, &Device::Cpu).map_err(|e| e.to_string())
    }

    /// The elements in row-major order.
    fn gathered(&self, bytes: &[u8], count: usize, width: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count * width);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let at: usize = index.iter().zip(&self.stride).map(|(i, s)| i * s).sum();
            out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
            for (i, size) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        out
    }
}

/// All tensors of the file by name.
///
/// # Errors
/// In words, without the path: not a zip, no pickle in it, a damaged one, numbers that are missing.
pub(super) fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| e.to_string())?;
    let names = archive
        .file_names()
        .map(|name| name.map(|n| n.into_owned()))
        .collect::<std::result::Result<Vec<String>, _>>()
        .map_err(|e| e.to_string())?;
    let pickle =
        names.iter().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).ok_or("it holds no data.pkl")?;
    let folder = pickle.trim_end_matches(".pkl").to_owned();
    let mut program = Vec::new();
    let entry = archive.by_name(pickle).map_err(|e| e.to_string())?;
    if entry.size() > LONGEST {
        return Err(format!("its pickle is longer than {} MB", LONGEST >> 20));
    }
    entry.take(LONGEST).read_to_end(&mut program).map_err(|e| e.to_string())?;
    let mut tensors = HashMap::new();
    for (name, found) in Machine::default().run(&program)?.tensors()? {
        // Of two entries of one name the last holds, as in Python.
        let tensor = found.read(&mut archive, &folder).map_err(|e| format!("{name}: {e}"))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}
