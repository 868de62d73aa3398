//! Rows as a table for people.

use crate::bench::Phase;
use crate::bench::figure::{Aim, Figure};
use std::fmt::Write;

/// What the columns and marks of a [`table`] mean.
pub(super) const LEGEND: &str = "ratio: to a row of the host's that does the same (--json names it). aim: the most that the ratio should be, or\n\
     with a unit the median; ! where it is more. ~: the samples are far apart, something else was running.\n";

/// The rows of all phases.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for phase in Phase::ALL {
        let rows: Vec<_> = figures.iter().filter(|f| f.phase == phase).map(row).collect();
        if !rows.is_empty() {
            let (median, min, max, ratio, aim) = ("median", "min", "max", "ratio", "aim");
            let head = format!("{phase:<48}{median:>8}{min:>7}{max:>8}     {ratio:>6}{aim:>9}");
            writeln!(text, "{head}\n{}\n", rows.join("\n")).expect("a string takes it");
        }
    }
    text
}

fn row(figure: &Figure) -> String {
    let Figure { median, min, max, .. } = figure;
    let name = figure.title();
    let (unit, parts) = unit(&figure.unit, *median);
    let ratio = figure.ratio.map(number).unwrap_or_default();
    let aim = match figure.aim {
        Some(Aim::Ratio(aim)) => number(aim),
        Some(Aim::Median(aim)) => format!("{} {unit}", number(aim / parts)),
        None => String::new(),
    };
    let missed = if figure.met == Some(false) { "!" } else { "" };
    let noisy = if figure.noisy { "~" } else { " " };
    let [median, min, max] = [*median, *min, *max].map(|value| number(value / parts));
    let text = format!("{name:<48}{median:>8}{min:>7}{max:>8} {unit:<3}{noisy}{ratio:>6}{aim:>9}{missed}");
    text.trim_end().to_owned()
}

/// The unit in which to show a row, and how many of its own that is.
pub(crate) fn unit(own: &str, median: f64) -> (&str, f64) {
    match own {
        "ns" if median >= 1e7 => ("ms", 1e6),
        "ns" if median >= 1e4 => ("us", 1e3),
        "us" if median >= 1e4 => ("ms", 1e3),
        _ => (own, 1.0),
    }
}

/// With as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_its_aim_and_whether_it_is_missed() {
        let host = Figure::new("host: thing", "ns", Phase::Spare, vec![10.0]);
        let guest = Figure::new("thing", "ns", Phase::Spare, vec![20.0, 25.0, 400.0]);
        let words = |figure: &Figure| row(figure).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&host), "host: thing 10 10 10 ns");
        let guest = guest.against(&host);
        assert_eq!(words(&guest.clone().ratio_at_most(3.0)), "thing 25 20 400 ns ~ 2.50 3.00");
        assert_eq!(words(&guest.clone().ratio_at_most(2.0)), "thing 25 20 400 ns ~ 2.50 2.00!");
        assert_eq!(words(&guest.at_most(8.0)), "thing 25 20 400 ns ~ 2.50 8.00 ns!");
    }

    #[test]
    fn long_times_are_shown_in_larger_units() {
        let words = |ns: f64| {
            let figure = Figure::new("thing", "ns", Phase::Spare, vec![ns]).at_most(8000.0);
            row(&figure).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words(9999.0), "thing 9999 9999 9999 ns 8000 ns!");
        assert_eq!(words(71_700.0), "thing 72 72 72 us 8.00 us!");
        assert_eq!(words(17_000_000.0), "thing 17 17 17 ms 0.01 ms!");
    }

    #[test]
    fn a_phase_without_rows_has_no_table() {
        let text = table(&[Figure::new("thing", "ns", Phase::Pinned, vec![1.0])]);
        assert!(text.contains("pinned to one core") && !text.contains("with a spare core"), "{text}");
    }
}
