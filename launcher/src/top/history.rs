//! What is shown of each VM: how it is, and what it did since the last look.

use super::rates::Rates;
use crate::cli::SortBy;
use crate::control::{Seen, Status};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// One VM.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub name: String,
    /// Why it does not say how it is, if so.
    pub silent: Option<String>,
    /// How it is, or was when it last said.
    pub status: Option<Box<Status>>,
    /// All unknown at the first look.
    pub rates: Rates,
}

/// The last look at each VM.
#[derive(Default)]
pub(super) struct History(BTreeMap<String, Box<Status>>);

impl History {
    /// What was seen now, beside what was before.
    pub(super) fn rows(&mut self, seen: Vec<Seen>) -> Vec<Row> {
        let mut before = std::mem::take(&mut self.0);
        let rows = seen.into_iter().map(|Seen { name, status }| {
            let before = before.remove(&name);
            let (silent, rates, status) = match status {
                Ok(now) => {
                    let rates = before.and_then(|before| Rates::between(&before, &now));
                    (None, rates.unwrap_or_default(), Some(now))
                }
                Err(why) => (Some(why.to_string()), Rates::default(), before),
            };
            if let Some(status) = &status {
                self.0.insert(name.clone(), status.clone());
            }
            Row { name, silent, status, rates }
        });
        rows.collect()
    }
}

/// Sorts by a figure, the greatest first, or by name. What is not known comes last.
pub(super) fn sort(rows: &mut [Row], by: SortBy, turned_round: bool) {
    let figure = |row: &Row| match by {
        SortBy::Cpu => row.rates.cpu_percent,
        SortBy::Hypercalls => row.rates.hypercalls,
        SortBy::Traps => row.rates.traps,
        SortBy::Steal => row.rates.steal_percent,
        SortBy::Memory => row.status.as_ref().map(|vm| vm.resident as f64),
        SortBy::Devices => row.rates.device_requests,
        SortBy::Name => None,
    };
    let known = |figure: Option<f64>| figure.unwrap_or(-1.0);
    rows.sort_by(|one, other| {
        let order = known(figure(other)).partial_cmp(&known(figure(one))).unwrap_or(Ordering::Equal);
        order.then_with(|| one.name.cmp(&other.name))
    });
    if turned_round {
        rows.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::NoAnswer;

    fn seen(name: &str, up_ns: u64, hypercalls: u64) -> Seen {
        let mut status = Status { name: name.into(), up_ns, ..Status::example() };
        status.counters.hypercalls = hypercalls;
        Seen { name: name.into(), status: Ok(Box::new(status)) }
    }

    #[test]
    fn vms_come_go_and_fall_silent() {
        let mut history = History::default();
        let rows = history.rows(vec![seen("a", 1_000_000_000, 5), seen("b", 1_000_000_000, 5)]);
        assert!(rows.iter().all(|row| row.rates.hypercalls.is_none() && row.status.is_some()));
        let silent = Seen { name: "a".into(), status: Err(NoAnswer::Late) };
        let rows = history.rows(vec![silent, seen("c", 1, 1)]);
        assert!(rows[0].silent.is_some() && rows[0].status.is_some(), "how it was last");
        assert_eq!(rows[1].rates.hypercalls, None);
        // Over the whole time for which it was silent.
        let rows = history.rows(vec![seen("a", 3_000_000_000, 25), seen("b", 2_000_000_000, 25)]);
        assert_eq!(rows[0].rates.hypercalls, Some(10.0));
        assert_eq!(rows[1].rates.hypercalls, None, "it had gone meanwhile");
    }

    #[test]
    fn rows_are_sorted_by_what_is_wanted() {
        let mut history = History::default();
        history.rows(vec![seen("a", 1, 0), seen("b", 1, 0), seen("c", 1, 0)]);
        let mut rows = history.rows(vec![seen("a", 2, 1), seen("b", 2, 9), seen("c", 2, 9), seen("d", 2, 9)]);
        let names = |rows: &[Row]| rows.iter().map(|row| row.name.clone()).collect::<String>();
        for (by, turned_round, expected) in [
            (SortBy::Hypercalls, false, "bcad"),
            (SortBy::Hypercalls, true, "dacb"),
            (SortBy::Name, false, "abcd"),
            (SortBy::Memory, false, "abcd"),
        ] {
            sort(&mut rows, by, turned_round);
            assert_eq!(names(&rows), expected, "{by:?}");
        }
    }
}
