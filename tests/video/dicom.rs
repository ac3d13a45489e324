//! Row 25: images in DICOM files, with one and several frames, in all codings and colour spaces.

use super::support::*;
use dicom_core::value::{PixelFragmentSequence, Value};
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use image::{ExtendedColorType, Rgb, RgbImage, codecs::jpeg::JpegEncoder};
use std::path::Path;

const SIZE: (u32, u32) = (50, 40);

/// Red at the left, dark grey in the middle, white at the right; moved by the frame's number.
fn pixel(frame: u32, x: u32) -> [u8; 3] {
    match (x + frame) % 50 {
        0..16 => [200, 30, 20],
        16..32 => [40; 3],
        _ => [255; 3],
    }
}

/// Calls `value` for every pixel of frame `frame`, row by row.
fn each(frame: u32, value: impl FnMut([u8; 3]) -> Vec<u8>) -> Vec<u8> {
    (0..SIZE.1).flat_map(|_| (0..SIZE.0).map(move |x| pixel(frame, x))).flat_map(value).collect()
}

/// JPEG's conversion to luma and chroma, without loss.
fn ybr([r, g, b]: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = [r, g, b].map(f32::from);
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    [y, 128.0 + (b - y) / 1.772, 128.0 + (r - y) / 1.402].map(|v| v.round() as u8)
}

/// Packs a plane with PackBits.
fn packed(plane: &[u8]) -> Vec<u8> {
    plane
        .chunks(100)
        .flat_map(|part| match part.iter().all(|v| *v == part[0]) {
            true => vec![(257 - part.len()) as u8, part[0]],
            false => [&[part.len() as u8 - 1], part].concat(),
        })
        .collect()
}

/// Encodes the planes of a frame as DICOM run lengths.
fn run_lengths(planes: &[Vec<u8>]) -> Vec<u8> {
    let segments: Vec<Vec<u8>> = planes.iter().map(|p| packed(p)).collect();
    let mut head = vec![planes.len() as u32];
    let mut at = 64;
    for segment in &segments {
        head.push(at);
        at += segment.len() as u32;
    }
    head.resize(16, 0);
    let mut out: Vec<u8> = head.into_iter().flat_map(u32::to_le_bytes).chain(segments.concat()).collect();
    out.resize(out.len().next_multiple_of(2), 0);
    out
}

fn jpeg(pixels: &[u8], colour: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).encode(pixels, SIZE.0, SIZE.1, colour).unwrap();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes
}

/// The pixel format of a file.
struct Kind {
    photometric: &'static str,
    samples: u16,
    allocated: u16,
    stored: u16,
    planar: u16,
}

const fn kind(photometric: &'static str, samples: u16, allocated: u16, stored: u16) -> Kind {
    Kind { photometric, samples, allocated, stored, planar: 0 }
}

/// Uncompressed frames one after another, or one fragment per frame.
enum Data {
    Native(Vec<u8>),
    Fragments(Vec<Vec<u8>>),
}

fn write(path: &Path, syntax: &str, kind: &Kind, frames: u32, data: Data) {
    let mut object = InMemDicomObject::new_empty();
    for (tag, vr, value) in [
        (tags::SOP_CLASS_UID, VR::UI, uids::VL_ENDOSCOPIC_IMAGE_STORAGE),
        (tags::SOP_INSTANCE_UID, VR::UI, "2.25.8"),
        (tags::MODALITY, VR::CS, "ES"),
        (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, kind.photometric),
        (tags::FRAME_TIME, VR::DS, "100"),
    ] {
        object.put(DataElement::new(tag, vr, value));
    }
    object.put(DataElement::new(tags::NUMBER_OF_FRAMES, VR::IS, frames.to_string()));
    for (tag, value) in [
        (tags::COLUMNS, SIZE.0 as u16),
        (tags::ROWS, SIZE.1 as u16),
        (tags::SAMPLES_PER_PIXEL, kind.samples),
        (tags::BITS_ALLOCATED, kind.allocated),
        (tags::BITS_STORED, kind.stored),
        (tags::HIGH_BIT, kind.stored - 1),
        (tags::PIXEL_REPRESENTATION, 0),
        (tags::PLANAR_CONFIGURATION, kind.planar),
    ] {
        object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }
    if kind.photometric == "PALETTE COLOR" {
        for (descriptor, data, channel) in [
            (tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA, 0),
            (
                tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                1,
            ),
            (tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA, 2),
        ] {
            let of = |x| u16::from(pixel(0, x)[channel]) << 8;
            object.put(DataElement::new(descriptor, VR::US, PrimitiveValue::U16([3, 10, 16][..].into())));
            object.put(DataElement::new(
                data,
                VR::OW,
                PrimitiveValue::U16([of(0), of(20), of(40)][..].into()),
            ));
        }
    }
    match data {
        Data::Native(bytes) => {
            object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(bytes.into())));
        }
        Data::Fragments(fragments) => {
            let fragments = PixelFragmentSequence::new_fragments(fragments);
            object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, Value::PixelSequence(fragments)));
        }
    }
    let meta = FileMetaTableBuilder::new().transfer_syntax(syntax);
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}

/// The frames that `run` writes without an overlay.
fn frames_of(path: &Path, more: &[&str]) -> (Vec<RgbImage>, String) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let (_, text) = run(path, &output, &[&["--overlay", "none"], more].concat());
    let mut names: Vec<_> =
        std::fs::read_dir(&output).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    names.sort();
    (names.into_iter().map(|name| image::open(name).unwrap().into_rgb8()).collect(), text)
}

/// Checks the pixels of all three frames with tolerance `within`; for grey images only the brightness.
fn same(path: &Path, grey: bool, within: u8) {
    let (frames, text) = frames_of(path, &[]);
    assert_eq!(frames.len(), 3, "{}: {text}", path.display());
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!(frame.dimensions(), SIZE);
        // Pixels in the middle of the areas, which JPEG preserves.
        for x in [8, 24, 42] {
            let Rgb(found) = *frame.get_pixel(x, 20);
            let drawn = pixel(i as u32, x);
            let expected = if grey { [drawn[0]; 3] } else { drawn };
            let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= within);
            assert!(near, "{} frame {i} at {x}: {found:?}, not {expected:?}", path.display());
        }
    }
}

fn native(value: impl Fn([u8; 3]) -> Vec<u8> + Copy) -> Data {
    Data::Native((0..3).flat_map(|frame| each(frame, value)).collect())
}

#[test]
fn uncompressed_images_in_dicom_files_are_read_in_all_colours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("IM1");
    let explicit = uids::EXPLICIT_VR_LITTLE_ENDIAN;
    let put = |syntax, kind: &Kind, data| write(&path, syntax, kind, 3, data);
    put(explicit, &kind("RGB", 3, 8, 8), native(|p| p.to_vec()));
    same(&path, false, 0);
    put(uids::IMPLICIT_VR_LITTLE_ENDIAN, &kind("RGB", 3, 8, 8), native(|p| p.to_vec()));
    same(&path, false, 0);
    let planes = |frame| (0..3).flat_map(move |c| each(frame, move |p| vec![p[c]]));
    let planar = Kind { planar: 1, ..kind("RGB", 3, 8, 8) };
    put(explicit, &planar, Data::Native((0..3).flat_map(planes).collect()));
    same(&path, false, 0);
    put(explicit, &kind("YBR_FULL", 3, 8, 8), native(|p| ybr(p).to_vec()));
    same(&path, false, 3);
    put(explicit, &kind("MONOCHROME2", 1, 8, 8), native(|p| vec![p[0]]));
    same(&path, true, 0);
    put(explicit, &kind("MONOCHROME1", 1, 8, 8), native(|p| vec![255 - p[0]]));
    same(&path, true, 0);
    let twelve = |p: [u8; 3]| (u16::from(p[0]) * 257 / 16).to_le_bytes().to_vec();
    put(explicit, &kind("MONOCHROME2", 1, 16, 12), native(twelve));
    same(&path, true, 1);
    let index = |p: [u8; 3]| vec![10 + [200, 40, 255].iter().position(|v| *v == p[0]).unwrap() as u8];
    put(explicit, &kind("PALETTE COLOR", 1, 8, 8), native(index));
    same(&path, false, 0);
    let halves = |frame: u32| {
        let all: Vec<[u8; 3]> =
            each(frame, |p| ybr(p).to_vec()).chunks(3).map(|p| [p[0], p[1], p[2]]).collect();
        all.chunks(2).flat_map(|two| [two[0][0], two[1][0], two[0][1], two[0][2]]).collect::<Vec<u8>>()
    };
    put(explicit, &kind("YBR_FULL_422", 3, 8, 8), Data::Native((0..3).flat_map(halves).collect()));
    same(&path, false, 3);
}

#[test]
fn run_lengths_and_jpeg_in_dicom_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("IM2");
    let planes = |frame| (0..3).map(|c| each(frame, move |p| vec![p[c]])).collect::<Vec<_>>();
    let data = Data::Fragments((0..3).map(|frame| run_lengths(&planes(frame))).collect());
    write(&path, uids::RLE_LOSSLESS, &kind("RGB", 3, 8, 8), 3, data);
    same(&path, false, 0);
    let value = |p: [u8; 3]| (u16::from(p[0]) * 257 / 16).to_be_bytes();
    let bytes = |frame| (0..2).map(|b| each(frame, move |p| vec![value(p)[b]])).collect::<Vec<_>>();
    let data = Data::Fragments((0..3).map(|frame| run_lengths(&bytes(frame))).collect());
    write(&path, uids::RLE_LOSSLESS, &kind("MONOCHROME2", 1, 16, 12), 3, data);
    same(&path, true, 1);

    let coded = |frame| jpeg(&each(frame, |p| p.to_vec()), ExtendedColorType::Rgb8);
    let data = Data::Fragments((0..3).map(coded).collect());
    write(&path, uids::JPEG_BASELINE8_BIT, &kind("YBR_FULL_422", 3, 8, 8), 3, data);
    same(&path, false, 12);
    // A frame in two fragments, as in files with few frames.
    let halves = |frame: u32| {
        let bytes = coded(frame);
        let half = bytes.len() / 4 * 2;
        [bytes[..half].to_vec(), bytes[half..].to_vec()]
    };
    write(
        &path,
        uids::JPEG_BASELINE8_BIT,
        &kind("YBR_FULL_422", 3, 8, 8),
        3,
        Data::Fragments((0..3).flat_map(halves).collect()),
    );
    same(&path, false, 12);
    let grey = |frame| jpeg(&each(frame, |p| vec![255 - p[0]]), ExtendedColorType::L8);
    let data = Data::Fragments((0..3).map(grey).collect());
    write(&path, uids::JPEG_BASELINE8_BIT, &kind("MONOCHROME1", 1, 8, 8), 3, data);
    same(&path, true, 8);
}

#[test]
fn an_archive_reads_dicom_images_and_lists_unsupported_files() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    let rgb = kind("RGB", 3, 8, 8);
    write(&input.join("clip.dcm"), uids::EXPLICIT_VR_LITTLE_ENDIAN, &rgb, 3, native(|p| p.to_vec()));
    write(
        &input.join("still"),
        uids::EXPLICIT_VR_LITTLE_ENDIAN,
        &rgb,
        1,
        Data::Native(each(0, |p| p.to_vec())),
    );
    for (name, syntax) in [
        ("ls.dcm", uids::JPEGLS_LOSSLESS),
        ("2000.dcm", uids::JPEG2000),
        ("lossless.dcm", uids::JPEG_LOSSLESS_SV1),
    ] {
        write(&input.join(name), syntax, &rgb, 1, Data::Fragments(vec![vec![1, 2, 3, 4]]));
    }
    let mut note = InMemDicomObject::new_empty();
    note.put(DataElement::new(tags::SOP_CLASS_UID, VR::UI, uids::BASIC_TEXT_SR_STORAGE));
    note.put(DataElement::new(tags::SOP_INSTANCE_UID, VR::UI, "2.25.9"));
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    note.with_meta(meta).unwrap().write_to_file(input.join("report.dcm")).unwrap();
    let text = good(&input, &output, &["--write", "dicom-seg"]);
    assert!(text.contains("2 videos done") && text.contains("4 files are left out"), "{text}");
    let clip = json(&output.join("clip.dcm/summary.json"));
    assert_eq!(
        (clip["frames"].as_u64(), clip["frames_per_second"].as_f64()),
        (Some(3), Some(10.0)),
        "{clip}"
    );
    assert_eq!(json(&output.join("still/summary.json"))["frames"], 1);
    let page = std::fs::read_to_string(output.join("index.html")).unwrap();
    for part in ["JPEG-LS", "JPEG 2000", "lossless JPEG", "gdcmconv --raw", "report.dcm"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // The archive's own DICOM segmentations are not read as images.
    let again = dir.path().join("again");
    let text = bad(&output.join("clip.dcm"), &again, &["--only", "videos"]);
    assert!(text.contains("contains no videos"), "{text}");

    // In a truncated file the complete frames are processed.
    cut(&input.join("clip.dcm"), &dir.path().join("cut.dcm"), 0.8);
    let (frames, text) = frames_of(&dir.path().join("cut.dcm"), &[]);
    assert_eq!(frames.len(), 2, "{text}");
    assert!(text.contains("2 of 3 frames could be read"), "{text}");
}

/// Replaces the tags with the frames' times in the file at `path`.
fn retime(path: &Path, stated: &[(Tag, VR, PrimitiveValue)]) {
    let mut file = dicom_object::open_file(path).unwrap();
    file.remove_element(tags::FRAME_TIME);
    for (tag, vr, value) in stated {
        file.put(DataElement::new(*tag, *vr, value.clone()));
    }
    file.write_to_file(path).unwrap();
}

#[test]
fn a_vector_of_frame_times_in_a_dicom_file_sets_each_frame_s_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("IM1");
    let vector = |text: &str| (tags::FRAME_TIME_VECTOR, VR::DS, PrimitiveValue::from(text));
    let pointer = |tag: Tag| (tags::FRAME_INCREMENT_POINTER, VR::AT, PrimitiveValue::Tags([tag][..].into()));
    let time = || (tags::FRAME_TIME, VR::DS, PrimitiveValue::from("100"));
    let timed = |stated: &[(Tag, VR, PrimitiveValue)]| {
        write(&path, uids::EXPLICIT_VR_LITTLE_ENDIAN, &kind("RGB", 3, 8, 8), 3, native(|p| p.to_vec()));
        retime(&path, stated);
        let output = dir.path().join("out.webm");
        let (whole, text) = run(&path, &output, &[]);
        let times = times(&output);
        std::fs::remove_file(&output).unwrap();
        (times, whole, text)
    };
    let near = |found: &[f64], expected: &[f64]| assert!(same_times(found, expected), "{found:?}");
    near(&timed(&[vector("0\\40\\160.5")]).0, &[0.0, 0.04, 0.2005]);
    // If both tags exist, the pointer decides.
    near(&timed(&[vector("0\\40\\160.5"), time(), pointer(tags::FRAME_TIME_VECTOR)]).0, &[0.0, 0.04, 0.2005]);
    near(&timed(&[vector("0\\40\\160.5"), time(), pointer(tags::FRAME_TIME)]).0, &[0.0, 0.1, 0.2]);
    let (found, _, text) = timed(&[vector("0\\40")]);
    near(&found, &[0.0, 0.04, 0.08]);
    assert!(text.contains("2 of 3 frames"), "{text}");
    let (_, whole, text) = timed(&[vector("0\\-40\\20")]);
    assert!(!whole && text.contains("FrameTimeVector"), "{text}");
    let (found, _, text) = timed(&[]);
    near(&found, &[0.0, 0.04, 0.08]);
    assert!(text.contains("no frame rate"), "{text}");
}
