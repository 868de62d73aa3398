//! System calls of programs, made jumps or not: the same programs with the same results.

mod common;

use common::*;
use conformance::{Kind, Suite};
use hv_core::{End, Report, Vm};

/// Runs one test of the conformance suite's guest.
fn run_test(index: usize, rewrite: bool) -> Report {
    let (mut config, _) = config("conformance", &[&index.to_string()]);
    (config.rewrite, config.vcpus) = (rewrite, 4);
    wait(Vm::start(config).unwrap())
}

/// The tests of user mode; each runs programs, and looks at all that they do.
fn tests_of_programs() -> Vec<(String, usize)> {
    let suite = Suite::conformance().unwrap();
    let of_programs =
        suite.cases.into_iter().filter(|case| case.clauses.iter().any(|c| c.starts_with("USER-")));
    of_programs
        .filter_map(|case| match case.kind {
            Kind::Guest { index } => Some((case.name, index)),
            Kind::Scenario { .. } => None,
        })
        .collect()
}

#[test]
fn programs_behave_alike_without_rewriting() {
    for (name, index) in tests_of_programs() {
        let report = run_test(index, false);
        assert_eq!(report.end, End::Shutdown { code: 0 }, "{name}");
        assert_eq!((report.counters.rewritten, report.counters.not_rewritten), (0, 0), "{name}");
    }
}

#[test]
fn calls_that_can_be_are_rewritten_and_then_trap_no_more() {
    let test = |name| run_test(conformance_test(name), true).counters;
    let loops = test("a_call_in_a_loop_goes_on_with_its_results_and_its_red_zone");
    assert_eq!((loops.rewritten, loops.not_rewritten), (1, 0));
    // Three programs; the second has something between number and call, and the third calls the gate.
    let three = test("a_call_gives_the_same_however_often_it_is_made");
    assert_eq!((three.rewritten, three.not_rewritten), (1, 1));
    // The branch to its middle is an indirect one.
    assert_eq!(test("a_program_jumps_to_the_instruction_itself").rewritten, 1);
    // A page that something else is written to, again and again.
    assert!(test("code_that_its_kernel_changes_is_run_as_it_is").rewritten > 0);
    let written = test("code_that_is_written_through_another_address_is_run_as_it_is");
    assert!(written.rewritten > 0 && written.not_rewritten > 0, "{written:?}");
}
