//! How a guest's end is told: to people, and as JSON.
//!
//! A guest that shut itself down has said what it had to say, so nothing is added. Every other end is told with
//! what happened, where, and what to do next where there is something to do.

use crate::console::Sink;
use crate::exit_code::Cause;
use crate::output::Style;
use crate::units;
use hv_core::backtrace::StackFrame;
use hv_core::cpu_share::Measured;
use hv_core::engine::Registers;
use hv_core::{End, Report};
use serde::Serialize;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

/// An end, with what is needed to tell it.
pub(crate) struct Told {
    /// What `hv-core` says.
    pub(crate) report: Report,
    /// Why the command ends.
    pub(crate) cause: Cause,
    /// What `--timeout` said.
    pub(crate) timeout: Option<Duration>,
}

/// What became of the core of a guest that crashed.
#[derive(Serialize)]
pub(crate) struct Core {
    pub(crate) file: String,
    /// What the host spends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Told {
    /// The command's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match (self.cause, &self.report.end) {
            (Cause::Shutdown, End::Shutdown { code }) => *code,
            (cause, _) => cause.code(),
        }
    }

    /// One line of JSON.
    pub(crate) fn json(&self, core: Option<&Core>) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            exit_code: u8,
            cause: Cause,
            #[serde(flatten)]
            report: &'a Report,
            #[serde(skip_serializing_if = "Option::is_none")]
            core: Option<&'a Core>,
        }
        let line = Line { exit_code: self.exit_code(), cause: self.cause, report: &self.report, core };
        let line = serde_json::to_string(&line).expect("a report holds nothing that JSON cannot say");
        format!("{line}\n")
    }

    /// For people; empty if there is nothing to add to what the guest said.
    pub(crate) fn text(&self, style: &Style, sink: &Sink) -> String {
        let mut text = self.fresh_line(style, sink);
        if matches!(self.cause, Cause::Shutdown | Cause::ReaderGone) {
            let cpu = self.report.cpu.as_ref().map(cpu_share);
            return cpu.map_or_else(String::new, |cpu| text + &cpu);
        }
        let headline = printable(&self.headline());
        let (what, rest) = headline.split_once(": ").unwrap_or((&headline, ""));
        let colon = if rest.is_empty() { "" } else { ": " };
        line(&mut text, format_args!("{}{colon}{rest}", style.red(what)));
        if self.cause == Cause::Crash {
            let title = format!("registers of vCPU {}:", self.report.vcpu);
            line(&mut text, format_args!("\n{}\n{}", style.bold(&title), registers(&self.report.registers)));
        }
        if !self.report.backtrace.is_empty() {
            let title = style.bold("backtrace, innermost first:");
            line(&mut text, format_args!("\n{title}\n{}", backtrace(&self.report.backtrace)));
        }
        if let Some(advice) = self.advice() {
            line(&mut text, format_args!("\n{advice}"));
        }
        if let Some(cpu) = &self.report.cpu {
            line(&mut text, format_args!("\n{}", cpu_share(cpu)));
        }
        text
    }

    /// Ends what the guest, or the terminal's echo of Ctrl-C, left unfinished before this text.
    fn fresh_line(&self, style: &Style, sink: &Sink) -> String {
        let reset = if style.coloured() { "\x1b[0m" } else { "" };
        let echo = self.cause == Cause::Interrupt && std::io::stderr().is_terminal();
        let newline = if echo || sink.is_mid_line() && same_file() { "\n" } else { "" };
        format!("{reset}{newline}")
    }

    fn headline(&self) -> String {
        let reason = match self.cause {
            Cause::TimeOut => {
                let limit = units::show_duration(self.timeout.unwrap_or_default());
                return format!(
                    "time-out: the guest ran longer than {limit} and was stopped{}",
                    self.place()
                );
            }
            Cause::Interrupt => "Ctrl-C",
            Cause::HangUp => "SIGHUP",
            Cause::Terminated => "SIGTERM",
            Cause::Stopped => "`hv stop`",
            Cause::Killed => "gdb's `kill`",
            _ => return self.report.end.to_string(),
        };
        format!("stopped by {reason}{}", self.place())
    }

    /// In a hypercall, RIP is not the guest's.
    fn place(&self) -> &'static str {
        if self.report.registers.rip == 0 { " in a hypercall" } else { "" }
    }

    fn advice(&self) -> Option<&'static str> {
        match self.cause {
            Cause::TimeOut => Some("If it needs longer, say so with --timeout."),
            Cause::Unanswered => Some(
                "Either the guest hides from the engine, for example by a hypercall with a wrong GS base, or the host \
                 is overloaded.\nRUST_LOG=hv_core=debug shows what hv did.",
            ),
            Cause::Died => Some(
                "`hv doctor` checks the host. After SIGKILL or SIGBUS, see whether its kernel's log (dmesg) tells of a \
                 shortage of memory.",
            ),
            Cause::Panic | Cause::Crash => self.how_to_see_more(),
            _ => None,
        }
    }

    /// What a backtrace without names or lines lacks.
    fn how_to_see_more(&self) -> Option<&'static str> {
        let frames = &self.report.backtrace;
        if frames.iter().any(|frame| frame.line.is_some()) {
            None
        } else if frames.is_empty() {
            Some("For a backtrace, build the guest with -Cforce-frame-pointers=yes.")
        } else {
            Some(
                "For file names and lines, build the guest with `debug = \"line-tables-only\"` in its profile.",
            )
        }
    }
}

/// What a cap or a weight came to.
fn cpu_share(cpu: &Measured) -> String {
    let time = |ns| units::show_duration(Duration::from_nanos(ns));
    let mut text = format!(
        "processor time: {} in {}, {:.1} % of one processor",
        time(cpu.cpu_ns),
        time(cpu.wall_ns),
        cpu.percent
    );
    if let Some(cap) = cpu.cap {
        write!(text, "; cap {cap} %").expect("a string takes it");
    }
    if let Some(weight) = cpu.weight {
        let others = match cpu.peers {
            0 => "no other VM with a weight".into(),
            n => format!("up to {n} other VMs with a weight"),
        };
        write!(text, "; weight {weight}, {others}").expect("a string takes it");
    }
    writeln!(text, "; held back {} times, {} in all", cpu.pauses, time(cpu.held_back_ns))
        .expect("a string takes it");
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{}", line.to_string().trim_end()).expect("a string takes it");
}

/// Standard output and standard error go to the same place.
fn same_file() -> bool {
    let id = |fd| rustix::fs::fstat(fd).map(|file| (file.st_dev, file.st_ino)).ok();
    id(rustix::stdio::stdout()) == id(rustix::stdio::stderr())
}

/// Four columns, each as wide as its widest value.
fn registers(registers: &Registers) -> String {
    let r = registers;
    let rows = [
        [("rip", r.rip), ("rsp", r.rsp), ("rbp", r.rbp), ("rflags", r.rflags)],
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9)],
        [("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
        [("r14", r.r14), ("r15", r.r15), ("", 0), ("", 0)],
    ];
    let cell = |(name, value): (&str, u64), pad: usize| match name {
        "" => String::new(),
        _ => format!("{name:<pad$} {value:#x}"),
    };
    let cells = rows.map(|row| [cell(row[0], 3), cell(row[1], 3), cell(row[2], 3), cell(row[3], 6)]);
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for [a, b, c, d] in cells {
        let row = format!("  {a:<0$}  {b:<1$}  {c:<2$}  {d}", widths[0], widths[1], widths[2]);
        line(&mut text, format_args!("{row}"));
    }
    text
}

/// What a guest says, and the names in its image, are the guest's: control characters could forge lines of hv's, or
/// play tricks on a terminal.
pub(crate) fn printable(text: &str) -> String {
    let safe = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(safe).collect()
}

/// A path of the standard library's, without where its builder kept it.
fn shorten(frame: &str) -> String {
    match (frame.find("/rustc/"), frame.find("/library/")) {
        (Some(start), Some(end)) if start < end => format!("{}{}", &frame[..start], &frame[end + 1..]),
        _ => frame.to_owned(),
    }
}

/// One line a frame. Recursion repeats the same frame: it is shown once, with how often.
fn backtrace(frames: &[StackFrame]) -> String {
    let mut text = String::new();
    let mut number = 0;
    for same in frames.chunk_by(|a, b| a == b) {
        line(&mut text, format_args!("  {number:>2}: {}", printable(&shorten(&same[0].to_string()))));
        if same.len() > 1 {
            line(&mut text, format_args!("      the same, {} more times", same.len() - 1));
        }
        number += same.len();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_stand_in_four_columns() {
        let text = registers(&Registers { rip: 0x20_0000, rax: u64::MAX, r15: 1, ..Registers::default() });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], "  rip 0x200000            rsp 0x0  rbp 0x0  rflags 0x0");
        assert_eq!(lines[1], "  rax 0xffffffffffffffff  rbx 0x0  rcx 0x0  rdx    0x0");
        assert_eq!(lines[4], "  r14 0x0                 r15 0x1");
    }

    #[test]
    fn a_guests_words_cannot_play_tricks() {
        assert_eq!(printable("a\x1b[2Jb\rc\nd"), "a\u{fffd}[2Jb\u{fffd}c\nd");
    }

    #[test]
    fn recursion_is_shown_once() {
        let frame = |address| StackFrame { address, function: None, file: None, line: None };
        let text = backtrace(&[frame(1), frame(2), frame(2), frame(2), frame(3)]);
        assert_eq!(
            text,
            "   0: 0x0000000001 ?\n   1: 0x0000000002 ?\n      the same, 2 more times\n   4: 0x0000000003 ?\n"
        );
    }
}
