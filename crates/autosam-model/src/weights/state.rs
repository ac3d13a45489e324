//! Finds tensors in a tree of objects: in state dicts, in dicts that contain them, and in whole pickled modules
//! (`torch.save(model, …)`, as in AutoSAM's own scripts), whose `_parameters`, `_buffers` and `_modules` yield the same
//! names as `state_dict()`.

use super::Fault;
use super::pickle::{Id, Node, Result, Tree};
use super::taken::{HOLDERS, Taken, counted, joined, listed};
use super::values::{Numbers, View};
use std::collections::HashMap;

/// Prefixes of keys under which training scripts store objects other than models. For example, an optimizer's moments
/// have the shapes of the model's tensors.
const NO_MODELS: [&str; 7] = ["optim", "opt_state", "lr_sched", "sched", "scaler", "amp", "callbacks"];

/// Maximum nesting depth of modules.
const DEEPEST: usize = 64;

/// Maximum nesting depth of dicts that contain state dicts.
const DEEPEST_HOLDER: usize = 4;

/// A state dict or module at `path`.
pub(super) struct Part {
    path: String,
    /// Whether every key of the path is a usual one for models.
    known: bool,
    tensors: Vec<(String, View)>,
    left_out: Vec<(String, String)>,
}

/// Tensors found in one part, and the remaining number of entries to visit in total. The limit bounds the work for
/// objects that contain each other many times.
struct Walk {
    tensors: Vec<(String, View)>,
    left_out: Vec<(String, String)>,
    budget: usize,
}

impl Walk {
    fn spend(&mut self, entries: usize) -> Result<()> {
        self.budget =
            self.budget.checked_sub(entries).ok_or("its modules contain each other too many times")?;
        Ok(())
    }
}

/// The result that a call in a pickle would have.
enum Rebuilt {
    Tensor(View),
    /// A tensor that cannot be read, and why.
    Unread(String),
    /// Not a tensor.
    Other,
}

impl Tree {
    /// Selects the tensors of the part named `key`, or of the first part under a usual key, or of the only part.
    ///
    /// # Errors
    /// If no part exists or the choice is ambiguous. The message lists the keys.
    pub(super) fn choose(
        &self,
        key: Option<&str>,
    ) -> std::result::Result<(Vec<(String, View)>, Taken), Fault> {
        let mut walk = Walk { tensors: Vec::new(), left_out: Vec::new(), budget: 64 * self.nodes.len() };
        let mut parts = Vec::new();
        self.parts(self.root, ("", true), DEEPEST_HOLDER, &mut walk, &mut parts)?;
        let named = key.and_then(|key| {
            let within = |part: &Part| part.path.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
            parts.iter().position(|p| p.path == key).or_else(|| parts.iter().position(within))
        });
        let Some(first) = parts.first() else {
            return Err(Fault::Unusable(format!("it contains no tensor; {}", self.top_keys())));
        };
        if named.is_none() && key.is_none() && !first.known && parts.len() > 1 {
            let parts = listed(parts.iter().map(|p| counted(&p.path, p.tensors.len())));
            return Err(Fault::Unusable(format!(
                "several parts contain tensors: {parts}; choose one with `autosam-video models convert --key NAME`"
            )));
        }
        let part = parts.remove(named.unwrap_or(0));
        let mut taken = Taken {
            part: Some(part.path.clone()).filter(|path| !path.is_empty()),
            prefix: String::new(),
            others: parts.iter().map(|p| (p.path.clone(), p.tensors.len())).collect(),
            left_out: part.left_out,
        };
        let mut tensors = part.tensors;
        if let (None, Some(key)) = (named, key) {
            // The tensors of one module of a state dict.
            let rest = key.strip_prefix(&part.path).and_then(|rest| rest.strip_prefix('.')).unwrap_or(key);
            if !taken.only(rest, &mut tensors) {
                return Err(Fault::Unusable(format!("it has no part {key}; {}", self.top_keys())));
            }
        }
        taken.unwrap(&mut tensors, false);
        Ok((tensors, taken))
    }

    /// All parts with tensors, in order of preference: under usual keys, in the dict itself, under other keys.
    fn parts(
        &self,
        id: Id,
        (path, known): (&str, bool),
        depth: usize,
        walk: &mut Walk,
        parts: &mut Vec<Part>,
    ) -> Result<()> {
        let mut inner: Vec<(usize, &str, Id)> = Vec::new();
        walk.spend(self.dict(id).len())?;
        for (key, value) in self.dict(id) {
            let Some(key) = self.text(*key) else { continue };
            if matches!(self.get(*value), Node::Dict(_) | Node::Call { state: Some(_), .. }) {
                let rank = HOLDERS.iter().position(|holder| *holder == key).unwrap_or(HOLDERS.len());
                inner.push((rank, key, *value));
            }
        }
        inner.sort_by_key(|(rank, ..)| *rank);
        let (usual, others) = inner.split_at(inner.partition_point(|(rank, ..)| *rank < HOLDERS.len()));
        if depth > 0 {
            for (_, key, value) in usual {
                self.parts(*value, (&joined(path, key), known), depth - 1, walk, parts)?;
            }
        }
        self.module(id, "", DEEPEST, walk)?;
        self.entries(id, "", walk)?;
        let (tensors, left_out) = (std::mem::take(&mut walk.tensors), std::mem::take(&mut walk.left_out));
        if !tensors.is_empty() {
            parts.push(Part { path: path.to_owned(), known, tensors, left_out });
        }
        if depth > 0 {
            let models = |key: &str| !NO_MODELS.iter().any(|start| key.to_lowercase().starts_with(start));
            for (_, key, value) in others.iter().filter(|(_, key, _)| models(key)) {
                self.parts(*value, (&joined(path, key), false), depth - 1, walk, parts)?;
            }
        }
        Ok(())
    }

    /// Describes the top-level object, for messages.
    fn top_keys(&self) -> String {
        let keys: Vec<String> =
            self.dict(self.root).iter().filter_map(|(key, _)| Some(self.text(*key)?.to_owned())).collect();
        match self.get(self.root) {
            Node::Dict(_) if keys.is_empty() => {
                "its keys are not strings; save the model's state_dict() with torch.save".to_owned()
            }
            Node::Dict(_) => format!("its top keys are: {}", listed(keys.into_iter())),
            Node::Call { function, .. } => match self.get(*function) {
                Node::Global(module, name) => format!("its object is a {module}.{name}"),
                _ => "its object is of an unsupported class".to_owned(),
            },
            _ => "its object is not a dict; save the model's state_dict() with torch.save".to_owned(),
        }
    }

    /// Tensors of a pickled module and those inside it.
    fn module(&self, id: Id, prefix: &str, depth: usize, walk: &mut Walk) -> Result<()> {
        let Node::Call { state: Some(state), .. } = self.get(id) else { return Ok(()) };
        if depth == 0 {
            return Err(format!("modules nest deeper than {DEEPEST} at {prefix}"));
        }
        walk.spend(1 + self.dict(*state).len())?;
        for key in ["_parameters", "_buffers"] {
            if let Some(dict) = self.entry(*state, key) {
                self.entries(dict, prefix, walk)?;
            }
        }
        if let Some(modules) = self.entry(*state, "_modules") {
            walk.spend(self.dict(modules).len())?;
            for (name, inner) in self.dict(modules) {
                let name = self.text(*name).unwrap_or_default();
                self.module(*inner, &format!("{prefix}{name}."), depth - 1, walk)?;
            }
        }
        Ok(())
    }

    /// The value of `key` in the dict `id`; the last one if the key is repeated, as in Python.
    fn entry(&self, id: Id, key: &str) -> Option<Id> {
        let at = self.dict(id).iter().rev().find(|(k, _)| self.text(*k) == Some(key))?;
        Some(at.1)
    }

    /// The tensors in a dict, with names.
    fn entries(&self, dict: Id, prefix: &str, walk: &mut Walk) -> Result<()> {
        walk.spend(self.dict(dict).len())?;
        for (key, value) in self.dict(dict) {
            let Some(name) = self.text(*key) else { continue };
            let name = format!("{prefix}{name}");
            match self.tensor(*value, 4).map_err(|e| format!("{name}: {e}"))? {
                Rebuilt::Tensor(view) => walk.tensors.push((name, view)),
                Rebuilt::Unread(reason) => walk.left_out.push((name, reason)),
                Rebuilt::Other => {}
            }
        }
        Ok(())
    }

    /// The tensor that a call would rebuild. `wrapped` limits the nesting of parameters.
    fn tensor(&self, id: Id, wrapped: usize) -> Result<Rebuilt> {
        let Node::Call { function, arguments, .. } = self.get(id) else { return Ok(Rebuilt::Other) };
        let Node::Global(module, name) = self.get(*function) else { return Ok(Rebuilt::Other) };
        let arguments = *arguments;
        let argument = |at: usize| {
            self.items(arguments)
                .and_then(|items| items.get(at))
                .copied()
                .ok_or("a tensor call lacks an argument")
        };
        match (module.as_str(), name.as_str()) {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") if wrapped > 0 => {
                self.tensor(argument(0)?, wrapped - 1)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => self.rebuilt(argument(2)?),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => self.rebuilt(arguments),
            ("torch._utils", other) if other.starts_with("_rebuild_") => {
                let kind = other.trim_start_matches("_rebuild_").trim_end_matches("_tensor");
                Ok(Rebuilt::Unread(format!("of the kind {kind}, which is not supported")))
            }
            (numpy, "_reconstruct") if numpy.starts_with("numpy") => {
                Ok(Rebuilt::Unread("a NumPy array, which is not supported".into()))
            }
            _ => Ok(Rebuilt::Other),
        }
    }

    /// `(storage, offset, size, stride, …)`.
    fn rebuilt(&self, arguments: Id) -> Result<Rebuilt> {
        let Some([storage, offset, size, stride, ..]) = self.items(arguments) else {
            return Err("too few arguments".into());
        };
        let (kind, key, named) = self.storage(*storage).ok_or("a tensor without a storage")?;
        let Some(numbers) = numbers(kind) else {
            return Ok(Rebuilt::Unread(format!("numbers of the type {kind}, which is not supported")));
        };
        // In the old format a storage may be a part of another.
        let part = match named.get(5).and_then(|view| self.items(*view)) {
            Some([_, start, _]) => self.count(*start)?,
            _ => 0,
        };
        let first = self.count(*offset)?.checked_add(part);
        let view = View {
            storage: key.to_owned(),
            numbers,
            byte: first.and_then(|first| first.checked_mul(numbers.width())).ok_or("its size overflows")?,
            shape: self.counts(*size)?,
            stride: self.counts(*stride)?,
        };
        if view.shape.len() != view.stride.len() {
            return Err("as many strides as dimensions were expected".into());
        }
        if view.repeats() {
            return Ok(Rebuilt::Unread("it repeats its numbers by a stride of 0".into()));
        }
        Ok(Rebuilt::Tensor(view))
    }

    /// The type, the key and all items of `("storage", type, key, location, length, …)`.
    fn storage(&self, id: Id) -> Option<(&str, &str, &[Id])> {
        let Node::Persistent(named) = self.get(id) else { return None };
        let named = self.items(*named)?;
        let [what, kind, key, ..] = named else { return None };
        match (self.text(*what), self.get(*kind), self.text(*key)) {
            (Some("storage"), Node::Global(_, kind), Some(key)) => Some((kind, key, named)),
            _ => None,
        }
    }

    /// The element width of every storage, by its key.
    ///
    /// # Errors
    /// If the width of a type is unknown.
    pub(super) fn storage_widths(&self) -> Result<HashMap<&str, usize>> {
        let all = (0..self.nodes.len()).filter_map(|id| self.storage(id));
        all.map(|(kind, key, _)| {
            let width = numbers(kind).map(Numbers::width).or_else(|| other_width(kind));
            Ok((key, width.ok_or_else(|| format!("numbers of the unknown type {kind}"))?))
        })
        .collect()
    }

    fn count(&self, id: Id) -> Result<usize> {
        match self.get(id) {
            Node::Int(v) => usize::try_from(*v).map_err(|_| format!("a tensor has the size {v}")),
            _ => Err("a tensor's size is not a number".into()),
        }
    }

    fn counts(&self, id: Id) -> Result<Vec<usize>> {
        self.items(id).ok_or("a tensor is not described by a tuple")?.iter().map(|i| self.count(*i)).collect()
    }
}

/// The number format of PyTorch's storage type `kind`; `None` if it is not read here.
fn numbers(kind: &str) -> Option<Numbers> {
    Some(match kind {
        "DoubleStorage" => Numbers::F64,
        "FloatStorage" => Numbers::F32,
        "HalfStorage" => Numbers::F16,
        "BFloat16Storage" => Numbers::Bf16,
        "LongStorage" => Numbers::I64,
        "IntStorage" => Numbers::I32,
        "ShortStorage" => Numbers::I16,
        "CharStorage" => Numbers::I8,
        "ByteStorage" => Numbers::U8,
        "BoolStorage" => Numbers::Bool,
        _ => return None,
    })
}

/// Element width in bytes of types that are not supported.
fn other_width(kind: &str) -> Option<usize> {
    Some(match kind {
        "ComplexDoubleStorage" => 16,
        "ComplexFloatStorage" => 8,
        "QInt32Storage" => 4,
        "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" | "UntypedStorage" => 1,
        _ => return None,
    })
}
