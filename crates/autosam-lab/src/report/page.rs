//! The report of an evaluation: `report.md` with separate images, and `report.html`, which embeds them.

use super::Sheet;
use super::plot::{Curve, plot};
use crate::eval::alarms::PolypFree;
use crate::eval::live::Live;
use crate::eval::measure::{Evaluation, Line};
use crate::{Error, Result};
use autosam_frame::write_atomically;
use base64::Engine as _;
use std::fmt::Write as _;
use std::path::Path;

/// The report of one or several data sets.
#[derive(Default)]
pub struct Report {
    pub title: String,
    /// How the report was produced: model, mode, command.
    pub about: Vec<String>,
    sections: Vec<Section>,
}

struct Section {
    name: String,
    evaluation: Evaluation,
    sheets: Vec<Sheet>,
}

impl Report {
    pub fn new(title: &str, about: Vec<String>) -> Self {
        Self { title: title.to_owned(), about, sections: Vec::new() }
    }

    /// Adds a data set, or a mode, with its contact sheets.
    pub fn add(&mut self, name: &str, evaluation: Evaluation, sheets: Vec<Sheet>) {
        self.sections.push(Section { name: name.to_owned(), evaluation, sheets });
    }

    /// Writes the pages and their images to `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let mut images: Vec<(String, Vec<u8>, &str)> = Vec::new();
        let curves: Vec<Curve> = self
            .sections
            .iter()
            .filter(|s| s.evaluation.dice_curve.len() > 1)
            .map(|s| {
                let last = (s.evaluation.dice_curve.len() - 1) as f64;
                let at = |(i, d): (usize, &f64)| (1.0 - i as f64 / last, *d);
                Curve {
                    label: s.name.clone(),
                    points: s.evaluation.dice_curve.iter().enumerate().map(at).collect(),
                }
            })
            .collect();
        let svg =
            plot("Dice by threshold", "threshold (of the map stretched to 0 to 1)", "mean Dice", &curves)?;
        images.push(("dice.svg".into(), svg.into_bytes(), "image/svg+xml"));
        let said =
            |s: &Section| s.evaluation.calibration.bins.iter().map(|[said, is, _]| (*said, *is)).collect();
        let mut curves = vec![Curve { label: "as said".into(), points: vec![(0.0, 0.0), (1.0, 1.0)] }];
        curves.extend(self.sections.iter().map(|s| Curve { label: s.name.clone(), points: said(s) }));
        let svg = plot("Calibration", "probability said", "fraction that is polyp", &curves)?;
        images.push(("calibration.svg".into(), svg.into_bytes(), "image/svg+xml"));
        for (i, section) in self.sections.iter().enumerate() {
            for sheet in &section.sheets {
                let name = format!("{}-{i}.png", sheet.file);
                let mut png = std::io::Cursor::new(Vec::new());
                sheet
                    .image
                    .write_to(&mut png, image::ImageFormat::Png)
                    .map_err(|e| Error::image(dir.join(&name), e))?;
                images.push((name, png.into_inner(), "image/png"));
            }
        }
        let markdown = self.markdown();
        let mut html = String::new();
        let options = pulldown_cmark::Options::ENABLE_TABLES;
        pulldown_cmark::html::push_html(&mut html, pulldown_cmark::Parser::new_ext(&markdown, options));
        for (name, bytes, kind) in &images {
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            html = html.replace(&format!("src=\"{name}\""), &format!("src=\"data:{kind};base64,{data}\""));
            write_atomically(&dir.join(name), bytes)?;
        }
        let title = self.title.replace('&', "&amp;").replace('<', "&lt;");
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>{STYLE}<body>{html}</body></html>\n"
        );
        write_atomically(&dir.join("report.md"), markdown.as_bytes())?;
        write_atomically(&dir.join("report.html"), page.as_bytes())
    }

    fn markdown(&self) -> String {
        let mut s = format!("# {}\n\n", self.title);
        for line in &self.about {
            let _ = writeln!(s, "- {line}");
        }
        s.push_str("\nResearch use only; not a medical device.\n\n");
        let rows: Vec<(String, &Evaluation)> =
            self.sections.iter().map(|s| (s.name.clone(), &s.evaluation)).collect();
        s.push_str("## Measured here\n\n");
        s.push_str(&table(&rows));
        s.push_str("\nIn brackets: 95 % bootstrap interval over cases (over images for stills).\n");
        s.push_str("\n![Dice by threshold](dice.svg)\n\n![Calibration](calibration.svg)\n");
        for (i, section) in self.sections.iter().enumerate() {
            let _ = write!(s, "\n## {}\n", section.name);
            for Sheet { file, caption, .. } in &section.sheets {
                let _ = write!(s, "\n{caption}\n\n![{file}]({file}-{i}.png)\n");
            }
            if let Some(error) = section.evaluation.calibration.error {
                let _ = writeln!(
                    s,
                    "\nCalibration error of pixels with a predicted probability above 1/16: {error:.3}."
                );
            }
            if let Some(live) = &section.evaluation.live {
                s.push_str(&live_table(live));
            }
            if let Some(polyp_free) = &section.evaluation.polyp_free_video {
                s.push_str(&polyp_free_table(polyp_free));
            }
            s.push_str(&lines("Cases", &section.evaluation.cases));
            s.push_str(&lines("Sequences", &section.evaluation.sequences));
        }
        s.push_str(PUBLISHED);
        s
    }
}

/// One line per data set (or mode), with metrics in columns.
pub fn table(rows: &[(String, &Evaluation)]) -> String {
    let mut s = String::from(
        "| data | frames | Dice at 0.5 | IoU at 0.5 | S | E mean | F weighted | F mean | Dice mean | Dice max | Sen mean | MAE | polyp-free frames with an overlay |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, e) in rows {
        let m = &e.summary.metrics;
        let interval = |key: &str| {
            e.intervals.get(key).map_or(String::new(), |i| format!(" [{:.3}, {:.3}]", i.low, i.high))
        };
        let _ = writeln!(
            s,
            "| {name} | {} | {}{} | {}{} | {} | {} | {} | {} | {} | {} | {} | {} | {} of {} |",
            e.summary.frames,
            figure(m.dice_at_half),
            interval("dice@0.5"),
            figure(m.iou_at_half),
            interval("iou@0.5"),
            figure(m.s_measure),
            figure(m.mean_e),
            figure(m.weighted_f),
            figure(m.mean_f),
            figure(m.mean_dice),
            figure(m.max_dice),
            figure(m.mean_sensitivity),
            figure(m.mae),
            e.summary.negatives.with_mask,
            e.summary.negatives.frames
        );
    }
    s
}

fn figure(v: Option<f64>) -> String {
    v.map_or("-".to_owned(), |v| format!("{v:.3}"))
}

fn live_table(live: &Live) -> String {
    let mut s = format!(
        "\n| on a monitor, at {} frames/s | |\n|---|---|\n| polyps found | {} of {} |\n| first detection after | median {} s, mean {} s |\n| overlap of neighbouring masks along the motion | {} |\n| overlay changes with a polyp in view, per second | {} |\n| distance of outlines, % of the diagonal | {} |\n| polyp-free video | {:.2} min |\n",
        live.frames_per_second,
        live.recall.map_or(0.0, |r| (r * live.appearances as f64).round()),
        live.appearances,
        figure(live.first_detection_median),
        figure(live.first_detection_mean),
        figure(live.consistency),
        figure(live.flicker),
        figure(live.boundary_error),
        live.polyp_free_minutes
    );
    for f in live.false_alarms.iter().filter(|_| live.polyp_free_minutes > 0.0) {
        let _ = writeln!(
            s,
            "| false alarms of {} frames or more, a minute | {} ({}) |",
            f.hold_off,
            f.per_minute.map_or("-".to_owned(), |v| format!("{v:.1}")),
            f.events
        );
    }
    s
}

fn polyp_free_table(p: &PolypFree) -> String {
    let mut s = format!(
        "\n{} polyp-free sequences, {} frames, {:.2} min at {} frames/s:\n\n| alarms a minute | frames with an overlay |",
        p.sequences, p.frames, p.minutes, p.frames_per_second
    );
    for lasting in &p.each_frame.by_duration {
        let _ = write!(s, " {:.2} s or more |", lasting.seconds);
    }
    let _ = writeln!(s, "\n|---|---|{}", "---|".repeat(p.each_frame.by_duration.len()));
    for (way, alarms) in p.ways() {
        let _ = write!(s, "| {way} | {:.1} % |", 100.0 * alarms.frames_with_overlay);
        for lasting in &alarms.by_duration {
            let _ = write!(s, " {:.1} ({}) |", lasting.per_minute, lasting.alarms);
        }
        s.push('\n');
    }
    s
}

fn lines(what: &str, lines: &[Line]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut s =
        format!("\n### {what}\n\n| | frames | Dice at 0.5 | IoU at 0.5 | S |\n|---|---|---|---|---|\n");
    for l in lines {
        let _ = writeln!(
            s,
            "| {} | {} | {} | {} | {} |",
            l.name,
            l.frames,
            figure(l.dice),
            figure(l.iou),
            figure(l.s_measure)
        );
    }
    s
}

/// The tables of arXiv 2306.06370 and its SUN-SEG metrics, for comparison.
const PUBLISHED: &str = "
## Published (not measured here)

AutoSAM with SAM's ViT weights, arXiv 2306.06370, in per cent (min-max masks, threshold 0.5):

| | Kvasir | ClinicDB | ColonDB | ETIS | MoNuSeg | GlaS |
|---|---|---|---|---|---|---|
| Dice | 91.0 | 92.8 | 83.0 | 79.7 | 82.43 | 92.82 |
| IoU | 87.0 | 89.3 | 76.7 | 74.0 | 70.17 | 87.08 |

| SUN-SEG (unseen) | S | E mean | F weighted | F mean | Dice | Sen |
|---|---|---|---|---|---|---|
| Easy | 0.815 | 0.855 | 0.716 | 0.774 | 0.753 | 0.672 |
| Hard | 0.822 | 0.866 | 0.714 | 0.764 | 0.759 | 0.726 |
";

const STYLE: &str = "<style>body{font:15px/1.5 sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}table{border-collapse:collapse;font-size:13px;margin:1rem 0}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}</style>";

/// Writes the curves of a run's `log.jsonl` to `out`: `loss.svg` and, if the run was validated, `dice.svg`.
///
/// # Errors
/// If the log is missing or not a run's, or the folder cannot be written.
pub fn training_plots(log: &Path, out: &Path) -> Result<()> {
    let text = std::fs::read_to_string(log).map_err(|e| Error::io(log, e))?;
    let (mut bce, mut dice) = (Vec::new(), Vec::new());
    let mut validation: std::collections::BTreeMap<String, Vec<(f64, f64)>> = Default::default();
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| Error::data(log, format!("not a run's log: {e}")))?;
        let train = &value["train"];
        if let (Some(step), Some(b), Some(d)) =
            (train["step"].as_f64(), train["bce"].as_f64(), train["dice_loss"].as_f64())
        {
            bce.push((step, b));
            dice.push((step, d));
        }
        let v = &value["validation"];
        if let (Some(step), Some(name), Some(d)) =
            (value["step"].as_f64(), v["name"].as_str(), v["dice"].as_f64())
        {
            validation.entry(name.to_owned()).or_default().push((step, d));
        }
    }
    let curves = [("BCE", bce), ("Dice loss", dice)]
        .map(|(label, points)| Curve { label: label.into(), points: averaged(points) });
    write_atomically(&out.join("loss.svg"), plot("Loss", "step", "loss", &curves)?.as_bytes())?;
    if !validation.is_empty() {
        let curves: Vec<Curve> =
            validation.into_iter().map(|(label, points)| Curve { label, points }).collect();
        write_atomically(
            &out.join("dice.svg"),
            plot("Validation", "step", "Dice at 0.5", &curves)?.as_bytes(),
        )?;
    }
    Ok(())
}

/// A running mean over a fiftieth of the points, because the noise of single batches hides the trend.
fn averaged(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let reach = points.len() / 100;
    (0..points.len())
        .map(|i| {
            let near = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
            (points[i].0, near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64)
        })
        .collect()
}
