//! A trace as a file for <https://ui.perfetto.dev> and `chrome://tracing`: the object form of the Trace Event Format.
//!
//! The VM is two processes there, each with a thread for each vCPU: what its monitor saw, and what its guest told. What took
//! time is a complete event (`X`), a mark an instant event of its thread (`i`), and names are metadata (`M`). Times are in microseconds.
//!
//! It is written as events come, so that a long trace takes no memory.

use super::summary::{label, trap_name};
use hv_core::trace::{Batch, Event, Head, Kind};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, Write};

/// The processes that a viewer shows.
const MONITOR: u32 = 1;
const GUEST: u32 = 2;

/// A file that is being written.
pub(super) struct ChromeFile<W> {
    out: W,
    microseconds_per_tick: f64,
    is_first: bool,
}

/// One event, as the format has it.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    cat: &'static str,
    ph: &'static str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    /// Of an instant event: how far its mark reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

impl<W: Write> ChromeFile<W> {
    pub(super) fn begin(mut out: W, name: &str, head: &Head) -> io::Result<Self> {
        write!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        let microseconds_per_tick = 1e6 / head.ticks_per_second.max(1) as f64;
        let mut file = Self { out, microseconds_per_tick, is_first: true };
        for (pid, what) in [(MONITOR, "monitor"), (GUEST, "guest")] {
            file.name("process_name", pid, 0, &format!("{name}: {what}"))?;
            for vcpu in 0..head.vcpus {
                file.name("thread_name", pid, vcpu, &format!("vCPU {vcpu}"))?;
            }
        }
        Ok(file)
    }

    fn name(&mut self, what: &str, pid: u32, tid: u32, name: &str) -> io::Result<()> {
        self.entry(&json!({"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}))
    }

    fn entry(&mut self, entry: &impl Serialize) -> io::Result<()> {
        self.out.write_all(if std::mem::take(&mut self.is_first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut self.out, entry).map_err(io::Error::from)
    }

    pub(super) fn add(&mut self, batch: &Batch) -> io::Result<()> {
        for event in &batch.events {
            let begin = event.begin as f64 * self.microseconds_per_tick;
            let length = event.end.saturating_sub(event.begin) as f64 * self.microseconds_per_tick;
            let is_mark = event.kind == Kind::Mark;
            self.entry(&Entry {
                name: &label(event),
                cat: category(event.kind),
                ph: if is_mark { "i" } else { "X" },
                ts: begin,
                dur: (!is_mark).then_some(length),
                s: is_mark.then_some("t"),
                pid: if event.kind.is_told() { GUEST } else { MONITOR },
                tid: batch.vcpu,
                args: arguments(event),
            })?;
        }
        Ok(())
    }

    /// Writes the end; it is a whole file from then on.
    pub(super) fn end(mut self, dropped: u64, complete: bool) -> io::Result<()> {
        let about = json!({"hv": env!("CARGO_PKG_VERSION"), "dropped": dropped, "complete": complete});
        write!(self.out, "\n],\"otherData\":{about}}}\n")?;
        self.out.flush()
    }
}

fn category(kind: Kind) -> &'static str {
    match kind {
        Kind::Hypercall => "hypercall",
        Kind::Mark | Kind::Span => "guest",
        Kind::GuestCrossing => "crossing",
        Kind::Stop | Kind::Timer => "monitor",
        _ => "user mode",
    }
}

/// What a viewer shows of an event beside its name and time.
fn arguments(event: &Event) -> Value {
    match event.kind {
        Kind::Hypercall => json!({"argument": format!("{:#x}", event.argument)}),
        Kind::EnterUser => json!({"root": format!("{:#x}", event.argument)}),
        Kind::PageFault | Kind::Trap => json!({"address": format!("{:#x}", event.argument)}),
        Kind::Exception => json!({"rip": format!("{:#x}", event.argument)}),
        Kind::SystemCall => json!({"number": event.argument}),
        Kind::GuestCrossing if event.name == "program" => json!({"trap": trap_name(event.argument)}),
        Kind::Mark | Kind::Span => json!({"value": event.argument}),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { vcpus: 2, ticks_per_second: 2_000_000_000, guest_tells: true };

    fn written(batches: &[Batch], complete: bool) -> Value {
        let mut out = Vec::new();
        let mut file = ChromeFile::begin(&mut out, "vm \"1\"", &HEAD).expect("memory takes it");
        batches.iter().for_each(|batch| file.add(batch).expect("memory takes it"));
        file.end(3, complete).expect("memory takes it");
        serde_json::from_slice(&out).expect("the file is JSON")
    }

    #[test]
    fn a_file_has_the_fields_of_the_format() {
        let hypercall = Event { number: 2, begin: 4000, end: 6500, argument: 0x1000, ..Event::default() };
        let mark = Event {
            kind: Kind::Mark,
            name: "a \"b\"".into(),
            begin: 8000,
            end: 8000,
            argument: 7,
            number: 0,
        };
        let program = Event {
            kind: Kind::GuestCrossing,
            name: "program".into(),
            begin: 1,
            end: 2,
            argument: 1,
            number: 0,
        };
        let batches = [
            Batch { vcpu: 0, events: vec![hypercall], dropped: 0 },
            Batch { vcpu: 1, events: vec![mark, program], dropped: 3 },
        ];
        let file = written(&batches, true);
        assert_eq!(file["displayTimeUnit"], "ns");
        assert_eq!(file["otherData"]["dropped"], 3);
        assert_eq!(file["otherData"]["complete"], true);
        let events = file["traceEvents"].as_array().expect("an array");
        let named = |event: &&Value| event["ph"] == "M";
        assert_eq!(events.iter().filter(named).count(), 6, "two processes of two threads");
        assert!(events.iter().filter(named).all(|event| event["args"]["name"].is_string()));
        let others: Vec<_> = events.iter().filter(|event| !named(event)).collect();
        assert_eq!(
            *others[0],
            json!({"name": "CONSOLE_WRITE", "cat": "hypercall", "ph": "X", "ts": 2.0, "dur": 1.25, "pid": 1, "tid": 0,
                   "args": {"argument": "0x1000"}})
        );
        assert_eq!(
            *others[1],
            json!({"name": "a \"b\"", "cat": "guest", "ph": "i", "s": "t", "ts": 4.0, "pid": 2, "tid": 1,
                   "args": {"value": 7}})
        );
        assert_eq!(others[2]["args"]["trap"], "system call");
    }

    #[test]
    fn a_file_without_events_is_one_too() {
        let file = written(&[], false);
        assert_eq!(file["otherData"]["complete"], false);
        assert_eq!(file["traceEvents"].as_array().map(Vec::len), Some(6));
    }
}
