//! Rows as a picture: an SVG file that stands by itself, for light and dark backgrounds, without scripts.
//!
//! Each thing that was measured is two bars on a scale of their own, which begins at 0; a line through a bar's end goes from the
//! least sample to the largest, or to the edge: one that is far out would leave no room for the bars.

use crate::bench::figure::Figure;
use crate::demo::row::{Row, Verdict};
use crate::demo::table::values;
use std::fmt::Write;

const WIDTH: u32 = 900;
const MARGIN: u32 = 24;
/// Where bars begin, how long the longest is, and where lines end at the latest.
const BARS: u32 = 380;
const LONGEST: f64 = 200.0;
const EDGE: f64 = 250.0;
const BAR: u32 = 16;
/// How high the title, a pair's heading, and a row are.
const TITLE: u32 = 64;
const HEADING: u32 = 52;
const ROW: u32 = 58;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1c2330}\
.title{font-size:20px;font-weight:600}.pair{font-size:15px;font-weight:600}\
.dim{fill:#5b6472}.gain{fill:#0a6b45;font-weight:600}.loss{fill:#b3261e;font-weight:600}\
.back{fill:#fff}.alone{fill:#c8553d}.told{fill:#2a7f9e}\
.range{stroke:#1c2330;stroke-width:1.5}.rule{stroke:#d5dae1}\
@media(prefers-color-scheme:dark){\
text{fill:#e6e9ee}.dim{fill:#9aa4b2}.gain{fill:#5fd3a0}.loss{fill:#ff8a80}\
.back{fill:#14181f}.alone{fill:#e07a5f}.told{fill:#4fb3d4}.range{stroke:#e6e9ee}.rule{stroke:#333b47}}";

/// The picture of all rows.
pub(super) fn svg(rows: &[Row]) -> String {
    let mut shapes = String::new();
    let mut y = TITLE;
    for rows in rows.chunk_by(|one, other| one.pair == other.pair) {
        heading(&mut shapes, y, &rows[0]);
        y += HEADING;
        for row in rows {
            measured(&mut shapes, y, row);
            y += ROW;
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-labelledby=\"title\">\n\
         <title id=\"title\">What a guest gains by telling the host what it knows</title>\n\
         <style>{STYLE}</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"36\">What a guest gains by telling the host what it knows</text>\n\
         <text class=\"dim\" x=\"{MARGIN}\" y=\"56\">Medians. Lines go from the least to the most, or to the edge. Each pair of bars \
         has a scale of its own.</text>\n\
         {shapes}</svg>\n"
    )
}

/// A pair's name and what it is about.
fn heading(shapes: &mut String, y: u32, row: &Row) {
    let Row { about, gap, .. } = row;
    let end = WIDTH - MARGIN;
    writeln!(shapes, "<path class=\"rule\" d=\"M{MARGIN} {}H{end}\"/>", y + 8).expect("a string takes it");
    text(shapes, "pair", [MARGIN, y + 30], about);
    text(shapes, "dim", [MARGIN, y + 48], gap);
}

/// What was measured, a bar for each way, and the verdict.
fn measured(shapes: &mut String, y: u32, row: &Row) {
    text(shapes, "", [MARGIN, y + 24], row.measured);
    let class = match row.verdict {
        Verdict::Gain => "gain",
        Verdict::NoGain => "dim",
        Verdict::Loss => "loss",
    };
    text(shapes, class, [MARGIN, y + 43], &row.verdict());
    let most = row.alone.median.max(row.told.median);
    bar(shapes, "alone", y + 11, &row.alone, most);
    bar(shapes, "told", y + 31, &row.told, most);
}

/// A bar with its way before it and its value behind it.
fn bar(shapes: &mut String, class: &str, y: u32, figure: &Figure, most: f64) {
    let length = |value: f64| if most > 0.0 { (value / most * LONGEST).min(EDGE) } else { 0.0 };
    let [median, min, max] = [figure.median, figure.min, figure.max].map(length);
    let (at, middle, base) = (f64::from(BARS), y + BAR / 2, y + 13);
    writeln!(
        shapes,
        "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\n\
         <rect class=\"{class}\" x=\"{BARS}\" y=\"{y}\" width=\"{median:.1}\" height=\"{BAR}\"/>\n\
         <path class=\"range\" d=\"M{:.1} {middle}H{:.1}\"/>",
        BARS - 8,
        escaped(&figure.name),
        at + min,
        at + max,
    )
    .expect("a string takes it");
    let (value, range) = values(figure);
    let behind = (at + max) as u32 + 8;
    writeln!(
        shapes,
        "<text x=\"{behind}\" y=\"{base}\">{} <tspan class=\"dim\">{}</tspan></text>",
        escaped(&value),
        escaped(&range)
    )
    .expect("a string takes it");
}

fn text(shapes: &mut String, class: &str, [x, y]: [u32; 2], text: &str) {
    writeln!(shapes, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(text))
        .expect("a string takes it");
}

/// Text as it stands in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
