//! Writes checkpoints as PyTorch does: a small pickler, and archives.

use std::io::Write;

/// Whether an archive's members are compressed.
#[derive(Clone, Copy, PartialEq)]
pub enum Method {
    Stored,
    Deflated,
}

/// An object to pickle.
#[derive(Clone)]
pub enum Object {
    Int(i32),
    Text(String),
    None,
    Dict(Vec<(String, Object)>),
    /// An `OrderedDict` as pickled by Python 2: a list of pairs.
    Pairs(Vec<(String, Object)>),
    List(Vec<Object>),
    Tensor(TensorOf),
    /// `torch.save(module, …)`; the old format stores its class outside the pickle.
    Module(Vec<(String, Object)>),
}

#[derive(Clone)]
pub struct TensorOf {
    pub storage: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
    /// First element and number of elements of the part that the old format treats as a storage.
    pub part: Option<(usize, usize)>,
}

/// The storages of one file: PyTorch's type and bytes.
#[derive(Default)]
pub struct Storages(Vec<(&'static str, Vec<u8>)>);

impl Storages {
    pub fn tensor(&mut self, kind: &'static str, shape: &[usize], bytes: Vec<u8>) -> Object {
        self.0.push((kind, bytes));
        let stride = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        let storage = self.0.len() - 1;
        Object::Tensor(TensorOf { storage, offset: 0, shape: shape.to_vec(), stride, part: None })
    }

    /// A float tensor with values `first`, `first + 1`, ….
    pub fn floats(&mut self, shape: &[usize], first: f32) -> Object {
        let count = shape.iter().product::<usize>();
        let bytes = (0..count).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
        self.tensor("FloatStorage", shape, bytes)
    }

    /// A state dict of two such tensors, with `prefix` before their names.
    pub fn state(&mut self, prefix: &str, first: f32) -> Object {
        let names = ["image_encoder.pos_embed", "mask_decoder.a.weight"];
        Object::Dict(names.map(|n| (format!("{prefix}{n}"), self.floats(&[4, 3], first))).to_vec())
    }

    pub fn width(kind: &str) -> usize {
        match kind {
            "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
            "FloatStorage" | "IntStorage" => 4,
            "HalfStorage" | "ShortStorage" | "BFloat16Storage" => 2,
            _ => 1,
        }
    }

    pub fn pickle(&self, object: &Object, old: bool) -> Vec<u8> {
        let mut out = b"\x80\x02".to_vec();
        self.write(&mut out, object, old);
        out.push(b'.');
        out
    }

    pub fn write(&self, out: &mut Vec<u8>, object: &Object, old: bool) {
        let entries = |out: &mut Vec<u8>, entries: &[(String, Object)]| {
            out.push(b'(');
            for (key, value) in entries {
                text(out, key);
                self.write(out, value, old);
            }
            out.push(b'u');
        };
        match object {
            Object::Int(v) => int(out, *v),
            Object::Text(v) => text(out, v),
            Object::None => out.push(b'N'),
            Object::Dict(pairs) => {
                out.extend(b"ccollections\nOrderedDict\n)R");
                entries(out, pairs);
            }
            Object::Pairs(pairs) => {
                out.extend(b"ccollections\nOrderedDict\n](");
                for (key, value) in pairs {
                    out.extend(b"](");
                    text(out, key);
                    self.write(out, value, old);
                    out.push(b'e');
                }
                out.extend(b"e\x85R");
            }
            Object::List(items) => {
                out.extend(b"](");
                items.iter().for_each(|item| self.write(out, item, old));
                out.push(b'e');
            }
            Object::Module(parameters) => {
                if old {
                    out.push(b'(');
                    text(out, "module");
                    out.extend(b"cmodels\nNet\n");
                    text(out, "/home/somebody/models.py");
                    text(out, "class Net(nn.Module): …");
                    out.extend(b"tQ");
                } else {
                    out.extend(b"cmodels\nNet\n");
                }
                out.extend(b")\x81}(");
                text(out, "_parameters");
                self.write(out, &Object::Dict(parameters.clone()), old);
                out.extend(b"ub");
            }
            Object::Tensor(tensor) => self.write_tensor(out, tensor, old),
        }
    }

    pub fn write_tensor(&self, out: &mut Vec<u8>, tensor: &TensorOf, old: bool) {
        let (kind, bytes) = &self.0[tensor.storage];
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(out, "storage");
        out.extend(format!("ctorch\n{kind}\n").bytes());
        text(out, &format!("{}", 1000 - tensor.storage));
        text(out, "cpu");
        int(out, (bytes.len() / Self::width(kind)) as i32);
        match tensor.part {
            Some((first, count)) => {
                out.push(b'(');
                text(out, "part");
                int(out, first as i32);
                int(out, count as i32);
                out.push(b't');
            }
            None if old => out.push(b'N'),
            None => {}
        }
        out.extend(b"tQ");
        int(out, tensor.offset as i32);
        for numbers in [&tensor.shape, &tensor.stride] {
            out.push(b'(');
            numbers.iter().for_each(|v| int(out, *v as i32));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }

    /// The file as written by PyTorch before version 1.6.
    pub fn old(&self, object: &Object) -> Vec<u8> {
        let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
        let sizes = ["short", "int", "long"].map(|n| (n.to_owned(), Object::Int(4))).to_vec();
        let system = [
            ("protocol_version".to_owned(), Object::Int(1001)),
            ("little_endian".to_owned(), Object::None),
            ("type_sizes".to_owned(), Object::Dict(sizes)),
        ];
        out.extend(self.pickle(&Object::Dict(system.to_vec()), true));
        out.extend(self.pickle(object, true));
        let keys = (0..self.0.len()).map(|i| Object::Text(format!("{}", 1000 - i))).collect();
        out.extend(self.pickle(&Object::List(keys), true));
        for (kind, bytes) in &self.0 {
            out.extend(((bytes.len() / Self::width(kind)) as i64).to_le_bytes());
            out.extend(bytes);
        }
        out
    }

    /// The file as written by PyTorch since version 1.6.
    pub fn zip(&self, object: &Object, method: Method) -> Vec<u8> {
        let storages = self.0.iter().enumerate();
        let storages = storages.map(|(i, (_, bytes))| (format!("archive/data/{}", 1000 - i), bytes.clone()));
        let pickle = ("archive/data.pkl".to_owned(), self.pickle(object, false));
        let version = ("archive/version".to_owned(), b"3\n".to_vec());
        zip_of(&[pickle].into_iter().chain(storages).chain([version]).collect::<Vec<_>>(), method)
    }
}

pub fn int(out: &mut Vec<u8>, v: i32) {
    out.push(b'J');
    out.extend(v.to_le_bytes());
}

pub fn text(out: &mut Vec<u8>, v: &str) {
    out.push(b'X');
    out.extend((v.len() as u32).to_le_bytes());
    out.extend(v.bytes());
}

pub fn dict(entries: &[(&str, Object)]) -> Object {
    Object::Dict(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

/// A zip archive with deflated or stored members.
pub fn zip_of(members: &[(String, Vec<u8>)], method: Method) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let packed = match method {
            Method::Stored => bytes.clone(),
            Method::Deflated => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        };
        let mut header = vec![20, 0, 0, 0, if method == Method::Deflated { 8 } else { 0 }, 0, 0, 0, 0x21, 0];
        for number in [crc.sum(), packed.len() as u32, bytes.len() as u32, name.len() as u32] {
            header.extend(number.to_le_bytes());
        }
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&header);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&header);
        out.extend(name.bytes());
        out.extend(packed);
    }
    let (start, count) = (out.len() as u32, members.len() as u16);
    let length = directory.len() as u32;
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].as_flattened());
    out.extend([length.to_le_bytes(), start.to_le_bytes()].as_flattened());
    out.extend([0; 2]);
    out
}
