//! Verdicts as text for people, and as JUnit XML for machines.

use crate::{Outcome, Verdict};
use std::fmt::Write;

/// One line for a test, and below it why it did not pass.
pub fn line(verdict: &Verdict) -> String {
    let Verdict { case, outcome, .. } = verdict;
    let (word, details) = match outcome {
        Outcome::Passed => ("ok", Vec::new()),
        Outcome::Failed { message, place } => {
            ("FAILED", vec![format!("{message}\n    at {}", place.as_deref().unwrap_or("an unknown place"))])
        }
        Outcome::Faulted { cause, backtrace } => {
            ("FAULTED", [vec![cause.clone()], backtrace.clone()].concat())
        }
        Outcome::TimedOut { backtrace } => ("TIMED OUT", backtrace.clone()),
    };
    let mut text = format!("{} {} ... {word}", case.clauses.join(" "), case.name);
    details.iter().for_each(|detail| write!(text, "\n    {detail}").expect("a string takes it"));
    text
}

/// How many passed, and how many did not; a line that tools know, too.
pub fn summary(verdicts: &[Verdict]) -> String {
    let passed = verdicts.iter().filter(|verdict| verdict.passed()).count();
    format!("{passed} passed, {} failed", verdicts.len() - passed)
}

/// A JUnit report.
pub fn junit(engine: &str, verdicts: &[Verdict]) -> String {
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\">\n",
        escape(engine),
        verdicts.len()
    );
    for verdict in verdicts {
        let (class, name) = (escape(&verdict.case.clauses.join(" ")), escape(&verdict.case.name));
        let head =
            format!("  <testcase classname=\"{class}\" name=\"{name}\" time=\"{:.6}\"", verdict.seconds);
        let end = match verdict.passed() {
            true => "/>\n".to_owned(),
            false => format!("><failure>{}</failure></testcase>\n", escape(&line(verdict))),
        };
        xml += &(head + &end);
    }
    xml + "</testsuite>\n"
}

/// Text inside XML. Control characters, which XML 1.0 has no way to write, become `?`.
fn escape(text: &str) -> String {
    let escaped = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        c if c.is_control() && c != '\n' && c != '\t' => "?".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Case, Kind};

    fn verdict(outcome: Outcome) -> Verdict {
        let case = Case::new("a<b", "X-001", Kind::Guest { index: 0 });
        Verdict { case, outcome, seconds: 0.5 }
    }

    #[test]
    fn a_failure_tells_message_and_place() {
        let failed = Outcome::Failed { message: "1 is not 2".into(), place: Some("x.rs:1:2".into()) };
        assert_eq!(line(&verdict(failed)), "X-001 a<b ... FAILED\n    1 is not 2\n    at x.rs:1:2");
    }

    #[test]
    fn junit_is_escaped_and_counts() {
        let faulted = Outcome::Faulted { cause: "\"&\u{1}".into(), backtrace: Vec::new() };
        let xml = junit("process", &[verdict(Outcome::Passed), verdict(faulted)]);
        assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
        assert!(xml.contains("name=\"a&lt;b\" time=\"0.500000\"/>"), "{xml}");
        assert!(xml.contains("&quot;&amp;?</failure>"), "{xml}");
    }
}
