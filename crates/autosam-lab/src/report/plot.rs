//! Line plots as SVG.

use crate::{Error, Result};
use plotters::prelude::*;

/// One line of a plot.
#[derive(Debug, Clone)]
pub struct Curve {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

/// Plots `curves` with a legend as SVG. Axes span the points, and the y axis starts at 0.
pub fn plot(title: &str, x: &str, y: &str, curves: &[Curve]) -> Result<String> {
    let points = || curves.iter().flat_map(|c| &c.points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let right = points().map(|p| p.0).fold(f64::MIN_POSITIVE, f64::max);
    let left = points().map(|p| p.0).fold(right, f64::min);
    let top = points().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    // The legend is placed at the top of the side on which the curves are lower.
    let ends: f64 = curves.iter().filter_map(|c| Some(c.points.last()?.1 - c.points.first()?.1)).sum();
    let legend = if ends > 0.0 { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::UpperRight };
    let mut svg = String::new();
    let mut drawn = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(&mut svg, (720, 400)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(52)
            .build_cartesian_2d(left..right.max(left + 1e-9), 0.0..top)?;
        chart.configure_mesh().x_desc(x).y_desc(y).light_line_style(WHITE).draw()?;
        for (i, curve) in curves.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let finite = curve.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite());
            chart
                .draw_series(LineSeries::new(finite, color.stroke_width(2)))?
                .label(&curve.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(legend.clone())
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    };
    let result = drawn().map_err(|e| Error::invalid(format!("plot {title}: {e}")));
    result.map(|()| svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_in_the_plot() {
        let curves = ["loss", "Dice"].map(|label| Curve {
            label: label.into(),
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.5)],
        });
        let svg = plot("a run", "step", "loss", &curves).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("Dice") && svg.matches("<polyline").count() >= 2);
        assert!(plot("nothing", "x", "y", &[]).unwrap().contains("nothing"));
    }
}
