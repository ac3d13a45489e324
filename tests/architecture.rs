//! Checks that modules depend one way, which the compiler checks only between crates, and the length of files and
//! functions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module's path inside its crate; the crate root has an empty path.
type Module = Vec<String>;
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules below `dir` and their text, without comments and unit tests.
fn modules(dir: &Path, at: &Module, found: &mut BTreeMap<Module, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner: Module = at.iter().cloned().chain([name.clone()]).collect();
        if path.is_dir() {
            modules(&path, &inner, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !["main", "tests"].contains(&name.as_str()) {
            let front = ["lib", "mod"].contains(&name.as_str());
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
            found.insert(if front { at.clone() } else { inner }, lines.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Expands `a::{b, c::d}` to `a::b` and `a::c::d`.
fn spelled_out(path: &str) -> Vec<String> {
    let Some((head, group)) = path.split_once('{') else { return vec![path.trim().to_owned()] };
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in group.chars() {
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                parts.last_mut().unwrap().push(c);
            }
        }
    }
    parts
        .iter()
        .flat_map(|part| spelled_out(part.trim()))
        .map(|part| format!("{}{part}", head.trim()))
        .collect()
}

/// The paths in `text`: those of its `use` lines, and other paths that begin with `crate` or `super`.
fn paths(text: &str) -> Vec<String> {
    let statements = text.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let mut found: Vec<String> = statements.flat_map(|s| spelled_out(&s.replace('\n', " "))).collect();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            found.push(text[at..].chars().take_while(|c| name(*c)).collect());
        }
    }
    found
}

/// The module to which `path` refers if written in the module `from`; `None` for other crates.
fn target(path: &str, from: &Module, all: &BTreeMap<Module, String>) -> Option<Module> {
    let mut names = path.split("::").map(str::trim).peekable();
    let mut at = match *names.peek()? {
        "crate" => Vec::new(),
        "self" | "super" => from.clone(),
        child => {
            let inner: Module = from.iter().cloned().chain([child.to_owned()]).collect();
            return all.contains_key(&inner).then_some(inner);
        }
    };
    for name in names {
        match name {
            "crate" | "self" => {}
            "super" => drop(at.pop()),
            name => {
                at.push(name.to_owned());
                if !all.contains_key(&at) {
                    at.pop();
                    break;
                }
            }
        }
    }
    Some(at)
}

/// The dependencies between the modules of `folder`, each with all its submodules.
fn siblings(folder: &Module, all: &BTreeMap<Module, String>) -> Graph {
    let n = folder.len();
    let below = |module: &Module| module.len() > n && module[..n] == folder[..];
    let mut graph = Graph::new();
    for (module, text) in all.iter().filter(|(module, _)| below(module)) {
        let edges = graph.entry(module[n].clone()).or_default();
        let to = paths(text).into_iter().filter_map(|path| target(&path, module, all));
        edges.extend(to.filter(|to| below(to) && to[n] != module[n]).map(|to| to[n].clone()));
    }
    graph
}

fn reaches(graph: &Graph, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(at) = open.pop() {
        for next in graph.get(at).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

/// Modules of `graph` that depend on themselves through others.
fn circles(graph: &Graph) -> Vec<String> {
    graph.keys().filter(|module| reaches(graph, module, module)).cloned().collect()
}

#[test]
fn modules_of_a_folder_depend_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates =
        std::fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path().join("src"));
    let mut checked = 0;
    for dir in crates.chain([root.join("src"), root.join("plugins/gst-autosam/src")]) {
        let mut all = BTreeMap::new();
        modules(&dir, &Vec::new(), &mut all);
        let folders: BTreeSet<Module> =
            all.keys().filter_map(|m| m.split_last()).map(|(_, f)| f.to_vec()).collect();
        for folder in folders {
            checked += 1;
            let found = circles(&siblings(&folder, &all));
            assert!(
                found.is_empty(),
                "{}/{}: circular dependency among {found:?}",
                dir.display(),
                folder.join("/")
            );
        }
    }
    assert!(checked > 15, "only {checked} folders were found");
}

#[test]
fn a_circle_is_found_through_grouped_imports_and_submodules() {
    let all = BTreeMap::from([
        (Vec::new(), String::new()),
        (vec!["a".to_owned()], "use crate::{b::deep::Thing, c};".to_owned()),
        (vec!["b".to_owned()], "use deep::Thing;".to_owned()),
        (vec!["b".to_owned(), "deep".to_owned()], "fn f() { super::super::c::g(); }".to_owned()),
        (vec!["c".to_owned()], String::new()),
    ]);
    assert_eq!(circles(&siblings(&Vec::new(), &all)), Vec::<String>::new());
    let mut back = all;
    back.insert(vec!["c".to_owned()], "use super::a::{self, Other};".to_owned());
    assert_eq!(circles(&siblings(&Vec::new(), &back)), ["a", "b", "c"]);
}

/// Most lines of a function from its signature to its closing brace, and of a file.
const FUNCTION: usize = 80;
const FILE: usize = 500;

/// The source files below `dir`, without hidden folders and build outputs.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Whether a function's signature starts in `line`.
fn starts_function(line: &str) -> bool {
    let modifier = |word: &&str| {
        ["default", "const", "async", "unsafe", "extern"].contains(word)
            || word.starts_with("pub")
            || word.starts_with('"')
    };
    line.split_whitespace().find(|word| !modifier(word)) == Some("fn")
}

/// The functions of a formatted file, tests and nested functions included: number of their first line, and of lines.
/// Declarations without a body are omitted.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let code = |i: usize| lines[i].split(" // ").next().unwrap_or_default().trim_end();
    let mut found = Vec::new();
    for first in (0..lines.len()).filter(|&i| starts_function(lines[i])) {
        // A signature ends before a body, with an empty or one-line body, or without one.
        let signature = (first..lines.len()).find(|&i| code(i).ends_with(['{', '}', ';']));
        let last = match signature {
            Some(i) if code(i).ends_with(';') => continue,
            Some(i) if code(i).ends_with('}') => Some(i),
            Some(i) => {
                let indent = lines[first].len() - lines[first].trim_start().len();
                let close = format!("{}}}", " ".repeat(indent));
                (i + 1..lines.len()).find(|&i| code(i) == close)
            }
            None => None,
        };
        // Without an end it counts to the end of the file, so that a mistake of this scanner is seen.
        found.push((first + 1, last.map_or(lines.len(), |last| last + 1) - first));
    }
    found
}

/// Whether a file's header gives a reason for its length: a line of `//!` that names the limit.
fn explains_length(text: &str) -> bool {
    let limit = format!("{FILE} lines");
    text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.contains(&limit))
}

#[test]
fn functions_and_files_are_short() {
    let mut files = Vec::new();
    sources(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files);
    let (mut checked, mut long) = (0, Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().count();
        if lines > FILE && !explains_length(&text) {
            long.push(format!("{}: {lines} lines", file.display()));
        }
        for (first, lines) in functions(&text) {
            checked += 1;
            if lines > FUNCTION {
                long.push(format!("{}:{first}: a function of {lines} lines", file.display()));
            }
        }
    }
    assert!(checked > 2000, "only {checked} functions were found");
    assert!(
        long.is_empty(),
        "more than {FUNCTION} lines a function or {FILE} a file (a file may give the reason in its header, naming \
         \"{FILE} lines\"):\n{}",
        long.join("\n")
    );
}

#[test]
fn functions_are_found_with_their_lines() {
    let text = "\
//! fn in_a_comment() {
pub(crate) const fn one_line() -> usize { 1 }
trait Thing {
    fn declared(&self);
    fn declared_at_length(
        &self,
        numbers: [f32; 3],
    ) -> usize
    where
        Self: Sized;
    unsafe fn with_body(&self) {} // nothing to do
}
pub async unsafe extern \"C\" fn generic<T>(
    value: T,
) -> T
where
    T: Clone,
{
    fn inner() {
        let table: fn(usize) = outer;
    }
    if true {
        inner();
    }
    value
}
fn without_end() {
    open(
";
    assert_eq!(functions(text), [(2, 1), (11, 1), (13, 14), (19, 3), (27, 2)]);
}

#[test]
fn a_long_file_explains_itself_in_its_header() {
    assert!(explains_length(
        "//! A table.\n//!\n//! More than 500 lines: one entry per code.\n\nfn f() {}\n"
    ));
    assert!(!explains_length("//! A table.\n\n// More than 500 lines: this is not the header.\n"));
}
