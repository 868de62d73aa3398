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
        writeln!(text, "{}: {about} ({})\n  {gap}", style.bold(pair), alone.phase)
            .expect("a string takes it");
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
