//! Runs tests side by side, each in VMs of its own.

use crate::scenarios::Stand;
use crate::{Case, Device, Hypervisor, Kind, Machine, Suite};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// All was as it should be.
    Passed,
    /// Something was found that should not be.
    Failed {
        /// What.
        message: String,
        /// `file:line:column` of the assertion, if it is known.
        place: Option<String>,
    },
    /// The test's VM ended in a way that it should not have, or did not start.
    Faulted {
        /// How.
        cause: String,
        /// The guest's stack, innermost first.
        backtrace: Vec<String>,
    },
    /// It did not end in time.
    TimedOut {
        /// Where it was.
        backtrace: Vec<String>,
    },
}

/// A test and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The test.
    #[serde(flatten)]
    pub case: Case,
    /// What came of it.
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
    let (cases, work) = crossbeam_channel::unbounded::<(usize, &Case)>();
    let (done, verdicts) = crossbeam_channel::unbounded();
    let chosen = suite.cases.iter().filter(|case| wanted(case)).enumerate();
    chosen.for_each(|case| cases.send(case).expect("`work` lives"));
    drop(cases);
    let stand = Stand { hypervisor, image: suite.image, limit };
    let mut all: Vec<(usize, Verdict)> = std::thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            let (work, done, stand) = (work.clone(), done.clone(), &stand);
            scope.spawn(move || {
                for (place, case) in work {
                    let start = Instant::now();
                    let outcome = outcome(stand, case);
                    let seconds = start.elapsed().as_secs_f64();
                    let verdict = Verdict { case: case.clone(), outcome, seconds };
                    done.send((place, verdict)).expect("`verdicts` lives");
                }
            });
        }
        drop(done);
        verdicts.into_iter().inspect(|(_, verdict)| told(verdict)).collect()
    });
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Makes one test.
fn outcome(stand: &Stand<'_>, case: &Case) -> Outcome {
    match case.kind {
        Kind::Guest { index } => {
            let mut machine = Machine::new(stand.image, &[&index.to_string()], stand.limit);
            if case.clauses.iter().any(|clause| clause.starts_with("DEVICE")) {
                machine.devices = Device::for_tests();
            }
            stand.hypervisor.boot(machine, Box::new(std::io::sink())).into()
        }
        Kind::Scenario { check } => check(stand).err().unwrap_or(Outcome::Passed),
    }
}
