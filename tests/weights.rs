//! Weight files: reading, writing, and errors for unusable files.

use autosam::generator::{Generator, GeneratorConfig};
use autosam::model::{self, ModelOptions};
use autosam::weights::recorder::shapes_of;
use autosam::weights::{Checkpoint, Dtype, average, load, load_bytes, save_safetensors};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// The pickle that `torch.save({"a.weight": …, "b": …})` writes (protocol 2); its tensors are float storages 0 and 1.
fn pickle(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    let text = |out: &mut Vec<u8>, s: &str| {
        out.push(b'X');
        out.extend((s.len() as u32).to_le_bytes());
        out.extend(s.as_bytes());
    };
    for (i, (name, shape)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        out.extend([b'K', shape.iter().product(), b't', b'Q', b'K', 0, b'(']);
        out.extend(shape.iter().flat_map(|d| [b'K', *d]));
        out.extend(b"t(");
        let strides = (0..shape.len()).map(|k| shape[k + 1..].iter().product());
        out.extend(strides.flat_map(|s: u8| [b'K', s]));
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

/// A `.pth` of float tensors that count up from 0.
fn pth(path: &Path, tensors: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(&pickle(tensors)).unwrap();
    for (i, (_, shape)) in tensors.iter().enumerate() {
        zip.start_file(format!("archive/data/{i}"), options).unwrap();
        for v in 0..shape.iter().product::<u8>() {
            zip.write_all(&f32::from(v).to_le_bytes()).unwrap();
        }
    }
    zip.finish().unwrap();
}

#[test]
fn pytorch_state_dicts_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pth");
    pth(&path, &[("a.weight", &[2, 3]), ("b", &[4])]);
    let file = load(&path).unwrap();
    assert_eq!(file.tensors["a.weight"].to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    assert_eq!(file.tensors["b"].to_vec1::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0]);
    let whole = std::fs::read(&path).unwrap();
    for keep in [10, whole.len() / 2, whole.len() - 10] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains("x.pth") && text.contains("cut short"), "{text}");
    }
}

/// Puts `pickle` and one storage of the floats 0 to 5 into a `.pth`.
fn archive(path: &Path, pickle: &[u8]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("m/data.pkl", options).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("m/data/0", options).unwrap();
    zip.write_all(&(0..6u8).flat_map(|v| f32::from(v).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    zip.finish().unwrap();
}

/// The instructions for a parameter of `shape` and `stride` in storage 0.
fn parameter(shape: [u8; 2], stride: [u8; 2]) -> Vec<u8> {
    let mut out = b"ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    out.extend(b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0");
    out.extend([b'K', shape[0], b'K', shape[1], 0x86, b'K', stride[0], b'K', stride[1], 0x86]);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR\x88ccollections\nOrderedDict\n)RtR");
    out
}

/// The pickle of `torch.save(module, …)`: the class, then the state with nested modules.
fn module(parameters: &[(&str, Vec<u8>)], modules: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"cmodels.model_single\nModelEmb\n)\x81}(X\x08\0\0\0training\x89".to_vec();
    for (key, entries) in [("_parameters", parameters), ("_modules", modules)] {
        out.push(b'X');
        out.extend((key.len() as u32).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(b"ccollections\nOrderedDict\n)R(");
        for (name, value) in entries {
            out.push(b'X');
            out.extend((name.len() as u32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(value);
        }
        out.push(b'u');
    }
    out.extend(b"ub");
    out
}

#[test]
fn whole_modules_are_read_by_the_names_of_their_state_dict() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net_best.pth");
    let conv = module(&[("weight", parameter([2, 3], [3, 1])), ("bias", b"N".to_vec())], &[]);
    let transposed = module(&[("weight", parameter([3, 2], [1, 3]))], &[]);
    let whole = [
        b"\x80\x02".to_vec(),
        module(&[], &[("base", module(&[], &[("0", conv), ("1", transposed)]))]),
        b".".to_vec(),
    ];
    archive(&path, &whole.concat());
    let file = load(&path).unwrap();
    let mut names: Vec<_> = file.tensors.keys().collect();
    names.sort();
    assert_eq!(names, ["base.0.weight", "base.1.weight"]);
    assert_eq!(file.tensors["base.0.weight"].to_vec2::<f32>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
    assert_eq!(file.tensors["base.1.weight"].to_vec2::<f32>().unwrap(), [[0., 3.], [1., 4.], [2., 5.]]);
}

#[test]
fn a_hostile_pickle_is_an_error_and_is_not_executed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pth");
    let said = |pickle: &[u8]| {
        archive(&path, pickle);
        load(&path).unwrap_err().to_string()
    };
    // The classic attack: os.system("touch …").
    let proof = dir.path().join("ran");
    let line = format!("touch {}", proof.display());
    let mut attack = b"\x80\x02cposix\nsystem\nX".to_vec();
    attack.extend((line.len() as u32).to_le_bytes());
    attack.extend(line.as_bytes());
    attack.extend(b"\x85R.");
    assert!(said(&attack).contains("no tensor") && !proof.exists());
    // A million nested tuples, and thirty doublings.
    assert!(
        said(&[b"\x80\x02)".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat()).contains("no tensor")
    );
    let doubled: Vec<u8> = (0..200).flat_map(|_| *b"q\0h\0\x86").collect();
    assert!(said(&[b"\x80\x02)".to_vec(), doubled, b".".to_vec()].concat()).contains("no tensor"));
    // A text of 4 GB, a tensor of 65,025 values in a storage of 6, a module that contains itself.
    assert!(said(b"\x80\x02X\xff\xff\xff\xff.").contains("ends early"));
    let large = [b"\x80\x02}X\x01\0\0\0w".to_vec(), parameter([255, 255], [255, 1]), b"s.".to_vec()];
    assert!(said(&large.concat()).contains("w: needs 260100 bytes of m/data/0, which has 24"));
    let itself = b"\x80\x02cm\nM\n)\x81q\0}X\x08\0\0\0_modules}(X\x01\0\0\0ah\0X\x01\0\0\0bh\0usb.";
    let text = said(itself);
    assert!(text.contains("deeper") || text.contains("many times"), "{text}");
}

#[test]
fn every_number_format_is_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors =
        HashMap::from([("w".to_owned(), Tensor::new(&[0.5f32, -2.0, 1.0 / 3.0], &Device::Cpu).unwrap())]);
    let metadata = HashMap::from([("k".to_owned(), "v".to_owned())]);
    for (dtype, precision) in [(Dtype::F32, 0.0), (Dtype::F16, 2e-4), (Dtype::Bf16, 2e-3)] {
        save_safetensors(&path, &tensors, &metadata, dtype).unwrap();
        let file = load(&path).unwrap();
        let got = file.tensors["w"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        for (got, want) in got.iter().zip([0.5, -2.0, 1.0 / 3.0]) {
            assert!((got - want).abs() <= precision, "{dtype:?}: {got} for {want}");
        }
        assert_eq!(file.metadata["k"], "v");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");
}

#[test]
fn at_most_ten_faults_are_listed() {
    let shapes = shapes_of(|vb| Generator::load(&GeneratorConfig::tiny(64, 32), vb)).unwrap();
    let mut tensors: HashMap<String, Tensor> = shapes
        .iter()
        .map(|(n, s)| (n.clone(), Tensor::zeros(s.as_slice(), DType::F32, &Device::Cpu).unwrap()))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let said = |tensors: &HashMap<String, Tensor>| {
        save_safetensors(&path, tensors, &HashMap::new(), Dtype::F32).unwrap();
        load(&path).unwrap().check(&shapes).map_err(|e| e.to_string())
    };
    assert!(said(&tensors).is_ok());
    let (name, shape) = &shapes[0];
    let wrong = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    tensors.insert(name.clone(), wrong.clone());
    tensors.insert("stranger".into(), wrong);
    tensors.remove(&shapes[1].0);
    let text = said(&tensors).unwrap_err();
    assert!(text.contains(&format!("{name}: expected {shape:?}, found [3]")), "{text}");
    assert!(
        text.contains("unexpected stranger [3]") && text.contains(&format!("missing {}", shapes[1].0)),
        "{text}"
    );
    let few = HashMap::from([("stranger".to_owned(), tensors["stranger"].clone())]);
    let text = said(&few).unwrap_err();
    assert_eq!(text.matches("missing").count(), 10, "{text}");
    assert!(text.contains(&format!("and {} more", shapes.len() + 1 - 10)), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any damaged file gives weights or an error with its name, never a panic.
    #[test]
    fn damaged_files_are_errors(cut in 0usize..300, at in 0usize..300, value in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = HashMap::from([("w".to_owned(), Tensor::new(&[0.5f32; 20], &Device::Cpu).unwrap())]);
        save_safetensors(&path, &tensors, &HashMap::new(), Dtype::F32).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some(b) = bytes.get_mut(at) {
            *b = value;
        }
        if let Err(e) = load_bytes(&path, &bytes) {
            prop_assert!(e.to_string().contains("x.safetensors"));
        }
        let path = dir.path().join("x.pth");
        pth(&path, &[("w", &[5])]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some(b) = bytes.get_mut(at) {
            *b = value;
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Err(e) = load(&path) {
            prop_assert!(e.to_string().contains("x.pth"));
        }
    }
}

#[test]
fn averaging_files_averages_their_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, values: &[f32], shape: &[usize]| {
        let path = dir.path().join(name);
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("w".to_owned(), tensor)]);
        save_safetensors(&path, &tensors, &HashMap::new(), Dtype::F16).unwrap();
        load(&path).unwrap()
    };
    let (a, b) = (file("a", &[1.0, 2.0], &[2]), file("b", &[3.0, -2.0], &[2]));
    let mean = average(&[a.clone(), b.clone()], &[1.0, 1.0]).unwrap();
    assert_eq!(mean.tensors["w"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [2.0, 0.0]);
    assert_eq!(Dtype::of(&mean), Dtype::F16);
    let other = file("other", &[1.0, 2.0, 3.0], &[3]);
    let uneven = average(&[a.clone(), b.clone()], &[3.0, 1.0]).unwrap();
    assert_eq!(uneven.tensors["w"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.5, 1.0]);
    for shares in [&[1.0][..], &[1.0, 0.0], &[1.0, f64::NAN]] {
        assert!(
            average(&[a.clone(), b.clone()], shares).unwrap_err().to_string().contains("weights above 0")
        );
    }
    let said = average(&[a, other], &[1.0, 1.0]).unwrap_err().to_string();
    assert!(said.contains("other") && said.contains('w'), "{said}");
}

#[test]
fn a_sam_only_file_contributes_to_the_sam_of_an_average() {
    let whole = model::checkpoint(None).unwrap();
    let mut sam = whole.clone();
    let own = whole
        .tensors
        .iter()
        .filter_map(|(n, t)| Some((n.strip_prefix("sam.")?.to_owned(), (t * 3.0).unwrap())));
    sam.tensors = own.collect();
    sam.metadata.clear();
    model::complete(&mut sam, &whole);
    let mean = average(&[whole.clone(), sam.clone()], &[0.75, 0.25]).unwrap();
    let sum = |file: &Checkpoint, name: &str| {
        let tensor = file.tensors[name].to_dtype(DType::F64).unwrap();
        tensor.sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let name = |prefix: &str| {
        whole.tensors.keys().filter(|n| n.starts_with(prefix) && n.ends_with("conv.weight")).min()
    };
    let generator = name("generator.").unwrap();
    assert_eq!(sum(&mean, generator), sum(&whole, generator));
    let (before, after) =
        (sum(&whole, "sam.image_encoder.neck.0.weight"), sum(&mean, "sam.image_encoder.neck.0.weight"));
    assert!((after - 1.5 * before).abs() <= 1e-2 * before.abs(), "{before}, {after}");
    // Complete files, and SAM-only files beside another SAM-only file, are not changed.
    let mut other = whole.clone();
    model::complete(&mut other, &whole);
    assert_eq!(other.shapes(), whole.shapes());
    sam.metadata.clear();
    let mut other = sam.clone();
    model::complete(&mut other, &sam);
    assert_eq!(other.shapes(), sam.shapes());
}

#[test]
fn a_model_with_non_finite_weights_is_rejected() {
    let mut file = load_bytes(Path::new("nan.safetensors"), model::SHIPPED).unwrap();
    let open = |file: &Checkpoint| model::open_checkpoint(file, &ModelOptions::default()).map(drop);
    open(&file).unwrap();
    let name = "generator.backbone._blocks.0._bn1.running_mean";
    let broken = (&file.tensors[name] * f64::NAN).unwrap();
    file.tensors.insert(name.to_owned(), broken);
    let error = open(&file).unwrap_err().to_string();
    assert!(error.contains("nan.safetensors: 1 tensors hold values that are not finite"), "{error}");
    assert!(error.contains(name), "{error}");
}
