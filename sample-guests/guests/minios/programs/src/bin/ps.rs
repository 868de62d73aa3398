//! `ps`: lists the threads of all processes. The first one of a process has its number.

#![no_std]
#![no_main]

use core::fmt::Write;
use os::io::Output;
use os::process::{self, state};

os::entry!(main);

fn main() -> i32 {
    let mut output = Output::new();
    // Output takes all, here and below.
    let _ = writeln!(
        output,
        "{:>5} {:>7} {:>6} {:<7} {:>4} {:>7} {:>9}  PROGRAM",
        "ID", "PROCESS", "PARENT", "STATE", "VCPU", "KIB", "RUN MS"
    );
    for info in process::threads() {
        let state = match info.state {
            state::READY => "ready",
            state::WAITING => "waiting",
            state::RUNNING => "running",
            _ => "ended",
        };
        let (thread, process, parent, vcpu) = (info.thread, info.process, info.parent, info.vcpu);
        let (kib, run, name) = (info.pages * 4, info.run_nanoseconds / 1_000_000, info.name.as_str());
        let _ =
            writeln!(output, "{thread:5} {process:7} {parent:6} {state:<7} {vcpu:4} {kib:7} {run:9}  {name}");
    }
    0
}
