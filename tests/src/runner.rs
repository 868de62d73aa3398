//! Runs tests side by side, each in a VM of its own.

use crate::{Case, Hypervisor, Outcome, Suite};
use serde::Serialize;
use std::time::{Duration, Instant};

/// A test and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The test.
    #[serde(flatten)]
    pub case: Case,
    /// How its VM ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Seconds that it took; for people, not for judging.
    pub seconds: f64,
}

impl Verdict {
    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Passed
    }
}

/// Runs the tests of `suite` that `wanted` wants, `at_once` at a time, and tells each verdict to `told` as it comes.
/// Gives them in the suite's order.
pub fn run(
    suite: &Suite,
    hypervisor: &dyn Hypervisor,
    at_once: usize,
    limit: Duration,
    wanted: impl Fn(&Case) -> bool,
    mut told: impl FnMut(&Verdict),
) -> Vec<Verdict> {
    let (cases, work) = crossbeam_channel::unbounded::<&Case>();
    let (done, verdicts) = crossbeam_channel::unbounded();
    suite.cases.iter().filter(|case| wanted(case)).for_each(|case| cases.send(case).expect("`work` lives"));
    drop(cases);
    let mut all: Vec<Verdict> = std::thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            let (work, done) = (work.clone(), done.clone());
            scope.spawn(move || {
                for case in work {
                    let start = Instant::now();
                    let outcome = hypervisor.boot(suite.image, &[case.index.to_string()], limit);
                    let seconds = start.elapsed().as_secs_f64();
                    done.send(Verdict { case: case.clone(), outcome, seconds }).expect("`verdicts` lives");
                }
            });
        }
        drop(done);
        verdicts.into_iter().inspect(|verdict| told(verdict)).collect()
    });
    all.sort_by_key(|verdict| verdict.case.index);
    all
}
