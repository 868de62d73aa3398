//! Every clause of `docs/abi.md` has a test, every error of every call a clause, and `docs/conformance.md` says so.

use conformance::Suite;
use conformance::coverage::{clauses, page};
use hv_abi::call::CALLS;
use std::collections::BTreeSet;

#[test]
fn every_clause_has_a_test() {
    let suite = Suite::conformance().expect("the suite lists its tests");
    let tested: BTreeSet<_> = suite.cases.iter().flat_map(|case| &case.clauses).collect();
    let missing: Vec<_> =
        clauses().into_iter().map(|clause| clause.id).filter(|id| !tested.contains(id)).collect();
    assert!(missing.is_empty(), "clauses of docs/abi.md without a test: {missing:?}");
}

#[test]
fn every_test_names_clauses_that_exist() {
    let suite = Suite::conformance().expect("the suite lists its tests");
    let ids: BTreeSet<_> = clauses().into_iter().map(|clause| clause.id).collect();
    for case in &suite.cases {
        assert!(!case.clauses.is_empty(), "{} names no clause", case.name);
        let unknown: Vec<_> = case.clauses.iter().filter(|id| !ids.contains(*id)).collect();
        assert!(unknown.is_empty(), "{} names {unknown:?}, which docs/abi.md has not", case.name);
    }
}

/// Together with the test of every clause: every error that a served call can give of its own is tested.
#[test]
fn every_error_of_every_served_call_is_stated_by_a_clause() {
    let clauses = clauses();
    for call in CALLS.iter().filter(|call| call.served) {
        for status in call.errors {
            let name = format!("`{}`", status.name().expect("the table names statuses by name"));
            let stated =
                clauses.iter().any(|clause| clause.stem() == call.name && clause.text.contains(&name));
            assert!(stated, "docs/abi.md: no clause of {} says when it gives {name}", call.name);
        }
    }
}

#[test]
fn the_page_is_what_is_generated() {
    let suite = Suite::conformance().expect("the suite lists its tests");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == page(&suite.cases),
        "docs/conformance.md is stale; \
         `cargo run --release -p conformance -- --coverage >docs/conformance.md` writes it"
    );
}
