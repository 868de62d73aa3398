//! A report as tables in Markdown, for a page of documentation: a row for what is measured, with both phases beside each other.

use crate::bench::Phase;
use crate::bench::figure::Figure;
use crate::bench::report::plot::{shown, shown_aim};
use crate::bench::report::{Report, Section};
use crate::bench::table::number;
use std::fmt::Write;

/// On what it was measured, and a table for each section.
pub(in crate::bench) fn tables(report: &Report) -> String {
    let Report { hv, date, machine, .. } = report;
    let mut text = format!("hv {hv} on {machine}; {date}.\n");
    if !report.complete {
        text += "Incomplete: the run was ended before it was done.\n";
    }
    for section in &report.sections {
        text += &table(section);
    }
    text
}

fn table(section: &Section) -> String {
    let mut text = format!("\n### {}\n\n", escaped(&section.title));
    for note in &section.notes {
        writeln!(text, "{}\n", escaped(note)).expect("a string takes it");
    }
    for error in &section.errors {
        writeln!(text, "Not measured {}\n", escaped(error)).expect("a string takes it");
    }
    let mut titles: Vec<String> = Vec::new();
    for title in section.figures.iter().map(Figure::title) {
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    if titles.is_empty() {
        return text;
    }
    text += "| | with a spare core | ratio | pinned to one core | ratio | aim |\n|---|---|---|---|---|---|\n";
    for title in titles {
        let row = |phase| section.figures.iter().find(|row| row.phase == phase && row.title() == title);
        let rows = Phase::ALL.map(row);
        let [spare, pinned] = rows.map(|row| row.map(cells).unwrap_or_else(|| " | ".into()));
        writeln!(text, "| {} | {spare} | {pinned} | {} |", escaped(&title), aims(rows))
            .expect("a string takes it");
    }
    text
}

/// The median and the ratio.
fn cells(row: &Figure) -> String {
    let noisy = if row.noisy { " ~" } else { "" };
    let ratio = row.ratio.map(number).unwrap_or_default();
    format!("{}{noisy} | {ratio}", escaped(&shown(row, row.median)))
}

/// The aims of both phases, once if they are the same.
fn aims([spare, pinned]: [Option<&Figure>; 2]) -> String {
    let aim = |row: Option<&Figure>| {
        let row = row?;
        let verdict = match row.met {
            Some(true) => " met",
            Some(false) => " **missed**",
            None => "",
        };
        Some(format!("{}{verdict}", escaped(&shown_aim(row, row.aim?))))
    };
    match (aim(spare), aim(pinned)) {
        (Some(spare), Some(pinned)) if spare != pinned => format!("{spare}; pinned {pinned}"),
        (Some(aim), _) => aim,
        (None, Some(pinned)) => format!("pinned {pinned}"),
        (None, None) => String::new(),
    }
}

/// Text as it stands in a table.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}
