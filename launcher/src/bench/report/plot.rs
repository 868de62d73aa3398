//! Rows of one phase as plots: a lane for each row, with a mark at its median, a line from the least to the most, and its aim. Rows
//! that are compared with each other stand below each other, on the same scale.
//!
//! All lengths along a lane are percentages, so that a lane fits a screen of any width.

use crate::bench::figure::{Aim, Figure};
use crate::bench::report::axis::{self, Axis, Dimension};
use crate::bench::report::html::escaped;
use crate::bench::table::{number, unit};
use std::fmt::Write;

/// How high a lane is, and where its middle is.
const HEIGHT: u32 = 24;
const MIDDLE: u32 = 12;

/// All rows of a phase.
pub(super) fn panel(figures: &[&Figure]) -> String {
    let mut dimensions: Vec<Dimension> = Vec::new();
    for dimension in figures.iter().map(|figure| Dimension::of(figure)) {
        if !dimensions.contains(&dimension) {
            dimensions.push(dimension);
        }
    }
    let plots = dimensions.into_iter().map(|dimension| {
        let rows: Vec<_> =
            figures.iter().copied().filter(|figure| Dimension::of(figure) == dimension).collect();
        plot(dimension, &rows)
    });
    plots.collect()
}

/// Rows on one scale.
fn plot(dimension: Dimension, figures: &[&Figure]) -> String {
    let groups = groups(figures);
    let values = groups.iter().flat_map(|group| {
        let medians = group.rows.iter().map(|row| axis::value(row, row.median));
        medians.chain(group.rows.iter().filter_map(|row| axis::aim(row, group.host)))
    });
    let axis = Axis::new(dimension, values);
    let mut html = String::from("<div class=\"plot\">\n");
    scale(&mut html, &axis);
    for group in &groups {
        html += "<div class=\"group\">\n";
        if let Some(title) = group.title {
            write!(html, "<h4>{}</h4>", escaped(title)).expect("a string takes it");
        }
        group.rows.iter().for_each(|row| lane(&mut html, &axis, row, group));
        html += "</div>\n";
    }
    html + "</div>\n"
}

/// Rows that are compared with each other.
struct Group<'a> {
    /// What they are all about, where their names do not say it.
    title: Option<&'a str>,
    host: Option<&'a Figure>,
    rows: Vec<&'a Figure>,
}

/// Rows by what they are compared with, in the order in which these come first.
fn groups<'a>(figures: &[&'a Figure]) -> Vec<Group<'a>> {
    let key = |figure: &'a Figure| match &figure.peer {
        Some(_) => &*figure.name,
        None => figure.compared_with.as_deref().unwrap_or(&figure.name),
    };
    let mut keys: Vec<&str> = Vec::new();
    for figure in figures {
        if !keys.contains(&key(figure)) {
            keys.push(key(figure));
        }
    }
    let group = |name: &'a str| {
        let mut rows: Vec<_> = figures.iter().copied().filter(|figure| key(figure) == name).collect();
        // There may be one row of that name without a comparison: the one with which the others are compared.
        rows.sort_by_key(|row| row.compared_with.is_some());
        let compared = rows.iter().any(|row| row.compared_with.is_some());
        let host = rows.iter().copied().find(|row| compared && row.compared_with.is_none());
        Group { title: rows.iter().find_map(|row| row.peer.as_ref()).map(|_| name), host, rows }
    };
    keys.into_iter().map(group).collect()
}

/// The scale above the lanes.
fn scale(html: &mut String, axis: &Axis) {
    let mut labels = String::new();
    for (at, label) in axis.ticks() {
        let anchor = match at {
            ..5.0 => "start",
            95.0.. => "end",
            _ => "middle",
        };
        let Some(label) = label else { continue };
        let label = escaped(&label);
        write!(labels, "<text x=\"{at:.2}%\" y=\"13\" text-anchor=\"{anchor}\">{label}</text>")
            .expect("a string takes it");
    }
    writeln!(
        html,
        "<div class=\"lane scale\"><span></span><svg height=\"18\" aria-hidden=\"true\">{labels}</svg><span></span></div>"
    )
    .expect("a string takes it");
}

fn lane(html: &mut String, axis: &Axis, row: &Figure, group: &Group<'_>) {
    let is_host = match row.peer.as_deref() {
        Some(peer) => peer == "host",
        None => group.host.is_some_and(|host| std::ptr::eq(host, row)) || row.name.starts_with("host: "),
    };
    let class = match row.peer.as_deref() {
        _ if is_host => "host",
        _ if row.met == Some(false) => "missed",
        Some(peer) if peer != "hv" => "peer",
        _ => "ours",
    };
    let name = escaped(row.peer.as_deref().unwrap_or(&row.name));
    writeln!(
        html,
        "<div class=\"lane {class}\"><span class=\"name\">{name}</span>{}<span class=\"value\">{}</span></div>",
        marks(axis, row, group.host),
        verdict(row),
    )
    .expect("a string takes it");
}

/// The lane itself.
fn marks(axis: &Axis, row: &Figure, host: Option<&Figure>) -> String {
    let position = |value: f64| axis.position(axis::value(row, value));
    let [(median, _), (least, least_inside), (most, most_inside)] =
        [row.median, row.min, row.max].map(position);
    let mut shapes = String::new();
    for (at, _) in axis.ticks() {
        upright(&mut shapes, "grid", at, 0, HEIGHT);
    }
    if let Some(host) = host {
        let (at, _) = axis.position(axis::value(host, host.median));
        upright(&mut shapes, "reference", at, 0, HEIGHT);
        level(&mut shapes, "gap", at, median);
    }
    level(&mut shapes, "range", least, most);
    for (at, inside, beyond, anchor) in [(least, least_inside, "‹", "start"), (most, most_inside, "›", "end")]
    {
        if inside {
            upright(&mut shapes, "range", at, MIDDLE - 4, MIDDLE + 4);
        } else {
            write!(
                shapes,
                "<text class=\"beyond\" x=\"{at:.2}%\" y=\"{}\" text-anchor=\"{anchor}\">{beyond}</text>",
                MIDDLE + 5
            )
            .expect("a string takes it");
        }
    }
    if let Some(aim) = axis::aim(row, host) {
        upright(&mut shapes, "aim", axis.position(aim).0, 2, HEIGHT - 2);
    }
    let noisy = if row.noisy { " noisy" } else { "" };
    write!(shapes, "<circle class=\"median{noisy}\" cx=\"{median:.2}%\" cy=\"{MIDDLE}\" r=\"5\"/>")
        .expect("a string takes it");
    let label =
        format!("{}, from {} to {}", shown(row, row.median), shown(row, row.min), shown(row, row.max));
    let label = escaped(&label);
    format!(
        "<svg height=\"{HEIGHT}\" role=\"img\" aria-label=\"{label}\"><title>{label}, {} samples</title>{shapes}</svg>",
        row.samples
    )
}

fn upright(shapes: &mut String, class: &str, at: f64, top: u32, bottom: u32) {
    write!(shapes, "<line class=\"{class}\" x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=\"{top}\" y2=\"{bottom}\"/>")
        .expect("a string takes it");
}

fn level(shapes: &mut String, class: &str, from: f64, to: f64) {
    write!(
        shapes,
        "<line class=\"{class}\" x1=\"{from:.2}%\" x2=\"{to:.2}%\" y1=\"{MIDDLE}\" y2=\"{MIDDLE}\"/>"
    )
    .expect("a string takes it");
}

/// The median, how many times the host's that is, and what there is to say of it.
pub(super) fn verdict(row: &Figure) -> String {
    let mut words = format!("<b>{}</b>", escaped(&shown(row, row.median)));
    if let Some(ratio) = row.ratio {
        words += &format!(" <span class=\"ratio\">{}×</span>", number(ratio));
    }
    if let Some(aim) = row.aim {
        let aim = escaped(&shown_aim(row, aim));
        words += &match row.met {
            Some(false) => format!(" <strong>missed: {aim}</strong>"),
            Some(true) => format!(" <span class=\"met\">met: {aim}</span>"),
            None => format!(" <span>aim: {aim}</span>"),
        };
    }
    if row.noisy {
        words += " <em>~ noisy</em>";
    }
    words
}

/// A row's value in a unit that suits the row.
pub(super) fn shown(row: &Figure, value: f64) -> String {
    let (unit, parts) = unit(&row.unit, row.median);
    let unit = if unit == "us" { "µs" } else { unit };
    format!("{} {unit}", number(value / parts)).trim_end().to_owned()
}

/// The most that a row should be.
pub(super) fn shown_aim(row: &Figure, aim: Aim) -> String {
    match aim {
        Aim::Ratio(most) => format!("{}×", number(most)),
        Aim::Median(most) => shown(row, most),
    }
}
