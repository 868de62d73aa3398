//! `hv bench all` and `hv bench report`: what is written and when, whatever the figures are.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

/// `hv bench`, with signals as a terminal has them, whose temporary files are in that directory.
fn bench(temporary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_hv"), "bench"]);
    command.args(arguments).env("TMPDIR", temporary).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("it is written")).expect("JSON")
}

/// A report as another program writes one.
fn peers() -> Value {
    let row = |peer: &str, ns: f64| {
        json!({
            "name": "null system call", "peer": peer, "unit": "ns", "phase": "pinned", "median": ns, "min": ns, "max": ns,
            "samples": 1, "noisy": false, "compared_with": null, "ratio": null, "aim": null, "met": null,
        })
    };
    json!({
        "schema": 1, "hv": "0.1.0", "date": "2026-11-21T18:04:05Z", "options": [], "seconds": 1.0, "complete": true,
        "machine": {
            "processor": "Example", "cores": 1, "memory_bytes": 1, "kernel": "Linux", "virtualised_by": null,
        },
        "sections": [{ "name": "peers", "title": "Others", "figures": [row("host", 100.0), row("other", 900.0)] }],
    })
}

#[test]
fn a_report_has_the_suites_and_what_is_added_and_is_drawn_again_as_it_was() {
    let (temporary, output) = (directory(), directory());
    let added = output.path().join("peers.json");
    fs::write(&added, peers().to_string()).expect("it can be written");
    let results = output.path().join("new");
    let arguments =
        ["all", "--quick", "--only", "mmu", "--add", text(&added), "--output", text(&results), "--json"];
    let done = bench(temporary.path(), &arguments).output().expect("hv can be started");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{told}");
    assert!(told.contains("mmu, pinned to one core\n") && !told.contains('\x1b'), "{told}");

    let written = results.join("report.json");
    let report = read_json(&written);
    let printed: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(report, printed);
    assert_eq!((&report["schema"], &report["complete"]), (&json!(1), &json!(true)));
    let names = [0, 1].map(|section: usize| report["sections"][section]["name"].clone());
    assert_eq!(names, ["mmu", "peers"]);
    let figures = report["sections"][0]["figures"].as_array().expect("rows");
    assert!(figures.iter().any(|row| row["name"] == "one demand fault, alone"), "{figures:?}");

    let page = fs::read_to_string(results.join("report.html")).expect("it is written");
    assert!(page.contains(">one demand fault, alone<") && page.contains(">null system call<"), "{page}");
    let again = output.path().join("again.html");
    let arguments = ["report", text(&written), "--output", text(&again)];
    let done = bench(temporary.path(), &arguments).output().expect("hv can be started");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read_to_string(&again).expect("it is written"), page);

    let arguments = ["report", text(&written), "--markdown"];
    let done = bench(temporary.path(), &arguments).output().expect("hv can be started");
    assert!(String::from_utf8_lossy(&done.stdout).contains("| null system call, other |  |  | 900 ns |"));
    assert_eq!(fs::read_dir(temporary.path()).expect("it is there").count(), 0, "files are left behind");
}

#[test]
fn ctrl_c_keeps_the_report_ends_the_children_and_clears_up() {
    let (temporary, output) = (directory(), directory());
    let arguments = ["all", "--only", "density", "--output", text(output.path())];
    let mut command = bench(temporary.path(), &arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hv can be started");
    let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("it says what it does");
    assert!(line.starts_with("density, "), "{line}");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("it runs");
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("text");
    assert_eq!(child.wait().expect("it is a child").code(), Some(130), "{rest}");

    let report = read_json(&output.path().join("report.json"));
    assert_eq!(report["complete"], false);
    let errors = report["sections"][0]["errors"].to_string();
    assert!(errors.contains("interrupted"), "{errors}");
    let page = fs::read_to_string(output.path().join("report.html")).expect("it is written");
    assert!(page.contains("Incomplete"), "{page}");
    assert_eq!(fs::read_dir(temporary.path()).expect("it is there").count(), 0, "files are left behind");
}

#[test]
fn what_is_no_report_is_told_before_anything_is_measured() {
    let (temporary, output) = (directory(), directory());
    let other = output.path().join("other.json");
    fs::write(&other, "{\"schema\": 99}").expect("it can be written");
    let page = output.path().join("x.html");
    for arguments in [
        ["all", "--add", text(&other), "--output", text(output.path())],
        ["report", text(&other), "--output", text(&page), "--add=x"],
    ] {
        let done = bench(temporary.path(), &arguments[..]).output().expect("hv can be started");
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), &*done.stdout), (Some(125), &b""[..]), "{told}");
        assert!(told.contains("other.json` is no report: its format has number 99"), "{told}");
    }
    let missing = bench(temporary.path(), &["report", "/nonexistent"]).output().expect("hv can be started");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("`/nonexistent` cannot be read"));
    assert_eq!(fs::read_dir(output.path()).expect("it is there").count(), 1, "something was written");
}
