//! The direction of use between the modules: arrows never go up the list in `src/lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module may use modules of lower layers only.
const LAYERS: &[&[&str]] = &[
    &["fuzzing"],
    &["types", "fail_point"],
    &["config"],
    &["cli", "telemetry", "runtime"],
    &["net"],
    &["websocket"],
    &["tunnel"],
    &["tcp_relay"],
    &["keys", "device_token"],
    &["store"],
    &["feed", "audit_chain"],
    &["session"],
    &["auth"],
    &["forward"],
    &["console", "agent"],
    &["client"],
    // The API hands out the console's files.
    &["api"],
    &["roles"],
    &["lib", "main"],
];

#[test]
fn arrows_of_use_never_go_up() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let uses = uses_of_modules(&source);
    let wrong: Vec<_> = uses
        .iter()
        .flat_map(|(module, used)| used.iter().map(move |used| (module, used)))
        .filter(|(module, used)| *module != *used && layer(used) >= layer(module))
        .map(|(module, used)| format!("{module} -> {used}"))
        .collect();
    assert!(wrong.is_empty(), "new kinds of arrows: {wrong:?}");
    let arrows: usize = uses.values().map(BTreeSet::len).sum();
    assert!(arrows > 10, "the uses are found: {uses:?}");
}

#[test]
fn sql_is_in_the_store_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in files_below(&source) {
        let inside = file.strip_prefix(&source).expect("below src");
        if inside.starts_with("store") {
            continue;
        }
        let text = code_of(&file);
        for word in ["rusqlite", "tokio_postgres", "INSERT INTO", "DELETE FROM"] {
            assert!(!text.contains(word), "{word} in {}", inside.display());
        }
    }
}

#[test]
fn a_use_is_found_in_every_spelling() {
    let found = used_modules(
        "use crate::store::Store;\nuse crate::{auth, keys::KeyRing, net::{a, types}};\n\
         let x = crate::session::open(); // crate::api\n/// [`crate::roles`]\npub(crate) fn f() {}",
    );
    let expected = ["auth", "keys", "net", "session", "store"];
    assert_eq!(found, BTreeSet::from(expected.map(str::to_owned)));
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("{module} has no place in the layers yet"))
}

fn uses_of_modules(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files_below(source) {
        let inside = file.strip_prefix(source).expect("below src");
        let first = inside.components().next().expect("a name");
        let name = first.as_os_str().to_str().expect("a readable name");
        let module = name.trim_end_matches(".rs").to_owned();
        let used = uses.entry(module).or_default();
        used.extend(used_modules(&code_of(&file)));
    }
    uses
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("read the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn code_of(file: &Path) -> String {
    without_comments(&fs::read_to_string(file).expect("read a source file"))
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let comment = line.find("// ").or_else(|| line.find("///"));
        let comment = comment.or_else(|| line.find("//!"));
        comment.map_or(line, |start| &line[..start])
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules of the crate that a text names after `crate::`.
fn used_modules(text: &str) -> BTreeSet<String> {
    let text = without_comments(text);
    let mut found = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => found.extend(names_in_group(group)),
            None => found.extend(name_at(rest)),
        }
    }
    found
}

fn name_at(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let name = &text[..end.unwrap_or(text.len())];
    (!name.is_empty()).then(|| name.to_owned())
}

/// The first names of the members of a `use` group, which `text` begins inside of.
fn names_in_group(text: &str) -> Vec<String> {
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (place, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.extend(name_at(text[start..place].trim()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(name_at(text[start..place].trim()));
                start = place + 1;
            }
            _ => {}
        }
    }
    names
}
