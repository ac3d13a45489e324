//! Frames of DICOM images with arbitrary headers and bytes.
#![no_main]

// Included by path, because the library contains the module only with GStreamer, which it does not need.
#[path = "../../src/video/dicom/images.rs"]
#[allow(dead_code)]
mod images;

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use images::{Coding, Pixels};

const COLOURS: [&str; 6] = ["MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&[coding, colour, width, height, allocated, stored, flags, window], frame)) = bytes.split_first_chunk()
    else {
        return;
    };
    let mut header = InMemDicomObject::new_empty();
    let samples = 1 + 2 * u16::from(colour % 6 > 2) + u16::from(flags & 8 > 0);
    for (tag, value) in [
        (tags::COLUMNS, width.into()),
        (tags::ROWS, height.into()),
        (tags::BITS_ALLOCATED, allocated.into()),
        (tags::BITS_STORED, stored.into()),
        (tags::SAMPLES_PER_PIXEL, samples),
        (tags::PIXEL_REPRESENTATION, u16::from(flags & 1)),
        (tags::PLANAR_CONFIGURATION, u16::from(flags >> 1 & 1)),
    ] {
        header.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }
    header.put(DataElement::new(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, COLOURS[usize::from(colour % 6)]));
    if flags & 4 > 0 {
        header.put(DataElement::new(tags::WINDOW_CENTER, VR::DS, window.to_string()));
        header.put(DataElement::new(tags::WINDOW_WIDTH, VR::DS, flags.to_string()));
    }
    for (descriptor, data) in [
        (tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA),
        (tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA),
        (tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA),
    ] {
        let described = [u16::from(window), u16::from(flags), 8 + 8 * u16::from(flags & 1)];
        header.put(DataElement::new(descriptor, VR::US, PrimitiveValue::U16(described[..].into())));
        header.put(DataElement::new(data, VR::OW, PrimitiveValue::U8(frame[..frame.len().min(600)].into())));
    }
    let coding = [Coding::Native, Coding::RunLengths, Coding::Jpeg][usize::from(coding % 3)];
    if let Ok(pixels) = Pixels::of(&header, coding) {
        let _ = pixels.image(coding, frame);
    }
});
