//! Rows 13, 25, 27, 28 and 32: files read from folders, and outputs of archives.

use super::support::*;
use dicom_core::value::{PixelFragmentSequence, Value};
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use std::collections::BTreeSet;
use std::path::Path;

const SMALL: &str = "width=160,height=120,framerate=25/1";

#[test]
fn a_folder_with_videos_and_images_requires_a_choice() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    make(&format!(
        "{} ! {H264} ! mp4mux ! filesink location={}",
        moving(5, SMALL),
        input.join("v.mp4").display()
    ));
    image::RgbImage::new(32, 32).save(input.join("snapshot.png")).unwrap();
    let text = bad(&input, &output, &[]);
    assert!(text.contains("1 images and 1 videos") && text.contains("--only videos"), "{text}");
    let text = good(&input, &output, &["--only", "videos"]);
    assert!(text.contains("1 videos done") && text.contains("1 files are left out: snapshot.png"), "{text}");
    let page = std::fs::read_to_string(output.join("index.html")).unwrap();
    assert!(page.contains("1 files left out") && page.contains("snapshot.png"), "{page}");
    let csv = std::fs::read_to_string(output.join("summary.csv")).unwrap();
    assert!(csv.contains("\"snapshot.png\",left out"), "{csv}");
    let text = good(&input, &dir.path().join("stills"), &["--only", "images"]);
    assert!(text.contains("1 frames in"), "{text}");
}

#[test]
fn every_kind_of_video_file_from_towers_and_recorders_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    let h264 = "videoconvert ! video/x-raw,format=I420 ! x264enc speed-preset=ultrafast ! h264parse";
    let files = [
        ("a.vob", SMALL, format!("{MPEG2} ! mpegpsmux")),
        ("b.mod", SMALL, format!("{MPEG2} ! mpegpsmux")),
        ("c.m2v", SMALL, MPEG2.to_owned()),
        ("d.mxf", SMALL, format!("{MPEG2} ! mxfmux")),
        ("e.asf", SMALL, "videoconvert ! avenc_wmv2 ! asfmux".to_owned()),
        ("f.flv", SMALL, format!("{h264} ! flvmux")),
        ("g.3gp", SMALL, format!("{h264} ! 3gppmux")),
        ("h.dv", "width=720,height=576,framerate=25/1", "videoconvert ! avenc_dvvideo".to_owned()),
        ("i.MTS", SMALL, format!("{h264} ! mpegtsmux")),
    ];
    for (name, caps, chain) in &files {
        make(&format!("{} ! {chain} ! filesink location={}", moving(10, caps), input.join(name).display()));
    }
    std::fs::write(input.join("report.txt"), "nothing found").unwrap();
    let text = good(&input, &output, &["--write", "none"]);
    assert!(text.contains("9 videos done") && text.contains("1 files are left out: report.txt"), "{text}");
    for (name, _, _) in &files {
        let frames = json(&output.join(name).join("summary.json"))["frames"].as_u64().unwrap();
        // Elementary streams without an end code keep their last frame.
        assert!((9..=10).contains(&frames), "{name}: {frames}");
    }
}

/// Writes a DICOM file with `stream` in fragments, which states `frames` frames.
fn dicom(path: &Path, syntax: &str, stream: &[u8], frames: u32) {
    let mut object = InMemDicomObject::new_empty();
    for (tag, vr, value) in [
        (tags::SOP_CLASS_UID, VR::UI, uids::VIDEO_ENDOSCOPIC_IMAGE_STORAGE),
        (tags::SOP_INSTANCE_UID, VR::UI, "2.25.7"),
        (tags::MODALITY, VR::CS, "ES"),
        (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "YBR_PARTIAL_420"),
    ] {
        object.put(DataElement::new(tag, vr, value));
    }
    object.put(DataElement::new(tags::NUMBER_OF_FRAMES, VR::IS, frames.to_string()));
    let half = stream.len() / 4 * 2;
    let mut second = stream[half..].to_vec();
    second.resize(second.len().next_multiple_of(2), 0);
    let fragments = PixelFragmentSequence::new_fragments(vec![stream[..half].to_vec(), second]);
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, Value::PixelSequence(fragments)));
    let meta = FileMetaTableBuilder::new().transfer_syntax(syntax);
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}

#[test]
fn video_in_dicom_files_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    let h265 = "videoconvert ! video/x-raw,format=I420 ! x265enc speed-preset=ultrafast ! h265parse";
    for (name, syntax, chain) in [
        ("mpeg2.dcm", uids::MPEG2MPML, MPEG2.to_owned()),
        ("IM0001", uids::MPEG4HP41, format!("{H264} ! mp4mux")),
        ("avc-ts.dcm", uids::MPEG4HP41F, format!("{H264} ! mpegtsmux")),
        ("hevc.dcm", uids::HEVCMP51, format!("{h265} ! mpegtsmux")),
    ] {
        let stream = dir.path().join("stream");
        make(&format!("{} ! {chain} ! filesink location={}", moving(10, SMALL), stream.display()));
        dicom(&input.join(name), syntax, &std::fs::read(stream).unwrap(), 10);
    }
    dicom(&input.join("still.dcm"), uids::JPEG2000, &[0xff, 0x4f, 0xff, 0xd9], 1);
    let text = good(&input, &output, &["--write", "png"]);
    assert!(text.contains("4 videos done") && text.contains("1 files are left out: still.dcm"), "{text}");
    for name in ["mpeg2.dcm", "IM0001", "avc-ts.dcm", "hevc.dcm"] {
        let summary = json(&output.join(name).join("summary.json"));
        assert_eq!((&summary["frames"], &summary["width"]), (&10.into(), &160.into()), "{name}");
    }
    let page = std::fs::read_to_string(output.join("index.html")).unwrap();
    assert!(page.contains("still.dcm") && page.contains("without video"), "{page}");
    // A single file, and a truncated one.
    good(&input.join("IM0001"), &dir.path().join("o.mp4"), &[]);
    assert_eq!(decoded(&dir.path().join("o.mp4")).len(), 10);
    cut(&input.join("avc-ts.dcm"), &dir.path().join("cut.dcm"), 0.7);
    let text = bad(&dir.path().join("cut.dcm"), &dir.path().join("cut.mp4"), &[]);
    assert!(text.contains("of 10 frames could be read"), "{text}");
}

#[test]
fn a_video_without_a_detection_has_an_empty_segmentation_and_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    let black = format!("videotestsrc num-buffers=3 pattern=black ! video/x-raw,{SMALL}");
    make(&format!("{black} ! {H264} ! mp4mux ! filesink location={}", input.join("v.mp4").display()));
    good(&input, &output, &["--write", "dicom-seg", "--threshold", "1"]);
    let seg = dicom_object::open_file(output.join("v.mp4/segmentation-0001.dcm")).unwrap();
    assert_eq!(seg.element_by_name("NumberOfFrames").unwrap().to_int::<u32>().unwrap(), 1);
    let bits = seg.element_by_name("PixelData").unwrap().to_bytes().unwrap().into_owned();
    assert!(bits.len() == 160 * 120 / 8 && bits.iter().all(|b| *b == 0));
    let summary = json(&output.join("v.mp4/summary.json"));
    assert_eq!(summary["marked_frames"], 0);
    assert!(summary["notes"][0].as_str().unwrap().contains("no frame has a detection"), "{summary}");
}

#[test]
fn the_printed_pipeline_has_every_setting_that_affects_masks() {
    let dir = tempfile::tempdir().unwrap();
    let video = dir.path().join("v.mp4");
    make(&format!("{} ! {H264} ! mp4mux ! filesink location={}", moving(3, SMALL), video.display()));
    let output = dir.path().join("o.mp4");
    let flags = [
        "--threshold",
        "0.4",
        "--hysteresis",
        "0.1",
        "--min-area",
        "0.02",
        "--roi",
        "full",
        "--views",
        "2",
        "--overlay",
        "box",
    ];
    let text = good(&video, &output, &flags);
    let line = text.lines().find(|l| l.contains("gst-launch-1.0")).unwrap();
    for part in [
        "sync-mode=frame-accurate",
        "threshold=0.4",
        "hysteresis=0.1",
        "min-area=0.02",
        "roi=full",
        "views=2",
        "device=cpu",
        "overlay-mode=box",
        "deinterlace fields=top",
        "videoflip video-direction=auto",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let text = good(&video, &output, &["--mask-mode", "minmax"]);
    assert!(!text.contains("gst-launch-1.0") && text.contains("minmax"), "{text}");
}

#[test]
fn ids_in_coco_files_are_unique_and_cvat_masks_equal_the_pngs() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir_all(input.join("b")).unwrap();
    for name in ["a.mp4", "b/a.mp4", "b/c.mp4"] {
        make(&format!(
            "{} ! {H264} ! mp4mux ! filesink location={}",
            moving(4, SMALL),
            input.join(name).display()
        ));
    }
    good(&input, &output, &["--write", "coco,cvat,png", "--mask-mode", "minmax"]);
    let (mut images, mut annotations) = (BTreeSet::new(), BTreeSet::new());
    for name in ["a.mp4", "b/a.mp4", "b/c.mp4"] {
        let folder = output.join(name);
        let coco = json(&folder.join("coco.json"));
        for image in coco["images"].as_array().unwrap() {
            assert!(images.insert(image["id"].as_u64().unwrap()), "{image}");
        }
        for annotation in coco["annotations"].as_array().unwrap() {
            assert!(annotations.insert(annotation["id"].as_u64().unwrap()), "{annotation}");
            assert!(images.contains(&annotation["image_id"].as_u64().unwrap()));
        }
        assert_eq!(coco["images"][2]["file_name"], "frame_000002.png");
        cvat(&folder);
    }
    assert_eq!((images.len(), annotations.len()), (12, 12));
    assert!(images.iter().all(|id| *id < 1 << 53));
}

/// Reads `cvat.xml` as CVAT does, and compares each mask with the PNG.
fn cvat(folder: &Path) {
    let text = std::fs::read_to_string(folder.join("cvat.xml")).unwrap();
    let size: u64 = between(&text, "<size>", "</size>").trim().parse().unwrap();
    assert_eq!(size, 4);
    let tracks: Vec<&str> = text.split("<track ").skip(1).collect();
    assert_eq!(tracks.len(), 4);
    for track in tracks {
        let number = |name: &str| -> usize { between(track, &format!(" {name}=\""), "\"").parse().unwrap() };
        let (left, top, width, height) = (number("left"), number("top"), number("width"), number("height"));
        let mask =
            image::open(folder.join(format!("masks/{:06}.png", number("frame")))).unwrap().into_luma8();
        let mut pixels = Vec::new();
        for (i, run) in between(track, "rle=\"", "\"").split(',').enumerate() {
            pixels.extend(std::iter::repeat_n(255 * (i % 2) as u8, run.trim().parse().unwrap()));
        }
        assert_eq!(pixels.len(), width * height);
        for (x, y, value) in mask.enumerate_pixels() {
            let (x, y) = ((x as usize).wrapping_sub(left), (y as usize).wrapping_sub(top));
            let inside = x < width && y < height;
            assert_eq!(value.0[0], if inside { pixels[y * width + x] } else { 0 });
        }
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let rest = &text[text.find(from).unwrap_or_else(|| panic!("no {from} in {text}")) + from.len()..];
    &rest[..rest.find(to).unwrap()]
}
