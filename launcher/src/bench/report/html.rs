//! A report as a page: one file that needs no other, without scripts, for light and dark, wide and narrow screens, and paper.

use crate::bench::Phase;
use crate::bench::figure::Figure;
use crate::bench::report::plot::{panel, verdict};
use crate::bench::report::{Report, Section};
use crate::bench::table::number;
use crate::units::{show_size, show_span};
use std::fmt::Write;
use std::time::Duration;

const STYLE: &str = include_str!("style.css");

/// What the marks mean, drawn as they are.
const LEGEND: &str = "\
<p class=\"legend\">\
<span><svg width=\"60\" height=\"24\" class=\"host\" aria-hidden=\"true\"><line class=\"range\" x1=\"6\" x2=\"54\" y1=\"12\" y2=\"12\"/>\
<circle class=\"median\" cx=\"28\" cy=\"12\" r=\"5\"/></svg> the host itself: median, from the least to the most</span> \
<span><svg width=\"60\" height=\"24\" class=\"ours\" aria-hidden=\"true\"><line class=\"gap\" x1=\"8\" x2=\"34\" y1=\"12\" y2=\"12\"/>\
<line class=\"reference\" x1=\"8\" x2=\"8\" y1=\"0\" y2=\"24\"/><line class=\"range\" x1=\"28\" x2=\"54\" y1=\"12\" y2=\"12\"/>\
<circle class=\"median\" cx=\"34\" cy=\"12\" r=\"5\"/></svg> hv; the bar is the way from the host's median</span> \
<span><svg width=\"30\" height=\"24\" class=\"ours\" aria-hidden=\"true\"><line class=\"aim\" x1=\"15\" x2=\"15\" y1=\"2\" y2=\"22\"/></svg> \
the aim: the most that it should be</span> \
<span><svg width=\"30\" height=\"24\" class=\"missed\" aria-hidden=\"true\"><circle class=\"median\" cx=\"15\" cy=\"12\" r=\"5\"/></svg> \
an aim missed</span> \
<span><svg width=\"30\" height=\"24\" class=\"ours\" aria-hidden=\"true\"><circle class=\"median noisy\" cx=\"15\" cy=\"12\" r=\"5\"/></svg> \
noisy: the middle half of the samples is more than a quarter of the median apart</span></p>\n\
<p>Less is better everywhere. Scales are logarithmic: from one line to the next it is ten times as much, and the same distance is \
the same ratio. ‹ and › stand where a range goes on past the scale. The ratio is to the host's figure above it, of the same run.</p>\n";

/// The page.
pub(in crate::bench) fn page(report: &Report) -> String {
    let mut body = String::new();
    for section in &report.sections {
        body += &self::section(section);
    }
    let links = report.sections.iter().map(|section| {
        let name = escaped(&section.name);
        format!("<a href=\"#{name}\">{name}</a>")
    });
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>hv bench, {date}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>What things cost under hv</h1>\n{facts}{warnings}</header>\n\
         <nav>{links}</nav>\n{aims}<section>\n<h2>How to read the plots</h2>\n{LEGEND}</section>\n{body}</body>\n</html>\n",
        date = escaped(&report.date),
        facts = facts(report),
        warnings = warnings(report),
        links = links.collect::<Vec<_>>().join(" "),
        aims = aims(report),
    )
}

/// On what it was measured.
fn facts(report: &Report) -> String {
    let machine = &report.machine;
    let virtualised = match &machine.virtualised_by {
        Some(by) => format!("by {by}: the machine is itself a virtual one"),
        None => "no".into(),
    };
    let options = if report.options.is_empty() { "none".into() } else { report.options.join(" ") };
    let took = Duration::try_from_secs_f64(report.seconds).unwrap_or_default();
    let rows = [
        ("hv", report.hv.clone()),
        ("Measured", format!("{}, in {}", report.date, show_span(took))),
        ("Processor", format!("{}, {} cores", machine.processor, machine.cores)),
        ("Memory", show_size(machine.memory_bytes)),
        ("Kernel", machine.kernel.clone()),
        ("Virtualised", virtualised),
        ("Options", options),
        ("Load before", report.load.map_or_else(|| "not known".into(), number)),
    ];
    let mut html = String::from("<dl>\n");
    for (name, value) in rows {
        writeln!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(&value)).expect("a string takes it");
    }
    html + "</dl>\n"
}

/// What a reader must not miss.
fn warnings(report: &Report) -> String {
    let mut html = String::new();
    if !report.complete {
        html += "<p class=\"warning\">Incomplete: the run was ended before it was done.</p>\n";
    }
    let (noisy, all) = (report.figures().filter(|row| row.noisy).count(), report.figures().count());
    if noisy > 0 {
        let class = if noisy * 4 > all { "warning" } else { "note" };
        writeln!(
            html,
            "<p class=\"{class}\">{noisy} of {all} figures are noisy: something else was running.</p>"
        )
        .expect("a string takes it");
    }
    for section in report.sections.iter().filter(|section| !section.errors.is_empty()) {
        let name = escaped(&section.name);
        writeln!(
            html,
            "<p class=\"warning\"><a href=\"#{name}\">{name}</a>: not all of it could be measured.</p>"
        )
        .expect("a string takes it");
    }
    html
}

/// How many aims are met, and which are not.
fn aims(report: &Report) -> String {
    let count = |met: bool| report.figures().filter(|row| row.met == Some(met)).count();
    let missed: String = report.sections.iter().map(missed).collect();
    let mut html = format!(
        "<section>\n<h2>Aims</h2>\n<p>{} met, {} missed: an aim is the most that a figure should be.</p>\n",
        count(true),
        count(false)
    );
    if !missed.is_empty() {
        writeln!(
            html,
            "<table>\n<caption>Missed</caption>\n<tr><th>figure</th><th>{}</th><th>{}</th></tr>\n{missed}</table>",
            Phase::Spare,
            Phase::Pinned
        )
        .expect("a string takes it");
    }
    html + "</section>\n"
}

/// The figures of a section that miss an aim in one phase or in both.
fn missed(section: &Section) -> String {
    let mut titles: Vec<String> = Vec::new();
    for title in section.figures.iter().filter(|row| row.met == Some(false)).map(Figure::title) {
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    let rows = titles.into_iter().map(|title| {
        let cells = Phase::ALL.map(|phase| {
            let row = section.figures.iter().find(|row| row.phase == phase && row.title() == title);
            row.map(verdict).unwrap_or_default()
        });
        let cells = cells.map(|cell| format!("<td>{cell}</td>")).concat();
        format!("<tr><td><a href=\"#{}\">{}</a></td>{cells}</tr>\n", escaped(&section.name), escaped(&title))
    });
    rows.collect()
}

fn section(section: &Section) -> String {
    let mut html =
        format!("<section id=\"{}\">\n<h2>{}</h2>\n", escaped(&section.name), escaped(&section.title));
    for note in &section.notes {
        writeln!(html, "<p class=\"note\">{}</p>", escaped(note)).expect("a string takes it");
    }
    for error in &section.errors {
        writeln!(html, "<pre class=\"warning\">Not measured {}</pre>", escaped(error))
            .expect("a string takes it");
    }
    html += "<div class=\"panels\">\n";
    for phase in Phase::ALL {
        let rows: Vec<_> = section.figures.iter().filter(|row| row.phase == phase).collect();
        if !rows.is_empty() {
            writeln!(html, "<div class=\"panel\">\n<h3>{phase}</h3>\n{}</div>", panel(&rows))
                .expect("a string takes it");
        }
    }
    html + "</div>\n</section>\n"
}

/// Text as it stands in HTML, also in an attribute.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
