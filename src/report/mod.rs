//! Pages and pictures for people: plots (SVG), contact sheets (PNG), an evaluation's report (Markdown, HTML).

mod page;
mod plot;
mod sheet;

pub use page::{Report, table, training_plots};
pub use plot::{Curve, plot};
pub use sheet::{Case, contact_sheet};
