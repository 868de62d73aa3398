//! `hv bench crossing`: hypercalls, traps, upcalls, wake-ups, starts, and what an idle VM costs.

use crate::bench::{Figure, Phase, guest, host, host_signal, process};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

/// Runs the benchmark and prints its table, or JSON.
///
/// # Errors
///
/// What could not be measured.
pub(super) fn run(json: bool) -> Result<u8, Failure> {
    let mut figures = Vec::new();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores > 1 {
        figures.extend(phase_in_child(Phase::Spare)?);
    } else {
        eprintln!("only one core may be used here: the figures with a spare core are left out");
    }
    figures.extend(phase_in_child(Phase::Pinned)?);
    let text = if json {
        serde_json::to_string_pretty(&figures).expect("texts and numbers are JSON") + "\n"
    } else {
        table(&figures)
    };
    output::print(&text)?;
    Ok(0)
}

/// Runs one phase in a child, which shows its progress on standard error.
fn phase_in_child(phase: Phase) -> Result<Vec<Figure>, Failure> {
    let name = match phase {
        Phase::Spare => "spare",
        Phase::Pinned => "pinned",
    };
    let program = std::env::current_exe()
        .map_err(|error| Failure::cannot("this program's path is not known", error))?;
    let output = Command::new(program)
        .args(["bench", "crossing", "--phase", name])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::cannot(format!("the benchmark {phase} could not be started"), error))?;
    if !output.status.success() {
        let message = format!("the benchmark {phase} failed ({}); what it said is above", output.status);
        return Err(Failure::new(Cause::CannotStart, message));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::cannot(format!("what the benchmark {phase} measured is not readable"), error)
    })
}

/// Tells how far the benchmark is, on a terminal.
struct Progress {
    phase: Phase,
    step: u32,
}

impl Progress {
    const STEPS: u32 = 17;

    fn next(&mut self, what: &str) {
        self.step += 1;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}: {}/{} {what}", self.phase, self.step, Self::STEPS);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

/// Measures everything of one phase in this process, and prints it as JSON for the parent.
///
/// # Errors
///
/// What could not be measured.
pub(super) fn run_phase(phase: Phase) -> Result<u8, Failure> {
    if phase == Phase::Pinned {
        let mut one = rustix::thread::CpuSet::new();
        one.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &one)
            .map_err(|error| Failure::cannot("the benchmark could not be pinned to one core", error))?;
    }
    hv_core::prepare().map_err(|error| Failure::cannot("no sandbox can be started", error))?;
    let figures = measure(phase);
    output::print(&serde_json::to_string(&figures).expect("texts and numbers are JSON"))?;
    Ok(0)
}

const SAMPLES: usize = 301;

fn measure(phase: Phase) -> Vec<Figure> {
    let mut progress = Progress { phase, step: 0 };
    let mut figures = crossings(phase, &mut progress);
    figures.extend(latencies(phase, &mut progress));
    figures.extend(starts(phase, &mut progress));
    progress.next("idle VM, ten seconds");
    let [dirty, cpu] = process::idle(phase);
    figures.extend([dirty.at_most(1024.0), cpu.at_most(0.1)]);
    figures
}

/// Hypercall, clock and trap, and the spinning that the hypercalls took.
fn crossings(phase: Phase, progress: &mut Progress) -> Vec<Figure> {
    progress.next("system call");
    let system_call = host::system_call(phase);
    progress.next("futex ping-pong");
    let futex = host::futex_ping_pong(phase);
    progress.next("null hypercall");
    let (null, counters) = guest::picoseconds("null hypercall", phase, "null");
    let per_call = |ns: u64| vec![ns as f64 / counters.hypercalls as f64];
    let host_spin =
        Figure::new("spinning of the monitor per hypercall", "ns", phase, per_call(counters.host_spin_ns));
    let guest_spin =
        Figure::new("spinning of the vCPU per hypercall", "ns", phase, per_call(counters.guest_spin_ns));
    let null = match phase {
        Phase::Spare => null.against(&system_call, Some(1.0)),
        Phase::Pinned => null.against(&futex, Some(1.1)),
    };
    progress.next("clock");
    let host_clock = host::clock(phase);
    let (clock, _) = guest::picoseconds("clock read", phase, "clock");
    let clock = clock.against(&host_clock, None);
    progress.next("trap");
    let signal = host_signal::round_trip(phase);
    let (trap, _) = guest::picoseconds("trap round trip", phase, "trap");
    // The aim: 1.3 times the signal, and the hand-over on top.
    let aim = 1.3 + null.median / signal.median;
    let trap = trap.against(&signal, Some(aim));
    let mut figures = vec![system_call, futex];
    if phase == Phase::Spare {
        progress.next("cache line");
        figures.push(host::cache_line(phase));
    }
    figures.extend([null, host_spin, guest_spin, host_clock, clock, signal, trap]);
    figures
}

/// From an event until somebody runs.
fn latencies(phase: Phase, progress: &mut Progress) -> Vec<Figure> {
    progress.next("event to oneself");
    let to_self = guest::nanoseconds("event to oneself until its handler runs", phase, "self");
    progress.next("signal to a running thread");
    let host_running = host_signal::to_running(phase, SAMPLES);
    progress.next("upcall into a running guest");
    let running = guest::upcall("upcall into a running guest", phase, "running", SAMPLES);
    let running = running.against(&host_running, None);
    progress.next("wake-up of a thread");
    let host_wake = host::wake(phase, SAMPLES);
    progress.next("wake-up of a blocked guest");
    let blocked = guest::upcall("wake-up of a blocked guest by an event", phase, "blocked", SAMPLES);
    let blocked = blocked.against(&host_wake, None);
    progress.next("lateness of sleeps");
    let host_sleep = host::sleep(phase);
    let sleep = guest::nanoseconds("lateness of a guest's sleep", phase, "sleep").against(&host_sleep, None);
    vec![to_self, host_running, running, host_wake, blocked, host_sleep, sleep]
}

fn starts(phase: Phase, progress: &mut Progress) -> Vec<Figure> {
    progress.next("fork and exec");
    let spawn = host::spawn(phase);
    progress.next("Vm::start");
    let start = guest::start_to_first_call(phase).at_most(500.0);
    progress.next("hv run hello");
    let hello = process::run_hello(phase).at_most(5.0);
    vec![spawn, start, hello]
}

fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for phase in [Phase::Spare, Phase::Pinned] {
        let rows: Vec<_> = figures.iter().filter(|f| f.phase == phase).map(row).collect();
        if !rows.is_empty() {
            let (median, min, max, ratio, aim) = ("median", "min", "max", "ratio", "aim");
            let head = format!("{phase:<41}{median:>8}{min:>7}{max:>8}     {ratio:>5}{aim:>6}");
            writeln!(text, "{head}\n{}\n", rows.join("\n")).expect("a string takes it");
        }
    }
    text + "ratio: to the host's row above it that does the same (--json names it). aim: the most that the\n\
            ratio should be, or without one the median; ! where it is more.\n"
}

fn row(figure: &Figure) -> String {
    let Figure { name, unit, median, min, max, .. } = figure;
    let number = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    let optional = |value: Option<f64>| value.map(number).unwrap_or_default();
    let missed = if figure.met() == Some(false) { "!" } else { "" };
    let text = format!(
        "{name:<41}{:>8}{:>7}{:>8} {unit:<3} {:>5}{:>6}{missed}",
        number(*median),
        number(*min),
        number(*max),
        optional(figure.ratio),
        optional(figure.aim),
    );
    text.trim_end().to_owned()
}
