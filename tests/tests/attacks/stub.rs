//! Attacks on the engine's code inside the sandbox, and on the host's system calls.

use crate::arena::{Arena, Attack, factor};
use crate::common::PATIENCE;
use hv_abi::address::SLOT_255;
use hv_core::End;
use hv_core::engine::Fault;

/// Bytes of the stub's mapping.
const STUB_BYTES: u64 = 0x2000;

#[test]
fn a_jump_to_any_byte_of_the_stub_harms_nobody() {
    let arena = Arena::enter();
    let (vm, console) = crate::common::start("bench", &["idle"]);
    console.wait_for("idle");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vm.processes()[0])).expect("its maps");
    let end = SLOT_255 + STUB_BYTES;
    assert!(
        maps.contains(&format!("{SLOT_255:x}-{end:x} r-xp")),
        "{STUB_BYTES:#x} are not all of it: {maps}"
    );
    drop(vm);
    let attacks = (0..STUB_BYTES).flat_map(|offset| (0..factor()).map(move |seed| (offset, seed)));
    arena.send(
        attacks.map(|(offset, seed)| Attack::new("jump", &[seed * STUB_BYTES + offset, offset])),
        |_, _| {},
    );
    arena.leave();
}

/// Numbers of system calls, and those of the x32 ABI.
fn numbers() -> impl Iterator<Item = u64> {
    (0..=600).chain((0..=600).map(|number| 0x4000_0000 + number))
}

#[test]
fn no_system_call_instruction_of_a_guest_reaches_the_host() {
    const SYSCALL: u64 = 0;
    const INT80: u64 = 1;
    let arena = Arena::enter();
    let attacks = numbers().map(|number| (SYSCALL, number)).chain((0..=600).map(|number| (INT80, number)));
    arena.send(
        attacks
            .map(|(method, number)| Attack { limit: PATIENCE, ..Attack::new("syscall", &[method, number]) }),
        |attack, report| {
            let number: u32 = attack.arguments[2].parse().expect("a number");
            match &report.end {
                End::Crash { fault: Fault::SystemCall { number: told }, hint: None } => {
                    assert_eq!(*told, number)
                }
                end => panic!("{attack:?}: {end:?}"),
            }
        },
    );
    arena.leave();
}

#[test]
fn sysenter_and_the_vsyscall_page_end_the_vm() {
    const SYSENTER: u64 = 2;
    const VSYSCALL: u64 = 3;
    let arena = Arena::enter();
    let attacks = [0, 1, 39, 60, 231].map(|number| (SYSENTER, number)).into_iter();
    let attacks = attacks.chain((0..4).map(|number| (VSYSCALL, number)));
    arena.send(
        attacks
            .map(|(method, number)| Attack { limit: PATIENCE, ..Attack::new("syscall", &[method, number]) }),
        |attack, report| {
            assert!(
                matches!(report.end, End::Crash { .. } | End::Died { .. }),
                "{attack:?}: {:?}",
                report.end
            );
        },
    );
    arena.leave();
}

/// `syscall` instructions in the stub: ten futexes of vCPU threads, and the mapping thread's.
const GADGETS: u64 = 17;

#[test]
fn the_stubs_own_system_call_instructions_are_of_no_use_to_a_guest() {
    let arena = Arena::enter();
    let (vm, console) = Attack::new("gadget", &[0, u64::MAX]).start();
    crate::common::wait(vm);
    assert_eq!(console.text(), format!("{GADGETS} instructions\n"));
    // What filters elsewhere would allow, and each number once at one of the instructions.
    let useful = [9, 10, 11, 14, 18, 56, 131, 202, 317];
    let all = (0..GADGETS).flat_map(|gadget| useful.map(|number| (gadget, number)));
    let all = all.chain(numbers().map(|number| (number % GADGETS, number)));
    let attacks = all.flat_map(|(gadget, number)| {
        (0..factor()).map(move |seed| Attack::new("gadget", &[seed * 1000 + number, gadget, number]))
    });
    arena.send(attacks, |_, _| {});
    arena.leave();
}
