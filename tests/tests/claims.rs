//! ARCHITECTURE.md's claims of isolation name tests that exist, and every test of an attack stands beside a claim.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Rust sources below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    paths
        .flat_map(|path| match path.extension() {
            _ if path.is_dir() => sources(&path),
            Some(extension) if extension == "rs" => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

/// The tests of a file, as `file::test`.
fn tests(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("a source file");
    let file = path.file_stem().expect("a name").to_string_lossy();
    let after_attribute = text.split("#[test]\n").skip(1);
    let name = |rest: &str| rest.split_once("fn ")?.1.split_once('(').map(|(name, _)| name.to_owned());
    after_attribute.filter_map(name).map(|name| format!("{file}::{name}")).collect()
}

/// Everything in backticks in the table of claims that names a test.
fn claimed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, table) = text.split_once("| claim | tests |").expect("the table of claims");
    let rows = table.lines().take_while(|line| line.is_empty() || line.starts_with('|'));
    let words =
        rows.filter_map(|row| row.split('|').nth(2)).flat_map(|tests| tests.split('`').skip(1).step_by(2));
    words.filter(|word| word.contains("::")).map(str::to_owned).collect()
}

#[test]
fn every_claim_names_tests_that_exist() {
    let directories = ["hv-core/src", "launcher/src", "launcher/tests", "tests/tests"];
    let all: BTreeSet<_> =
        directories.iter().flat_map(|d| sources(&root().join(d))).flat_map(|f| tests(&f)).collect();
    let claimed = claimed();
    assert!(claimed.len() > 20, "{claimed:?}");
    let missing: Vec<_> = claimed.difference(&all).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names tests that do not exist: {missing:#?}");
}

#[test]
fn every_test_of_an_attack_stands_beside_a_claim() {
    let attacks = sources(&root().join("tests/tests/attacks"));
    let files = attacks
        .into_iter()
        .chain(["tests/tests/isolation.rs", "launcher/src/lockdown.rs"].map(|f| root().join(f)));
    let tests: BTreeSet<_> = files.flat_map(|file| tests(&file)).collect();
    let claimed = claimed();
    let missing: Vec<_> = tests.difference(&claimed).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md's claims do not name: {missing:#?}");
}
