//! The benchmark program `lat`: its two builds, for the host and for minios, measure the same.

mod common;

use common::*;
use hv_core::End;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// The rows of a run, sorted, each with a sample that is a number.
fn rows(text: &str) -> Vec<String> {
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let samples = row["samples"].as_array().unwrap();
        assert!(samples.len() == 1 && samples[0] == row["median"], "{line}");
        assert!(row["median"].is_number() && row["unit"] == "ns", "{line}");
        row["row"].as_str().unwrap().to_owned()
    };
    let mut rows: Vec<String> = text.lines().map(row).collect();
    rows.sort();
    rows
}

#[test]
fn minios_gives_every_row_that_the_host_gives() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("lat");
    std::fs::write(&program, sample_guests::HOST_LAT).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let host = Command::new(&program).args(["rows", "1", "1"]).arg(&program).output().unwrap();
    assert!(host.status.success(), "{}", String::from_utf8_lossy(&host.stderr));
    let host = rows(&String::from_utf8(host.stdout).unwrap());

    let (report, minios) = run("minios", &["-c", "lat rows 1 1 words"]);

    assert_eq!(report.end, End::Shutdown { code: 0 }, "{minios}");
    assert_eq!(rows(&minios), host);
    assert_eq!(host.len(), 14);
}
