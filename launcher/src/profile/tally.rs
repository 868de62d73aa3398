//! Samples, named and counted: for a flame graph, for a table, and for programs.
//!
//! Start at [`Tally::new`].

use super::programs::Programs;
use crate::output::Style;
use crate::report::printable;
use hv_core::backtrace::{StackFrame, names};
use hv_core::profile::{Asked, Sample};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

/// Functions in the table.
const MOST_ROWS: usize = 15;

/// Root frames: whose stack it is.
const KERNEL: &str = "[kernel]";
const UNKNOWN_PROGRAM: &str = "[user]";
/// Stands for the outer part of a stack that could not be walked: its code has no frame pointers, or it is deeper than a
/// sample is.
const CUT_OFF: &str = "[cut off]";

/// What a profile says.
#[derive(Debug, Serialize)]
pub(super) struct Tally {
    samples: u64,
    frequency: u32,
    asked: Asked,
    /// The hottest first.
    functions: Vec<Function>,
    /// Stacks, outermost frame first, with how often each was found.
    #[serde(skip)]
    stacks: BTreeMap<Vec<String>, u64>,
}

/// How often a function was found.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Function {
    name: String,
    /// The guest kernel, or the user program.
    of: String,
    /// At its own instructions.
    own: u64,
    /// There, or in what it called.
    total: u64,
}

/// The names at addresses, in one ELF file.
type Names = HashMap<u64, Vec<StackFrame>>;

impl Tally {
    /// Names and counts samples; with `vcpus`, those of each vCPU apart.
    pub(super) fn new(
        samples: Vec<Sample>,
        asked: Asked,
        frequency: u32,
        vcpus: bool,
        programs: &Programs,
    ) -> Self {
        let total = samples.len() as u64;
        let mut counts: BTreeMap<(String, u32), HashMap<Sample, u64>> = BTreeMap::new();
        let mut files: BTreeMap<String, Option<&[u8]>> = BTreeMap::new();
        let mut known: HashMap<(u64, Vec<u64>), String> = HashMap::new();
        for sample in samples {
            let of = if sample.user {
                let key = (sample.code, sample.frames.clone());
                known.entry(key).or_insert_with(|| {
                    let program = programs.find(&sample);
                    let of =
                        program.map_or(UNKNOWN_PROGRAM.into(), |program| format!("[user {}]", program.name));
                    files.insert(of.clone(), program.map(|program| &*program.bytes));
                    of
                })
            } else {
                files.insert(KERNEL.into(), programs.kernel.as_deref());
                &*KERNEL.to_owned()
            };
            let vcpu = if vcpus { sample.vcpu } else { 0 };
            *counts.entry((of.to_owned(), vcpu)).or_default().entry(sample).or_default() += 1;
        }
        let mut stacks = BTreeMap::new();
        for ((of, vcpu), samples) in &counts {
            let named = files.get(of).copied().flatten().map_or_else(Names::new, |file| {
                let addresses: BTreeSet<u64> =
                    samples.keys().flat_map(|sample| sample.frames.iter().copied()).collect();
                names(file, addresses.into_iter()).into_iter().collect()
            });
            for (sample, count) in samples {
                let root = vcpus.then(|| format!("[vCPU {vcpu}]"));
                let stack = root.into_iter().chain([of.clone()]).chain(frames(sample, &named)).collect();
                *stacks.entry(stack).or_default() += count;
            }
        }
        let functions = functions(&stacks, vcpus);
        Self { samples: total, frequency, asked, functions, stacks }
    }

    /// In a line.
    pub(super) fn headline(&self) -> String {
        let asked = self.asked.running + self.asked.idle + self.asked.late;
        format!(
            "{} samples at {} Hz, vCPUs idle for {:.0} % of the time",
            self.samples,
            self.frequency,
            percent(self.asked.idle, asked)
        )
    }

    /// A line for each stack, as tools for flame graphs have it.
    pub(super) fn folded(&self) -> Vec<String> {
        let line = |(stack, count): (&Vec<String>, &u64)| format!("{} {count}\n", stack.join(";"));
        self.stacks.iter().map(line).collect()
    }

    pub(super) fn json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("names and numbers are JSON");
        format!("{json}\n")
    }

    pub(super) fn table(&self, style: &Style) -> String {
        let mut text = format!("{}\n", style.bold(&self.headline()));
        if self.functions.is_empty() {
            text.push_str("The guest computed nothing while it was looked at.\n");
            return text;
        }
        let heading = format!("{:>7}  {:>7}  FUNCTION", "OWN", "TOTAL");
        writeln!(text, "{}", style.bold(&heading)).expect("a string takes it");
        for Function { name, of, own, total } in self.functions.iter().take(MOST_ROWS) {
            let (own, total) = (percent(*own, self.samples), percent(*total, self.samples));
            let line = format!("{own:>5.1} %  {total:>5.1} %  {} {}", printable(name), printable(of));
            writeln!(text, "{line}").expect("a string takes it");
        }
        text
    }
}

fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of.max(1) as f64
}

/// The frames of a stack, outermost first, inlined functions among them.
fn frames(sample: &Sample, named: &Names) -> Vec<String> {
    let mut frames = Vec::new();
    for address in &sample.frames {
        let unnamed = || vec![format!("{address:#x}")];
        let found = named.get(address).map(|found| {
            let name =
                |frame: &StackFrame| frame.function.as_deref().map_or_else(|| format!("{address:#x}"), clean);
            found.iter().map(name).collect()
        });
        frames.extend(found.unwrap_or_else(unnamed));
    }
    if !sample.complete {
        frames.push(CUT_OFF.into());
    }
    frames.reverse();
    frames
}

/// A name that does not break the lines of a folded stack.
fn clean(name: &str) -> String {
    printable(name).replace(';', ",").replace('\n', " ")
}

/// Counts the functions of all stacks.
fn functions(stacks: &BTreeMap<Vec<String>, u64>, vcpus: bool) -> Vec<Function> {
    let mut counted: HashMap<(&str, &str), (u64, u64)> = HashMap::new();
    for (stack, count) in stacks {
        let (roots, frames) = stack.split_at(1 + usize::from(vcpus));
        let of = roots.last().expect("each stack is somebody's");
        let frames: Vec<&str> = frames.iter().map(String::as_str).filter(|name| *name != CUT_OFF).collect();
        let distinct: BTreeSet<&str> = frames.iter().copied().collect();
        for name in distinct {
            counted.entry((name, of)).or_default().1 += count;
        }
        if let Some(leaf) = frames.last() {
            counted.entry((leaf, of)).or_default().0 += count;
        }
    }
    let function = |((name, of), (own, total)): ((&str, &str), (u64, u64))| Function {
        name: name.into(),
        of: of.into(),
        own,
        total,
    };
    let mut functions: Vec<_> = counted.into_iter().map(function).collect();
    functions.sort_by(|a, b| (b.own, b.total, &a.name).cmp(&(a.own, a.total, &b.name)));
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(vcpu: u32, frames: &[u64], complete: bool) -> Sample {
        Sample { vcpu, user: false, frames: frames.to_vec(), complete, code: 0 }
    }

    fn tally(vcpus: bool) -> Tally {
        let samples = vec![
            sample(0, &[0x30, 0x20, 0x10], true),
            sample(1, &[0x30, 0x20, 0x10], true),
            sample(1, &[0x20, 0x20, 0x10], true),
            sample(1, &[0x40], false),
        ];
        let asked = Asked { running: 4, idle: 12, late: 0 };
        Tally::new(samples, asked, 99, vcpus, &Programs::default())
    }

    #[test]
    fn stacks_are_folded_outermost_first_and_say_what_is_missing() {
        let lines =
            ["[kernel];0x10;0x20;0x20 1\n", "[kernel];0x10;0x20;0x30 2\n", "[kernel];[cut off];0x40 1\n"];
        assert_eq!(tally(false).folded(), lines);
        assert!(tally(true).folded().contains(&"[vCPU 0];[kernel];0x10;0x20;0x30 1\n".to_owned()));
    }

    #[test]
    fn a_function_is_counted_once_a_stack_and_by_its_own_instructions() {
        for vcpus in [false, true] {
            let functions = tally(vcpus).functions;
            let counts: Vec<_> = functions.iter().map(|f| (&*f.name, f.own, f.total)).collect();
            assert_eq!(counts, [("0x30", 2, 2), ("0x20", 1, 3), ("0x40", 1, 1), ("0x10", 0, 3)]);
        }
    }

    #[test]
    fn the_table_has_shares_and_what_is_idle() {
        let text = tally(false).table(&Style::plain());
        for part in ["4 samples at 99 Hz, vCPUs idle for 75 %", " 50.0 %   50.0 %  0x30 [kernel]"] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let nothing = Tally::new(Vec::new(), Asked::default(), 99, false, &Programs::default());
        assert!(nothing.table(&Style::plain()).contains("computed nothing"));
    }

    #[test]
    fn a_name_cannot_break_a_line() {
        assert_eq!(clean("<[u8; 4] as A>::b\nc"), "<[u8, 4] as A>::b c");
    }
}
