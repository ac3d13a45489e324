//! Helpers of the element's tests.
#![allow(dead_code)] // each test binary uses its part

use autosam_engine::segmenter::Segmenter;
use autosam_frame::map::{ModelInput, ProbMap};
use autosam_frame::resize::InputSize;
use autosam_model::generator::GeneratorConfig;
use autosam_model::sam::{DecoderConfig, EncoderConfig, SamConfig, VitConfig};
use autosam_model::weights::init::initialise;
use autosam_model::weights::{Dtype, save_safetensors};
use autosam_model::{CONFIG_KEY, ModelConfig};
use gst::prelude::*;
use gst_check::Harness;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gstautosam::plugin_register_static().unwrap();
    });
}

/// A model with random weights. Its probabilities are about 0.5 everywhere, so with a threshold of 0.1 the mask covers the frame.
pub fn model(dir: &Path) -> PathBuf {
    let encoder = EncoderConfig::Vit(VitConfig {
        embed_dim: 32,
        depth: 1,
        heads: 2,
        global_blocks: vec![0],
        window: 2,
        mlp_ratio: 2,
    });
    let decoder = DecoderConfig { mlp_dim: 32, ..DecoderConfig::default() };
    let sam = SamConfig { image_size: 64, stretch: false, encoder, embed_channels: 32, decoder };
    let config = ModelConfig::new(sam, GeneratorConfig::tiny(64, 32));
    let tensors = initialise(&config.parameter_shapes().unwrap(), 1).unwrap();
    let metadata = HashMap::from([(CONFIG_KEY.to_owned(), serde_json::to_string(&config).unwrap())]);
    let path = dir.join("random.safetensors");
    save_safetensors(&path, &tensors, &metadata, Dtype::F32).unwrap();
    path
}

/// The element with a bus of its own, and a harness around it.
pub fn harness(properties: &[(&str, &str)]) -> (Harness, gst::Element, gst::Bus) {
    init();
    let element = gst::ElementFactory::make("autosam").build().unwrap();
    // The model with random weights is certain nowhere.
    element.set_property("hysteresis", 0f32);
    for (name, value) in properties {
        element.set_property_from_str(name, value);
    }
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let harness = Harness::with_element(&element, Some("sink"), Some("src"));
    (harness, element, bus)
}

pub fn caps(format: &str, width: i32, height: i32) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", width)
        .field("height", height)
        .field("framerate", gst::Fraction::new(25, 1))
        .build()
}

/// A frame of deterministic noise.
pub fn buffer(caps: &gst::Caps, index: u64) -> gst::Buffer {
    let info = gst_video::VideoInfo::from_caps(caps).unwrap();
    let bytes: Vec<u8> = (0..info.size()).map(|i| (i * 37 % 253) as u8).collect();
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    let b = buffer.get_mut().unwrap();
    b.set_pts(gst::ClockTime::from_mseconds(40 * index));
    b.set_duration(gst::ClockTime::from_mseconds(40));
    buffer
}

pub fn bytes(buffer: &gst::Buffer) -> Vec<u8> {
    buffer.map_readable().unwrap().to_vec()
}

pub fn stat(element: &gst::Element, name: &str) -> u64 {
    element.property::<gst::Structure>("stats").get(name).unwrap()
}

/// Waits until `condition` is met.
pub fn wait(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(30), "the condition is not met within 30 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Error and warning messages so far.
pub fn complaints(bus: &gst::Bus) -> Vec<String> {
    let kinds = [gst::MessageType::Error, gst::MessageType::Warning];
    std::iter::from_fn(|| bus.pop_filtered(&kinds))
        .map(|m| match m.view() {
            gst::MessageView::Error(e) => format!("error: {} {:?}", e.error(), e.debug()),
            gst::MessageView::Warning(w) => format!("warning: {} {:?}", w.error(), w.debug()),
            _ => unreachable!("filtered"),
        })
        .collect()
}

/// A model whose answer a test determines: the function gets the sample and returns the probability (0 to 255) of all pixels.
pub struct Scripted<F>(pub F);

impl<F: FnMut(&ModelInput) -> autosam_frame::Result<u8> + Send> Segmenter for Scripted<F> {
    fn input_size(&self) -> InputSize {
        32.into()
    }
    fn segment(&mut self, sample: &ModelInput, out: &mut ProbMap) -> autosam_frame::Result<()> {
        let value = (self.0)(sample)?;
        *out = ProbMap {
            width: sample.width,
            height: sample.height,
            data: vec![value; sample.width * sample.height],
        };
        Ok(())
    }
}

/// An element whose models come from `open`; masks are shown immediately.
pub fn scripted(
    properties: &[(&str, &str)],
    open: impl Fn(Option<&Path>) -> autosam_frame::Result<Box<dyn Segmenter>> + Send + Sync + 'static,
) -> (gst::Element, gst::Bus) {
    init();
    let element = gst::ElementFactory::make("autosam")
        .property("hold-off", 1u32)
        .property("smoothing", 0f32)
        .property("hysteresis", 0f32)
        .build()
        .unwrap();
    element.downcast_ref::<gstautosam::AutoSam>().unwrap().set_model_factory(open);
    for (name, value) in properties {
        element.set_property_from_str(name, value);
    }
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    (element, bus)
}

/// An element whose model waits for a token before each inference, until the sender is dropped. Its masks cover the whole frame.
pub fn gated(properties: &[(&str, &str)]) -> (gst::Element, gst::Bus, Sender<()>) {
    let (go, gate): (_, Receiver<()>) = channel();
    let gate = Arc::new(Mutex::new(gate));
    let (element, bus) = scripted(properties, move |_| {
        let gate = gate.clone();
        Ok(Box::new(Scripted(move |_: &ModelInput| {
            let _ = gate.lock().unwrap().recv();
            Ok(255)
        })))
    });
    (element, bus, go)
}

/// A harness around `element`.
pub fn around(element: &gst::Element) -> Harness {
    Harness::with_element(element, Some("sink"), Some("src"))
}

/// Number of this process's threads with this name.
pub fn threads(name: &str) -> usize {
    let comm =
        |e: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(e.ok()?.path().join("comm")).ok();
    std::fs::read_dir("/proc/self/task").unwrap().filter_map(comm).filter(|c| c.trim_end() == name).count()
}

/// Element messages of this name so far.
pub fn messages(bus: &gst::Bus, name: &str) -> Vec<gst::Structure> {
    std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Element]))
        .filter_map(|m| m.structure().map(|s| s.to_owned()))
        .filter(|s| s.name() == name)
        .collect()
}

/// The next element message of this name.
pub fn next_message(bus: &gst::Bus, name: &str) -> gst::Structure {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(30), "no {name}");
        let tenth = gst::ClockTime::from_mseconds(100);
        let message = bus.timed_pop_filtered(tenth, &[gst::MessageType::Element]);
        if let Some(s) =
            message.and_then(|m| m.structure().map(|s| s.to_owned())).filter(|s| s.name() == name)
        {
            return s;
        }
    }
}
