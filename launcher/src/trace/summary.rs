//! What a trace comes to, kind by kind: how often, how long, and what part of the time.

use crate::output::Style;
use crate::units::show_duration;
use hv_abi::user::trap;
use hv_core::trace::{Batch, Event, Kind};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Kinds of things that are told apart; a guest can make up as many names as it likes.
const MOST_ROWS: usize = 500;

/// What an event is called.
pub(super) fn label(event: &Event) -> Cow<'_, str> {
    match event.kind {
        Kind::Hypercall => match hv_abi::Call(event.number).description() {
            Some(call) => call.name.into(),
            None => format!("unknown call {}", event.number).into(),
        },
        Kind::EnterUser => "enter program".into(),
        Kind::SystemCall => "system call".into(),
        Kind::PageFault => "page fault".into(),
        Kind::Exception => format!("exception {}", event.number).into(),
        Kind::Interrupted => "interrupted".into(),
        Kind::Killed => "killed".into(),
        Kind::Trap => "trap of the kernel".into(),
        Kind::Stop => "stopping point".into(),
        Kind::Timer => "timer".into(),
        Kind::Died => "died".into(),
        Kind::Mark | Kind::Span | Kind::GuestCrossing => event.name.as_str().into(),
    }
}

/// Why a program came back.
pub(super) fn trap_name(value: u64) -> &'static str {
    match u32::try_from(value).unwrap_or(0) {
        trap::SYSCALL => "system call",
        trap::PAGE_FAULT => "page fault",
        trap::EXCEPTION => "exception",
        trap::INTERRUPTED => "interrupted",
        trap::KILLED => "killed",
        _ => "none",
    }
}

/// Durations, in ticks, told apart to about 3 %: 32 classes for each power of two.
#[derive(Clone)]
struct Histogram {
    classes: Vec<u64>,
    count: u64,
    total: u64,
    most: u64,
}

/// Bits of a duration that tell classes apart.
const BITS: u32 = 5;

impl Histogram {
    fn new() -> Self {
        Self { classes: Vec::new(), count: 0, total: 0, most: 0 }
    }

    fn class(ticks: u64) -> usize {
        let shift = (u64::BITS - ticks.leading_zeros()).saturating_sub(BITS + 1);
        ((u64::from(shift) << BITS) + (ticks >> shift)) as usize
    }

    /// The middle of a class.
    fn middle(class: usize) -> u64 {
        let class = class as u64;
        let shift = (class >> BITS).saturating_sub(1);
        let low = (class - (shift << BITS)) << shift;
        low + (1 << shift) / 2
    }

    fn add(&mut self, ticks: u64) {
        let class = Self::class(ticks);
        if self.classes.len() <= class {
            self.classes.resize(class + 1, 0);
        }
        self.classes[class] += 1;
        self.count += 1;
        self.total = self.total.saturating_add(ticks);
        self.most = self.most.max(ticks);
    }

    /// So many per cent of all are no longer.
    fn percentile(&self, per_cent: u64) -> u64 {
        let wanted = (self.count * per_cent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.classes.iter().position(|class| {
            seen += class;
            seen >= wanted
        });
        found.map_or(0, |class| Self::middle(class).min(self.most))
    }
}

/// What has been added up so far, and what comes of it.
pub(super) struct Summary {
    ticks_per_second: u64,
    rows: BTreeMap<(bool, Kind, String), Histogram>,
    /// Of names that found no row.
    others: u64,
    dropped: u64,
    end: u64,
    guest_tells: bool,
    complete: bool,
}

/// One kind, in nanoseconds.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    kind: Kind,
    seen_by: &'static str,
    count: u64,
    total_ns: u64,
    mean_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    /// Of the time of the trace, in per cent; more than 100 with several vCPUs.
    share: f64,
}

#[derive(Serialize)]
struct Told<'a> {
    seconds: f64,
    dropped: u64,
    complete: bool,
    guest_tells: bool,
    others: u64,
    rows: Vec<Row<'a>>,
}

impl Summary {
    pub(super) fn new(ticks_per_second: u64) -> Self {
        Self {
            ticks_per_second: ticks_per_second.max(1),
            rows: BTreeMap::new(),
            others: 0,
            dropped: 0,
            end: 0,
            guest_tells: true,
            complete: false,
        }
    }

    pub(super) fn add(&mut self, batch: &Batch) {
        self.dropped = self.dropped.saturating_add(batch.dropped);
        for event in &batch.events {
            self.end = self.end.max(event.end);
            let key = (event.kind.is_told(), event.kind, label(event).into_owned());
            let is_full = self.rows.len() >= MOST_ROWS;
            if is_full && !self.rows.contains_key(&key) {
                self.others += 1;
                continue;
            }
            let row = self.rows.entry(key).or_insert_with(Histogram::new);
            row.add(event.end.saturating_sub(event.begin));
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn finish(self, guest_tells: bool, complete: bool) -> Self {
        Self { guest_tells, complete, ..self }
    }

    fn ns(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second)) as u64
    }

    /// What takes most of the time first; what the monitor saw before what the guest told.
    fn rows(&self) -> Vec<Row<'_>> {
        let rows = self.rows.iter().map(|((is_told, kind, name), h)| Row {
            name,
            kind: *kind,
            seen_by: if *is_told { "guest" } else { "monitor" },
            count: h.count,
            total_ns: self.ns(h.total),
            mean_ns: self.ns(h.total / h.count.max(1)),
            p50_ns: self.ns(h.percentile(50)),
            p99_ns: self.ns(h.percentile(99)),
            max_ns: self.ns(h.most),
            share: h.total as f64 * 100.0 / self.end.max(1) as f64,
        });
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by_key(|row| (row.seen_by != "monitor", std::cmp::Reverse(row.total_ns)));
        rows
    }

    pub(super) fn json(&self) -> String {
        let told = Told {
            seconds: self.end as f64 / self.ticks_per_second as f64,
            dropped: self.dropped,
            complete: self.complete,
            guest_tells: self.guest_tells,
            others: self.others,
            rows: self.rows(),
        };
        format!("{}\n", serde_json::to_string_pretty(&told).expect("names and numbers are JSON"))
    }

    pub(super) fn table(&self, style: &Style) -> String {
        let time = |ns| show_duration(Duration::from_nanos(ns));
        let mut text = String::new();
        let rows = self.rows();
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(12);
        let heading = format!(
            "{:8}  {:width$}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>7}",
            "SEEN BY", "WHAT", "COUNT", "TOTAL", "MEAN", "P50", "P99", "MAX", "OF TIME"
        );
        writeln!(text, "{}", style.bold(&heading)).expect("a string takes it");
        for row in &rows {
            writeln!(
                text,
                "{:8}  {:width$}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>6.1}%",
                row.seen_by,
                row.name,
                row.count,
                time(row.total_ns),
                time(row.mean_ns),
                time(row.p50_ns),
                time(row.p99_ns),
                time(row.max_ns),
                row.share
            )
            .expect("a string takes it");
        }
        let events: u64 = rows.iter().map(|row| row.count).sum();
        let span = time(self.ns(self.end));
        writeln!(text, "{events} events in {span}; {} lost, for there was no room for them", self.dropped)
            .expect("a string takes it");
        for (applies, what) in [
            (
                !self.guest_tells,
                "This guest tells nothing of itself: what its engine serves without the monitor is not here.",
            ),
            (self.others > 0, "The guest uses too many names: only some of them are counted here."),
            (!self.complete, "The end is missing."),
        ] {
            if applies {
                writeln!(text, "{what}").expect("a string takes it");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, name: &str, length: u64) -> Event {
        Event { kind, name: name.into(), begin: 10, end: 10 + length, ..Event::default() }
    }

    #[test]
    fn classes_are_in_order_and_narrow() {
        let mut last = 0;
        for ticks in (0..70_000)
            .chain((17..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + (1 << (bit - 2))]))
        {
            let class = Histogram::class(ticks);
            let middle = Histogram::middle(class);
            assert!(middle.abs_diff(ticks) <= ticks / 32 + 1, "{ticks} is shown as {middle}");
            if ticks < 70_000 {
                assert!(class == last || class == last + 1, "{ticks}");
                last = class;
            }
        }
        assert!(Histogram::class(u64::MAX) < 2048);
    }

    #[test]
    fn percentiles_are_of_what_was_added() {
        let mut histogram = Histogram::new();
        (1..=100).for_each(|ticks| histogram.add(ticks));
        assert!(histogram.percentile(50).abs_diff(50) <= 2);
        assert!(histogram.percentile(99).abs_diff(99) <= 3);
        assert_eq!((histogram.count, histogram.total, histogram.most), (100, 5050, 100));
        let mut one = Histogram::new();
        one.add(1000);
        assert!(one.percentile(50) <= 1000 && one.percentile(99).abs_diff(1000) < 32);
    }

    #[test]
    fn a_table_says_how_often_how_long_and_what_was_lost() {
        let mut summary = Summary::new(1_000_000_000);
        let events = vec![
            event(Kind::Hypercall, "", 100),
            event(Kind::Hypercall, "", 300),
            event(Kind::Span, "write", 500),
        ];
        summary.add(&Batch { vcpu: 0, events, dropped: 9 });
        let summary = summary.finish(false, false);
        let text = summary.table(&Style::plain());
        let row = text.lines().find(|line| line.contains("VERSION")).expect("a row");
        assert!(row.starts_with("monitor") && row.contains("400 ns") && row.contains("200 ns"), "{text}");
        for told in ["write", "9 lost", "tells nothing", "end is missing"] {
            assert!(text.contains(told), "{told} is not in:\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&summary.json()).expect("JSON");
        assert_eq!(json["dropped"], 9);
        assert_eq!((&json["rows"][0]["count"], &json["rows"][0]["total_ns"]), (&2.into(), &400.into()));
        assert_eq!(
            (&json["rows"][1]["seen_by"], &json["rows"][1]["kind"]),
            (&"guest".into(), &"span".into())
        );
    }

    #[test]
    fn a_guest_with_endless_names_takes_no_endless_memory() {
        let mut summary = Summary::new(1);
        for n in 0..2000 {
            let events = vec![event(Kind::Mark, &n.to_string(), 0)];
            summary.add(&Batch { vcpu: 0, events, dropped: 0 });
        }
        assert_eq!((summary.rows.len(), summary.others), (MOST_ROWS, 1500));
        assert!(summary.finish(true, true).table(&Style::plain()).contains("too many names"));
    }
}
