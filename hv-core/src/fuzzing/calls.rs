//! Calls, one after the other, on a VM without an engine: each does what the model says, and nothing else.

use super::machine::{Machine, VCPUS, arguments, edge, features, number, page};
use super::model::Model;
use crate::calls::{AfterCall, Calls};
use crate::dispatch::dispatch;
use arbitrary::Unstructured;
use hv_abi::vcpu::{EVENT_CHANNELS, EVENT_WORDS};
use hv_abi::{Call, GuestPhys};
use std::sync::atomic::Ordering::SeqCst;

/// Makes the calls, stores and events that the input names, and compares everything after each.
pub fn calls(input: &[u8]) {
    let input = &mut Unstructured::new(input);
    let _ = run(input); // the end of the input is the end of the run
}

/// Something that happens in a VM.
#[derive(Debug)]
enum Step {
    Call(u32, [u64; 5]),
    /// The guest stores to its memory.
    Store(u64, Vec<u8>),
    /// The guest stores to a vCPU's page.
    Upcall(u32, u32),
    Pending(u32, usize, u64),
    Masked(u32, usize, u64),
    /// The host fires a channel of its own, as the timer's.
    Fire(u32, u32),
    /// Somebody types.
    Type(Vec<u8>),
    /// Nobody types any more.
    EndInput,
    /// The host asks the balloon for so many bytes.
    Ask(u64),
    /// The guest takes channels until there are no more.
    AllocateAll(u32),
}

fn step(u: &mut Unstructured<'_>) -> arbitrary::Result<Step> {
    let vcpu = u.int_in_range(0..=VCPUS - 1)?;
    let word =
        |u: &mut Unstructured<'_>| if u.arbitrary()? { Ok(0) } else { u.int_in_range(0..=EVENT_WORDS - 1) };
    let bits = |u: &mut Unstructured<'_>| if u.arbitrary()? { Ok(0) } else { u.arbitrary() };
    Ok(match u.int_in_range(0..=20)? {
        0 => Step::Store(edge(u)?, u.arbitrary()?),
        1 => Step::Upcall(vcpu, *u.choose(&[0, 1, 0x100, 0x101])?),
        2 => Step::Pending(vcpu, word(u)?, bits(u)?),
        3 => Step::Masked(vcpu, word(u)?, bits(u)?),
        4 => Step::Fire(vcpu, u.int_in_range(0..=EVENT_CHANNELS - 1)?),
        5 => Step::AllocateAll(vcpu),
        6 => {
            // A panic's report, or the beginning of a multicall's entry.
            let words = [edge(u)?, edge(u)?, edge(u)?, edge(u)?, u.arbitrary()?];
            Step::Store(edge(u)? & !7, words.map(u64::to_le_bytes).concat())
        }
        14 => {
            // An update of a table, where calls look for them.
            let words = [entry(u)?, value(u)?, u.arbitrary()?, u64::from(u.ratio(1, 16)?) << 32];
            let at = page(u)? + 32 * u64::from(u.arbitrary::<u8>()? % 8);
            Step::Store(at, words.map(u64::to_le_bytes).concat())
        }
        15 => {
            let number = u.int_in_range(16..=20)?;
            Step::Call(number, arguments(u, number)?)
        }
        16 if u.ratio(1, 8)? => Step::EndInput,
        16 => Step::Type(u.arbitrary()?),
        17 => {
            let number = u.int_in_range(27..=28)?;
            Step::Call(number, arguments(u, number)?)
        }
        18 => {
            // A run of pages, where calls look for them.
            let count = if u.ratio(7, 8)? { u.int_in_range(0..=4)? } else { edge(u)? };
            let at = page(u)? + 16 * u64::from(u.arbitrary::<u8>()? % 16);
            Step::Store(at, [page(u)?, count].map(u64::to_le_bytes).concat())
        }
        19 => {
            let number = u.int_in_range(21..=23)?;
            Step::Call(number, arguments(u, number)?)
        }
        20 => Step::Ask(edge(u)?),
        _ => {
            let number = number(u)?;
            Step::Call(number, arguments(u, number)?)
        }
    })
}

/// P of an entry of a table, most likely.
fn entry(u: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    let index = *u.choose(&[0, 1, 31, 32, 33, 254, 255, 511])?;
    if u.ratio(7, 8)? { Ok(page(u)? + index * 8) } else { edge(u) }
}

/// A value for one: a page and some bits, most likely.
fn value(u: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    let bits: u64 = *u.choose(&[0, 1, 7, 1 << 63 | 7, 0x87, 1 << 8 | 1, 1 << 59 | 1, 0xfff0])?;
    if u.ratio(7, 8)? { Ok(page(u)? | bits) } else { u.arbitrary() }
}

fn run(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let features = features(u)?;
    let machine = Machine::new(features);
    let mut calls = machine.calls();
    let mut model = Model::new(machine.state(&calls), features);
    while !u.is_empty() && model.state.end.is_none() {
        let step = step(u)?;
        take(&step, &machine, &mut calls, &mut model);
        // A poll that found nothing waits, which here it does for nobody.
        calls.then.take_if(|then| matches!(then, AfterCall::Poll(_)));
        machine.state(&calls).assert_is(&model.state, || format!("{step:x?}"));
    }
    Ok(())
}

/// Takes a step on the machine and on the model.
fn take(step: &Step, machine: &Machine, calls: &mut Calls<'_>, model: &mut Model) {
    let mut call = |number, arguments| {
        let given = dispatch(calls, machine.vm.features, number, arguments);
        // These say in memory what each of their parts gave.
        let in_parts = [Call::MULTICALL.0, Call::MMU_UPDATE.0].contains(&number);
        let after = if in_parts { machine.state(calls).memory } else { Vec::new() };
        model.judge(number, arguments, given, &after);
        given
    };
    match step {
        Step::Call(number, arguments) => drop(call(*number, *arguments)),
        Step::AllocateAll(vcpu) => {
            let Call(number) = Call::EVENT_ALLOCATE;
            while call(number, [u64::from(*vcpu), 0, 0, 0, 0]).is_ok() {}
        }
        Step::Store(at, bytes) => {
            if machine.vm.memory.write_bytes(GuestPhys(*at), bytes).is_ok() && !bytes.is_empty() {
                model.state.memory[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        Step::Upcall(vcpu, value) => {
            machine.vm.pages.page(*vcpu).upcall.store(*value, SeqCst);
            model.state.pages[*vcpu as usize].upcall = *value;
        }
        Step::Pending(vcpu, word, value) => {
            machine.vm.pages.page(*vcpu).pending[*word].store(*value, SeqCst);
            model.state.pages[*vcpu as usize].pending[*word] = *value;
        }
        Step::Masked(vcpu, word, value) => {
            machine.vm.pages.page(*vcpu).masked[*word].store(*value, SeqCst);
            model.state.pages[*vcpu as usize].masked[*word] = *value;
        }
        Step::Type(bytes) => {
            machine.vm.console_input.push(bytes);
            model.type_bytes(bytes);
        }
        Step::EndInput => {
            machine.vm.console_input.close();
            model.end_input();
        }
        Step::Ask(bytes) => {
            machine.vm.set_balloon(*bytes);
            model.ask(*bytes);
        }
        Step::Fire(vcpu, channel) => {
            machine.vm.events.raise(*vcpu, *channel);
            model.fire(*vcpu as usize, (*channel).into());
        }
    }
}
