//! The document: its sections, tables and words, and what does not agree with it.
//!
//! Start at [`Document`].

use std::collections::BTreeSet;
use std::fmt::{Debug, Write};
use std::fs;
use std::path::Path;

/// The document's lines, numbered from 1.
pub(crate) struct Document {
    pub(crate) lines: Vec<String>,
}

/// A line of the document and its number.
pub(crate) type Line<'a> = (usize, &'a str);

/// A part of the document: a heading and the lines below it, up to the next heading.
pub(crate) struct Section<'a> {
    pub(crate) at: usize,
    /// 2 for a chapter, 3 for a call or an entry.
    pub(crate) level: usize,
    pub(crate) title: &'a str,
    pub(crate) lines: Vec<Line<'a>>,
}

impl Document {
    pub(crate) fn read() -> Self {
        let text = fs::read_to_string(root().join("docs/abi.md")).expect("docs/abi.md is readable");
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    pub(crate) fn numbered(&self) -> impl Iterator<Item = Line<'_>> {
        self.lines.iter().enumerate().map(|(i, line)| (i + 1, line.as_str()))
    }

    pub(crate) fn sections(&self) -> Vec<Section<'_>> {
        let mut sections: Vec<Section<'_>> = Vec::new();
        for (at, line) in self.numbered() {
            let level = line.chars().take_while(|&c| c == '#').count();
            if level == 2 || level == 3 {
                sections.push(Section { at, level, title: line[level..].trim(), lines: Vec::new() });
            } else if let Some(section) = sections.last_mut() {
                section.lines.push((at, line));
            }
        }
        sections
    }

    /// The chapter whose title without its number is `title`.
    pub(crate) fn chapter(&self, title: &str) -> Section<'_> {
        let mut found = self.sections();
        found.retain(|s| s.level == 2 && without_number(s.title) == title);
        assert_eq!(found.len(), 1, "docs/abi.md has one chapter \"{title}\"");
        found.remove(0)
    }

    /// The call sections, with the number and name in their headings.
    pub(crate) fn calls(&self) -> Vec<(u32, &str, Section<'_>)> {
        let mut chapter = "";
        let mut calls = Vec::new();
        for section in self.sections() {
            if section.level == 2 {
                chapter = without_number(section.title);
            } else if chapter == "Calls" {
                let (number, name) = section
                    .title
                    .split_once(". ")
                    .and_then(|(number, name)| Some((number.parse().ok()?, name)))
                    .unwrap_or_else(|| panic!("docs/abi.md:{}: not \"### <number>. <NAME>\"", section.at));
                calls.push((number, name, section));
            }
        }
        calls
    }
}

impl Section<'_> {
    /// The rows of the `nth` table in the section, without its head, as cells without back quotes.
    pub(crate) fn table(&self, nth: usize) -> Vec<(usize, Vec<&str>)> {
        rows(self.lines.split(|(_, line)| !line.starts_with('|')).filter(|t| !t.is_empty()).nth(nth))
    }
}

/// The cells of a table's rows, without its two lines of head.
pub(crate) fn rows<'a>(table: Option<&[Line<'a>]>) -> Vec<(usize, Vec<&'a str>)> {
    let cells =
        |line: &'a str| line.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`')).collect();
    table.unwrap_or_default().iter().skip(2).map(|&(at, line)| (at, cells(line))).collect()
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A heading without the number that it begins with.
pub(crate) fn without_number(title: &str) -> &str {
    title.split_once(". ").map_or(title, |(_, rest)| rest)
}

/// A number as the document writes it: decimal, or hexadecimal with `0x`, with `_` anywhere.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// A list as the document writes it: `a, b`, or `none`.
pub(crate) fn list(text: &str) -> Vec<&str> {
    if text == "none" { Vec::new() } else { text.split(", ").collect() }
}

/// Collects disagreements, so that one run shows them all.
#[derive(Default)]
#[must_use]
pub(crate) struct Report(String);

impl Report {
    /// Notes a disagreement at a line of the document, unless `expected`, the crate's, equals `found`.
    pub(crate) fn compare<T: PartialEq + Debug>(&mut self, at: usize, what: &str, expected: T, found: T) {
        if expected != found {
            self.fault(at, &format!("{what}: expected {expected:?}, as in hv-abi; found {found:?}"));
        }
    }

    /// Notes that something is wrong at a line of the document, or, with 0, that something is not there.
    pub(crate) fn fault(&mut self, at: usize, what: &str) {
        writeln!(self.0, "docs/abi.md:{at}: {what}").expect("a string takes all");
    }

    /// Fails the test if anything was noted.
    pub(crate) fn end(self) {
        assert!(self.0.is_empty(), "the document and the crate disagree\n{}", self.0);
    }

    /// Notes what only one side has.
    pub(crate) fn compare_sets(
        &mut self,
        at: usize,
        what: &str,
        expected: &BTreeSet<&str>,
        found: &BTreeSet<&str>,
    ) {
        for missing in expected.difference(found) {
            self.fault(at, &format!("{what}: expected {missing}, as in hv-abi; not found"));
        }
        for surplus in found.difference(expected) {
            self.fault(at, &format!("{what}: found {surplus}, which hv-abi does not have"));
        }
    }
}
