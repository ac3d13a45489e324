//! Pages that are linked to exist; figures that are asked for are counted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files below `dir` whose names end so.
fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

#[test]
fn links_within_the_repository_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md"].iter().map(|n| root.join(n)).collect();
    files(&root.join("docs"), "md", &mut all);
    let mut checked = 0;
    for page in all {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            checked += 1;
            let there = page.parent().unwrap().join(file);
            assert!(there.exists(), "{}: {target} leads nowhere", page.display());
        }
    }
    assert!(checked > 10);
}

/// Names of figures (`autosam_…`) in a text.
fn figures(text: &str) -> BTreeSet<String> {
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    text.match_indices("autosam_")
        .filter(|(at, _)| !text[..*at].ends_with(name))
        .map(|(at, _)| text[at..].chars().take_while(|c| name(*c)).collect())
        .collect()
}

/// What the program counts is on the page, and the page and the dashboard ask for nothing else.
#[test]
fn the_figures_of_page_dashboard_and_program_are_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for dir in ["src", "plugins"] {
        files(&root.join(dir), "rs", &mut sources);
    }
    let mut counted = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).unwrap();
        for macro_name in ["metrics::counter!(\"", "metrics::gauge!(\"", "metrics::histogram!(\""] {
            counted.extend(
                text.split(macro_name).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned),
            );
        }
    }
    let page = std::fs::read_to_string(root.join("docs/metrics-export.md")).unwrap();
    let dashboard = std::fs::read_to_string(root.join("docs/grafana-dashboard.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let base = |name: String| name.trim_end_matches("_bucket").to_owned();
    let asked = |text: &str| figures(text).into_iter().map(base).collect::<BTreeSet<_>>();
    assert_eq!(asked(&page), counted);
    let unknown: Vec<String> = asked(&dashboard).difference(&counted).cloned().collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}");
}
