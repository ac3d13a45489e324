//! Checks that docs/elements/autosam.md agrees with gst-inspect-1.0.

mod common;

use gst::glib;
use gst::prelude::*;

/// A property's row in the document's table: its values with the default in brackets, and when it may change.
fn row(p: &glib::ParamSpec) -> String {
    let range = |min: String, max: String, default: String| format!("{min} to {max} ({default})");
    let values = if let Some(e) = p.downcast_ref::<glib::ParamSpecEnum>() {
        let nicks: Vec<&str> = e.enum_class().values().iter().map(|v| v.nick()).collect();
        let default = e.enum_class().value(e.default_value_as_i32()).unwrap().nick().to_owned();
        format!("{} ({default})", nicks.join(", "))
    } else if let Some(f) = p.downcast_ref::<glib::ParamSpecFloat>() {
        range(f.minimum().to_string(), f.maximum().to_string(), f.default_value().to_string())
    } else if let Some(f) = p.downcast_ref::<glib::ParamSpecDouble>() {
        range(f.minimum().to_string(), f.maximum().to_string(), f.default_value().to_string())
    } else if let Some(u) = p.downcast_ref::<glib::ParamSpecUInt>() {
        match (p.name(), u.minimum(), u.maximum()) {
            ("color" | "prompt-color", ..) => format!("0xAARRGGBB ({:#010x})", u.default_value()),
            (_, min, u32::MAX) => format!("{min} and more ({})", u.default_value()),
            (_, min, max) => range(min.to_string(), max.to_string(), u.default_value().to_string()),
        }
    } else if let Some(u) = p.downcast_ref::<glib::ParamSpecUInt64>() {
        format!("ns ({})", u.default_value())
    } else if let Some(b) = p.downcast_ref::<glib::ParamSpecBoolean>() {
        format!("true, false ({})", b.default_value())
    } else if let Some(s) = p.downcast_ref::<glib::ParamSpecString>() {
        format!("text ({})", s.default_value().map_or("none".to_owned(), ToString::to_string))
    } else {
        "structure".to_owned()
    };
    let flags = p.flags();
    let mut when = if !flags.contains(glib::ParamFlags::WRITABLE) {
        "read only"
    } else if flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
        "PLAYING"
    } else {
        "READY"
    }
    .to_owned();
    if flags.contains(gst::PARAM_FLAG_CONTROLLABLE) {
        when += ", controller";
    }
    format!("| {} | {values} | {when} | {} |", p.name(), p.blurb().unwrap_or_default())
}

#[test]
fn the_property_table_matches_the_element() {
    common::init();
    let element = gst::ElementFactory::make("autosam").build().unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/elements/autosam.md");
    let text = std::fs::read_to_string(path).unwrap();
    let own: Vec<glib::ParamSpec> =
        element.list_properties().iter().filter(|p| p.owner_type() == element.type_()).cloned().collect();
    let want: Vec<String> = own.iter().map(row).collect();
    let table = |lines: &[String]| lines.join("\n");
    let have: Vec<String> = text
        .lines()
        .skip_while(|l| !l.starts_with("| name | values (default)"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(str::to_owned)
        .collect();
    assert_eq!(table(&have), table(&want), "the table should be:\n{}\n", table(&want));
    for p in &own {
        assert!(text.contains(&format!("**{}**", p.name())), "{} is not explained", p.name());
    }
}

#[test]
fn the_document_names_all_pads_formats_and_signals() {
    common::init();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/elements/autosam.md");
    let text = std::fs::read_to_string(path).unwrap();
    let factory = gst::ElementFactory::find("autosam").unwrap();
    for template in factory.static_pad_templates() {
        assert!(
            text.contains(&format!("`{}`", template.name_template())),
            "pad {}",
            template.name_template()
        );
    }
    for format in autosam_frame::PixelFormat::ALL {
        assert!(text.contains(format.name()), "{}", format.name());
    }
    let prompts =
        ["prompt-started", "prompt-ended", "prompt-refused", "prompt-point", "prompt-box", "clear-prompts"];
    for signal in ["detection-started", "detection-ended", "model-updated"].into_iter().chain(prompts) {
        assert!(glib::subclass::SignalId::lookup(signal, gstautosam::AutoSam::static_type()).is_some());
        assert!(text.contains(&format!("`{signal}`")), "signal {signal}");
    }
}
