//! What is counted of a VM while it runs: crossings of each vCPU, and the work for its address spaces.
//!
//! All counts are since the VM's start, and are the monitor's own; the one that the guest tells is marked. What a guest does
//! without the monitor is not among them: calls of a program that its guest kernel answers by itself, and its returns to it.
//!
//! Start at [`Counters`].

use hv_abi::call::CALLS;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::iter::Sum;

/// What a vCPU's crossings cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Hypercalls that reached the monitor.
    pub hypercalls: u64,
    /// How often each call was made.
    #[serde(skip_serializing_if = "CallCounts::is_empty")]
    pub calls: CallCounts,
    /// Traps of guest code.
    pub traps: u64,
    /// How often each kind of trap came.
    pub trap_kinds: TrapCounts,
    /// System calls of programs that trapped often and do not any more: each is a place in a program.
    pub rewritten: u64,
    /// How often one was looked at that has to go on to trap.
    pub not_rewritten: u64,
    /// Times the vCPU was told of events.
    pub upcalls: u64,
    /// Times the monitor's thread went to sleep.
    pub sleeps: u64,
    /// Times the vCPU left the guest for the monitor, for whatever reason: on the KVM engine, where each costs the same.
    pub exits: u64,
    /// Nanoseconds that the monitor's thread span for requests, about.
    pub host_spin_ns: u64,
    /// Nanoseconds that the vCPU's thread span for answers, about, as it says.
    pub guest_spin_ns: u64,
}

/// Traps by what they were. All but the last two are a program's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct TrapCounts {
    /// It made a system call.
    pub system_calls: u64,
    /// Its page tables do not allow what it did: the guest kernel was told.
    pub page_faults: u64,
    /// A processor exception.
    pub exceptions: u64,
    /// It did nothing; its vCPU was wanted.
    pub interrupted: u64,
    /// Its address space was gone, or it did not come back.
    pub killed: u64,
    /// The guest's tables do allow it: the engine mapped the page, and the program or guest kernel noticed nothing.
    pub mended: u64,
    /// A trap of the guest kernel's that was not mended.
    pub kernel: u64,
}

impl TrapCounts {
    /// Each kind's name and count.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("system_calls", self.system_calls),
            ("page_faults", self.page_faults),
            ("exceptions", self.exceptions),
            ("interrupted", self.interrupted),
            ("killed", self.killed),
            ("mended", self.mended),
            ("kernel", self.kernel),
        ]
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.named().into_iter().map(|(_, count)| count).fold(0, u64::wrapping_add)
    }

    fn add(self, other: Self) -> Self {
        Self {
            system_calls: self.system_calls.wrapping_add(other.system_calls),
            page_faults: self.page_faults.wrapping_add(other.page_faults),
            exceptions: self.exceptions.wrapping_add(other.exceptions),
            interrupted: self.interrupted.wrapping_add(other.interrupted),
            killed: self.killed.wrapping_add(other.killed),
            mended: self.mended.wrapping_add(other.mended),
            kernel: self.kernel.wrapping_add(other.kernel),
        }
    }
}

impl Sum for Counters {
    /// Of several vCPUs together.
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            hypercalls: a.hypercalls.wrapping_add(b.hypercalls),
            calls: a.calls.add(b.calls),
            traps: a.traps.wrapping_add(b.traps),
            trap_kinds: a.trap_kinds.add(b.trap_kinds),
            rewritten: a.rewritten.wrapping_add(b.rewritten),
            not_rewritten: a.not_rewritten.wrapping_add(b.not_rewritten),
            upcalls: a.upcalls.wrapping_add(b.upcalls),
            sleeps: a.sleeps.wrapping_add(b.sleeps),
            exits: a.exits.wrapping_add(b.exits),
            host_spin_ns: a.host_spin_ns.wrapping_add(b.host_spin_ns),
            guest_spin_ns: a.guest_spin_ns.saturating_add(b.guest_spin_ns), // the guest says so
        })
    }
}

/// Kinds of hypercalls: those of the table, the two below, in this order.
pub(crate) const CALL_KINDS: usize = CALLS.len() + 2;
/// Numbers that are nobody's.
const UNKNOWN: usize = CALLS.len();
/// Entries of programs, which are no call of the table's.
const ENTER_USER: usize = CALLS.len() + 1;

/// Hypercalls by which they were. In JSON, an object of those that were made, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallCounts(pub(crate) [u64; CALL_KINDS]);

impl CallCounts {
    /// Each call's name and how often it was made.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        names().zip(self.0)
    }

    /// All calls together.
    pub fn total(&self) -> u64 {
        self.0.iter().copied().fold(0, u64::wrapping_add)
    }

    /// None was made, or they are not told.
    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    fn add(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count = count.wrapping_add(more));
        self
    }

    /// The kind of a number that a guest gave.
    pub(crate) fn kind_of(number: u32) -> usize {
        (number as usize).min(UNKNOWN)
    }

    /// The kind of entries of programs.
    pub(crate) const ENTER_USER: usize = ENTER_USER;
}

/// The kinds' names, in their order.
fn names() -> impl Iterator<Item = &'static str> {
    CALLS.iter().map(|call| call.name).chain(["unknown", "enter_user"])
}

impl Default for CallCounts {
    fn default() -> Self {
        Self([0; CALL_KINDS])
    }
}

impl Serialize for CallCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.named().filter(|(_, count)| *count > 0))
    }
}

impl<'de> Deserialize<'de> for CallCounts {
    /// A later hv's calls that this one does not know are left out.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let by_name = BTreeMap::<String, u64>::deserialize(deserializer)?;
        let mut counts = Self::default();
        for (name, count) in names().zip(&mut counts.0) {
            *count = by_name.get(name).copied().unwrap_or(0);
        }
        Ok(counts)
    }
}

/// What was done for a VM's address spaces: the shadows of its page tables, and the sandboxes that have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct SpaceCounts {
    /// Entries of programs by the monitor for which nothing had to be mapped.
    pub shadow_hits: u64,
    /// Entries and faults for which something had to be mapped first.
    pub shadow_misses: u64,
    /// Entries of page tables that the guest changed by `MMU_UPDATE`.
    pub entries_changed: u64,
    /// Batches of mappings that sandboxes were told to make.
    pub batches: u64,
    /// Mappings in them.
    pub mappings: u64,
    /// Sandboxes that were made for programs.
    pub made: u64,
    /// Shadows that were emptied, or given up with their sandboxes, because there was no room for them.
    pub evictions: u64,
    /// Address spaces that have a shadow now, the guest kernel's own included.
    pub spaces: u64,
    /// Bytes that their shadows cost the host now, about.
    pub shadow_bytes: u64,
}

const _: () = assert!(CALLS[CALLS.len() - 1].call.0 as usize == UNKNOWN - 1, "a call's number is its place");

#[cfg(test)]
mod tests {
    use super::*;
    use hv_abi::Call;

    #[test]
    fn calls_are_told_by_their_names_and_read_again() {
        let mut counts = CallCounts::default();
        assert_eq!(serde_json::to_string(&counts).unwrap(), "{}");
        counts.0[CallCounts::kind_of(Call::CONSOLE_WRITE.0)] = 3;
        counts.0[CallCounts::kind_of(u32::MAX)] = 2;
        counts.0[CallCounts::ENTER_USER] = 1;
        let told = serde_json::to_string(&counts).unwrap();
        assert_eq!(told, r#"{"CONSOLE_WRITE":3,"unknown":2,"enter_user":1}"#);
        assert_eq!(serde_json::from_str::<CallCounts>(&told).unwrap(), counts);
        let later = r#"{"CONSOLE_WRITE":3,"OF_A_LATER_HV":9}"#;
        assert_eq!(serde_json::from_str::<CallCounts>(later).unwrap().total(), 3);
    }

    #[test]
    fn a_sum_is_of_all_kinds() {
        let of = |n| Counters {
            calls: CallCounts([n; CALL_KINDS]),
            trap_kinds: TrapCounts { mended: n, kernel: n, ..TrapCounts::default() },
            guest_spin_ns: u64::MAX,
            ..Counters::default()
        };
        let sum: Counters = [of(1), of(2)].into_iter().sum();
        assert_eq!((sum.calls.total(), sum.trap_kinds.total()), (3 * CALL_KINDS as u64, 6));
        assert_eq!(sum.guest_spin_ns, u64::MAX, "what a guest says does not wrap");
    }
}
