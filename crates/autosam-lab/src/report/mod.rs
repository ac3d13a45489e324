//! Plots (SVG), contact sheets (PNG) and evaluation reports (Markdown, HTML).

mod letters;
mod page;
mod plot;
mod sheet;

pub use page::{Report, table, training_plots};
pub use plot::{Curve, plot};
pub use sheet::{Case, Sheet, contact_sheet};
