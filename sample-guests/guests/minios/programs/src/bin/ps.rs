//! `ps`: lists the processes.

#![no_std]
#![no_main]

use core::fmt::Write;
use os::io::Output;
use os::process::{self, state};

os::entry!(main);

fn main() -> i32 {
    let mut output = Output::new();
    // Output takes all, here and below.
    let _ =
        writeln!(output, "{:>5} {:>6} {:<7} {:>7} {:>9}  PROGRAM", "ID", "PARENT", "STATE", "KIB", "RUN MS");
    for info in process::list() {
        let state = match info.state {
            state::READY => "ready",
            state::WAITING => "waiting",
            _ => "ended",
        };
        let (process, parent, kib) = (info.process, info.parent, info.pages * 4);
        let (run, name) = (info.run_nanoseconds / 1_000_000, info.name.as_str());
        let _ = writeln!(output, "{process:5} {parent:6} {state:<7} {kib:7} {run:9}  {name}");
    }
    0
}
