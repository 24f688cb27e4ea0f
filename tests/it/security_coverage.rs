//! Which requirement is shown by which test: the page is made from the names of the tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROWS: &str = include_str!("security_rows.txt");
const PAGE: &str = "docs/security-coverage.md";
/// Set to write the page anew.
const WRITE: &str = "EDGECLOUD_WRITE_DOCS";

struct Row {
    id: &'static str,
    what: &'static str,
    /// Why there is no test.
    reason: Option<&'static str>,
}

fn rows() -> Vec<Row> {
    let lines = ROWS.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut parts = line.splitn(3, " | ");
            let (Some(id), Some(what)) = (parts.next(), parts.next()) else {
                panic!("not a row: {line}");
            };
            Row {
                id,
                what,
                reason: parts.next(),
            }
        })
        .collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The rows that a function's name begins with: `ol_08_and_17_...` shows two.
fn rows_of(name: &str) -> Vec<String> {
    let mut words = name.split('_');
    let group = words.next().unwrap_or_default();
    let number = |word: Option<&str>| {
        let digits = word.filter(|word| word.len() == 2)?;
        digits.parse::<u8>().ok().map(|_| digits.to_owned())
    };
    let Some(first) = number(words.next()).filter(|_| group.len() == 2) else {
        return Vec::new();
    };
    let mut numbers = vec![first];
    while words.next() == Some("and") {
        match number(words.next()) {
            Some(more) => numbers.push(more),
            None => break,
        }
    }
    let group = group.to_uppercase();
    let numbers = numbers.into_iter();
    numbers.map(|number| format!("{group}-{number}")).collect()
}

/// The tests of each row: name and file.
fn tests(root: &Path) -> BTreeMap<String, Vec<(String, String)>> {
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    rust_files(&root.join("tests"), &mut files);
    files.sort();
    let mut tests: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable file");
        let shown = file
            .strip_prefix(root)
            .expect("inside")
            .display()
            .to_string();
        let names = text.lines().filter_map(|line| {
            let (_, rest) = line.trim_start().split_once("fn ")?;
            rest.split(['(', '<']).next().map(str::to_owned)
        });
        for name in names {
            for row in rows_of(&name) {
                tests
                    .entry(row)
                    .or_default()
                    .push((name.clone(), shown.clone()));
            }
        }
    }
    tests
}

fn page(rows: &[Row], tests: &BTreeMap<String, Vec<(String, String)>>) -> String {
    let mut page = String::from(
        "# Security requirements and their tests\n\n\
         Made from the names of the tests by `tests/it/security_coverage.rs`; write it anew with\n\
         `EDGECLOUD_WRITE_DOCS=1 ./scripts/test security_coverage`. The requirements come from OWASP ASVS 5.0, RFC 9700,\n\
         the OpenID Connect specifications, RFC 9110 and 9112, RFC 6455 and RFC 8628.\n\n\
         In a usual run the tests of FW-06, TU-02 and TU-16 are shorter than their rows ask;\n\
         `EDGECLOUD_FULL_LENGTH=1 ./scripts/test -- --test-threads=1 fw_06 tu_02 tu_16` takes half an hour and is not.\n\n\
         | row | required | shown by |\n|---|---|---|\n",
    );
    for row in rows {
        let shown = match (tests.get(row.id), row.reason) {
            (Some(tests), _) => {
                let tests = tests.iter();
                let tests: Vec<_> = tests
                    .map(|(name, file)| format!("`{name}` ({file})"))
                    .collect();
                tests.join("<br>")
            }
            (None, reason) => reason.unwrap_or_default().to_owned(),
        };
        page += &format!("| {} | {} | {shown} |\n", row.id, row.what);
    }
    page
}

#[test]
fn every_requirement_has_a_test_or_a_reason_and_the_page_says_which() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (rows, tests) = (rows(), tests(root));
    let mut wrong: Vec<String> = Vec::new();
    for row in &rows {
        match (tests.contains_key(row.id), row.reason) {
            (false, None) => wrong.push(format!("{} has no test and no reason", row.id)),
            (true, Some(_)) => wrong.push(format!("{} has a test and a reason for none", row.id)),
            _ => {}
        }
    }
    for id in tests.keys() {
        if !rows.iter().any(|row| row.id == id) {
            wrong.push(format!("a test is named after {id}, which is no row"));
        }
    }
    let (made, file) = (page(&rows, &tests), root.join(PAGE));
    if std::env::var_os(WRITE).is_some() {
        fs::write(&file, &made).expect("write the page");
    }
    if fs::read_to_string(&file).unwrap_or_default() != made {
        wrong.push(format!(
            "{PAGE} is out of date: run the test with {WRITE}=1"
        ));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn rows_are_read_from_names() {
    assert_eq!(rows_of("ol_02_state_is_first"), ["OL-02"]);
    assert_eq!(rows_of("ol_08_and_17_metadata"), ["OL-08", "OL-17"]);
    for other in [
        "a_person",
        "ol_2_x",
        "in_the_end",
        "of_100_two_win",
        "tenant_01_x",
    ] {
        assert_eq!(rows_of(other), Vec::<String>::new(), "{other}");
    }
}
