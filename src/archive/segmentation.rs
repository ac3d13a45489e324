//! DICOM Segmentation objects (PS3.3 A.51, binary): the frames of a video with a detection, one bit per pixel.
//!
//! The video itself is not a DICOM object, so the masks refer to its frames by number in a Video Endoscopic Image whose UID is
//! derived from the file's SHA-256. If the video is stored under that UID, the masks match it. Each frame also has its time in
//! seconds since the video's first frame. Endoscope images have no scale, so the objects
//! contain no position or spacing. No name, number or date of a patient is written.

use super::Summary;
use crate::{Error, Result};
use dicom_core::chrono::Utc;
use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Bytes of pixels after which another object is started, to limit memory and to stay below DICOM's 4 GB.
const LARGEST: usize = 128 << 20;

/// Writes the objects of one video one after another.
pub(super) struct Writer {
    dir: PathBuf,
    video: String,
    program: String,
    model: String,
    size: (u32, u32),
    /// Pixel aspect ratio, width to height.
    pixel_aspect: (u32, u32),
    /// Indices of the buffered frames, from 0, and their times in nanoseconds.
    frames: Vec<(u64, u64)>,
    /// The buffered frames' pixels, packed without gaps, lowest bit first.
    bits: Bits,
    parts: u32,
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.count.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.count % 8);
        }
        self.count += 1;
    }
}

type Object = InMemDicomObject;

fn put(object: &mut Object, tag: Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    object.put(DataElement::new(tag, vr, value.into()));
}

fn sequence(object: &mut Object, tag: Tag, items: Vec<Object>) {
    object.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items)));
}

/// A sequence item with these text elements.
fn item(elements: &[(Tag, VR, &str)]) -> Object {
    let mut object = Object::new_empty();
    for (tag, vr, value) in elements {
        put(&mut object, *tag, *vr, *value);
    }
    object
}

fn code(value: &str, scheme: &str, meaning: &str) -> Vec<Object> {
    vec![item(&[
        (tags::CODE_VALUE, VR::SH, value),
        (tags::CODING_SCHEME_DESIGNATOR, VR::SH, scheme),
        (tags::CODE_MEANING, VR::LO, meaning),
    ])]
}

/// A UID of the form 2.25 (PS3.5 B.2), derived from `words`.
fn uid(words: &[&str]) -> String {
    let hash = Sha256::digest(words.join("\n").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    // UUID version 8 (custom rule), variant 1.
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    format!("2.25.{}", u128::from_be_bytes(bytes))
}

impl Writer {
    pub fn new(dir: &Path, summary: &Summary) -> Self {
        Self {
            dir: dir.to_owned(),
            video: summary.sha256.clone(),
            program: summary.program.clone(),
            // UIDs are derived from this text, and earlier releases called the type so: the same masks must keep their UIDs.
            model: format!("{:?}", summary.provenance).replacen("Provenance", "Making", 1),
            size: (summary.width, summary.height),
            pixel_aspect: summary.pixel_aspect,
            frames: Vec::new(),
            bits: Bits::default(),
            parts: 0,
        }
    }

    /// `mask`: `width × height` bytes, above 0 polyp. Frames without a detection are omitted, as the standard allows.
    /// `time`: nanoseconds since the first frame.
    pub fn write(&mut self, frame: u64, time: u64, size: (u32, u32), mask: &[u8]) -> Result<()> {
        if mask.iter().all(|v| *v == 0) {
            return Ok(());
        }
        if self.size != size || self.bits.bytes.len() + mask.len() / 8 > LARGEST {
            self.flush()?;
        }
        self.size = size;
        self.frames.push((frame, time));
        mask.iter().for_each(|v| self.bits.push(*v > 0));
        Ok(())
    }

    /// Writes the buffered frames. For a video without a detection it writes one empty frame, because DICOM requires at least
    /// one, and returns a remark.
    pub fn finish(mut self) -> Result<Option<String>> {
        let none = self.parts == 0 && self.frames.is_empty();
        if none {
            self.frames.push((0, 0));
            (0..self.size.0 as usize * self.size.1 as usize).for_each(|_| self.bits.push(false));
        }
        self.flush()?;
        Ok(none.then(|| {
            "no frame has a detection: segmentation-0001.dcm contains frame 1, without a polyp".to_owned()
        }))
    }

    /// Writes the current object, if there is one.
    fn flush(&mut self) -> Result<()> {
        if self.frames.is_empty() {
            return Ok(());
        }
        self.parts += 1;
        let path = self.dir.join(format!("segmentation-{:04}.dcm", self.parts));
        let object = self.object()?;
        let failed = |e: &dyn std::fmt::Display| Error::data(&path, e.to_string());
        let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
        let file = object.with_meta(meta).map_err(|e| failed(&e))?;
        file.write_to_file(&path).map_err(|e| failed(&e))?;
        self.frames.clear();
        self.bits = Bits::default();
        Ok(())
    }

    /// The buffered frames as an object.
    fn object(&mut self) -> Result<Object> {
        let mut o = self.header();
        self.put_image(&mut o)?;
        sequence(&mut o, tags::SEGMENT_SEQUENCE, vec![segment()]);
        self.put_dimensions(&mut o);
        // One hash for all frames.
        let source = uid(&[&self.video, "video"]);
        self.put_references(&mut o, &source);

        let mut identification = Object::new_empty();
        put(&mut identification, tags::REFERENCED_SEGMENT_NUMBER, VR::US, 1u16);
        let mut shared = Object::new_empty();
        sequence(&mut shared, tags::SEGMENT_IDENTIFICATION_SEQUENCE, vec![identification]);
        sequence(&mut o, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
        let groups =
            (1u32..).zip(&self.frames).map(|(position, frame)| frame_group(position, *frame, &source));
        let per_frame = groups.collect();
        sequence(&mut o, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, per_frame);

        let mut pixels = std::mem::take(&mut self.bits.bytes);
        if !pixels.len().is_multiple_of(2) {
            pixels.push(0);
        }
        put(&mut o, tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(pixels.into()));
        Ok(o)
    }

    /// The object's text elements.
    fn header(&self) -> Object {
        let now = Utc::now();
        let (date, time) = (now.format("%Y%m%d").to_string(), now.format("%H%M%S").to_string());
        let part = self.parts.to_string();
        let study = uid(&[&self.video, "study"]);
        let series = uid(&[&self.video, &self.model, "series"]);
        let instance = uid(&[&self.video, &self.model, "instance", &part]);
        item(&[
            (tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192"),
            (tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY"),
            (tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE),
            (tags::SOP_INSTANCE_UID, VR::UI, &instance),
            (tags::STUDY_DATE, VR::DA, ""),
            (tags::CONTENT_DATE, VR::DA, &date),
            (tags::STUDY_TIME, VR::TM, ""),
            (tags::CONTENT_TIME, VR::TM, &time),
            (tags::ACCESSION_NUMBER, VR::SH, ""),
            (tags::MODALITY, VR::CS, "SEG"),
            (tags::MANUFACTURER, VR::LO, "autosam-video"),
            (tags::REFERRING_PHYSICIAN_NAME, VR::PN, ""),
            (tags::MANUFACTURER_MODEL_NAME, VR::LO, "autosam-video"),
            (tags::PATIENT_NAME, VR::PN, ""),
            (tags::PATIENT_ID, VR::LO, ""),
            (tags::PATIENT_BIRTH_DATE, VR::DA, ""),
            (tags::PATIENT_SEX, VR::CS, ""),
            (tags::DEVICE_SERIAL_NUMBER, VR::LO, "0"),
            (tags::SOFTWARE_VERSIONS, VR::LO, &self.program),
            (tags::STUDY_INSTANCE_UID, VR::UI, &study),
            (tags::SERIES_INSTANCE_UID, VR::UI, &series),
            (tags::STUDY_ID, VR::SH, ""),
            (tags::SERIES_NUMBER, VR::IS, "1"),
            (tags::INSTANCE_NUMBER, VR::IS, &part),
            (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
            (tags::NUMBER_OF_FRAMES, VR::IS, &self.frames.len().to_string()),
            (tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00"),
            (tags::SEGMENTATION_TYPE, VR::CS, "BINARY"),
            (tags::SEGMENTS_OVERLAP, VR::CS, "NO"),
            (tags::CONTENT_LABEL, VR::CS, "POLYP"),
            (tags::CONTENT_DESCRIPTION, VR::LO, "Polyps by AutoSAM; for research only"),
            (tags::CONTENT_CREATOR_NAME, VR::PN, ""),
        ])
    }

    /// Adds the size and format of the pixels.
    ///
    /// # Errors
    /// If the frames are larger than DICOM allows.
    fn put_image(&self, o: &mut Object) -> Result<()> {
        let number = |n: u32| {
            u16::try_from(n)
                .map_err(|_| Error::invalid(format!("DICOM does not support frames {n} pixels wide or high")))
        };
        for (tag, value) in [
            (tags::SAMPLES_PER_PIXEL, 1),
            (tags::ROWS, number(self.size.1)?),
            (tags::COLUMNS, number(self.size.0)?),
            (tags::BITS_ALLOCATED, 1),
            (tags::BITS_STORED, 1),
            (tags::HIGH_BIT, 0),
            (tags::PIXEL_REPRESENTATION, 0),
        ] {
            put(o, tag, VR::US, value);
        }
        if self.pixel_aspect.0 != self.pixel_aspect.1 {
            // Vertical first.
            let aspect = format!("{}\\{}", self.pixel_aspect.1, self.pixel_aspect.0);
            put(o, tags::PIXEL_ASPECT_RATIO, VR::IS, aspect);
        }
        Ok(())
    }

    /// Adds what distinguishes the object's frames: their segment and their number in the video.
    fn put_dimensions(&self, o: &mut Object) {
        let dimensions = uid(&[&self.video, &self.model, "dimensions", &self.parts.to_string()]);
        let organization = || item(&[(tags::DIMENSION_ORGANIZATION_UID, VR::UI, &dimensions)]);
        sequence(o, tags::DIMENSION_ORGANIZATION_SEQUENCE, vec![organization()]);
        let dimension = |pointer: Tag, group: Tag| {
            let mut d = organization();
            put(&mut d, tags::DIMENSION_INDEX_POINTER, VR::AT, pointer);
            put(&mut d, tags::FUNCTIONAL_GROUP_POINTER, VR::AT, group);
            d
        };
        sequence(
            o,
            tags::DIMENSION_INDEX_SEQUENCE,
            vec![
                dimension(tags::REFERENCED_SEGMENT_NUMBER, tags::SEGMENT_IDENTIFICATION_SEQUENCE),
                dimension(tags::TEMPORAL_POSITION_INDEX, tags::FRAME_CONTENT_SEQUENCE),
            ],
        );
    }

    /// Adds a reference to the video's series, in which `source` is the video.
    fn put_references(&self, o: &mut Object, source: &str) {
        let series = uid(&[&self.video, "video series"]);
        let mut referenced = item(&[(tags::SERIES_INSTANCE_UID, VR::UI, &series)]);
        sequence(&mut referenced, tags::REFERENCED_INSTANCE_SEQUENCE, vec![reference(source)]);
        sequence(o, tags::REFERENCED_SERIES_SEQUENCE, vec![referenced]);
    }
}

/// A reference to the video with the UID `source`.
fn reference(source: &str) -> Object {
    item(&[
        (tags::REFERENCED_SOP_CLASS_UID, VR::UI, uids::VIDEO_ENDOSCOPIC_IMAGE_STORAGE),
        (tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, source),
    ])
}

/// The functional groups of the object's frame at `position`, from 1: its frame in the video `source`, and its time.
fn frame_group(position: u32, (frame, time): (u64, u64), source: &str) -> Object {
    // DICOM counts a video's frames from 1.
    let nth = u32::try_from(frame + 1).unwrap_or(u32::MAX);
    let mut content = Object::new_empty();
    let indices = PrimitiveValue::U32(dicom_core::smallvec::smallvec![1, position]);
    put(&mut content, tags::DIMENSION_INDEX_VALUES, VR::UL, indices);
    put(&mut content, tags::TEMPORAL_POSITION_INDEX, VR::UL, nth);
    let mut of = reference(source);
    put(&mut of, tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "YES");
    put(&mut of, tags::REFERENCED_FRAME_NUMBER, VR::IS, nth.to_string());
    let purpose = code("121322", "DCM", "Source image for image processing operation");
    sequence(&mut of, tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, purpose);
    let mut derivation = Object::new_empty();
    sequence(&mut derivation, tags::SOURCE_IMAGE_SEQUENCE, vec![of]);
    sequence(&mut derivation, tags::DERIVATION_CODE_SEQUENCE, code("113076", "DCM", "Segmentation"));
    let mut group = Object::new_empty();
    sequence(&mut group, tags::FRAME_CONTENT_SEQUENCE, vec![content]);
    let mut offset = Object::new_empty();
    put(&mut offset, tags::TEMPORAL_POSITION_TIME_OFFSET, VR::FD, super::seconds(time));
    sequence(&mut group, tags::TEMPORAL_POSITION_SEQUENCE, vec![offset]);
    sequence(&mut group, tags::DERIVATION_IMAGE_SEQUENCE, vec![derivation]);
    group
}

/// The description of the only segment.
fn segment() -> Object {
    let mut segment = item(&[
        (tags::SEGMENT_LABEL, VR::LO, "Polyp"),
        (tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC"),
        (tags::SEGMENT_ALGORITHM_NAME, VR::LO, "AutoSAM"),
    ]);
    put(&mut segment, tags::SEGMENT_NUMBER, VR::US, 1u16);
    let category = code("49755003", "SCT", "Morphologically Abnormal Structure");
    sequence(&mut segment, tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, category);
    sequence(&mut segment, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, code("41329004", "SCT", "Polyp"));
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_packed_across_frames() {
        let mut bits = Bits::default();
        for v in [1, 0, 0, 1, 1, 0, 0, 0, 1] {
            bits.push(v == 1);
        }
        assert_eq!((bits.bytes.as_slice(), bits.count), ([0b0001_1001, 1].as_slice(), 9));
    }

    #[test]
    fn uids_depend_on_their_words_and_fit_dicoms_length() {
        let one = uid(&["a", "b"]);
        assert_eq!(one, uid(&["a", "b"]));
        assert_ne!(one, uid(&["a", "c"]));
        assert!(one.len() <= 64 && one.starts_with("2.25."));
    }
}
