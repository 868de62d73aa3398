//! Guest user programs that attack: their kernel, other programs and the engine go on, whatever they do.

use crate::arena::{Arena, Attack, factor};
use crate::common::PATIENCE;
use hv_core::End;

/// Programs that one VM runs, one after the other.
const EACH: u64 = 16;

/// Sends `programs` programs of one way of attack. The guest kernel looks after each whether it, and a good program beside
/// it, are as they were, and panics if not.
fn send(way: u64, programs: u64) {
    let arena = Arena::enter();
    let firsts = (0..programs * factor()).step_by(EACH as usize);
    let attacks = firsts.map(|first| Attack { limit: PATIENCE, ..Attack::new("user", &[way, first, EACH]) });
    arena.send(attacks, |attack, report| {
        assert_eq!(report.end, End::Shutdown { code: 0 }, "{attack:?} {:#?}", report.backtrace);
    });
    arena.leave();
}

#[test]
fn a_program_that_jumps_to_any_byte_of_the_stub_harms_itself_alone() {
    // A byte in sixteen, in an order that is spread over all; HV_ATTACKS=16 comes to each.
    send(0, 0x200);
}

#[test]
fn a_program_gains_nothing_by_the_stubs_system_call_instructions() {
    send(1, 256);
}

#[test]
fn a_programs_system_calls_reach_its_kernel_and_not_the_host() {
    send(2, 512);
}

#[test]
fn a_program_that_traps_in_any_state_harms_itself_alone() {
    send(3, 256);
}

#[test]
fn a_program_that_overwrites_the_engines_pages_harms_itself_alone() {
    send(4, 128);
}

#[test]
fn a_program_that_publishes_untrue_states_harms_itself_alone() {
    send(5, 128);
}

#[test]
fn a_program_cannot_hide_from_its_kernels_timer() {
    send(6, 32);
}

#[test]
fn a_program_that_jumps_into_the_jump_table_harms_itself_alone() {
    // The gate's page and the first of the table, half of the jumps to the entries that are in use.
    send(7, 0x200);
}
