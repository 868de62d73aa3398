//! `hv top --batch` and `--json`: one table, or one line, for each interval.

use super::Looker;
use super::columns::{self, Column, GAP};
use super::history::{Row, sort};
use super::options::{SortBy, TopOptions};
use crate::failure::Failure;
use crate::output;
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Prints as many as are wanted; gives the exit code.
pub(super) fn run(options: &TopOptions, mut looker: Looker) -> Result<u8, Failure> {
    looker.look()?; // to have rates from the first table on
    let mut printed = 0;
    let mut next = Instant::now() + options.interval;
    while options.batch.is_none_or(|wanted| printed < wanted) {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now() + options.interval;
        let mut rows = looker.look()?;
        sort(&mut rows, options.sort, false);
        let text = if options.json { line(&rows) } else { table(&rows, options.interval) };
        let gap = if options.json || printed == 0 { "" } else { "\n" };
        output::print(&format!("{gap}{text}"))?;
        printed += 1;
    }
    Ok(0)
}

fn line(rows: &[Row]) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}\n", json!({"unix_ms": time.as_millis() as u64, "vms": rows}))
}

/// All columns, however wide that is.
fn table(rows: &[Row], interval: Duration) -> String {
    if rows.is_empty() {
        return "No VM is running; `hv run IMAGE` starts one.\n".into();
    }
    let name = columns::name_width(rows);
    let columns = columns::fitting(usize::MAX, name);
    let mut text = format!("{}\n", summary(rows, interval));
    text += &row_of("NAME", name, columns.iter().map(|column| (*column, column.heading.into())));
    for row in rows {
        let cells = columns.iter().map(|column| (*column, (column.cell)(row)));
        text += &row_of(&columns::name(row, name), name, cells);
    }
    text
}

fn row_of<'a>(name: &str, width: usize, cells: impl Iterator<Item = (&'a Column, String)>) -> String {
    let mut line = format!("{name:width$}");
    for (column, cell) in cells {
        line += &format!("{:GAP$}{cell:>width$}", "", width = column.width);
    }
    line + "\n"
}

/// All VMs in one line.
pub(super) fn summary(rows: &[Row], interval: Duration) -> String {
    let count = |state| rows.iter().filter(|row| columns::state(row) == state).count();
    let cpu = rows.iter().filter_map(|row| row.rates.cpu_percent).fold(0.0, |sum, percent| sum + percent); // `sum` of none is -0
    let held: u64 = rows.iter().filter_map(|row| row.status.as_ref()).map(|vm| vm.resident).sum();
    let s = if rows.len() == 1 { "" } else { "s" };
    let mut text = format!("{} VM{s}: {} running", rows.len(), count("running"));
    for state in ["paused", "silent"] {
        if count(state) > 0 {
            text += &format!(", {} {state}", count(state));
        }
    }
    let every = crate::units::show_duration(interval);
    text + &format!("; CPU {cpu:.1}%, memory held {}; every {every}", columns::size(held))
}

/// The order's name, as it is shown.
pub(super) fn order_name(by: SortBy) -> &'static str {
    match by {
        SortBy::Cpu => "CPU",
        SortBy::Hypercalls => "hypercalls",
        SortBy::Traps => "traps",
        SortBy::Steal => "steal",
        SortBy::Memory => "memory",
        SortBy::Devices => "devices",
        SortBy::Name => "name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Seen, Status};
    use crate::top::history::History;

    fn rows() -> Vec<Row> {
        let seen = |name: &str| Seen {
            name: name.into(),
            status: Ok(Box::new(Status { name: name.into(), ..Status::example() })),
        };
        History::default().rows(vec![seen("a"), seen("a-very-long-name-that-is-cut-off")])
    }

    #[test]
    fn cells_stand_under_their_headings() {
        let text = table(&rows(), Duration::from_secs(1));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "2 VMs: 0 running, 2 paused; CPU 0.0%, memory held 8K; every 1 s");
        assert!(lines[1].starts_with("NAME                        STATE    CPU%  "), "{text}");
        assert!(lines[2].starts_with("a                          paused       -  "), "{text}");
        assert!(lines[3].starts_with("a-very-long-name-that-i…   paused "), "{text}");
        let widths: Vec<_> = lines[1..].iter().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [widths[0]; 3]);
    }

    #[test]
    fn a_line_is_json_of_all() {
        let line: serde_json::Value = serde_json::from_str(&line(&rows())).unwrap();
        assert_eq!(line["vms"][0]["name"], "a");
        assert_eq!(line["vms"][0]["status"]["vcpus"], 2);
        assert!(line["vms"][0]["rates"]["cpu_percent"].is_null());
    }
}
