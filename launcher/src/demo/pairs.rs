//! The five pairs: what the guest does in two ways, and what is measured of it.
//!
//! Start at [`PAIRS`].

use crate::bench::Phase;
use crate::demo::guest::{Guest, OneCore, cores};
use crate::failure::Failure;
use serde::Serialize;
use std::time::Instant;

/// Which of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The guest keeps what it knows to itself.
    Alone,
    /// It tells the host, or asks it.
    Told,
}

pub(super) const WAYS: [Way; 2] = [Way::Alone, Way::Told];

impl Way {
    /// The word of the guest's for it, of these two.
    fn of<T>(self, [alone, told]: [T; 2]) -> T {
        match self {
            Self::Alone => alone,
            Self::Told => told,
        }
    }
}

/// Something that a guest does in two ways.
#[derive(Debug)]
pub(super) struct Pair {
    pub name: &'static str,
    pub about: &'static str,
    /// What the one side does not know of the other, in the first way.
    pub gap: &'static str,
    pub ways: [&'static str; 2],
    pub phase: Phase,
    pub measures: &'static [Measure],
    /// Runs it once in one way; a value for each measure.
    pub run: fn(Way, &Scale) -> Result<Vec<f64>, Failure>,
}

/// Something that is measured of a pair.
#[derive(Debug)]
pub(super) struct Measure {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

/// Which values are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    Less,
    More,
}

/// How much is done.
#[derive(Debug)]
pub(super) struct Scale {
    /// How often each way is run.
    pub rounds: u32,
    busy_ms: u32,
    pages: u32,
    used_mib: u32,
    /// Critical sections of all vCPUs. They take many of the host's time slices.
    sections: u32,
    /// Times that a table of 512 entries is changed.
    passes: u32,
}

impl Scale {
    pub(super) const FULL: Self =
        Self { rounds: 7, busy_ms: 400, pages: 2048, used_mib: 48, sections: 40_000, passes: 16 };
    pub(super) const QUICK: Self =
        Self { rounds: 3, busy_ms: 100, pages: 2048, used_mib: 48, sections: 20_000, passes: 4 };
}

const fn less(name: &'static str, unit: &'static str) -> Measure {
    Measure { name, unit, better: Better::Less }
}

pub(super) const PAIRS: &[Pair] = &[
    Pair {
        name: "idle",
        about: "a VM with nothing to do, and a busy one on the same core",
        gap: "to the host a loop that waits looks like one that works",
        ways: ["it spins", "it calls block"],
        phase: Phase::Pinned,
        measures: &[
            less("host CPU of the idle VM", "%"),
            Measure { name: "work of the busy VM", unit: "steps/ms", better: Better::More },
        ],
        run: idle,
    },
    Pair {
        name: "zero",
        about: "taking 8 MiB of zeroed pages, twice",
        gap: "the guest does not know which pages the host has given it zeroed",
        ways: ["it clears all", "it knows"],
        phase: Phase::Spare,
        measures: &[
            less("cleared by the guest", "MiB"),
            less("time, each page is then used", "ns"),
            less("time, one in eight is used", "ns"),
        ],
        run: zero,
    },
    Pair {
        name: "free",
        about: "a guest of 64 MiB that has used 48 MiB and freed them",
        gap: "the host cannot see that a page will not be used again",
        ways: ["it keeps them", "it reports them"],
        phase: Phase::Spare,
        measures: &[less("memory the host holds for it", "MiB")],
        run: free,
    },
    Pair {
        name: "lock",
        about: "a lock that all vCPUs want, two of them for each core",
        gap: "a waiter does not know that the holder, or the next in line, does not run",
        ways: ["ticket lock", "the SDK's lock"],
        phase: Phase::Spare,
        measures: &[less("time of a critical section", "ns"), less("host CPU of a critical section", "ns")],
        run: lock,
    },
    Pair {
        name: "tables",
        about: "changing the 512 entries of a page table",
        gap: "with each change, the host does not know that more are to come",
        ways: ["a call for each", "one call for all"],
        phase: Phase::Spare,
        measures: &[less("time of an entry", "ns")],
        run: tables,
    },
];

const MIB: f64 = (1 << 20) as f64;

fn idle(way: Way, scale: &Scale) -> Result<Vec<f64>, Failure> {
    let _pinned = OneCore::enter()?;
    let mut idle = Guest::start("idle", way.of(["spin", "block"]), 0, 1)?;
    idle.line()?;
    let mut busy = Guest::start("idle", "work", scale.busy_ms, 1)?;
    busy.line()?;
    let (begun, before) = (Instant::now(), idle.cpu_ns());
    let [steps] = busy.numbers()?;
    let (used, passed) = (idle.cpu_ns() - before, begun.elapsed());
    Ok(vec![used as f64 / passed.as_nanos() as f64 * 100.0, steps / f64::from(scale.busy_ms)])
}

fn zero(way: Way, scale: &Scale) -> Result<Vec<f64>, Failure> {
    let mut guest = Guest::start("zero", way.of(["clear", "ask"]), scale.pages, 1)?;
    let [all, few, cleared] = guest.numbers()?;
    Ok(vec![cleared / MIB, all, few])
}

fn free(way: Way, scale: &Scale) -> Result<Vec<f64>, Failure> {
    let mut guest = Guest::start("free", way.of(["keep", "report"]), scale.used_mib, 1)?;
    guest.line()?;
    Ok(vec![guest.host_memory() as f64 / MIB])
}

fn lock(way: Way, scale: &Scale) -> Result<Vec<f64>, Failure> {
    let mut guest =
        Guest::start("lock", way.of(["ticket", "paravirtual"]), scale.sections, (2 * cores()).min(64))?;
    guest.line()?;
    let before = guest.cpu_ns();
    let [ns, sections] = guest.numbers()?;
    Ok(vec![ns / sections, (guest.cpu_ns() - before) as f64 / sections])
}

fn tables(way: Way, scale: &Scale) -> Result<Vec<f64>, Failure> {
    let mut guest = Guest::start("tables", way.of(["single", "batch"]), scale.passes, 1)?;
    let [ns, entries] = guest.numbers()?;
    Ok(vec![ns / entries])
}
