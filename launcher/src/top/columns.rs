//! The table's columns: what is in each, and which go first when there is no room for all.
//!
//! Start at [`fitting`].

use super::history::Row;
use crate::cli::SortBy;
use crate::control::Status;
use crate::report::printable;
use crate::units::show_span;
use std::time::Duration;

/// One column.
pub(super) struct Column {
    pub heading: &'static str,
    pub width: usize,
    /// The greater, the sooner it is left out.
    rank: u8,
    /// Its place in the order of the table, if it can be sorted by.
    pub sort: Option<SortBy>,
    pub cell: fn(&Row) -> String,
}

/// The name's column is as wide as the longest name, within these bounds; the others' are fixed.
const NAME: (usize, usize) = (8, 24);

/// Spaces between columns.
pub(super) const GAP: usize = 2;

const fn column(
    heading: &'static str,
    width: usize,
    rank: u8,
    sort: Option<SortBy>,
    cell: fn(&Row) -> String,
) -> Column {
    Column { heading, width, rank, sort, cell }
}

/// All but the name's.
const COLUMNS: &[Column] = &[
    column("STATE", 7, 0, None, |row| state(row).into()),
    column("CPU%", 6, 0, Some(SortBy::Cpu), |row| percent(row.rates.cpu_percent)),
    column("STEAL%", 6, 3, Some(SortBy::Steal), |row| percent(row.rates.steal_percent)),
    column("SPIN%", 6, 4, None, |row| percent(row.rates.spin_percent)),
    column("CALL/S", 7, 1, Some(SortBy::Hypercalls), |row| rate(row.rates.hypercalls)),
    column("TRAP/S", 7, 1, Some(SortBy::Traps), |row| rate(row.rates.traps)),
    column("SYSC/S", 7, 7, None, |row| rate(kind(row, "system_calls"))),
    column("FAULT/S", 7, 7, None, |row| rate(kind(row, "page_faults"))),
    column("MEND/S", 7, 8, None, |row| rate(kind(row, "mended"))),
    column("HIT%", 6, 6, None, |row| percent(row.rates.shadow_hit_percent)),
    column("HELD", 6, 2, Some(SortBy::Memory), |row| of(row, |vm| size(vm.resident))),
    column("OF", 6, 2, None, |row| of(row, |vm| size(vm.memory))),
    column("FREE", 6, 9, None, |row| of(row, |vm| size(vm.reported))),
    column("BALLOON", 7, 9, None, |row| of(row, |vm| size(vm.ballooned))),
    column("DEV/S", 7, 5, Some(SortBy::Devices), |row| rate(row.rates.device_requests)),
    column("IO B/S", 7, 5, None, |row| rate(row.rates.device_bytes)),
    column("UP", 7, 10, None, |row| of(row, |vm| show_span(Duration::from_nanos(vm.up_ns)))),
];

/// How wide the name's column is.
pub(super) fn name_width(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).clamp(NAME.0, NAME.1)
}

/// A VM's name, in so many characters.
pub(super) fn name(row: &Row, width: usize) -> String {
    let name = printable(&row.name);
    if name.chars().count() <= width {
        return name;
    }
    name.chars().take(width - 1).chain(['…']).collect()
}

/// The columns that fit beside a name of that width.
pub(super) fn fitting(width: usize, name: usize) -> Vec<&'static Column> {
    let mut columns: Vec<_> = COLUMNS.iter().collect();
    let needed = |columns: &[&Column]| name + columns.iter().map(|column| column.width + GAP).sum::<usize>();
    while needed(&columns) > width && !columns.is_empty() {
        let last = columns.iter().map(|column| column.rank).max().expect("there is one");
        columns.retain(|column| column.rank < last);
    }
    columns
}

/// What a VM does, in a word.
pub(super) fn state(row: &Row) -> &'static str {
    match (&row.silent, &row.status) {
        (Some(_), _) | (None, None) => "silent",
        (None, Some(vm)) => vm.state.name(),
    }
}

fn kind(row: &Row, kind: &str) -> Option<f64> {
    row.rates.traps?; // if that is known, a kind that is not there did not come
    Some(row.rates.trap_kinds.get(kind).copied().unwrap_or(0.0))
}

fn of(row: &Row, cell: impl FnOnce(&Status) -> String) -> String {
    row.status.as_deref().map_or_else(|| "-".into(), cell)
}

/// In percent, with a digit behind the point.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{:.1}", value.min(99_999.9)))
}

/// In five characters at the most: `0`, `12.5`, `1234`, `12.3k`.
pub(super) fn rate(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".into() };
    match value {
        0.0 => "0".into(),
        ..99.95 => format!("{value:.1}"),
        ..9999.5 => format!("{value:.0}"),
        _ => scaled(value, 1000.0, &["k", "M", "G", "T", "P", "E"]),
    }
}

/// In five characters at the most: `0`, `512`, `13.5K`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        ..1024 => bytes.to_string(),
        _ => scaled(bytes as f64, 1024.0, &["K", "M", "G", "T", "P", "E"]),
    }
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut scaled = value;
    let mut unit = "";
    for next in units {
        if scaled < step {
            break;
        }
        (scaled, unit) = (scaled / step, next);
    }
    let whole = scaled >= 99.95 || scaled.fract() == 0.0;
    if whole { format!("{scaled:.0}{unit}") } else { format!("{scaled:.1}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1234.4, "1234"),
            (12_340.0, "12.3k"),
            (1e6, "1M"),
            (123e9, "123G"),
        ] {
            assert_eq!(rate(Some(value)), text);
        }
        assert_eq!(
            (rate(None), percent(None), percent(Some(12.34))),
            ("-".into(), "-".into(), "12.3".into())
        );
        for (bytes, text) in [(0, "0"), (1023, "1023"), (1024, "1K"), (13_824, "13.5K"), (64 << 20, "64M")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn narrow_tables_keep_what_matters_most() {
        let headings =
            |width| fitting(width, 8).iter().map(|column| column.heading).collect::<Vec<_>>().join(" ");
        assert_eq!(fitting(200, 8).len(), COLUMNS.len());
        assert_eq!(headings(80), "STATE CPU% STEAL% SPIN% CALL/S TRAP/S HELD OF");
        assert_eq!(headings(60), "STATE CPU% CALL/S TRAP/S HELD OF");
        assert_eq!(headings(30), "STATE CPU%");
        assert_eq!(headings(5), "");
        for width in 0..200 {
            let used = 8 + fitting(width, 8).iter().map(|column| column.width + GAP).sum::<usize>();
            assert!(used <= width.max(8), "{width}");
        }
    }
}
