//! `hv bench`: every row of a suite is there, and is a number that can be. How large it is, no test says.

use serde_json::Value;
use std::process::{Command, Stdio};

/// The rows of a suite in its quick form.
fn rows(suite: &str) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hv"));
    command.args(["bench", suite, "--quick", "--json"]).env_remove("RUST_LOG").stdin(Stdio::null());
    let output = command.output().expect("hv can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Checks that a suite has these rows and no others, in each phase that there can be here.
#[track_caller]
fn assert_rows(suite: &str, names: &[&str]) {
    let rows = rows(suite);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let phases = if cores > 1 { &["spare", "pinned"][..] } else { &["pinned"] };
    for phase in phases {
        let rows: Vec<_> = rows.iter().filter(|row| row["phase"] == *phase).collect();
        let found: Vec<_> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
        assert_eq!(found, names, "{phase}");
        for row in &rows {
            let [least, median, most] = ["min", "median", "max"].map(|key| row[key].as_f64().expect(key));
            assert!(0.0 <= least && least <= median && median <= most && most.is_finite(), "{row}");
            // What is the difference of two others may be lost between them.
            let difference = row["name"].as_str().is_some_and(|name| name.ends_with("lat_ctx"));
            // A process that waits takes no time.
            let idle = row["unit"] == "%";
            assert!(0.0 < least || difference || idle, "{row}");
            assert!(row["met"].is_null() || !row["aim"].is_null(), "{row}");
            if let Some(other) = row["compared_with"].as_str() {
                assert!(found.contains(&other), "{row}");
            }
        }
    }
    assert_eq!(rows.len(), names.len() * phases.len(), "no row is of another phase");
}

#[test]
fn all_rows_of_mmu_are_there() {
    assert_rows(
        "mmu",
        &[
            "host: mprotect of a page",
            "entry, MMU_UPDATE of 1, not entered",
            "entry, MMU_UPDATE of 8, not entered",
            "entry, MMU_UPDATE of 64, not entered",
            "entry, MMU_UPDATE of 512, not entered",
            "entry, MMU_UPDATE of 64, eager, not entered",
            "entry, MMU_UPDATE of 1, in use",
            "entry, MMU_UPDATE of 8, in use",
            "entry, MMU_UPDATE of 64, in use",
            "entry, MMU_UPDATE of 512, in use",
            "entry, MMU_UPDATE of 64, eager, in use",
            "host: touch of fresh memory, a page",
            "host: the same, of a memfd",
            "touch of fresh memory, a page",
            "the same, never used before",
            "host: lat_pagefault, a page of a memfd",
            "one demand fault, alone",
            "host: lat_protfault and mprotect, a page",
            "protect, fault, give back, a page",
            "host: lat_mmap, 64 KiB of a memfd",
            "map, touch and unmap 64 KiB",
            "host: clearing of a page",
            "zeroed page, known to be zero",
            "the same, cleared nevertheless",
            "zeroed page, used before and cleared",
            "host: hole of 64 MiB in a memfd, a page",
            "PAGES_REPORT of 64 MiB, a page",
            "PAGES_CLAIM of 64 MiB, a page",
            "touch of a page that was claimed",
        ],
    );
}

#[test]
fn all_rows_of_process_are_there() {
    assert_rows(
        "process",
        &[
            "host: futex there and back, two processes",
            "host: signal round trip (int3)",
            "host: lat_syscall null",
            "lat_syscall null",
            "lat_syscall null, rewritten",
            "lat_syscall null, trapped",
            "host: lat_proc fork",
            "lat_proc fork",
            "host: lat_proc exec",
            "lat_proc exec",
            "host: lat_pipe",
            "lat_pipe",
            "host: lat_ctx",
            "lat_ctx",
            "host: touch of fresh memory",
            "touch of fresh memory",
        ],
    );
}

#[test]
fn a_suite_without_a_quick_form_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_hv")).args(["bench", "crossing", "--quick"]).output();
    let output = output.expect("hv can be started");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no quick form"));
}

#[test]
fn all_rows_of_density_are_there() {
    const VMS: &str = "10 idle VMs, 2 vCPUs";
    const HOST: &str = "host: 10 processes that wait";
    let rows = [
        (HOST, "start of all"),
        (VMS, "start of all"),
        (HOST, "Private_Dirty of each"),
        (VMS, "Private_Dirty of each"),
        (HOST, "CPU, % of a core"),
        (VMS, "host CPU, % of a core"),
        (HOST, "stop of all"),
        (VMS, "stop of all"),
        (VMS, "hv ps"),
    ];
    let names = rows.map(|(of, row)| format!("{of}: {row}"));
    assert_rows("density", &names.each_ref().map(String::as_str));
}
