//! The results as tables: a line for each row, a column for each peer, and the ratio to the host's figure beside each.

use crate::figure::{Figure, Phase};
use crate::peer::Peer;
use crate::report::Report;
use std::fmt::Write;

/// The tables of both phases, with what has to be known of them.
pub(crate) fn text(report: &Report, peers: &[Peer], markdown: bool) -> String {
    let section = report.section();
    let Report { hv, date, machine, .. } = report;
    let mut text = format!("hv {hv} on {machine}; {date}.\n");
    let mut line = |line: &str| {
        text += if markdown { "- " } else { "" };
        text += line;
        text.push('\n');
    };
    section.notes.iter().for_each(|note| line(note));
    section.errors.iter().for_each(|error| line(&format!("Not measured: {error}")));
    if !report.complete {
        line("Incomplete: it was interrupted.");
    }
    for phase in Phase::ALL {
        let figures: Vec<&Figure> = section.figures.iter().filter(|figure| figure.phase == phase).collect();
        if !figures.is_empty() {
            let lines = lines(phase, &figures, peers);
            text.push('\n');
            text += &if markdown { as_markdown(&lines) } else { aligned(&lines) };
        }
    }
    text + "\nMedians. x: of the host's. ~: the samples are far apart, something else was running.\n"
}

/// The head, and a line for each row.
fn lines(phase: Phase, figures: &[&Figure], peers: &[Peer]) -> Vec<Vec<String>> {
    let mut lines = vec![vec![phase.to_string()]];
    lines[0].extend(peers.iter().map(|peer| peer.title.to_owned()));
    let mut names: Vec<&str> = figures.iter().map(|figure| &*figure.name).collect();
    names.dedup();
    for name in names {
        let mut line = vec![name.to_owned()];
        line.extend(peers.iter().map(|peer| {
            let figure = figures.iter().find(|figure| figure.name == name && figure.peer == peer.title);
            figure.map_or_else(|| "-".into(), |figure| cell(figure))
        }));
        lines.push(line);
    }
    lines
}

fn cell(figure: &Figure) -> String {
    let (unit, parts) = match figure.unit {
        "ns" if figure.median >= 1e7 => ("ms", 1e6),
        "ns" if figure.median >= 1e4 => ("us", 1e3),
        own => (own, 1.0),
    };
    let mut text = format!("{} {unit}", number(figure.median / parts));
    if figure.noisy {
        text += " ~";
    }
    if let Some(ratio) = figure.ratio {
        write!(text, "  x{}", number(ratio)).expect("a string takes it");
    }
    text
}

/// With as many digits as say something.
fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            write!(text, "{cell:<width$}   ").expect("a string takes it");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn as_markdown(lines: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        writeln!(text, "| {} |", line.join(" | ")).expect("a string takes it");
        if i == 0 {
            writeln!(text, "|{}", "---|".repeat(line.len())).expect("a string takes it");
        }
    }
    text
}
