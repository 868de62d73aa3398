//! The conformance suite, on this project's own engine.

use conformance::{Process, Suite, Verdict, report, run};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn the_process_engine_conforms() {
    let image = sample_guests::find("conformance").expect("the suite is built in").image;
    let suite = Suite::from_image(image).expect("the suite lists its tests");
    let verdicts = run(&suite, &Process, 4, Duration::from_secs(60), |_| true, |_| {});
    let failed: Vec<_> = verdicts.iter().filter(|verdict| !verdict.passed()).map(report::line).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(verdicts.len() > 40, "only {} tests were found", verdicts.len());
}

/// Images that are no suite, and a suite's verdicts other than "passed".
#[test]
fn what_is_no_test_is_told() {
    let hello = sample_guests::find("hello").expect("built in").image;
    assert_eq!(Suite::from_image(hello).unwrap_err(), conformance::SuiteError::NoTests);

    let suite = Suite::from_image(sample_guests::find("conformance").expect("built in").image).unwrap();
    let mut no_such_test = suite.clone();
    no_such_test.cases.truncate(1);
    no_such_test.cases[0].index = 100_000;
    let verdicts: Vec<Verdict> = run(&no_such_test, &Process, 1, Duration::from_secs(60), |_| true, |_| {});
    assert!(matches!(verdicts[0].outcome, conformance::Outcome::Failed { .. }), "{verdicts:?}");
}

/// Ids of the clauses in `docs/abi.md`: those that stand at the beginning of a sentence of a list.
fn clauses() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/abi.md");
    let text = std::fs::read_to_string(path).expect("the document is there");
    let id = |line: &str| Some(line.trim_start().strip_prefix("- [")?.split_once(']')?.0.to_owned());
    text.lines().filter_map(id).collect()
}

#[test]
fn every_clause_that_a_test_names_is_in_the_document() {
    let suite = Suite::from_image(sample_guests::find("conformance").expect("built in").image).unwrap();
    let clauses = clauses();
    assert!(clauses.len() > 100, "only {} clauses were found", clauses.len());
    for case in &suite.cases {
        assert!(!case.clauses.is_empty(), "{} names no clause", case.name);
        for clause in &case.clauses {
            assert!(clauses.contains(clause), "{} names {clause}, which docs/abi.md has not", case.name);
        }
    }
}
