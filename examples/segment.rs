//! The library in a few lines: writes the mask of one image.
//!
//!     cargo run --release --example segment -- frame.png mask.png

use autosam::engine::mask::{Mask, MaskSettings};
use autosam::engine::segmenter::{ModelInput, ProbMap};
use autosam::frame::{Frame, region::CropMode, resize::Resizer};
use autosam::model::{self, ModelOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = args.as_slice() else { return Err("usage: segment IMAGE MASK.png".into()) };
    let image = autosam::data::open(input.as_ref())?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);

    // The shipped model; pass a path for another one.
    let mut model = model::open(None, &ModelOptions::default())?;
    let (mut sample, mut map) = (ModelInput::default(), ProbMap::default());
    // The network sees the endoscope's image without black borders and text.
    let frame = Frame::rgb_image(&image);
    let area = CropMode::Auto.of(&frame)?;
    Resizer::new(model.input_size()).resize(&frame.crop(area), &mut sample)?;
    model.segment(&sample, &mut map)?;

    let mask = Mask::new(map.embedded(area, width, height), &MaskSettings::default());
    for region in &mask.regions {
        println!("{:.1} % of the image, confidence {:.2}", 100.0 * region.area, region.confidence);
    }
    let pixels = mask.enlarge(width, height);
    image::save_buffer(output, &pixels, width as u32, height as u32, image::ColorType::L8)?;
    Ok(())
}
