//! Reads pickles. A pickle is a program, but nothing in it is executed here: its instructions only build a tree of
//! objects, which is searched for tensors ([`super::state`]).
//!
//! Malicious pickles cause errors only: objects are stored in one list and refer to each other by index, so that
//! neither nesting nor repetition multiplies work, and memory grows only with the bytes read.

use std::collections::HashMap;
use std::io::{BufRead, ErrorKind, Read};

/// Maximum size of a pickle. SAM's largest is under 100 kB, a whole module under 10 MB.
const LONGEST: u64 = 64 << 20;

const ENDS_EARLY: &str = "the pickle ends early";
const EMPTY_STACK: &str = "the pickle takes from an empty stack";

pub(super) type Result<T> = std::result::Result<T, String>;
pub(super) type Id = usize;

/// An object built by the instructions.
pub(super) enum Node {
    Mark,
    /// Values that are not needed here: floats, bytes, sets, None, False, True.
    Other,
    /// Wide enough for the magic number of PyTorch's old format.
    Int(i128),
    Text(String),
    Global(String, String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A call of `function`, which is not executed; `state` is the argument of BUILD.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
    /// An object stored outside the pickle, given by the tuple that identifies it: a storage, or a module's class.
    Persistent(Id),
}

/// The bytes of a pickle, read sequentially up to its end.
struct Program<R> {
    reader: R,
    left: u64,
}

impl<R: BufRead> Program<R> {
    fn spend(&mut self, count: u64) -> Result<()> {
        let left = self.left.checked_sub(count);
        self.left = left.ok_or_else(|| format!("{ENDS_EARLY} or is longer than {} MB", LONGEST >> 20))?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.spend(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => ENDS_EARLY.to_owned(),
            _ => e.to_string(),
        })?;
        Ok(bytes)
    }

    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        self.spend(count)?;
        let mut bytes = Vec::new();
        (&mut self.reader).take(count).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if bytes.len() as u64 == count { Ok(bytes) } else { Err(ENDS_EARLY.into()) }
    }

    fn text(&mut self, count: u64) -> Result<Node> {
        Ok(Node::Text(String::from_utf8_lossy(&self.take(count)?).into_owned()))
    }

    fn line(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        (&mut self.reader).take(self.left).read_until(b'\n', &mut bytes).map_err(|e| e.to_string())?;
        self.spend(bytes.len() as u64)?;
        if bytes.pop() != Some(b'\n') {
            return Err(ENDS_EARLY.into());
        }
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned())
    }
}

/// The stack machine of Python's `pickle` (the instructions of protocols 2 to 5 that `torch.save` uses).
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
        self.stack.pop().ok_or_else(|| EMPTY_STACK.to_owned())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| EMPTY_STACK.to_owned())
    }

    /// Removes the last mark and returns the items above it.
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
        let at = self.stack.len().checked_sub(count).ok_or(EMPTY_STACK)?;
        let items = self.stack.split_off(at);
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        // Objects of a subclass of list contain no named tensors.
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
                Node::Dict(self.pairs(arguments))
            }
            _ => Node::Call { function, arguments, state: None },
        };
        self.push(node);
        Ok(())
    }

    /// The entries of a dict built from a list of pairs, which is how Python 2 pickles an `OrderedDict`.
    fn pairs(&self, arguments: Id) -> Vec<(Id, Id)> {
        let items = |id: Id| match self.nodes.get(id) {
            Some(Node::Tuple(items) | Node::List(items)) => items.as_slice(),
            _ => &[],
        };
        let Some(list) = items(arguments).first() else { return Vec::new() };
        let pair = |id: &Id| if let [key, value] = items(*id) { Some((*key, *value)) } else { None };
        items(*list).iter().filter_map(pair).collect()
    }

    fn build(&mut self) -> Result<()> {
        let (new, object) = (self.pop()?, self.top()?);
        if let Some(Node::Call { state, .. }) = self.nodes.get_mut(object) {
            *state = Some(new);
        }
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let id = *self.memo.get(&key).ok_or("the pickle recalls an object it never stored")?;
        self.stack.push(id);
        Ok(())
    }

    fn keep(&mut self, key: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    /// Instructions that push a constant; false if `code` is none of them.
    fn constant<R: BufRead>(&mut self, code: u8, program: &mut Program<R>) -> Result<bool> {
        let node = match code {
            b'N' | 0x88 | 0x89 => Node::Other,
            b'K' => Node::Int(u8::from_le_bytes(program.array()?).into()),
            b'M' => Node::Int(u16::from_le_bytes(program.array()?).into()),
            b'J' => Node::Int(i32::from_le_bytes(program.array()?).into()),
            0x8a => {
                let [length] = program.array()?;
                long(&program.take(length.into())?)
            }
            0x8b => {
                let length = u32::from_le_bytes(program.array()?);
                long(&program.take(length.into())?)
            }
            b'G' => {
                program.array::<8>()?;
                Node::Other
            }
            0x8c | b'U' => {
                let [length] = program.array()?;
                program.text(length.into())?
            }
            b'X' | b'T' => {
                let length = u32::from_le_bytes(program.array()?);
                program.text(length.into())?
            }
            0x8d => {
                let length = u64::from_le_bytes(program.array()?);
                program.text(length)?
            }
            b'C' => {
                let [length] = program.array()?;
                program.take(length.into())?;
                Node::Other
            }
            b'B' => {
                let length = u32::from_le_bytes(program.array()?);
                program.take(length.into())?;
                Node::Other
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(program.array()?);
                program.take(length)?;
                Node::Other
            }
            b'c' => Node::Global(program.line()?, program.line()?),
            _ => return Ok(false),
        };
        self.push(node);
        Ok(true)
    }

    /// Instructions that build tuples, lists, dicts and sets; false if `code` is none of them.
    fn container(&mut self, code: u8) -> Result<bool> {
        match code {
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
            0x91 => {
                self.above_mark()?;
                self.push(Node::Other);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions for the stack, the memo and objects; false if `code` is none of them.
    fn object<R: BufRead>(&mut self, code: u8, program: &mut Program<R>) -> Result<bool> {
        match code {
            // The protocol's version and a frame's length.
            0x80 => drop(program.array::<1>()?),
            0x95 => drop(program.array::<8>()?),
            b'(' => self.push(Node::Mark),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let node = match (self.nodes.get(module), self.nodes.get(name)) {
                    (Some(Node::Text(m)), Some(Node::Text(n))) => Node::Global(m.clone(), n.clone()),
                    _ => return Err("the pickle names a class by something other than text".into()),
                };
                self.push(node);
            }
            b'R' | 0x81 => self.call()?,
            0x92 => {
                self.pop()?;
                self.call()?;
            }
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            b'q' => {
                let [key] = program.array()?;
                self.keep(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(program.array()?);
                self.keep(key)?;
            }
            0x94 => self.keep(self.memo.len() as u32)?,
            b'h' => {
                let [key] = program.array()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(program.array()?);
                self.recall(key)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A signed little-endian number; one too long for an `i128` is ignored.
fn long(digits: &[u8]) -> Node {
    let mut all = [if digits.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 16];
    match all.get_mut(..digits.len()) {
        Some(low) => low.copy_from_slice(digits),
        None => return Node::Other,
    }
    Node::Int(i128::from_le_bytes(all))
}

/// The objects of one pickle.
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
}

impl Tree {
    /// Reads one pickle and leaves `reader` at its end.
    pub(super) fn read(reader: impl BufRead) -> Result<Self> {
        let mut program = Program { reader, left: LONGEST };
        let mut machine = Machine::default();
        loop {
            let [code] = program.array()?;
            if code == b'.' {
                let root = machine.pop()?;
                return Ok(Self { nodes: machine.nodes, root });
            }
            let known = machine.constant(code, &mut program)?
                || machine.container(code)?
                || machine.object(code, &mut program)?;
            if !known {
                return Err(format!("the pickle has an unknown instruction {code:#04x}"));
            }
        }
    }

    pub(super) fn get(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::Other)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The members of a tuple or list.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a dict; empty for other objects.
    pub(super) fn dict(&self, id: Id) -> &[(Id, Id)] {
        match self.get(id) {
            Node::Dict(pairs) => pairs,
            _ => &[],
        }
    }
}
