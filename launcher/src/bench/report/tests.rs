//! Reports from fixed figures: what each form of them says.

use super::*;
use crate::bench::Phase;

fn figure(name: &str, phase: Phase, samples: &[f64]) -> Figure {
    Figure::new(name, "ns", phase, samples.to_vec())
}

fn section(name: &str, figures: Vec<Figure>) -> Section {
    let title = format!("The suite {name}");
    Section { name: name.into(), title, notes: Vec::new(), seconds: 0.0, errors: Vec::new(), figures }
}

/// A host's row, one of ours that misses its aim, and a noisy one of another unit, in both phases.
fn report() -> Report {
    let mut figures = Vec::new();
    for phase in Phase::ALL {
        let host = figure("host: call", phase, &[100.0, 110.0, 120.0]);
        let ours = figure("call", phase, &[540.0, 550.0, 560.0]).against(&host).ratio_at_most(2.0);
        let idle = Figure::new("idle", "%", phase, vec![0.0, 0.01, 9.0]).at_most(1.0);
        figures.extend([host, ours, idle]);
    }
    let machine = Machine {
        processor: "Example 9000".into(),
        cores: 2,
        memory_bytes: 8 << 30,
        kernel: "Linux 6.18".into(),
        virtualised_by: Some("KVM".into()),
    };
    Report {
        hv: "0.1.0 (ABI 1)".into(),
        date: "2026-11-21T18:04:05Z".into(),
        machine,
        load: Some(0.25),
        seconds: 61.0,
        complete: true,
        sections: vec![section("calls", figures)],
        ..Report::new(vec!["--quick".into()])
    }
}

/// Parses the page as XML, which it is but for its first line and for elements that HTML closes by itself.
fn parsed(page: &str) -> String {
    let body = &page[page.find("<body>").expect("a body")..page.find("</html>").expect("an end")];
    roxmltree::Document::parse(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    body.to_owned()
}

#[test]
fn a_report_is_read_as_it_was_written() {
    let report = report();
    assert_eq!(Report::parse(&report.json()), Ok(report));
}

#[test]
fn the_names_of_the_format_stay() {
    let json: serde_json::Value = serde_json::from_str(&report().json()).expect("JSON");
    assert_eq!((&json["schema"], &json["complete"]), (&1.into(), &true.into()));
    assert_eq!(json["machine"]["virtualised_by"], "KVM");
    let row = &json["sections"][0]["figures"][1];
    let expected = serde_json::json!({
        "name": "call", "unit": "ns", "phase": "spare", "median": 550.0, "min": 540.0, "max": 560.0, "samples": 3,
        "noisy": false, "compared_with": "host: call", "ratio": 5.0, "aim": { "ratio": 2.0 }, "met": false,
    });
    assert_eq!(row, &expected);
}

#[test]
fn another_format_is_refused_by_its_number() {
    let told = Report::parse("{\"schema\": 2, \"news\": []}");
    assert_eq!(told, Err("its format has number 2, and this hv knows 1".into()));
    assert!(Report::parse("[]").is_err());
    assert!(Report::parse("{\"schema\": 1}").is_err());
}

#[test]
fn what_another_program_leaves_out_is_empty() {
    let mut json: serde_json::Value = serde_json::from_str(&report().json()).expect("JSON");
    json["sections"] = serde_json::json!([{ "name": "peers", "title": "Others", "unknown": 1 }]);
    let read = Report::parse(&json.to_string()).expect("a report");
    assert_eq!(read.sections, [Section { title: "Others".into(), ..section("peers", Vec::new()) }]);
}

#[test]
fn sections_of_another_report_say_when_and_where_they_were_measured() {
    let (mut report, mut other) = (report(), report());
    other.sections[0].name = "peers".into();
    other.machine.processor = "Example 1".into();
    other.complete = false;
    report.add(other);
    assert_eq!(report.sections.len(), 2);
    let note = &report.sections[1].notes[0];
    for part in ["2026-11-21T18:04:05Z", "another machine: 2 cores of Example 1", "incomplete"] {
        assert!(note.contains(part), "{note}");
    }
}

#[test]
fn the_page_shows_each_row_beside_the_hosts() {
    let page = html::page(&report());
    let body = parsed(&page);
    for (part, count) in [
        ("<span class=\"name\">host: call</span>", 2),
        // In the plots, and among the aims missed.
        ("<b>550 ns</b> <span class=\"ratio\">5.00×</span> <strong>missed: 2.00×</strong>", 4),
        ("<b>0.01 %</b> <span class=\"met\">met: 1.00 %</span> <em>~ noisy</em>", 2),
        ("class=\"lane missed\"", 2),
        ("class=\"lane host\"", 2),
        ("<h3>with a spare core</h3>", 1),
        ("<h3>pinned to one core</h3>", 1),
        ("2 met, 2 missed", 1),
        ("2 of 6 figures are noisy", 1),
        ("<a href=\"#calls\">call</a>", 1),
        ("Example 9000, 2 cores", 1),
        ("by KVM", 1),
    ] {
        assert_eq!(body.matches(part).count(), count, "{part}\n{body}");
    }
    assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains("inf%"), "{page}");
    assert!(!page.contains("src=") && !page.contains("url("), "it needs no other file");
}

/// A scale from 10 ns to 1 µs: 110 ns is 52 % along it, and twice that, the aim, 67 %.
#[test]
fn marks_are_where_the_values_are() {
    let page = html::page(&report());
    // Two phases; the host's line goes through both rows of each.
    for (mark, count) in [
        ("<circle class=\"median\" cx=\"52.07%\" cy=\"12\" r=\"5\"/>", 2),
        ("<line class=\"reference\" x1=\"52.07%\" x2=\"52.07%\"", 4),
        ("<line class=\"gap\" x1=\"52.07%\" x2=\"87.02%\"", 2),
        ("<line class=\"range\" x1=\"86.62%\" x2=\"87.41%\"", 2),
        ("<line class=\"aim\" x1=\"67.12%\" x2=\"67.12%\"", 2),
    ] {
        assert_eq!(page.matches(mark).count(), count, "{mark}");
    }
}

#[test]
fn what_a_report_says_is_text_in_the_page() {
    let mut report = report();
    let evil = "</title></section><script>alert('1')</script>\"&";
    report.date = evil.into();
    report.hv = evil.into();
    report.options = vec![evil.into()];
    report.machine.processor = evil.into();
    report.machine.virtualised_by = Some(evil.into());
    let section = &mut report.sections[0];
    section.name = evil.into();
    section.title = evil.into();
    section.notes = vec![evil.into()];
    section.errors = vec![evil.into()];
    for row in &mut section.figures {
        row.name = evil.into();
        row.unit = evil.into();
        row.peer = Some(evil.into());
    }
    let page = html::page(&report);
    parsed(&page);
    assert!(!page.contains("<script") && !page.contains(evil), "{page}");
}

#[test]
fn rows_of_one_name_are_one_comparison_of_peers() {
    let mut report = report();
    let host = Figure { peer: Some("host".into()), ..figure("null call", Phase::Spare, &[100.0]) };
    let of = |peer: &str, ns: f64| Figure {
        peer: Some(peer.into()),
        ..figure("null call", Phase::Spare, &[ns]).against(&host)
    };
    report.sections = vec![section("peers", vec![of("hv", 200.0), of("other", 300.0), host.clone()])];
    let body = parsed(&html::page(&report));
    assert_eq!(body.matches("<h4>null call</h4>").count(), 1, "{body}");
    let at = |part: &str| body.find(part).unwrap_or_else(|| panic!("{part}\n{body}"));
    assert!(at("lane host\"><span class=\"name\">host<") < at("lane ours\"><span class=\"name\">hv<"));
    assert!(at("lane ours\"><span class=\"name\">hv<") < at("lane peer\"><span class=\"name\">other<"));
    assert!(markdown::tables(&report).contains("| null call, other | 300 ns | 3.00 |"));
}

#[test]
fn a_report_without_rows_says_why() {
    let mut report = report();
    report.complete = false;
    report.sections[0].figures.clear();
    report.sections[0].errors = vec!["pinned to one core: it failed".into()];
    let body = parsed(&html::page(&report));
    for part in
        ["Incomplete", "not all of it could be measured", "Not measured pinned to one core: it failed"]
    {
        assert!(body.contains(part), "{part}\n{body}");
    }
    assert!(report.lacks_something());
    let text = markdown::tables(&report);
    assert!(text.contains("Incomplete") && !text.contains("|---|"), "{text}");
    report.sections.clear();
    parsed(&html::page(&report));
}

#[test]
fn numbers_from_anywhere_leave_the_page_whole() {
    let mut report = report();
    for (row, value) in
        report.sections[0].figures.iter_mut().zip([f64::MAX, -1.0, 0.0, f64::MIN_POSITIVE, -0.0])
    {
        (row.min, row.median, row.max) = (f64::MAX, value, f64::MIN);
        row.ratio = Some(value);
    }
    report.seconds = -1.0;
    let page = html::page(&report);
    parsed(&page);
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn the_markdown_has_both_phases_in_a_row() {
    let text = markdown::tables(&report());
    assert!(
        text.starts_with("hv 0.1.0 (ABI 1) on 2 cores of Example 9000, 8.0 GiB of memory, Linux 6.18"),
        "{text}"
    );
    for line in [
        "| host: call | 110 ns |  | 110 ns |  |  |",
        "| call | 550 ns | 5.00 | 550 ns | 5.00 | 2.00× **missed** |",
        "| idle | 0.01 % ~ |  | 0.01 % ~ |  | 1.00 % met |",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}
