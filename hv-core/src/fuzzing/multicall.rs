//! A multicall does what its calls do one by one: the same array in two VMs, once as a multicall and once call by call.
//!
//! While the first console write is served, something else may store to guest memory, as another vCPU can: calls that
//! were copied do not change by that, and the store is not lost.

use super::machine::{MEMORY, Machine, State, arguments, edge, features, number};
use crate::dispatch::dispatch;
use arbitrary::Unstructured;
use hv_abi::call::{MULTICALL_MAX, MulticallEntry};
use hv_abi::{Call, Features, GuestPhys, Status};
use zerocopy::IntoBytes;

const ENTRY: u64 = size_of::<MulticallEntry>() as u64;

/// Makes a multicall in both ways and compares what is left.
pub fn multicall(input: &[u8]) {
    let input = &mut Unstructured::new(input);
    let _ = made_up(input).map(|case| case.check()); // too short an input is no case
}

struct Case {
    features: Features,
    entries: Vec<MulticallEntry>,
    /// Where the array is said to be, and how long.
    start: u64,
    count: u64,
    /// A store during the first console write.
    interference: Option<(GuestPhys, u64)>,
}

fn made_up(u: &mut Unstructured<'_>) -> arbitrary::Result<Case> {
    let features = features(u)?;
    let interference = if u.arbitrary()? { Some((GuestPhys(edge(u)? & !7), u.arbitrary()?)) } else { None };
    let start = if u.ratio(7, 8)? { edge(u)? & !7 } else { edge(u)? };
    let wrong_count = if u.ratio(1, 8)? { Some(edge(u)?) } else { None };
    let fill = u.ratio(1, 16)?;
    let mut entries = Vec::new();
    while !u.is_empty() && entries.len() < MULTICALL_MAX as usize {
        let number = number(u)?;
        let arguments = arguments(u, number)?;
        let reserved = if u.ratio(1, 16)? { edge(u)? } else { 0 };
        let (status, value) =
            if u.ratio(1, 16)? { (Status(u.arbitrary()?), u.arbitrary()?) } else { <_>::default() };
        entries.push(MulticallEntry { call: Call(number), status, arguments, value, reserved });
    }
    if fill && let Some(last) = entries.last().copied() {
        entries.resize(MULTICALL_MAX as usize, last);
    }
    let count = wrong_count.unwrap_or(entries.len() as u64);
    Ok(Case { features, entries, start, count, interference })
}

impl Case {
    fn check(&self) {
        let (together, singly) = (Machine::new(self.features), Machine::new(self.features));
        let mut memory: Vec<u8> = (0..MEMORY).map(|i| i as u8).collect();
        // As much of the array as is in memory.
        let at = usize::try_from(self.start).unwrap_or(usize::MAX).min(memory.len());
        let length = self.entries.as_bytes().len().min(memory.len() - at);
        memory[at..at + length].copy_from_slice(&self.entries.as_bytes()[..length]);
        for machine in [&together, &singly] {
            machine.vm.memory.write_bytes(GuestPhys(0), &memory).expect("all of it is memory");
            machine.vm.console_input.push(b"typed for both");
            *machine.interference.lock().unwrap() = self.interference;
        }

        let mut calls = together.calls();
        let arguments = [self.start, self.count, 0, 0, 0];
        let given = dispatch(&mut calls, self.features, Call::MULTICALL.0, arguments);
        let (allowed, expected) = self.singly(&singly, &memory);
        assert!(allowed.contains(&given), "{given:?} is none of {allowed:?}");
        together.state(&calls).assert_is(&expected, || format!("{:x?} at {:#x}", self.entries, self.start));
    }

    /// What the multicall may give, and what is left of its calls made one by one.
    fn singly(&self, machine: &Machine, memory: &[u8]) -> (Vec<Result<u64, Status>>, State) {
        let mut calls = machine.calls();
        let errors = self.errors();
        if !errors.is_empty() {
            return (errors.into_iter().map(Err).collect(), machine.state(&calls));
        }
        let mut results = Vec::new();
        for index in 0..self.count as usize {
            let bytes = &memory[self.start as usize + index * ENTRY as usize..][..ENTRY as usize];
            let entry: MulticallEntry =
                zerocopy::FromBytes::read_from_bytes(bytes).expect("as long as an entry");
            let result = match entry.call.description() {
                Some(call) if call.served && self.features.contains(call.call.feature()) => {
                    if !call.in_multicall {
                        Err(Status::NOT_IN_MULTICALL)
                    } else if entry.reserved != 0 {
                        Err(Status::BAD_ARGUMENT)
                    } else {
                        dispatch(&mut calls, self.features, call.call.0, entry.arguments)
                    }
                }
                _ => Err(Status::UNKNOWN_CALL),
            };
            results.push(result);
        }
        let mut state = machine.state(&calls);
        for (index, result) in results.iter().enumerate() {
            let entry = &mut state.memory[self.start as usize + index * ENTRY as usize..];
            let Status(status) = result.err().unwrap_or(Status::SUCCESS);
            entry[4..8].copy_from_slice(&status.to_le_bytes());
            entry[48..56].copy_from_slice(&result.unwrap_or(0).to_le_bytes());
        }
        (vec![Ok(self.count)], state)
    }

    /// Why the multicall itself fails, if it does.
    fn errors(&self) -> Vec<Status> {
        if !self.features.contains(Features::MULTICALL) {
            return vec![Status::UNKNOWN_CALL];
        }
        let end = u128::from(self.start) + u128::from(self.count) * u128::from(ENTRY);
        let outside = self.count > 0 && end > u128::from(MEMORY);
        let mut errors = Vec::new();
        if self.count > MULTICALL_MAX {
            errors.push(Status::OUT_OF_RANGE);
        }
        if outside || !self.start.is_multiple_of(8) {
            errors.push(Status::BAD_ADDRESS);
        }
        errors
    }
}
