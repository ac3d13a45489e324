//! Reads PyTorch checkpoints of many kinds: old and new formats, training scripts' dicts, wrappers' prefixes, buffers.
//! Every file is written here by a small pickler.

mod pickler;

use autosam_model::ModelConfig;
use autosam_model::weights::{Checkpoint, Dtype, load, load_bytes, load_part, save_safetensors};
use candle_core::DType;
use pickler::*;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

/// A file that is deleted with the temporary folder.
fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn read(bytes: &[u8]) -> autosam_model::Result<Checkpoint> {
    load_bytes(Path::new("x.pth"), bytes)
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    let mut names: Vec<&str> = checkpoint.tensors.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let tensor = checkpoint.tensors[name].to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const PLAIN: [&str; 2] = ["image_encoder.pos_embed", "mask_decoder.a.weight"];

#[test]
fn the_pytorch_format_before_1_6_is_read() {
    let mut storages = Storages::default();
    let momentum = storages.floats(&[5], 70.0);
    let weight = storages.floats(&[2, 3], 0.0);
    let Object::Tensor(weight_view) = weight.clone() else { panic!() };
    let turned = TensorOf { shape: vec![3, 2], stride: vec![1, 3], ..weight_view.clone() };
    let inner = TensorOf { offset: 1, shape: vec![2], stride: vec![1], ..weight_view.clone() };
    let part = TensorOf { part: Some((2, 4)), ..inner.clone() };
    let steps = storages.tensor("LongStorage", &[], 7i64.to_le_bytes().to_vec());
    let half = storages.tensor("HalfStorage", &[2], vec![0x00, 0x3c, 0x00, 0xc0]);
    let empty = storages.tensor("FloatStorage", &[0, 4], Vec::new());
    let state = Object::Pairs(
        [
            ("weight", weight.clone()),
            ("tied", weight),
            ("turned", Object::Tensor(turned)),
            ("inner", Object::Tensor(inner)),
            ("part", Object::Tensor(part)),
            ("bn.num_batches_tracked", steps),
            ("half", half),
            ("empty", empty),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .to_vec(),
    );
    let optimizer = dict(&[("state", dict(&[("exp_avg", momentum)]))]);
    let script = dict(&[("epoch", Object::Int(3)), ("optimizer", optimizer), ("state_dict", state)]);
    let bytes = storages.old(&script);
    let found = read(&bytes).unwrap();
    assert_eq!(found.tensors.len(), 8);
    assert_eq!(values(&found, "weight"), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(values(&found, "tied"), values(&found, "weight"));
    assert_eq!(found.tensors["turned"].to_vec2::<f32>().unwrap(), [[0., 3.], [1., 4.], [2., 5.]]);
    assert_eq!(values(&found, "inner"), [1., 2.]);
    assert_eq!(values(&found, "part"), [3., 4.], "counted from the part's first element");
    assert_eq!(values(&found, "bn.num_batches_tracked"), [7.]);
    assert_eq!(found.tensors["bn.num_batches_tracked"].dtype(), DType::I64);
    assert_eq!((found.tensors["half"].dtype(), values(&found, "half")), (DType::F16, vec![1., -2.]));
    assert_eq!(found.tensors["empty"].dims(), [0, 4]);
    assert_eq!(found.taken.part.as_deref(), Some("state_dict"));
    // Truncated anywhere: the error names the file and says so.
    for keep in (1..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        let said = read(&bytes[..keep]).unwrap_err().to_string();
        assert!(said.contains("x.pth"), "{said}");
        assert!(keep < 64 || said.contains("cut short"), "{keep}: {said}");
    }
}

#[test]
fn whole_modules_are_read_in_both_formats() {
    let mut storages = Storages::default();
    let weight = storages.floats(&[2], 4.0);
    let module = Object::Module(vec![("weight".into(), weight), ("bias".into(), Object::None)]);
    for bytes in [storages.old(&module), storages.zip(&module, Method::Stored)] {
        let found = read(&bytes).unwrap();
        assert_eq!((names(&found), values(&found, "weight")), (vec!["weight"], vec![4.0, 5.0]));
    }
}

#[test]
fn the_only_weight_file_of_a_wheel_or_archive_is_read() {
    let mut storages = Storages::default();
    let state = storages.state("", 1.0);
    let stored = Method::Stored;
    let (old, new) = (storages.old(&state), storages.zip(&state, stored));
    let member = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    for weights in [&old, &new] {
        for method in [stored, Method::Deflated] {
            let members = [
                member("net/__init__.py", b"x = 1"),
                member("net/models/net.pth", weights),
                member("__MACOSX/net/models/._net.pth", b"resource fork"),
            ];
            let found = read(&zip_of(&members, method)).unwrap();
            assert_eq!((names(&found), values(&found, PLAIN[0])[11]), (PLAIN.to_vec(), 12.0));
        }
    }
    let two = zip_of(&[member("a.pth", &old), member("b.pth", &old)], stored);
    let said = read(&two).unwrap_err().to_string();
    assert!(said.contains("a.pth, b.pth") && said.contains("unpack"), "{said}");
    let said = read(&zip_of(&[member("readme.txt", b"x")], stored)).unwrap_err().to_string();
    assert!(said.contains("without weights") && !said.contains("cut short"), "{said}");
    let said = read(&zip_of(&[member("a.pth", &old[..old.len() - 4])], stored)).unwrap_err().to_string();
    assert!(said.contains("x.pth/a.pth") && said.contains("cut short"), "{said}");
    let inner = zip_of(&[member("a.pth", &two)], stored);
    assert!(read(&inner).unwrap_err().to_string().contains("unpack"));
}

#[test]
fn compressed_files_are_read() {
    let mut storages = Storages::default();
    let state = storages.state("", 1.0);
    let found = read(&storages.zip(&state, Method::Deflated)).unwrap();
    assert_eq!(values(&found, PLAIN[1]), (1..13).map(f64::from).collect::<Vec<_>>());
    // A single flipped bit of any number is detected by the checksum.
    let mut stored = storages.zip(&state, Method::Stored);
    let at = stored.windows(4).position(|w| w == 12.0f32.to_le_bytes()).unwrap();
    stored[at] ^= 1;
    assert!(read(&stored).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn a_training_script_s_model_is_preferred_to_loose_tensors() {
    let mut storages = Storages::default();
    let accuracy = storages.floats(&[], 71.0);
    let state = storages.state("module.", 1.0);
    let script = dict(&[
        ("epoch", Object::Int(3)),
        ("arch", Object::Text("hardnet68".into())),
        ("state_dict", state),
        ("best_acc1", accuracy),
    ]);
    let found = read(&storages.zip(&script, Method::Stored)).unwrap();
    assert_eq!(names(&found), PLAIN);
    let said = found.taken.to_string();
    assert_eq!(
        said,
        "taken from state_dict, without the prefix module.; not taken: the top level (1 tensor)"
    );
}

#[test]
fn models_are_found_under_usual_keys_and_wrapper_prefixes_are_removed() {
    for (key, prefix) in [
        ("state_dict", "model."),
        ("model", ""),
        ("net", ""),
        ("ema", "module."),
        ("model_ema", ""),
        ("model_state", "sam."),
        ("params", "module.model."),
        ("teacher", "_orig_mod."),
        ("my_own_name", "net."),
    ] {
        let mut storages = Storages::default();
        let state = storages.state(prefix, 1.0);
        let script = dict(&[("epoch", Object::Int(3)), (key, state)]);
        let found = read(&storages.old(&script)).unwrap();
        assert_eq!(names(&found), PLAIN, "{key}");
        assert_eq!((found.taken.part.as_deref(), found.taken.prefix.as_str()), (Some(key), prefix));
    }
    // Nested wrappers, and a prefix without a holder key.
    let mut storages = Storages::default();
    let script = dict(&[("state_dict", dict(&[("model", storages.state("", 1.0))]))]);
    let found = read(&storages.old(&script)).unwrap();
    assert_eq!((names(&found), found.taken.part.as_deref()), (PLAIN.to_vec(), Some("state_dict.model")));
    let mut storages = Storages::default();
    let state = storages.state("module.", 1.0);
    assert_eq!(names(&read(&storages.old(&state)).unwrap()), PLAIN);
}

/// As written by PyTorch's `DataParallel` and `compile`, with this project's metadata or, from PyTorch, without.
#[test]
fn the_built_in_model_opens_with_a_wrapper_s_prefix_and_without_metadata() {
    let shipped = load_bytes(Path::new("shipped"), autosam_model::SHIPPED).unwrap();
    let expected = shipped.shapes();
    let dir = tempfile::tempdir().unwrap();
    for (prefix, metadata) in [("module.", true), ("_orig_mod.", true), ("module.", false), ("", false)] {
        let path = dir.path().join("m.safetensors");
        let tensors = shipped.tensors.iter().map(|(n, t)| (format!("{prefix}{n}"), t.clone())).collect();
        let notes = if metadata { shipped.metadata.clone() } else { Default::default() };
        save_safetensors(&path, &tensors, &notes, Dtype::F32).unwrap();
        let found = load(&path).unwrap();
        assert_eq!(found.shapes(), expected, "{prefix:?}");
        let config = ModelConfig::of(&found).unwrap();
        assert_eq!(config.generator, ModelConfig::of(&shipped).unwrap().generator);
    }
    let mut other = load(&dir.path().join("m.safetensors")).unwrap();
    let name = other.tensors.keys().next().unwrap().clone();
    other.tensors.remove(&name);
    let text = ModelConfig::of(&other).unwrap_err().to_string();
    assert!(text.contains("m.safetensors") && text.contains("no AutoSAM configuration"), "{text}");
}

#[test]
fn a_prefix_that_belongs_to_the_model_stays() {
    // HarDNet's own names all begin with `base`. With two modules neither is a wrapper.
    for prefixes in [["base.0.", "base.1."], ["model.", "head."], ["model.", "modelling."]] {
        let mut storages = Storages::default();
        let entries = prefixes.map(|p| (format!("{p}weight"), storages.floats(&[2], 0.0)));
        let found = read(&storages.old(&Object::Dict(entries.to_vec()))).unwrap();
        let mut expected = prefixes.map(|p| format!("{p}weight"));
        expected.sort();
        assert_eq!(names(&found), expected);
        assert!(found.taken.is_plain());
    }
}

#[test]
fn a_counter_of_averaging_does_not_keep_the_wrapper_s_prefix() {
    let mut storages = Storages::default();
    let count = storages.tensor("LongStorage", &[], 9i64.to_le_bytes().to_vec());
    let Object::Dict(mut entries) = storages.state("module.", 1.0) else { panic!() };
    entries.insert(0, ("n_averaged".into(), count));
    let found = read(&storages.zip(&Object::Dict(entries), Method::Stored)).unwrap();
    assert_eq!(names(&found), PLAIN);
    assert!(found.taken.to_string().contains("left out: n_averaged"), "{}", found.taken);
}

#[test]
fn one_of_several_models_is_chosen_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut storages = Storages::default();
    let (model, ema) = (storages.state("", 1.0), storages.state("module.", 50.0));
    let script = dict(&[("ema", ema), ("model", model), ("epoch", Object::Int(1))]);
    let path = file(&dir, "both.pth", &storages.old(&script));
    let first = |key| values(&load_part(&path, key).unwrap(), PLAIN[0])[0];
    assert_eq!((first(None), first(Some("model")), first(Some("ema"))), (1.0, 1.0, 50.0));
    let said = load_part(&path, None).unwrap().taken.to_string();
    assert_eq!(said, "taken from model; not taken: ema (2 tensors)");
    let said = load_part(&path, Some("teacher")).unwrap_err().to_string();
    assert!(said.contains("no part teacher") && said.contains("ema, model, epoch"), "{said}");

    // With unknown keys the user must choose one.
    let mut storages = Storages::default();
    let (a, b) = (storages.state("", 1.0), storages.state("", 50.0));
    let script = dict(&[("first", a), ("second", b)]);
    let path = file(&dir, "unknown.pth", &storages.zip(&script, Method::Stored));
    let said = load(&path).unwrap_err().to_string();
    assert!(said.contains("first (2 tensors), second (2 tensors)") && said.contains("--key"), "{said}");
    assert_eq!(values(&load_part(&path, Some("second")).unwrap(), PLAIN[0])[0], 50.0);

    // Within one state dict and in a safetensors file, parts are chosen by the prefix of the names.
    let mut storages = Storages::default();
    let (Object::Dict(mut all), Object::Dict(student)) =
        (storages.state("teacher.", 50.0), storages.state("student.", 1.0))
    else {
        panic!()
    };
    all.extend(student);
    let script = dict(&[("state_dict", Object::Dict(all))]);
    let path = file(&dir, "lightning.ckpt", &storages.zip(&script, Method::Stored));
    let whole = load(&path).unwrap();
    assert_eq!(whole.tensors.len(), 4);
    let saved = dir.path().join("flat.safetensors");
    whole.save(&saved).unwrap();
    for (path, part) in [(&path, "state_dict.teacher"), (&saved, "teacher")] {
        let found = load_part(path, Some("teacher")).unwrap();
        assert_eq!((names(&found), values(&found, PLAIN[0])[0]), (PLAIN.to_vec(), 50.0));
        assert_eq!(found.taken.part.as_deref(), Some(part));
        assert!(found.taken.to_string().contains("(2 tensors)"), "{}", found.taken);
    }
    let said = load_part(&saved, Some("ema")).unwrap_err().to_string();
    assert!(said.contains("student (2 tensors), teacher (2 tensors)"), "{said}");
}

#[test]
fn a_file_without_a_model_lists_what_it_has() {
    let mut storages = Storages::default();
    let momentum = storages.floats(&[2], 0.0);
    let optimizer = dict(&[("state", Object::List(vec![dict(&[("exp_avg", momentum)])]))]);
    let script = dict(&[("epoch", Object::Int(3)), ("optimizer", optimizer)]);
    for bytes in [storages.old(&script), storages.zip(&script, Method::Stored)] {
        let said = read(&bytes).unwrap_err().to_string();
        assert!(said.contains("no tensor; its top keys are: epoch, optimizer"), "{said}");
        assert!(!said.contains("cut short"), "{said}");
    }
}

#[test]
fn an_optimizer_s_moments_are_not_taken_for_a_model() {
    let mut storages = Storages::default();
    let moments = storages.state("", 1.0);
    let state = dict(&[("state", dict(&[("0", moments)]))]);
    for key in ["optimizer", "optimizer_states", "optimizerG", "lr_schedulers", "scaler"] {
        let all = dict(&[("epoch", Object::Int(3)), (key, state.clone())]);
        let error = read(&storages.zip(&all, Method::Stored)).unwrap_err().to_string();
        assert!(error.contains("no tensor") && error.contains(key), "{error}");
    }
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn metadata_of_any_type_in_a_safetensors_header_is_kept() {
    let tensor = r#""w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let notes = r#"{"epoch":3,"args":{"lr":0.1},"format":"pt"}"#;
    let file = read(&safetensors(&format!(r#"{{"__metadata__":{notes},{tensor}}}"#), &[0; 8])).unwrap();
    assert_eq!((names(&file), file.metadata["epoch"].as_str()), (vec!["w"], "3"));
    assert_eq!((file.metadata["format"].as_str(), file.metadata["args"].as_str()), ("pt", r#"{"lr":0.1}"#));
    assert!(read(&safetensors(&format!(r#"{{"__metadata__":[1],{tensor}}}"#), &[0; 8])).is_ok());
    // Other errors in such a file are still reported.
    let short = read(&safetensors(&format!(r#"{{"__metadata__":{notes},{tensor}}}"#), &[0; 5])).unwrap_err();
    assert!(short.to_string().contains("the file contains 5"), "{short}");
}

#[test]
fn a_file_without_tensors_and_values_that_do_not_fit_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let empty = file(&dir, "empty.safetensors", &safetensors(r#"{"__metadata__":{"a":"b"}}"#, &[]));
    let error = load(&empty).unwrap_err().to_string();
    assert!(error.contains("empty.safetensors") && error.contains("no tensor"), "{error}");

    let header = r#"{"w":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    let large =
        load(&file(&dir, "large.safetensors", &safetensors(header, &1e300f64.to_le_bytes()))).unwrap();
    let out = dir.path().join("out.safetensors");
    let error = large.save(&out).unwrap_err().to_string();
    assert!(error.contains("out.safetensors: w has values that f32 cannot hold"), "{error}");
    assert!(!out.exists());
}

#[test]
fn big_endian_files_are_not_reported_as_truncated() {
    let members = [("a/byteorder", b"big".to_vec()), ("a/data.pkl", b"\x80\x02}.".to_vec())];
    let bytes = zip_of(&members.map(|(name, data)| (name.to_owned(), data)), Method::Stored);
    let error = read(&bytes).unwrap_err().to_string();
    assert!(error.contains("big-endian") && !error.contains("cut short"), "{error}");
}

#[test]
fn masks_indices_and_other_buffers_are_converted_or_left_out_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut storages = Storages::default();
    let minus_two = |width: usize| (-2i64).to_le_bytes()[..width].to_vec();
    let Object::Dict(mut entries) = storages.state("", 1.0) else { panic!() };
    let Object::Tensor(one) = storages.floats(&[1], 5.0) else { panic!() };
    for (name, tensor) in [
        ("mask", storages.tensor("BoolStorage", &[2], vec![1, 0])),
        ("bytes", storages.tensor("ByteStorage", &[2], vec![255, 3])),
        ("i8", storages.tensor("CharStorage", &[1], minus_two(1))),
        ("i16", storages.tensor("ShortStorage", &[1], minus_two(2))),
        ("i32", storages.tensor("IntStorage", &[1], minus_two(4))),
        ("bf16", storages.tensor("BFloat16Storage", &[1], vec![0x20, 0xc0])),
        ("complex", storages.tensor("ComplexFloatStorage", &[1], vec![0; 8])),
        ("expanded", Object::Tensor(TensorOf { shape: vec![9], stride: vec![0], ..one })),
    ] {
        entries.push((name.to_owned(), tensor));
    }
    let state = Object::Dict(entries);
    for bytes in [storages.old(&state), storages.zip(&state, Method::Stored)] {
        let found = read(&bytes).unwrap();
        let expected = [("mask", vec![1., 0.]), ("bytes", vec![255., 3.]), ("bf16", vec![-2.5])];
        expected.iter().for_each(|(name, v)| assert_eq!(&values(&found, name), v, "{name}"));
        ["i8", "i16", "i32"].iter().for_each(|name| assert_eq!(values(&found, name), [-2.0], "{name}"));
        let said = found.taken.to_string();
        assert!(said.contains("complex (numbers of the type ComplexFloatStorage"), "{said}");
        assert!(said.contains("expanded (it repeats its numbers"), "{said}");
        // They do not prevent loading a model, and are written unchanged.
        let shapes = PLAIN.map(|name| (name.to_owned(), vec![4, 3]));
        let floats: Vec<_> = [("bf16".to_owned(), vec![1])].into_iter().chain(shapes).collect();
        found.check(&floats).unwrap();
        let path = dir.path().join("c.safetensors");
        found.save(&path).unwrap();
        let again = load(&path).unwrap();
        for name in names(&found) {
            assert_eq!(values(&again, name), values(&found, name), "{name}");
        }
    }
}

/// Its length in little-endian bytes looks like the start of a pickle.
#[test]
fn a_safetensors_header_of_640_bytes_is_not_mistaken_for_a_pickle() {
    let mut header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_vec();
    header.resize(640, b' ');
    let mut bytes = 640u64.to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
    assert_eq!(values(&read(&bytes).unwrap(), "w"), [1.5, -2.0]);
    let said = read(&bytes[..bytes.len() - 1]).unwrap_err().to_string();
    assert!(said.contains("cut short"), "{said}");
}

#[test]
fn a_malicious_file_in_the_old_format_is_an_error() {
    let said = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert!(said(b"\x80\x02}.").contains("torch.save did not write"));
    let mut storages = Storages::default();
    let Object::Tensor(tensor) = storages.floats(&[4], 0.0) else { panic!() };
    let whole = storages.old(&dict(&[("w", Object::Tensor(tensor.clone()))]));
    let count = whole.len() - 16 - 8;
    for (wrong, expected) in [
        (-1i64, "is not a number"),
        (i64::MAX, "is not a number"),
        (1 << 40, "ends at byte"),
        (3, "needs 16 bytes"),
    ] {
        let mut bytes = whole.clone();
        bytes[count..count + 8].copy_from_slice(&wrong.to_le_bytes());
        assert!(said(&bytes).contains(expected), "{wrong}: {}", said(&bytes));
    }
    let large = TensorOf { shape: vec![1 << 30, 1 << 30], stride: vec![1 << 30, 1], ..tensor.clone() };
    let text = said(&storages.old(&dict(&[("w", Object::Tensor(large))])));
    assert!(text.contains("w: needs") || text.contains("overflows"), "{text}");
    // A thousand tensors that each cover nearly the whole storage.
    let mut storages = Storages::default();
    let Object::Tensor(long) = storages.floats(&[4000], 0.0) else { panic!() };
    let shifted = (0..1000).map(|offset| {
        let shape = vec![4000 - offset];
        (format!("w{offset}"), Object::Tensor(TensorOf { offset, shape, ..long.clone() }))
    });
    let text = said(&storages.old(&Object::Dict(shifted.collect())));
    assert!(text.contains("overlap too often"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    /// Any damage to a file in either format leads to weights or to an error with its name, never to a panic.
    #[test]
    fn damaged_checkpoints_are_errors(
        kind in 0..3usize,
        cut in 0usize..60,
        changes in prop::collection::vec((0usize..1000, any::<u8>()), 0..6),
    ) {
        let mut storages = Storages::default();
        let steps = storages.tensor("LongStorage", &[], vec![7; 8]);
        let script = dict(&[("state_dict", storages.state("module.", 1.0)), ("steps", steps)]);
        let mut bytes = match kind {
            0 => storages.old(&script),
            1 => storages.zip(&script, Method::Stored),
            _ => storages.zip(&script, Method::Deflated),
        };
        bytes.truncate(bytes.len() - if cut > 40 { cut } else { 0 });
        for (at, value) in changes {
            let at = at * bytes.len() / 1000;
            bytes[at] = value;
        }
        if let Err(e) = read(&bytes) {
            prop_assert!(e.to_string().contains("x.pth"), "{e}");
        }
    }
}

#[test]
fn a_part_of_a_checkpoint_in_several_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, told) in [
        ("model-00001-of-00002.safetensors", &b"{}"[..], "part 1 of 2 of a checkpoint"),
        ("pytorch_model-00002-of-00003.bin", b"{}", "part 2 of 3 of a checkpoint"),
        ("model.safetensors.index.json", b"{}", "the index of a checkpoint"),
        ("model-00001-of-00001.safetensors", b"{}", "text file"),
        ("net.pth.gz", &[0x1f, 0x8b, 8, 0], "gunzip"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(told), "{name}: {error}");
    }
}
