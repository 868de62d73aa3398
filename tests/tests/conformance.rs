//! The conformance suite, on this project's own engine.

use conformance::{Hv, Kind, Suite, Verdict, report, run};
use std::time::Duration;

/// How long a test may take before it counts as hung. None takes ten seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn the_process_engine_conforms() {
    let suite = Suite::conformance().expect("the suite lists its tests");
    let verdicts = run(&suite, &Hv::default(), 4, PATIENCE, |_| true, |_| {});
    let failed: Vec<_> = verdicts.iter().filter(|verdict| !verdict.passed()).map(report::line).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(verdicts.len() > 100, "only {} tests were found", verdicts.len());
}

/// Tests that store to a live table on purpose: to see that what they store means nothing.
const BYPASS: [&str; 2] =
    ["image_and_direct_map_stay_whatever_the_root_says", "the_hosts_slots_are_not_in_the_kernels_tables"];

#[test]
fn the_suite_changes_live_tables_by_calls_alone() {
    let suite = Suite::conformance().expect("the suite lists its tests");
    let of_tables = |case: &conformance::Case| {
        case.clauses.iter().any(|clause| clause.contains("MMU") || clause.contains("USER"))
    };
    let checked = Hv { check_tables: true, ..Hv::default() };
    let verdicts = run(&suite, &checked, 4, PATIENCE, of_tables, |_| {});
    let told = |verdict: &&Verdict| !verdict.passed();
    let mut failed: Vec<_> = verdicts.iter().filter(told).map(|verdict| verdict.case.name.as_str()).collect();
    failed.sort_unstable();
    assert_eq!(failed, BYPASS);
}

/// Images that are no suite, and a suite's verdicts other than "passed".
#[test]
fn what_is_no_test_is_told() {
    let hello = sample_guests::find("hello").expect("built in").image;
    assert_eq!(Suite::from_image(hello).unwrap_err(), conformance::SuiteError::NoTests);

    let mut no_such_test = Suite::conformance().unwrap();
    no_such_test.cases.truncate(1);
    no_such_test.cases[0].kind = Kind::Guest { index: 100_000 };
    let verdicts: Vec<Verdict> = run(&no_such_test, &Hv::default(), 1, PATIENCE, |_| true, |_| {});
    assert!(matches!(verdicts[0].outcome, conformance::Outcome::Failed { .. }), "{verdicts:?}");
}
