//! Cores of guests that crash: read back, opened with gdb where there is one, and on a disk that is full.

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, elf};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The ways in which `crash` dies, and how many vCPUs it takes.
const OTHERS: [&str; 5] = ["--cpus", "3", "crash", "--", "others"];

fn hv(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hv"));
    let command = command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command.output().expect("hv can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a guest that crashes, with its core in a file.
fn crash(guest: &[&str], code: i32) -> (TempDir, PathBuf, String) {
    let directory = TempDir::new().expect("a directory");
    let core = directory.path().join("core");
    let output = hv(&[&["run", "--timeout", "60s", "--core", core.to_str().expect("text")], guest].concat());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    (directory, core, told)
}

/// The signal, and RIP, of each thread of a core.
fn threads(core: &Path) -> Vec<(i32, u64)> {
    let bytes = fs::read(core).expect("it is there");
    let file = ElfFile64::<LittleEndian>::parse(&*bytes).expect("an ELF file");
    assert_eq!(file.elf_header().e_type(LittleEndian), elf::ET_CORE);
    let headers = file.elf_program_headers();
    let notes = headers.iter().find_map(|header| header.notes(LittleEndian, &*bytes).expect("notes"));
    let mut notes = notes.expect("it has notes");
    let mut threads = Vec::new();
    while let Some(note) = notes.next().expect("a note") {
        if note.name() == b"CORE" && note.n_type(LittleEndian) == elf::NT_PRSTATUS {
            let status = note.desc();
            let signal = i32::from_le_bytes(status[..4].try_into().expect("4 bytes"));
            threads.push((signal, u64::from_le_bytes(status[240..248].try_into().expect("8 bytes"))));
        }
    }
    threads
}

#[test]
fn a_core_has_the_registers_of_all_vcpus_and_the_crashed_one_first() {
    let (_directory, core, told) = crash(&OTHERS, 101);
    assert!(told.contains("guest panic") && told.contains("has a core"), "{told}");
    let threads = threads(&core);
    assert_eq!(threads.iter().map(|thread| thread.0).collect::<Vec<_>>(), [libc::SIGABRT, 0, 0]);
    assert!(threads.iter().all(|thread| thread.1 != 0), "{threads:x?}");
}

#[test]
fn a_core_is_sparse_and_names_what_happened() {
    let (_directory, core, told) = crash(&["--memory", "1G", "--json", "crash", "page-fault"], 134);
    let report: Value = serde_json::from_str(told.lines().last().expect("a line")).expect("JSON");
    let spent = report["core"]["bytes"].as_u64().expect("a number");
    assert!(spent < 64 << 20, "{spent} bytes for a small guest");
    assert!(fs::metadata(&core).expect("it is there").len() > 1 << 30);
    assert_eq!(threads(&core).iter().map(|thread| thread.0).collect::<Vec<_>>(), [libc::SIGSEGV]);
}

#[test]
fn a_guest_that_does_not_crash_leaves_an_empty_file() {
    let (_directory, core, told) = crash(&["hello"], 0);
    assert_eq!((fs::metadata(core).expect("it is there").len(), &*told), (0, ""));
}

#[test]
fn a_core_that_cannot_be_written_is_told_beside_the_report() {
    let output = hv(&["run", "--core", "/dev/full", "crash", "divide"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(134), "{told}");
    assert!(
        told.contains("divide error") && told.contains("the core could not be written to /dev/full"),
        "{told}"
    );
    let output = hv(&["run", "--core", "/nowhere/core", "crash", "divide"]);
    let told = text(&output.stderr);
    assert!(told.contains("`/nowhere/core` cannot be written") && !told.contains("guest crash"), "{told}");
}

#[test]
fn gdb_shows_the_functions_of_the_guest_and_its_vcpus() {
    if Command::new("gdb").arg("--version").output().is_err() {
        eprintln!("skipped: there is no gdb on this host");
        return;
    }
    let (directory, core, _) = crash(&OTHERS, 101);
    let image = directory.path().join("crash");
    fs::write(&image, sample_guests::find("crash").expect("a sample guest").image).expect("it is written");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"]);
    gdb.args(["-ex", "bt", "-ex", "info threads", "-ex", "thread apply all bt", "-ex", "x/i $pc"]);
    let output = gdb.args([&image, &core]).stdin(Stdio::null()).output().expect("gdb can be started");
    let told = text(&output.stdout) + &text(&output.stderr);
    for part in [
        "SIGABRT",
        "crash::others",
        "crash::main",
        "crash::endless",
        "crash::sleeper",
        "LWP 1",
        "LWP 2",
        "LWP 3",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
}
