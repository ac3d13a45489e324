//! Tests of prompts with a model that finds the same object everywhere.

use super::segmenter::ObjectPrompt;
use super::*;
use autosam_frame::map::ProbMap;
use autosam_frame::resize::InputSize;
use image::RgbImage;

/// A model to which every object is the left half of the frame.
struct LeftHalf;

impl Segmenter for LeftHalf {
    fn input_size(&self) -> InputSize {
        16.into()
    }
    fn segment(&mut self, input: &ModelInput, out: &mut ProbMap) -> Result<()> {
        let ModelInput { width, height, .. } = *input;
        *out = ProbMap { width, height, data: vec![0; width * height] };
        Ok(())
    }
    fn takes_prompts(&self) -> bool {
        true
    }
    fn segment_object(
        &mut self,
        input: &ModelInput,
        _: &ObjectPrompt,
        out: &mut ProbMap,
        object: &mut ProbMap,
    ) -> Result<()> {
        self.segment(input, out)?;
        let data = (0..out.data.len()).map(|i| if i % out.width < 8 { 200 } else { 0 }).collect();
        *object = ProbMap { data, ..out.clone() };
        Ok(())
    }
}

#[test]
fn a_known_mask_is_taken_as_it_is_unless_a_prompt_corrects_it() {
    let open: ModelFactory = Box::new(|| Ok(Box::new(LeftHalf)));
    let mut engine = Engine::start(open, Settings::default(), Box::new(|_| ())).unwrap();
    let image = RgbImage::from_pixel(32, 20, image::Rgb([90; 3]));
    // The left quarter of the frame, at the frame's size.
    let data = (0..32 * 20).map(|i| if i % 32 < 8 { 255 } else { 0 }).collect();
    let known = KnownObject { mask: ProbMap { width: 32, height: 20, data }, background: Vec::new() };
    let area = |engine: &mut Engine| {
        engine.segment(&Frame::rgb_image(&image), None).unwrap();
        engine.current_object(&Frame::rgb_image(&image)).unwrap().detection.mask.regions[0].area
    };
    engine.control().follow_object(known.clone()).unwrap();
    assert_eq!(area(&mut engine), 0.25);
    assert_eq!(area(&mut engine), 0.5, "from the next frame on the model is asked");
    engine.control().flush();
    engine.control().follow_object(known.clone()).unwrap();
    engine.control().prompt(Prompt::Point { x: 0.3, y: 0.5, foreground: true }).unwrap();
    assert_eq!(area(&mut engine), 0.5);
    let wrong = KnownObject { mask: ProbMap { width: 3, ..known.mask }, ..known };
    assert!(engine.control().follow_object(wrong).is_err());
}
