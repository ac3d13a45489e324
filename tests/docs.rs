//! Checks the documentation: links, exported metrics, the table of layouts, and the words of the project's glossary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Collects the files below `dir` with this extension.
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
fn links_within_the_repository_exist() {
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
            assert!(there.exists(), "{}: broken link {target}", page.display());
        }
    }
    assert!(checked > 10);
}

/// Names of metrics (`autosam_…`) in a text.
fn metric_names(text: &str) -> BTreeSet<String> {
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    text.match_indices("autosam_")
        .filter(|(at, _)| !text[..*at].ends_with(name))
        .map(|(at, _)| text[at..].chars().take_while(|c| name(*c)).collect())
        .collect()
}

/// The page lists exactly the metrics that the program exports, and the dashboard queries no others.
#[test]
fn metrics_page_and_dashboard_match_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for dir in ["src", "crates", "plugins"] {
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
    let asked = |text: &str| metric_names(text).into_iter().map(base).collect::<BTreeSet<_>>();
    assert_eq!(asked(&page), counted);
    let unknown: Vec<String> = asked(&dashboard).difference(&counted).cloned().collect();
    assert!(unknown.is_empty(), "the dashboard queries unknown metrics {unknown:?}");
}

#[test]
fn the_layouts_page_contains_the_program_s_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/layouts.md");
    let text = std::fs::read_to_string(page).unwrap();
    let table = autosam::data::layout::table();
    assert!(text.contains(&table), "`autosam-video data layouts` prints\n{table}");
}

/// Words to avoid, and the field's terms to write instead.
const FORBIDDEN: [(&str, &str); 22] = [
    ("picture", "frame (video) or image (still)"),
    ("pictures", "frames (video) or images (stills)"),
    ("figures", "metrics or statistics"),
    ("mark", "overlay or detection"),
    ("marks", "overlays or detections"),
    ("marked", "with an overlay"),
    ("alone", "only"),
    ("told", "reported or printed"),
    ("tells", "reports, prints or returns"),
    ("anew", "again"),
    ("meanwhile", "at the same time"),
    ("by turns", "alternating"),
    ("taken up", "unpacked"),
    ("laid out", "packed"),
    ("lays out", "packs"),
    ("of ours", "this project's"),
    ("where there is", "if there is"),
    ("where there are", "if there are"),
    ("where nothing is given", "[default: ...]"),
    ("where it is", "if it is"),
    ("as many as there are", "without a limit"),
    ("mirror images", "flipped copies"),
];

/// Places where a forbidden word is right: file or command, word, reason.
const ALLOWED: [(&str, &str, &str); 1] =
    [("docs/elements/autosam.md", "pictures", "the name of a message's field")];

/// The words that people read in a Markdown page: without code spans and link targets, and of code blocks only the
/// comments. Lower case, separated by single blanks.
fn prose(markdown: &str) -> String {
    let mut words = String::from(" ");
    for line in markdown.lines() {
        let line = match line.strip_prefix("    ") {
            Some(code) => code.split_once("# ").map_or("", |(_, comment)| comment),
            None => line,
        };
        let spoken: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
        let spoken = spoken.split("](").enumerate().map(|(i, part)| match part.split_once(')') {
            Some((_, after)) if i > 0 => after,
            _ => part,
        });
        for word in spoken.collect::<Vec<_>>().join(" ").split(|c: char| !c.is_alphanumeric() && c != '-') {
            if !word.is_empty() {
                words.push_str(&word.to_lowercase());
                words.push(' ');
            }
        }
    }
    words
}

/// Help of `command` and of all its subcommands, each with its name.
fn help(command: &[String], texts: &mut Vec<(String, String)>) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_autosam-video")).args(command).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("Usage"), "{command:?}: {text}");
    let listed =
        text.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
    let names = listed.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    for name in names.filter_map(|l| l.split_whitespace().next()).filter(|name| *name != "help") {
        help(&[command, &[name.to_owned()]].concat(), texts);
    }
    texts.push((format!("autosam-video {}", command.join(" ")), text));
}

/// The texts that gst-inspect-1.0 prints: nicks, blurbs, names of enum values.
fn inspected(root: &Path) -> Vec<String> {
    let sources = ["properties.rs", "settings.rs"].map(|name| {
        std::fs::read_to_string(root.join("plugins/gst-autosam/src/autosam").join(name)).unwrap()
    });
    let texts: Vec<String> =
        sources.iter().flat_map(|s| s.split('"').skip(1).step_by(2).map(str::to_owned)).collect();
    assert!(texts.len() > 50, "{texts:?}");
    texts
}

#[test]
fn readme_docs_help_and_blurbs_use_the_field_s_terms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    files(&root.join("docs"), "md", &mut pages);
    let mut texts: Vec<(String, String)> = pages
        .iter()
        .map(|page| {
            let name = page.strip_prefix(root).unwrap().display().to_string();
            (name, prose(&std::fs::read_to_string(page).unwrap()))
        })
        .collect();
    let mut commands = Vec::new();
    help(&[], &mut commands);
    assert!(commands.len() > 15, "{}", commands.len());
    // Help is indented like a code block of Markdown.
    let flat = |text: &str| text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    texts.extend(commands.iter().map(|(name, text)| (name.clone(), prose(&flat(text)))));
    texts.extend(inspected(root).iter().map(|text| ("gst-inspect-1.0 autosam".to_owned(), prose(text))));
    let mut found = Vec::new();
    for (place, text) in &texts {
        for (word, instead) in FORBIDDEN {
            let allowed = ALLOWED.iter().any(|(at, what, _)| at == place && *what == word);
            if let (false, Some(at)) = (allowed, text.find(&format!(" {word} "))) {
                let near: String = text[at..].chars().take(60).collect();
                found.push(format!("{place}: \"{word}\", write {instead}: …{near}…"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn blurbs_begin_with_a_noun() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for text in inspected(root) {
        for start in ["Of ", "What ", "Who ", "Where ", "Which ", "Off: "] {
            assert!(!text.starts_with(start), "begin with a noun: {text}");
        }
    }
}

#[test]
fn forbidden_words_are_found_in_prose_and_not_in_code() {
    let text = prose("A **picture** of [figures](marks.md), `told`.\n\n    run picture   # marked anew\n");
    assert_eq!(text, " a picture of figures marked anew ");
}
