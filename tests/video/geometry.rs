//! Rows 9, 10, 11 and 31: the network sees frames as a monitor shows them, and outputs look like their input.

use super::support::*;
use autosam::engine::segmenter::{ModelInput, ProbMap, Segmenter};
use autosam::engine::{Engine, Settings};
use autosam::frame::Frame;
use autosam::frame::region::CropMode;
use autosam::frame::resize::InputSize;
use autosam::video::{Reader, UPRIGHT, VideoFrame};
use gst::prelude::*;
use gst_video::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A model that records the size of its input.
struct Seen(Arc<Mutex<(usize, usize)>>);

impl Segmenter for Seen {
    fn input_size(&self) -> InputSize {
        256.into()
    }

    fn segment(&mut self, sample: &ModelInput, map: &mut ProbMap) -> autosam::Result<()> {
        *self.0.lock().unwrap() = (sample.width, sample.height);
        *map = ProbMap {
            width: sample.width,
            height: sample.height,
            data: vec![0; sample.width * sample.height],
        };
        Ok(())
    }
}

/// Width and height of the network's input for a frame.
fn seen(frame: &VideoFrame) -> (usize, usize) {
    let size = Arc::new(Mutex::new((0, 0)));
    let inside = size.clone();
    let settings = Settings { roi: CropMode::Full, ..Settings::default() };
    let mut engine = Engine::start(
        Box::new(move || Ok(Box::new(Seen(inside.clone())) as Box<dyn Segmenter>)),
        settings,
        Box::new(|_| ()),
    )
    .unwrap();
    let seen = Frame::rgb_image(&frame.rgb).with_pixel_aspect(frame.pixel_aspect);
    engine.segment(&seen, None).unwrap();
    *size.lock().unwrap()
}

fn frames(path: &Path) -> Vec<VideoFrame> {
    let mut reader = Reader::open(path.to_str().unwrap()).unwrap();
    let frames = std::iter::from_fn(|| reader.next_frame().unwrap()).collect();
    assert_eq!(reader.problems(), Vec::<String>::new());
    frames
}

/// Checks a format of endoscopy towers: stored size, pixel aspect ratio, aspect ratio on the monitor.
fn format(size: (u32, u32), aspect: (i32, i32), monitor: f64) {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.mp4");
    let caps = format!(
        "width={},height={},pixel-aspect-ratio={}/{},framerate=25/1",
        size.0, size.1, aspect.0, aspect.1
    );
    make(&format!("{} ! {H264} ! mp4mux ! filesink location={}", moving(3, &caps), input.display()));
    let read = frames(&input);
    assert_eq!((read.len(), read[0].rgb.dimensions()), (3, size));
    let (width, height) = seen(&read[0]);
    assert!((width as f64 / height as f64 / monitor - 1.0).abs() < 0.01, "the network sees {width}x{height}");
    for ending in ["mp4", "mkv", "webm"] {
        let output = dir.path().join(format!("o.{ending}"));
        good(&input, &output, &[]);
        let written = decoded(&output);
        let (w, h) = written[0].size;
        let shown = f64::from(w) * f64::from(written[0].pixel_aspect.0)
            / (f64::from(h) * f64::from(written[0].pixel_aspect.1));
        assert_eq!(written[0].size, size, "{ending}");
        assert!((shown / monitor - 1.0).abs() < 0.01, "{ending}: {:?}", written[0].pixel_aspect);
    }
    // An archive's summary states the pixel aspect ratio.
    let (folder, output) = (dir.path().join("archive"), dir.path().join("out"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::rename(&input, folder.join("in.mp4")).unwrap();
    good(&folder, &output, &["--write", "dicom-seg"]);
    let summary = json(&output.join("in.mp4/summary.json"));
    assert_eq!(summary["pixel_aspect"], serde_json::json!([aspect.0, aspect.1]));
    let seg = dicom_object::open_file(output.join("in.mp4/segmentation-0001.dcm")).unwrap();
    let ratio = seg.element_by_name("PixelAspectRatio").unwrap().to_multi_int::<i32>().unwrap();
    assert_eq!(ratio, [aspect.1, aspect.0], "vertical first");
}

#[test]
fn pal_720x576_in_4_3_keeps_its_shape() {
    format((720, 576), (16, 15), 4.0 / 3.0);
}

#[test]
fn pal_720x576_in_16_9_keeps_its_shape() {
    format((720, 576), (64, 45), 16.0 / 9.0);
}

#[test]
fn ntsc_720x480_in_4_3_keeps_its_shape() {
    format((720, 480), (8, 9), 4.0 / 3.0);
}

#[test]
fn ntsc_720x480_in_16_9_keeps_its_shape() {
    format((720, 480), (32, 27), 16.0 / 9.0);
}

#[test]
fn hdv_1440x1080_keeps_its_shape() {
    format((1440, 1080), (4, 3), 16.0 / 9.0);
}

/// Mean difference of each line to the next, divided by that to the line after it; well above 1 if two fields are combed.
fn combing(frame: &image::RgbImage) -> f64 {
    let (rgb, w) = (frame.as_raw(), 3 * frame.width() as usize);
    let lines: Vec<&[u8]> = rgb.chunks_exact(w).collect();
    let apart = |by: usize| -> f64 {
        lines
            .windows(by + 1)
            .flat_map(|l| l[0].iter().zip(l[by]))
            .map(|(a, b)| f64::from(a.abs_diff(*b)))
            .sum()
    };
    apart(1) / apart(2).max(1.0)
}

/// Checks that interlaced video of a horizontally moving edge is read without combing, with the same number of frames as the
/// file.
fn interlaced(size: (u32, u32), fields: &str, chain: &str, ending: &str) -> PathBuf {
    let dir = tempfile::tempdir().unwrap().keep();
    let input = dir.join(format!("in.{ending}"));
    let source = format!(
        "videotestsrc num-buffers=16 pattern=smpte100 horizontal-speed=40 ! \
         video/x-raw,format=I420,width={},height={},framerate={fields}",
        size.0, size.1
    );
    make(&format!("{source} ! {chain} ! filesink location={}", input.display()));
    let stored = decoded(&input);
    assert!(!stored[0].progressive, "the input is not interlaced");
    let output = dir.join("o.mp4");
    good(&input, &output, &[]);
    for path in [&input, &output] {
        let read = frames(path);
        assert_eq!((read.len(), read[0].rgb.dimensions()), (8, size));
        for frame in &read[2..7] {
            assert!(combing(&frame.rgb) < 2.0, "{}: combed: {}", path.display(), combing(&frame.rgb));
        }
    }
    let written = decoded(&output);
    assert!(written.iter().all(|f| f.progressive) && written.len() == 8);
    assert!(same_times(&times(&input), &times(&output)));
    dir
}

const TOP: &str = "interlace field-pattern=1:1 top-field-first=true";
const BOTTOM: &str = "interlace field-pattern=1:1 top-field-first=false";

#[test]
fn interlaced_frames_are_deinterlaced_top_field_first() {
    let chain = format!("{TOP} ! x264enc interlaced=true speed-preset=ultrafast ! h264parse ! mp4mux");
    std::fs::remove_dir_all(interlaced((720, 576), "50/1", &chain, "mp4")).unwrap();
}

#[test]
fn interlaced_frames_are_deinterlaced_bottom_field_first() {
    let chain = format!("{BOTTOM} ! x264enc interlaced=true speed-preset=ultrafast ! h264parse ! mpegtsmux");
    std::fs::remove_dir_all(interlaced((720, 576), "50/1", &chain, "ts")).unwrap();
}

/// The first frame of the pipeline `line`. Frames that leave an element named `interlaced` are flagged as interlaced.
fn first_of(line: &str) -> image::RgbImage {
    gst::init().unwrap();
    let line = format!("{line} ! videoconvert ! video/x-raw,format=RGB ! appsink name=sink sync=false");
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
    if let Some(element) = pipeline.by_name("interlaced") {
        element.static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, |_, probe| {
            if let Some(gst::PadProbeData::Buffer(buffer)) = &mut probe.data {
                let flags = gst_video::VideoBufferFlags::INTERLACED | gst_video::VideoBufferFlags::TFF;
                buffer.make_mut().set_video_flags(flags);
            }
            gst::PadProbeReturn::Ok
        });
    }
    pipeline.set_state(gst::State::Playing).unwrap();
    let sample = sink.try_pull_sample(gst::ClockTime::from_seconds(20)).unwrap();
    pipeline.set_state(gst::State::Null).unwrap();
    let info = gst_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
    let map = sample.buffer().unwrap().map_readable().unwrap();
    image::RgbImage::from_raw(info.width(), info.height(), map.to_vec()).unwrap()
}

/// MPEG-2's and other decoders label a stream as mixed and flag each frame that is interlaced.
#[test]
fn interlaced_frames_of_mixed_streams_are_deinterlaced() {
    let source = "videotestsrc num-buffers=16 pattern=smpte100 horizontal-speed=40 ! \
                  video/x-raw,format=I420,width=320,height=240,framerate=50/1";
    let mixed = "capssetter caps=video/x-raw,interlace-mode=mixed";
    let interlaced = format!("{source} ! {TOP} ! {mixed} name=interlaced");
    assert!(combing(&first_of(&interlaced)) > 2.0, "the input is not combed");
    assert!(combing(&first_of(&format!("{interlaced} ! {UPRIGHT}"))) < 2.0);
    // Progressive frames are not changed and keep all their lines.
    let lines = "videotestsrc num-buffers=2 pattern=pinwheel ! video/x-raw,format=I420,width=320,height=240";
    assert_eq!(first_of(lines), first_of(&format!("{lines} ! {mixed} ! {UPRIGHT}")));
}

#[test]
fn full_hd_1080i50_is_deinterlaced() {
    let chain = format!("{TOP} ! x264enc interlaced=true speed-preset=ultrafast ! h264parse ! mpegtsmux");
    std::fs::remove_dir_all(interlaced((1920, 1080), "50/1", &chain, "ts")).unwrap();
}

#[test]
fn full_hd_1080i59_94_is_deinterlaced() {
    let chain = format!("{TOP} ! x264enc interlaced=true speed-preset=ultrafast ! h264parse ! mp4mux");
    std::fs::remove_dir_all(interlaced((1920, 1080), "60000/1001", &chain, "mp4")).unwrap();
}

#[test]
fn ten_bit_interlaced_frames_are_deinterlaced() {
    let chain = format!("{TOP} ! videoconvert ! video/x-raw,format=I422_10LE ! avenc_ffv1 ! matroskamux");
    std::fs::remove_dir_all(interlaced((320, 240), "50/1", &chain, "mkv")).unwrap();
}

/// Overwrites the first two rows of the matrix in the track's header.
fn turn(path: &Path, [a, b, c, d]: [i32; 4]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(4).position(|w| w == b"tkhd").unwrap() + 44;
    let row = |x: i32, y: i32, z: i32| [x << 16, y << 16, z].map(i32::to_be_bytes).concat();
    let matrix = [row(a, b, 0), row(c, d, 0), row(0, 0, 1 << 30)].concat();
    bytes[at..at + 36].copy_from_slice(&matrix);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn rotated_frames_are_turned_upright() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rot.mp4");
    // The video is white above and black below.
    let white = "videotestsrc num-buffers=3 pattern=white ! video/x-raw,width=160,height=60,framerate=25/1 ! videobox bottom=-60";
    for (matrix, size, bright) in [
        ([0, 1, -1, 0], (120, 160), (100, 80)),
        ([-1, 0, 0, -1], (160, 120), (80, 100)),
        ([0, -1, 1, 0], (120, 160), (20, 80)),
    ] {
        make(&format!("{white} ! {H264} ! mp4mux ! filesink location={}", path.display()));
        turn(&path, matrix);
        let read = frames(&path);
        assert_eq!(read[0].rgb.dimensions(), size, "{matrix:?}");
        let (x, y) = bright;
        assert!(read[0].rgb.get_pixel(x, y).0[0] > 200, "{matrix:?}");
        assert!(read[0].rgb.get_pixel(size.0 - x, size.1 - y).0[0] < 50, "{matrix:?}");
        let output = dir.path().join("o.webm");
        good(&path, &output, &[]);
        assert_eq!(decoded(&output)[0].size, size, "{matrix:?}");
    }
}

#[test]
fn flips_are_applied() {
    let source =
        "videotestsrc num-buffers=1 pattern=white ! video/x-raw,width=60,height=40 ! videobox right=-60";
    for (tag, bright) in [("flip-rotate-0", 90u32), ("rotate-180", 90), ("flip-rotate-180", 30)] {
        let frame = first_of(&format!("{source} ! taginject tags=image-orientation={tag} ! {UPRIGHT}"));
        let at = |x: u32| frame.get_pixel(x, 20).0[0];
        assert!(at(bright) > 200 && at(119 - bright) < 50, "{tag}");
    }
}

mod hardware {
    //! A VP8 decoder that claims to run on a GPU. It is preferred to all others, and its output cannot be read here.

    use gst::glib;
    use gst::prelude::*;
    use gst::subclass::prelude::*;
    use std::sync::LazyLock;

    #[derive(Default)]
    pub struct Decoder;

    #[glib::object_subclass]
    impl ObjectSubclass for Decoder {
        const NAME: &'static str = "FakeHardwareDecoder";
        type Type = Element;
        type ParentType = gst::Element;
    }

    glib::wrapper! {
        pub struct Element(ObjectSubclass<Decoder>) @extends gst::Element, gst::Object;
    }

    impl ObjectImpl for Decoder {
        fn constructed(&self) {
            self.parent_constructed();
            let template = |name| self.obj().pad_template(name).unwrap();
            let sink = gst::Pad::builder_from_template(&template("sink"))
                .chain_function(|pad, parent, buffer| {
                    let Some(source) =
                        parent.and_then(|p| p.downcast_ref::<gst::Element>()?.static_pad("src"))
                    else {
                        return Err(gst::FlowError::Error);
                    };
                    if source.current_caps().is_none() {
                        source.push_event(gst::event::StreamStart::new("hardware"));
                        source.push_event(gst::event::Caps::new(&source.pad_template_caps().copy()));
                        if let Some(segment) = pad.sticky_event::<gst::event::Segment>(0) {
                            source.push_event(segment);
                        }
                    }
                    source.push(buffer)
                })
                .build();
            let source = gst::Pad::from_template(&template("src"));
            self.obj().add_pad(&sink).unwrap();
            self.obj().add_pad(&source).unwrap();
        }
    }

    impl GstObjectImpl for Decoder {}

    impl ElementImpl for Decoder {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new(
                    "Fake",
                    "Codec/Decoder/Video/Hardware",
                    "For a test",
                    "the test",
                )
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let memory = gst::Caps::builder("video/x-raw")
                    .features(["memory:CUDAMemory"])
                    .field("format", "NV12")
                    .field("width", 160)
                    .field("height", 120)
                    .build();
                let (always, vp8) = (gst::PadPresence::Always, gst::Caps::builder("video/x-vp8").build());
                vec![
                    gst::PadTemplate::new("sink", gst::PadDirection::Sink, always, &vp8).unwrap(),
                    gst::PadTemplate::new("src", gst::PadDirection::Src, always, &memory).unwrap(),
                ]
            });
            &TEMPLATES
        }
    }

    pub fn register() {
        gst::init().unwrap();
        let rank = gst::Rank::from(2000);
        gst::Element::register(None, "fakehardwaredecoder", rank, Element::static_type()).unwrap();
    }
}

#[test]
fn gpu_decoders_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.webm");
    let source = moving(5, "width=160,height=120,framerate=25/1");
    make(&format!(
        "{source} ! videoconvert ! vp8enc deadline=1 ! webmmux ! filesink location={}",
        path.display()
    ));
    hardware::register();
    assert_eq!(frames(&path).len(), 5);
}
