//! `hv demo gap`: every row is there in each form, and what can be counted is what it should be. How large a gain is, no test says.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What is measured, by pair.
const ROWS: [(&str, &str); 9] = [
    ("idle", "host CPU of the idle VM"),
    ("idle", "work of the busy VM"),
    ("zero", "cleared by the guest"),
    ("zero", "time, each page is then used"),
    ("zero", "time, one in eight is used"),
    ("free", "memory the host holds for it"),
    ("lock", "time of a critical section"),
    ("lock", "host CPU of a critical section"),
    ("tables", "time of an entry"),
];

/// `hv demo gap`, with signals as a terminal has them: a test that runs in the background of a script ignores some.
fn gap(arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_hv"), "demo", "gap"]);
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    gap(arguments).output().expect("hv can be started")
}

/// A path of this test's own, where no file is.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.svg", std::process::id()))
}

/// Checks one side of a row, and gives its least, median and most.
#[track_caller]
fn values(row: &Value, side: &str) -> [f64; 3] {
    let [least, median, most] = ["min", "median", "max"].map(|key| row[side][key].as_f64().expect(key));
    assert!(0.0 <= least && least <= median && median <= most && most.is_finite(), "{row}");
    assert_eq!(row[side]["samples"], 3, "{row}");
    [least, median, most]
}

#[test]
fn all_rows_are_there_as_json_and_in_the_chart() {
    let chart = path("gap");
    let output = run(&["--quick", "--json", "--svg", chart.to_str().expect("text")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "progress is for terminals");

    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let found: Vec<_> = rows.iter().map(|row| (text(&row["pair"]), text(&row["measured"]))).collect();
    assert_eq!(found, ROWS.map(|(pair, measured)| (pair.into(), measured.into())));
    for row in &rows {
        let [alone, told] = ["alone", "told"].map(|side| values(row, side)[1]);
        let more = row["better"] == "more";
        assert!(more || row["better"] == "less", "{row}");
        let (good, bad) = if more { (told, alone) } else { (alone, told) };
        match row["times_better"].as_f64() {
            Some(times) => assert!((times * bad - good).abs() <= 1e-9 * good, "{row}"),
            None => assert_eq!(bad, 0.0, "{row}"),
        }
        assert!(["gain", "no-gain", "loss"].contains(&&*text(&row["verdict"])), "{row}");
    }
    // Bytes are counted, not timed.
    let [cleared, held] = [&rows[2], &rows[5]];
    assert_eq!((values(cleared, "alone"), values(cleared, "told")), ([16.0; 3], [0.0; 3]));
    assert!(values(held, "alone")[0] >= 48.0 && values(held, "told")[2] < 0.01 * 64.0, "{held}");

    let svg = std::fs::read_to_string(&chart).expect("the chart is there");
    std::fs::remove_file(&chart).expect("it is ours");
    let document = roxmltree::Document::parse(&svg).expect("well-formed XML");
    assert!(document.root_element().has_tag_name(("http://www.w3.org/2000/svg", "svg")));
    assert!(!document.descendants().any(|node| node.has_tag_name("script")));
    for (_, measured) in ROWS {
        assert!(
            document.descendants().any(|node| node.is_text() && node.text() == Some(measured)),
            "{measured}"
        );
    }
    let bars =
        document.descendants().filter(|node| matches!(node.attribute("class"), Some("alone" | "told")));
    assert_eq!(bars.count(), 2 * ROWS.len());
}

#[test]
fn all_rows_are_there_as_a_table() {
    let output = run(&["--quick"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8_lossy(&output.stdout);
    for (pair, measured) in ROWS {
        assert!(
            table.contains(&format!("{pair}: ")) && table.contains(measured),
            "{pair}, {measured}:\n{table}"
        );
    }
}

#[test]
fn a_chart_that_cannot_be_written_is_told_before_anything_is_measured() {
    let output = run(&["--svg", "/nonexistent/gap.svg"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*output.stdout), (Some(125), &b""[..]), "{told}");
    assert!(told.contains("the chart `/nonexistent/gap.svg` cannot be written"), "{told}");
}

#[test]
fn ctrl_c_ends_it_and_leaves_no_chart() {
    let chart = path("interrupted");
    let mut child = gap(&["--svg", chart.to_str().expect("text")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hv can be started");
    // Signals end it as they should from the moment on when the thread is there that waits for them.
    let threads = format!("/proc/{}/task", child.id());
    let is_watch = |task: std::io::Result<std::fs::DirEntry>| {
        task.and_then(|task| std::fs::read_to_string(task.path().join("comm")))
            .is_ok_and(|name| name == "hv-watch\n")
    };
    let begun = Instant::now();
    while !std::fs::read_dir(&threads).expect("it runs").any(is_watch) {
        assert!(begun.elapsed() < Duration::from_secs(300), "it does not wait for signals");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = Pid::from_raw(child.id() as i32).expect("a child's");
    kill_process(pid, Signal::INT).expect("it runs");
    assert_eq!(child.wait().expect("it is a child").code(), Some(130));
    assert!(!chart.exists());
}
