//! Rows as text for people.

use crate::bench::figure::Figure;
use crate::bench::table::{number, unit};
use crate::demo::row::{Row, Verdict};
use crate::output::Style;
use std::fmt::Write;

/// All rows, pair by pair.
pub(super) fn text(rows: &[Row], style: &Style) -> String {
    let mut text = String::new();
    for rows in rows.chunk_by(|one, other| one.pair == other.pair) {
        let Row { pair, about, gap, alone, told, .. } = &rows[0];
        writeln!(text, "{}: {about}\n  {gap}", style.bold(pair)).expect("a string takes it");
        writeln!(text, "  {:31}{:>27}{:>27}", "", alone.name, told.name).expect("a string takes it");
        for row in rows {
            let verdict = match row.verdict {
                Verdict::Gain => style.green(&row.verdict()),
                Verdict::NoGain => row.verdict(),
                Verdict::Loss => style.red(&row.verdict()),
            };
            let [alone, told] = [&row.alone, &row.told].map(cell);
            writeln!(text, "  {:31}{alone}{told}   {verdict}", row.measured).expect("a string takes it");
        }
        text.push('\n');
    }
    text + "Medians, with the least and the most. No gain here: the difference is within the noise of this run.\n"
}

fn cell(figure: &Figure) -> String {
    let (value, range) = values(figure);
    format!("{value:>14} {range:>12}")
}

/// A figure's median with its unit, and its range.
pub(super) fn values(figure: &Figure) -> (String, String) {
    let (unit, parts) = unit(&figure.unit, figure.median);
    let [median, min, max] = [figure.median, figure.min, figure.max].map(|value| number(value / parts));
    (format!("{median} {unit}"), format!("({min}-{max})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::pairs::PAIRS;

    #[test]
    fn a_pair_is_told_once_and_each_row_with_its_verdict() {
        let idle = &PAIRS[0];
        let rows = [
            Row::new(idle, &idle.measures[0], [vec![40.0, 50.0, 60.0], vec![0.5]]),
            Row::new(idle, &idle.measures[1], [vec![500.0], vec![501.0]]),
        ];
        let text = text(&rows, &Style::plain());
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines[..5],
            [
                "idle: a VM with nothing to do, and a busy one on the same core",
                "to the host a loop that waits looks like one that works",
                "it spins it calls block",
                "host CPU of the idle VM 50 % (40-60) 0.50 % (0.50-0.50) 100 times less",
                "work of the busy VM 500 steps/ms (500-500) 501 steps/ms (501-501) no gain here",
            ]
        );
    }
}
